//! When a container is started again. Pure: what happened goes in, what to do comes out. Times are milliseconds.

use serde::{Deserialize, Serialize};
use settings::Restart;

/// The first delay; each further one is twice as long.
pub const FIRST_DELAY: u64 = 1_000;
pub const LONGEST_DELAY: u64 = 60_000;
/// A container that ran for so long begins again with the first delay.
pub const STEADY: u64 = 10_000;
/// Delays that are remembered.
const REMEMBERED: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start it again at this time.
    At(u64),
    /// It stays ended.
    Never,
}

/// The restarts of one container since its settings last changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Restarts {
    policy: Restart,
    delay: u64,
    /// Times that it was started again.
    pub count: u32,
    /// Delays that the last restarts waited, the oldest first.
    pub delays: Vec<u64>,
}

impl Restarts {
    pub fn new(policy: Restart) -> Self {
        Self { policy, delay: FIRST_DELAY, count: 0, delays: Vec::new() }
    }

    /// A run ended at `now` after `lasted`; `failed` when its exit code was not 0 or it could not be started.
    pub fn ended(&mut self, now: u64, lasted: u64, failed: bool) -> Next {
        let again = match self.policy {
            Restart::Always => true,
            Restart::OnFailure => failed,
            Restart::No => false,
        };
        if !again {
            return Next::Never;
        }
        if lasted >= STEADY {
            self.delay = FIRST_DELAY;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(LONGEST_DELAY);
        self.delays.push(delay);
        if self.delays.len() > REMEMBERED {
            self.delays.remove(0);
        }
        Next::At(now + delay)
    }

    /// A person has looked at it: what failed before counts no more.
    pub fn begin_anew(&mut self) {
        self.delay = FIRST_DELAY;
    }

    /// It was started again.
    pub fn started_again(&mut self) {
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_grow_and_begin_anew_after_a_steady_run() {
        let mut restarts = Restarts::new(Restart::OnFailure);
        assert_eq!(restarts.ended(0, 5, true), Next::At(1000));
        assert_eq!(restarts.ended(1000, 5, true), Next::At(3000));
        assert_eq!(restarts.ended(3000, STEADY, true), Next::At(4000));
        assert_eq!(restarts.delays, [1000, 2000, 1000]);
    }

    #[test]
    fn the_policy_decides() {
        for (policy, failed, again) in [
            (Restart::Always, false, true),
            (Restart::Always, true, true),
            (Restart::OnFailure, false, false),
            (Restart::OnFailure, true, true),
            (Restart::No, true, false),
        ] {
            assert_eq!(
                Restarts::new(policy).ended(0, 0, failed) != Next::Never,
                again,
                "{policy:?} {failed}"
            );
        }
    }

    proptest! {
        #[test]
        fn delays_never_leave_their_bounds(runs in proptest::collection::vec((0..20_000u64, any::<bool>()), 0..100)) {
            let mut restarts = Restarts::new(Restart::Always);
            let mut now = 0;
            for (lasted, failed) in runs {
                now += lasted;
                let Next::At(at) = restarts.ended(now, lasted, failed) else { panic!("given up") };
                prop_assert!((FIRST_DELAY..=LONGEST_DELAY).contains(&(at - now)));
                now = at;
            }
            prop_assert!(restarts.delays.len() <= REMEMBERED);
        }
    }
}
