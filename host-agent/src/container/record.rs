//! What agent and shim tell each other, as files in `/run/containers/NAME/`.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The folder of one container in memory.
#[derive(Debug, Clone)]
pub struct Places {
    pub run: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    pub group: PathBuf,
}

impl Places {
    pub fn of(name: &str) -> Self {
        Self {
            run: Path::new("/run/containers").join(name),
            data: Path::new("/data/containers").join(name),
            log: Path::new("/data/log/containers").join(format!("{name}.log")),
            group: Path::new("/sys/fs/cgroup/containers").join(name),
        }
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

    pub fn pid(&self) -> PathBuf {
        self.run.join("pid")
    }

    pub fn exit(&self) -> PathBuf {
        self.run.join("exit.json")
    }

    /// Locked while a shim lives.
    pub fn lock(&self) -> PathBuf {
        self.run.join("shim.lock")
    }

    /// Hash of the settings that the running container was started with.
    pub fn settings(&self) -> PathBuf {
        self.run.join("settings")
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
