//! What the API server asks of the host agent, over `/run/host-agent.sock` (0660, root:api; the agent admits uid 0 and
//! uid 274 only): one JSON [`Request`] on a line, one JSON [`Response`] on a line, then the connection closes.
//! A request is at most 4 MiB long, an answer 8 MiB.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use settings::{ImageReference, Settings, Step};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::client::connect_unix;
use crate::exec::frames::Size;
use crate::updates::{UpdateOutcome, UpdateProgress, UpdateStatus};

/// Where the host agent listens.
pub const SOCKET: &str = "/run/host-agent.sock";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Make the node match `settings` (the effective ones: defaults and generation merged). `keys` are the dotted names
    /// that are to be applied (`settings.motd`) beside those that differ from what was applied before; empty means all.
    /// Answered when done.
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
    /// What `GET /metrics` tells of the node.
    Metrics,
    /// What containers that run use.
    ContainerStats,
    /// The processes of a container that runs.
    ContainerProcesses {
        name: String,
    },
    /// One container, with what the runtime was told of it.
    InspectContainer {
        name: String,
    },
    /// What a container wrote, as much of it as an answer holds.
    ContainerLogs {
        name: String,
        start: LogStart,
    },
    /// The same, piece by piece, and what it writes from then on.
    FollowContainerLogs {
        name: String,
        from: LogFrom,
    },
    /// Stop, start, pause a container by hand. Answered when that begins.
    ContainerAction {
        name: String,
        action: ContainerAction,
    },
    Images {
        what: ImageRequest,
    },
    /// What is being pulled, by hand and for containers.
    Pulls,
    /// Answered with `Done` when the process runs; after that, frames of [`frames`](crate::exec::frames) go both ways.
    Exec(Exec),
    /// The same, with a process of the node's that carries files.
    Copy(Copy),
    UpdateStatus,
    /// Look for updates. Answered when that begins; how it went is in the status.
    RefreshUpdates,
    /// Write the chosen update to the spare slot. This and the next five are answered when they begin.
    PrepareUpdate,
    /// Let it boot next.
    ActivateUpdate,
    /// Let it not boot.
    DeactivateUpdate,
    /// Let the version before this one boot next.
    RollbackUpdate,
    /// Tell by which way it would come, and how many bytes.
    PlanUpdate,
    /// Read both slots back.
    VerifyUpdate,
    UpdateProgress,
    UpdateHistory,
    Reboot,
    PowerOff,
}

/// What is asked of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageRequest {
    List,
    Inspect(ImageReference),
    /// Pull one ahead of its use, and keep it until it is removed. Answered when that begins.
    Pull(ImageReference),
    Remove(ImageReference),
    /// Remove what no container has; with `all` also what is kept because it was pulled by hand.
    Prune {
        all: bool,
    },
}

/// A further process in a container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    pub name: String,
    pub command: Vec<String>,
    /// None without a terminal.
    pub terminal: Option<Size>,
    /// What it writes to stderr comes apart, and not in the order in which it was written. Never with a terminal.
    pub apart: bool,
    /// The user who asked for it, for the log; none from the host.
    pub asker: Option<u32>,
}

/// Files of a container that runs, as a tar stream: of its output, or of its input. What it says of them comes as what others write to
/// stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Copy {
    pub name: String,
    pub files: Files,
    /// As in [`Exec`].
    pub asker: Option<u32>,
}

/// Which files, and which way they go. Paths are the container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Files {
    /// Out of the container: what is there, and below that.
    From { path: String },
    /// Into it, as [`Place::find`](crate::files::unpack::Place::find) says.
    Into { path: String, is_contents: bool },
}

impl Files {
    pub fn path(&self) -> &str {
        match self {
            Self::From { path } | Self::Into { path, .. } => path,
        }
    }
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
    Metrics(Box<Metrics>),
    ContainerStats {
        containers: Vec<ContainerStats>,
    },
    ContainerProcesses(ContainerProcesses),
    Container(Box<ContainerDetails>),
    Logs {
        text: String,
    },
    NewLogs(NewLogs),
    Images {
        images: Vec<ImageStatus>,
    },
    Image(Box<ImageDetails>),
    Pulls {
        pulls: BTreeMap<String, PullProgress>,
    },
    RemovedImages {
        removed: Vec<RemovedImage>,
    },
    Updates {
        status: Box<UpdateStatus>,
    },
    UpdateProgress {
        progress: Option<UpdateProgress>,
    },
    UpdateHistory {
        outcomes: Vec<UpdateOutcome>,
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
    /// 409
    Conflict,
    /// 423
    Busy,
    /// 500
    Failed,
}

/// Which lines of a log are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogStart {
    /// Only so many of the last ones.
    pub lines: Option<u32>,
    /// From the first on that was written then or later, in milliseconds of the Unix epoch.
    pub since_ms: Option<i64>,
}

/// Where who follows a log is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFrom {
    Start(LogStart),
    After(LogPosition),
}

/// A place in one of a log's files; by default before the first line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogPosition {
    pub inode: u64,
    /// When the file was made.
    pub made_ns: u64,
    pub offset: u64,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NewLogs {
    pub text: String,
    /// To ask for what comes next.
    pub next: LogPosition,
    /// There may be more already.
    pub has_more: bool,
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
    /// Of a [`settings::Step`].
    pub name: String,
    /// Why it failed; `None` when it is done.
    pub error: Option<String>,
    /// Files that it made, and services that it restarted; those that it should have, when it failed.
    #[serde(default)]
    pub files: Vec<String>,
    #[serde(default)]
    pub services: Vec<String>,
    /// Nobody asked for it now: it failed before, and was tried again.
    #[serde(default)]
    pub again: bool,
}

impl ApplyStep {
    pub fn new(step: Step, error: Option<String>, again: bool) -> Self {
        let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        let (name, files, services) = (step.name().to_owned(), owned(step.files()), owned(step.services()));
        Self { name, error, files, services, again }
    }
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
    pub addresses: BTreeMap<String, Vec<String>>,
    pub time: TimeStatus,
    /// Of the whole node, as `/proc/meminfo` has it.
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    /// Whether the firmware runs only what is signed; none where there is no UEFI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
}

/// Figures of the node at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Metrics {
    pub status: Status,
    pub services: Vec<init_status::ServiceStatus>,
    pub containers: Vec<ContainerStatus>,
    /// Of CLOCK_BOOTTIME.
    pub uptime_ms: u64,
    /// By name, of those that have a control group.
    pub service_usage: BTreeMap<String, Usage>,
    pub container_usage: BTreeMap<String, Usage>,
    pub stalled: Vec<Stalled>,
}

/// What a control group has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// Microseconds of processors.
    pub cpu_us: u64,
    pub memory_bytes: u64,
}

/// What a container that runs uses, as its control group (cgroup v2) counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerStats {
    pub name: String,
    /// When it was looked at, in milliseconds of CLOCK_BOOTTIME.
    pub at_ms: u64,
    /// Microseconds of processors since its start.
    pub cpu_us: u64,
    /// With what it has of files in the page cache.
    pub memory_bytes: u64,
    /// The most that it was since its start.
    pub memory_peak_bytes: u64,
    /// `None`: as much as the node has.
    pub memory_limit_bytes: Option<u64>,
    /// How often it was held up because it had more than it should.
    pub memory_high_events: u64,
    /// Processes that the kernel killed because its memory was used up.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    pub pids_limit: Option<u64>,
    /// Of block devices since its start.
    pub io_read_bytes: u64,
    pub io_written_bytes: u64,
}

/// Processes of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerProcesses {
    /// By their numbers in the container.
    pub processes: Vec<ContainerProcess>,
    /// How many there are beside these.
    pub more: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerProcess {
    /// As the container sees it.
    pub pid: u32,
    /// As the node does.
    pub node_pid: u32,
    /// As the container sees it.
    pub uid: u32,
    /// A letter, as ps(1) has it: R runs, S sleeps, D waits for a disk, T is stopped, Z has ended.
    pub state: String,
    pub threads: u64,
    /// Milliseconds of processors since its start.
    pub cpu_ms: u64,
    /// What of its memory is there, as `VmRSS` counts it.
    pub memory_bytes: u64,
    /// With its arguments, as it says itself; its name in brackets when it says none. At most 1 KiB.
    pub command: String,
}

/// An image that the node has, or is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageStatus {
    /// As settings write it.
    pub reference: String,
    pub state: ImageState,
    /// Of its manifest.
    pub digest: Option<String>,
    /// What its files take on the disk.
    pub bytes: Option<u64>,
    /// RFC 3339.
    pub pulled_at: Option<String>,
    /// It was pulled by hand, and is kept until it is removed by hand.
    pub pinned: bool,
    /// Names of the containers whose settings name it.
    pub used_by: Vec<String>,
    /// Why it could not be pulled, or not pulled again.
    pub error: Option<String>,
    /// While its layers come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PullProgress {
    pub phase: PullPhase,
    /// Of its layers, as the registry keeps them; with what an attempt before had brought.
    pub bytes: u64,
    pub total_bytes: u64,
    pub layers: u64,
    pub total_layers: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPhase {
    Downloading,
    /// All layers are there.
    Unpacking,
}

impl PullProgress {
    /// Per cent of its bytes.
    pub fn share(&self) -> u64 {
        self.bytes.saturating_mul(100).checked_div(self.total_bytes).unwrap_or(100).min(100)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// It is part of the system.
    Preloaded,
    Pulled,
    /// By hand.
    Pulling,
    /// It was to be pulled by hand, and is not there.
    Failed,
    /// Nobody wants it any more. It is there for who goes back to it, until a week is over or space is tight.
    Unused,
}

/// An image, with what its maker says of it (OCI Image Specification 1.1, config.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageDetails {
    #[serde(flatten)]
    pub image: ImageStatus,
    pub created: Option<String>,
    pub architecture: Option<String>,
    pub os: Option<String>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
    pub ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// What its layers are before they are compressed, the lowest first.
    pub layers: Vec<String>,
}

/// An image that is gone from the disk, or what a broken pull of one had left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemovedImage {
    /// By what names it was known.
    pub references: Vec<String>,
    pub digest: String,
    /// False for what a broken pull had left.
    pub is_whole: bool,
    pub bytes: u64,
}

/// How long what ran was held up for the lack of something since the boot (PSI of the kernel).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stalled {
    /// `cpu`, `memory`, `io`.
    pub resource: String,
    /// `some` of it, or `full`: all of it at once.
    pub share: String,
    pub microseconds: u64,
}

/// The node's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TimeStatus {
    /// What set it last; `None` when the agent has just started.
    pub source: Option<ClockSource>,
    /// Whom the NTP client asks: those of the settings, or those of DHCP.
    pub servers: Vec<String>,
    /// Whether it follows them.
    pub synchronised: bool,
    /// Microseconds by which it may be off, while it is synchronised.
    pub largest_error_us: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockSource {
    /// The host's clock, as KVM shows it.
    PtpKvm,
    /// The machine's clock, as the kernel read it.
    Rtc,
    /// A moment at which it was synchronised before the node's start: the machine's clock is behind that.
    LastKnown,
    /// The image's release: nothing else is later.
    Image,
    Ntp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not yet all required services, settings and essential containers.
    Starting,
    Healthy,
    Degraded,
}

/// One container, and how it was started last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerDetails {
    #[serde(flatten)]
    pub status: ContainerStatus,
    /// Of the manifest of its image; none of an image that is part of the system, before a first start, and after one that came to nothing.
    pub image_digest: Option<String>,
    /// What the runtime was told (OCI Runtime Specification 1.2, config.md): of variables there are the names, of the seccomp profile no
    /// rules. Arguments are as they are. None before a first start, and if it is longer than 4 MiB.
    pub runtime: Option<Value>,
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
    /// What its health check says; `None` without one, and while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<ContainerHealth>,
    /// The container that it starts after, while that one does not run or is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// When it runs next by its schedule, RFC 3339; `None` while it runs, and without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run_at: Option<String>,
    /// What becomes of new settings, where one with them starts first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<ContainerUpdate>,
    /// What its settings call it, where several run of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_of: Option<String>,
    /// It is not started again when it has ended: what begins after it waits for its success.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runs_once: bool,
    /// Its own addresses, with networks of its own and while it runs; those of its first network come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// While the layers of its image come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
    /// Whose users its users are, as of its last start; `None` before that, and of one that looks after the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
}

/// Whether a container has users of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespace {
    /// It has: its user 0 is this one of the node, and so on for 65536.
    First(u32),
    /// They are the node's, for this reason.
    Off(String),
}

impl ContainerStatus {
    /// Whether it runs and, if it has a health check, is healthy.
    pub fn is_up(&self) -> bool {
        let is_healthy = |health: &ContainerHealth| health.state == ContainerHealthState::Healthy;
        self.state == ContainerState::Running && self.health.as_ref().is_none_or(is_healthy)
    }

    /// Whether what is to begin after it may: it is up, or has succeeded. One that runs once is to succeed.
    pub fn others_may_begin(&self) -> bool {
        let has_succeeded = self.state == ContainerState::Exited && self.exit_code == Some(0);
        has_succeeded || (self.is_up() && !self.runs_once)
    }
}

/// What becomes of the new settings of a container, while it runs on with those before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ContainerUpdate {
    /// One with them has begun, and is looked at.
    UnderWay,
    /// Others come first.
    Waiting,
    Refused {
        /// Why.
        error: String,
    },
}

/// Whether a container does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerHealth {
    pub state: ContainerHealthState,
    /// Failures in a row that count.
    pub failures: u32,
    /// Why the last check failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerHealthState {
    /// Its check has not succeeded yet, and not failed too often.
    Starting,
    Healthy,
    Unhealthy,
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
    /// By hand: its processes are there, and do nothing until it is let go on, or ends.
    Paused,
    BackOff,
    Exited,
    Failed,
    Stopping,
    /// By hand: it stays so until it is started by hand, its settings change, or the node restarts.
    Stopped,
    /// Its time has not come.
    Scheduled,
}

/// What a person does with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerAction {
    Stop,
    /// Nothing happens to one that runs, or is about to.
    Start,
    Restart,
    Pause,
    Unpause,
}

impl ContainerAction {
    /// As it stands in paths and on command lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        let all = [Self::Stop, Self::Start, Self::Restart, Self::Pause, Self::Unpause];
        all.into_iter().find(|action| action.word() == word)
    }
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
