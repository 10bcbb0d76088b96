//! The control socket of PID 1, `/run/init.sock` (root only, 0600): one JSON [`Request`] on a line, one JSON
//! [`Response`] on a line, then the connection closes. A line is at most 64 KiB.

pub mod trial;

use serde::{Deserialize, Serialize};

/// Where PID 1 listens.
pub const SOCKET: &str = "/run/init.sock";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// State of the whole node as PID 1 sees it.
    Status,
    /// Stop and start one service; start one that is off.
    Restart { service: String },
    /// Stop one service that is started only when it is asked for; it stays off until it is asked for again.
    Stop { service: String },
    /// Turns the sockets of a switch (`when` of a service file) on or off. When that changes anything, the service that has them
    /// is stopped and started. A switch that the VMM turned on stays on.
    Switch { name: String, on: bool },
    /// Orderly reboot; answered before it begins.
    Reboot,
    /// Orderly power-off; answered before it begins.
    PowerOff,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Response {
    Status(NodeStatus),
    Done,
    Error { message: String },
}

/// The node as PID 1 sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeStatus {
    pub services: Vec<ServiceStatus>,
    /// What is wrong and stays wrong until someone acts: a missing data partition, a file system that could not grow.
    pub problems: Vec<Problem>,
    /// What data is kept on: `ext4`, or `tmpfs` when there is no usable data partition.
    pub data: String,
    pub state: String,
    pub machine_id: String,
    /// Milliseconds of CLOCK_BOOTTIME at which each phase of the boot ended, in order.
    pub phases: Vec<(String, u64)>,
    /// The start before this one ended by the watchdog, as far as that tells.
    #[serde(default)]
    pub restarted_by_watchdog: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServiceStatus {
    pub name: String,
    pub state: ServiceState,
    pub pid: Option<u32>,
    /// Times that the service was started again after it ended.
    pub restarts: u32,
    /// How it ended last, in words: `exit code 1`, `signal 9 (SIGKILL)`.
    pub last_exit: Option<String>,
    /// Milliseconds of CLOCK_BOOTTIME at which it first was ready.
    pub ready_at_ms: Option<u64>,
    pub required: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    Waiting,
    Starting,
    Ready,
    BackOff,
    Stopping,
    Done,
    Failed,
}

/// Something a person has to know about, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    /// Who says so: `init`, `user-data`, `containers`, `network`, `apply`, `space`, `time`.
    pub source: String,
    /// What it is about: a settings key, a device, a container.
    pub subject: String,
    /// What was tried and why it failed.
    pub message: String,
    /// What to do.
    pub hint: String,
}
