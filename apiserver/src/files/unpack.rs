//! Makes files of a tar stream, below a folder: nothing in the stream, and nobody who changes the tree meanwhile, leads out of that. Where
//! there is a link, nothing is put behind it. Files are new ones: what has the name is replaced, and who has it open keeps the old one.
//! They belong to this process's user; what gives privileges (setuid, setgid) is dropped.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

use super::gate::Gate;
use super::{DEEPEST, Sum, at};

const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Where files go.
pub struct Place {
    folder: OwnedFd,
    /// What the first part of names in the archive is called there; `None`: as in the archive.
    name: Option<OsString>,
    /// It was named as a folder, by a slash at its end.
    is_folder: bool,
    path: PathBuf,
}

impl Place {
    /// As cp(1) takes a path: what comes goes into it if it is a folder, and has its name if there is no folder of that name. `is_contents`:
    /// what comes has no folder of its own around it, and the folder is made if it is not there. Links of the path are followed.
    pub fn find(path: &Path, is_contents: bool) -> io::Result<Self> {
        let failed = |error: Errno| at(path, error.into());
        let into = |folder| Self { folder, name: None, is_folder: true, path: path.to_owned() };
        match open(path, FOLDER, Mode::empty()) {
            Ok(folder) => return Ok(into(folder)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => return Err(failed(error)),
        }
        let name = path.file_name().ok_or_else(|| failed(Errno::ENOENT))?.to_owned();
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let folder = open(above, FOLDER, Mode::empty()).map_err(|error| at(above, error.into()))?;
        if is_contents {
            mkdirat(&folder, name.as_os_str(), Mode::from_bits_truncate(0o755)).map_err(
                |error| match error {
                    Errno::EEXIST => at(path, io::Error::other("there is something else that is no folder")),
                    error => failed(error),
                },
            )?;
            let flags = FOLDER | OFlag::O_NOFOLLOW;
            return openat(&folder, name.as_os_str(), flags, Mode::empty()).map(into).map_err(failed);
        }
        let is_folder = path.as_os_str().as_bytes().ends_with(b"/");
        Ok(Self { folder, name: Some(name), is_folder, path: path.to_owned() })
    }

    /// The folder that holds a path of the archive, which is made, and its name there; none for the top of the archive.
    fn spot(&self, path: &Path) -> io::Result<Option<Spot>> {
        let mut parts: Vec<&OsStr> = plain(path)?;
        if let (Some(name), Some(first)) = (&self.name, parts.first_mut()) {
            *first = name;
        }
        let Some(name) = parts.pop() else { return Ok(None) };
        let above: PathBuf = parts.iter().collect();
        let folder = match self.below(&above) {
            Err(Errno::ENOENT) => {
                let mut prefix = PathBuf::new();
                for part in parts {
                    match mkdirat(&self.below(&prefix)?, part, Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => prefix.push(part),
                        Err(error) => return Err(error.into()),
                    }
                }
                self.below(&above)
            }
            folder => folder,
        };
        let folder = folder.map_err(|error| match error {
            Errno::ELOOP | Errno::ENOTDIR => {
                io::Error::other("there is a link, or a file, in place of a folder above it")
            }
            error => error.into(),
        })?;
        Ok(Some(Spot { folder, name: name.to_owned() }))
    }

    fn below(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        openat2(&self.folder, path, OpenHow::new().flags(FOLDER).resolve(resolve))
    }
}

/// A folder that is open, and a name in it.
struct Spot {
    folder: OwnedFd,
    name: OsString,
}

/// Makes what comes, and tells what is left out.
pub fn unpack(from: impl Read, place: &Place, mut tell: impl FnMut(String)) -> io::Result<Sum> {
    let (gate, keeper) = Gate::new(from);
    let mut archive = Archive::new(gate);
    let mut sum = Sum::default();
    let mut is_first = true;
    for entry in archive.entries()? {
        let mut entry = entry?;
        keeper.open(&entry)?;
        let path = entry.path()?.into_owned();
        if std::mem::take(&mut is_first) && entry.header().entry_type() != EntryType::Directory {
            // One file, not a folder.
            if place.is_folder && place.name.is_some() {
                return Err(at(&place.path, io::Error::other("there is no such folder")));
            }
        }
        add(&mut entry, &path, place, &mut sum, &mut tell).map_err(|error| at(&path, error))?;
    }
    Ok(sum)
}

fn add<R: Read>(
    entry: &mut Entry<'_, R>,
    path: &Path,
    place: &Place,
    sum: &mut Sum,
    tell: &mut impl FnMut(String),
) -> io::Result<()> {
    let Some(spot) = place.spot(path)? else { return Ok(()) };
    let Spot { folder, name } = &spot;
    let name = name.as_os_str();
    let mode = entry.header().mode()? & 0o777;
    match entry.header().entry_type() {
        // Its owner can put into it what follows.
        EntryType::Directory => match mkdirat(folder, name, Mode::from_bits_truncate(mode | 0o700)) {
            Err(Errno::EEXIST) if spot.is_folder() => return Ok(()),
            Err(Errno::EEXIST) => {
                return Err(io::Error::other("there is something by that name which is no folder"));
            }
            made => return Ok(made?),
        },
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            spot.make_room()?;
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(folder, name, flags, Mode::from_bits_truncate(mode))?);
            // The library takes the end of a stream for the end of a file.
            let written = io::copy(entry, &mut file).and_then(|written| match written == entry.size() {
                true => Ok(written),
                false => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of it"))
                }
            });
            if written.is_err() {
                let _ = unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
            }
            sum.bytes += written?;
            let changed = i64::try_from(entry.header().mtime()?).unwrap_or(i64::MAX);
            let _ = futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::new(changed, 0));
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link to nothing"))?;
            spot.make_room()?;
            symlinkat(OsStr::from_bytes(&target), folder, name)?;
        }
        EntryType::Link => {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
            let target = place
                .spot(&target)?
                .ok_or_else(|| io::Error::other("a second name for the folder itself"))?;
            spot.make_room()?;
            linkat(&target.folder, target.name.as_os_str(), folder, name, LinkatFlags::empty())?;
        }
        EntryType::XGlobalHeader => return Ok(()),
        other => {
            let what = match other {
                EntryType::Block | EntryType::Char => "a device".to_owned(),
                EntryType::Fifo => "a pipe".to_owned(),
                other => format!("of the kind {:?}", char::from(other.as_byte())),
            };
            tell(format!("left out {path:?}: it is {what}"));
            return Ok(());
        }
    }
    sum.files += 1;
    Ok(())
}

impl Spot {
    fn is_folder(&self) -> bool {
        openat(&self.folder, self.name.as_os_str(), FOLDER | OFlag::O_NOFOLLOW, Mode::empty()).is_ok()
    }

    /// Takes away what has the name, unless it is a folder.
    fn make_room(&self) -> io::Result<()> {
        match unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => Err(io::Error::other("there is a folder by that name")),
            Err(error) => Err(error.into()),
        }
    }
}

/// The parts of a path; `..` is refused: what packs honestly does not write it.
fn plain(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("it leads out of the folder"));
            }
        }
    }
    if parts.len() > DEEPEST + 1 {
        return Err(io::Error::other(format!("more than {DEEPEST} folders lie within each other")));
    }
    Ok(parts)
}
