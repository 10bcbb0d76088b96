//! From any older root: blocks that the running root has are copied, the chunks that hold the others are fetched.
//!
//! The leaves' hashes of two verity trees under one salt are the index: equal blocks have equal hashes. The new root's are
//! published as they stand in its tree, one after the other; they are checked before they are believed ([`Leaves::root_hash`]).

use std::collections::HashMap;
use std::ops::Range;

use crate::chunks::Index;
use crate::verity::{self, BLOCK, HASH, Hash, Tree};

/// The hashes of a root's blocks, in order: 32 bytes a block, 256 KiB for a root of 32 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaves(Vec<Hash>);

impl Leaves {
    /// From the bytes of a tree's lowest level ([`verity::leaves_offset`]), or what was published of it. What is behind the last
    /// whole hash is not looked at.
    pub fn new(bytes: &[u8], data_blocks: u64) -> Option<Self> {
        let hashes = bytes.as_chunks::<HASH>().0.get(..usize::try_from(data_blocks).ok()?)?;
        Some(Self(hashes.to_vec()))
    }

    /// The root hash that a tree with these leaves has: only when it is the signed one, they are the new root's.
    ///
    /// # Errors
    ///
    /// As [`Tree::new`].
    pub fn root_hash(&self, salt: &[u8]) -> Result<Hash, verity::Error> {
        let mut nowhere = |_: u64, _: &[u8; BLOCK]| Ok(());
        let mut tree = Tree::new(salt, self.0.len() as u64)?;
        for leaf in &self.0 {
            tree.push_leaf(*leaf, &mut nowhere)?;
        }
        tree.finish(&mut nowhere)
    }

    /// What a block must hash to.
    pub fn get(&self, block: u32) -> Option<&Hash> {
        self.0.get(block as usize)
    }
}

/// Blocks of the new root that the base has one after the other. In blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    pub base: u32,
    pub new: u32,
    pub count: u32,
}

/// What to do for a new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order of the new root.
    pub copies: Vec<Copy>,
    /// Chunks to be fetched, in order; those that follow each other are one range, for one request.
    pub fetches: Vec<Range<usize>>,
    /// Bytes of all fetches.
    pub fetched: u64,
}

/// Ranges of chunks with this many bytes between them are fetched as one: a request costs more.
const WORTH_A_REQUEST: u64 = 4 << 10;

impl Plan {
    /// How the new root is made from a base that has these leaves.
    pub fn new(base: &Leaves, new: &Leaves, index: &Index) -> Self {
        // Of equal blocks in the base the first; the one behind the last copy is better still, as it makes longer copies.
        let mut places: HashMap<&Hash, u32> = HashMap::with_capacity(base.0.len());
        for (place, leaf) in (0..).zip(&base.0) {
            places.entry(leaf).or_insert(place);
        }
        let mut copies: Vec<Copy> = Vec::new();
        let mut wanted: Vec<usize> = Vec::new();
        for (block, leaf) in (0..).zip(&new.0) {
            let last = copies.last_mut().filter(|copy| copy.new + copy.count == block);
            if let Some(last) = last.filter(|copy| base.get(copy.base + copy.count) == Some(leaf)) {
                last.count += 1;
            } else if let Some(place) = places.get(leaf) {
                copies.push(Copy { base: *place, new: block, count: 1 });
            } else {
                let chunk = index.chunk_of(u64::from(block) * BLOCK as u64);
                if wanted.last() != Some(&chunk) {
                    wanted.push(chunk);
                }
            }
        }
        let size = |chunks: Range<usize>| index.place(chunks).map_or(0, |place| place.end - place.start);
        let mut fetches: Vec<Range<usize>> = Vec::new();
        for chunk in wanted {
            match fetches.last_mut() {
                Some(last) if size(last.end..chunk) <= WORTH_A_REQUEST => last.end = chunk + 1,
                _ => fetches.push(chunk..chunk + 1),
            }
        }
        let fetched = fetches.iter().cloned().map(size).sum();
        Self { copies, fetches, fetched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks;
    use proptest::prelude::*;

    const SALT: &[u8] = b"salt";

    fn leaves(root: &[u8]) -> Leaves {
        let bytes: Vec<u8> = root.chunks(BLOCK).flat_map(|block| verity::hash_block(SALT, block)).collect();
        Leaves::new(&bytes, (root.len() / BLOCK) as u64).unwrap()
    }

    /// A root of blocks that are told apart by a number.
    fn root(blocks: &[u16]) -> Vec<u8> {
        blocks.iter().flat_map(|number| number.to_le_bytes().repeat(BLOCK / 2)).collect()
    }

    fn index(root: &[u8]) -> (Vec<u8>, Index) {
        let file = chunks::make(root).unwrap();
        let size = Index::size(file.first_chunk().unwrap(), root.len() as u64).unwrap();
        let index = Index::parse(&file[..size]).unwrap();
        (file, index)
    }

    /// The new root, by the plan and nothing else.
    fn follow(plan: &Plan, base: &[u8], file: &[u8], index: &Index, size: usize) -> Vec<u8> {
        let mut out = vec![0xee; size];
        let mut content = Vec::new();
        let mut fetched = 0;
        for fetch in &plan.fetches {
            fetched += index.place(fetch.clone()).map(|place| place.end - place.start).unwrap();
            for chunk in fetch.clone() {
                let place = index.place(chunk..chunk + 1).unwrap();
                index.unpack(chunk, &file[place.start as usize..place.end as usize], &mut content).unwrap();
                out[index.content(chunk).start as usize..index.content(chunk).end as usize]
                    .copy_from_slice(&content);
            }
        }
        for copy in &plan.copies {
            let [from, to, count] = [copy.base, copy.new, copy.count].map(|blocks| blocks as usize * BLOCK);
            out[to..to + count].copy_from_slice(&base[from..from + count]);
        }
        assert_eq!(fetched, plan.fetched);
        out
    }

    #[test]
    fn blocks_that_moved_are_copied_and_only_the_chunk_of_a_new_one_is_fetched() {
        let base: Vec<u16> = (0..200).collect();
        let mut new = base.clone();
        new.splice(40..40, [999]);
        let (file, index) = index(&root(&new));
        let plan = Plan::new(&leaves(&root(&base)), &leaves(&root(&new)), &index);
        assert_eq!(
            plan.copies,
            [Copy { base: 0, new: 0, count: 40 }, Copy { base: 40, new: 41, count: 160 }]
        );
        assert_eq!((plan.fetches.len(), plan.fetches.first()), (1, Some(&(1..2))));
        assert!(follow(&plan, &root(&base), &file, &index, 201 * BLOCK) == root(&new));
    }

    #[test]
    fn leaves_give_the_root_hash_of_their_tree() {
        let root = root(&(0..300).collect::<Vec<_>>());
        let mut nowhere = |_: u64, _: &[u8; BLOCK]| Ok(());
        let mut tree = Tree::new(SALT, 300).unwrap();
        root.as_chunks().0.iter().for_each(|block| tree.push(block, &mut nowhere).unwrap());
        let mut leaves = leaves(&root);
        assert_eq!(leaves.root_hash(SALT).unwrap(), tree.finish(&mut nowhere).unwrap());
        leaves.0.swap(0, 1);
        assert_ne!(leaves.root_hash(SALT).unwrap(), self::leaves(&root).root_hash(SALT).unwrap());
        assert_eq!(Leaves::new(&[0; 63], 2), None);
    }

    proptest! {
        #[test]
        fn a_plan_makes_the_new_root_from_any_base(
            base in prop::collection::vec(0u16..40, 1..90), new in prop::collection::vec(0u16..50, 1..90),
        ) {
            let (base, new) = (root(&base), root(&new));
            let (file, index) = index(&new);
            let plan = Plan::new(&leaves(&base), &leaves(&new), &index);
            prop_assert!(follow(&plan, &base, &file, &index, new.len()) == new);
            prop_assert!(plan.fetched <= index.file_size());
        }
    }
}
