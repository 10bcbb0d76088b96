//! How far a pull is, in words: over and over in one line for a person who watches, now and then a line for a log.

use std::time::{Duration, Instant};

use crate::agent::{PullPhase, PullProgress};
use crate::cli_container::bytes;

/// Per cent between two lines of a log, and the time after which there is one anyway.
const STEP: u64 = 25;
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

pub(crate) fn pulled(pull: &PullProgress) -> String {
    let PullProgress { phase, bytes: there, total_bytes, layers, total_layers } = pull;
    match phase {
        PullPhase::Downloading => format!(
            "{} of {} ({} %), {layers} of {total_layers} layers",
            bytes(*there),
            bytes(*total_bytes),
            pull.share()
        ),
        PullPhase::Unpacking => format!("unpacking {total_layers} layers, {}", bytes(*total_bytes)),
    }
}

/// What a log has of a pull.
#[derive(Debug)]
pub(crate) struct Log {
    told: Option<(PullPhase, u64)>,
    at: Instant,
}

impl Log {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { told: None, at: now }
    }

    /// A line, if it is time for one.
    pub(crate) fn line(&mut self, now: Instant, pull: &PullProgress) -> Option<String> {
        let is = (pull.phase, pull.share() / STEP);
        let is_news = self.told.is_none_or(|(phase, step)| phase != is.0 || is.1 > step);
        let is_late = now.duration_since(self.at) >= LONGEST_SILENCE;
        (is_news || is_late).then(|| {
            (self.told, self.at) = (Some(is), now);
            pulled(pull)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_few_lines_of_a_pull() {
        let begun = Instant::now();
        let mut log = Log::begin(begun);
        let mut lines = Vec::new();
        for second in 0..=200 {
            let phase = if second > 100 { PullPhase::Unpacking } else { PullPhase::Downloading };
            let bytes = (second << 20).min(100 << 20);
            let pull =
                PullProgress { phase, bytes, total_bytes: 100 << 20, layers: second / 50, total_layers: 3 };
            lines.extend(log.line(begun + Duration::from_secs(second), &pull).map(|line| (second, line)));
        }
        let expected = [
            (0, "0 B of 100.0 MiB (0 %), 0 of 3 layers"),
            (25, "25.0 MiB of 100.0 MiB (25 %), 0 of 3 layers"),
            (50, "50.0 MiB of 100.0 MiB (50 %), 1 of 3 layers"),
            (75, "75.0 MiB of 100.0 MiB (75 %), 1 of 3 layers"),
            (100, "100.0 MiB of 100.0 MiB (100 %), 2 of 3 layers"),
            (101, "unpacking 3 layers, 100.0 MiB"),
            (161, "unpacking 3 layers, 100.0 MiB"),
        ];
        assert_eq!(lines, expected.map(|(second, line)| (second, line.to_owned())));
    }
}
