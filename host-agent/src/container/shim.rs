//! The shim of a container, from the agent's side. It may be a child of this agent or of one before it.

use apiserver::agent::{Copy, Exec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, BufRead, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::container::record::Places;

pub const SHIM: &str = "/usr/bin/container-shim";
/// How often a shim that another agent started is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What a shim gives its container between the signal that asks it to end and SIGKILL, unless the settings say otherwise.
pub const GRACE: Duration = Duration::from_secs(10);
/// A shim that needs so much longer is in trouble itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a shim to take away what one before it has left. netavark alone may take a minute.
const CLEARING: Duration = Duration::from_secs(90);
/// What a shim waits for once it knows its container: all that it needs is written.
const GO: u8 = b'\n';
/// Bytes of the line that tells a shim its container: more than it has.
const LONGEST_ASSIGNMENT: u64 = 16 << 10;
/// Letters of an image's name in errors.
const LONGEST_IMAGE: usize = 1000;

/// What a shim is told first, in a line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The container.
    pub name: String,
    /// For errors.
    pub image: String,
}

impl Assignment {
    pub fn new(name: &str, image: &str) -> Self {
        Self { name: name.to_owned(), image: image.chars().take(LONGEST_IMAGE).collect() }
    }

    /// None when the agent has ended, or has no work for this one.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = Vec::new();
        from.take(LONGEST_ASSIGNMENT).read_until(b'\n', &mut line)?;
        if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
    }
}

/// Waits until the container may begin; false when it never may.
pub fn may_go(from: &mut impl Read) -> bool {
    let mut word = [0];
    matches!(from.read(&mut word), Ok(1) if word == [GO])
}

/// A shim that has been started, and its standard input. It runs nothing before it is told so.
pub struct Waiting {
    shim: Child,
    words: PipeWriter,
}

impl Waiting {
    fn start() -> io::Result<Self> {
        let (theirs, words) = io::pipe()?;
        // What PID 1 tells the agent (LISTEN_FDS, NOTIFY_SOCKET) is not for a container's ears.
        let mut command = Command::new(SHIM);
        let shim = command.env_clear().env("PATH", "/usr/bin").stdin(OwnedFd::from(theirs)).spawn()?;
        Ok(Self { shim, words })
    }

    /// Lets it begin. An error, and no shim, when it has ended meanwhile.
    pub async fn go(mut self) -> io::Result<Child> {
        // One byte has room in any pipe: this does not wait.
        match self.words.write_all(&[GO]) {
            Ok(()) => Ok(self.shim),
            Err(error) => {
                self.dismiss().await;
                Err(error)
            }
        }
    }

    /// Has it end; what it would have run is as if it had never been.
    pub async fn dismiss(self) {
        let Self { mut shim, words } = self;
        drop(words);
        if timeout(CLEARING, shim.wait()).await.is_err() {
            let _ = shim.kill().await;
        }
    }
}

/// A shim that was started ahead of the next container, so that this one does not wait for its program to be loaded: that is about a tenth of
/// a start. There is none before a first container has run. It ends with the agent.
#[derive(Clone, Default)]
pub struct Spare(Rc<RefCell<Option<Waiting>>>);

impl Spare {
    /// Has a shim find its place, take away what one before it may have left, and make the container's root: what that is made of is
    /// written.
    pub fn begin(&self, assignment: &Assignment) -> io::Result<Waiting> {
        let mut line = serde_json::to_vec(assignment)?;
        line.push(b'\n');
        if let Some(mut spare) = self.0.take() {
            // It may have been killed.
            if spare.words.write_all(&line).is_ok() {
                return Ok(spare);
            }
        }
        let mut new = Waiting::start()?;
        new.words.write_all(&line)?;
        Ok(new)
    }

    /// For the next start, which does without if there cannot be one.
    pub fn renew(&self) {
        let mut spare = self.0.borrow_mut();
        if spare.is_none() {
            *spare = Waiting::start().ok();
        }
    }
}

/// Starts what runs a further process in a container, and hands the connection over to it: it answers on that itself.
pub fn exec(exec: &Exec, connection: UnixStream) -> io::Result<Child> {
    begin("--exec", serde_json::to_string(exec)?, connection)
}

/// The same, with what carries its files.
pub fn copy(copy: &Copy, connection: UnixStream) -> io::Result<Child> {
    begin("--copy", serde_json::to_string(copy)?, connection)
}

fn begin(what: &str, request: String, connection: UnixStream) -> io::Result<Child> {
    let connection = OwnedFd::from(connection.into_std()?);
    let mut command = Command::new(SHIM);
    command.arg(what).arg(request).env_clear().env("PATH", "/usr/bin");
    command.stdin(connection).stdout(Stdio::null()).spawn()
}

/// A shim holds a lock for as long as it lives, whoever started it.
pub fn lives(places: &Places) -> bool {
    File::open(places.lock()).is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

/// Waits for the end of the shim.
pub async fn end(child: &mut Option<Child>, places: &Places) {
    match child {
        Some(child) => {
            let _ = child.wait().await;
        }
        None => {
            while lives(places) {
                sleep(LOOK).await;
            }
        }
    }
}

/// Asks the shim to end its container, which has `grace` for that, and waits. One that does not is killed with all that it runs.
pub async fn stop(name: &str, places: &Places, child: &mut Option<Child>, grace: Duration) {
    terminate(places, child.as_ref());
    let patience = grace + PATIENCE;
    if timeout(patience, end(child, places)).await.is_err() {
        eprintln!("<3>container {name}: did not stop within {} s, killing it", patience.as_secs());
        let _ = fs::write(places.group.join("cgroup.kill"), "1");
        let _ = timeout(PATIENCE, end(child, places)).await;
    }
}

fn terminate(places: &Places, child: Option<&Child>) {
    // A child that has only just been started has neither its lock nor its number on file.
    let pid = match child {
        Some(child) => child.id().and_then(|pid| i32::try_from(pid).ok()),
        None => number(&places.run.join("shim.pid")).filter(|_| lives(places)),
    };
    if let Some(pid) = pid {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

fn number(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The container's first process, once the runtime has let its program run.
pub fn payload(places: &Places) -> Option<u32> {
    let pid = number(&places.pid())?;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let of_runtime =
        program == Path::new("/usr/bin/youki") || program.to_string_lossy().starts_with("/memfd:");
    if of_runtime { None } else { u32::try_from(pid).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever comes before the word, or in its place, runs nothing.
    #[test]
    fn a_shim_runs_what_it_is_told_and_only_at_the_word() {
        let told = |mut words: &[u8]| {
            let read = Assignment::read(&mut words);
            (read.map_err(|_| ()), may_go(&mut words))
        };
        let assignment = Assignment::new("web", &format!("a\n{}", "b".repeat(1 << 20)));
        let mut line = serde_json::to_vec(&assignment).unwrap();
        line.push(b'\n');
        assert_eq!(told(&[&line[..], b"\n"].concat()), (Ok(Some(assignment)), true));
        assert!(!told(&line).1);
        assert!(!told(&[&line[..], b"x"].concat()).1);
        // The agent has ended.
        assert_eq!(told(b""), (Ok(None), false));
        for broken in [&b"web\n\n"[..], &line[..7], &vec![b'"'; 1 << 20]] {
            assert_eq!(told(broken).0, Err(()));
        }
    }

    #[tokio::test]
    async fn a_stop_reaches_a_shim_that_has_only_just_been_started() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { run: dir.path().to_owned(), ..Places::of("web") };
        let mut child = Some(Command::new("sleep").arg("60").spawn().unwrap());
        timeout(Duration::from_secs(10), stop("web", &places, &mut child, GRACE)).await.unwrap();
        // Without a child and without a lock there is nothing to wait for.
        timeout(Duration::from_secs(1), stop("web", &places, &mut None, GRACE)).await.unwrap();
    }
}
