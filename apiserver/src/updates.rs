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
    /// What it found. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<UpdateOutput>,
}

/// What a command found, or did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOutput {
    /// How the chosen version would come, or came.
    Plan(UpdatePlan),
    /// What both slots hold.
    Slots(Vec<SlotReport>),
}

/// How a version comes to the spare slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpdatePlan {
    pub version: String,
    /// `patch`, `blocks` or `full`, of the root.
    pub way: String,
    /// Bytes to download for the root.
    pub root: u64,
    /// Bytes to download for the kernel image.
    pub kernel_image: u64,
}

impl UpdatePlan {
    /// Bytes to download.
    pub fn download(&self) -> u64 {
        self.root.saturating_add(self.kernel_image)
    }
}

/// What a slot holds, as its partitions were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlotReport {
    /// `a` or `b`.
    pub slot: String,
    /// Whether the node runs from it.
    pub runs: bool,
    /// None when no kernel image names what is in it.
    pub version: Option<String>,
    pub state: SlotState,
    /// What is damaged, and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotState {
    /// It hashes to the root that its kernel image names.
    Whole,
    Damaged,
    /// No kernel image on the ESP is of what is in it.
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandType {
    Refresh,
    Prepare,
    Activate,
    Deactivate,
    /// Ours, from here on.
    Rollback,
    /// How it would be prepared.
    Plan,
    /// Reads both slots back.
    Verify,
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
    /// `patch`, `blocks` or `full`; `read` while both slots are read back.
    pub way: String,
    /// Bytes that came over the network, of how many.
    pub received: u64,
    pub total: u64,
    /// Bytes of the new root that are written (of the slots, that were read), of how many.
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
    /// How it came: `patch`, `blocks` or `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
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
