//! The clock at the node's start, before anybody is asked over the network.

use apiserver::agent::ClockSource;
use jiff::Timestamp;
use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::files;
use crate::time::kernel;

/// All files of an image have the time at which it was released.
const OF_IMAGE: &str = "/usr/lib/os-release";
/// Seconds since 1970 of a moment at which the clock was synchronised.
const LAST_KNOWN: &str = "/state/agent/clock";
/// What the clock was taken from, for an agent that is started again: only a boot sets the clock.
const TAKEN_FROM: &str = "/run/agent/clock.json";

/// Where the time is taken from, and what the clock is to be set to, if it is not right already.
///
/// The host's clock is the best there is. Else the machine's own, which the kernel has read, unless it is behind what is known
/// for certain: with a dead battery no certificate would be valid.
fn decide(
    clock: Duration,
    host: Option<Duration>,
    image: Duration,
    last_known: Option<Duration>,
) -> (ClockSource, Option<Duration>) {
    if let Some(host) = host.filter(|host| *host >= image) {
        return (ClockSource::PtpKvm, Some(host));
    }
    let last_known = last_known.unwrap_or_default();
    match () {
        () if clock >= image.max(last_known) => (ClockSource::Rtc, None),
        () if last_known > image => (ClockSource::LastKnown, Some(last_known)),
        () => (ClockSource::Image, Some(image)),
    }
}

/// Sets the clock, once for each boot, and says what it was taken from.
pub fn set_clock() -> ClockSource {
    let recorded = fs::read(TAKEN_FROM).ok().and_then(|record| serde_json::from_slice(&record).ok());
    recorded.unwrap_or_else(|| {
        let source = set_clock_now();
        let record = serde_json::to_vec(&source).unwrap_or_default();
        let folder = Path::new(TAKEN_FROM).parent().unwrap_or(Path::new("/"));
        let written =
            fs::create_dir_all(folder).and_then(|()| files::replace(Path::new(TAKEN_FROM), &record));
        if let Err(error) = written {
            eprintln!("<4>cannot write {TAKEN_FROM}: {error}");
        }
        source
    })
}

fn set_clock_now() -> ClockSource {
    let image = fs::metadata(OF_IMAGE).and_then(|file| file.modified()).ok();
    let image = image.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let host = kernel::host();
    let clock = kernel::now();
    let (source, wanted) = decide(clock, host, image, last_known());
    let from = match source {
        ClockSource::PtpKvm => "the host's (ptp_kvm)",
        ClockSource::Rtc => "the machine's (RTC)",
        ClockSource::LastKnown => "when it was last known: the machine's is behind that",
        ClockSource::Image => "when this image was made: the machine's is behind that",
        ClockSource::Ntp => "NTP",
    };
    let Some(wanted) = wanted else {
        eprintln!("<6>the clock is {from}: {}", shown(clock));
        return source;
    };
    match kernel::set(wanted) {
        Ok(()) => {
            // What puts the clock forward or back by less than a person notices is no news.
            let priority = if wanted.abs_diff(clock) < Duration::from_secs(1) { 6 } else { 5 };
            eprintln!("<{priority}>the clock is set to {from}: {}, {}", shown(wanted), step(clock, wanted));
        }
        Err(error) => {
            eprintln!("<3>cannot set the clock from {} to {}: {error}", shown(clock), shown(wanted))
        }
    }
    source
}

fn step(from: Duration, to: Duration) -> String {
    let direction = if to < from { "back" } else { "forward" };
    format!("{direction} by {:.3} s", to.abs_diff(from).as_secs_f64())
}

fn shown(time: Duration) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}

fn last_known() -> Option<Duration> {
    read_last_known(&fs::read_to_string(LAST_KNOWN).ok()?)
}

/// Not beyond what the kernel can tell (year 2262): a damaged file must not keep the clock there.
fn read_last_known(text: &str) -> Option<Duration> {
    let seconds = text.trim().parse().ok().filter(|seconds| *seconds < i64::MAX as u64 / 1_000_000_000)?;
    Some(Duration::from_secs(seconds))
}

/// Notes that the clock is right now; it survives a power cut when this returns.
pub(super) fn note_known() {
    let text = format!("{}\n", kernel::now().as_secs());
    if let Err(error) = files::replace_durably(Path::new(LAST_KNOWN), text.as_bytes()) {
        eprintln!("<4>cannot write {LAST_KNOWN}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_best_that_is_known_sets_the_clock() {
        for (clock, host, last_known, expected) in [
            (200, None, None, (ClockSource::Rtc, None)),
            (200, None, Some(150), (ClockSource::Rtc, None)),
            (0, None, None, (ClockSource::Image, Some(s(100)))),
            (0, None, Some(50), (ClockSource::Image, Some(s(100)))),
            (120, None, Some(150), (ClockSource::LastKnown, Some(s(150)))),
            // The host knows better, also that time is earlier than was believed.
            (200, Some(140), Some(150), (ClockSource::PtpKvm, Some(s(140)))),
            // Unless it cannot be.
            (0, Some(5), None, (ClockSource::Image, Some(s(100)))),
        ] {
            assert_eq!(
                decide(s(clock), host.map(s), s(100), last_known.map(s)),
                expected,
                "{clock} {host:?}"
            );
        }
    }

    #[test]
    fn a_damaged_note_is_none() {
        assert_eq!(read_last_known("1793491200\n"), Some(s(1_793_491_200)));
        for damaged in ["", "\0\0\0", "-1", "18446744073709551615", "1e9"] {
            assert_eq!(read_last_known(damaged), None, "{damaged:?}");
        }
    }

    #[test]
    fn a_step_is_told_in_words() {
        assert_eq!(step(s(10), s(12)), "forward by 2.000 s");
        assert_eq!(step(Duration::from_millis(12_500), s(12)), "back by 0.500 s");
        assert_eq!(shown(s(1_793_491_200)), "2026-11-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn the_clock_is_never_before_the_image(clock: u32, host: Option<u32>, image: u32, last: Option<u32>) {
            let time = |seconds: u32| s(seconds.into());
            let (_, wanted) = decide(time(clock), host.map(time), time(image), last.map(time));
            prop_assert!(wanted.unwrap_or(time(clock)) >= time(image));
        }
    }
}
