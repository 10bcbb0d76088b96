//! Both ways, with ends that are hostile to each other.

use super::pack::{Source, is_of_contents, pack};
use super::unpack::{Place, unpack};
use super::{Descriptors, Sum};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tar::{Builder, EntryType, Header};

fn packed(path: &Path) -> (Vec<u8>, io::Result<Sum>, Vec<String>) {
    let (mut archive, mut told) = (Vec::new(), Vec::new());
    let descriptors = Descriptors::open().unwrap();
    let sum = Source::open(path)
        .and_then(|source| pack(source, &descriptors, &mut archive, |text| told.push(text)));
    (archive, sum, told)
}

fn unpacked(archive: &[u8], to: &Path, is_contents: bool) -> io::Result<(Sum, Vec<String>)> {
    let mut told = Vec::new();
    let place = Place::find(to, is_contents)?;
    unpack(archive, &place, |text| told.push(text)).map(|sum| (sum, told))
}

fn copied(from: &Path, to: &Path) -> io::Result<Sum> {
    let (archive, sum, _) = packed(from);
    sum?;
    unpacked(&archive, to, is_of_contents(from)).map(|(sum, _)| sum)
}

/// With names as they are, also those that the library would refuse to write.
fn archive(items: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in items {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            old.linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let content = if is_link { "" } else { content };
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The table of docker-cp(1), which is that of cp(1).
#[test]
fn what_is_copied_gets_the_name_that_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::write(at("from/a"), "a").unwrap();
    fs::write(at("from/sub/b"), "b").unwrap();
    symlink("from", at("link")).unwrap();
    fs::create_dir(at("there")).unwrap();
    fs::write(at("file"), "old").unwrap();
    for (from, to, made) in [
        ("from/a", "new", "new"),
        ("from/a", "there", "there/a"),
        ("from/a", "file", "file"),
        ("from", "new-folder", "new-folder/sub/b"),
        ("from", "there", "there/from/sub/b"),
        ("from/", "there/", "there/from/sub/b"),
        ("from/.", "there", "there/sub/b"),
        ("from/.", "other/", "other/sub/b"),
        // Named, it is followed.
        ("link", "by-link", "by-link/sub/b"),
    ] {
        copied(&at(from), &at(to)).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        let content = fs::read_to_string(at(made)).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert_eq!(
            content,
            made.rsplit('/').next().filter(|name| *name == "b").unwrap_or("a"),
            "{from} to {to}"
        );
    }
    for (from, to, expected) in [
        ("from/a", "nothing/", "no such folder"),
        ("from/a", "no/such/place", "No such file"),
        ("from", "file", "which is no folder"),
        ("from/.", "file", "no folder"),
        ("from/nothing", "there", "No such file"),
        ("from/a/.", "there", "Not a directory"),
    ] {
        let error = copied(&at(from), &at(to)).unwrap_err().to_string();
        assert!(error.contains(expected), "{from} to {to}: {error}");
    }
}

#[test]
fn names_links_modes_and_times_stay_and_privileges_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let odd = OsStr::from_bytes(b"a\x1b[31m\n\xff");
    let long = "x".repeat(200);
    fs::write(from.join(odd), vec![7; 100_000]).unwrap();
    fs::write(from.join(&long), "long").unwrap();
    symlink("/nonexistent//../odd/", from.join("link")).unwrap();
    symlink(format!("/{}", "y/".repeat(200)), from.join("long-link")).unwrap();
    let tool = fs::File::create(from.join("tool")).unwrap();
    tool.set_permissions(fs::Permissions::from_mode(0o4750)).unwrap();
    tool.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_007)).unwrap();
    let to = dir.path().join("to");
    assert_eq!(copied(&from, &to).unwrap(), Sum { files: 5, bytes: 100_004 });
    assert_eq!(fs::read(to.join(odd)).unwrap(), vec![7; 100_000]);
    assert_eq!(fs::read_to_string(to.join(&long)).unwrap(), "long");
    assert_eq!(fs::read_link(to.join("link")).unwrap().as_os_str(), "/nonexistent//../odd/");
    assert!(fs::read_link(to.join("long-link")).unwrap().starts_with("/y/y"));
    let tool = fs::metadata(to.join("tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.mtime()), (0o750 & !umask(), 1_000_000_007));
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(text.trim(), 8).unwrap()
}

/// Whose end is a container's, where a pipe would keep who opens it for ever.
#[test]
fn no_pipe_and_no_device_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    mkfifo(&from.join("pipe\n"), Mode::from_bits_truncate(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    let (_, sum, mut told) = packed(&from);
    told.sort();
    assert_eq!(sum.unwrap(), Sum { files: 1, bytes: 1 });
    assert_eq!(
        told,
        [r#"left out "from/pipe\n": it is a pipe"#, r#"left out "from/socket": it is a socket"#]
    );
    for (path, expected) in [("/dev/zero", "it is a device"), ("/dev/full", "it is a device")] {
        let error = packed(Path::new(path)).1.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = packed(&from.join("pipe\n")).1.unwrap_err().to_string();
    assert!(error.contains(r#"pipe\n": it is a pipe"#), "{error}");
}

#[test]
fn files_that_do_not_say_how_long_they_are_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("mounts");
    copied(Path::new("/proc/self/mounts"), &to).unwrap();
    assert!(fs::read_to_string(&to).unwrap().contains("proc"));
}

#[test]
fn folders_within_each_other_have_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let deep = |count: usize| dir.path().join("deep").join("d/".repeat(count));
    fs::create_dir_all(deep(127)).unwrap();
    packed(&dir.path().join("deep")).1.unwrap();
    fs::create_dir_all(deep(128)).unwrap();
    let error = packed(&dir.path().join("deep")).1.unwrap_err().to_string();
    assert!(error.contains("more than 128 folders"), "{error}");
}

#[test]
fn a_file_that_changes_meanwhile_does_not_spoil_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (shrinks, after) = (dir.path().join("shrinks"), dir.path().join("to"));
    fs::write(&shrinks, vec![b'x'; 300_000]).unwrap();
    /// Cuts the file off when its first bytes have come.
    struct Cuts<'a>(Vec<u8>, &'a Path);
    impl io::Write for Cuts<'_> {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(data);
            if self.0.len() > 10_000 {
                fs::File::options().write(true).open(self.1)?.set_len(1000)?;
            }
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (mut to, mut told) = (Cuts(Vec::new(), &shrinks), Vec::new());
    let source = Source::open(&shrinks).unwrap();
    pack(source, &Descriptors::open().unwrap(), &mut to, |text| told.push(text)).unwrap();
    assert!(told[0].contains("became shorter"), "{told:?}");
    unpacked(&to.0, &after, false).unwrap();
    assert_eq!(fs::metadata(&after).unwrap().len(), 300_000);
}

#[test]
fn nothing_that_comes_leads_out_of_the_folder() {
    use EntryType::{Char, Directory, Link, Regular, Symlink};
    for (items, expected) in [
        (&[("../outside", Regular, "x")][..], "leads out"),
        (&[("a/../../outside", Regular, "x")], "leads out"),
        (&[("up", Symlink, ".."), ("up/outside", Regular, "x")], "a link"),
        (&[("up", Symlink, ".."), ("up/sub/outside", Regular, "x")], "a link"),
        (&[("up", Symlink, "../.."), ("up/outside", Directory, "")], "a link"),
        (&[("in", Link, "../secret")], "leads out"),
        (&[("up", Symlink, ".."), ("in", Link, "up/secret")], "a link"),
        // A second name for a link is one for the link.
        (&[("out", Symlink, "../secret"), ("in", Link, "out"), ("in", Regular, "x")], ""),
        // What replaces a link replaces the link.
        (&[("in", Symlink, "../secret"), ("in", Regular, "x")], ""),
        (&[("/outside", Regular, "x")], ""),
        (&[("dir", Symlink, ".."), ("dir", Directory, "")], "which is no folder"),
        (&[("dir", Directory, ""), ("dir", Regular, "x")], "a folder by that name"),
        (&[("tty", Char, "")], ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "untouched").unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let result = unpacked(&archive(items), &to, true);
        let said = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{items:?}: {said}");
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "untouched", "{items:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{items:?}");
        for entry in fs::read_dir(&to).unwrap() {
            let metadata = entry.unwrap().metadata().unwrap();
            assert!(metadata.nlink() == 2 || metadata.mode() & 0o6000 == 0, "{items:?}");
            assert!(metadata.is_file() || metadata.is_dir() || metadata.is_symlink(), "{items:?}");
        }
    }
}

/// In a container others change the tree meanwhile.
#[test]
fn a_link_that_is_there_already_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (to, other) = (dir.path().join("to"), dir.path().join("other"));
    fs::create_dir(&to).unwrap();
    fs::create_dir(&other).unwrap();
    symlink(&other, to.join("etc")).unwrap();
    symlink(other.join("file"), to.join("file")).unwrap();
    use EntryType::{Directory, Regular};
    for items in [&[("etc/file", Regular, "x")][..], &[("etc", Directory, "")]] {
        assert!(unpacked(&archive(items), &to, true).is_err(), "{items:?}");
    }
    unpacked(&archive(&[("file", Regular, "x")]), &to, true).unwrap();
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    assert!(fs::symlink_metadata(to.join("file")).unwrap().is_file());
    // The path that a person gave is: that is where they meant.
    symlink(&other, dir.path().join("named")).unwrap();
    unpacked(&archive(&[("file", Regular, "x")]), &dir.path().join("named"), true).unwrap();
    assert!(other.join("file").exists());
}

#[test]
fn what_is_cut_off_is_an_error_and_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    let whole = archive(&[("a", EntryType::Regular, &"x".repeat(5000))]);
    assert!(unpacked(&whole[..1500], &dir.path().join("to"), true).is_err());
    assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 0);
}

#[test]
fn names_take_no_more_memory_than_their_bound() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    builder.append_data(&mut header, "x/".repeat(1 << 20) + "y", io::empty()).unwrap();
    let error = unpacked(&builder.into_inner().unwrap(), dir.path(), true).unwrap_err();
    assert!(error.to_string().contains("larger than 1048576"), "{error}");
}
