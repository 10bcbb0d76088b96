//! Debian's containerd with runc, by `ctr`, and podman with crun: as they come, with the node's network and a seccomp profile, as
//! Caisson's containers have.

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::bare::pidfd;
use crate::engine::{Engine, command, finish, last_words};
use crate::place::{OUT, RIVALS};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Containerd {
    image: String,
    daemon: Option<Child>,
}

impl Containerd {
    pub(crate) fn new() -> Self {
        Self { image: String::new(), daemon: None }
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let common = ["--namespace", "bench"];
        command(self.name(), "ctr", &[&common[..], arguments].concat())
    }

    fn pull(&self, image: &str) -> Result<()> {
        finish(self.name(), self.ctr(&["images", "pull", "--plain-http", image]))
    }

    fn command(&self, container: &str, image: &str) -> Command {
        let mount = format!("type=bind,src={OUT},dst=/out,options=rbind:rw");
        let mut command =
            self.ctr(&["run", "--detach", "--net-host", "--seccomp", "--mount", &mount, "--pid-file"]);
        command.arg(pid_file(container)).args([image, container, "/bin/say", container]);
        command
    }

    fn task(&self, arguments: &[&str]) -> Result<()> {
        finish(self.name(), self.ctr(&[&["tasks"], arguments].concat()))
    }
}

fn pid_file(container: &str) -> String {
    format!("/tmp/{container}.pid")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Engine for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["containerd", "containerd-shim-runc-v2"]
    }

    fn begin(&mut self, image: &str) -> Result<()> {
        image.clone_into(&mut self.image);
        let root = format!("{RIVALS}/containerd");
        self.daemon = Some(command("containerd-itself", "containerd", &["--root", &root]).spawn()?);
        let deadline = Instant::now() + PATIENCE;
        while !self.ctr(&["version"]).status()?.success() {
            let words = last_words("containerd-itself");
            ensure!(Instant::now() < deadline, "containerd does not answer: {words}");
            std::thread::sleep(Duration::from_millis(500));
        }
        self.pull(image)
    }

    fn pull_and_run(&self, container: &str, image: &str) -> Result<()> {
        self.pull(image)?;
        finish(self.name(), self.command(container, image))
    }

    fn run(&self, container: &str) -> Result<()> {
        finish(self.name(), self.command_to_run(container))
    }

    fn command_to_run(&self, container: &str) -> Command {
        self.command(container, &self.image)
    }

    /// `ctr` does not wait for an end: a task is killed, and deleted when its process has ended.
    fn stop(&self, container: &str) -> Result<()> {
        let process = pidfd(&pid_file(container))?;
        self.task(&["kill", "--signal", "SIGTERM", container])?;
        poll(
            &mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)],
            PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::NONE),
        )?;
        // Its daemon may learn of the end a moment later.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.task(&["delete", container]) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    fn start(&self, container: &str) -> Result<()> {
        let _ = fs::remove_file(pid_file(container));
        self.task(&["start", "--detach", "--pid-file", &pid_file(container), container])
    }

    fn remove(&self, containers: &[String]) -> Result<()> {
        for name in containers {
            let _ = self.task(&["delete", "--force", name]);
        }
        let names: Vec<&str> = containers.iter().map(String::as_str).collect();
        finish(self.name(), self.ctr(&[&["containers", "delete"], &names[..]].concat()))
    }
}

pub(crate) struct Podman {
    image: String,
}

impl Podman {
    pub(crate) fn new() -> Self {
        Self { image: String::new() }
    }

    fn podman(&self, arguments: &[&str]) -> Command {
        let root = format!("{RIVALS}/podman");
        let common = [
            "--root",
            &root,
            "--runroot",
            "/run/podman",
            "--storage-driver",
            "overlay",
            "--runtime",
            "crun",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
            "--log-level",
            "error",
        ];
        command(self.name(), "podman", &[&common[..], arguments].concat())
    }

    fn command(&self, container: &str, image: &str) -> Command {
        let volume = format!("{OUT}:/out");
        self.podman(&[
            "run",
            "--detach",
            "--network",
            "host",
            "--tls-verify=false",
            "--log-driver",
            "k8s-file",
            "--volume",
            &volume,
            "--name",
            container,
            image,
            "/bin/say",
            container,
        ])
    }
}

impl Engine for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["podman", "conmon"]
    }

    fn begin(&mut self, image: &str) -> Result<()> {
        image.clone_into(&mut self.image);
        finish(self.name(), self.podman(&["pull", "--tls-verify=false", image]))
    }

    fn pull_and_run(&self, container: &str, image: &str) -> Result<()> {
        finish(self.name(), self.command(container, image))
    }

    fn run(&self, container: &str) -> Result<()> {
        finish(self.name(), self.command_to_run(container))
    }

    fn command_to_run(&self, container: &str) -> Command {
        self.command(container, &self.image)
    }

    fn stop(&self, container: &str) -> Result<()> {
        finish(self.name(), self.podman(&["stop", container]))
    }

    fn start(&self, container: &str) -> Result<()> {
        finish(self.name(), self.podman(&["start", container]))
    }

    fn remove(&self, containers: &[String]) -> Result<()> {
        let names: Vec<&str> = containers.iter().map(String::as_str).collect();
        finish(self.name(), self.podman(&[&["rm", "--force", "--time", "1"], &names[..]].concat()))
            .context("taking containers away")
    }
}
