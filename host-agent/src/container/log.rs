//! What a container wrote: two files of at most 1 MiB each, a line for each line, with time and stream.

use jiff::Timestamp;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A log is this file and the one before it.
const LARGEST: u64 = 1 << 20;
/// A longer line is cut into several.
const LONGEST_LINE: usize = 16 << 10;

/// Written by the shim. A full disk loses lines and says how many; the container never waits.
pub struct ContainerLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
    bytes: u64,
    /// The unfinished line of each stream.
    pending: [(&'static str, Vec<u8>); 2],
}

impl ContainerLog {
    pub fn open(path: &Path) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            size: 0,
            lost: 0,
            bytes: 0,
            pending: [("stdout", Vec::new()), ("stderr", Vec::new())],
        };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
        self.size =
            self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    }

    /// Bytes that were taken so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what a stream gave.
    pub fn write(&mut self, stream: &str, data: &[u8]) {
        self.bytes += data.len() as u64;
        let index = usize::from(stream == "stderr");
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            for chunk in part.chunks(LONGEST_LINE) {
                self.pending[index].1.extend_from_slice(chunk);
                if chunk.ends_with(b"\n") || self.pending[index].1.len() >= LONGEST_LINE {
                    self.finish_line(index);
                }
            }
        }
    }

    /// The end of both streams: what is left is a line too.
    pub fn flush(&mut self) {
        for index in 0..2 {
            if !self.pending[index].1.is_empty() {
                self.finish_line(index);
            }
        }
    }

    fn finish_line(&mut self, index: usize) {
        if self.size >= LARGEST {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            self.reopen();
        }
        let (stream, line) = &mut self.pending[index];
        let text = String::from_utf8_lossy(line);
        let time = Timestamp::now();
        let note = if self.lost > 0 {
            format!("{time} shim {} lines before this one were lost\n", self.lost)
        } else {
            String::new()
        };
        let record = format!("{note}{time} {stream} {}\n", text.trim_end_matches(['\n', '\r']));
        line.clear();
        if self.file.as_mut().is_some_and(|file| file.write_all(record.as_bytes()).is_ok()) {
            self.lost = 0;
            self.size += record.len() as u64;
        } else {
            self.lost += 1;
        }
    }
}

/// The last `lines` lines of a container (all that is kept, if `None`), without time and stream; at most `most` bytes.
pub fn read(path: &Path, lines: Option<u32>, most: u64) -> String {
    let mut text = String::new();
    for path in [path.with_extension("log.1"), path.to_owned()] {
        let Ok(mut file) = File::open(&path) else { continue };
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(size.saturating_sub(most)));
        let mut data = Vec::new();
        let _ = file.take(most).read_to_end(&mut data);
        text.push_str(&String::from_utf8_lossy(&data));
    }
    let content = |line: &str| line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
    let all: Vec<String> = text.lines().map(content).collect();
    let wanted = lines.map_or(all.len(), |lines| usize::try_from(lines).unwrap_or(usize::MAX));
    let mut kept = &all[all.len().saturating_sub(wanted)..];
    let mut bytes: u64 = kept.iter().map(|line| line.len() as u64 + 1).sum();
    while bytes > most
        && let Some((first, rest)) = kept.split_first()
    {
        bytes -= first.len() as u64 + 1;
        kept = rest;
    }
    kept.iter().map(|line| format!("{line}\n")).collect()
}

/// The newest lines that fit into `most` bytes of JSON, where a control character takes six.
pub fn newest(text: &str, most: u64) -> &str {
    let size = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let mut left = most;
    let mut from = text.len();
    for line in text.split_inclusive('\n').rev() {
        let bytes: u64 = line.bytes().map(size).sum();
        let Some(rest) = left.checked_sub(bytes) else { break };
        left = rest;
        from -= line.len();
    }
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.log");
        let mut log = ContainerLog::open(&path);
        log.write("stdout", b"one\ntw");
        log.write("stderr", b"error here\n");
        log.write("stdout", b"o\nlast");
        log.flush();
        assert_eq!(read(&path, None, 1 << 20), "one\nerror here\ntwo\nlast\n");
        assert_eq!(read(&path, Some(2), 1 << 20), "two\nlast\n");
        assert_eq!(read(&dir.path().join("none"), None, 100), "");
    }

    #[test]
    fn what_is_sent_is_bounded_as_it_is_sent() {
        let text = "\u{1}\u{1}\"\n".repeat(1000) + "\tlast \u{7f} \\ line\r\n";
        for most in [0, 10, 16, 1000, 100_000] {
            let newest = newest(&text, most);
            // Without the quotes around it.
            let sent = serde_json::to_string(newest).unwrap().len() as u64 - 2;
            assert!(sent <= most && text.ends_with(newest), "{sent} > {most}");
            assert!(newest.len() == text.len() || sent + 16 > most || most < 20, "{most}: only {sent}");
        }
        assert_eq!(newest("a\nb\n", 3), "b\n");
    }

    #[test]
    fn a_flood_stays_bounded_and_the_newest_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.log");
        let mut log = ContainerLog::open(&path);
        for number in 0..60_000 {
            log.write("stdout", format!("line {number} {}\n", "x".repeat(50)).as_bytes());
        }
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= LARGEST + 200 && size(&path.with_extension("log.1")) <= LARGEST + 200);
        assert!(read(&path, Some(1), 1 << 20).starts_with("line 59999 "));
    }
}
