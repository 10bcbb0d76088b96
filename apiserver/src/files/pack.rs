//! Reads a tree into a tar stream. Regular files, folders and links; what else there is, is left out, and that is told.

use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

use super::{DEEPEST, Descriptors, Sum, at, kind};

/// Bytes of a file that does not say how long it is, as those of `/proc` do not.
const LARGEST_UNTOLD: u64 = 1 << 20;
/// Names of links that fit into a header (tar(5)).
const SHORT: usize = 100;
/// File systems that are views of the kernel (statfs(2)): nobody means to copy these with a folder above them.
const OF_KERNEL: [nix::libc::__fsword_t; 9] = [
    nix::libc::PROC_SUPER_MAGIC,
    0x6265_6572, // sysfs
    nix::libc::CGROUP2_SUPER_MAGIC,
    nix::libc::DEBUGFS_MAGIC,
    nix::libc::TRACEFS_MAGIC,
    nix::libc::SECURITYFS_MAGIC,
    nix::libc::BPF_FS_MAGIC,
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
];

/// What is to be copied.
pub struct Source {
    file: OwnedFd,
    path: PathBuf,
    /// What it is called in the archive; `None`: only what is in it.
    name: Option<OsString>,
}

impl Source {
    /// Links of the path are followed, the last one too. One that ends with `/.` means what is in the folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let file = file.map_err(|error| at(path, error.into()))?;
        let name = path.file_name().filter(|_| !is_of_contents(path)).map(OsStr::to_owned);
        Ok(Self { file, path: path.to_owned(), name })
    }
}

/// Whether a path means what is in a folder, and not the folder.
pub fn is_of_contents(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/.") || path.file_name().is_none()
}

/// Writes it, and tells what is left out.
pub fn pack(
    source: Source,
    descriptors: &Descriptors,
    to: impl Write,
    tell: impl FnMut(String),
) -> io::Result<Sum> {
    let Source { file, path, name } = source;
    let mut packing = Packing { archive: Builder::new(to), descriptors, tell, sum: Sum::default() };
    let stat = fstat(&file)?;
    let inside = name.as_ref().map(PathBuf::from).unwrap_or_default();
    match kind(stat.st_mode) {
        SFlag::S_IFDIR => {
            if name.is_some() {
                packing.head(EntryType::Directory, &stat, &inside, 0, io::empty())?;
            }
            packing.walk(Level::open(file, &stat, inside).map_err(|error| at(&path, error))?)?;
        }
        SFlag::S_IFREG => packing.file(&file, &inside).map_err(|error| at(&path, error))?,
        other => return Err(at(&path, io::Error::other(format!("it is {}", name_of(other))))),
    }
    packing.archive.into_inner()?.flush()?;
    Ok(packing.sum)
}

struct Packing<'a, W: Write, T: FnMut(String)> {
    archive: Builder<W>,
    descriptors: &'a Descriptors,
    tell: T,
    sum: Sum,
}

/// A folder that is being read.
struct Level {
    folder: OwnedFd,
    names: OwningIter,
    path: PathBuf,
    device: nix::libc::dev_t,
}

impl Level {
    fn open(folder: OwnedFd, stat: &FileStat, path: PathBuf) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let names = Dir::from_fd(openat(&folder, ".", flags, Mode::empty())?)?.into_iter();
        Ok(Self { folder, names, path, device: stat.st_dev })
    }
}

impl<W: Write, T: FnMut(String)> Packing<'_, W, T> {
    fn walk(&mut self, first: Level) -> io::Result<()> {
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.names.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|error| at(&level.path, error.into()))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = level.path.join(name);
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let opened = match openat(&level.folder, name, flags, Mode::empty()) {
                // It has gone meanwhile.
                Err(Errno::ENOENT) => continue,
                opened => opened.map_err(|error| at(&path, error.into()))?,
            };
            let next = self.add(opened, level.device, &path).map_err(|error| at(&path, error))?;
            if let Some((folder, stat)) = next {
                if levels.len() >= DEEPEST {
                    let reason = format!("more than {DEEPEST} folders lie within each other");
                    return Err(at(&path, io::Error::other(reason)));
                }
                levels.push(Level::open(folder, &stat, path.clone()).map_err(|error| at(&path, error))?);
            }
        }
        Ok(())
    }

    /// A folder whose content is to follow is given back.
    fn add(
        &mut self,
        opened: OwnedFd,
        device: nix::libc::dev_t,
        path: &Path,
    ) -> io::Result<Option<(OwnedFd, FileStat)>> {
        let stat = fstat(&opened)?;
        match kind(stat.st_mode) {
            SFlag::S_IFDIR => {
                self.head(EntryType::Directory, &stat, path, 0, io::empty())?;
                if stat.st_dev != device
                    && OF_KERNEL.iter().any(|magic| FsType(*magic) == filesystem(&opened))
                {
                    (self.tell)(format!("left out what is in {path:?}: it is a view of the kernel"));
                    return Ok(None);
                }
                return Ok(Some((opened, stat)));
            }
            SFlag::S_IFREG => self.file(&opened, path)?,
            SFlag::S_IFLNK => {
                self.link(&stat, path, &readlinkat(&opened, "")?)?;
                self.sum.files += 1;
            }
            other => (self.tell)(format!("left out {path:?}: it is {}", name_of(other))),
        }
        Ok(None)
    }

    fn link(&mut self, stat: &FileStat, path: &Path, target: &OsStr) -> io::Result<()> {
        let mut header = header(EntryType::Symlink, stat, 0);
        if target.len() > SHORT {
            return self.archive.append_link(&mut header, path, Path::new(target));
        }
        header.set_link_name_literal(target.as_bytes())?;
        self.archive.append_data(&mut header, path, io::empty())
    }

    fn file(&mut self, opened: &OwnedFd, path: &Path) -> io::Result<()> {
        let mut file = self.descriptors.read(opened)?;
        let stat = fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.sum.files += 1;
        if size == 0 {
            let mut content = Vec::new();
            (&mut file).take(LARGEST_UNTOLD + 1).read_to_end(&mut content)?;
            let size = content.len() as u64;
            if size > LARGEST_UNTOLD {
                let reason =
                    format!("it does not say how long it is, and has more than {LARGEST_UNTOLD} bytes");
                return Err(io::Error::other(reason));
            }
            return self.head(EntryType::Regular, &stat, path, size, content.as_slice());
        }
        let mut content = Exactly { file, left: size, is_short: false };
        self.head(EntryType::Regular, &stat, path, size, &mut content)?;
        if content.is_short {
            (self.tell)(format!("{path:?} became shorter while it was read: zeros are in place of the rest"));
        }
        Ok(())
    }

    fn head(
        &mut self,
        kind: EntryType,
        stat: &FileStat,
        path: &Path,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        self.sum.bytes += size;
        self.archive.append_data(&mut header(kind, stat, size), path, content)
    }
}

fn header(kind: EntryType, stat: &FileStat, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

fn filesystem(folder: &OwnedFd) -> FsType {
    fstatfs(folder).map_or(FsType(0), |statfs| statfs.filesystem_type())
}

fn name_of(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFBLK | SFlag::S_IFCHR => "a device",
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFSOCK => "a socket",
        _ => "no file that can be copied",
    }
}

/// As many bytes as were told before, whatever becomes of the file.
struct Exactly {
    file: File,
    left: u64,
    is_short: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let read = match self.file.read(buffer)? {
            0 if most > 0 => {
                self.is_short = true;
                buffer.fill(0);
                most
            }
            read => read,
        };
        self.left -= read as u64;
        Ok(read)
    }
}
