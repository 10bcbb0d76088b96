//! The two slots of the disk that the running root is on: which one runs, and which may be written.

use std::fs;
use std::path::{Path, PathBuf};

const SYS: &str = "/sys";
const RUNNING_ROOT: &str = "/dev/dm-0";
/// What sysfs counts sizes in, whatever the disk's sectors are.
const SECTOR: u64 = 512;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub device: PathBuf,
    /// In the partition table, from 1 on.
    pub number: u32,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    pub disk: PathBuf,
    /// Bytes.
    pub disk_size: u64,
    pub esp: Partition,
    /// The kernel checks each block that is read of it.
    pub running_root: PathBuf,
    /// The same as it is on the disk, unchecked.
    pub running_slot: Partition,
    pub running_verity: Partition,
    /// `a` or `b`: the slot that does not run.
    pub spare: char,
    pub spare_root: Partition,
    pub spare_verity: Partition,
}

impl Slots {
    pub(super) fn find() -> Result<Self, String> {
        Self::find_in(Path::new(SYS))
    }

    fn find_in(sys: &Path) -> Result<Self, String> {
        let block = sys.join("class/block");
        let slaves = fs::read_dir(sys.join("block/dm-0/slaves")).map_err(|error| {
            format!("the running root is on no slot of a disk (/sys/block/dm-0: {error})")
        })?;
        let mut running = slaves.flatten().map(|entry| entry.file_name());
        let any = running.next().ok_or("the running root is on no partition that /sys/block/dm-0 names")?;
        let folder = fs::canonicalize(block.join(&any))
            .map_err(|error| format!("cannot find the disk of {}: {error}", any.display()))?;
        let disk = folder.parent().ok_or("a partition without a disk")?.to_owned();
        let name = disk.file_name().ok_or("a disk without a name")?;
        let partition = |wanted: &str| {
            partitions(&disk).into_iter().find(|(name, _)| name == wanted).map(|(_, found)| found).ok_or_else(
                || format!("the disk {} has no partition named {wanted}: it was not made from disk.img, or its table was changed", name.display()),
            )
        };
        let runs = partitions(&disk)
            .into_iter()
            .find(|(_, partition)| partition.device.file_name() == Some(any.as_os_str()))
            .map(|(name, _)| name)
            .ok_or_else(|| format!("the disk {} does not list {}", name.display(), any.display()))?;
        let (running, spare) = match runs.as_str() {
            "root-a" | "verity-a" => ('a', 'b'),
            "root-b" | "verity-b" => ('b', 'a'),
            other => return Err(format!("the running root is on the partition {other:?}, which is no slot")),
        };
        Ok(Self {
            disk: Path::new("/dev").join(name),
            disk_size: size(&disk).ok_or_else(|| format!("cannot read the size of {}", name.display()))?,
            esp: partition("esp")?,
            running_root: RUNNING_ROOT.into(),
            running_slot: partition(&format!("root-{running}"))?,
            running_verity: partition(&format!("verity-{running}"))?,
            spare,
            spare_root: partition(&format!("root-{spare}"))?,
            spare_verity: partition(&format!("verity-{spare}"))?,
        })
    }
}

fn size(folder: &Path) -> Option<u64> {
    fs::read_to_string(folder.join("size")).ok()?.trim().parse::<u64>().ok()?.checked_mul(SECTOR)
}

/// The partitions of a disk by name.
fn partitions(disk: &Path) -> Vec<(String, Partition)> {
    let described = |entry: fs::DirEntry| {
        let number = fs::read_to_string(entry.path().join("partition")).ok()?.trim().parse().ok()?;
        let event = fs::read_to_string(entry.path().join("uevent")).ok()?;
        let name = event.lines().find_map(|line| line.strip_prefix("PARTNAME="))?.to_owned();
        let device = Path::new("/dev").join(entry.file_name());
        Some((name, Partition { device, number, size: size(&entry.path())? }))
    };
    fs::read_dir(disk).into_iter().flatten().flatten().filter_map(described).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn sys(runs: &str) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/vda");
        let all = ["esp", "root-a", "verity-a", "root-b", "verity-b", "state"];
        fs::create_dir_all(sys.path().join("class/block")).unwrap();
        fs::create_dir_all(sys.path().join("block/dm-0/slaves")).unwrap();
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("size"), "4096\n").unwrap();
        for (number, name) in (1..).zip(all) {
            let device = format!("vda{number}");
            let folder = disk.join(&device);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("partition"), format!("{number}\n")).unwrap();
            fs::write(folder.join("size"), "8\n").unwrap();
            fs::write(folder.join("uevent"), format!("DEVNAME={device}\nPARTNAME={name}\n")).unwrap();
            symlink(&folder, sys.path().join("class/block").join(&device)).unwrap();
            if name == runs {
                symlink(&folder, sys.path().join("block/dm-0/slaves").join(&device)).unwrap();
            }
        }
        sys
    }

    #[test]
    fn the_slot_that_does_not_run_is_the_spare_one() {
        for (runs, spare, number) in [("root-a", 'b', 4), ("verity-b", 'a', 2)] {
            let slots = Slots::find_in(sys(runs).path()).unwrap();
            assert_eq!((slots.spare, slots.spare_root.number), (spare, number));
            assert_eq!(slots.esp.device, Path::new("/dev/vda1"));
            assert_eq!((slots.disk_size, slots.spare_root.size), (4096 * 512, 8 * 512));
        }
    }

    #[test]
    fn a_disk_of_another_making_is_told() {
        let error = Slots::find_in(sys("state").path()).unwrap_err();
        assert!(error.contains("\"state\", which is no slot"), "{error}");
        let without = sys("root-a");
        fs::remove_dir_all(without.path().join("devices/vda/vda4")).unwrap();
        let error = Slots::find_in(without.path()).unwrap_err();
        assert!(error.contains("no partition named root-b"), "{error}");
        assert!(Slots::find_in(Path::new("/nonexistent")).is_err());
    }
}
