//! Commits on trial: what to do when (pure). Such a commit is taken back unless it is confirmed in time.
//!
//! Time is CLOCK_BOOTTIME of one boot; the wall clock may jump. Over a reboot or a power cut, the time that a trial has left is
//! kept with its generation, every [`period_ms`] anew; each start of the API in another boot costs one period, for what was
//! not kept. So the time that a trial is in force, over all boots together and counted while the API is up, is never more than
//! was asked for, and a node that its settings make restart over and over gets its old settings back.

use serde::{Deserialize, Serialize};

use crate::store::Trial;

/// Seconds that a trial may have.
pub(crate) const SECONDS: std::ops::RangeInclusive<u32> = 1..=86400;

/// A point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Identity of the boot.
    pub(crate) boot: String,
    /// Of its CLOCK_BOOTTIME, in milliseconds.
    pub(crate) ms: u64,
}

/// How long a trial has, as it was last kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Clock {
    pub boot: String,
    pub deadline_ms: u64,
    /// What was left when this was kept.
    pub left_ms: u64,
}

/// A generation that is in force, and not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnTrial {
    pub generation: u64,
    /// What comes back; 0 for the defaults.
    pub before: u64,
    pub seconds: u32,
    pub clock: Clock,
}

impl OnTrial {
    pub(crate) fn begin(generation: u64, before: u64, trial: &Trial) -> Self {
        let left_ms = u64::from(trial.seconds) * 1000;
        let clock = Clock { boot: trial.boot.clone(), deadline_ms: trial.deadline_ms, left_ms };
        Self { generation, before, seconds: trial.seconds, clock }
    }

    /// Between two keepings of the clock: a tenth of the whole, at least a second and at most a minute.
    fn period_ms(&self) -> u64 {
        (u64::from(self.seconds) * 100).clamp(1000, 60_000)
    }

    /// Milliseconds until it is taken back.
    pub(crate) fn left_ms(&self, now: &Moment) -> u64 {
        let Clock { boot, deadline_ms, left_ms } = &self.clock;
        if *boot == now.boot {
            return deadline_ms.saturating_sub(now.ms).min(*left_ms);
        }
        left_ms.saturating_sub(self.period_ms())
    }

    /// Milliseconds until [`Event::Time`] is to be looked at again.
    pub(crate) fn next_ms(&self, now: &Moment) -> u64 {
        let kept_until = self.clock.left_ms.saturating_sub(self.period_ms());
        self.left_ms(now).min(self.left_ms(now).saturating_sub(kept_until).max(1))
    }
}

impl Trial {
    pub(crate) fn new(seconds: u32, now: &Moment) -> Self {
        Self { seconds, boot: now.boot.clone(), deadline_ms: now.ms + u64::from(seconds) * 1000 }
    }
}

/// What happens while a generation may be on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time went by, or the API has started.
    Time,
    /// Somebody wants to commit something else.
    Commit,
    /// Somebody says that it works: the one that is on trial, or the one of this number.
    Confirm(Option<u64>),
    /// Somebody wants it back now.
    Revert,
    /// A generation could not be applied.
    ApplyFailed(u64),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// The event is as if there were no trial.
    Proceed,
    Keep(Clock),
    Confirm,
    Revert,
    Refuse(String),
}

pub(crate) fn decide(on_trial: Option<&OnTrial>, event: &Event, now: &Moment) -> Action {
    match (on_trial, event) {
        (None, Event::Commit) => Action::Proceed,
        (None, Event::Confirm(Some(number))) => {
            Action::Refuse(format!("generation {number} is not on trial"))
        }
        (None, Event::Confirm(None) | Event::Revert) => {
            Action::Refuse("no generation is on trial".to_owned())
        }
        (None, Event::Time | Event::ApplyFailed(_)) => Action::Nothing,
        (Some(trial), Event::Time) => at(trial, now),
        (Some(trial), Event::Commit) => Action::Refuse(pending(trial, now)),
        (Some(trial), Event::Confirm(Some(number))) if *number != trial.generation => Action::Refuse(
            format!("generation {number} is not on trial, but generation {} is", trial.generation),
        ),
        (Some(_), Event::Confirm(_)) => Action::Confirm,
        (Some(_), Event::Revert) => Action::Revert,
        (Some(trial), Event::ApplyFailed(number)) if *number == trial.generation => Action::Revert,
        (Some(_), Event::ApplyFailed(_)) => Action::Nothing,
    }
}

fn at(trial: &OnTrial, now: &Moment) -> Action {
    let left_ms = trial.left_ms(now);
    let other_boot = trial.clock.boot != now.boot;
    if left_ms == 0 {
        Action::Revert
    } else if other_boot || trial.clock.left_ms - left_ms >= trial.period_ms() {
        Action::Keep(Clock { boot: now.boot.clone(), deadline_ms: now.ms + left_ms, left_ms })
    } else {
        Action::Nothing
    }
}

/// Why nothing else may be committed, and what to do.
fn pending(trial: &OnTrial, now: &Moment) -> String {
    format!(
        "generation {} is on trial and goes in {} s: keep it (apiclient confirm, POST /actions/confirm), take it back now \
         (apiclient trial --revert, DELETE /actions/trial) or wait, and then commit again",
        trial.generation,
        trial.left_ms(now).div_ceil(1000)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What people are told, without clocks that are kept: a trial ends when it is confirmed, when it is taken back, or when it
    /// was in force for its seconds.
    #[derive(Debug, Default)]
    struct Model {
        on_trial: bool,
        in_force_ms: u64,
        reverted: bool,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(u32),
        /// The server is up for this long, and looks at the clock when it is to.
        Run(u64),
        /// A restart of the server, or of the node (then time begins anew).
        Restart {
            node: bool,
        },
        Other(Event),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let event = prop_oneof![
            Just(Event::Commit),
            Just(Event::Confirm(Some(8))),
            Just(Event::ApplyFailed(8)),
            Just(Event::ApplyFailed(7)),
            Just(Event::Confirm(None)),
            Just(Event::Confirm(Some(7))),
            Just(Event::Revert),
        ];
        prop_oneof![
            2 => (1u32..200).prop_map(Step::Begin),
            4 => (1u64..40_000).prop_map(Step::Run),
            2 => any::<bool>().prop_map(|node| Step::Restart { node }),
            2 => event.prop_map(Step::Other),
        ]
    }

    struct Node {
        now: Moment,
        boots: u64,
        on_trial: Option<OnTrial>,
    }

    impl Node {
        /// Does what was decided; tells what that was.
        fn event(&mut self, event: &Event) -> Action {
            let action = decide(self.on_trial.as_ref(), event, &self.now);
            match (&action, &mut self.on_trial) {
                (Action::Keep(clock), Some(trial)) => trial.clock = clock.clone(),
                (Action::Confirm | Action::Revert, on_trial) => *on_trial = None,
                _ => {}
            }
            action
        }

        /// Tells how long the trial was in force, and whether it went.
        fn run(&mut self, mut ms: u64) -> (u64, bool) {
            let mut in_force = 0;
            loop {
                if self.event(&Event::Time) == Action::Revert {
                    return (in_force, true);
                }
                let Some(trial) = &self.on_trial else { return (in_force, false) };
                if ms == 0 {
                    return (in_force, false);
                }
                let step = trial.next_ms(&self.now).min(ms);
                assert!(step > 0);
                self.now.ms += step;
                in_force += step;
                ms -= step;
            }
        }
    }

    proptest! {
        #[test]
        fn a_trial_is_never_in_force_longer_than_asked_and_ends_only_as_told(steps in proptest::collection::vec(any_step(), 1..40)) {
            let mut node = Node { now: Moment { boot: "0".to_owned(), ms: 5_000 }, boots: 0, on_trial: None };
            let (mut model, mut seconds, mut starts) = (Model::default(), 0, 0);
            for step in steps {
                match step {
                    Step::Begin(asked) if !model.on_trial => {
                        node.on_trial = Some(OnTrial::begin(7, 6, &Trial::new(asked, &node.now)));
                        (model, seconds, starts) = (Model { on_trial: true, ..Model::default() }, asked, 0);
                    }
                    Step::Begin(_) => prop_assert!(matches!(node.event(&Event::Commit), Action::Refuse(_))),
                    Step::Run(ms) => {
                        let (in_force, reverted) = node.run(ms);
                        model.in_force_ms += in_force;
                        if reverted {
                            prop_assert!(model.on_trial);
                            // Never early, but for what restarts of the node cost.
                            let cost = starts * u64::from(seconds).saturating_mul(200).clamp(2000, 120_000);
                            prop_assert!(model.in_force_ms + cost >= u64::from(seconds) * 1000, "{model:?}");
                            model.on_trial = false;
                            model.reverted = true;
                        }
                    }
                    Step::Restart { node: false } => {}
                    Step::Restart { node: true } => {
                        node.boots += 1;
                        starts += 1;
                        node.now = Moment { boot: node.boots.to_string(), ms: 900 };
                        if node.event(&Event::Time) == Action::Revert {
                            (model.on_trial, model.reverted) = (false, true);
                        }
                    }
                    Step::Other(event) => {
                        let action = node.event(&event);
                        let expected = match (&event, model.on_trial) {
                            (Event::Commit, false) => Action::Proceed,
                            (Event::Confirm(None | Some(7)), true) => Action::Confirm,
                            (Event::Revert | Event::ApplyFailed(7), true) => Action::Revert,
                            (Event::ApplyFailed(_), _) => Action::Nothing,
                            _ => Action::Refuse(String::new()),
                        };
                        prop_assert_eq!(std::mem::discriminant(&action), std::mem::discriminant(&expected), "{:?}", event);
                        if matches!(action, Action::Confirm | Action::Revert) {
                            model.on_trial = false;
                        }
                    }
                }
                prop_assert_eq!(node.on_trial.is_some(), model.on_trial);
                prop_assert!(model.in_force_ms <= u64::from(seconds) * 1000, "{:?} of {} s", model, seconds);
            }
        }
    }

    #[test]
    fn a_node_that_restarts_over_and_over_gets_its_settings_back() {
        let mut trial = OnTrial::begin(7, 6, &Trial::new(60, &Moment { boot: "0".to_owned(), ms: 0 }));
        let starts = (1..).find(|boot| {
            let now = Moment { boot: boot.to_string(), ms: 500 };
            match decide(Some(&trial), &Event::Time, &now) {
                Action::Keep(clock) => trial.clock = clock,
                action => return action == Action::Revert,
            }
            false
        });
        assert_eq!(starts, Some(10));
    }

    #[test]
    fn a_commit_over_a_trial_is_told_what_to_do() {
        let now = Moment { boot: "0".to_owned(), ms: 0 };
        let trial = OnTrial::begin(7, 6, &Trial::new(60, &now));
        let Action::Refuse(said) = decide(Some(&trial), &Event::Commit, &now) else { panic!() };
        for part in ["generation 7 is on trial", "60 s", "apiclient confirm", "DELETE /actions/trial", "wait"]
        {
            assert!(said.contains(part), "{said}");
        }
    }
}
