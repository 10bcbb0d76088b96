//! How far an update is, and what became of earlier ones: kept on the disk, so that a restart at any point goes on from here.

use apiserver::updates::{UpdateOutcome, UpdateResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::files;

/// Bytes of the file.
const LARGEST: u64 = 256 << 10;
/// Outcomes that are kept.
const MOST_OUTCOMES: usize = 32;
/// Versions that failed and are remembered.
const MOST_FAILED: usize = 32;
/// Bytes of a reason.
const LONGEST_REASON: usize = 2000;

/// An update on its way. A slot that is being written is `Staging`; only what is `Armed` has tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Progress {
    pub step: Step,
    pub version: String,
    /// What it replaces.
    pub from: String,
    /// Root hash, in hexadecimal digits.
    pub root: String,
    /// What its entry is called, without a counter.
    pub uki: String,
    /// SHA-256 of the kernel image, in hexadecimal digits.
    pub uki_sha256: String,
    /// How it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    Staging,
    Staged,
    Armed,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Journal {
    pub progress: Option<Progress>,
    /// The newest last.
    pub outcomes: Vec<UpdateOutcome>,
    /// Root hashes that failed, and why: they are not tried again by themselves.
    pub failed: BTreeMap<String, String>,
}

impl Journal {
    /// What is kept. A journal that cannot be read is as one that is empty: the names on the ESP say what boots.
    pub(super) fn read(path: &Path) -> Self {
        match files::read_bounded(path, LARGEST) {
            Ok(data) => serde_json::from_slice(&data).unwrap_or_else(|error| {
                eprintln!("<3>what was kept of updates in {} cannot be read: {error}", path.display());
                Self::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                eprintln!("<3>cannot read {}: {error}", path.display());
                Self::default()
            }
        }
    }

    /// On the disk when this returns.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let write = || -> io::Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            files::replace_durably(path, &serde_json::to_vec(self)?)
        };
        write().map_err(|error| format!("cannot keep how far the update is in {}: {error}", path.display()))
    }

    /// Ends what is under way.
    pub(super) fn end(&mut self, result: UpdateResult, reason: Option<String>, at: String) {
        if let Some(Progress { version, from, root, way, .. }) = self.progress.take() {
            self.note(root, UpdateOutcome { version, from, result, way, reason, at });
        }
    }

    /// Notes what became of the version with this root hash.
    pub(super) fn note(&mut self, root: String, outcome: UpdateOutcome) {
        let shorten = |reason: String| reason.chars().take(LONGEST_REASON).collect::<String>();
        let outcome = UpdateOutcome { reason: outcome.reason.map(shorten), ..outcome };
        match outcome.result {
            UpdateResult::Good => drop(self.failed.remove(&root)),
            UpdateResult::RolledBack | UpdateResult::Reverted => {
                if self.failed.len() >= MOST_FAILED {
                    self.failed.pop_first();
                }
                self.failed.insert(root, outcome.reason.clone().unwrap_or_default());
            }
        }
        self.outcomes.push(outcome);
        let surplus = self.outcomes.len().saturating_sub(MOST_OUTCOMES);
        self.outcomes.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(root: &str) -> Progress {
        Progress {
            step: Step::Armed,
            version: "1.1.0".into(),
            from: "1.0.0".into(),
            root: root.into(),
            uki: "caisson_1.1.0.efi".into(),
            uki_sha256: "0".into(),
            way: None,
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_what_cannot_be_read_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("updates/journal.json");
        assert_eq!(Journal::read(&path), Journal::default());
        let journal = Journal { progress: Some(armed("a")), ..Journal::default() };
        journal.write(&path).unwrap();
        assert_eq!(Journal::read(&path), journal);
        std::fs::write(&path, "{\"progress\":7}").unwrap();
        assert_eq!(Journal::read(&path), Journal::default());
    }

    #[test]
    fn a_version_that_failed_is_remembered_until_it_is_good() {
        let mut journal = Journal { progress: Some(armed("a")), ..Journal::default() };
        journal.end(UpdateResult::RolledBack, Some("x".repeat(3000)), "t".into());
        assert_eq!((journal.progress.as_ref(), journal.failed["a"].len()), (None, LONGEST_REASON));
        journal.progress = Some(armed("a"));
        journal.end(UpdateResult::Good, None, "t".into());
        assert!(journal.failed.is_empty());
        for number in 0..100 {
            journal.progress = Some(armed(&number.to_string()));
            journal.end(UpdateResult::RolledBack, None, "t".into());
        }
        assert_eq!((journal.outcomes.len(), journal.failed.len()), (MOST_OUTCOMES, MOST_FAILED));
    }
}
