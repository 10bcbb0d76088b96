//! The OCI runtime's command line, and what it leaves behind when nobody ends a container in order.

use nix::mount::{MntFlags, umount2};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::container::record::Places;
use crate::signals;

pub const YOUKI: &str = "/usr/bin/youki";
pub const ROOT: &str = "/run/youki";
/// For the kernel to end what it was told to kill.
const DYING: Duration = Duration::from_secs(5);

/// The runtime with its options; a command has to follow.
pub fn youki(places: &Places) -> Command {
    youki_with_log(&log(places))
}

/// As [`youki`], with another file for what it finds wrong.
pub fn youki_with_log(log: &Path) -> Command {
    let mut command = Command::new(YOUKI);
    // The runtime takes LISTEN_FDS for descriptors that the container is to have, whoever they were meant for.
    command.env_clear().env("PATH", "/usr/bin");
    signals::none_blocked(&mut command);
    command.arg("--root").arg(ROOT).arg("--log").arg(log);
    command
}

/// What the runtime found wrong.
pub fn log(places: &Places) -> PathBuf {
    places.run.join("youki.log")
}

/// Ends a container and takes away what is left of it: processes, the runtime's record, its group, the mount of its root.
/// Nothing happens when there is nothing. For who holds the container's lock, or knows that no shim does. Blocking.
pub fn clear(name: &str, places: &Places) {
    let group = places.group.join("payload");
    if group.exists() {
        let _ = fs::write(group.join("cgroup.kill"), "1");
        wait_until_empty(&group);
    }
    if Path::new(ROOT).join(name).exists() {
        let mut delete = youki(places);
        delete.args(["delete", "--force", name]);
        let deleted = delete.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Err(error) = deleted {
            eprintln!("<4>container {name}: cannot run {YOUKI}: {error}");
        }
    }
    let _ = fs::remove_dir(&group);
    let rootfs = places.rootfs();
    // One upon the other, if a shim before this one ended without taking its own away.
    while umount2(&rootfs, MntFlags::empty()).is_ok() || umount2(&rootfs, MntFlags::MNT_DETACH).is_ok() {}
}

/// Takes away everything of a container that no setting names any more. Blocking.
pub fn erase(name: &str, places: &Places) {
    clear(name, places);
    // Nothing can ask for the log of a container that is not there.
    for log in [places.log.clone(), places.log.with_extension("log.1")] {
        let _ = fs::remove_file(log);
    }
    for folder in [&places.data, &places.run] {
        let _ = fs::remove_dir_all(folder);
    }
    // Of processes that ran in it by hand.
    let _ = fs::write(places.group.join("cgroup.kill"), "1");
    wait_until_empty(&places.group);
    let _ = fs::remove_dir(places.group.join("shim"));
    let _ = fs::remove_dir(&places.group);
}

fn wait_until_empty(group: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < DYING {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        if !events.lines().any(|line| line == "populated 1") {
            return;
        }
        sleep(Duration::from_millis(10));
    }
}
