//! dm-verity's hash tree from a stream of blocks, in a few blocks of memory: what `veritysetup format` writes (on-disk format
//! version 1, SHA-256, 4096-byte blocks; kernel: `Documentation/admin-guide/device-mapper/verity.rst`), bit by bit.

use sha2::{Digest, Sha256};
use std::io;
use thiserror::Error;

/// Bytes of a block, of data and of hashes.
pub const BLOCK: usize = 4096;
/// Bytes of a hash.
pub const HASH: usize = 32;
const HASHES_PER_BLOCK: u64 = (BLOCK / HASH) as u64;
/// The first block of a verity partition tells what follows.
const SUPERBLOCK: u64 = 1;

pub type Hash = [u8; HASH];

/// The salt of the product line. It stays the same from release to release, so that equal blocks have equal hashes.
pub const SALT: [u8; 32] = *b"caisson: one salt for all roots.";

/// Why no tree was made.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot make a verity tree over {blocks} blocks: it takes between 1 and {MAX_BLOCKS}")]
    Blocks { blocks: u64 },
    #[error("the root has ended after {seen} of {expected} blocks")]
    Short { seen: u64, expected: u64 },
    #[error("the root goes on after its {expected} blocks")]
    Long { expected: u64 },
    #[error("cannot write the verity tree: {0}")]
    Write(#[from] io::Error),
}

/// 16 GiB of data.
pub const MAX_BLOCKS: u64 = 1 << 22;

/// Where the blocks of the tree go: (offset in the verity partition in bytes, content).
pub trait Sink {
    /// # Errors
    ///
    /// The medium's.
    fn write_block(&mut self, offset: u64, block: &[u8; BLOCK]) -> io::Result<()>;
}

impl<F: FnMut(u64, &[u8; BLOCK]) -> io::Result<()>> Sink for F {
    fn write_block(&mut self, offset: u64, block: &[u8; BLOCK]) -> io::Result<()> {
        self(offset, block)
    }
}

/// The hash of a block of data or of hashes.
pub fn hash_block(salt: &[u8], block: &[u8]) -> Hash {
    Sha256::new().chain_update(salt).chain_update(block).finalize().into()
}

/// Levels of hashes over `data_blocks`, from the leaves up: for each the number of its blocks and its first block in the partition.
/// On disk the top comes first.
fn levels(data_blocks: u64) -> Vec<(u64, u64)> {
    let mut sizes = Vec::new();
    let mut size = data_blocks;
    loop {
        size = size.div_ceil(HASHES_PER_BLOCK);
        sizes.push(size);
        if size <= 1 {
            break;
        }
    }
    let mut at = SUPERBLOCK;
    let mut levels: Vec<(u64, u64)> = Vec::with_capacity(sizes.len());
    for size in sizes.iter().rev() {
        levels.push((*size, at));
        at += size;
    }
    levels.reverse();
    levels
}

/// Where the leaves' hashes are in a verity partition, for roots of `data_blocks`: one after the other, [`HASH`] bytes each, from
/// this offset (bytes) on.
pub fn leaves_offset(data_blocks: u64) -> u64 {
    levels(data_blocks).first().map_or(0, |(_, at)| at * BLOCK as u64)
}

/// Bytes of a verity partition's content for roots of `data_blocks`.
pub fn tree_size(data_blocks: u64) -> u64 {
    (SUPERBLOCK + levels(data_blocks).iter().map(|(size, _)| size).sum::<u64>()) * BLOCK as u64
}

struct Level {
    /// Next block of the partition to be written.
    at: u64,
    block: Box<[u8; BLOCK]>,
    filled: usize,
}

/// Takes the blocks of a root in order, and writes its tree.
pub struct Tree<'a> {
    salt: &'a [u8],
    data_blocks: u64,
    seen: u64,
    levels: Vec<Level>,
    /// Known early when the top block is full.
    root: Option<Hash>,
}

impl<'a> Tree<'a> {
    /// # Errors
    ///
    /// When `data_blocks` is nothing or too much.
    pub fn new(salt: &'a [u8], data_blocks: u64) -> Result<Self, Error> {
        if data_blocks == 0 || data_blocks > MAX_BLOCKS {
            return Err(Error::Blocks { blocks: data_blocks });
        }
        let levels = levels(data_blocks)
            .into_iter()
            .map(|(_, at)| Level { at, block: Box::new([0; BLOCK]), filled: 0 })
            .collect();
        Ok(Self { salt, data_blocks, seen: 0, levels, root: None })
    }

    /// The next block of data.
    ///
    /// # Errors
    ///
    /// When there are more than was said, or the tree cannot be written.
    pub fn push(&mut self, block: &[u8; BLOCK], sink: &mut impl Sink) -> Result<(), Error> {
        self.push_leaf(hash_block(self.salt, block), sink)
    }

    /// The next block of data, by its hash: what [`Tree::push`] does with a block.
    ///
    /// # Errors
    ///
    /// As [`Tree::push`].
    pub fn push_leaf(&mut self, leaf: Hash, sink: &mut impl Sink) -> Result<(), Error> {
        if self.seen == self.data_blocks {
            return Err(Error::Long { expected: self.data_blocks });
        }
        self.seen += 1;
        let mut hash = leaf;
        for level in &mut self.levels {
            if !level.add(&hash) {
                return Ok(());
            }
            hash = level.write(self.salt, sink)?;
        }
        self.root = Some(hash);
        Ok(())
    }

    /// Writes what is left, and gives the root hash. With it the tree is whole but for its superblock, which the root hash does not
    /// cover and the kernel does not read.
    ///
    /// # Errors
    ///
    /// When there were fewer blocks than was said, or the tree cannot be written.
    pub fn finish(mut self, sink: &mut impl Sink) -> Result<Hash, Error> {
        if self.seen != self.data_blocks {
            return Err(Error::Short { seen: self.seen, expected: self.data_blocks });
        }
        let mut below: Option<Hash> = None;
        for level in &mut self.levels {
            if let Some(hash) = below.take() {
                level.add(&hash);
            }
            // A level that is empty was written whole, and its parent has its hash.
            if level.filled > 0 {
                below = Some(level.write(self.salt, sink)?);
            }
        }
        below.or(self.root).ok_or(Error::Blocks { blocks: self.data_blocks })
    }
}

impl Level {
    /// True when the block is full.
    fn add(&mut self, hash: &Hash) -> bool {
        self.block[self.filled..self.filled + HASH].copy_from_slice(hash);
        self.filled += HASH;
        self.filled == BLOCK
    }

    fn write(&mut self, salt: &[u8], sink: &mut impl Sink) -> Result<Hash, Error> {
        sink.write_block(self.at * BLOCK as u64, &self.block)?;
        let hash = hash_block(salt, &self.block[..]);
        self.at += 1;
        self.block.fill(0);
        self.filled = 0;
        Ok(hash)
    }
}

/// The first block of a verity partition: cryptsetup's `struct verity_sb`. For people and tools; the kernel has all of it from its
/// command line.
pub fn superblock(salt: &[u8; 32], data_blocks: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"verity\0\0");
    put(8, &1u32.to_le_bytes()); // superblock version
    put(12, &1u32.to_le_bytes()); // hash type: salt first
    put(16, b"caisson verity\0\0"); // UUID
    put(32, b"sha256");
    put(64, &(BLOCK as u32).to_le_bytes());
    put(68, &(BLOCK as u32).to_le_bytes());
    put(72, &data_blocks.to_le_bytes());
    put(80, &(salt.len() as u16).to_le_bytes());
    put(88, salt);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tree and root hash of a root; nothing is written twice, and nothing left out.
    fn tree(root: &[u8]) -> (Vec<u8>, Hash) {
        let blocks = (root.len() / BLOCK) as u64;
        let mut out = vec![0; usize::try_from(tree_size(blocks)).unwrap()];
        let mut written = vec![false; out.len() / BLOCK];
        out[..BLOCK].copy_from_slice(&superblock(&SALT, blocks));
        written[0] = true;
        let mut sink = |offset: u64, block: &[u8; BLOCK]| {
            let at = usize::try_from(offset).unwrap();
            assert!(!std::mem::replace(&mut written[at / BLOCK], true), "block {} again", at / BLOCK);
            out[at..at + BLOCK].copy_from_slice(block);
            Ok(())
        };
        let mut tree = Tree::new(&SALT, blocks).unwrap();
        for block in root.as_chunks::<BLOCK>().0 {
            tree.push(block, &mut sink).unwrap();
        }
        let hash = tree.finish(&mut sink).unwrap();
        assert!(written.iter().all(|written| *written));
        (out, hash)
    }

    /// The same, as simply as it can be said.
    fn model(root: &[u8]) -> (Vec<u8>, Hash) {
        let digest =
            |block: &[u8]| -> Hash { Sha256::new().chain_update(SALT).chain_update(block).finalize().into() };
        let mut level: Vec<u8> = root.chunks(BLOCK).flat_map(digest).collect();
        let mut levels = Vec::new();
        let hash = loop {
            level.resize(level.len().next_multiple_of(BLOCK), 0);
            let upper: Vec<u8> = level.chunks(BLOCK).flat_map(digest).collect();
            levels.push(level);
            if upper.len() == HASH {
                break upper.try_into().unwrap();
            }
            level = upper;
        };
        let mut out = superblock(&SALT, (root.len() / BLOCK) as u64).to_vec();
        levels.iter().rev().for_each(|level| out.extend(level));
        (out, hash)
    }

    fn root(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|at| (at / BLOCK * 31 + at * 7) as u8).collect()
    }

    /// `veritysetup format --salt=… --uuid=…` of cryptsetup 2.7 on the same 300 blocks.
    #[test]
    fn the_root_hash_is_that_of_veritysetup() {
        let hex: String = tree(&root(300)).1.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "392bf14cb44c34cb4dd6d8a3f51913ee869595b01558036f5c17284881ed88ed");
    }

    #[test]
    fn trees_of_one_to_three_levels_are_the_models() {
        for blocks in [1, 2, 127, 128, 129, 255, 256, 128 * 128 - 1, 128 * 128, 128 * 128 + 1] {
            let root = root(blocks);
            assert!(tree(&root) == model(&root), "{blocks} blocks");
        }
    }

    #[test]
    fn the_leaves_are_where_they_are_said_to_be() {
        let root = root(300);
        let at = usize::try_from(leaves_offset(300)).unwrap();
        assert_eq!(tree(&root).0[at..at + HASH], hash_block(&SALT, &root[..BLOCK]));
    }

    #[test]
    fn a_root_that_is_short_or_long_has_no_hash() {
        let mut sink = |_: u64, _: &[u8; BLOCK]| Ok(());
        let mut tree = Tree::new(&SALT, 2).unwrap();
        tree.push(&[0; BLOCK], &mut sink).unwrap();
        let error = tree.finish(&mut sink).unwrap_err().to_string();
        assert_eq!(error, "the root has ended after 1 of 2 blocks");
        let mut tree = Tree::new(&SALT, 1).unwrap();
        tree.push(&[0; BLOCK], &mut sink).unwrap();
        assert!(matches!(tree.push(&[0; BLOCK], &mut sink), Err(Error::Long { expected: 1 })));
        assert!(Tree::new(&SALT, 0).is_err() && Tree::new(&SALT, MAX_BLOCKS + 1).is_err());
    }

    proptest! {
        #[test]
        fn one_changed_byte_changes_the_root_hash(blocks in 1usize..40, at in any::<prop::sample::Index>(), with in 1u8..) {
            let mut changed = root(blocks);
            let at = at.index(changed.len());
            let before = tree(&changed).1;
            changed[at] ^= with;
            prop_assert_ne!(before, tree(&changed).1);
        }
    }
}
