//! What agent and shim tell each other and the agent after a restart, as files in `/run/containers/NAME/`: in memory, so that
//! a boot begins anew.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::restart::Restarts;
use crate::files;

const RUN: &str = "/run/containers";

fn names() -> impl Iterator<Item = String> {
    let folders = fs::read_dir(RUN).into_iter().flatten().flatten();
    folders.filter_map(|folder| folder.file_name().into_string().ok())
}

/// The folder of one container in memory.
#[derive(Debug, Clone)]
pub struct Places {
    pub run: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    pub group: PathBuf,
    /// What lies ready for the runtime is mounted here. Nothing below it is removed with what is in it.
    pub mounts: PathBuf,
}

impl Places {
    pub fn of(name: &str) -> Self {
        Self {
            run: Path::new(RUN).join(name),
            data: Path::new("/data/containers").join(name),
            log: Path::new("/data/log/containers").join(format!("{name}.log")),
            group: Path::new("/sys/fs/cgroup/containers").join(name),
            mounts: Path::new("/run/container-mounts").join(name),
        }
    }

    /// Of all containers that have been started at this boot and not been taken away.
    pub fn all() -> impl Iterator<Item = Self> {
        names().map(|name| Self::of(&name))
    }

    /// Of all but this one.
    pub fn of_others(name: &str) -> impl Iterator<Item = Self> {
        names().filter(move |other| other != name).map(|other| Self::of(&other))
    }

    pub fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// The image's files below the container's own layer.
    pub fn lower(&self) -> PathBuf {
        self.run.join("lower")
    }

    /// What the shim does before the runtime begins.
    pub fn preparation(&self) -> PathBuf {
        self.run.join("preparation.json")
    }

    pub fn pid(&self) -> PathBuf {
        self.run.join("pid")
    }

    pub fn exit(&self) -> PathBuf {
        self.run.join("exit.json")
    }

    /// For PID 1, which ends containers with the node: how many seconds this one may take.
    pub fn stop_timeout(&self) -> PathBuf {
        self.run.join("stop-timeout")
    }

    /// Locked while a shim lives.
    pub fn lock(&self) -> PathBuf {
        self.run.join("shim.lock")
    }

    /// The networks that it is to have at its next start, for netavark. Not there when it has the node's.
    pub fn network(&self) -> PathBuf {
        self.run.join("network.json")
    }

    /// Those that it has.
    pub fn network_that_is(&self) -> PathBuf {
        self.run.join("network-that-is.json")
    }

    /// Its network namespace, while it has networks of its own.
    pub fn netns(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// Its own `/etc/resolv.conf` and `/etc/hosts`, with networks of its own.
    pub fn resolv_conf(&self) -> PathBuf {
        self.run.join("resolv.conf")
    }

    pub fn hosts(&self) -> PathBuf {
        self.run.join("hosts")
    }

    /// Secrets that it has as files.
    pub fn secrets(&self) -> PathBuf {
        self.run.join("secrets")
    }

    /// The settings that it was started with, where an agent after this one may have to go on with them.
    pub fn spec(&self) -> PathBuf {
        self.run.join("spec.json")
    }

    /// Settings that it was to have, and that were refused.
    pub fn refusal(&self) -> PathBuf {
        self.run.join("refusal.json")
    }

    /// What the agent knows of the container, for the agent after it.
    pub fn kept(&self) -> PathBuf {
        self.run.join("kept.json")
    }
}

/// What an agent that starts has to know of a container that another one kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kept {
    /// Hash of the settings that the container is run with.
    pub settings: String,
    pub restarts: Restarts,
    pub state: State,
    /// How it ended last.
    pub exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A shim was started, at this time of CLOCK_BOOTTIME in milliseconds.
    Running(u64),
    /// In back-off until this time.
    Waiting(u64),
    /// It is not started again.
    Ended,
    /// Stopped by hand, until a person or other settings start it.
    Halted,
}

impl Kept {
    pub fn read(places: &Places) -> Option<Self> {
        serde_json::from_slice(&fs::read(places.kept()).ok()?).ok()
    }

    pub fn write(&self, places: &Places) -> io::Result<()> {
        fs::create_dir_all(&places.run)?;
        files::replace(&places.kept(), &serde_json::to_vec(self)?)
    }
}

/// How one run of a container ended. Written by the shim as its last act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exit {
    /// 128 + n for signal n; none when it never ran.
    pub exit_code: Option<i32>,
    /// Why it never ran.
    pub error: Option<String>,
    /// The kernel killed one of its processes because its memory was used up.
    pub out_of_memory: bool,
    /// CLOCK_BOOTTIME in milliseconds.
    pub started_at_ms: u64,
    pub ended_at_ms: u64,
}
