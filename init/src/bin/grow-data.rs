//! Grows the data partition and its file system to the end of the disk, online. PID 1 runs it once at every boot; a message
//! on stderr and exit code 1 become a problem in `GET /`.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use init::grow::{Growth, Plan, plan};
use init::sys;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;

const MOUNT: &str = "/data";
/// The file system has blocks of this size, in bytes.
const BLOCK: u64 = 4096;

fn main() -> ExitCode {
    match grow() {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(mib)) => {
            eprintln!("<5>the data partition has grown to {mib} MiB");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}

/// The new size in MiB, if there was something to grow.
fn grow() -> Result<Option<u64>, String> {
    // Not from a partition (memory instead): what is wrong was told by PID 1.
    let Some(device) = mounted_device() else { return Ok(None) };
    let name = device.trim_start_matches("/dev/");
    let sysfs = fs::canonicalize(Path::new("/sys/class/block").join(name))
        .map_err(|error| format!("cannot find {device} in /sys: {error}"))?;
    let disk = sysfs
        .parent()
        .and_then(|parent| parent.file_name())
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let path = format!("/dev/{disk}");
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} {path}: {error}");
    let mut file =
        OpenOptions::new().read(true).write(true).open(&path).map_err(|error| failed("open", &error))?;
    let size = file.seek(SeekFrom::End(0)).map_err(|error| failed("read the size of", &error))?;
    let planned = plan(&mut file, size, "data").map_err(|error| format!("the disk {path}: {error}"))?;
    if let Plan::Grow(growth) = &planned {
        write(&mut file, growth).map_err(|error| failed("write the partition table of", &error))?;
        sys::resize_partition(&file, growth.number, growth.start, growth.size)
            .map_err(|error| failed("tell the kernel the new partition of", &error))?;
    }
    // Also when the table was right already: the power may have been cut between the table and the file system.
    resize_file_system(&device)
}

fn write(file: &mut File, growth: &Growth) -> std::io::Result<()> {
    for (at, bytes) in &growth.writes {
        file.seek(SeekFrom::Start(*at))?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    Ok(())
}

fn resize_file_system(device: &str) -> Result<Option<u64>, String> {
    let size = File::open(device)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .map_err(|error| format!("cannot read the size of {device}: {error}"))?;
    let blocks = size.checked_div(BLOCK).unwrap_or(0);
    let stat = nix::sys::statvfs::statvfs(MOUNT)
        .map_err(|error| format!("cannot ask for the size of {MOUNT}: {error}"))?;
    // The file system tells its size without its own tables, so a whole-numbers comparison would always differ: 4 % is more
    // than they take, and less than what is worth growing for.
    let have = stat.blocks();
    if have.saturating_add(blocks.checked_div(25).unwrap_or(0)) >= blocks {
        return Ok(None);
    }
    let mount = File::open(MOUNT).map_err(|error| format!("cannot open {MOUNT}: {error}"))?;
    sys::resize_ext4(&mount, blocks)
        .map_err(|error| format!("cannot grow the file system on {MOUNT} to {} MiB: {error}", size >> 20))?;
    Ok(Some(size >> 20))
}

fn mounted_device() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (device, target) = (fields.next()?, fields.next()?);
        (target == MOUNT && device.starts_with("/dev/")).then(|| device.to_owned())
    })
}
