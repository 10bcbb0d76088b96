//! What is on a powered-off disk: its partitions and their files, read without root privileges and without mounting.

use anyhow::{Context, Result, bail, ensure};
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use ext4_view::{Ext4, Ext4Read};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::disk::{SECTOR, guid_of_hash};
use crate::uki;
use crate::verity::uuid_text;

/// A raw disk image.
pub struct Disk {
    path: PathBuf,
    file: File,
    pub size: u64,
    pub partitions: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub name: String,
    /// PARTUUID as text.
    pub uuid: String,
    /// In bytes from the start of the disk.
    pub start: u64,
    pub size: u64,
}

/// A file, folder or link in one of the file systems.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Absolute.
    pub path: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Folder,
    /// With its size in bytes.
    File(u64),
    /// With its target.
    Link(String),
    Other,
}

/// A unified kernel image in the ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEntry {
    pub path: String,
    pub version: String,
    /// The verity root hash that its command line asks for.
    pub root_hash: String,
    pub bytes: usize,
}

/// At most so many files of one file system are listed: what is read may be damaged or hostile.
const MOST_FILES: usize = 100_000;

impl Disk {
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_ok() && &magic == b"QFI\xfb" {
            bail!(
                "{} is a qcow2 image: inspect the raw disk.img, or convert it with qemu-img convert -O raw",
                path.display()
            );
        }
        let size = file.seek(SeekFrom::End(0))?;
        let table = gptman::GPT::read_from(&mut file, SECTOR)
            .with_context(|| format!("{} has no partition table (GPT) that is intact", path.display()))?;
        let partitions = table
            .iter()
            .filter(|(_, entry)| entry.is_used())
            .map(|(number, entry)| Partition {
                number,
                name: entry.partition_name.as_str().to_owned(),
                uuid: uuid_text(guid_of_hash(entry.unique_partition_guid)),
                start: entry.starting_lba.saturating_mul(SECTOR),
                size: entry.size().unwrap_or(0).saturating_mul(SECTOR),
            })
            .collect();
        Ok(Self { path: path.to_owned(), file, size, partitions })
    }

    pub fn partition(&self, name: &str) -> Result<&Partition> {
        self.partitions.iter().find(|partition| partition.name == name).with_context(|| {
            let names: Vec<&str> = self.partitions.iter().map(|partition| partition.name.as_str()).collect();
            format!("{} has no partition {name:?}: it has {}", self.path.display(), names.join(", "))
        })
    }

    fn window(&self, name: &str) -> Result<Window> {
        let partition = self.partition(name)?;
        ensure!(
            partition.start.checked_add(partition.size).is_some_and(|end| end <= self.size),
            "the partition {name} ends beyond the disk"
        );
        Ok(Window { file: self.file.try_clone()?, start: partition.start, size: partition.size, at: 0 })
    }

    fn ext4(&self, name: &str) -> Result<Ext4> {
        Ext4::load(Box::new(self.window(name)?))
            .with_context(|| format!("the partition {name} has no ext4 that can be read"))
    }

    /// Whether a partition begins with something other than zeros.
    pub fn is_empty(&self, name: &str) -> Result<bool> {
        let mut start = vec![0; 64 << 10];
        self.window(name)?.read_exact(&mut start)?;
        Ok(start.iter().all(|byte| *byte == 0))
    }

    /// The files of a partition, sorted by path.
    pub fn files(&self, name: &str) -> Result<Vec<Node>> {
        let mut nodes = match name {
            "esp" => fat_files(self.window(name)?)?,
            "root-a" | "root-b" => erofs_files(&self.content(name)?)?,
            _ => ext4_files(&self.ext4(name)?)?,
        };
        nodes.sort();
        Ok(nodes)
    }

    /// What a file holds.
    pub fn read(&self, name: &str, path: &str) -> Result<Vec<u8>> {
        let missing = || format!("cannot read {path} in the partition {name}");
        match name {
            "esp" => read_fat(self.window(name)?, path).with_context(missing),
            "root-a" | "root-b" => {
                let content = self.content(name)?;
                let mut data = Vec::new();
                EroFS::new(SliceImage::new(&content))?
                    .open(path)
                    .with_context(missing)?
                    .read_to_end(&mut data)?;
                Ok(data)
            }
            _ => self.ext4(name)?.read(path).with_context(missing),
        }
    }

    /// All of a partition.
    pub fn content(&self, name: &str) -> Result<Vec<u8>> {
        let mut window = self.window(name)?;
        ensure!(window.size <= 4 << 30, "the partition {name} is too large to read whole");
        let mut data = Vec::new();
        window.read_to_end(&mut data)?;
        Ok(data)
    }

    /// What the boot loader can boot.
    pub fn boot_entries(&self) -> Result<Vec<BootEntry>> {
        let mut entries = Vec::new();
        for node in self.files("esp")? {
            if !(node.path.starts_with("/EFI/Linux/") && node.path.ends_with(".efi")) {
                continue;
            }
            let image = self.read("esp", &node.path)?;
            let text = |section| {
                uki::section(&image, section).map(|data| String::from_utf8_lossy(data).into_owned())
            };
            let version =
                text(".osrel")?.lines().find_map(|line| line.strip_prefix("VERSION_ID=").map(str::to_owned));
            let cmdline = text(".cmdline")?;
            let mut words = cmdline.split_whitespace().skip_while(|word| *word != "sha256").skip(1);
            entries.push(BootEntry {
                path: node.path,
                version: version.unwrap_or_else(|| "unknown".to_owned()),
                root_hash: words.next().unwrap_or("none").to_owned(),
                bytes: image.len(),
            });
        }
        Ok(entries)
    }
}

/// One partition as a file of its own; read only.
struct Window {
    file: File,
    start: u64,
    size: u64,
    at: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let read = Read::read(&mut self.file, &mut buffer[..wanted])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at =
            at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a position before the start"))?;
        Ok(self.at)
    }
}

/// fatfs asks for a writer even to read.
impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is opened to be read only"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.seek(SeekFrom::Start(start))?;
        Ok(self.read_exact(buffer)?)
    }
}

fn fat_options() -> fatfs::FsOptions {
    fatfs::FsOptions::new().update_accessed_date(false)
}

fn fat_files(window: Window) -> Result<Vec<Node>> {
    let system =
        fatfs::FileSystem::new(window, fat_options()).context("the ESP has no FAT that can be read")?;
    let mut nodes = Vec::new();
    let mut folders = vec![(String::new(), system.root_dir())];
    while let Some((path, folder)) = folders.pop() {
        for entry in folder.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{path}/{name}");
            let kind = if entry.is_dir() { Kind::Folder } else { Kind::File(entry.len()) };
            if entry.is_dir() {
                folders.push((path.clone(), entry.to_dir()));
            }
            add(&mut nodes, Node { path, kind })?;
        }
    }
    Ok(nodes)
}

fn read_fat(window: Window, path: &str) -> Result<Vec<u8>> {
    let system = fatfs::FileSystem::new(window, fat_options())?;
    let mut data = Vec::new();
    system.root_dir().open_file(path.trim_start_matches('/'))?.read_to_end(&mut data)?;
    Ok(data)
}

fn erofs_files(content: &[u8]) -> Result<Vec<Node>> {
    let system =
        EroFS::new(SliceImage::new(content)).context("the partition has no erofs that can be read")?;
    let mut nodes = Vec::new();
    for entry in system.walk_dir("/")? {
        let entry = entry?;
        let path = format!(
            "/{}",
            String::from_utf8_lossy(entry.dir_entry.path().as_bytes()).trim_start_matches('/')
        );
        let inode = &entry.inode;
        let kind = if inode.is_dir() {
            Kind::Folder
        } else if inode.is_symlink() {
            Kind::Link(String::from_utf8_lossy(system.read_link_inode(*inode)?.as_bytes()).into_owned())
        } else if inode.is_file() {
            Kind::File(inode.data_size())
        } else {
            Kind::Other
        };
        add(&mut nodes, Node { path, kind })?;
    }
    Ok(nodes)
}

fn ext4_files(system: &Ext4) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    let mut folders = vec![ext4_view::PathBuf::new("/")];
    while let Some(folder) = folders.pop() {
        for entry in system.read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            let path = entry.path();
            let metadata = entry.metadata()?;
            let kind = if metadata.is_dir() {
                folders.push(path.clone());
                Kind::Folder
            } else if metadata.is_symlink() {
                Kind::Link(system.read_link(&path)?.display().to_string())
            } else if metadata.file_type().is_regular_file() {
                Kind::File(metadata.len())
            } else {
                Kind::Other
            };
            add(&mut nodes, Node { path: path.display().to_string(), kind })?;
        }
    }
    Ok(nodes)
}

fn add(nodes: &mut Vec<Node>, node: Node) -> Result<()> {
    ensure!(nodes.len() < MOST_FILES, "there are more than {MOST_FILES} files");
    nodes.push(node);
    Ok(())
}
