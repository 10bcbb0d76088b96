//! Grows the data partition and its file system to the end of the disk, online. PID 1 runs it once at every boot; a message
//! on stderr and exit code 1 become a problem in `GET /`.
//!
//! `grow-data --make DISK` makes the partition on a disk whose table does not list it yet, and prints its device.
//!
//! `grow-data --mend DEVICE` mends the superblock of an ext4 that a power cut has torn ([`init::superblock`]), and says so.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use init::grow::{Growth, Plan, ext4_blocks, plan};
use init::{superblock, sys};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;

const MOUNT: &str = "/data";
/// The file system has blocks of this size, in bytes.
const BLOCK: u64 = 4096;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some(what), Some(device)) = (arguments.next(), arguments.next()) {
        let done = match what.as_str() {
            "--make" => make(&device),
            "--mend" => mend(&device),
            _ => Err(format!("{what} is not --make or --mend")),
        };
        return match done {
            Ok(said) => {
                println!("{said}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
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

fn mend(device: &str) -> Result<String, String> {
    let failed = |what: &str, error: std::io::Error| format!("cannot {what} {device}: {error}");
    let mut file =
        OpenOptions::new().read(true).write(true).open(device).map_err(|error| failed("open", error))?;
    if !superblock::mend(&mut file)? {
        return Err("its superblock is sound".to_owned());
    }
    file.sync_all().map_err(|error| failed("write to", error))?;
    Ok("mended".to_owned())
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
    let (mut file, planned) = look_at(&format!("/dev/{disk}"))?;
    if let Plan::Grow(growth) = &planned {
        let failed = |what: &str, error: std::io::Error| format!("cannot {what} /dev/{disk}: {error}");
        write(&mut file, growth).map_err(|error| failed("write the partition table of", error))?;
        sys::resize_partition(&file, growth.number, growth.start, growth.size)
            .map_err(|error| failed("tell the kernel the new partition of", error))?;
    }
    // Also when the table was right already: the power may have been cut between the table and the file system.
    resize_file_system(&device)
}

fn look_at(path: &str) -> Result<(File, Plan), String> {
    let failed = |what: &str, error: std::io::Error| format!("cannot {what} {path}: {error}");
    let mut file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| failed("open", error))?;
    let size = file.seek(SeekFrom::End(0)).map_err(|error| failed("read the size of", error))?;
    let planned = plan(&mut file, size, "data").map_err(|error| format!("the disk {path}: {error}"))?;
    Ok((file, planned))
}

/// Makes the partition; returns its device.
fn make(path: &str) -> Result<String, String> {
    let failed = |what: &str, error: std::io::Error| format!("cannot {what} {path}: {error}");
    match look_at(path)? {
        (mut file, Plan::Grow(growth)) if growth.is_new => {
            write(&mut file, &growth).map_err(|error| failed("write the partition table of", error))?;
            sys::add_partition(&file, growth.number, growth.start, growth.size)
                .map_err(|error| failed("tell the kernel the new partition of", error))?;
            // As the kernel names partitions (`block/partitions/core.c`): with a `p` where the disk's name ends in a digit.
            let digit = path.ends_with(|last: char| last.is_ascii_digit());
            Ok(format!("{path}{}{}", if digit { "p" } else { "" }, growth.number))
        }
        _ => Err(format!("the disk {path} lists the partition data, but the kernel does not show it")),
    }
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
    let unreadable = |error: String| format!("cannot read the size of {device}: {error}");
    let mut file = File::open(device).map_err(|error| unreadable(error.to_string()))?;
    let size = file.seek(SeekFrom::End(0)).map_err(|error| unreadable(error.to_string()))?;
    let blocks = size.checked_div(BLOCK).unwrap_or(0);
    let before = ext4_blocks(&mut file).map_err(unreadable)?;
    if before >= blocks {
        return Ok(None);
    }
    let mount = File::open(MOUNT).map_err(|error| format!("cannot open {MOUNT}: {error}"))?;
    sys::resize_ext4(&mount, blocks)
        .map_err(|error| format!("cannot grow the file system on {MOUNT} to {} MiB: {error}", size >> 20))?;
    // The kernel leaves out a last group that would be too small to be of use.
    let after = ext4_blocks(&mut file).map_err(unreadable)?;
    Ok((after > before).then(|| after.saturating_mul(BLOCK) >> 20))
}

fn mounted_device() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (device, target) = (fields.next()?, fields.next()?);
        (target == MOUNT && device.starts_with("/dev/")).then(|| device.to_owned())
    })
}
