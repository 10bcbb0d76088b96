//! The end: stopping what is left, taking file systems off, switching off.

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use init::{supervisor, sys};

use crate::console::Console;
use crate::mounts;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Reboot,
}

const CONTAINERS: &str = "/sys/fs/cgroup/containers";
/// What the agent writes of each container: how many seconds it may take to end before its shim kills it.
const RECORDS: &str = "/run/containers";
/// Where nothing says so.
const GRACE: u64 = 10;
/// The longest that settings allow.
const LONGEST_GRACE: u64 = 300;
/// What a shim gets beyond that.
const SPARE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(20);
/// What the writer of the logs gets to write the last of them.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Stops containers and whatever else runs, and ends the machine. Returns only when the kernel refuses.
pub(crate) fn finish(end: End, console: &mut Console, mut watchdog: Option<File>) {
    stop_containers(console, watchdog.as_mut());
    let _ = fs::write("/sys/fs/cgroup/system/cgroup.kill", "1");
    console.logs.finish(LAST_LINES);
    // Every process but PID 1.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    for _ in 0..50 {
        reap();
        if !sys::has_children() {
            break;
        }
        sleep(STEP);
    }
    nix::unistd::sync();
    // Further disks, which containers have had.
    let disks = fs::read_dir("/run/disks").into_iter().flatten().flatten();
    let disks = disks.filter_map(|disk| disk.path().into_os_string().into_string().ok());
    for target in disks.chain(["/data", "/state"].map(str::to_owned)) {
        if let Err(error) = mounts::unmount(&target) {
            console.say(3, "init", &error);
        }
    }
    let (text, mode) = match end {
        End::PowerOff => ("powering off", RebootMode::RB_POWER_OFF),
        End::Reboot => ("rebooting", RebootMode::RB_AUTOBOOT),
    };
    console.say(4, "init", text);
    if let (End::PowerOff, Some(mut watchdog)) = (end, watchdog) {
        // The magic close of `watchdog-api.rst`, for drivers that heed it though the kernel is built with NOWAYOUT; on a reboot the
        // watchdog stays armed.
        let _ = watchdog.write_all(b"V");
    }
    let Err(error) = reboot(mode);
    console.say(0, "init", &format!("the kernel refused ({error}): the machine can be switched off now"));
    let _ = reboot(RebootMode::RB_HALT_SYSTEM);
}

fn stop_containers(console: &mut Console, mut watchdog: Option<&mut File>) {
    let names = || fs::read_dir(CONTAINERS).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let (mut asked, mut grace) = (0u32, GRACE);
    for name in names() {
        let procs = Path::new(CONTAINERS).join(&name).join("shim/cgroup.procs");
        for pid in fs::read_to_string(procs).unwrap_or_default().lines().filter_map(|line| line.parse().ok())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            asked = asked.saturating_add(1);
        }
        let own = fs::read_to_string(Path::new(RECORDS).join(&name).join("stop-timeout"));
        grace = grace.max(seconds(&own.unwrap_or_default()));
    }
    if asked > 0 {
        console.say(5, "init", "waiting for containers to stop");
    }
    let until = Instant::now().checked_add(Duration::from_secs(grace).saturating_add(SPARE));
    while until.is_some_and(|until| Instant::now() < until) {
        let events = fs::read_to_string(Path::new(CONTAINERS).join("cgroup.events")).unwrap_or_default();
        if !events.lines().any(|line| line == "populated 1") {
            return;
        }
        if let Some(watchdog) = &mut watchdog {
            let _ = watchdog.write_all(b"\0");
        }
        reap();
        sleep(STEP);
    }
    console.say(4, "init", "containers did not stop in time, killing them");
    let _ = fs::write(Path::new(CONTAINERS).join("cgroup.kill"), "1");
}

/// What a container may take, as its record has it.
fn seconds(record: &str) -> u64 {
    record.trim().parse().unwrap_or(GRACE).min(LONGEST_GRACE)
}

/// Takes leave of processes that ended, of a bounded number at a time.
pub(crate) fn reap() -> Vec<(i32, supervisor::End)> {
    std::iter::from_fn(sys::reap_one).take(4096).collect()
}

/// Input devices that may have a power button: the ACPI button is one.
pub(crate) fn buttons() -> Vec<File> {
    let mut names: Vec<_> = fs::read_dir("/dev/input")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let open = |path| {
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
            .open(path)
            .ok()
    };
    names.into_iter().take(32).filter_map(open).collect()
}

/// Whether the power button was pressed (`linux/input.h`: 24 bytes an event on 64-bit machines).
pub(crate) fn pressed(button: &mut File) -> bool {
    const EV_KEY: u16 = 1;
    const KEY_POWER: u16 = 116;
    let mut buffer = [0; 24 * 16];
    let read = button.read(&mut buffer).unwrap_or(0);
    buffer.get(..read).unwrap_or_default().chunks_exact(24).any(|event| {
        let field = |at: usize| {
            event
                .get(at..at.saturating_add(2))
                .and_then(|bytes| bytes.try_into().ok())
                .map(u16::from_ne_bytes)
        };
        field(16) == Some(EV_KEY) && field(18) == Some(KEY_POWER) && field(20) == Some(1)
    })
}

/// The watchdog, if the machine has one: a PID 1 that hangs is restarted after 60 s.
pub(crate) fn watchdog() -> Option<File> {
    let watchdog =
        OpenOptions::new().write(true).custom_flags(nix::libc::O_CLOEXEC).open("/dev/watchdog0").ok()?;
    let _ = sys::set_watchdog_timeout(&watchdog, 60);
    Some(watchdog)
}
