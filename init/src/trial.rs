//! A new version whose host agent never runs gives nothing up. PID 1 then restarts the node when its time is over, which takes one of
//! its tries, and says what it knows; with no try left the version before boots.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::control::trial::{FOLDER, LARGEST, LAST_WORDS, LastWords, ON_TRIAL, OnTrial, version_of};
use crate::control::{ServiceState, ServiceStatus};

/// The version that runs, and where its trial is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    version: String,
    folder: PathBuf,
    /// Milliseconds after the kernel's start.
    until: u64,
}

impl Trial {
    /// Whether the version that runs is on trial. What cannot be read is no trial: a node is not restarted for that.
    pub fn begin() -> Option<Self> {
        let os_release = fs::read_to_string("/usr/lib/os-release").ok()?;
        Self::of(version_of(&os_release)?, Path::new(FOLDER))
    }

    fn of(version: &str, folder: &Path) -> Option<Self> {
        let kept: OnTrial = read(&folder.join(ON_TRIAL))?;
        (kept.version == version).then(|| Self {
            version: kept.version,
            folder: folder.to_owned(),
            until: kept.until.saturating_mul(1000),
        })
    }

    /// Milliseconds after the kernel's start at which to look again.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// At its end: none if it was ended in time, another time if the agent set one.
    pub fn again(&self) -> Option<Self> {
        Self::of(&self.version, &self.folder)
    }

    /// Keeps why the node is restarted for the version before, unless the agent has said why already.
    pub fn say(&self, reason: &str, now: u64) -> io::Result<()> {
        let path = self.folder.join(LAST_WORDS);
        let known = read::<LastWords>(&path).filter(|words| words.version == self.version);
        if known.as_ref().is_some_and(|words| words.given_up.is_some()) {
            return Ok(());
        }
        let words = LastWords {
            version: self.version.clone(),
            uptime: now.wrapping_div(1000),
            given_up: Some(reason.to_owned()),
            ..known.unwrap_or_default()
        };
        let new = self.folder.join("last-words.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&words)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Why a version was not blessed in time, as far as PID 1 knows.
pub fn reason(seconds: u64, services: &[ServiceStatus]) -> String {
    let missing = services.iter().filter(|service| {
        service.required && !matches!(service.state, ServiceState::Ready | ServiceState::Done)
    });
    let words: Vec<String> = missing
        .map(|service| match &service.last_exit {
            Some(exit) => format!("service {} is not ready, it ended with {exit}", service.name),
            None => format!("service {} is not ready", service.name),
        })
        .collect();
    let why = if !words.is_empty() {
        words.join("; ")
    } else if services.iter().any(|service| service.name == "host-agent") {
        "the host agent neither blessed it nor gave it up".to_owned()
    } else {
        "it has no host agent".to_owned()
    };
    format!("after {seconds} s PID 1 restarted it: {why}")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(LARGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(folder: &Path, version: &str, until: u64) {
        let trial = OnTrial { version: version.to_owned(), until, written_in: String::new() };
        fs::write(folder.join(ON_TRIAL), serde_json::to_vec(&trial).unwrap()).unwrap();
    }

    #[test]
    fn only_the_version_that_is_on_trial_is_and_until_it_was_ended() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Trial::of("2", folder.path()), None);
        kept(folder.path(), "2", 330);
        assert_eq!(Trial::of("1", folder.path()), None);
        let trial = Trial::of("2", folder.path()).unwrap();
        assert_eq!(trial.until(), 330_000);
        kept(folder.path(), "2", 400);
        assert_eq!(trial.again().unwrap().until(), 400_000);
        fs::write(folder.path().join(ON_TRIAL), "{").unwrap();
        assert_eq!(trial.again(), None);
    }

    #[test]
    fn what_the_agent_said_itself_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        kept(folder.path(), "2", 330);
        let trial = Trial::of("2", folder.path()).unwrap();
        trial.say("no agent", 331_000).unwrap();
        let words: LastWords = read(&folder.path().join(LAST_WORDS)).unwrap();
        assert_eq!((words.uptime, words.given_up.as_deref()), (331, Some("no agent")));
        let own = LastWords { given_up: Some("web fails".to_owned()), ..words };
        fs::write(folder.path().join(LAST_WORDS), serde_json::to_vec(&own).unwrap()).unwrap();
        trial.say("no agent", 340_000).unwrap();
        assert_eq!(read::<LastWords>(&folder.path().join(LAST_WORDS)), Some(own));
    }

    #[test]
    fn the_service_that_is_missing_is_named() {
        let service = |name: &str, state, exit: Option<&str>| ServiceStatus {
            name: name.to_owned(),
            state,
            pid: None,
            restarts: 0,
            last_exit: exit.map(str::to_owned),
            ready_at_ms: None,
            required: true,
        };
        let all = [
            service("apiserver", ServiceState::Ready, None),
            service("host-agent", ServiceState::BackOff, Some("exit code 1")),
        ];
        assert_eq!(
            reason(330, &all),
            "after 330 s PID 1 restarted it: service host-agent is not ready, it ended with exit code 1"
        );
        assert!(reason(330, &all[..1]).ends_with("it has no host agent"));
        let ready = [service("host-agent", ServiceState::Ready, None)];
        assert!(reason(330, &ready).ends_with("neither blessed it nor gave it up"));
    }
}
