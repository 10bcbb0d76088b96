//! A further process in a container that runs, by the OCI runtime.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::container::record::Places;
use crate::container::runtime::{forget, youki};

/// Bytes of its output that are kept.
const LARGEST_OUTPUT: u64 = 4 << 10;
/// Characters of a line that is told.
const LONGEST_LINE: usize = 200;

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// None when a signal ended it.
    pub(super) code: Option<i32>,
    /// The first part of what it wrote on both outputs.
    pub(super) output: String,
}

impl Ended {
    /// The last line that is not empty, without control characters.
    pub(super) fn last_line(&self) -> String {
        let line = self.output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        line.chars().filter(|character| !character.is_control()).take(LONGEST_LINE).collect()
    }
}

/// Runs what `process` describes (an OCI `process` as JSON), at most `patience` long.
pub(super) async fn output(
    name: &str,
    places: &Places,
    process: &Path,
    patience: Duration,
) -> Result<Ended, String> {
    let pid_file = places.run.join("exec.pid");
    let _ = fs::remove_file(&pid_file);
    let mut command = youki(places);
    command.arg("exec").arg("--process").arg(process).arg("--pid-file").arg(&pid_file).arg(name);
    // Pipes: the runtime would open /dev/null for reading only.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = Command::from(command);
    let mut child =
        command.kill_on_drop(true).spawn().map_err(|error| format!("cannot start the runtime: {error}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async {
        let (out, err, status) = tokio::join!(beginning(stdout), beginning(stderr), child.wait());
        status.map(|status| Ended { code: status.code(), output: out + &err })
    };
    let ended = timeout(patience, run).await;
    forget(name);
    match ended {
        Ok(ended) => ended.map_err(|error| format!("cannot wait for the runtime: {error}")),
        Err(_) => {
            end(name, &pid_file);
            Err(format!("it did not end within {} s", patience.as_secs()))
        }
    }
}

/// The first bytes; the rest is read, so that the writer can go on, and dropped.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut data = Vec::new();
    let _ = (&mut stream).take(LARGEST_OUTPUT).read_to_end(&mut data).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&data).into_owned()
}

/// Ends a process that takes too long, if it is one of the container.
fn end(name: &str, pid_file: &Path) {
    let Some(pid) = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok()) else {
        return;
    };
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if group.contains(&format!("/containers/{name}/payload")) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_one_line() {
        let ended = |output: &str| Ended { code: Some(1), output: output.to_owned() }.last_line();
        assert_eq!(ended("a\nb\u{1b}[31m c\n\n"), "b[31m c");
        assert_eq!(ended(""), "");
        assert_eq!(ended(&"x".repeat(1000)).len(), LONGEST_LINE);
    }
}
