//! What a container wrote: two files of at most 1 MiB each, a line for each line, with time and stream.

use apiserver::agent::{LogPosition, LogStart, NewLogs};
use jiff::Timestamp;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

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

/// What a container wrote, without time and stream: what `start` asks for of it, at most `most` bytes.
pub fn read(path: &Path, start: LogStart, most: u64) -> String {
    let mut text = String::new();
    for path in files(path) {
        let Ok(mut file) = File::open(&path) else { continue };
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(size.saturating_sub(most)));
        let mut data = Vec::new();
        let _ = file.take(most).read_to_end(&mut data);
        // What is left of a line that begins before that is none.
        let from = if size > most {
            data.iter().position(|byte| *byte == b'\n').map_or(data.len(), |at| at + 1)
        } else {
            0
        };
        text.push_str(&String::from_utf8_lossy(&data[from..]));
    }
    let lines: Vec<&str> = text.lines().collect();
    let all: Vec<&str> = lines[first(&lines, start)..].iter().map(|line| content(line)).collect();
    let mut kept = all.as_slice();
    let mut bytes: u64 = kept.iter().map(|line| line.len() as u64 + 1).sum();
    while bytes > most
        && let Some((first, rest)) = kept.split_first()
    {
        bytes -= first.len() as u64 + 1;
        kept = rest;
    }
    kept.iter().map(|line| format!("{line}\n")).collect()
}

/// The older file of a log, and the one that is written.
fn files(path: &Path) -> [PathBuf; 2] {
    [path.with_extension("log.1"), path.to_owned()]
}

/// A line without time and stream.
fn content(line: &str) -> &str {
    line.splitn(3, ' ').nth(2).unwrap_or_default()
}

/// Which of the lines is the first that is asked for.
fn first(lines: &[&str], LogStart { lines: last, since_ms }: LogStart) -> usize {
    let is_in_time = |line: &&str| {
        let time = line.split(' ').next().and_then(|time| time.parse::<Timestamp>().ok());
        time.zip(since_ms).is_some_and(|(time, since)| time.as_millisecond() >= since)
    };
    let since = match since_ms {
        Some(_) => lines.iter().position(is_in_time).unwrap_or(lines.len()),
        None => 0,
    };
    let last = last.map_or(lines.len(), |last| usize::try_from(last).unwrap_or(usize::MAX));
    since.max(lines.len().saturating_sub(last))
}

/// Which file it is, whatever its name. A number alone is given again when a file is gone.
fn place_in(file: &File, offset: u64) -> Option<LogPosition> {
    let metadata = file.metadata().ok()?;
    let made = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let made_ns = made.and_then(|made| u64::try_from(made.as_nanos()).ok()).unwrap_or_default();
    Some(LogPosition { inode: metadata.ino(), made_ns, offset })
}

/// Where the first line is that is asked for, or the next one that will be written.
pub fn position(path: &Path, start: LogStart) -> LogPosition {
    let (mut text, mut places) = (Vec::new(), Vec::new());
    for path in files(path) {
        let Ok(file) = File::open(&path) else { continue };
        let Some(place) = place_in(&file, 0) else { continue };
        places.push((text.len(), place));
        let _ = file.take(2 * LARGEST).read_to_end(&mut text);
        // What is not a whole line yet is not told.
        text.truncate(whole(&text).max(places.last().map_or(0, |(from, _)| *from)));
    }
    let shown = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = shown.lines().collect();
    let skipped = first(&lines, start);
    let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let from = ends.take(skipped).last().unwrap_or(0);
    let found = places.into_iter().rfind(|(begin, _)| *begin <= from);
    found.map_or_else(LogPosition::default, |(begin, place)| LogPosition {
        offset: (from - begin) as u64,
        ..place
    })
}

/// Bytes up to the end of the last whole line.
fn whole(data: &[u8]) -> usize {
    data.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// What was written behind a position, at most `most` bytes of the log at once. Lines that are gone are told to be.
pub fn after(path: &Path, position: LogPosition, most: u64) -> NewLogs {
    let open = |path: &PathBuf| {
        let file = File::open(path).ok()?;
        let place = place_in(&file, 0)?;
        Some((file, place))
    };
    let files: Vec<(File, LogPosition)> = files(path).iter().filter_map(open).collect();
    let is_it = |place: &LogPosition| (place.inode, place.made_ns) == (position.inode, position.made_ns);
    let found = files.iter().position(|(_, place)| is_it(place));
    let mut text = String::new();
    // At the default there was no log yet: all of it is new.
    if found.is_none() && position != LogPosition::default() {
        text.push_str("(lines before this one are lost: they came faster than they were read)\n");
    }
    let mut next = position;
    let mut files = files.into_iter().skip(found.unwrap_or(0)).peekable();
    while let Some((mut file, place)) = files.next() {
        let offset = if is_it(&place) { position.offset } else { 0 };
        let mut data = Vec::new();
        if file.seek(SeekFrom::Start(offset)).is_ok() {
            let _ = (&mut file).take(most).read_to_end(&mut data);
        }
        let is_full = data.len() as u64 == most;
        // A line without an end is none of ours (a power cut leaves such): it is told as it is.
        data.truncate(if is_full && whole(&data) == 0 { data.len() } else { whole(&data) });
        next = LogPosition { offset: offset + data.len() as u64, ..place };
        let lines = String::from_utf8_lossy(&data);
        text.extend(lines.lines().map(|line| format!("{}\n", content(line))));
        if is_full || !data.is_empty() {
            return NewLogs { text, next, has_more: is_full || files.peek().is_some() };
        }
    }
    NewLogs { text, next, has_more: false }
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
        assert_eq!(read(&path, ALL, 1 << 20), "one\nerror here\ntwo\nlast\n");
        assert_eq!(read(&path, last(2), 1 << 20), "two\nlast\n");
        assert_eq!(read(&dir.path().join("none"), ALL, 100), "");
    }

    const ALL: LogStart = LogStart { lines: None, since_ms: None };

    fn last(lines: u32) -> LogStart {
        LogStart { lines: Some(lines), since_ms: None }
    }

    #[test]
    fn lines_are_asked_for_by_their_time_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.log");
        fs::write(path.with_extension("log.1"), "1970-01-01T00:00:01Z stdout a\n").unwrap();
        fs::write(&path, "1970-01-01T00:00:02Z stderr b\n1970-01-01T00:00:03Z stdout c\n").unwrap();
        for (lines, since_ms, expected) in [
            (None, None, "a\nb\nc\n"),
            (None, Some(1000), "a\nb\nc\n"),
            (None, Some(1001), "b\nc\n"),
            (None, Some(2000), "b\nc\n"),
            (None, Some(3001), ""),
            (Some(1), Some(1001), "c\n"),
            (Some(2), Some(3000), "c\n"),
            (Some(0), None, ""),
            (Some(9), None, "a\nb\nc\n"),
        ] {
            let start = LogStart { lines, since_ms };
            assert_eq!(read(&path, start, 1 << 20), expected, "{start:?}");
            // Who follows is told the same, and then what is new.
            assert_eq!(follow(&path, &mut position(&path, start), 1 << 20), expected, "{start:?}");
        }
    }

    #[test]
    fn of_a_long_log_only_whole_lines_are_told_and_those_before_a_time_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.log");
        let older = format!("1970-01-01T00:00:01Z stdout {}\n", "a".repeat(70)).repeat(20);
        fs::write(path.with_extension("log.1"), older).unwrap();
        fs::write(&path, "1970-01-01T00:00:03Z stdout c\n").unwrap();
        let since = LogStart { lines: None, since_ms: Some(2000) };
        assert_eq!(read(&path, since, 1000), "c\n");
        let all = read(&path, ALL, 1000);
        assert!(all.lines().all(|line| line == "c" || line == "a".repeat(70)), "{all}");
    }

    fn follow(path: &Path, place: &mut LogPosition, most: u64) -> String {
        let mut text = String::new();
        loop {
            let NewLogs { text: new, next, has_more } = after(path, *place, most);
            text += &new;
            *place = next;
            if !has_more {
                return text;
            }
        }
    }

    #[test]
    fn who_follows_is_told_each_line_once_over_new_files_and_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.log");
        // Nothing was written yet.
        let mut place = position(&path, last(0));
        assert_eq!(follow(&path, &mut place, 100), "");
        let mut log = ContainerLog::open(&path);
        log.write("stdout", b"first\nunfinished");
        assert_eq!(follow(&path, &mut place, 100), "first\n");
        log.write("stdout", b" line\n");
        assert_eq!(follow(&path, &mut place, 100), "unfinished line\n");
        let mut write = |count: u32, told: &str| {
            (0..count).for_each(|_| log.write("stdout", format!("{told} {}\n", "x".repeat(900)).as_bytes()));
        };
        // The file is renamed meanwhile.
        write(1000, "a");
        assert_eq!(follow(&path, &mut place, 64 << 10).lines().count(), 1000);
        write(500, "b");
        assert!(path.with_extension("log.1").exists());
        let text = follow(&path, &mut place, 64 << 10);
        assert!(text.lines().count() == 500 && !text.contains("lost"));
        assert_eq!(follow(&path, &mut place, 64 << 10), "");
        write(4000, "c");
        let text = follow(&path, &mut place, 64 << 10);
        assert!(text.starts_with("(lines before this one are lost") && text.lines().count() > 1000);
        // A line that is not whole yet is told when it is.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"1970-01-01T00:00:02Z stdout half").unwrap();
        assert_eq!(follow(&path, &mut place, 64 << 10), "");
        file.write_all(b" of it\n").unwrap();
        assert_eq!(follow(&path, &mut place, 64 << 10), "half of it\n");
        // What a power cut left is passed, however long it is.
        file.write_all(&[0; 200 << 10]).unwrap();
        file.write_all(b"\n1970-01-01T00:00:03Z stdout on it goes\n").unwrap();
        assert!(follow(&path, &mut place, 64 << 10).ends_with("\non it goes\n"));
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
        assert!(read(&path, last(1), 1 << 20).starts_with("line 59999 "));
    }
}
