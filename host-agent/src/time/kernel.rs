//! The kernel's clock: what it says of itself (adjtimex(2)), and KVM's clock of the host.

#![allow(unsafe_code)]

use nix::libc::{self, timex};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// What the clock says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Discipline {
    /// Whether somebody has set it right who knows; the kernel takes it back after hours without news.
    pub set_right: bool,
    /// By how much it may be off; it grows by half a millisecond with each second since the last news.
    pub largest_error: Duration,
}

fn adjust(mut request: timex) -> io::Result<timex> {
    // SAFETY: the pointer is to a timex of ours.
    let state = unsafe { libc::adjtimex(&raw mut request) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

fn nothing() -> timex {
    // SAFETY: a timex is numbers only; zeros ask for nothing.
    unsafe { std::mem::zeroed() }
}

pub(super) fn discipline() -> io::Result<Discipline> {
    let clock = adjust(nothing())?;
    let micros = clock.maxerror.saturating_add(clock.esterror);
    Ok(Discipline {
        set_right: clock.status & libc::STA_UNSYNC == 0,
        largest_error: Duration::from_micros(u64::try_from(micros).unwrap_or(0)),
    })
}

/// Whoever sets the clock right has to begin anew.
pub(super) fn forget_discipline() -> io::Result<()> {
    let status = adjust(nothing())?.status | libc::STA_UNSYNC;
    adjust(timex { modes: libc::ADJ_STATUS, status, ..nothing() }).map(drop)
}

/// Since 1970.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, since_1970)
}

fn since_1970(time: TimeSpec) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec()).unwrap_or(0))
}

pub(super) fn set(time: Duration) -> io::Result<()> {
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))?)
}

/// The clock of the host, if KVM shows it (`ptp_kvm`). In UTC, unlike other PTP clocks.
pub(super) fn host() -> Option<Duration> {
    let name = kvm_clock(Path::new("/sys/class/ptp"))?;
    let device = File::open(Path::new("/dev").join(name)).ok()?;
    clock_gettime(ClockId::from_raw(clock_of(device.as_raw_fd()))).ok().map(since_1970)
}

/// The clock behind a descriptor (clock_getres(2), "dynamic clocks").
fn clock_of(fd: i32) -> libc::clockid_t {
    (!fd << 3) | 3
}

fn kvm_clock(class: &Path) -> Option<String> {
    let clocks = fs::read_dir(class).ok()?.flatten();
    let kvm = |name: &Path| fs::read_to_string(name).is_ok_and(|name| name.trim() == "KVM virtual PTP");
    clocks
        .filter(|clock| kvm(&clock.path().join("clock_name")))
        .find_map(|clock| clock.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kvm_s_clock_is_taken_for_the_host_s() {
        let class = tempfile::tempdir().unwrap();
        for (clock, name) in [("ptp0", "ena-ptp-00"), ("ptp1", "KVM virtual PTP\n")] {
            fs::create_dir(class.path().join(clock)).unwrap();
            assert_eq!(kvm_clock(class.path()), None);
            fs::write(class.path().join(clock).join("clock_name"), name).unwrap();
        }
        assert_eq!(kvm_clock(class.path()).as_deref(), Some("ptp1"));
        assert_eq!(kvm_clock(&class.path().join("absent")), None);
    }

    #[test]
    fn the_clock_of_a_descriptor_is_what_the_kernel_makes_of_it() {
        // CLOCKFD and fd_to_clockid, linux/posix-timers.h.
        assert_eq!(clock_of(0), -5);
        assert_eq!(clock_of(5), -45);
        assert_eq!(!(clock_of(5) >> 3), 5);
    }

    #[test]
    fn the_kernel_tells_of_its_clock() {
        assert!(discipline().is_ok());
        assert!(now() > Duration::from_secs(1_700_000_000));
    }
}
