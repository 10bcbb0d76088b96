//! Whether the images of a node are what they are believed to be, on a data partition as a power cut may leave it.

use anyhow::{Context, Result};
use build::cache::hex;
use ext4_view::{Ext4, Ext4Read, PathBuf};
use gptman::GPT;
use init::superblock;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use super::cuts::Subject;
use super::record::SECTOR;

const IMAGES: &str = "/images";
/// Before the name of a folder that holds all of an image.
const WHOLE: &str = "sha256-";
const CHUNK: usize = 1 << 20;

/// A file system in memory, and which of its sectors were read.
struct Image {
    bytes: Vec<u8>,
    was_read: Vec<bool>,
}

/// As a node reads it that mends its superblock first, where it has to.
struct Reader {
    image: Rc<RefCell<Image>>,
    at: u64,
    mended: Option<(u64, Vec<u8>)>,
}

impl Reader {
    fn of(image: &Rc<RefCell<Image>>) -> Self {
        let mut reader = Self { image: image.clone(), at: 0, mended: None };
        let _ = superblock::mend(&mut reader);
        reader
    }
}

impl Ext4Read for Reader {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut image = self.image.borrow_mut();
        let from = usize::try_from(start)?;
        let end = from.checked_add(into.len()).ok_or("behind the end")?;
        into.copy_from_slice(image.bytes.get(from..end).ok_or("behind the end")?);
        image.was_read[from / SECTOR..end.div_ceil(SECTOR)].fill(true);
        if let Some((at, mended)) = &self.mended {
            for (offset, byte) in mended.iter().enumerate() {
                let place = (at + offset as u64).checked_sub(start).and_then(|at| usize::try_from(at).ok());
                if let Some(place) = place.and_then(|at| into.get_mut(at)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ext4Read::read(self, self.at, into).map_err(io::Error::other)?;
        self.at += into.len() as u64;
        Ok(into.len())
    }
}

impl Write for Reader {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.mended = Some((self.at, data.to_vec()));
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(0) => self.image.borrow().bytes.len() as u64,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.at)
    }
}

/// What is in a folder: paths, and what is there.
pub type Tree = BTreeMap<String, String>;

/// The data partition of a node.
pub struct StoreJudge {
    image: Rc<RefCell<Image>>,
    /// Of the partition, on the disk.
    first: usize,
    /// Images by the names of their folders.
    known: BTreeMap<String, Tree>,
    is_old: bool,
    verdict: Result<Vec<String>, String>,
}

impl StoreJudge {
    /// Of a disk as it is; `known`: what the images are that may be there.
    pub fn new(disk: &Path, known: BTreeMap<String, Tree>) -> Result<Self> {
        let file = File::open(disk).with_context(|| format!("cannot open {}", disk.display()))?;
        let table = GPT::read_from(&mut &file, SECTOR as u64)?;
        let (_, entry) = (table.iter())
            .find(|(_, entry)| entry.partition_name.as_str() == "data")
            .context("there is no data partition")?;
        let first = usize::try_from(entry.starting_lba)?;
        let sectors = usize::try_from(entry.ending_lba)? + 1 - first;
        // Zeros that nobody touches take no memory.
        let mut bytes = vec![0; sectors * SECTOR];
        let mut chunk = vec![0; CHUNK];
        for at in (0..bytes.len()).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(bytes.len() - at)];
            file.read_exact_at(chunk, (first * SECTOR + at) as u64)?;
            if chunk.iter().any(|byte| *byte != 0) {
                bytes[at..at + chunk.len()].copy_from_slice(chunk);
            }
        }
        let image = Image { bytes, was_read: vec![false; sectors] };
        Ok(Self { image: Rc::new(RefCell::new(image)), first, known, is_old: true, verdict: Ok(Vec::new()) })
    }

    /// The images that are there, as they are.
    pub fn images(&self) -> Result<BTreeMap<String, Tree>, String> {
        let told = |error: ext4_view::Ext4Error| error.to_string();
        let system = Ext4::load(Box::new(Reader::of(&self.image)))
            .map_err(|error| format!("the file system cannot be read: {error}"))?;
        let mut images = BTreeMap::new();
        if !system.exists(IMAGES).map_err(told)? {
            return Ok(images);
        }
        for entry in system.read_dir(IMAGES).map_err(told)? {
            let entry = entry.map_err(told)?;
            let name = String::from_utf8_lossy(entry.file_name().as_ref()).into_owned();
            if name.starts_with(WHOLE) {
                let tree = tree(&system, entry.path()).map_err(|error| format!("{name}: {error}"))?;
                images.insert(name, tree);
            }
        }
        let references = format!("{IMAGES}/references.json");
        if system.exists(references.as_str()).map_err(told)? {
            let text = system.read(references.as_str()).map_err(told)?;
            serde_json::from_slice::<BTreeMap<String, String>>(&text)
                .map_err(|error| format!("{references}: {error}"))?;
        }
        Ok(images)
    }

    fn decide(&self) -> Result<Vec<String>, String> {
        let images = self.images()?;
        for (name, tree) in &images {
            let known = self.known.get(name).ok_or_else(|| format!("{name} is nobody's"))?;
            let paths = known.keys().chain(tree.keys());
            if let Some(path) = paths.into_iter().find(|path| known.get(*path) != tree.get(*path)) {
                let found = tree.get(path).map_or("not there", String::as_str);
                return Err(format!("{name} is believed whole, and its {path} is {found}"));
            }
        }
        Ok(images.into_keys().collect())
    }
}

fn tree(system: &Ext4, folder: PathBuf) -> Result<Tree, ext4_view::Ext4Error> {
    let top = folder.display().to_string();
    let mut tree = Tree::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in system.read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name() == "." || entry.file_name() == ".." {
                continue;
            }
            let path = entry.path();
            let about = entry.metadata()?;
            let owner = format!("{:o} {}:{}", about.mode(), about.uid(), about.gid());
            let what = if about.is_dir() {
                folders.push(path.clone());
                format!("a folder {owner}")
            } else if about.is_symlink() {
                format!("a link to {}", system.read_link(&path)?.display())
            } else {
                let mut content = Vec::new();
                system.open(&path)?.read_to_end(&mut content).map_err(|_| ext4_view::Ext4Error::NotFound)?;
                format!("a file {owner} of {}, {}", content.len(), hex(&Sha256::digest(&content)))
            };
            let path = path.display().to_string();
            tree.insert(path.strip_prefix(&top).unwrap_or(&path).to_owned(), what);
        }
    }
    Ok(tree)
}

impl Subject for StoreJudge {
    type Place = usize;
    type Content = Box<[u8; SECTOR]>;
    /// The images that are whole.
    type State = Vec<String>;

    /// A verdict costs more here: the file system is read again.
    const AT_RANDOM: usize = 1;

    fn place(&self, sector: usize) -> Option<usize> {
        let at = sector.checked_sub(self.first)?;
        (at < self.image.borrow().was_read.len()).then_some(at)
    }

    fn content(&self, _: usize, bytes: &[u8; SECTOR]) -> Box<[u8; SECTOR]> {
        Box::new(*bytes)
    }

    fn get(&self, place: usize) -> Box<[u8; SECTOR]> {
        let mut bytes = Box::new([0; SECTOR]);
        bytes.copy_from_slice(&self.image.borrow().bytes[place * SECTOR..(place + 1) * SECTOR]);
        bytes
    }

    fn set(&mut self, place: usize, content: &Box<[u8; SECTOR]>) {
        let mut image = self.image.borrow_mut();
        let bytes = place * SECTOR..(place + 1) * SECTOR;
        if image.bytes[bytes.clone()] != content[..] {
            image.bytes[bytes].copy_from_slice(&content[..]);
            self.is_old |= image.was_read[place];
        }
    }

    /// The journal says where nearly all is: any of its sectors is one of many.
    fn is_watched(&self, _: usize) -> bool {
        false
    }

    fn verdict(&mut self) -> &Result<Vec<String>, String> {
        if self.is_old {
            self.image.borrow_mut().was_read.fill(false);
            self.verdict = self.decide();
            self.is_old = false;
        }
        &self.verdict
    }
}
