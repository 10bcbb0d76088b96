//! The head of a patch, and the table behind it.

use super::{Error, damaged};
use crate::frame::packed_bound;
use crate::verity::{BLOCK, HASH, Hash};

const MAGIC: [u8; 8] = *b"caispat\x01";
pub(super) const HEAD_SIZE: usize = 8 + 2 * HASH + 5 * 4;
pub(super) const ENTRY_SIZE: usize = 4 + HASH;

/// Most bytes of a segment.
pub const MAX_SEGMENT: u32 = 2 << 20;
const MAX_ROOT: u32 = i32::MAX as u32;
const MAX_PLAN_PACKED: u32 = 1 << 20;
const MAX_PLAN: u32 = 4 << 20;

/// What a patch says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub base: Hash,
    pub new: Hash,
    /// Bytes.
    pub base_size: u32,
    pub new_size: u32,
    pub segment: u32,
    pub(super) plan_packed: u32,
    pub(super) plan_size: u32,
}

/// What the table says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) packed: u32,
    pub(super) digest: Hash,
}

impl Head {
    /// # Errors
    ///
    /// When it is not a head, or says what may not be.
    pub(super) fn parse(bytes: &[u8; HEAD_SIZE]) -> Result<Self, Error> {
        let (magic, rest) = bytes.split_at(MAGIC.len());
        if magic[..7] != MAGIC[..7] {
            return Err(damaged("it does not begin as one"));
        }
        if magic[7] != MAGIC[7] {
            return Err(damaged(format!("it is of format {}, this version knows {}", magic[7], MAGIC[7])));
        }
        let (hashes, numbers) = rest.split_at(2 * HASH);
        let (hashes, numbers) = (hashes.as_chunks::<HASH>().0, numbers.as_chunks::<4>().0);
        let number = |at: usize| u32::from_le_bytes(numbers[at]);
        let head = Self {
            base: hashes[0],
            new: hashes[1],
            base_size: number(0),
            new_size: number(1),
            segment: number(2),
            plan_packed: number(3),
            plan_size: number(4),
        };
        let whole = |size: u32| size > 0 && size.is_multiple_of(BLOCK as u32);
        let may = whole(head.base_size)
            && whole(head.new_size)
            && whole(head.segment)
            && head.base_size <= MAX_ROOT
            && head.new_size <= MAX_ROOT
            && head.segment <= MAX_SEGMENT
            && head.plan_packed <= MAX_PLAN_PACKED
            && head.plan_size <= MAX_PLAN;
        if may { Ok(head) } else { Err(damaged("its head speaks of sizes that may not be")) }
    }

    #[cfg(feature = "make")]
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &self.base, &self.new].concat();
        for number in [self.base_size, self.new_size, self.segment, self.plan_packed, self.plan_size] {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    pub fn segments(&self) -> u32 {
        self.new_size.div_ceil(self.segment)
    }

    /// Where a segment is in the new root: its first byte, and the first behind it.
    pub(super) fn range(&self, segment: u32) -> std::ops::Range<u32> {
        let start = segment.saturating_mul(self.segment).min(self.new_size);
        start..start.saturating_add(self.segment).min(self.new_size)
    }

    pub(super) fn table_size(&self) -> usize {
        self.segments() as usize * ENTRY_SIZE
    }

    /// # Errors
    ///
    /// When a segment is packed into more than storing it takes.
    pub(super) fn parse_table(&self, bytes: &[u8]) -> Result<Vec<Entry>, Error> {
        let entry = |(number, bytes): (u32, &[u8; ENTRY_SIZE])| {
            let (packed, digest) = bytes.split_first_chunk::<4>()?;
            let packed = u32::from_le_bytes(*packed);
            let most = packed_bound(self.range(number).len());
            (packed as usize <= most).then_some(Entry { packed, digest: digest.try_into().ok()? })
        };
        let entries: Option<Vec<Entry>> = (0..).zip(bytes.as_chunks().0).map(entry).collect();
        entries
            .filter(|entries| entries.len() == self.segments() as usize)
            .ok_or_else(|| damaged("a segment is longer than it may be"))
    }
}

impl Entry {
    #[cfg(feature = "make")]
    pub(super) fn bytes(&self) -> Vec<u8> {
        [&self.packed.to_le_bytes()[..], &self.digest].concat()
    }
}
