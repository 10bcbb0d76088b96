//! The OCI runtime's command line, and what it leaves behind when nobody ends a container in order.

use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, fchown};
use serde_json::Value;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::container::identities::Range;
use crate::container::netavark;
use crate::container::record::Places;
use crate::container::root;
use crate::signals;

pub const YOUKI: &str = "/usr/bin/youki";
const ROOT: &str = "/run/youki";
/// For the runtime to begin a further process.
const LONGEST_EXEC: Duration = Duration::from_secs(60);
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
    // What it says is told in statuses and logs, without colours.
    command.env_clear().env("PATH", "/usr/bin").env("NO_COLOR", "1");
    signals::none_blocked(&mut command);
    command.arg("--root").arg(ROOT).arg("--log").arg(log);
    command
}

/// Gives the container's user a pipe, both ends of it: opened by its name (`/dev/stdout`), a pipe is a file with an owner.
pub fn give(pipe: &OwnedFd, config: &Value, ids: Option<Range>) -> nix::Result<()> {
    let id = |name: &str| {
        let id = config["process"]["user"][name].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        ids.map_or(id, |ids| ids.on_node(id))
    };
    fchown(pipe, Some(Uid::from_raw(id("uid"))), Some(Gid::from_raw(id("gid"))))
}

/// Lets this program, and so the runtime, have what the container's processes are to be limited to. In a user namespace the runtime cannot
/// raise a limit by itself. `config` is what it is told.
pub fn allow_limits(config: &Value) {
    for limit in config["process"]["rlimits"].as_array().into_iter().flatten() {
        let (Some(name), Some(wanted)) = (limit["type"].as_str(), limit["hard"].as_u64()) else { continue };
        let Some(resource) = resource(name) else { continue };
        if let Ok((soft, hard)) = getrlimit(resource)
            && hard < wanted
            && let Err(error) = setrlimit(resource, soft, wanted)
        {
            eprintln!("<4>cannot raise {name} to {wanted}: {error}");
        }
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

/// What the runtime found wrong.
pub fn log(places: &Places) -> PathBuf {
    places.run.join("youki.log")
}

/// Ends a container and takes away what is left of it: processes, the runtime's record, its group, its networks, the mount of its root.
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
    netavark::tear_down(name, places);
    let rootfs = places.rootfs();
    // One upon the other, if a shim before this one ended without taking its own away.
    while umount2(&rootfs, MntFlags::empty()).is_ok() || umount2(&rootfs, MntFlags::MNT_DETACH).is_ok() {}
    root::take_off(places);
}

/// Takes away what further processes of a container have left in the runtime's folder of it: a socket each, and a link for a terminal.
/// What is younger than a runtime may take is not touched.
pub fn forget(name: &str) {
    forget_in(&Path::new(ROOT).join(name), LONGEST_EXEC);
}

fn forget_in(folder: &Path, age: Duration) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_left = entry.file_name().to_string_lossy().starts_with("tenant-");
        let made = entry.metadata().and_then(|metadata| metadata.modified());
        if is_left && made.is_ok_and(|made| made.elapsed().is_ok_and(|elapsed| elapsed >= age)) {
            let _ = fs::remove_file(entry.path());
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_processes_left_long_ago_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state.json", "notify.sock", "tenant-notify-1.sock"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("tenant-tty-1.sock")).unwrap();
        let count = || fs::read_dir(dir.path()).unwrap().count();
        forget_in(dir.path(), LONGEST_EXEC);
        assert_eq!(count(), 4);
        forget_in(dir.path(), Duration::ZERO);
        assert_eq!(count(), 2);
    }
}
