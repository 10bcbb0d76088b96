//! Makes a patch. On the host: it takes five times the base of memory, and about a second for each MiB that is not the same.

use sha2::{Digest, Sha256};
use std::io;
use thiserror::Error;

use super::head::{Entry, Head, MAX_SEGMENT};
use super::plan::{MAX_STRETCHES, Plan, Shifts};
use super::predict::{Predictor, Rule};
use super::{Applier, elf, search};
use crate::frame;
use crate::verity::{BLOCK, Hash};

/// Why there is no patch between two roots. They can be published without one.
#[derive(Debug, Error)]
pub enum MakeError {
    #[error(
        "a root of {0} bytes cannot be patched: it takes whole blocks of {BLOCK} bytes, less than 2 GiB in all"
    )]
    Size(usize),
    #[error("the roots have too little in common: a patch would have {0} stretches, {MAX_STRETCHES} may be")]
    TooDifferent(usize),
    #[error("cannot pack the patch: {0}")]
    Pack(#[from] io::Error),
    #[error("the patch does not make the new root from the base; this is a bug: {0}")]
    Wrong(String),
}

/// A patch from `base` to `new`, with their root hashes. It was tried once: applied, it gives `new`. The same roots give the same
/// bytes.
///
/// # Errors
///
/// When there can be no patch.
pub fn make(base: (&[u8], Hash), new: (&[u8], Hash)) -> Result<Vec<u8>, MakeError> {
    make_in_segments(base, new, MAX_SEGMENT)
}

/// [`make`], with segments of this many bytes.
pub(super) fn make_in_segments(
    base: (&[u8], Hash),
    new: (&[u8], Hash),
    segment: u32,
) -> Result<Vec<u8>, MakeError> {
    for root in [base.0, new.0] {
        if root.is_empty() || !root.len().is_multiple_of(BLOCK) || i32::try_from(root.len()).is_err() {
            return Err(MakeError::Size(root.len()));
        }
    }
    let stretches = {
        let (base, new) = (elf::named(base.0), elf::named(new.0));
        search::stretches(&search::Index::new(&base), &new)
    };
    if stretches.len() > MAX_STRETCHES as usize {
        return Err(MakeError::TooDifferent(stretches.len()));
    }
    let programs = elf::programs(base.0, new.0, &stretches);
    let plan = Plan { programs, stretches };
    let plan_bytes = plan.bytes();
    let plan_packed = frame::pack(&plan_bytes)?;
    let head = Head {
        base: base.1,
        new: new.1,
        base_size: base.0.len() as u32,
        new_size: new.0.len() as u32,
        segment,
        plan_packed: plan_packed.len() as u32,
        plan_size: plan_bytes.len() as u32,
    };
    let shifts = Shifts::new(&plan.stretches);
    let predictor = Predictor { programs: &plan.programs, rule: Rule::Moved(&shifts) };
    let mut table = Vec::new();
    let mut segments = Vec::new();
    for number in 0..head.segments() {
        let range = head.range(number);
        let packed = frame::pack(&differences(&plan, &predictor, base.0, new.0, range.clone()))?;
        let digest = Sha256::digest(&new.0[range.start as usize..range.end as usize]).into();
        table.extend(Entry { packed: packed.len() as u32, digest }.bytes());
        segments.extend(packed);
    }
    let patch = [head.bytes(), table, plan_packed, segments].concat();
    check(&patch, base, new)?;
    Ok(patch)
}

/// A segment of the new root, as the patch has it before it is packed.
fn differences(
    plan: &Plan,
    predictor: &Predictor<'_>,
    base: &[u8],
    new: &[u8],
    range: std::ops::Range<u32>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(range.len());
    let mut at = range.start;
    for stretch in plan.within(range.clone()) {
        out.extend(&new[at as usize..stretch.new as usize]);
        at = stretch.new + stretch.size;
    }
    out.extend(&new[at as usize..range.end as usize]);
    for stretch in plan.within(range) {
        let (old_at, new_at, size) = (stretch.old as usize, stretch.new as usize, stretch.size as usize);
        let mut expected = base[old_at..old_at + size].to_vec();
        predictor.predict(stretch, &mut expected);
        out.extend(
            new[new_at..new_at + size].iter().zip(expected).map(|(is, expected)| is.wrapping_sub(expected)),
        );
    }
    out
}

/// Applies the patch once, as a node would.
fn check(patch: &[u8], base: (&[u8], Hash), new: (&[u8], Hash)) -> Result<(), MakeError> {
    let mut applier = Applier::new(base.0, base.1, new.1, new.0.len() as u64);
    let mut input = patch;
    let mut made = 0;
    while let Some(segment) = applier.push(&mut input).map_err(|error| MakeError::Wrong(error.to_string()))? {
        let at = usize::try_from(segment.offset).unwrap_or(usize::MAX);
        if new.0.get(at..at.saturating_add(segment.content.len())) != Some(segment.content) {
            return Err(MakeError::Wrong(format!("segment {} differs", segment.number)));
        }
        made += segment.content.len();
    }
    if made == new.0.len() { Ok(()) } else { Err(MakeError::Wrong(format!("{made} bytes came of it"))) }
}
