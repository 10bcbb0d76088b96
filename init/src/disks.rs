//! The state and data partitions: found by name on the disk that holds the running root, mounted, or replaced by memory.

use nix::mount::MsFlags;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use init::control::Problem;
use init::sys::boottime_ms;

use crate::console::Console;
use crate::mounts::{self, NO_EXTRA, NOEXEC};
use crate::spawn;

/// Devices of slow buses may appear after PID 1 has started; so many milliseconds after the kernel did, no longer.
const PATIENCE: u64 = 5000;
const STEP: Duration = Duration::from_millis(20);
const MAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Mounts `/state` or `/data`; says on what.
pub(crate) fn mount(name: &'static str, console: &mut Console, problems: &mut Vec<Problem>) -> &'static str {
    let target = format!("/{name}");
    let extra = if name == "state" { NOEXEC } else { NO_EXTRA };
    let reason = match find(name).map_or_else(|| make(name), Ok) {
        Ok(device) => match mount_ext4(&device, &target, extra, console) {
            Ok(()) => return "ext4",
            Err(error) => format!("cannot mount {} as ext4 on {target}: {error}", device.display()),
        },
        Err(reason) => reason,
    };
    let (size, hint) = match name {
        "state" => (
            "mode=0755,size=16m",
            "settings are lost at the next restart; give the machine a disk made from disk.img",
        ),
        _ => (
            "mode=0755,size=25%",
            "containers and logs are kept in memory and lost at the next restart; give the machine a disk made from disk.img",
        ),
    };
    let mut message = format!("{reason}; using memory instead");
    if let Err(error) = mounts::mount_tmpfs(&target, size, extra) {
        message = format!("{reason}; memory cannot be used either: {error}");
    }
    problems.push(Problem { source: "init".to_owned(), subject: target, message, hint: hint.to_owned() });
    "tmpfs"
}

/// Mounts it; once more when a power cut had torn its superblock, and that is mended.
fn mount_ext4(device: &Path, target: &str, extra: MsFlags, console: &mut Console) -> Result<(), String> {
    let Err(error) = mounts::mount_ext4(device, target, extra) else { return Ok(()) };
    let path = device.to_string_lossy();
    match spawn::run_helper(&["/usr/bin/grow-data", "--mend", &path], MAKE_TIMEOUT) {
        Ok(_) => {
            let note = format!("a power cut had torn the superblock of {path}: it is mended");
            console.say(4, "init", &note);
            mounts::mount_ext4(device, target, extra).map_err(|error| error.to_string())
        }
        Err(reason) => Err(format!("{error} ({})", reason.trim())),
    }
}

/// The data partition, on a disk that was not booted from before: an image does not list it (see `init::grow`).
fn make(name: &str) -> Result<PathBuf, String> {
    let none = || format!("the disk that holds the running root has no partition named {name}");
    let disk = root_disk().filter(|_| name == "data").ok_or_else(none)?;
    let made = spawn::run_helper(&["/usr/bin/grow-data", "--make", &format!("/dev/{disk}")], MAKE_TIMEOUT)?;
    Ok(PathBuf::from(made.trim()))
}

/// The device of the partition called `name`.
fn find(name: &str) -> Option<PathBuf> {
    let disk = root_disk();
    loop {
        let found = look(name, disk.as_deref());
        // On the disk of the root all partitions appear together: what is not there now will not come.
        if found.is_some() || disk.is_some() || boottime_ms() >= PATIENCE {
            return found;
        }
        sleep(STEP);
    }
}

fn look(name: &str, disk: Option<&str>) -> Option<PathBuf> {
    let mut matches = fs::read_dir("/sys/class/block").ok()?.flatten().filter_map(|entry| {
        let device = entry.file_name().into_string().ok()?;
        let event = fs::read_to_string(entry.path().join("uevent")).ok()?;
        let is_it = event.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(name));
        let on_disk = disk.is_none_or(|disk| parent(&device).as_deref() == Some(disk));
        (is_it && on_disk).then(|| Path::new("/dev").join(device))
    });
    let found = matches.next();
    // Two disks with the same partitions and no root to tell which is ours: neither is safe.
    if matches.next().is_some() { None } else { found }
}

/// The disk that dm-0, the verified root, reads from.
pub(crate) fn root_disk() -> Option<String> {
    let slave =
        fs::read_dir("/sys/block/dm-0/slaves").ok()?.flatten().next()?.file_name().into_string().ok()?;
    parent(&slave)
}

/// `vda3` → `vda`: a partition's folder in sysfs is inside its disk's.
fn parent(partition: &str) -> Option<String> {
    let path = fs::canonicalize(Path::new("/sys/class/block").join(partition)).ok()?;
    Some(path.parent()?.file_name()?.to_str()?.to_owned())
}
