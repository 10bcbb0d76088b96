//! At the start of the agent: what this boot means for an update that is under way; and, on trial, when this version is blessed or
//! given up.

use apiserver::client::{Endpoint, request};
use apiserver::updates::UpdateResult;
use hyper::Method;
use init_control::Request;
use init_control::trial::{LARGEST, LastWords, OnTrial};
use jiff::Timestamp;
use settings::Settings;
use std::cell::RefCell;
use std::fs::{self, File};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

use super::esp::Esp;
use super::journal::{Journal, Progress};
use super::loader;
use super::slots::Slots;
use super::trial::{
    AtStart, Decision, Left, Limits, Wrong, at_start, decide, keep, panic_line, read_words, reason,
    unhealthy, unhealthy_by_api,
};
use super::{Places, Updates};
use crate::clock::boottime_ms;
use crate::commit::API;
use crate::init;
use crate::node::Node;

const LOOK: Duration = Duration::from_millis(500);
/// How often what a version on trial says of itself is written, while it stays the same.
const SAY_AGAIN: Duration = Duration::from_secs(10);
const PSTORE: &str = "/sys/fs/pstore";
/// Bytes of what a kernel left.
const LARGEST_LOG: u64 = 256 << 10;
/// What the API server has for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failure to bless or to give up, which the next look would only repeat.
const FAILED_DELAY: Duration = Duration::from_secs(30);
const HEALTHY_FOR: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(300);

impl Limits {
    pub(super) fn of(settings: &Settings) -> Self {
        let updates = settings.updates.as_ref();
        let seconds = |value: Option<settings::Seconds>, otherwise| {
            value.map_or(otherwise, |seconds| Duration::from_secs(seconds.get().into()))
        };
        Self {
            healthy_for: seconds(updates.and_then(|updates| updates.healthy_for), HEALTHY_FOR),
            deadline: seconds(updates.and_then(|updates| updates.healthy_within), DEADLINE),
        }
    }
}

/// Runs until this version is blessed or given up. Within a `LocalSet`. `settings`: what is applied; it is called when
/// something is.
pub async fn watch(updates: Updates, node: Rc<RefCell<Node>>, settings: impl Fn() -> Option<Settings>) {
    let places = &updates.places;
    let left = Left {
        panic: last_panic(Path::new(PSTORE)),
        by_watchdog: init::status().await.is_ok_and(|status| status.restarted_by_watchdog),
    };
    let running = match places.image() {
        Ok(image) => image.version,
        Err(error) => return eprintln!("<3>update: {error}"),
    };
    match started(places, &running, &left) {
        Ok(true) => {}
        Ok(false) => {
            // A power cut soon after it was blessed may have brought back what PID 1 restarts the node for.
            places.end_trial(&running);
            return loader::renew();
        }
        Err(error) => return eprintln!("<3>update: what this start means for it cannot be told: {error}"),
    }
    eprintln!("<5>update: {running} is on trial until it has been healthy for a while");
    // What an earlier try of this version left is kept for the version before: in the kernel's memory it is gone once it was read.
    let panic = left.panic.or_else(|| read_words(&places.last_words(), &running)?.panic);
    let mut limits = Limits::of(&Settings::default());
    let mut told = None;
    let mut healthy_since = None;
    let mut said: Option<LastWords> = None;
    let mut failed: Option<Wrong> = None;
    loop {
        let now = Duration::from_millis(boottime_ms());
        let wrong = what_is_wrong(&node).await;
        let problem = wrong.clone().map(|wrong| wrong.after(failed.as_ref()));
        failed = wrong.filter(|wrong| wrong.has_failed).or(failed);
        healthy_since = problem.is_none().then(|| healthy_since.unwrap_or(now));
        let mut words = LastWords {
            version: running.clone(),
            uptime: now.as_secs(),
            unhealthy: problem.clone(),
            given_up: None,
            panic: panic.clone(),
        };
        // While something is applied they are not to be had: those of before hold.
        if let Some(settings) = settings() {
            limits = Limits::of(&settings);
            if told.replace(limits) != Some(limits) {
                places.put_on_trial(&running, limits);
            }
        }
        match decide(limits, now, healthy_since, problem.as_deref().unwrap_or_default()) {
            Decision::Wait => {
                let is_news = said.as_ref().is_none_or(|said| {
                    said.unhealthy != words.unhealthy || said.uptime + SAY_AGAIN.as_secs() <= words.uptime
                });
                if is_news {
                    keep(&places.last_words(), &words);
                    said = Some(words);
                }
            }
            Decision::Bless => match bless(places, &running) {
                Ok(()) => {
                    eprintln!("<5>update: {running} is healthy, and stays");
                    return loader::renew();
                }
                Err(error) => {
                    eprintln!("<3>update: {running} cannot be blessed: {error}");
                    sleep(FAILED_DELAY).await;
                }
            },
            Decision::GiveUp(reason) => {
                words.given_up = Some(reason.clone());
                keep(&places.last_words(), &words);
                match give_up(&running) {
                    Ok(Some(before)) => {
                        eprintln!("<3>update: {running} is given up, {before} boots instead: {reason}");
                        if let Err(error) = init::ask(&Request::Reboot).await {
                            eprintln!("<3>update: PID 1 does not restart the node: {error}");
                        }
                        return;
                    }
                    Ok(None) => {
                        places.end_trial(&running);
                        return eprintln!(
                            "<3>update: {running} stays, as there is no other version: {reason}"
                        );
                    }
                    Err(error) => {
                        eprintln!("<3>update: {running} cannot be given up: {error}");
                        sleep(FAILED_DELAY).await;
                    }
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// What keeps the node from being healthy, if anything does: as PID 1, the agent and the API server see it.
async fn what_is_wrong(node: &RefCell<Node>) -> Option<Wrong> {
    let own = match init::status().await {
        Ok(status) => {
            let mut node = node.borrow_mut();
            let containers = node.containers.statuses();
            unhealthy(&node.status(&status), &status.services, &containers, &node.unanswered)
        }
        Err(error) => Some(Wrong::failed(format!("PID 1 does not answer: {error}"))),
    };
    if own.is_some() {
        return own;
    }
    // It knows what of the settings could not be read.
    let answer =
        request(&Endpoint::Unix(API.into()), Method::GET, "/?prefix=status", Vec::new(), PATIENCE).await;
    let words = match answer {
        Ok(answer) if answer.is_success() => unhealthy_by_api(&answer.body),
        Ok(answer) => {
            Some(format!("the API server answers with status {}: {}", answer.status, answer.text()))
        }
        Err(error) => Some(format!("the API server does not answer: {error}")),
    };
    words.map(Wrong::failed)
}

/// Whether this version is on trial. An update that was tried and is not what runs is ended, with the reason.
fn started(places: &Places, running: &str, left: &Left) -> Result<bool, String> {
    let mut journal = Journal::read(&places.journal());
    let slots = match Slots::find() {
        Ok(slots) => slots,
        // A root that is on no slot cannot be on trial.
        Err(_) if journal.progress.is_none() => return Ok(false),
        Err(error) => return Err(error),
    };
    let esp = Esp::mount(&slots.esp.device)?;
    let own = esp.entries.of(running)?;
    let is_counted = own.as_ref().is_some_and(|entry| entry.name.counter().is_some());
    let Some(progress) = journal.progress.clone() else { return Ok(is_counted) };
    let entry = esp.entries.of(&progress.version)?;
    let tries = entry.as_ref().and_then(|entry| entry.name.counter());
    match at_start(running, &progress, tries, places.was_armed_before(&progress.version)) {
        AtStart::Unchanged(step) => {
            if step != progress.step {
                journal.progress = Some(Progress { step, ..progress });
                journal.write(&places.journal())?;
            }
            Ok(is_counted)
        }
        AtStart::OnTrial if is_counted => Ok(true),
        // Blessed, and the power went before the journal said so.
        AtStart::OnTrial => {
            journal.end(UpdateResult::Good, None, Timestamp::now().to_string());
            journal.write(&places.journal())?;
            Ok(false)
        }
        AtStart::RolledBack => {
            let words = read_words(&places.last_words(), &progress.version);
            let why = reason(tries, words.as_ref(), left);
            eprintln!("<3>update: {} did not stay, {running} runs again: {why}", progress.version);
            if let Some(entry) = &entry {
                esp.entries.give_up(entry)?;
            }
            journal.end(UpdateResult::RolledBack, Some(why), Timestamp::now().to_string());
            journal.write(&places.journal())?;
            places.end_trial(&progress.version);
            Ok(is_counted)
        }
    }
}

impl Places {
    /// PID 1 restarts the node if this version is neither blessed nor given up in time.
    pub(super) fn put_on_trial(&self, version: &str, limits: Limits) {
        let until = limits.at_the_latest().as_secs();
        let written_in = boot_id().unwrap_or_default();
        keep(&self.on_trial(), &OnTrial { version: version.to_owned(), until, written_in });
    }

    /// Whether a version was armed in another boot than this one.
    fn was_armed_before(&self, version: &str) -> bool {
        self.trial_of(version).is_some_and(|trial| boot_id().is_some_and(|now| now != trial.written_in))
    }

    /// PID 1 lets this version be from now on, over power cuts too. That of another version stays.
    pub(super) fn end_trial(&self, version: &str) {
        if self.trial_of(version).is_none() {
            return;
        }
        let path = self.on_trial();
        let removed = fs::remove_file(&path).and_then(|()| File::open(&self.state)?.sync_all());
        if let Err(error) = removed {
            eprintln!(
                "<3>update: cannot remove {}, for which PID 1 restarts the node: {error}",
                path.display()
            );
        }
    }

    fn trial_of(&self, version: &str) -> Option<OnTrial> {
        let data = crate::files::read_bounded(&self.on_trial(), LARGEST).ok()?;
        serde_json::from_slice(&data).ok().filter(|trial: &OnTrial| trial.version == version)
    }
}

/// First the name on the ESP, which decides; then the journal.
fn bless(places: &Places, running: &str) -> Result<(), String> {
    let esp = Esp::mount(&Slots::find()?.esp.device)?;
    let own = esp.entries.of(running)?.ok_or("the ESP has no entry for it")?;
    esp.entries.bless(&own)?;
    let mut journal = Journal::read(&places.journal());
    journal.end(UpdateResult::Good, None, Timestamp::now().to_string());
    journal.write(&places.journal())?;
    let _ = fs::remove_file(places.last_words());
    places.end_trial(running);
    Ok(())
}

/// Gives what runs up, if there is another version; tells which.
fn give_up(running: &str) -> Result<Option<String>, String> {
    let esp = Esp::mount(&Slots::find()?.esp.device)?;
    let Some(before) = esp.entries.fallback(running)? else { return Ok(None) };
    if let Some(own) = esp.entries.of(running)? {
        esp.entries.give_up(&own)?;
    }
    Ok(Some(before.version))
}

fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// What a kernel said that died, if one did since it was looked at last.
fn last_panic(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten();
    let mut found = None;
    for entry in names {
        if let Ok(data) = crate::files::read_bounded(&entry.path(), LARGEST_LOG) {
            found = found.or_else(|| panic_line(&String::from_utf8_lossy(&data)));
        }
        // Looked at: the next one is a new one.
        let _ = fs::remove_file(entry.path());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_of_a_version_is_ended_and_that_of_another_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places { state: folder.path().join("updates"), ..Places::default() };
        let limits = Limits::of(&Settings::default());
        places.put_on_trial("2", limits);
        // The version before has started: what it armed is still to be tried.
        places.end_trial("1");
        let trial = places.trial_of("2").unwrap();
        assert_eq!(trial.until, 330);
        assert!(!places.was_armed_before("2"));
        places.end_trial("2");
        assert_eq!(places.trial_of("2"), None);
        places.end_trial("2");
    }
}
