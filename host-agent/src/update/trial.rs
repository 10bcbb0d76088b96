//! A new version on trial: it is blessed once it has been healthy for a while, and given up when it is not in time. What it could
//! say of itself before it went is kept where the version before it reads it.

use apiserver::agent::{ContainerKind, ContainerState, ContainerStatus, Health, Status};
use boot_choice::Counter;
use init_control::Problem;
use init_control::trial::{LARGEST, LastWords};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::journal::{Progress, Step};
use crate::container::spec;
use crate::files;

/// Bytes of last words.
const LONGEST: usize = 1500;

/// What a healthy node may be late by.
const GRACE: Duration = Duration::from_secs(20);

/// How long a version has to be healthy, and until when after the kernel's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub healthy_for: Duration,
    pub deadline: Duration,
}

impl Limits {
    /// When PID 1 restarts the node after all, because the agent has neither blessed the version nor given it up.
    pub(super) fn at_the_latest(self) -> Duration {
        self.deadline + self.healthy_for + GRACE
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Wait,
    Bless,
    /// Why.
    GiveUp(String),
}

/// What to do `now` (after the kernel's start), when the node has been healthy since `healthy_since`.
pub(super) fn decide(
    limits: Limits,
    now: Duration,
    healthy_since: Option<Duration>,
    unhealthy: &str,
) -> Decision {
    match healthy_since {
        Some(since) if now.saturating_sub(since) >= limits.healthy_for => Decision::Bless,
        // It may become good a moment after the deadline, if it is healthy now.
        Some(_) => Decision::Wait,
        None if now >= limits.deadline => Decision::GiveUp(format!(
            "it was not healthy within {} s: {unhealthy}",
            limits.deadline.as_secs()
        )),
        None => Decision::Wait,
    }
}

/// What keeps a node from being healthy enough for a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub words: String,
    /// Something has failed, and is not only not there yet.
    pub has_failed: bool,
}

impl Wrong {
    pub(super) fn failed(words: String) -> Self {
        Self { words, has_failed: true }
    }

    /// With what failed before, while that is tried again.
    pub(super) fn after(self, failed: Option<&Self>) -> String {
        match failed {
            Some(failed) if !self.has_failed => {
                format!("{}; before that, {}", self.words, failed.words).chars().take(LONGEST).collect()
            }
            _ => self.words,
        }
    }
}

/// Nothing when nothing is wrong. `unanswered`: interfaces that wait for an address, which is no problem yet.
pub(super) fn unhealthy(
    status: &Status,
    services: &[init_control::ServiceStatus],
    containers: &[ContainerStatus],
    unanswered: &[String],
) -> Option<Wrong> {
    if status.health == Health::Healthy && unanswered.is_empty() {
        return None;
    }
    let told = |name: &str| status.problems.iter().any(|problem| problem.subject == name);
    let unanswered = unanswered.iter().filter(|name| !told(name));
    let unanswered = unanswered.map(|name| format!("{name}: no answer by DHCP yet"));
    let problems = status.problems.iter().map(|problem| format!("{}: {}", problem.subject, problem.message));
    let waiting = services
        .iter()
        .filter(|service| service.required && service.state != init_control::ServiceState::Ready)
        .map(|service| match &service.last_exit {
            Some(exit) => format!("service {}: not ready, it ended with {exit}", service.name),
            None => format!("service {}: not ready", service.name),
        });
    // How a bootstrap container ended is judged where it was started.
    let lasting = containers.iter().filter(|container| container.kind != ContainerKind::BootstrapContainer);
    let late = lasting
        .filter(|container| container.essential && !container.is_up() && !told(&spec::key_of(container)))
        .map(late);
    let all: Vec<String> = problems.chain(unanswered).chain(waiting).chain(late).collect();
    let words = if all.is_empty() { "settings are not applied yet".to_owned() } else { all.join("; ") };
    let words = words.chars().take(LONGEST).collect();
    Some(Wrong { words, has_failed: !status.problems.is_empty() })
}

/// An essential container that is not up, and of which nothing else is told.
fn late(container: &ContainerStatus) -> String {
    let state = match (&container.waits_for, container.state) {
        (Some(other), _) => format!("waits for {other}"),
        (None, ContainerState::Running) => "its health check has not succeeded yet".to_owned(),
        (None, _) => "does not run yet".to_owned(),
    };
    let again = match container.restarts {
        0 => String::new(),
        count => format!(", started again {count} times"),
    };
    format!("{}: {state}{again}", spec::key_of(container))
}

/// The same, of what the API server says of the node (`GET /`): it knows more than the agent, whose part it has from the agent.
pub(super) fn unhealthy_by_api(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Root {
        status: Told,
    }
    #[derive(Deserialize)]
    struct Told {
        health: Health,
        problems: Vec<Problem>,
    }
    let Ok(Root { status: Told { health, problems } }) = serde_json::from_slice(answer) else {
        return Some("the API server does not say how the node is".to_owned());
    };
    if health == Health::Healthy {
        return None;
    }
    let words: Vec<String> =
        problems.iter().map(|problem| format!("{}: {}", problem.subject, problem.message)).collect();
    let words =
        if words.is_empty() { format!("the API server calls it {health:?}") } else { words.join("; ") };
    Some(words.chars().take(LONGEST).collect())
}

/// What a version said of itself.
pub(super) fn read_words(path: &Path, version: &str) -> Option<LastWords> {
    let data = files::read_bounded(path, LARGEST).ok()?;
    serde_json::from_slice(&data).ok().filter(|words: &LastWords| words.version == version)
}

/// Keeps what a version says of itself, or until when it is on trial.
pub(super) fn keep(path: &Path, what: &impl Serialize) {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        files::replace_durably(path, &serde_json::to_vec(what)?)
    };
    let written: std::io::Result<()> = write();
    if let Err(error) = written {
        eprintln!("<4>update: cannot write {}: {error}", path.display());
    }
}

/// What the start of a version means for an update that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AtStart {
    /// Nothing was tried yet. How far it really is.
    Unchanged(Step),
    /// This is the new version.
    OnTrial,
    /// The new version was tried, and this is the old one.
    RolledBack,
}

/// `tries`: of the new version's entry on the ESP; none when it has no entry, or a blessed one. The ESP decides and not the step, which
/// is written after it: a power cut may have come in between. `armed_before`: in another boot than this one.
pub(super) fn at_start(
    running: &str,
    progress: &Progress,
    tries: Option<Counter>,
    armed_before: bool,
) -> AtStart {
    match tries {
        _ if running == progress.version => AtStart::OnTrial,
        Some(Counter { done: 0, left: 1.. }) if !armed_before => AtStart::Unchanged(Step::Armed),
        Some(_) => AtStart::RolledBack,
        None if progress.step == Step::Staging => AtStart::Unchanged(Step::Staging),
        None => AtStart::Unchanged(Step::Staged),
    }
}

/// What the start before this one left in the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Why its kernel died.
    pub panic: Option<String>,
    /// It ended by its watchdog.
    pub by_watchdog: bool,
}

/// Why a version did not stay, from all that it left.
pub(super) fn reason(tries: Option<Counter>, words: Option<&LastWords>, left: &Left) -> String {
    if let Some(given_up) = words.and_then(|words| words.given_up.as_ref()) {
        return given_up.clone();
    }
    // What the last try left, else an earlier one.
    if let Some(panic) = left.panic.as_deref().or(words.and_then(|words| words.panic.as_deref())) {
        return format!("its kernel panicked: {panic}");
    }
    let times = match tries.map(|tries| tries.done) {
        Some(0) => {
            return "the boot loader passed it over: its kernel image on the ESP is damaged, or a VMM that loads the kernel itself took another".to_owned();
        }
        Some(1) => "once".to_owned(),
        Some(done) => format!("{done} times"),
        None => "some times".to_owned(),
    };
    let said = |words: &LastWords| {
        let unhealthy = words.unhealthy.as_ref().map_or("it was healthy", |unhealthy| unhealthy);
        format!("; {} s after its last start its agent said: {unhealthy}", words.uptime)
    };
    match words {
        _ if left.by_watchdog => format!(
            "it was tried {times} and hung: its watchdog restarted the machine, as PID 1 or the kernel did nothing for a minute{}",
            words.map(said).unwrap_or_default()
        ),
        Some(LastWords { uptime, unhealthy: Some(unhealthy), .. }) => format!(
            "it was tried {times} and restarted before it was healthy; {uptime} s after its last start it said: {unhealthy}"
        ),
        Some(LastWords { uptime, .. }) => format!(
            "it was tried {times} and restarted before it was healthy for long enough; {uptime} s after its last start it hung, lost its power, or was reset by its watchdog"
        ),
        None => format!(
            "it was tried {times} and never came as far as its agent: its kernel image does not start, its root does not verify, or PID 1 or the agent hangs or dies early"
        ),
    }
}

/// The line of a kernel's last words that says why it died, of what pstore keeps (kernel: `admin-guide/ramoops.rst`).
pub(super) fn panic_line(log: &str) -> Option<String> {
    let without_time = |line: &str| match line.split_once("] ") {
        Some((_, text)) => text.trim().to_owned(),
        None => line.trim().to_owned(),
    };
    let verity =
        log.lines().find(|line| line.contains("device-mapper: verity:") && line.contains("corrupted"));
    let panic = log.lines().rev().find(|line| line.contains("Kernel panic - not syncing"));
    let words: Vec<String> = verity.into_iter().chain(panic).map(without_time).collect();
    (!words.is_empty()).then(|| words.join("; ").chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { healthy_for: Duration::from_secs(10), deadline: Duration::from_secs(300) };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn armed() -> Progress {
        Progress {
            step: Step::Armed,
            version: "2".into(),
            from: "1".into(),
            root: "r".into(),
            uki: "u".into(),
            uki_sha256: "s".into(),
            way: None,
        }
    }

    #[test]
    fn healthy_for_long_enough_is_blessed_and_too_late_is_given_up() {
        assert_eq!(decide(LIMITS, seconds(5), Some(seconds(2)), ""), Decision::Wait);
        assert_eq!(decide(LIMITS, seconds(12), Some(seconds(2)), ""), Decision::Bless);
        assert_eq!(decide(LIMITS, seconds(299), None, "web fails"), Decision::Wait);
        let given_up = "it was not healthy within 300 s: web fails".to_owned();
        assert_eq!(decide(LIMITS, seconds(300), None, "web fails"), Decision::GiveUp(given_up));
        // Healthy at the deadline, if only just.
        assert_eq!(decide(LIMITS, seconds(301), Some(seconds(299)), ""), Decision::Wait);
    }

    #[test]
    fn what_a_start_means() {
        let tries = |left, done| Some(Counter { left, done });
        let start = |running, progress: &_, tries| at_start(running, progress, tries, false);
        assert_eq!(start("2", &armed(), tries(2, 1)), AtStart::OnTrial);
        assert_eq!(start("1", &armed(), tries(3, 0)), AtStart::Unchanged(Step::Armed));
        assert_eq!(start("1", &armed(), tries(0, 3)), AtStart::RolledBack);
        assert_eq!(start("1", &armed(), tries(0, 0)), AtStart::RolledBack);
        // The power went between the ESP and the journal: before a command had its effect, or after.
        let staged = Progress { step: Step::Staged, ..armed() };
        assert_eq!(start("1", &armed(), None), AtStart::Unchanged(Step::Staged));
        assert_eq!(start("1", &staged, tries(3, 0)), AtStart::Unchanged(Step::Armed));
        assert_eq!(start("1", &staged, tries(0, 3)), AtStart::RolledBack);
        assert_eq!(start("2", &staged, tries(2, 1)), AtStart::OnTrial);
        let staging = Progress { step: Step::Staging, ..armed() };
        assert_eq!(start("1", &staging, None), AtStart::Unchanged(Step::Staging));
        // It was to boot, and something else did.
        assert_eq!(at_start("1", &armed(), tries(3, 0), true), AtStart::RolledBack);
    }

    #[test]
    fn the_best_reason_that_there_is() {
        let tries = Some(Counter { left: 0, done: 3 });
        let never = Some(Counter { left: 3, done: 0 });
        let none = Left::default();
        let panic = |panic: &str| Left { panic: Some(panic.to_owned()), ..Left::default() };
        assert!(reason(never, None, &none).contains("passed it over"));
        let words = |unhealthy: Option<&str>, given_up: Option<&str>| LastWords {
            version: "2".into(),
            uptime: 7,
            unhealthy: unhealthy.map(str::to_owned),
            given_up: given_up.map(str::to_owned),
            panic: None,
        };
        let all = words(Some("web fails"), Some("not healthy within 9 s"));
        assert_eq!(reason(tries, Some(&all), &panic("p")), "not healthy within 9 s");
        assert_eq!(reason(tries, None, &panic("Kernel panic")), "its kernel panicked: Kernel panic");
        let died = LastWords { panic: Some("Kernel panic".into()), ..words(Some("web fails"), None) };
        assert_eq!(reason(tries, Some(&died), &none), "its kernel panicked: Kernel panic");
        let said = reason(tries, Some(&words(Some("web fails"), None)), &none);
        assert!(
            said.contains("3 times") && said.ends_with("7 s after its last start it said: web fails"),
            "{said}"
        );
        assert!(reason(tries, Some(&words(None, None)), &none).contains("watchdog"));
        let hung = Left { by_watchdog: true, ..Left::default() };
        let said = reason(tries, Some(&words(Some("web fails"), None)), &hung);
        assert!(
            said.contains("3 times and hung: its watchdog") && said.ends_with("said: web fails"),
            "{said}"
        );
        assert!(reason(tries, None, &hung).ends_with("did nothing for a minute"));
        // It gave itself up, and then hung.
        assert_eq!(reason(tries, Some(&all), &hung), "not healthy within 9 s");
        assert!(
            reason(Some(Counter { left: 2, done: 1 }), None, &none)
                .starts_with("it was tried once and never")
        );
    }

    #[test]
    fn what_failed_is_told_while_it_is_tried_again() {
        let failed = Wrong::failed("web: exit code 1".to_owned());
        let late = Wrong { words: "web: does not run yet".to_owned(), has_failed: false };
        assert_eq!(late.clone().after(None), "web: does not run yet");
        assert_eq!(late.after(Some(&failed)), "web: does not run yet; before that, web: exit code 1");
        let other = Wrong::failed("eth0: no address".to_owned());
        assert_eq!(other.after(Some(&failed)), "eth0: no address");
    }

    #[test]
    fn what_only_the_api_server_knows_counts_too() {
        let told = |health: &str, problems: &str| {
            unhealthy_by_api(
                format!(r#"{{"status": {{"health": "{health}", "problems": [{problems}], "more": 1}}}}"#)
                    .as_bytes(),
            )
        };
        let problem = r#"{"source": "api", "subject": "settings", "message": "generation 9 cannot be used", "hint": ""}"#;
        assert_eq!(told("healthy", ""), None);
        // A commit that is on trial: nothing is wrong.
        assert_eq!(told("healthy", problem), None);
        assert_eq!(told("degraded", problem).as_deref(), Some("settings: generation 9 cannot be used"));
        assert!(told("starting", "").is_some());
        assert!(unhealthy_by_api(b"{}").is_some());
    }

    #[test]
    fn a_kernels_last_words() {
        let log = "<4>[   1.2] device-mapper: verity: 253:2: data block 5 is corrupted\n<0>[    1.3] Kernel panic - not syncing: dm-verity device corrupted\n<4>[ 1.4] CPU: 0";
        let said = panic_line(log).unwrap();
        assert_eq!(
            said,
            "device-mapper: verity: 253:2: data block 5 is corrupted; Kernel panic - not syncing: dm-verity device corrupted"
        );
        assert_eq!(panic_line("all is well"), None);
    }

    #[test]
    fn last_words_of_another_version_are_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/words.json");
        let words = LastWords { version: "2".into(), uptime: 1, ..LastWords::default() };
        keep(&path, &words);
        assert_eq!(read_words(&path, "2"), Some(words));
        assert_eq!(read_words(&path, "3"), None);
    }
}
