//! The root as it is published for nodes that have some of its blocks: chunks of 128 KiB, each packed for itself, so that a node can
//! fetch those it needs by HTTP ranges, or all of them. All are half as large again as one frame over the whole root would be: what
//! programs have in common lies far apart.
//!
//! # Format
//!
//! Plain zstd: `zstd -d` makes the root of it, as what is not a chunk stands in a skippable frame (RFC 8878, 3.1.2). Numbers are
//! little-endian.
//!
//! ```text
//!  4  magic of a skippable frame, 0x184d2a5e
//!  4  bytes that follow in it
//!  8  "caischk" and the version of the format, 1
//!  4  size of the root, bytes: whole blocks of 4096
//!  4  size of a chunk, unpacked: whole blocks, at most 1 MiB; the last may be shorter
//!  4  for each chunk: its bytes, packed
//! then the chunks: one zstd frame each ([`crate::frame`])
//! ```
//!
//! The index is not signed by itself: a wrong one makes a wrong root, which the root hash tells.

use std::ops::Range;
use thiserror::Error;

use crate::frame;
use crate::verity::BLOCK;

const SKIPPABLE: u32 = 0x184d_2a5e;
const MAGIC: [u8; 8] = *b"caischk\x01";
/// Bytes before the chunks' sizes.
pub const HEAD_SIZE: usize = 24;
const MAX_CHUNK: u32 = 1 << 20;
const MAX_ROOT: u32 = i32::MAX as u32;
/// What [`make`] takes. Measured after a fix of one program: smaller chunks bring 2 % less, larger ones 7 % more; all chunks together are
/// 4 % larger, or 2 % smaller.
#[cfg(feature = "make")]
const CHUNK: u32 = 128 << 10;

/// Why an index or a chunk was refused.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the published root is damaged: {0}")]
    Damaged(String),
    #[error("the published root has {found} bytes instead of {expected}")]
    Size { found: u32, expected: u64 },
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged(what.into())
}

/// Where the chunks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    root_size: u32,
    chunk: u32,
    /// Where each chunk begins in the file, and where the last one ends.
    starts: Vec<u64>,
}

impl Index {
    /// Bytes of the index of a file whose first [`HEAD_SIZE`] bytes these are: what to fetch before [`Index::parse`].
    ///
    /// # Errors
    ///
    /// When it is no such file, or of a root of another size than the manifest says.
    pub fn size(head: &[u8; HEAD_SIZE], root_size: u64) -> Result<usize, Error> {
        let (root, chunk) = Self::parse_head(head)?;
        if u64::from(root) != root_size {
            return Err(Error::Size { found: root, expected: root_size });
        }
        Ok(HEAD_SIZE + 4 * root.div_ceil(chunk) as usize)
    }

    /// Bytes of this index.
    pub fn bytes(&self) -> u64 {
        self.starts[0]
    }

    fn parse_head(head: &[u8; HEAD_SIZE]) -> Result<(u32, u32), Error> {
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if number(0) != SKIPPABLE || head[8..15] != MAGIC[..7] {
            return Err(damaged("it does not begin with an index"));
        }
        if head[15] != MAGIC[7] {
            return Err(damaged(format!(
                "its index is of format {}, this version knows {}",
                head[15], MAGIC[7]
            )));
        }
        let (root, chunk) = (number(16), number(20));
        let whole = |size: u32, most: u32| size > 0 && size <= most && size.is_multiple_of(BLOCK as u32);
        if !whole(root, MAX_ROOT) || !whole(chunk, MAX_CHUNK) {
            return Err(damaged("its index speaks of sizes that may not be"));
        }
        if u64::from(number(4)) != (HEAD_SIZE - 8) as u64 + 4 * u64::from(root.div_ceil(chunk)) {
            return Err(damaged("its index has not a number for each chunk"));
        }
        Ok((root, chunk))
    }

    /// From the first bytes of the file, as many as [`Index::size`] says.
    ///
    /// # Errors
    ///
    /// When it is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (head, sizes) = bytes.split_first_chunk().ok_or_else(|| damaged("its index is short"))?;
        let (root_size, chunk) = Self::parse_head(head)?;
        let count = root_size.div_ceil(chunk) as usize;
        let sizes = sizes.as_chunks::<4>().0;
        if sizes.len() != count || bytes.len() != HEAD_SIZE + 4 * count {
            return Err(damaged("its index is short"));
        }
        let mut index = Self { root_size, chunk, starts: vec![bytes.len() as u64] };
        let mut at = bytes.len() as u64;
        for (number, size) in sizes.iter().enumerate() {
            let size = u32::from_le_bytes(*size);
            if size as usize > frame::packed_bound(index.content(number).len()) {
                return Err(damaged("a chunk is longer than it may be"));
            }
            at += u64::from(size);
            index.starts.push(at);
        }
        Ok(index)
    }

    pub fn chunks(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Where a chunk's content is in the root, bytes. Empty for a chunk that is not there.
    pub fn content(&self, chunk: usize) -> Range<u32> {
        let at = |chunk: usize| (chunk as u64 * u64::from(self.chunk)).min(self.root_size.into()) as u32;
        at(chunk)..at(chunk.saturating_add(1))
    }

    /// The chunk that holds a byte of the root.
    pub fn chunk_of(&self, byte: u64) -> usize {
        usize::try_from(byte / u64::from(self.chunk)).unwrap_or(usize::MAX)
    }

    /// Where chunks are in the file, one after the other. None for chunks that are not there.
    pub fn place(&self, chunks: Range<usize>) -> Option<Range<u64>> {
        Some(*self.starts.get(chunks.start)?..*self.starts.get(chunks.end)?)
    }

    /// Unpacks a chunk.
    ///
    /// # Errors
    ///
    /// When it is damaged, or not this long.
    pub fn unpack(&self, chunk: usize, packed: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        out.clear();
        out.resize(self.content(chunk).len(), 0);
        frame::unpack(packed, out).map_err(damaged)
    }
}

/// The file for a root.
///
/// # Errors
///
/// When zstd has none.
///
/// # Panics
///
/// When the root is not whole blocks, less than 2 GiB.
#[cfg(feature = "make")]
pub fn make(root: &[u8]) -> std::io::Result<Vec<u8>> {
    assert!(!root.is_empty() && root.len().is_multiple_of(BLOCK) && root.len() <= MAX_ROOT as usize);
    let chunks: Vec<Vec<u8>> = root.chunks(CHUNK as usize).map(frame::pack).collect::<Result<_, _>>()?;
    let mut file = SKIPPABLE.to_le_bytes().to_vec();
    file.extend(((HEAD_SIZE - 8 + 4 * chunks.len()) as u32).to_le_bytes());
    file.extend(MAGIC);
    file.extend((root.len() as u32).to_le_bytes());
    file.extend(CHUNK.to_le_bytes());
    for chunk in &chunks {
        file.extend((chunk.len() as u32).to_le_bytes());
    }
    chunks.iter().for_each(|chunk| file.extend(chunk));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn root(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|at| (at / 97 * 31 + at / 5000) as u8).collect()
    }

    static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| make(&root(36)).unwrap());

    fn read(file: &[u8], root_size: u64) -> Result<Vec<u8>, Error> {
        let head = file.first_chunk().ok_or_else(|| damaged("short"))?;
        let size = Index::size(head, root_size)?;
        let index = Index::parse(file.get(..size).ok_or_else(|| damaged("short"))?)?;
        let (mut out, mut chunk) = (Vec::new(), Vec::new());
        for number in 0..index.chunks() {
            let place = index.place(number..number + 1).unwrap();
            let packed =
                file.get(place.start as usize..place.end as usize).ok_or_else(|| damaged("short"))?;
            index.unpack(number, packed, &mut chunk)?;
            assert_eq!(index.content(number).start as usize, out.len());
            out.extend(&chunk);
        }
        Ok(out)
    }

    #[test]
    fn a_root_published_is_the_root_read_and_zstd_reads_it_too() {
        let root = root(100);
        let file = make(&root).unwrap();
        assert!(read(&file, root.len() as u64).unwrap() == root);
        assert!(zstd::decode_all(&file[..]).unwrap() == root);
        let index = Index::parse(&file[..HEAD_SIZE + 4 * 4]).unwrap();
        assert_eq!((index.chunks(), index.file_size()), (4, file.len() as u64));
        assert_eq!((index.chunk_of(131_071), index.chunk_of(131_072)), (0, 1));
        assert_eq!((index.place(3..5), index.content(9).len()), (None, 0));
    }

    #[test]
    fn a_root_of_another_size_is_refused_by_its_head() {
        let file = make(&root(3)).unwrap();
        let error = read(&file, 8192).unwrap_err().to_string();
        assert_eq!(error, "the published root has 12288 bytes instead of 8192");
    }

    proptest! {
        #[test]
        fn an_altered_file_is_no_panic(at in any::<prop::sample::Index>(), with in 1u8.., cut in any::<bool>()) {
            let mut file = FILE.clone();
            let at = at.index(file.len());
            if cut {
                prop_assert!(read(&file[..at], 36 * BLOCK as u64).is_err());
            }
            file[at] ^= with;
            let _ = read(&file, 36 * BLOCK as u64);
        }

        #[test]
        fn any_bytes_are_refused_or_an_index_inside_its_bounds(tail in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = FILE[..16].to_vec();
            bytes.extend(tail);
            if let Ok(index) = Index::parse(&bytes) {
                prop_assert!(index.chunks() * 4 < bytes.len());
            }
        }
    }
}
