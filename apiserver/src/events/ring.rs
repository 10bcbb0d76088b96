//! The newest events, each as it goes over the wire.

use bytes::Bytes;
use serde_json::Value;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

/// Events that are kept.
const MOST: usize = 256;
/// Bytes of them; the newest is kept whatever its size.
const LARGEST: usize = 512 << 10;

#[derive(Debug)]
pub(super) struct Ring {
    /// Of this process: numbers begin again with the next one.
    run: u32,
    /// The number of the next event; the first is 1.
    next: u64,
    frames: VecDeque<Bytes>,
    bytes: usize,
}

/// The next event that a listener wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    wanted: u64,
    /// It listened to another process, and nobody knows what it has missed since.
    is_of_another_run: bool,
}

impl Default for Ring {
    fn default() -> Self {
        let run = RandomState::new().hash_one(0) as u32;
        Self { run, next: 1, frames: VecDeque::new(), bytes: 0 }
    }
}

impl Ring {
    pub(super) fn push(&mut self, kind: &str, data: &Value) {
        // JSON has no line breaks, which would end the data.
        let frame =
            Bytes::from(format!("id: {:08x}-{}\nevent: {kind}\ndata: {data}\n\n", self.run, self.next));
        self.next += 1;
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.frames.len() > MOST || (self.bytes > LARGEST && self.frames.len() > 1) {
            self.bytes -= self.frames.pop_front().map_or(0, |frame| frame.len());
        }
    }

    fn oldest(&self) -> u64 {
        self.next - self.frames.len() as u64
    }

    /// Where a listener begins: behind the event that it had last, or with what comes next.
    pub(super) fn cursor(&self, last: Option<&str>) -> Cursor {
        let Some(last) = last else { return Cursor { wanted: self.next, is_of_another_run: false } };
        let number = last.split_once('-').and_then(|(run, number)| {
            let is_ours = u32::from_str_radix(run, 16) == Ok(self.run);
            number.parse::<u64>().ok().filter(|number| is_ours && *number < self.next)
        });
        match number {
            Some(number) => Cursor { wanted: number + 1, is_of_another_run: false },
            None => Cursor { wanted: self.oldest(), is_of_another_run: true },
        }
    }

    /// The next frame for a listener, if there is one, and moves it on.
    pub(super) fn next(&self, cursor: &mut Cursor) -> Option<Bytes> {
        let oldest = self.oldest();
        if cursor.is_of_another_run || cursor.wanted < oldest {
            let count = (!cursor.is_of_another_run).then(|| oldest - cursor.wanted);
            *cursor = Cursor { wanted: oldest, is_of_another_run: false };
            let data = serde_json::json!({"count": count});
            let frame = format!("id: {:08x}-{}\nevent: lost\ndata: {data}\n\n", self.run, oldest - 1);
            return Some(Bytes::from(frame));
        }
        let at = usize::try_from(cursor.wanted - oldest).ok()?;
        let frame = self.frames.get(at)?.clone();
        cursor.wanted += 1;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(ring: &Ring, cursor: &mut Cursor) -> Vec<String> {
        std::iter::from_fn(|| ring.next(cursor))
            .map(|frame| String::from_utf8(frame.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn a_listener_gets_what_comes_and_goes_on_where_it_was() {
        let mut ring = Ring::default();
        ring.push("commit", &json!(1));
        let mut cursor = ring.cursor(None);
        assert!(texts(&ring, &mut cursor).is_empty());
        ring.push("commit", &json!({"a": "b\nc"}));
        let id = |number: u64| format!("{:08x}-{number}", ring.run);
        assert_eq!(
            texts(&ring, &mut cursor),
            [format!("id: {}\nevent: commit\ndata: {{\"a\":\"b\\nc\"}}\n\n", id(2))]
        );
        assert_eq!(texts(&ring, &mut ring.cursor(Some(&id(1)))).len(), 1);
        assert_eq!(texts(&ring, &mut ring.cursor(Some(&id(2)))).len(), 0);
        for unknown in ["", "x", "1-1", &id(3), &id(u64::MAX)] {
            let texts = texts(&ring, &mut ring.cursor(Some(unknown)));
            assert!(
                texts.len() == 3 && texts[0].ends_with("event: lost\ndata: {\"count\":null}\n\n"),
                "{texts:?}"
            );
        }
    }

    #[test]
    fn a_slow_listener_is_told_how_much_it_lost_and_memory_is_bounded() {
        let mut ring = Ring::default();
        let mut cursor = ring.cursor(None);
        (0..MOST + 5).for_each(|number| ring.push("commit", &json!(number)));
        let slow = texts(&ring, &mut cursor);
        assert!(slow[0].contains("event: lost\ndata: {\"count\":5}"), "{}", slow[0]);
        assert!(slow[1].contains("data: 5\n") && slow.len() == MOST + 1, "{}", slow[1]);
        let large = json!("x".repeat(LARGEST / 3));
        (0..10).for_each(|_| ring.push("commit", &large));
        assert_eq!(ring.frames.len(), 2);
        ring.push("commit", &json!("x".repeat(LARGEST * 2)));
        assert_eq!(ring.frames.len(), 1);
        assert_eq!(texts(&ring, &mut cursor).len(), 2);
    }
}
