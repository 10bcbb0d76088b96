//! A patch: what makes a new root from a base that is known bit by bit.
//!
//! It is made with a suffix array over the base ([`make`], on the host), in the manner of bsdiff: stretches of the new root that
//! resemble a stretch of the base are stored as differences to it, what resembles nothing as it is. Programs change all over when
//! one line does, as addresses in them shift; so before the difference is taken, the stretch of the base is changed as the shifts
//! foretell ([`predict`]): both sides know where each stretch came from, so both can tell where an address will lead. What is right
//! costs nothing, what is wrong costs its difference.
//!
//! # Format
//!
//! All numbers are little-endian. `varint`: seven bits a byte, the lowest first, the eighth bit set when more follow; at most five
//! bytes, below 2^32. `signed`: a varint of `(n << 1) ^ (n >> 31)`.
//!
//! ```text
//! head     8  magic: "caispat" and the version of the format, 1
//!         32  root hash of the base
//!         32  root hash of the new root
//!          4  size of the base, bytes: whole blocks of 4096, less than 2^31
//!          4  size of the new root, likewise
//!          4  segment: bytes of the new root in each but the last; whole blocks, at most 2 MiB
//!          4  bytes of the plan, packed (at most 1 MiB)
//!          4  bytes of the plan, unpacked (at most 4 MiB)
//! table        for each segment of the new root, in order:
//!          4    bytes of the segment, packed (at most what storing it takes)
//!         32    SHA-256 of the segment of the new root
//! plan         one zstd frame ([`crate::frame`])
//! segments     one zstd frame each
//! ```
//!
//! The plan, unpacked:
//!
//! ```text
//! varint   programs (at most 64); for each:
//! varint     sections (at most 64); for each:
//! varint       kind: 0 code, 1 words, 2 frames, 3 table, 4 zeroes, 5 jumps ([`plan::Kind`])
//! varint       offset in the base, address there, offset in the new root, address there, size in the base, size in the new root
//! varint   stretches (at most 131072), in order of the new root; then three columns with a number for each:
//! varint     bytes of the new root before it that are stored as they are
//! varint     bytes of the stretch, at least 1
//! signed     where it begins in the base, less where the stretch before ended there
//! ```
//!
//! What follows the last stretch is stored as it is. A segment, unpacked, is as long as the segment of the new root: first all bytes
//! stored as they are, then for each stretch, cut at the segment's borders, its bytes less what [`predict`] makes of the base's
//! (modulo 256).
//!
//! What `predict` foretells is part of the format: another rule is another version.

mod apply;
#[cfg(feature = "make")]
mod elf;
mod head;
#[cfg(feature = "make")]
mod make;
mod plan;
mod predict;
#[cfg(feature = "make")]
mod search;
#[cfg(test)]
mod tests;

pub use apply::{Applier, Segment};
pub use head::{Head, MAX_SEGMENT};
#[cfg(feature = "make")]
pub use make::{MakeError, make};

use thiserror::Error;

use crate::verity;

/// Why a patch was not applied. Nothing of the segment that it met was handed out.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the patch is damaged: {0}")]
    Damaged(String),
    #[error("the patch is for another root than the one that runs (it wants {})", hex(.wants))]
    OtherBase { wants: verity::Hash },
    #[error("the patch makes another root than the one that was asked for ({})", hex(.makes))]
    OtherResult { makes: verity::Hash },
    #[error("the patch makes a root of {makes} bytes, the slot has room for {room}")]
    TooLarge { makes: u32, room: u64 },
    #[error("cannot read the running root at byte {offset}: {error}")]
    Base { offset: u64, error: std::io::Error },
    #[error(
        "segment {segment} is not what the patch says it is: the patch, or the base it was applied to, was changed"
    )]
    Segment { segment: u32 },
    #[error("the patch has no segment {0}")]
    NoSegment(u32),
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged(what.into())
}

fn hex(hash: &verity::Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
