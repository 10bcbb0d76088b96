//! The settings store: one TOML document for each generation.
//!
//! A commit writes `generation-NNNNNN.toml` beside, flushes it, renames it into place and flushes the folder, before it is
//! acknowledged: after a power cut there is the old generation or the new one, never a mix. A document with a wrong hash is set
//! aside as `.corrupt` and the generation before it is used.
//!
//! Beside a document may stand, written in the same way: `.outcome.json` (what became of applying it), and for one that was
//! committed on trial `.clock.json` (the time it has left) and `.confirmed.json`. A trial is over when the generation is confirmed,
//! or is not the newest any more: to take it back is a commit like any other.

#[cfg(test)]
mod cuts;
mod document;
mod files;
mod foreign;
mod migrations;
#[cfg(test)]
mod recorded;

pub use document::{Content, Generation, Head, Peer, Trial};
pub use files::{Files, Folder};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use settings::Settings;
use std::io;
use std::path::{Path, PathBuf};

use crate::agent::ApplyOutcome;
use crate::trial::{Clock, OnTrial};
use document::Unusable;

/// Generations that are kept.
pub const KEPT: usize = 100;

/// A generation as `GET /generations` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    #[serde(flatten)]
    pub head: Head,
    /// When it was confirmed, if it was on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmed>,
    /// What became of applying it; none when it was not applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ApplyOutcome>,
}

/// Who confirmed a generation that was on trial, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Confirmed {
    pub time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

/// Who commits what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub transaction: String,
    pub peer: Peer,
    pub os_version: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot write {path}: {error}", path = .path.display())]
    Write { path: PathBuf, error: io::Error },
    /// What is there is not known, so nothing may be written beside it: a number could be used twice.
    #[error("the settings folder cannot be read: {0}")]
    Unreadable(String),
    #[error("generation {number} cannot be used: {reason}")]
    Unusable { number: u64, reason: String },
    /// A commit over it would make it permanent.
    #[error("generation {0} is on trial")]
    OnTrial(u64),
    #[error("no generation is on trial")]
    NotOnTrial,
}

#[derive(Debug)]
pub struct Store<F: Files = Folder> {
    files: F,
    current: Option<Generation>,
    /// Set while the current generation is on trial.
    on_trial: Option<OnTrial>,
    /// The highest number ever seen, also of files that cannot be used.
    highest: u64,
    kept: usize,
    /// Why the folder could not be read. The store is empty then, and takes no commit.
    unreadable: Option<String>,
}

impl Store {
    /// Opens the store in a folder. Also returns what was found wrong, in words. A folder that cannot be read gives a store that
    /// is empty and takes nothing: a node must answer what is wrong with it.
    pub fn open(dir: &Path) -> (Self, Vec<String>) {
        Self::open_in(Folder::new(dir), KEPT)
    }
}

impl<F: Files> Store<F> {
    fn open_in(files: F, kept: usize) -> (Self, Vec<String>) {
        let names = files.names();
        let mut store = Self { files, current: None, on_trial: None, highest: 0, kept, unreadable: None };
        let problems = match names {
            Ok(names) => store.use_newest(names),
            Err(error) => {
                let reason = format!("{}: {error}", store.files.path("").display());
                let problem = format!(
                    "the settings folder cannot be read ({reason}): the defaults of the image hold, and nothing can be set"
                );
                store.unreadable = Some(reason);
                vec![problem]
            }
        };
        (store, problems)
    }

    /// Makes the newest generation that can be used the current one.
    fn use_newest(&mut self, names: Vec<String>) -> Vec<String> {
        let mut problems = Vec::new();
        // What a commit left that was cut before it was acknowledged.
        for name in names.iter().filter(|name| name.starts_with(NEW)) {
            let _ = self.files.remove(name);
        }
        self.highest = names.iter().filter_map(|name| number_of(name)).max().unwrap_or(0);
        let mut numbers = document_numbers(&names);
        while self.current.is_none() {
            let Some(number) = numbers.pop() else { break };
            match document::read(self.files.read(&document_name(number))) {
                Ok(generation) => self.current = Some(generation),
                Err(unusable) => problems.push(self.set_aside(number, unusable)),
            }
        }
        // What is used from now on must not be lost by the next power cut. A process that died before it flushed leaves such.
        if let Err(error) = self.files.flush_folder() {
            problems.push(format!("the settings folder cannot be flushed: {error}"));
        }
        self.on_trial = self.find_trial(&numbers);
        problems
    }

    fn set_aside(&self, number: u64, unusable: Unusable) -> String {
        let name = document_name(number);
        let (reason, place) = match unusable {
            Unusable::Damaged(reason) => {
                let aside = format!("generation-{number:06}.corrupt");
                let moved = self.files.rename(&name, &aside).is_ok();
                (reason, if moved { aside } else { name })
            }
            // It is whole: the version that wrote it, or the next start, can use it.
            Unusable::Unread(reason) => (reason, name),
        };
        let place = self.files.path(&place);
        format!(
            "generation {number} of the settings cannot be used ({reason}); the one before it is; its file is {}",
            place.display()
        )
    }

    /// The current generation's trial, if it is not over. `older` are the numbers of documents that may be gone back to.
    fn find_trial(&self, older: &[u64]) -> Option<OnTrial> {
        let Head { number, trial, .. } = &self.current.as_ref()?.head;
        let trial = trial.as_ref()?;
        if self.files.read(&confirmed_name(*number)).is_ok() {
            return None;
        }
        let left_ms = u64::from(trial.seconds) * 1000;
        let first = Clock { boot: trial.boot.clone(), deadline_ms: trial.deadline_ms, left_ms };
        let kept = self.files.read(&clock_name(*number)).ok();
        let clock = kept.and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or(first);
        let before = self.newest_of(older).map_or(0, |generation| generation.head.number);
        Some(OnTrial { generation: *number, before, seconds: trial.seconds, clock })
    }

    fn newest_of(&self, numbers: &[u64]) -> Option<Generation> {
        let read = |number: &u64| document::read(self.files.read(&document_name(*number))).ok();
        numbers.iter().rev().find_map(read)
    }

    /// Whether the folder could be read.
    pub fn usable(&self) -> Result<(), StoreError> {
        self.unreadable.clone().map_or(Ok(()), |reason| Err(StoreError::Unreadable(reason)))
    }

    /// What was committed last; nothing on a fresh node.
    pub fn content(&self) -> Content {
        self.current.as_ref().map(|generation| generation.content.clone()).unwrap_or_default()
    }

    /// Of that, what this version knows.
    pub fn settings(&self) -> Settings {
        self.current.as_ref().map(|generation| generation.content.settings.clone()).unwrap_or_default()
    }

    /// Dotted names of settings that a newer version of the OS set, and this one does not know.
    pub fn foreign_keys(&self) -> Vec<String> {
        self.current.as_ref().map(Generation::foreign_keys).unwrap_or_default()
    }

    /// The current generation's number; 0 when there is none.
    pub fn number(&self) -> u64 {
        self.current.as_ref().map_or(0, |generation| generation.head.number)
    }

    /// The current generation's trial, while it is on trial.
    pub fn on_trial(&self) -> Option<&OnTrial> {
        self.on_trial.as_ref()
    }

    /// Makes `content` the current generation. When this returns its number, the generation survives a power cut; when it
    /// fails, the old one stays. Refused while a generation is on trial.
    pub fn commit(
        &mut self,
        content: Content,
        origin: Origin,
        trial: Option<Trial>,
    ) -> Result<u64, StoreError> {
        match &self.on_trial {
            Some(on_trial) => Err(StoreError::OnTrial(on_trial.generation)),
            None => self.put(content, origin, trial),
        }
    }

    /// Commits again what was before the generation that is on trial; the newest before it that can be used.
    pub fn revert(&mut self, peer: Peer, os_version: String) -> Result<u64, StoreError> {
        let number = self.on_trial.as_ref().ok_or(StoreError::NotOnTrial)?.generation;
        let names = self.files.names().map_err(|error| StoreError::Unreadable(error.to_string()))?;
        let older: Vec<u64> = document_numbers(&names).into_iter().filter(|older| *older < number).collect();
        // The first generation is on trial: what was before is the defaults.
        let content = self.newest_of(&older).map(|generation| generation.content).unwrap_or_default();
        let origin = Origin { transaction: format!("revert-{number}"), peer, os_version };
        self.put(content, origin, None)
    }

    /// Ends a trial: its generation stays, also after a power cut when this has returned.
    pub fn confirm(&mut self, peer: Peer) -> Result<u64, StoreError> {
        let number = self.on_trial.as_ref().ok_or(StoreError::NotOnTrial)?.generation;
        let confirmed = Confirmed { time: Timestamp::now().to_string(), uid: peer.uid, pid: peer.pid };
        self.write(&confirmed_name(number), &serde_json::to_vec(&confirmed).unwrap_or_default())?;
        self.on_trial = None;
        Ok(number)
    }

    /// Keeps how long a trial still has.
    pub fn keep_clock(&mut self, clock: Clock) -> Result<(), StoreError> {
        let Some(on_trial) = &mut self.on_trial else { return Err(StoreError::NotOnTrial) };
        let (name, data) = (clock_name(on_trial.generation), serde_json::to_vec(&clock).unwrap_or_default());
        // It holds also when it cannot be written.
        on_trial.clock = clock;
        self.write(&name, &data)
    }

    fn put(&mut self, content: Content, origin: Origin, trial: Option<Trial>) -> Result<u64, StoreError> {
        self.usable()?;
        let (before, number) = (self.number(), self.highest + 1);
        let Origin { transaction, peer: Peer { uid, pid }, os_version } = origin;
        let time = Timestamp::now().to_string();
        let head = Head { number, time, transaction, uid, pid, os_version, trial };
        let generation = Generation { head, content };
        let name = document_name(number);
        let text = document::write(&generation).map_err(|error| StoreError::Write {
            path: self.files.path(&name),
            error: io::Error::other(error),
        })?;
        self.write(&name, text.as_bytes())?;
        self.highest = number;
        self.on_trial = generation.head.trial.as_ref().map(|trial| OnTrial::begin(number, before, trial));
        self.current = Some(generation);
        self.prune();
        Ok(number)
    }

    /// Keeps what became of applying a generation. Losing it loses no setting.
    pub fn record_outcome(&self, outcome: &ApplyOutcome) -> Result<(), StoreError> {
        self.usable()?;
        // The defaults alone: there is no document that an outcome could be of.
        if outcome.generation == 0 {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(outcome).unwrap_or_default();
        self.write(&outcome_name(outcome.generation), text.as_bytes())
    }

    /// The generations that are kept, the newest first.
    pub fn list(&self) -> Vec<Listed> {
        let numbers = document_numbers(&self.files.names().unwrap_or_default());
        let listed = |number| {
            let head = document::read_head(self.files.read(&document_name(number))).ok()?;
            let confirmed = head.trial.as_ref().and_then(|_| self.confirmed(number));
            Some(Listed { head, confirmed, outcome: self.outcome(number) })
        };
        numbers.into_iter().rev().filter_map(listed).collect()
    }

    /// One generation with its settings; none when it is not kept.
    pub fn generation(&self, number: u64) -> Result<Option<Generation>, StoreError> {
        self.usable()?;
        let data = self.files.read(&document_name(number));
        if data.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        document::read(data).map(Some).map_err(|unusable| {
            let (Unusable::Damaged(reason) | Unusable::Unread(reason)) = unusable;
            StoreError::Unusable { number, reason }
        })
    }

    /// What became of applying a generation, where that is known.
    pub fn outcome(&self, number: u64) -> Option<ApplyOutcome> {
        serde_json::from_slice(&self.files.read(&outcome_name(number)).ok()?).ok()
    }

    /// Who confirmed a generation, if it was on trial and somebody did.
    pub fn confirmed(&self, number: u64) -> Option<Confirmed> {
        serde_json::from_slice(&self.files.read(&confirmed_name(number)).ok()?).ok()
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<(), StoreError> {
        let new = format!("{NEW}{name}");
        let written = (|| {
            let file = self.files.write(&new, data)?;
            self.files.flush(&file)?;
            self.files.rename(&new, name)?;
            self.files.flush_folder()
        })();
        written.map_err(|error| {
            // Nor may a restart find it in place, when only flushing the folder failed.
            let _ = self.files.remove(&new);
            let _ = self.files.remove(name);
            StoreError::Write { path: self.files.path(name), error }
        })
    }

    fn prune(&self) {
        let numbers = document_numbers(&self.files.names().unwrap_or_default());
        let surplus = numbers.len().saturating_sub(self.kept);
        for number in numbers.into_iter().take(surplus) {
            for name in [document_name, outcome_name, clock_name, confirmed_name] {
                let _ = self.files.remove(&name(number));
            }
        }
    }
}

impl Generation {
    /// Dotted names of settings that this version does not know.
    pub fn foreign_keys(&self) -> Vec<String> {
        foreign::keys(&self.content.foreign)
    }
}

impl Content {
    /// The content of a commit: `next`, and what this version does not know, without what was removed by name.
    #[must_use]
    pub fn followed_by<'a>(&self, next: Settings, removed: impl Iterator<Item = &'a str>) -> Self {
        let foreign = foreign::carried(&self.foreign, removed, &next);
        Self { settings: next, foreign }
    }
}

/// What is written and not in place yet.
const NEW: &str = ".new-";

/// In order.
fn document_numbers(names: &[String]) -> Vec<u64> {
    let documents = names.iter().filter(|name| name.ends_with(".toml"));
    let mut numbers: Vec<u64> = documents.filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    numbers
}

fn document_name(number: u64) -> String {
    format!("generation-{number:06}.toml")
}

fn outcome_name(number: u64) -> String {
    format!("generation-{number:06}.outcome.json")
}

fn clock_name(number: u64) -> String {
    format!("generation-{number:06}.clock.json")
}

fn confirmed_name(number: u64) -> String {
    format!("generation-{number:06}.confirmed.json")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("generation-")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::document::{SUM, sum};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::fs;

    fn motd(text: &str) -> Settings {
        settings::from_json(&json!({"motd": text})).unwrap()
    }

    fn origin() -> Origin {
        let peer = Peer { uid: Some(0), pid: Some(7) };
        Origin { transaction: "default".to_owned(), peer, os_version: "0.1.0".to_owned() }
    }

    fn put(store: &mut Store, settings: Settings) -> Result<u64, StoreError> {
        store.commit(Content { settings, ..Content::default() }, origin(), None)
    }

    fn trial() -> Option<Trial> {
        Some(Trial { seconds: 60, boot: "boot".to_owned(), deadline_ms: 61_000 })
    }

    fn two_generations(dir: &Path) -> Store {
        let (mut store, problems) = Store::open(dir);
        assert!(problems.is_empty());
        assert_eq!(put(&mut store, motd("one")).unwrap(), 1);
        assert_eq!(put(&mut store, motd("two")).unwrap(), 2);
        store
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        let (store, problems) = Store::open(dir.path());
        assert_eq!((store.settings(), store.number(), problems), (motd("two"), 2, Vec::new()));
    }

    #[test]
    fn every_prefix_of_a_torn_document_gives_the_generation_before() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        let path = dir.path().join(document_name(2));
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (store, problems) = Store::open(dir.path());
            assert_eq!(store.settings(), motd("one"), "at {length}");
            assert_eq!(problems.len(), 1);
            fs::remove_file(path.with_extension("corrupt")).unwrap();
        }
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        let path = dir.path().join(document_name(2));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            let (store, _) = Store::open(dir.path());
            assert_eq!(store.settings(), motd("one"), "at {at}");
            let _ = fs::remove_file(path.with_extension("corrupt"));
        }
    }

    /// Writes another document in the place of the newest.
    fn replace(dir: &Path, change: impl Fn(&str) -> String) -> PathBuf {
        let path = dir.join(document_name(2));
        let text = fs::read_to_string(&path).unwrap();
        let body = change(text.split_once(SUM).unwrap().0);
        fs::write(&path, format!("{body}{SUM}{}\n", sum(&body))).unwrap();
        path
    }

    #[test]
    fn settings_of_a_newer_version_are_carried_along_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        replace(dir.path(), |body| {
            let body = body.replace("format = 2", "format = 9\ncolour = \"blue\"");
            format!("{body}of-the-future = 1\n[settings.kernel]\nlockdown = \"both\"\n")
        });
        let (mut store, problems) = Store::open(dir.path());
        assert_eq!((store.settings(), store.number(), problems), (motd("two"), 2, Vec::new()));
        let keys = ["settings.kernel.lockdown", "settings.of-the-future"];
        assert_eq!(store.foreign_keys(), keys);
        assert_eq!(store.list().len(), 2);
        let next = store.content().followed_by(motd("three"), [].into_iter());
        store.commit(next, origin(), None).unwrap();
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(
            (store.settings(), store.foreign_keys()),
            (motd("three"), keys.map(str::to_owned).to_vec())
        );
        // Back and forth keeps them too.
        let content = store.generation(1).unwrap().unwrap().content;
        store.commit(content, origin(), None).unwrap();
        let content = store.generation(3).unwrap().unwrap().content;
        let next = content.followed_by(content.settings.clone(), ["settings.kernel"].into_iter());
        store.commit(next, origin(), None).unwrap();
        assert_eq!(Store::open(dir.path()).0.foreign_keys(), ["settings.of-the-future"]);
    }

    #[test]
    fn a_document_of_the_first_format_is_read() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        replace(dir.path(), |body| body.replace("format = 2\n", "").replace("pid = 7\n", ""));
        let (store, problems) = Store::open(dir.path());
        assert_eq!((store.settings(), store.number(), problems), (motd("two"), 2, Vec::new()));
        assert_eq!(store.list()[0].head.pid, None);
    }

    #[test]
    fn a_generation_that_cannot_be_understood_is_left_for_who_can() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        for spoil in [("transaction = ", "transaction = 5 # "), ("[settings]", "[options]")] {
            let dir = tempfile::tempdir().unwrap();
            two_generations(dir.path());
            let path = replace(dir.path(), |body| body.replace(spoil.0, spoil.1));
            let (store, problems) = Store::open(dir.path());
            assert_eq!(store.settings(), motd("one"));
            assert!(problems[0].contains("does not know it") && path.exists(), "{problems:?}");
        }
    }

    #[test]
    fn a_generation_on_trial_goes_back_unless_it_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = two_generations(dir.path());
        let on_trial = |text| Content { settings: motd(text), ..Content::default() };
        store.commit(on_trial("three"), origin(), trial()).unwrap();
        let reopened = Store::open(dir.path()).0;
        for mut store in [store, reopened] {
            let found = store.on_trial().unwrap();
            assert_eq!((found.generation, found.before, found.seconds), (3, 2, 60));
            let refused = put(&mut store, motd("other")).unwrap_err();
            assert!(matches!(refused, StoreError::OnTrial(3)), "{refused}");
        }
        let (mut store, _) = Store::open(dir.path());
        let clock = Clock { boot: "next".to_owned(), deadline_ms: 40_000, left_ms: 30_000 };
        store.keep_clock(clock.clone()).unwrap();
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(store.on_trial().unwrap().clock, clock);
        assert_eq!(store.revert(Peer::default(), "0.1.0".to_owned()).unwrap(), 4);
        assert_eq!((store.settings(), store.on_trial()), (motd("two"), None));
        let (mut store, _) = Store::open(dir.path());
        assert_eq!((store.settings(), store.on_trial()), (motd("two"), None));
        assert_eq!(store.list()[0].head.transaction, "revert-3");
        store.commit(on_trial("five"), origin(), trial()).unwrap();
        assert_eq!(store.confirm(origin().peer).unwrap(), 5);
        let (store, _) = Store::open(dir.path());
        assert_eq!((store.settings(), store.on_trial()), (motd("five"), None));
        assert_eq!(store.list()[0].confirmed.as_ref().unwrap().pid, Some(7));
    }

    #[test]
    fn what_comes_back_is_the_newest_that_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = two_generations(dir.path());
        let content = Content { settings: motd("three"), ..Content::default() };
        store.commit(content, origin(), trial()).unwrap();
        fs::write(dir.path().join(document_name(2)), "spoilt").unwrap();
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(store.on_trial().unwrap().before, 1);
        store.revert(Peer::default(), String::new()).unwrap();
        assert_eq!(store.settings(), motd("one"));
    }

    #[test]
    fn the_largest_settings_come_back() {
        let dir = tempfile::tempdir().unwrap();
        // TOML writes a quote or a control character in up to six bytes, and each table with its whole name.
        let env: serde_json::Map<_, _> =
            (0..4).map(|n| (format!("A{n}"), json!("\u{1}".repeat(10_000)))).collect();
        let mut containers = serde_json::Map::new();
        for number in 0..64 {
            let name = format!("{}{number}", "c".repeat(61));
            containers.insert(
                name,
                json!({"image": "a", "env": if number == 0 { env.clone() } else { Default::default() }}),
            );
        }
        let largest = settings::from_json(&json!({"containers": containers})).unwrap();
        largest.check().unwrap();
        let (mut store, _) = Store::open(dir.path());
        put(&mut store, largest.clone()).unwrap();
        assert_eq!(Store::open(dir.path()).0.settings(), largest);
    }

    #[test]
    fn a_generation_is_read_again_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = two_generations(dir.path());
        assert_eq!(store.generation(1).unwrap().unwrap().content.settings, motd("one"));
        assert!(store.generation(3).unwrap().is_none() && store.generation(0).unwrap().is_none());
        fs::write(dir.path().join(document_name(1)), "spoilt").unwrap();
        let error = store.generation(1).unwrap_err().to_string();
        assert_eq!(error, "generation 1 cannot be used: it is cut short");
        assert_eq!(store.list().iter().map(|listed| listed.head.number).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_comes_back(text in any::<String>().prop_map(|text| text.replace('\0', "")), secret in "[^\0]{0,40}") {
            let dir = tempfile::tempdir().unwrap();
            let env = json!({"A": secret});
            let web = json!({"image": "a", "command": [text], "env": env, "restart": "no", "memory": "64MiB", "pids": 65536, "essential": true});
            let all = settings::from_json(&json!({"motd": text, "containers": {"web": web, "b": {"image": "b"}}})).unwrap();
            put(&mut Store::open(dir.path()).0, all.clone()).unwrap();
            let (store, problems) = Store::open(dir.path());
            prop_assert_eq!((store.settings(), problems.len()), (all, 0));
            // The head of a document is found whatever its settings are.
            prop_assert_eq!(store.list().len(), 1);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_read_gives_an_empty_store_that_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let no_folder = dir.path().join("file");
        fs::write(&no_folder, "").unwrap();
        for path in [missing, no_folder] {
            let (mut store, problems) = Store::open(&path);
            assert_eq!((store.settings(), store.number()), (Settings::default(), 0));
            let path = path.display().to_string();
            assert!(problems.len() == 1 && problems[0].contains(&path), "{problems:?}");
            // Also when it is there by now: what else is in it is not known.
            let _ = fs::create_dir(&path);
            let error = put(&mut store, motd("x")).unwrap_err().to_string();
            assert!(error.contains("cannot be read") && error.contains(&path), "{error}");
        }
    }

    #[test]
    fn a_commit_that_was_cut_leaves_the_old_generation_and_no_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        fs::write(dir.path().join(".new-generation-000003.toml"), "half").unwrap();
        let (mut store, problems) = Store::open(dir.path());
        assert_eq!((store.settings(), problems.len()), (motd("two"), 0));
        assert_eq!(put(&mut store, motd("three")).unwrap(), 3);
        assert!(!dir.path().join(".new-generation-000003.toml").exists());
    }

    #[test]
    fn a_number_is_never_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        fs::write(dir.path().join(document_name(2)), "garbage").unwrap();
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(put(&mut store, motd("next")).unwrap(), 3);
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(put(&mut store, motd("after")).unwrap(), 4);
    }

    #[test]
    fn a_failed_commit_keeps_the_old_generation() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = two_generations(dir.path());
        // A folder in the way of the new file: root may write anywhere else.
        fs::create_dir(dir.path().join(".new-generation-000003.toml")).unwrap();
        let error = put(&mut store, motd("three")).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("generation-000003"), "{error}");
        assert_eq!((store.settings(), store.number()), (motd("two"), 2));
    }

    #[test]
    fn old_generations_go() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path());
        for number in 0..KEPT + 5 {
            let number = put(&mut store, motd(&number.to_string())).unwrap();
            store.record_outcome(&ApplyOutcome { generation: number, steps: Vec::new() }).unwrap();
        }
        let listed = store.list();
        assert_eq!(listed.len(), KEPT);
        assert_eq!(listed[0].head.number, (KEPT + 5) as u64);
        assert_eq!(listed[0].outcome.as_ref().unwrap().generation, (KEPT + 5) as u64);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT * 2);
    }
}
