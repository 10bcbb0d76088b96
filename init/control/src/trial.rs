//! What a version on trial and the version before it have to know of each other, on the state partition: the host agent writes it,
//! and PID 1 reads it for the case that the agent of a new version never runs.

use serde::{Deserialize, Serialize};

/// Below [`FOLDER`]: an [`OnTrial`].
pub const ON_TRIAL: &str = "on-trial.json";
/// Below [`FOLDER`]: a [`LastWords`].
pub const LAST_WORDS: &str = "last-words.json";
/// Where both are.
pub const FOLDER: &str = "/state/agent/updates";
/// Bytes that either of them may have.
pub const LARGEST: u64 = 16 << 10;

/// The version that is on trial, from before it is armed until it is blessed or was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OnTrial {
    pub version: String,
    /// Seconds after the kernel's start at which PID 1 restarts the node, if this is still there.
    pub until: u64,
    /// The boot in which this was written (`/proc/sys/kernel/random/boot_id`).
    #[serde(default)]
    pub written_in: String,
}

/// What a version on trial says of itself while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LastWords {
    pub version: String,
    /// Seconds after the kernel's start.
    pub uptime: u64,
    /// What kept it from being healthy; none when it was.
    pub unhealthy: Option<String>,
    /// Why it gave itself up.
    pub given_up: Option<String>,
    /// What its kernel said when an earlier try died.
    pub panic: Option<String>,
}

/// The version that an `os-release` file names (os-release(5)).
pub fn version_of(os_release: &str) -> Option<&str> {
    os_release_field(os_release, "VERSION_ID")
}

/// A field of an `os-release` file.
pub fn os_release_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.map(|value| value.trim_matches('"'))
}
