//! The logs of services and of PID 1 itself: bounded files below /data/log, written by a child of PID 1. A disk that hangs makes
//! that child wait, not PID 1; what it cannot take is lost, and counted. A full disk loses lines too, and nothing else.

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use init::sys;

const FOLDER: &str = "/data/log";
/// A log is this file and the one before it.
const LARGEST: u64 = 1 << 20;
/// Bytes of one record; a service's line is shorter.
const LONGEST_RECORD: usize = 16 << 10;
/// What may wait for the disk, in bytes (the kernel counts its own needs too).
const WAITING: usize = 1 << 20;
const MOST_EARLY: usize = 100;

/// PID 1's side.
#[derive(Default)]
pub(crate) struct Logs {
    writer: Option<(Pid, OwnedFd)>,
    /// What was said before there was a place for it.
    early: Vec<Vec<u8>>,
    lost: u64,
}

impl Logs {
    /// Starts the child, once /data is mounted. Without one, lines are lost and the rest goes on.
    pub(crate) fn start(&mut self) {
        self.writer = start_writer();
        for record in std::mem::take(&mut self.early) {
            self.send(&record);
        }
    }

    /// Hands a line over; never waits.
    pub(crate) fn write(&mut self, name: &str, now_ms: u64, priority: u8, text: &str) {
        let line = record(name, now_ms, priority, text);
        if self.writer.is_none() {
            if self.early.len() < MOST_EARLY {
                self.early.push(line);
            }
            return;
        }
        let note = record(
            "init",
            now_ms,
            4,
            &format!("{} lines for the logs were lost: the disk is slow", self.lost),
        );
        if self.lost > 0 && self.send(&note) {
            self.lost = 0;
        }
        if !self.send(&line) {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn send(&self, record: &[u8]) -> bool {
        let Some((_, socket)) = &self.writer else { return false };
        send(socket.as_raw_fd(), record, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_ok()
    }

    /// A child ended: if it was the writer, there is a new one.
    pub(crate) fn reaped(&mut self, pid: i32) {
        if self.writer.as_ref().is_some_and(|(writer, _)| writer.as_raw() == pid) {
            self.writer = start_writer();
        }
    }

    /// Lets the child write what it has and end, for at most so long; then the file system can be taken off.
    pub(crate) fn finish(&mut self, patience: Duration) {
        let Some((pid, socket)) = self.writer.take() else { return };
        drop(socket);
        let _ = sys::wait_for(pid.as_raw(), patience);
    }
}

/// `NAME`, a zero, and the line as it is in the file.
fn record(name: &str, now_ms: u64, priority: u8, text: &str) -> Vec<u8> {
    let (seconds, millis) = (now_ms.checked_div(1000).unwrap_or(0), now_ms.checked_rem(1000).unwrap_or(0));
    let mut record = format!("{name}\0{seconds}.{millis:03} <{priority}> {text}").into_bytes();
    record.truncate(LONGEST_RECORD.saturating_sub(1));
    record.push(b'\n');
    record
}

fn start_writer() -> Option<(Pid, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).ok()?;
    let _ = setsockopt(&ours, sockopt::SndBuf, &WAITING);
    let raw = theirs.as_raw_fd();
    let pid = sys::fork(|| {
        // Of what PID 1 has open, a service's socket say, nothing is this child's.
        if sys::keep_only(raw).is_err() {
            return 1;
        }
        write_all(raw);
        0
    });
    pid.ok().map(|pid| (pid, ours))
}

/// The child: until PID 1 closes its side.
fn write_all(socket: i32) {
    let mut logs = BTreeMap::new();
    let mut buffer = vec![0; LONGEST_RECORD];
    loop {
        let count = match recv(socket, &mut buffer, MsgFlags::empty()) {
            Ok(0) => return,
            Ok(count) => count,
            Err(nix::Error::EINTR) => continue,
            Err(_) => return,
        };
        let record = buffer.get(..count).unwrap_or_default();
        let mut parts = record.splitn(2, |byte| *byte == 0);
        let (Some(name), Some(line)) = (parts.next(), parts.next()) else { continue };
        let name = String::from_utf8_lossy(name).into_owned();
        logs.entry(name.clone()).or_insert_with(|| Log::open(&name)).write(line);
    }
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
}

impl Log {
    fn open(name: &str) -> Self {
        let path = PathBuf::from(FOLDER).join(format!("{name}.log"));
        let mut log = Self { path, file: None, size: 0, lost: 0 };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
        self.size =
            self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    }

    fn write(&mut self, line: &[u8]) {
        if self.size >= LARGEST {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            self.reopen();
        }
        let mut text = Vec::new();
        if self.lost > 0 {
            text = format!("{} lines before the next one were lost: the disk took none\n", self.lost)
                .into_bytes();
        }
        text.extend_from_slice(line);
        if self.file.as_mut().is_some_and(|file| file.write_all(&text).is_ok()) {
            self.lost = 0;
            self.size = self.size.saturating_add(u64::try_from(text.len()).unwrap_or(0));
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }
}
