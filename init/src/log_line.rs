//! Lines that services write: cut from a stream of bytes, with their priority.

/// The longest line that is kept whole; what is longer is cut into several.
pub const LONGEST: usize = 8 << 10;

/// syslog(3) priorities from 0 (emergency) to 7 (debug).
pub const DEFAULT_PRIORITY: u8 = 6;

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Adds what was read and calls `line` for each complete line: its priority and its text.
    pub fn push(&mut self, data: &[u8], mut line: impl FnMut(u8, &str)) {
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST.saturating_sub(self.pending.len());
            let (fits, rest) = part.split_at(part.len().min(room));
            self.pending.extend_from_slice(fits);
            if !rest.is_empty() {
                self.flush(&mut line);
                // A part longer than a whole line is cut; its end begins the next.
                for chunk in rest.chunks(LONGEST) {
                    self.pending.extend_from_slice(chunk);
                    if chunk.len() == LONGEST {
                        self.flush(&mut line);
                    }
                }
            }
            if self.pending.last() == Some(&b'\n') {
                self.flush(&mut line);
            }
        }
    }

    /// The end of the stream: what is left is a line too.
    pub fn flush(&mut self, mut line: impl FnMut(u8, &str)) {
        let data = std::mem::take(&mut self.pending);
        let text = String::from_utf8_lossy(&data);
        let (priority, text) = priority(text.trim_end());
        if !text.is_empty() {
            line(priority, &printable(text));
        }
    }
}

/// `<3>text` → (3, text).
fn priority(line: &str) -> (u8, &str) {
    let parsed = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).and_then(|(number, text)| {
        let number: u8 = number.parse().ok()?;
        (number <= 7).then_some((number, text))
    });
    parsed.unwrap_or((DEFAULT_PRIORITY, line))
}

/// What a service writes goes to the console: it must not move the cursor or change colours there.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(parts: &[&[u8]]) -> Vec<(u8, String)> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for part in parts {
            lines.push(part, |priority, text| seen.push((priority, text.to_owned())));
        }
        lines.flush(|priority, text| seen.push((priority, text.to_owned())));
        seen
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let expected = vec![(3, "broken".to_owned()), (6, "fine".to_owned()), (6, "<9>odd".to_owned())];
        assert_eq!(cut(&[b"<3>broken\nfine\n<9>odd"]), expected);
        assert_eq!(cut(&[b"<", b"3>bro", b"ken\n", b"fine", b"\n<9>odd\n"]), expected);
    }

    #[test]
    fn a_line_without_end_is_cut_and_nothing_grows() {
        let long = vec![b'x'; LONGEST * 3 + 10];
        let seen = cut(&[&long, b"y\n"]);
        assert!(seen.iter().all(|(_, text)| text.len() <= LONGEST));
        assert_eq!(seen.iter().map(|(_, text)| text.len()).sum::<usize>(), long.len() + 1);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_console() {
        assert_eq!(cut(&[b"a\x1b[2Jb\n"]), [(6, "a\u{fffd}[2Jb".to_owned())]);
    }
}
