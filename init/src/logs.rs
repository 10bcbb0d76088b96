//! The logs of services: bounded files below /data/log. A full disk loses lines and says how many, nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

const FOLDER: &str = "/data/log";
/// A log is this file and the one before it.
const LARGEST: u64 = 1 << 20;

pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
}

impl Log {
    pub(crate) fn open(name: &str) -> Self {
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

    /// Appends a line with the time since boot.
    pub(crate) fn write(&mut self, now_ms: u64, priority: u8, text: &str) {
        if self.size >= LARGEST {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            self.reopen();
        }
        let (seconds, millis) =
            (now_ms.checked_div(1000).unwrap_or(0), now_ms.checked_rem(1000).unwrap_or(0));
        let note = if self.lost > 0 {
            format!("{seconds}.{millis:03} <4> {} lines before this one were lost\n", self.lost)
        } else {
            String::new()
        };
        let line = format!("{note}{seconds}.{millis:03} <{priority}> {text}\n");
        let written = self.file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_ok());
        if written {
            self.lost = 0;
            self.size = self.size.saturating_add(line.len() as u64);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }
}
