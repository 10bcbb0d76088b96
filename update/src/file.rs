//! Patches of files, such as kernel images: a file has any size, a [`patch`](crate::patch) is of whole blocks. Both sides take
//! a file as if zeroes followed up to the end of its last block, and know it by its SHA-256.

use std::io;

use crate::ReadAt;
use crate::verity::BLOCK;

/// Bytes of a file of this size with the zeroes behind it.
pub fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}

/// A file as the base of a patch.
#[derive(Debug)]
pub struct Padded<B> {
    file: B,
    size: u64,
}

impl<B: ReadAt> Padded<B> {
    /// `size`: of the file, bytes.
    pub fn new(file: B, size: u64) -> Self {
        Self { file, size }
    }
}

impl<B: ReadAt> ReadAt for Padded<B> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= padded(self.size));
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let there = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (content, zeroes) = buffer.split_at_mut(there.min(buffer.len()));
        zeroes.fill(0);
        if content.is_empty() { Ok(()) } else { self.file.read_at(offset, content) }
    }
}

/// A patch from one file to another.
///
/// # Errors
///
/// As [`crate::patch::make`].
#[cfg(feature = "make")]
pub fn make(base: &[u8], new: &[u8]) -> Result<Vec<u8>, crate::patch::MakeError> {
    use sha2::{Digest, Sha256};
    let whole = |file: &[u8]| {
        let mut whole = file.to_vec();
        whole.resize(file.len().next_multiple_of(BLOCK), 0);
        whole
    };
    let hash = |file: &[u8]| Sha256::digest(file).into();
    crate::patch::make((&whole(base), hash(base)), (&whole(new), hash(new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::Applier;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn what_is_behind_the_last_block_is_not_read() {
        let file = Padded::new(&b"abc"[..], 3);
        let mut buffer = [1; 6];
        file.read_at(1, &mut buffer).unwrap();
        assert_eq!(buffer, *b"bc\0\0\0\0");
        file.read_at(4090, &mut buffer).unwrap();
        assert_eq!(buffer, [0; 6]);
        for offset in [4091, 5000, u64::MAX] {
            assert!(file.read_at(offset, &mut buffer).is_err(), "{offset}");
        }
        // A file that is shorter than it was.
        assert!(Padded::new(&b"ab"[..], 3).read_at(0, &mut buffer).is_err());
    }

    proptest! {
        #[test]
        fn a_file_of_any_size_is_made_of_another(
            base in prop::collection::vec(any::<u8>(), 1..9000), at in any::<prop::sample::Index>(),
            more in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let mut new = base.clone();
            let at = at.index(base.len());
            new.splice(at..at, more);
            let patch = make(&base, &new).unwrap();
            let [from, to] = [&base, &new].map(|file| Sha256::digest(file).into());
            let base = Padded::new(&base[..], base.len() as u64);
            let mut applier = Applier::new(base, from, to, padded(new.len() as u64));
            let (mut input, mut out) = (&patch[..], Vec::new());
            while let Some(segment) = applier.push(&mut input).unwrap() {
                out.extend_from_slice(segment.content);
            }
            prop_assert!(applier.is_done());
            out.truncate(new.len());
            prop_assert!(out == new);
        }
    }
}
