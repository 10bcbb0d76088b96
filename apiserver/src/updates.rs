//! What a node says of updates of its system, in Bottlerocket's names (`GET /updates/status`).

use serde::{Deserialize, Serialize};

/// Whether there is something to install, and how looking for it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub update_state: UpdateState,
    /// Versions that the node may have, the newest first.
    pub available_updates: Vec<String>,
    /// What it would install.
    pub chosen_update: Option<Image>,
    pub active_partition: Option<Slot>,
    /// The slot that does not run, when what is in it is whole.
    pub staging_partition: Option<Slot>,
    pub most_recent_command: UpdateCommand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Idle,
    Available,
    /// It is in the spare slot, and does not boot yet.
    Staged,
    /// It boots next.
    Ready,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub arch: String,
    pub version: String,
    pub variant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub image: Image,
    pub next_to_boot: bool,
}

/// The last command that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateCommand {
    pub cmd_type: CommandType,
    pub cmd_status: CommandStatus,
    /// When it ended (RFC 3339).
    pub timestamp: String,
    /// 0, or 1 when it failed.
    pub exit_status: Option<i32>,
    /// Why it failed, with what to do.
    pub stderr: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandType {
    Refresh,
    Prepare,
    Activate,
    Deactivate,
    /// Ours.
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandStatus {
    Success,
    Failed,
}

/// How far an installation is (`GET /updates/progress`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateProgress {
    pub version: String,
    /// `patch`, `blocks` or `full`.
    pub way: String,
    /// Bytes that came over the network, of how many.
    pub received: u64,
    pub total: u64,
    /// Bytes of the new root that are written, of how many.
    pub written: u64,
    pub root: u64,
    /// Milliseconds since it began.
    pub elapsed_ms: u64,
}

/// What became of an update (`GET /updates/history`, the newest last).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpdateOutcome {
    pub version: String,
    /// What it replaced.
    pub from: String,
    pub result: UpdateResult,
    /// Why it was not good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// RFC 3339.
    pub at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateResult {
    Good,
    /// It was tried, and the node went back by itself.
    RolledBack,
    /// Somebody asked for the version before.
    Reverted,
}
