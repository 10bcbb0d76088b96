//! What is asked of every runtime, and how programs are run.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

/// One way to run containers. Every call returns when its command has, or the node has answered: when a container has put out
/// something is seen elsewhere.
pub(crate) trait Engine {
    fn name(&self) -> &'static str;

    /// The programs that run beside containers, by the names of their files.
    fn programs(&self) -> &'static [&'static str];

    /// Whether it can pull.
    fn pulls(&self) -> bool {
        true
    }

    /// All that is needed before the first container, with the image of the warm ones pulled.
    fn begin(&mut self, image: &str) -> Result<()>;

    /// A new container of an image that is not there.
    fn pull_and_run(&self, container: &str, image: &str) -> Result<()>;

    /// For some runtimes, what is to be there before [`Engine::run`]: a bundle.
    fn prepare(&self, _container: &str) -> Result<()> {
        Ok(())
    }

    /// A new container of the image that is there.
    fn run(&self, container: &str) -> Result<()>;

    /// New containers, all at once.
    fn run_all(&self, containers: &[String]) -> Result<()> {
        let started: Vec<Child> =
            containers.iter().map(|name| Ok(self.command_to_run(name).spawn()?)).collect::<Result<_>>()?;
        for mut child in started {
            let status = child.wait()?;
            if !status.success() {
                bail!("{}: a start failed with {status}: {}", self.name(), last_words(self.name()));
            }
        }
        Ok(())
    }

    /// The command behind [`Engine::run`].
    fn command_to_run(&self, container: &str) -> Command;

    /// Ends a container in order; it can be started again.
    fn stop(&self, container: &str) -> Result<()>;

    /// One that was stopped.
    fn start(&self, container: &str) -> Result<()>;

    /// Takes away what is left of containers, stopped or not. Not measured.
    fn remove(&self, containers: &[String]) -> Result<()>;
}

/// A program whose words are kept. They go to a file, not to a pipe: what outlives the command has it too.
pub(crate) fn command(of: &str, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Ok(log) = File::options().create(true).append(true).open(log(of)) {
        if let Ok(other) = log.try_clone() {
            command.stdout(other);
        }
        command.stderr(log);
    }
    command
}

fn log(of: &str) -> String {
    format!("/tmp/{of}.log")
}

/// The end of what it said.
pub(crate) fn last_words(of: &str) -> String {
    let text = fs::read_to_string(log(of)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// Runs a command of an engine to its end.
pub(crate) fn finish(of: &str, mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{of}: cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{of}: {command:?}: {status}: {}", last_words(of));
    }
    Ok(())
}
