//! The settings store: one TOML document for each generation.
//!
//! A commit writes `generation-NNNNNN.toml` beside, flushes it, renames it into place and flushes the folder, before it is
//! acknowledged: after a power cut there is the old generation or the new one, never a mix. The last line of a document is a hash
//! of the rest; one that does not match is set aside as `.corrupt` and the generation before it is used.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use settings::Settings;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::agent::ApplyOutcome;

/// Generations that are kept.
pub const KEPT: usize = 100;
/// No document of ours is larger; a larger file is not read.
const LARGEST: u64 = 4 << 20;

const SUM: &str = "# sha256 ";

/// One committed state of all settings (without the defaults).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Generation {
    pub number: u64,
    /// RFC 3339, UTC, by the node's clock.
    pub time: String,
    /// Name of the transaction that was committed.
    pub transaction: String,
    /// User id of who asked, where the connection tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    pub os_version: String,
    pub settings: Settings,
}

/// A generation as `GET /generations` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    pub number: u64,
    pub time: String,
    pub transaction: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    pub os_version: String,
    /// What became of applying it; none when it was not applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ApplyOutcome>,
}

/// What stands before the settings in a document: a list of a hundred generations must not read a hundred times all settings.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    number: u64,
    time: String,
    transaction: String,
    uid: Option<u32>,
    os_version: String,
}

/// Who commits what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub transaction: String,
    pub uid: Option<u32>,
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
}

#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    current: Option<Generation>,
    /// The highest number ever seen, also of files that cannot be used.
    highest: u64,
    /// Why the folder could not be read. The store is empty then, and takes no commit.
    unreadable: Option<String>,
}

impl Store {
    /// Opens the store in a folder. Also returns what was found wrong, in words. A folder that cannot be read gives a store that
    /// is empty and takes nothing: a node must answer what is wrong with it.
    pub fn open(dir: &Path) -> (Self, Vec<String>) {
        match numbers_in(dir) {
            Ok(numbers) => Self::newest_of(dir, numbers),
            Err(error) => {
                let reason = format!("{}: {error}", dir.display());
                let problem = format!(
                    "the settings folder cannot be read ({reason}): the defaults of the image hold, and nothing can be set"
                );
                let unreadable = Some(reason);
                (Self { dir: dir.to_owned(), current: None, highest: 0, unreadable }, vec![problem])
            }
        }
    }

    /// The store whose current generation is the newest that can be used, of the numbers of all files and of documents.
    fn newest_of(dir: &Path, numbers: Vec<(u64, bool)>) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let highest = numbers.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut usable: Vec<u64> =
            numbers.into_iter().filter_map(|(number, is_document)| is_document.then_some(number)).collect();
        usable.sort_unstable();
        let mut current = None;
        while let (None, Some(number)) = (&current, usable.pop()) {
            let path = dir.join(document_name(number));
            match read_document(&path) {
                Ok(generation) => current = Some(generation),
                Err(unusable) => {
                    let (reason, place) = match unusable {
                        Unusable::Damaged(reason) => {
                            let aside = path.with_extension("corrupt");
                            let moved = fs::rename(&path, &aside).is_ok();
                            (reason, if moved { aside } else { path })
                        }
                        // It is whole: the version that wrote it, or the next start, can use it.
                        Unusable::Unread(reason) => (reason, path),
                    };
                    problems.push(format!("generation {number} of the settings cannot be used ({reason}); the one before it is; its file is {}", place.display()));
                }
            }
        }
        (Self { dir: dir.to_owned(), current, highest, unreadable: None }, problems)
    }

    /// Whether the folder could be read.
    pub fn usable(&self) -> Result<(), StoreError> {
        self.unreadable.clone().map_or(Ok(()), |reason| Err(StoreError::Unreadable(reason)))
    }

    /// What was committed last; nothing on a fresh node.
    pub fn settings(&self) -> Settings {
        self.current.as_ref().map(|generation| generation.settings.clone()).unwrap_or_default()
    }

    /// The current generation's number; 0 when there is none.
    pub fn number(&self) -> u64 {
        self.current.as_ref().map_or(0, |generation| generation.number)
    }

    /// Makes `settings` the current generation. When this returns its number, the generation survives a power cut; when it
    /// fails, the old one stays.
    pub fn commit(&mut self, settings: Settings, origin: Origin) -> Result<u64, StoreError> {
        self.usable()?;
        let number = self.highest + 1;
        let generation = Generation {
            number,
            time: Timestamp::now().to_string(),
            transaction: origin.transaction,
            uid: origin.uid,
            os_version: origin.os_version,
            settings,
        };
        let name = document_name(number);
        let text = document(&generation).map_err(|error| StoreError::Write {
            path: self.dir.join(&name),
            error: io::Error::other(error),
        })?;
        self.write(&name, text.as_bytes())?;
        self.highest = number;
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
        let mut numbers = self.document_numbers();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let listed = |number| {
            let Head { number, time, transaction, uid, os_version } =
                read_head(&self.dir.join(document_name(number))).ok()?;
            Some(Listed { number, time, transaction, uid, os_version, outcome: self.outcome(number) })
        };
        numbers.into_iter().filter_map(listed).collect()
    }

    /// One generation with its settings; none when it is not kept.
    pub fn generation(&self, number: u64) -> Result<Option<Generation>, StoreError> {
        self.usable()?;
        let path = self.dir.join(document_name(number));
        if !path.exists() {
            return Ok(None);
        }
        match read_document(&path) {
            Ok(generation) => Ok(Some(generation)),
            Err(Unusable::Damaged(reason) | Unusable::Unread(reason)) => {
                Err(StoreError::Unusable { number, reason })
            }
        }
    }

    /// What became of applying a generation, where that is known.
    pub fn outcome(&self, number: u64) -> Option<ApplyOutcome> {
        let text = read_bounded(&self.dir.join(outcome_name(number))).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn document_numbers(&self) -> Vec<u64> {
        let names = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".toml")).filter_map(|name| number_of(&name)).collect()
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<(), StoreError> {
        let (new, path) = (self.dir.join(format!(".new-{name}")), self.dir.join(name));
        let written = (|| {
            let mut file = File::create(&new)?;
            file.write_all(data)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        })();
        written.map_err(|error| {
            // Nor may a restart find it in place, when only flushing the folder failed.
            let _ = fs::remove_file(&new);
            let _ = fs::remove_file(&path);
            StoreError::Write { path, error }
        })
    }

    fn prune(&self) {
        let mut numbers = self.document_numbers();
        numbers.sort_unstable();
        let surplus = numbers.len().saturating_sub(KEPT);
        for number in numbers.into_iter().take(surplus) {
            let _ = fs::remove_file(self.dir.join(document_name(number)));
            let _ = fs::remove_file(self.dir.join(outcome_name(number)));
        }
    }
}

/// The numbers of all files of generations, and whether each is a document. What a power cut left half written goes.
fn numbers_in(dir: &Path) -> io::Result<Vec<(u64, bool)>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".new-") {
            // A commit that was cut before it was acknowledged.
            let _ = fs::remove_file(&path);
        } else if let Some(number) = number_of(&name) {
            numbers.push((number, name.ends_with(".toml")));
        }
    }
    Ok(numbers)
}

fn document_name(number: u64) -> String {
    format!("generation-{number:06}.toml")
}

fn outcome_name(number: u64) -> String {
    format!("generation-{number:06}.outcome.json")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("generation-")?.split('.').next()?.parse().ok()
}

fn document(generation: &Generation) -> Result<String, toml::ser::Error> {
    let mut text = toml::to_string(generation)?;
    let sum = sum(&text);
    let _ = writeln!(text, "{SUM}{sum}");
    Ok(text)
}

/// Why a document is not used.
enum Unusable {
    /// A power cut or the disk has spoilt it.
    Damaged(String),
    /// It could not be read now, or not by this version.
    Unread(String),
}

fn sum(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

fn read_document(path: &Path) -> Result<Generation, Unusable> {
    parse(&read_body(path)?)
}

fn read_head(path: &Path) -> Result<Head, Unusable> {
    let body = read_body(path)?;
    // No value before it has a line of its own.
    let end = body.find("\n[settings").unwrap_or(body.len());
    parse(body.get(..end).unwrap_or_default())
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Unusable> {
    toml::from_str(text).map_err(|error| {
        Unusable::Unread(format!("this version of Caisson does not know it: {}", error.message()))
    })
}

/// The document without its last line, whose hash it has been held against.
fn read_body(path: &Path) -> Result<String, Unusable> {
    let damaged = |reason: &str| Unusable::Damaged(reason.to_owned());
    let text = read_bounded(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => damaged("it is not text"),
        _ => Unusable::Unread(error.to_string()),
    })?;
    let (body, last) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .ok_or_else(|| damaged("it is cut short"))?;
    let body = format!("{body}\n");
    match last.strip_prefix(SUM) {
        Some(expected) if expected == sum(&body) => Ok(body),
        Some(_) => Err(damaged("its checksum does not match")),
        None => Err(damaged("it is cut short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn motd(text: &str) -> Settings {
        settings::from_json(&json!({"motd": text})).unwrap()
    }

    fn origin() -> Origin {
        Origin { transaction: "default".to_owned(), uid: Some(0), os_version: "0.1.0".to_owned() }
    }

    fn two_generations(dir: &Path) -> Store {
        let (mut store, problems) = Store::open(dir);
        assert!(problems.is_empty());
        assert_eq!(store.commit(motd("one"), origin()).unwrap(), 1);
        assert_eq!(store.commit(motd("two"), origin()).unwrap(), 2);
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

    #[test]
    fn a_generation_of_another_version_is_left_for_it() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        let path = dir.path().join(document_name(2));
        let text = fs::read_to_string(&path).unwrap();
        let (body, _) = text.split_once(SUM).unwrap();
        let newer = format!("{body}of-the-future = 1\n");
        fs::write(&path, format!("{newer}{SUM}{}\n", sum(&newer))).unwrap();
        let (store, problems) = Store::open(dir.path());
        assert_eq!(store.settings(), motd("one"));
        assert!(problems[0].contains("does not know it") && path.exists(), "{problems:?}");
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
        store.commit(largest.clone(), origin()).unwrap();
        assert_eq!(Store::open(dir.path()).0.settings(), largest);
    }

    #[test]
    fn a_generation_is_read_again_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = two_generations(dir.path());
        assert_eq!(store.generation(1).unwrap().unwrap().settings, motd("one"));
        assert!(store.generation(3).unwrap().is_none() && store.generation(0).unwrap().is_none());
        fs::write(dir.path().join(document_name(1)), "spoilt").unwrap();
        let error = store.generation(1).unwrap_err().to_string();
        assert_eq!(error, "generation 1 cannot be used: it is cut short");
        assert_eq!(store.list().iter().map(|listed| listed.number).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_comes_back(text in any::<String>().prop_map(|text| text.replace('\0', "")), secret in "[^\0]{0,40}") {
            let dir = tempfile::tempdir().unwrap();
            let env = json!({"A": secret});
            let web = json!({"image": "a", "command": [text], "env": env, "restart": "no", "memory": "64MiB", "pids": 65536, "essential": true});
            let all = settings::from_json(&json!({"motd": text, "containers": {"web": web, "b": {"image": "b"}}})).unwrap();
            Store::open(dir.path()).0.commit(all.clone(), origin()).unwrap();
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
            let error = store.commit(motd("x"), origin()).unwrap_err().to_string();
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
        assert_eq!(store.commit(motd("three"), origin()).unwrap(), 3);
        assert!(!dir.path().join(".new-generation-000003.toml").exists());
    }

    #[test]
    fn a_number_is_never_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        fs::write(dir.path().join(document_name(2)), "garbage").unwrap();
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(store.commit(motd("next"), origin()).unwrap(), 3);
        let (mut store, _) = Store::open(dir.path());
        assert_eq!(store.commit(motd("after"), origin()).unwrap(), 4);
    }

    #[test]
    fn a_failed_commit_keeps_the_old_generation() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = two_generations(dir.path());
        // A folder in the way of the new file: root may write anywhere else.
        fs::create_dir(dir.path().join(".new-generation-000003.toml")).unwrap();
        let error = store.commit(motd("three"), origin()).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("generation-000003"), "{error}");
        assert_eq!((store.settings(), store.number()), (motd("two"), 2));
    }

    #[test]
    fn old_generations_go() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path());
        for number in 0..KEPT + 5 {
            let number = store.commit(motd(&number.to_string()), origin()).unwrap();
            store.record_outcome(&ApplyOutcome { generation: number, steps: Vec::new() }).unwrap();
        }
        let listed = store.list();
        assert_eq!(listed.len(), KEPT);
        assert_eq!(listed[0].number, (KEPT + 5) as u64);
        assert_eq!(listed[0].outcome.as_ref().unwrap().generation, (KEPT + 5) as u64);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT * 2);
    }
}
