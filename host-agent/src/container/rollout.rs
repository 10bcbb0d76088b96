//! How a container that runs comes to new settings with `update = "start-first"`: one with the new ones begins beside it, in the second of
//! its two places, and stays if it does its work. Decisions; the manager acts on them.

use apiserver::agent::{ContainerHealthState, ContainerState, ContainerStatus};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;

use crate::container::health;
use crate::container::record::{Kept, Places, State};
use crate::container::restart::STEADY;
use crate::container::shim;
use crate::container::spec::Spec;
use crate::files;

/// Milliseconds in which an image that cannot be pulled may still come.
const PULL_PATIENCE: u64 = 300_000;
/// Milliseconds for all of it, beside the start period of a health check: that ends what is not healthy earlier.
const PATIENCE: u64 = 900_000;
/// Behind the name of what is in the second place. No container has it in its name.
const SECOND: char = '+';

/// The place of a container that it does not have.
pub fn other(instance: &str) -> String {
    match instance.strip_suffix(SECOND) {
        Some(first) => first.to_owned(),
        None => format!("{instance}{SECOND}"),
    }
}

/// The name of a container, wherever it is.
pub fn name(instance: &str) -> &str {
    instance.strip_suffix(SECOND).unwrap_or(instance)
}

/// One that is to take the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    pub candidate: Spec,
    /// CLOCK_BOOTTIME in milliseconds.
    pub begun: u64,
    /// What its health check said last, if that failed: it is gone from the status when the container is ended for it.
    pub failure: Option<String>,
}

impl Rollout {
    pub fn new(candidate: Spec, now: u64) -> Self {
        Self { candidate, begun: now, failure: None }
    }

    /// Notes what the status of the candidate tells for a moment only.
    pub fn note(&mut self, candidate: &ContainerStatus) {
        let failing = candidate.health.as_ref().filter(|health| health.failures > 0);
        self.failure = failing.and_then(|health| health.last_failure.clone()).or(self.failure.take());
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is not known yet.
    Wait,
    Take,
    Refuse(String),
}

/// What becomes of a candidate.
pub fn judge(candidate: &ContainerStatus, has_check: bool, begun: u64, now: u64) -> Verdict {
    let waited = now.saturating_sub(begun);
    let health = candidate.health.as_ref();
    if health.is_some_and(|health| health.state == ContainerHealthState::Unhealthy) {
        return Verdict::Refuse(health.map(health::said).unwrap_or_default());
    }
    let told = || match (&candidate.error, candidate.exit_code) {
        (Some(error), _) => error.clone(),
        (None, Some(code)) => format!("it ended with exit code {code}"),
        (None, None) => "it does not run".to_owned(),
    };
    match candidate.state {
        _ if candidate.restarts > 0 => Verdict::Refuse(told()),
        ContainerState::BackOff | ContainerState::Exited | ContainerState::Stopped => Verdict::Refuse(told()),
        // It never ran: its image is tried again.
        ContainerState::Failed if candidate.exit_code.is_none() && waited < PULL_PATIENCE => Verdict::Wait,
        ContainerState::Failed => Verdict::Refuse(told()),
        ContainerState::Running if has_check => match health.map(|health| health.state) {
            Some(ContainerHealthState::Healthy) => Verdict::Take,
            _ if waited > PATIENCE => Verdict::Refuse("it did not become healthy".to_owned()),
            _ => Verdict::Wait,
        },
        ContainerState::Running => {
            let runs_for = candidate.started_at_ms.map_or(0, |since| now.saturating_sub(since));
            if runs_for >= STEADY { Verdict::Take } else { Verdict::Wait }
        }
        _ if waited > PATIENCE => Verdict::Refuse("it did not begin to run".to_owned()),
        _ => Verdict::Wait,
    }
}

/// What was refused of a container's settings, kept in `/run` so that an agent after this one does not try it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// Hash of the settings.
    pub settings: String,
    pub error: String,
}

impl Refusal {
    pub fn read(places: &Places) -> Option<Self> {
        serde_json::from_slice(&fs::read(places.refusal()).ok()?).ok()
    }

    pub fn write(&self, places: &Places) -> io::Result<()> {
        files::replace(&places.refusal(), &serde_json::to_vec(self)?)
    }
}

/// What runs in a place of a container, with the settings that it was started with, when an agent begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub instance: String,
    pub spec: Spec,
    since: u64,
}

/// Of both places of a container, what has run for longer first.
pub fn found(name: &str) -> Vec<Found> {
    let mut all: Vec<Found> = [name.to_owned(), other(name)].into_iter().filter_map(find).collect();
    all.sort_by_key(|found| found.since);
    all
}

fn find(instance: String) -> Option<Found> {
    let places = Places::of(&instance);
    let kept = Kept::read(&places)?;
    let spec: Spec = serde_json::from_slice(&fs::read(places.spec()).ok()?).ok()?;
    let State::Running(since) = kept.state else { return None };
    let is_whole = kept.settings == spec.hash() && shim::lives(&places);
    is_whole.then_some(Found { instance, spec, since })
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver::agent::ContainerHealth;
    use serde_json::json;

    fn status(state: ContainerState) -> ContainerStatus {
        let status = json!({
            "name": "web", "image": "i", "state": state, "pid": null, "exit-code": null, "restarts": 0, "delay-ms": null,
            "delays-ms": [], "error": null, "essential": false, "started-at-ms": 1000,
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_container_has_two_places() {
        assert_eq!((other("web").as_str(), other("web+").as_str()), ("web+", "web"));
        assert_eq!((name("web"), name("web+")), ("web", "web"));
    }

    #[test]
    fn what_does_its_work_takes_the_place_and_what_does_not_is_refused() {
        use ContainerState::{BackOff, Exited, Failed, Pulling, Running, Starting};
        let refused = |text: &str| Verdict::Refuse(text.to_owned());
        let without_check = |state, now| judge(&status(state), false, 0, now);
        assert_eq!(without_check(Pulling, 5), Verdict::Wait);
        assert_eq!(without_check(Starting, 5), Verdict::Wait);
        assert_eq!(without_check(Running, 1000 + STEADY - 1), Verdict::Wait);
        assert_eq!(without_check(Running, 1000 + STEADY), Verdict::Take);
        assert_eq!(without_check(Starting, PATIENCE + 1), refused("it did not begin to run"));
        // A registry may come back, and a container that has run does not.
        assert_eq!(without_check(Failed, 5), Verdict::Wait);
        assert_eq!(without_check(Failed, PULL_PATIENCE), refused("it does not run"));
        let ended = ContainerStatus { exit_code: Some(3), ..status(Exited) };
        assert_eq!(judge(&ended, false, 0, 5), refused("it ended with exit code 3"));
        let waits = ContainerStatus { error: Some("no memory".to_owned()), ..status(BackOff) };
        assert_eq!(judge(&waits, false, 0, 5), refused("no memory"));
        // It was seen only after it was started again.
        let again = ContainerStatus { restarts: 1, exit_code: Some(1), ..status(Running) };
        assert_eq!(judge(&again, false, 0, 1000 + STEADY), refused("it ended with exit code 1"));
    }

    #[test]
    fn one_with_a_health_check_is_to_be_healthy() {
        let checked = |state| {
            let health = ContainerHealth { state, failures: 0, last_failure: None };
            ContainerStatus { health: Some(health), ..status(ContainerState::Running) }
        };
        let judge = |status: &ContainerStatus, now| judge(status, true, 0, now);
        assert_eq!(judge(&checked(ContainerHealthState::Starting), 60_000), Verdict::Wait);
        assert_eq!(judge(&checked(ContainerHealthState::Healthy), 2_000), Verdict::Take);
        assert!(matches!(judge(&checked(ContainerHealthState::Unhealthy), 2_000), Verdict::Refuse(_)));
        // Its check has not begun.
        assert_eq!(judge(&status(ContainerState::Running), 60_000), Verdict::Wait);
    }
}
