//! When a container with a schedule runs next, on a clock that may be set at any time. Pure.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Between two looks at the clock: it may have been set.
pub const LONGEST: Duration = Duration::from_secs(20);
/// What is later than this was missed: the clock was set, or the machine stood still.
const LATE: SignedDuration = SignedDuration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Run,
    /// After so long.
    In(Duration),
    /// The time was missed, or the clock was set back: the next one is another.
    Again,
}

/// What follows now, of one that is to run at `next`, and waited for that at `before` too.
pub fn look(next: Timestamp, before: Timestamp, now: Timestamp) -> Look {
    let rest = now.duration_until(next);
    if rest.is_positive() {
        let is_set_back = before.duration_until(now) < SignedDuration::from_secs(-1);
        return if is_set_back { Look::Again } else { Look::In(rest.unsigned_abs().min(LONGEST)) };
    }
    if rest.abs() > LATE { Look::Again } else { Look::Run }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_at_its_time_and_not_for_one_that_was_missed() {
        let at = |text: &str| -> Timestamp { format!("2026-11-29T{text}Z").parse().unwrap() };
        let look = |before: &str, now: &str| look(at("03:30:00"), at(before), at(now));
        assert_eq!(look("03:00:00", "03:00:20"), Look::In(LONGEST));
        assert_eq!(look("03:29:40", "03:29:50.5"), Look::In(Duration::from_millis(9_500)));
        assert_eq!(look("03:29:50", "03:30:00"), Look::Run);
        assert_eq!(look("03:29:50", "03:30:40"), Look::Run);
        // The clock was set: forward by hours, and back.
        assert_eq!(look("03:29:50", "07:00:00"), Look::Again);
        assert_eq!(look("03:29:50", "01:00:00"), Look::Again);
    }
}
