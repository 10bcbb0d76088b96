//! What was applied, so that it is applied once.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::Path;

use super::source::{Found, Source};
use crate::files;

pub(super) const RECORD: &str = "/state/agent/user-data.json";

/// What was applied at an earlier boot.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Record {
    sources: Vec<Applied>,
}

/// One source of it. A version before sources were merged kept only this, without the list.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Applied {
    /// For people.
    source: String,
    /// Of what was unpacked.
    sha256: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Versions {
    Now(Record),
    First(Applied),
}

impl Record {
    pub(super) fn of(found: &[Found]) -> Self {
        let applied =
            |found: &Found| Applied { source: found.source.to_string(), sha256: hash(&found.content) };
        Self { sources: found.iter().map(applied).collect() }
    }

    /// None when nothing was applied yet.
    pub(super) fn read(path: &Path) -> Option<Self> {
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(Self::parse(&read.unwrap_or_default())),
        }
    }

    /// A record that cannot be read still says that something was applied: to do so once more would undo what was set since.
    fn parse(data: &[u8]) -> Self {
        match serde_json::from_slice(data) {
            Ok(Versions::Now(record)) => record,
            Ok(Versions::First(applied)) => Self { sources: vec![applied] },
            Err(_) => Self { sources: Vec::new() },
        }
    }

    pub(super) fn keep(&self, path: &Path) -> io::Result<()> {
        files::replace_durably(path, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Sources that say what was not applied. One that is gone says nothing: people take the disk away.
    pub(super) fn differing<'a>(&self, found: &'a [Found]) -> impl Iterator<Item = &'a Source> {
        let is_applied = |found: &Found| {
            let hash = hash(&found.content);
            self.sources.iter().any(|applied| applied.sha256 == hash)
        };
        found.iter().filter(move |found| !is_applied(found)).map(|found| &found.source)
    }
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: Source, content: &str) -> Found {
        Found { source, content: content.into() }
    }

    #[test]
    fn what_changed_since_is_known_for_each_source() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        assert_eq!(Record::read(&path), None);
        let before = [found(Source::FwCfg, "a"), found(Source::NoCloud("vdb".to_owned()), "b")];
        Record::of(&before).keep(&path).unwrap();
        let record = Record::read(&path).unwrap();
        assert_eq!(record.differing(&before).count(), 0);
        // The disk has another name, and what fw_cfg says is gone.
        assert_eq!(record.differing(&[found(Source::NoCloud("vdc".to_owned()), "b")]).count(), 0);
        let now = [found(Source::FwCfg, "a2"), found(Source::NoCloud("vdb".to_owned()), "b")];
        assert_eq!(record.differing(&now).collect::<Vec<_>>(), [&Source::FwCfg]);
    }

    #[test]
    fn an_older_record_and_a_damaged_one_still_say_that_something_was_applied() {
        let sha256 = hash(b"a");
        let first = Record::parse(format!("{{\"source\":\"fw_cfg\",\"sha256\":\"{sha256}\"}}").as_bytes());
        assert_eq!(first, Record::of(&[found(Source::FwCfg, "a")]));
        let damaged = Record::parse(b"{\"sour");
        assert_eq!(damaged.differing(&[found(Source::FwCfg, "a")]).count(), 1);
    }
}
