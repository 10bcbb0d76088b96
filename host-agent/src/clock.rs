//! Time since the kernel started, which does not jump.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds of CLOCK_BOOTTIME.
pub fn boottime_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1000
            + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}
