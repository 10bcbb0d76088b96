//! NoCloud disks (cloud-init's name for them): a vfat or ISO 9660 file system labelled `cidata` with a file `user-data`, or net.toml.

use nix::mount::{MsFlags, mount, umount};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::collect::read_bounded;

const MOUNT: &str = "/mnt";
/// `linux/mount.h`; nix does not have it yet.
const MS_NOSYMFOLLOW: nix::libc::c_ulong = 256;

/// Names of block devices below `folder`, in the order in which the kernel hands them out: `vdb` is before `vdaa`.
pub(super) fn devices(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| !name.starts_with("dm-") && !name.starts_with("loop")).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

/// What there is on a disk; each is none where there is no such file.
pub(super) struct Disk {
    pub user_data: io::Result<Option<Vec<u8>>>,
    pub net_toml: io::Result<Option<Vec<u8>>>,
}

/// None when the device is no NoCloud disk.
pub(super) fn read(device: &str) -> Option<io::Result<Disk>> {
    let path = PathBuf::from("/dev").join(device);
    let kind = File::open(&path).ok().and_then(|mut file| kind(&mut file))?;
    Some(read_mounted(&path, kind))
}

fn read_mounted(path: &Path, kind: &str) -> io::Result<Disk> {
    let flags = MsFlags::MS_RDONLY
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NOEXEC
        | MsFlags::from_bits_retain(MS_NOSYMFOLLOW);
    mount(Some(path), MOUNT, Some(kind), flags, None::<&str>).map_err(|error| {
        io::Error::other(format!("it is labelled cidata, but cannot be mounted as {kind}: {error}"))
    })?;
    let file = |name: &str| read_bounded(&Path::new(MOUNT).join(name));
    let disk = Disk { user_data: file("user-data"), net_toml: file("net.toml") };
    let _ = umount(MOUNT);
    Ok(disk)
}

/// The type of a file system that is labelled `cidata`, in whatever case. Reads only the places where labels are.
fn kind(device: &mut (impl Read + Seek)) -> Option<&'static str> {
    let mut read = |at: u64, buffer: &mut [u8]| {
        device.seek(SeekFrom::Start(at)).and_then(|_| device.read_exact(buffer)).ok()
    };
    let is_label = |bytes: &[u8]| bytes.trim_ascii_end().eq_ignore_ascii_case(b"cidata");
    let mut start = [0; 512];
    read(0, &mut start)?;
    let magic = start[510..] == [0x55, 0xaa];
    // FAT12 and FAT16 have their label at 0x2b, FAT32 at 0x47 (Microsoft's FAT specification, section 3).
    let fat =
        |label: usize, name: usize| start[name..name + 3] == *b"FAT" && is_label(&start[label..label + 11]);
    if magic && (fat(0x2b, 0x36) || fat(0x47, 0x52)) {
        return Some("vfat");
    }
    // The primary volume descriptor is at sector 16 (ECMA-119, 8.4).
    let mut descriptor = [0; 72];
    read(16 * 2048, &mut descriptor)?;
    (descriptor[1..6] == *b"CD001" && is_label(&descriptor[40..72])).then_some("iso9660")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn disk(places: &[(usize, &[u8])]) -> Cursor<Vec<u8>> {
        let mut disk = vec![0; 17 * 2048];
        for (at, bytes) in places {
            disk[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        Cursor::new(disk)
    }

    #[test]
    fn labels_are_found_where_each_file_system_has_them() {
        let fat16 = [(510, &[0x55, 0xaa][..]), (0x36, b"FAT16   "), (0x2b, b"CIDATA     ")];
        let fat32 = [(510, &[0x55, 0xaa][..]), (0x52, b"FAT32   "), (0x47, b"cidata     ")];
        assert_eq!(kind(&mut disk(&fat16)), Some("vfat"));
        assert_eq!(kind(&mut disk(&fat32)), Some("vfat"));
        let mut label = [b' '; 32];
        label[..6].copy_from_slice(b"cidata");
        assert_eq!(kind(&mut disk(&[(16 * 2048 + 1, b"CD001"), (16 * 2048 + 40, &label)])), Some("iso9660"));
        assert_eq!(
            kind(&mut disk(&[(510, &[0x55, 0xaa]), (0x36, b"FAT16   "), (0x2b, b"OTHER      ")])),
            None
        );
        assert_eq!(kind(&mut Cursor::new(vec![0; 100])), None);
    }

    #[test]
    fn disks_have_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["vdaa", "vdb", "loop0", "dm-0", "vda10", "vda2", "sr0"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(devices(folder.path()), ["sr0", "vdb", "vda2", "vdaa", "vda10"]);
    }

    proptest! {
        #[test]
        fn a_hostile_disk_never_panics(
            start in proptest::collection::vec(any::<u8>(), 512),
            magic in any::<bool>(),
            descriptor in proptest::collection::vec(any::<u8>(), 72),
            length in 0usize..34000,
        ) {
            let mut places = vec![(0, start.as_slice()), (16 * 2048, descriptor.as_slice())];
            if magic {
                places.extend([(510, &[0x55, 0xaa][..]), (0x36, b"FAT"), (16 * 2048 + 1, b"CD001")]);
            }
            let mut disk = disk(&places).into_inner();
            disk.truncate(length);
            let _ = kind(&mut Cursor::new(disk));
        }
    }
}
