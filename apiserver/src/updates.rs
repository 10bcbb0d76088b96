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
    /// Always none: nothing is installed yet by this version.
    pub staging_partition: Option<Slot>,
    pub most_recent_command: UpdateCommand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Idle,
    Available,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandStatus {
    Success,
    Failed,
}
