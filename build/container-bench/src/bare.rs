//! The OCI runtimes by themselves, crun and the node's own youki: bundles as Caisson makes them, each root mounted before the clock
//! starts, and nobody who watches.

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::engine::{Engine, command, finish};
use crate::place::{NODE_RUN, RIVALS};

/// What Caisson told its runtime of a container, and the image's files.
#[derive(Clone)]
pub(crate) struct Pattern {
    config: Value,
    lower: PathBuf,
}

impl Pattern {
    /// Of a container of Caisson's that runs.
    pub(crate) fn of(container: &str) -> Result<Self> {
        let folder = Path::new(NODE_RUN).join("containers").join(container);
        let config = fs::read(folder.join("bundle/config.json")).context("Caisson's bundle")?;
        Ok(Self { config: serde_json::from_slice(&config)?, lower: fs::read_link(folder.join("lower"))? })
    }

    /// The same for a container of another name. Pure.
    fn config(&self, of: &str, container: &str) -> Value {
        let mut config = self.config.clone();
        config["process"]["args"] = json!(["/bin/say", container]);
        config["hostname"] = json!(container);
        config["linux"]["cgroupsPath"] = json!(format!("/{of}/{container}"));
        config
    }
}

pub(crate) struct Bare {
    name: &'static str,
    program: &'static str,
    pattern: Pattern,
}

impl Bare {
    pub(crate) fn new(name: &'static str, program: &'static str, pattern: &Pattern) -> Self {
        Self { name, program, pattern: pattern.clone() }
    }

    fn bundle(&self, container: &str) -> PathBuf {
        Path::new(RIVALS).join(self.name).join(container)
    }

    fn pid_file(&self, container: &str) -> String {
        format!("/tmp/{}-{container}.pid", self.name)
    }

    fn runtime(&self, arguments: &[&str]) -> Command {
        let root = format!("/run/{}", self.name);
        command(self.name, self.program, &[&["--root", &root], arguments].concat())
    }

    fn end(&self, container: &str) -> Result<()> {
        let pid: i32 = fs::read_to_string(self.pid_file(container))?.trim().parse()?;
        finish(self.name, self.runtime(&["kill", container, "SIGTERM"]))?;
        // It has become our child: its runtime has ended, and we take what is left.
        let _ = waitpid(Pid::from_raw(pid), None);
        finish(self.name, self.runtime(&["delete", container]))
    }
}

/// A handle on the process that a file names.
pub(crate) fn pidfd(file: &str) -> Result<OwnedFd> {
    let pid = fs::read_to_string(file).with_context(|| format!("no process is in {file}"))?;
    let pid = rustix::process::Pid::from_raw(pid.trim().parse()?).context("no process")?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

impl Engine for Bare {
    fn name(&self) -> &'static str {
        self.name
    }

    fn programs(&self) -> &'static [&'static str] {
        &[]
    }

    fn pulls(&self) -> bool {
        false
    }

    fn begin(&mut self, _image: &str) -> Result<()> {
        Ok(())
    }

    fn pull_and_run(&self, container: &str, _image: &str) -> Result<()> {
        self.run(container)
    }

    fn prepare(&self, container: &str) -> Result<()> {
        let bundle = self.bundle(container);
        let [rootfs, upper, work] = ["rootfs", "upper", "work"].map(|name| bundle.join(name));
        for folder in [&rootfs, &upper, &work] {
            fs::create_dir_all(folder)?;
        }
        let config = self.pattern.config(self.name, container);
        fs::write(bundle.join("config.json"), config.to_string())?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.pattern.lower.display(),
            upper.display(),
            work.display()
        );
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("overlay"), &rootfs, Some("overlay"), flags, Some(options.as_str()))
            .context("cannot mount a container's root")
    }

    fn run(&self, container: &str) -> Result<()> {
        finish(self.name, self.command_to_run(container))
    }

    fn command_to_run(&self, container: &str) -> Command {
        let (bundle, pid_file) = (self.bundle(container), self.pid_file(container));
        let mut command = self.runtime(&["run", "--detach", "--pid-file", &pid_file, "--bundle"]);
        command.arg(bundle).arg(container);
        command
    }

    fn stop(&self, container: &str) -> Result<()> {
        self.end(container)
    }

    fn start(&self, container: &str) -> Result<()> {
        self.run(container)
    }

    fn remove(&self, containers: &[String]) -> Result<()> {
        for name in containers {
            // One that was stopped is gone already.
            let _ = self.runtime(&["delete", "--force", name]).status();
            let bundle = self.bundle(name);
            umount2(&bundle.join("rootfs"), MntFlags::MNT_DETACH)?;
            fs::remove_dir_all(&bundle)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_differs_from_caissons_in_its_name_alone() {
        let config = json!({
            "hostname": "pattern", "process": {"args": ["/bin/say", "pattern"], "cwd": "/"},
            "linux": {"cgroupsPath": "/containers/pattern/payload", "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
        });
        let pattern = Pattern { config, lower: PathBuf::from("/data/images/a/rootfs") };
        assert_eq!(
            pattern.config("crun", "a"),
            json!({
                "hostname": "a", "process": {"args": ["/bin/say", "a"], "cwd": "/"},
                "linux": {"cgroupsPath": "/crun/a", "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
            })
        );
    }
}
