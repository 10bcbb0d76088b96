//! Unpacking the layers of an image (OCI Image Specification 1.1, layer.md) into one tree.
//!
//! A layer is hostile: every name is resolved inside the tree by the kernel (openat2(2) with RESOLVE_IN_ROOT), so that
//! neither `..` nor a symbolic link of an earlier layer leads out; entries and bytes are bounded; devices are left out.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, fstat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar_core::EntryType;

use crate::container::archive::{Archive, Chunk, Content, Entry};
use crate::container::attributes;

const MOST_ENTRIES: u64 = 500_000;
pub const LARGEST_TREE: u64 = 16 << 30;
const DEEPEST: usize = 128;
/// Left free on the file system.
pub const RESERVE: u64 = 16 << 20;

/// One tree that layers are unpacked into, the lowest first.
pub struct Tree {
    root: OwnedFd,
    entries: u64,
    bytes: u64,
    highest_id: u32,
}

/// A place in the tree: an open folder and a name in it.
struct Spot {
    folder: OwnedFd,
    name: OsString,
}

impl Tree {
    /// Opens an existing, empty folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let root = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { root, entries: 0, bytes: 0, highest_id: 0 })
    }

    /// The highest user or group that a file was given to, also one that a later layer took away.
    pub fn highest_id(&self) -> u32 {
        self.highest_id
    }

    /// Unpacks one layer, an uncompressed tar archive.
    pub fn add_layer(&mut self, layer: impl Read) -> io::Result<()> {
        let mut archive = Archive::new(layer);
        let mut added = Added::default();
        while let Some(entry) = archive.next_entry()? {
            self.count_entry()?;
            let Some(path) = plain(&entry.path)? else { continue };
            self.add(&path, &entry, archive.content(&entry), &mut added)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }

    fn count_entry(&mut self) -> io::Result<()> {
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(refused(format!("the image has more than {MOST_ENTRIES} files")));
        }
        Ok(())
    }

    fn add<R: Read>(
        &mut self,
        path: &Path,
        entry: &Entry,
        mut content: Content<'_, R>,
        added: &mut Added,
    ) -> io::Result<()> {
        let spot = self.spot(path)?;
        if let Some(name) = spot.name.as_bytes().strip_prefix(b".wh.") {
            return match name {
                // `.wh...` would be a name for the folder above the tree.
                b"" | b"." | b".." => Err(refused("this takes away no file of the image".to_owned())),
                b".wh..opq" => make_opaque(path.parent().unwrap_or(Path::new("")), &spot.folder, added),
                name => remove(&spot.folder, OsStr::from_bytes(name)),
            };
        }
        added.insert(path);
        let mode = Mode::from_bits_truncate(entry.mode & 0o7777);
        match entry.kind {
            EntryType::Directory => {
                match mkdirat(&spot.folder, spot.name.as_os_str(), Mode::from_bits_truncate(0o700)) {
                    Ok(()) => {}
                    // A folder of an earlier layer stays, with the new owner and mode; anything else gives way.
                    Err(Errno::EEXIST) if is_folder(&spot) => {}
                    Err(Errno::EEXIST) => {
                        remove(&spot.folder, &spot.name)?;
                        mkdirat(&spot.folder, spot.name.as_os_str(), Mode::from_bits_truncate(0o700))?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
                remove(&spot.folder, &spot.name)?;
                let flags =
                    OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file =
                    openat(&spot.folder, spot.name.as_os_str(), flags, Mode::from_bits_truncate(0o600))?;
                self.write(&mut File::from(file), &mut content)?;
            }
            EntryType::Symlink => {
                let target = entry.target.as_deref();
                let target = target.ok_or_else(|| refused("a symbolic link without a target".to_owned()))?;
                remove(&spot.folder, &spot.name)?;
                symlinkat(target, &spot.folder, spot.name.as_os_str())?;
            }
            EntryType::Link => {
                let target = entry.target.as_deref();
                let target = target.ok_or_else(|| refused("a hard link without a target".to_owned()))?;
                let Some(target) = plain(Path::new(target))? else {
                    return Err(refused("a hard link to the root".to_owned()));
                };
                let target = self.spot(&target)?;
                remove(&spot.folder, &spot.name)?;
                linkat(
                    &target.folder,
                    target.name.as_os_str(),
                    &spot.folder,
                    spot.name.as_os_str(),
                    LinkatFlags::empty(),
                )?;
                // Owner and mode are those of the file that it is another name of.
                return Ok(());
            }
            EntryType::Fifo => {
                remove(&spot.folder, &spot.name)?;
                nix::unistd::mkfifoat(&spot.folder, spot.name.as_os_str(), Mode::from_bits_truncate(0o600))?;
            }
            // Devices are made by the runtime, by its own list; other kinds carry nothing for a tree.
            _ => return Ok(()),
        }
        let id =
            |number: u64| u32::try_from(number).map_err(|_| refused("an owner beyond 32 bits".to_owned()));
        let (uid, gid) = (id(entry.uid)?, id(entry.gid)?);
        self.highest_id = self.highest_id.max(uid).max(gid);
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(&spot.folder, spot.name.as_os_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if entry.kind != EntryType::Symlink {
            fchmodat(&spot.folder, spot.name.as_os_str(), mode, FchmodatFlags::FollowSymlink)?;
        }
        if !matches!(entry.kind, EntryType::Symlink | EntryType::Fifo) {
            // A change of the owner takes capabilities away.
            attributes::set(&spot.folder, &spot.name, &entry.attributes)?;
        }
        if entry.kind != EntryType::Directory {
            // A folder's own changes with what comes into it.
            let time = TimeSpec::new(i64::try_from(entry.mtime).unwrap_or(0), 0);
            utimensat(&spot.folder, spot.name.as_os_str(), &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }

    /// Copies a file's content within the bounds of the tree and of the disk. Zeros take no room there.
    fn write<R: Read>(&mut self, file: &mut File, content: &mut Content<'_, R>) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut end = 0;
        loop {
            let (size, data) = match content.next_chunk(&mut buffer)? {
                Chunk::End => return file.set_len(end),
                Chunk::Hole(size) => (size, &[][..]),
                Chunk::Data(size) => (size as u64, &buffer[..size]),
            };
            self.count_bytes(file, size)?;
            end += size;
            if is_zero(data) {
                file.seek(SeekFrom::Start(end))?;
            } else {
                file.write_all(data)?;
            }
        }
    }

    fn count_bytes(&mut self, file: &File, more: u64) -> io::Result<()> {
        let before = self.bytes;
        self.bytes = before.saturating_add(more);
        if self.bytes > LARGEST_TREE {
            return Err(refused(format!("the image unpacks to more than {} GiB", LARGEST_TREE >> 30)));
        }
        // Not at each: now and then.
        if before == 0 || before >> 24 != self.bytes >> 24 {
            let stat = nix::sys::statvfs::fstatvfs(file)?;
            if stat.blocks_available() * stat.fragment_size() < RESERVE {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "the data partition is full: give the machine a larger disk",
                ));
            }
        }
        Ok(())
    }

    /// The folder of a path, made where it is missing, resolved inside the tree.
    fn spot(&mut self, path: &Path) -> io::Result<Spot> {
        let name = path.file_name().ok_or_else(|| io::Error::other("a name is missing"))?.to_owned();
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.folder(parent) {
            Ok(folder) => Ok(Spot { folder, name }),
            Err(Errno::ENOENT) => {
                let mut prefix = PathBuf::new();
                for part in parent {
                    let above = self.folder(&prefix)?;
                    prefix.push(part);
                    match mkdirat(&above, part, Mode::from_bits_truncate(0o755)) {
                        Ok(()) => self.count_entry()?,
                        Err(Errno::EEXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(Spot { folder: self.folder(parent)?, name })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn folder(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path, how)
    }
}

/// What one layer has added so far, as hashes: a layer can have half a million long names.
#[derive(Default)]
struct Added {
    paths: HashSet<u64>,
    /// Folders that earlier layers no longer show through.
    opaque: HashSet<(u64, u64)>,
    keys: RandomState,
}

impl Added {
    /// Notes a path and the folders above it.
    fn insert(&mut self, path: &Path) {
        for path in path.ancestors() {
            // With a path all above it are known.
            if !self.paths.insert(self.keys.hash_one(path)) {
                break;
            }
        }
    }

    /// Whether the layer has this path, or something below it.
    fn has(&self, path: &Path) -> bool {
        self.paths.contains(&self.keys.hash_one(path))
    }
}

/// In steps that the compiler makes wide ones of.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Trying again does not help.
fn refused(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Removes what earlier layers put into a folder.
fn make_opaque(path: &Path, folder: &OwnedFd, added: &mut Added) -> io::Result<()> {
    let stat = fstat(folder)?;
    if !added.opaque.insert((stat.st_dev, stat.st_ino)) {
        // All that is there now is this layer's: a second marker has nothing to do.
        return Ok(());
    }
    let readable =
        openat(folder, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in nix::dir::Dir::from_fd(readable)?.iter() {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    for name in names {
        if !added.has(&path.join(&name)) {
            remove(folder, &name)?;
        }
    }
    Ok(())
}

fn is_folder(spot: &Spot) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(&spot.folder, spot.name.as_os_str(), flags, Mode::empty()).is_ok()
}

/// Removes a name and what is below it; fine when there is none.
fn remove(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => {
            // The standard library removes a tree without following links; it wants a path.
            let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
            std::fs::remove_dir_all(path)
        }
        Err(error) => Err(error.into()),
    }
}

/// A path without `.` and leading `/`; `None` for the root itself. `..` is refused: no honest layer has it.
fn plain(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused(format!("{} leads out of the image", path.display())));
            }
        }
    }
    if clean.components().count() > DEEPEST {
        return Err(refused(format!("a path is deeper than {DEEPEST} folders")));
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use tar::{Builder, EntryType, Header};

    enum Item<'a> {
        File(&'a str, &'a str),
        Folder(&'a str),
        Link(&'a str, &'a str),
        Hard(&'a str, &'a str),
    }

    /// An archive with names as they are, also those that the library would refuse to write.
    fn layer(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for item in items {
            let (name, kind, target, content) = match item {
                Item::File(name, content) => (name, EntryType::Regular, "", *content),
                Item::Folder(name) => (name, EntryType::Directory, "", ""),
                Item::Link(name, target) => (name, EntryType::Symlink, *target, ""),
                Item::Hard(name, target) => (name, EntryType::Link, *target, ""),
            };
            let mut header = Header::new_gnu();
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            old.linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o755);
            // Our own, so that the test needs no privilege.
            header.set_uid(u64::from(Uid::current().as_raw()));
            header.set_gid(u64::from(Gid::current().as_raw()));
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(layers: &[Vec<u8>]) -> (tempfile::TempDir, io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        fs::create_dir(&root).unwrap();
        let mut tree = Tree::open(&root).unwrap();
        let result = layers.iter().try_for_each(|layer| tree.add_layer(layer.as_slice()));
        (dir, result)
    }

    fn read(dir: &tempfile::TempDir, path: &str) -> Option<String> {
        fs::read_to_string(dir.path().join("rootfs").join(path)).ok()
    }

    #[test]
    fn layers_lie_over_each_other_and_whiteouts_remove() {
        let lower = layer(&[
            Item::Folder("etc"),
            Item::File("etc/a", "1"),
            Item::File("etc/b", "1"),
            Item::Folder("var"),
            Item::File("var/x", "1"),
        ]);
        let upper = layer(&[
            Item::File("./etc/a", "2"),
            Item::File("etc/.wh.b", ""),
            Item::File("var/new", "2"),
            Item::File("var/.wh..wh..opq", ""),
        ]);
        let (dir, result) = unpack(&[lower, upper]);
        result.unwrap();
        assert_eq!(read(&dir, "etc/a").as_deref(), Some("2"));
        assert_eq!(read(&dir, "etc/b"), None);
        assert_eq!((read(&dir, "var/x"), read(&dir, "var/new").as_deref()), (None, Some("2")));
    }

    #[test]
    fn an_opaque_marker_leaves_what_the_layer_has_added() {
        let lower = layer(&[Item::Folder("a"), Item::File("a/old", "1"), Item::File("a/b/old", "1")]);
        let upper = layer(&[
            Item::File("a/b/new", "2"),
            Item::File("a/.wh..wh..opq", ""),
            Item::File("a/later", "2"),
            // The same folder by another name: there is nothing left to take away.
            Item::Link("alias", "a"),
            Item::File("alias/.wh..wh..opq", ""),
        ]);
        let (dir, result) = unpack(&[lower, upper]);
        result.unwrap();
        assert_eq!((read(&dir, "a/old"), read(&dir, "a/later").as_deref()), (None, Some("2")));
        assert_eq!(read(&dir, "a/b/new").as_deref(), Some("2"));
    }

    #[test]
    fn a_whiteout_takes_away_nothing_outside_of_the_tree() {
        for name in [".wh..", ".wh...", ".wh.", "a/.wh..", "a/.wh..."] {
            let (dir, result) = unpack(&[layer(&[Item::File("a/b", "x"), Item::File(name, "")])]);
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
            assert_eq!(read(&dir, "a/b").as_deref(), Some("x"), "{name}");
        }
    }

    #[test]
    fn names_that_fill_the_memory_are_refused() {
        let named = |length: usize| {
            let mut builder = Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_uid(u64::from(Uid::current().as_raw()));
            header.set_gid(u64::from(Gid::current().as_raw()));
            header.set_mode(0o644);
            header.set_size(0);
            // Written as a long name of GNU tar before the file itself.
            builder.append_data(&mut header, "x/".repeat(length / 2) + "y", io::empty()).unwrap();
            builder.into_inner().unwrap()
        };
        unpack(&[named(200)]).1.unwrap();
        let error = unpack(&[named(2 << 20)]).1.unwrap_err();
        assert!(error.to_string().contains("> 1048576 bytes"), "{error}");
        // A large file is no large name.
        let large = layer(&[Item::File("a", &"x".repeat(3 << 20)), Item::File("b", "y")]);
        unpack(&[large]).1.unwrap();
    }

    #[test]
    fn nothing_is_written_outside_of_the_tree() {
        for hostile in [
            vec![Item::File("../outside", "x")],
            vec![Item::Link("up", ".."), Item::File("up/outside", "x")],
            vec![Item::Link("up", "../.."), Item::Folder("up/outside")],
            vec![Item::Link("a", "b"), Item::Link("b", "../"), Item::File("a/outside", "x")],
            vec![Item::Hard("in", "../outside")],
            vec![Item::Link("in", "../outside"), Item::File("in", "x")],
            vec![Item::File("/../outside", "x")],
        ] {
            let (dir, _) = unpack(&[layer(&hostile)]);
            assert!(!dir.path().join("outside").exists());
            assert!(!dir.path().parent().unwrap().join("outside").exists());
        }
    }

    #[test]
    fn an_absolute_link_of_a_lower_layer_stays_inside() {
        let (dir, result) = unpack(&[
            layer(&[Item::Folder("run"), Item::Link("var", "/run")]),
            layer(&[Item::File("var/pid", "7")]),
        ]);
        result.unwrap();
        assert_eq!(read(&dir, "run/pid").as_deref(), Some("7"));
    }

    #[test]
    fn a_file_gives_way_to_a_folder_and_back() {
        let (dir, result) = unpack(&[
            layer(&[Item::File("a", "x"), Item::Folder("b"), Item::File("b/c", "x")]),
            layer(&[Item::Folder("a"), Item::File("a/d", "y"), Item::File("b", "y")]),
        ]);
        result.unwrap();
        assert_eq!((read(&dir, "a/d").as_deref(), read(&dir, "b").as_deref()), (Some("y"), Some("y")));
    }

    /// A header of our own, so that the test needs no privilege.
    fn header(size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_path("./GNUSparseFile.0/name").unwrap();
        header.set_uid(u64::from(Uid::current().as_raw()));
        header.set_gid(u64::from(Gid::current().as_raw()));
        header.set_mode(0o640);
        header.set_mtime(1_234_567_890);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn holes_take_no_room_in_any_format() {
        const SIZE: u64 = 64 << 20;
        const AT: u64 = 40 << 20;
        let content = [7; 4096];
        let pax = |records: &[(&str, &str)], stored: &[u8]| {
            let mut builder = Builder::new(Vec::new());
            builder
                .append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes())))
                .unwrap();
            builder.append(&header(stored.len() as u64), stored).unwrap();
            builder.into_inner().unwrap()
        };
        let (size, at) = (SIZE.to_string(), AT.to_string());
        let map = format!("{at},4096,{size},0");
        let mut list = format!("2\n{at}\n4096\n{size}\n0\n").into_bytes();
        list.resize(512, 0);
        let whole = {
            let mut whole = vec![0; SIZE as usize];
            whole[AT as usize..AT as usize + 4096].fill(7);
            whole
        };
        let gnu = {
            let mut file = tempfile::tempfile().unwrap();
            file.set_len(SIZE).unwrap();
            file.seek(SeekFrom::Start(AT)).unwrap();
            file.write_all(&content).unwrap();
            file.rewind().unwrap();
            let mut builder = Builder::new(Vec::new());
            builder.append_file("file", &mut file).unwrap();
            builder.into_inner().unwrap()
        };
        assert!(gnu.len() < 1 << 20, "no archive of a file with holes");
        for (format, archive) in [
            ("GNU", gnu),
            (
                "PAX 0.0",
                pax(
                    &[
                        ("GNU.sparse.size", &size),
                        ("GNU.sparse.offset", &at),
                        ("GNU.sparse.numbytes", "4096"),
                        ("path", "file"),
                    ],
                    &content,
                ),
            ),
            (
                "PAX 0.1",
                pax(
                    &[("GNU.sparse.size", &size), ("GNU.sparse.name", "file"), ("GNU.sparse.map", &map)],
                    &content,
                ),
            ),
            (
                "PAX 1.0",
                pax(
                    &[
                        ("GNU.sparse.major", "1"),
                        ("GNU.sparse.minor", "0"),
                        ("GNU.sparse.name", "file"),
                        ("GNU.sparse.realsize", &size),
                    ],
                    &[&list[..], &content].concat(),
                ),
            ),
            ("none", pax(&[("path", "file")], &whole)),
        ] {
            let (dir, result) = unpack(&[archive]);
            result.unwrap_or_else(|error| panic!("{format}: {error}"));
            let path = dir.path().join("rootfs/file");
            assert!(fs::read(&path).unwrap() == whole, "{format}: not what was packed");
            let room = fs::metadata(path).unwrap().blocks() * 512;
            assert!(room < 1 << 20, "{format}: it takes {room} bytes");
        }
    }

    #[test]
    fn attributes_and_times_are_those_of_the_archive() {
        let archive = {
            let mut builder = Builder::new(Vec::new());
            let records: [(&str, &[u8]); 3] = [
                // Any bytes: what follows is none of it.
                ("SCHILY.xattr.user.any", b"a\n\nb\0c"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("path", b"file"),
            ];
            builder.append_pax_extensions(records).unwrap();
            builder.append(&header(1), &b"x"[..]).unwrap();
            builder.into_inner().unwrap()
        };
        let (dir, result) = unpack(&[archive]);
        result.unwrap();
        let path = dir.path().join("rootfs/file");
        let mut value = [0; 16];
        let size = rustix::fs::lgetxattr(&path, "user.any", &mut value).unwrap();
        assert_eq!(&value[..size], b"a\n\nb\0c");
        assert!(rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value).is_err());
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.mtime(), about.mode() & 0o7777), (1_234_567_890, 0o640));
    }

    #[test]
    fn attributes_that_no_file_can_have_are_refused() {
        let mut builder = Builder::new(Vec::new());
        builder.append_pax_extensions([("SCHILY.xattr.user.large", &[7; 4000][..])]).unwrap();
        builder.append(&header(0), io::empty()).unwrap();
        let error = unpack(&[builder.into_inner().unwrap()]).1.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }

    #[test]
    fn a_layer_that_is_cut_short_is_an_error() {
        let whole = layer(&[Item::File("a", &"x".repeat(5000)), Item::File("b", "y")]);
        for cut in [100, 512, 1500, 5700, 6144, 6145] {
            assert!(unpack(&[whole[..cut].to_vec()]).1.is_err(), "{cut}");
        }
        // Some archivers write no blocks of zeros at the end, or one.
        for end in [6656, 6656 + 512] {
            unpack(&[whole[..end].to_vec()]).1.unwrap();
        }
    }
}
