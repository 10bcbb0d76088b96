//! `settings.containers.NAME.schedule`: when a container runs, as cron writes it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::shown;

const LONGEST: usize = 256;

/// When a container runs: minute, hour, day of the month, month and day of the week, as in crontab(5), in UTC. `@hourly`, `@daily`,
/// `@weekly`, `@monthly` and `@yearly` are short for some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Schedule(String);

fn times(text: &str) -> Option<cronexpr::Crontab> {
    let fields = match text {
        "@hourly" => "0 * * * *",
        "@daily" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" => "0 0 1 1 *",
        other => other,
    };
    // A sixth would be a zone of time: a node has no table of those.
    if fields.split(' ').count() != 5 {
        return None;
    }
    let mut options = cronexpr::ParseOptions::default();
    options.fallback_timezone_option = cronexpr::FallbackTimezoneOption::UTC;
    cronexpr::parse_crontab_with(fields, options).ok()
}

impl Schedule {
    /// The first time after another; `None` if there is none (`0 0 30 2 *`).
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        times(&self.0)?.find_next(cronexpr::MakeTimestamp(after)).ok().map(|next| next.timestamp())
    }
}

impl TryFrom<String> for Schedule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hint = "write minute, hour, day of the month, month and day of the week in UTC, such as \"30 3 * * *\" for each day at 3:30, or @hourly, @daily, @weekly, @monthly, @yearly";
        let wrong = |why: &str| format!("{} is not a time{why}: {hint}", shown(&text));
        if text.len() > LONGEST || times(&text).is_none() {
            return Err(wrong(""));
        }
        let never = wrong(" that ever comes");
        let schedule = Self(text);
        if schedule.next(Timestamp::UNIX_EPOCH).is_some() { Ok(schedule) } else { Err(never) }
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str, after: &str) -> String {
        let schedule = Schedule::try_from(text.to_owned()).unwrap();
        schedule.next(after.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn the_next_time_is_after_this_one_and_in_utc() {
        for (text, after, expected) in [
            ("30 3 * * *", "2026-11-29T03:29:59Z", "2026-11-29T03:30:00Z"),
            ("30 3 * * *", "2026-11-29T03:30:00Z", "2026-11-30T03:30:00Z"),
            ("*/15 * * * *", "2026-11-29T23:50:00Z", "2026-11-30T00:00:00Z"),
            ("0 12 * * MON-FRI", "2026-11-28T00:00:00Z", "2026-11-30T12:00:00Z"),
            ("0 0 29 2 *", "2026-11-29T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@hourly", "2026-11-29T03:30:00Z", "2026-11-29T04:00:00Z"),
            ("@yearly", "2026-11-29T03:30:00Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(text, after), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_told_how_to_write_one() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "61 * * * *",
            "@reboot",
            "0 3 * * * Europe/Berlin",
            "a b c d e",
            "0 0 30 2 *",
        ] {
            let error = Schedule::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains("is not a time") && error.contains("30 3 * * *"), "{text}: {error}");
        }
        let long = format!("{} * * * *", vec!["1"; 200].join(","));
        assert!(Schedule::try_from(long).is_err());
    }
}
