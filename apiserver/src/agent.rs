//! What the API server asks of the host agent, over `/run/host-agent.sock` (0660, root:api; the agent admits uid 0 and
//! uid 274 only): one JSON [`Request`] on a line, one JSON [`Response`] on a line, then the connection closes.
//! A request is at most 4 MiB long, an answer 8 MiB.

use serde::{Deserialize, Serialize};
use settings::Settings;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::client::connect_unix;

/// Where the host agent listens.
pub const SOCKET: &str = "/run/host-agent.sock";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Make the node match `settings` (the effective ones: defaults and generation merged). `keys` are the dotted names
    /// that changed (`settings.motd`); empty means all. Answered when done.
    Apply {
        generation: u64,
        keys: Vec<String>,
        settings: Box<Settings>,
    },
    /// Health, problems, boot times.
    Status,
    /// Services as PID 1 knows them.
    Services,
    Containers,
    /// The last `lines` lines (all that is kept, if `None`) that a container wrote.
    ContainerLogs {
        name: String,
        lines: Option<u32>,
    },
    Reboot,
    PowerOff,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Response {
    Apply(ApplyOutcome),
    Status(Status),
    Services {
        services: Vec<init_status::ServiceStatus>,
    },
    Containers {
        containers: Vec<ContainerStatus>,
    },
    Logs {
        text: String,
    },
    Done,
    /// `kind` decides the API's status code.
    Error {
        kind: ErrorKind,
        message: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// 404
    NotFound,
    /// 500
    Failed,
}

/// What became of an apply, step by step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ApplyOutcome {
    pub generation: u64,
    pub steps: Vec<ApplyStep>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ApplyStep {
    /// `motd`, `hostname`, `container NAME`.
    pub name: String,
    /// Why it failed; `None` when it is done.
    pub error: Option<String>,
}

/// Health of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub health: Health,
    pub problems: Vec<init_status::Problem>,
    pub machine_id: String,
    /// What state and data are kept on: `ext4`, or `tmpfs` when there is no usable partition.
    pub state: String,
    pub data: String,
    /// Milliseconds of CLOCK_BOOTTIME at which each phase of the boot ended, in order.
    pub boot_phases: Vec<(String, u64)>,
    /// Addresses in CIDR notation, by interface.
    pub addresses: std::collections::BTreeMap<String, Vec<String>>,
    /// Of the whole node, as `/proc/meminfo` has it.
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not yet all required services, settings and essential containers.
    Starting,
    Healthy,
    Degraded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerStatus {
    /// `NAME` of `settings.containers`, `host-containers.NAME`, `bootstrap-containers.NAME`.
    pub name: String,
    #[serde(default)]
    pub kind: ContainerKind,
    /// Whether it may do all that the node may.
    #[serde(default)]
    pub superpowered: bool,
    pub image: String,
    pub state: ContainerState,
    pub pid: Option<u32>,
    /// Exit code of the last run; 128 + n for signal n.
    pub exit_code: Option<i32>,
    /// Times it was started again since its settings last changed.
    pub restarts: u32,
    /// Milliseconds until the next start while in back-off, else the delay that the last restart waited.
    pub delay_ms: Option<u64>,
    /// Delays in milliseconds that the last restarts waited, oldest first, at most 16.
    pub delays_ms: Vec<u64>,
    /// Why it cannot run, with what to do.
    pub error: Option<String>,
    pub essential: bool,
    /// Milliseconds of CLOCK_BOOTTIME of the last start.
    pub started_at_ms: Option<u64>,
}

/// Which group of settings names a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerKind {
    #[default]
    Container,
    HostContainer,
    BootstrapContainer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    Pulling,
    Starting,
    Running,
    BackOff,
    Exited,
    Failed,
    Stopping,
}

pub use init_control as init_status;

/// The largest request, in bytes.
pub const LARGEST_LINE: u64 = 4 << 20;
/// The largest answer, in bytes: a log of 1 MiB, each byte of which JSON may write as six.
const LARGEST_ANSWER: u64 = 8 << 20;

/// Asks and waits for the answer, at most `patience`. An answer that came and is of no use is an error of the kind `InvalidData`.
pub async fn call(socket: &Path, request: &Request, patience: Duration) -> io::Result<Response> {
    let exchange = async {
        let mut stream = connect_unix(socket).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        BufReader::new(stream).take(LARGEST_ANSWER).read_until(b'\n', &mut answer).await?;
        if answer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection without an answer",
            ));
        }
        read_answer(&answer)
    };
    let too_late =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", patience.as_secs()));
    tokio::time::timeout(patience, exchange).await.unwrap_or_else(|_| Err(too_late()))
}

fn read_answer(answer: &[u8]) -> io::Result<Response> {
    let unusable = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if !answer.ends_with(b"\n") {
        return Err(unusable(match answer.len() as u64 >= LARGEST_ANSWER {
            true => format!("it is longer than {} MiB", LARGEST_ANSWER >> 20),
            false => "it is cut short".to_owned(),
        }));
    }
    serde_json::from_slice(answer).map_err(|error| unusable(error.to_string()))
}
