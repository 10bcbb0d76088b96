//! Further disks of the node as volumes of containers: an ext4 that is found by its label, and mounted while the node runs.
//!
//! What is on such a disk is whatever its owner put there: it is mounted without devices and without programs that gain privileges, and the
//! node itself follows no path in it.

use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where they are mounted, by label.
const DISKS: &str = "/run/disks";
/// What is the system's own: no disk that one of these is on is anybody else's.
const OWN: [&str; 3] = ["/", "/state", "/data"];
/// Of an ext4's superblock, from the start of the device (kernel: `filesystems/ext4/super.rst`).
const MAGIC: u64 = 1024 + 0x38;
const LABEL: u64 = 1024 + 0x78;
const LONGEST_LABEL: usize = 16;

/// Where the disk with a label is on the node.
pub fn place(label: &str) -> PathBuf {
    Path::new(DISKS).join(label)
}

/// Mounts it, if it is not.
pub fn mount_by_label(label: &str) -> Result<(), String> {
    let place = place(label);
    let failed =
        |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} the disk {label:?}: {error}");
    fs::create_dir_all(&place).map_err(|error| failed("make a folder for", &error))?;
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").map_err(|error| failed("see whether there is", &error))?;
    if is_mounted(&mounts, &place) {
        return Ok(());
    }
    let device = find(label, &mounts).map_err(|error| failed("find", &error))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some(&device), &place, Some("ext4"), flags, None::<&str>).map_err(|error| {
        failed("mount", &format!("{error}, {}; the node's console says more", device.display()))
    })?;
    eprintln!("<5>mounted {} for containers, as the disk {label:?}", device.display());
    Ok(())
}

/// Of lines as in `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Labels have no letters that it would write otherwise. Pure.
fn is_mounted(mountinfo: &str, place: &Path) -> bool {
    mountinfo.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == place))
}

/// The one device with the label that is not on a disk of the system.
fn find(label: &str, mountinfo: &str) -> Result<PathBuf, String> {
    let own: Vec<PathBuf> = OWN.iter().filter_map(|at| disk_below(mountinfo, at)).collect();
    let devices = fs::read_dir("/sys/class/block").map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for device in devices.flatten() {
        let Ok(path) = fs::canonicalize(device.path()) else { continue };
        // What is mapped of others (verity) is on them.
        let is_mapped = path.join("dm").exists();
        if is_mapped || own.contains(&whole_disk(&path)) {
            continue;
        }
        let node = Path::new("/dev").join(device.file_name());
        if label_of(&node).ok().flatten().as_deref() == Some(label) {
            found.push(node);
        }
    }
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            Err("no disk beside the system's has an ext4 with that label: mkfs.ext4 -L makes one".to_owned())
        }
        several => {
            let names: Vec<_> = several.iter().map(|node| node.display().to_string()).collect();
            Err(format!("several have that label: {}", names.join(", ")))
        }
    }
}

/// The disk that is mounted at a place, in `/sys`; of what is mapped, the one below it.
fn disk_below(mountinfo: &str, place: &str) -> Option<PathBuf> {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(4) == Some(place))?;
    let number = line.split(' ').nth(2)?;
    let mut device = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok()?;
    while let Some(below) = fs::read_dir(device.join("slaves")).ok().and_then(|mut all| all.next()?.ok()) {
        device = fs::canonicalize(below.path()).ok()?;
    }
    Some(whole_disk(&device))
}

/// Of a device in `/sys`: of a partition, the disk that it is on.
fn whole_disk(device: &Path) -> PathBuf {
    let is_partition = device.join("partition").exists();
    device.parent().filter(|_| is_partition).unwrap_or(device).to_owned()
}

/// `MAJOR:MINOR` of the disk that `/data` is on, for limits that the kernel holds by disk.
pub fn of_data() -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot find the disk of /data: {error}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| failed(&error))?;
    let disk = disk_below(&mounts, "/data").ok_or_else(|| failed(&"it is not mounted"))?;
    let number = fs::read_to_string(disk.join("dev")).map_err(|error| failed(&error))?;
    Ok(number.trim().to_owned())
}

/// Of the ext4 on a device, if there is one.
fn label_of(device: &Path) -> io::Result<Option<String>> {
    let device = File::open(device)?;
    let (mut magic, mut label) = ([0; 2], [0; LONGEST_LABEL]);
    device.read_exact_at(&mut magic, MAGIC)?;
    device.read_exact_at(&mut label, LABEL)?;
    if magic != [0x53, 0xef] {
        return Ok(None);
    }
    let end = label.iter().position(|byte| *byte == 0).unwrap_or(LONGEST_LABEL);
    Ok(String::from_utf8(label[..end].to_vec()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ext4_is_known_by_its_label_and_nothing_else_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let device = |magic: [u8; 2], label: &[u8]| {
            let mut content = vec![0; 4096];
            content[1024 + 0x38..][..2].copy_from_slice(&magic);
            content[1024 + 0x78..][..label.len()].copy_from_slice(label);
            let path = dir.path().join("device");
            fs::write(&path, content).unwrap();
            label_of(&path).unwrap()
        };
        assert_eq!(device([0x53, 0xef], b"database").as_deref(), Some("database"));
        assert_eq!(device([0x53, 0xef], b"sixteen-letters-").as_deref(), Some("sixteen-letters-"));
        assert_eq!(device([0x53, 0xef], b"\xff\xfe"), None);
        assert_eq!(device([0, 0], b"database"), None);
        fs::write(dir.path().join("short"), [0; 100]).unwrap();
        assert!(label_of(&dir.path().join("short")).is_err());
    }

    #[test]
    fn what_is_mounted_is_not_mounted_again() {
        let mountinfo = "24 1 254:0 / / ro - erofs /dev/dm-0 ro\n31 24 254:16 / /run/disks/db rw,nosuid - ext4 /dev/vdb rw\n";
        assert!(is_mounted(mountinfo, &place("db")));
        assert!(!is_mounted(mountinfo, &place("d")) && !is_mounted(mountinfo, &place("db2")));
    }
}
