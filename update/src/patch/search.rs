//! What of the new root resembles what of the base: bsdiff's scan (C. Percival, "Naive differences of executable code", 2003) over a
//! suffix array.

use super::plan::Stretch;

/// The base, with all its suffixes in order.
pub(super) struct Index<'a> {
    text: &'a [u8],
    suffixes: Vec<i32>,
    /// Where in `suffixes` those begin that start with these bytes ([`Index::start_of`]).
    first: Vec<u32>,
    start_bits: u32,
}

/// A match this long at the place where the last one goes on is taken without a look for a longer one.
const GOOD_ENOUGH: usize = 24;
/// A match has to be longer by this than what going on with the last one gives.
const BETTER: usize = 8;

impl<'a> Index<'a> {
    /// Takes 4 bytes of memory for each byte of the base, and 64 MiB.
    pub(super) fn new(text: &'a [u8]) -> Self {
        let mut suffixes = vec![0; text.len()];
        divsufsort::sort_in_place(text, &mut suffixes);
        // Three bytes of each begin; two where the text is so short that a table for three would be most of the work.
        let start_bits = if text.len() < 1 << 20 { 16 } else { 24 };
        let mut index = Self { text, suffixes, first: vec![0; (1 << start_bits) + 1], start_bits };
        for at in 0..text.len() {
            let start = index.start_of(&text[at..]);
            index.first[start + 1] += 1;
        }
        for key in 1..index.first.len() {
            index.first[key] += index.first[key - 1];
        }
        index
    }

    /// The first bytes as a number; what is missing counts as zero, as the end of the text sorts first.
    fn start_of(&self, text: &[u8]) -> usize {
        let byte = |at: usize| text.get(at).map_or(0, |byte| usize::from(*byte));
        (byte(0) << 16 | byte(1) << 8 | byte(2)) >> (24 - self.start_bits)
    }

    /// Where in the base the longest piece is that `wanted` begins with, and how long it is.
    fn longest(&self, wanted: &[u8]) -> (usize, usize) {
        let key = self.start_of(wanted);
        let (mut low, mut high) = (self.first[key] as usize, self.first[key + 1] as usize);
        let (mut best, mut low_common, mut high_common) = ((0, 0), 0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.suffixes[middle] as usize;
            let suffix = &self.text[at..];
            let known = low_common.min(high_common);
            let length = known + common(&suffix[known..], &wanted[known..]);
            if length > best.1 {
                best = (at, length);
            }
            if length == wanted.len() {
                break;
            }
            if suffix.get(length).is_none_or(|byte| *byte < wanted[length]) {
                (low, low_common) = (middle + 1, length);
            } else {
                (high, high_common) = (middle, length);
            }
        }
        best
    }
}

/// How many bytes two texts have in common at their begin.
fn common(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let same = 8 * words.take_while(|(a, b)| a == b).count();
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

/// The stretches of `new` that resemble the base, in order. At least half of the bytes of each are equal to the base's.
pub(super) fn stretches(index: &Index<'_>, new: &[u8]) -> Vec<Stretch> {
    let old = index.text;
    let mut found = Vec::new();
    // The match that is looked at: new[scan..scan + length] is old[at..at + length].
    let (mut scan, mut length, mut at) = (0, 0, 0);
    // Where the last one began, and how its places in the base and in the new root differ.
    let (mut last_new, mut last_old, mut shift) = (0usize, 0usize, 0isize);
    while scan < new.len() {
        scan += length;
        let goes_on = |place: usize| place.checked_add_signed(shift).filter(|place| *place < old.len());
        let agrees = |place: usize| goes_on(place).is_some_and(|before| old[before] == new[place]);
        // Bytes of the match that going on with the last one would have right too.
        let (mut score, mut counted) = (0usize, scan);
        while scan < new.len() {
            let there = goes_on(scan).map(|place| (place, common(&old[place..], &new[scan..])));
            (at, length) = match there {
                Some((place, length)) if length >= GOOD_ENOUGH => (place, length),
                _ => index.longest(&new[scan..]),
            };
            while counted < scan + length {
                score += usize::from(agrees(counted));
                counted += 1;
            }
            if (length == score && length != 0) || length > score + BETTER {
                break;
            }
            score -= usize::from(counted > scan && agrees(scan));
            counted = counted.max(scan + 1);
            scan += 1;
        }
        if length == score && scan < new.len() {
            continue;
        }
        // How far the last match is worth going on, and how far back the new one begins.
        let between = scan.min(new.len()) - last_new;
        let forward =
            (0..between.min(old.len() - last_old)).map(|by| old[last_old + by] == new[last_new + by]);
        let mut ahead = most_alike(forward);
        let mut back = 0;
        if scan < new.len() {
            back = most_alike((1..=between.min(at)).map(|by| old[at - by] == new[scan - by]));
        }
        if ahead + back > between {
            // Both want these bytes: each gets those up to where it is the better one.
            let overlap = ahead + back - between;
            let (mut score, mut best, mut keep) = (0isize, 0, 0);
            for by in 0..overlap {
                let (in_new, in_last) = (last_new + ahead - overlap + by, last_old + ahead - overlap + by);
                score += isize::from(new[in_new] == old[in_last])
                    - isize::from(new[in_new] == old[at - back + by]);
                if score > best {
                    (best, keep) = (score, by + 1);
                }
            }
            ahead -= overlap - keep;
            back -= keep;
        }
        if ahead > 0 {
            found.push(Stretch { old: last_old as u32, new: last_new as u32, size: ahead as u32 });
        }
        (last_new, last_old) = (scan.min(new.len()) - back, at - back);
        shift = at as isize - scan as isize;
    }
    found
}

/// How many of these bytes to take so that the equal ones outnumber the others by the most.
fn most_alike(equal: impl Iterator<Item = bool>) -> usize {
    let (mut score, mut best, mut take) = (0i64, 0, 0);
    for (at, equal) in equal.enumerate() {
        score += if equal { 1 } else { -1 };
        if score > best {
            (best, take) = (score, at + 1);
        }
    }
    take
}
