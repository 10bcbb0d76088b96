//! The plan of a patch: which stretch of the new root comes from where in the base, and what of the base is a program.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Error, damaged};

const MAX_PROGRAMS: u32 = 64;
const MAX_SECTIONS: u32 = 64;
pub(super) const MAX_STRETCHES: u32 = 1 << 17;

/// What the addresses in a section look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// x86-64 instructions: displacements of 32 bits from the end of the instruction.
    Code = 0,
    /// Aligned words of 64 bits that are addresses; where they are not, as `Jumps`.
    Words = 1,
    /// Call frames (`.eh_frame`): records whose third word of 32 bits leads from where it is to code.
    Frames = 2,
    /// Aligned words of 32 bits that lead from the section's begin (`.eh_frame_hdr`).
    Table = 3,
    /// Memory that is not in the file; addresses lead to it.
    Zeroes = 4,
    /// Aligned words of 32 bits that lead from about where they are to code: tables of jumps.
    Jumps = 5,
}

/// A part of a program, in the base and in the new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: Kind,
    pub(super) old: Place,
    pub(super) new: Place,
}

/// Where a section is in a root, and in the program's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u32,
    pub(super) address: u32,
    pub(super) size: u32,
}

impl Place {
    /// The address of the byte at `offset` in the root.
    pub(super) fn address_at(&self, offset: u32) -> Option<u32> {
        let into = offset.checked_sub(self.offset).filter(|into| *into < self.size)?;
        self.address.checked_add(into)
    }

    /// How far into the section an address is.
    pub(super) fn inside(&self, address: u32) -> Option<u32> {
        address.checked_sub(self.address).filter(|into| *into < self.size)
    }

    pub(super) fn range(&self) -> Range<u32> {
        self.offset..self.offset.saturating_add(self.size)
    }
}

/// Bytes of the new root that resemble bytes of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) old: u32,
    pub(super) new: u32,
    pub(super) size: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) programs: Vec<Vec<Section>>,
    /// In order of the new root; none overlaps another there.
    pub(super) stretches: Vec<Stretch>,
}

impl Plan {
    /// # Errors
    ///
    /// When it is cut short, goes on behind its end, or speaks of bytes that the base or the new root does not have.
    pub(super) fn parse(mut bytes: &[u8], base_size: u32, new_size: u32) -> Result<Self, Error> {
        let plan =
            Self::read(&mut bytes, base_size, new_size).ok_or_else(|| damaged("its plan makes no sense"))?;
        if bytes.is_empty() { Ok(plan) } else { Err(damaged("its plan goes on behind its end")) }
    }

    fn read(from: &mut &[u8], base_size: u32, new_size: u32) -> Option<Self> {
        let mut programs = Vec::new();
        for _ in 0..count(from, MAX_PROGRAMS)? {
            let mut sections = Vec::new();
            for _ in 0..count(from, MAX_SECTIONS)? {
                sections.push(Section::read(from, base_size, new_size)?);
            }
            programs.push(sections);
        }
        let count = count(from, MAX_STRETCHES)?;
        let mut column = || (0..count).map(|_| varint(from)).collect::<Option<Vec<u32>>>();
        let (gaps, sizes, steps) = (column()?, column()?, column()?);
        let mut stretches = Vec::with_capacity(gaps.len());
        let (mut new, mut old) = (0u32, 0u32);
        for ((gap, size), step) in gaps.into_iter().zip(sizes).zip(steps) {
            new = new.checked_add(gap)?;
            old = u32::try_from(i64::from(old) + i64::from(unfold(step))).ok()?;
            stretches.push(Stretch { old, new, size });
            (new, old) = (new.checked_add(size)?, old.checked_add(size)?);
            if size == 0 || new > new_size || old > base_size {
                return None;
            }
        }
        Some(Self { programs, stretches })
    }

    #[cfg(feature = "make")]
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.programs.len() as u32);
        for sections in &self.programs {
            put(&mut out, sections.len() as u32);
            for Section { kind, old, new } in sections {
                for number in
                    [*kind as u32, old.offset, old.address, new.offset, new.address, old.size, new.size]
                {
                    put(&mut out, number);
                }
            }
        }
        put(&mut out, self.stretches.len() as u32);
        let (mut new, mut old) = (0, 0);
        let mut columns = [const { Vec::new() }; 3];
        for stretch in &self.stretches {
            let step = stretch.old.wrapping_sub(old) as i32;
            let row = [stretch.new - new, stretch.size, ((step << 1) ^ (step >> 31)) as u32];
            columns.iter_mut().zip(row).for_each(|(column, number)| put(column, number));
            (new, old) = (stretch.new + stretch.size, stretch.old + stretch.size);
        }
        columns.iter().for_each(|column| out.extend(column));
        out
    }

    /// The stretches in a range of the new root, cut at its borders.
    pub(super) fn within(&self, range: Range<u32>) -> impl Iterator<Item = Stretch> {
        let first =
            self.stretches.partition_point(|stretch| stretch.new.saturating_add(stretch.size) <= range.start);
        let behind = self.stretches.get(first..).unwrap_or_default().iter();
        behind.take_while(move |stretch| stretch.new < range.end).map(move |stretch| {
            let from = stretch.new.max(range.start);
            let to = stretch.new.saturating_add(stretch.size).min(range.end);
            Stretch { old: stretch.old + (from - stretch.new), new: from, size: to - from }
        })
    }
}

impl Section {
    fn read(from: &mut &[u8], base_size: u32, new_size: u32) -> Option<Self> {
        let kind = match varint(from)? {
            0 => Kind::Code,
            1 => Kind::Words,
            2 => Kind::Frames,
            3 => Kind::Table,
            4 => Kind::Zeroes,
            5 => Kind::Jumps,
            _ => return None,
        };
        let [old_offset, old_address, new_offset, new_address, old_size, new_size_] =
            [(); 6].map(|()| varint(from));
        let old = Place { offset: old_offset?, address: old_address?, size: old_size? };
        let new = Place { offset: new_offset?, address: new_address?, size: new_size_? };
        let inside = |place: Place, size: u32| {
            let in_file =
                kind == Kind::Zeroes || place.offset.checked_add(place.size).is_some_and(|end| end <= size);
            in_file && place.address.checked_add(place.size).is_some()
        };
        (inside(old, base_size) && inside(new, new_size)).then_some(Self { kind, old, new })
    }
}

/// How far each byte of the base has moved, as the stretches tell. Where they disagree the longest is believed, of equal ones the
/// first; a byte that no stretch covers moved as the one before it.
pub(super) struct Shifts(Vec<(u32, i32)>);

impl Shifts {
    pub(super) fn new(stretches: &[Stretch]) -> Self {
        let mut by_size: Vec<&Stretch> = stretches.iter().collect();
        by_size.sort_by_key(|stretch| std::cmp::Reverse(stretch.size));
        // start → (end, shift); none overlaps another
        let mut taken: BTreeMap<u32, (u32, i32)> = BTreeMap::new();
        for stretch in by_size {
            let end = stretch.old.saturating_add(stretch.size);
            let shift = stretch.new.wrapping_sub(stretch.old) as i32;
            let mut at = stretch.old;
            while at < end {
                match taken.range(..=at).next_back() {
                    Some((_, (behind, _))) if *behind > at => at = *behind,
                    _ => {
                        let next = taken.range(at..).next().map_or(end, |(start, _)| (*start).min(end));
                        taken.insert(at, (next, shift));
                        at = next;
                    }
                }
            }
        }
        Self(taken.into_iter().map(|(start, (_, shift))| (start, shift)).collect())
    }

    /// Where in the new root the byte at `offset` of the base is taken to be.
    pub(super) fn moved(&self, offset: u32) -> u32 {
        let before = self.0.partition_point(|(start, _)| *start <= offset).checked_sub(1);
        let shift = before.and_then(|at| self.0.get(at)).map_or(0, |(_, shift)| *shift);
        offset.wrapping_add_signed(shift)
    }
}

fn varint(from: &mut &[u8]) -> Option<u32> {
    let mut value = 0u64;
    for place in 0..5 {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return value.try_into().ok();
        }
    }
    None
}

fn unfold(folded: u32) -> i32 {
    (folded >> 1) as i32 ^ -((folded & 1) as i32)
}

fn count(from: &mut &[u8], most: u32) -> Option<u32> {
    varint(from).filter(|count| *count <= most)
}

#[cfg(feature = "make")]
fn put(out: &mut Vec<u8>, mut value: u32) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
        prop::collection::vec((0u32..50, 1u32..50, 0u32..900), 0..20).prop_map(|list| {
            let mut new = 0;
            let each = |(gap, size, old)| {
                let stretch = Stretch { old, new: new + gap, size };
                new += gap + size;
                stretch
            };
            list.into_iter().map(each).collect()
        })
    }

    proptest! {
        #[test]
        fn a_plan_written_is_the_plan_read(stretches in stretches()) {
            let place = Place { offset: 7, address: 4096, size: 90 };
            let section = Section { kind: Kind::Frames, old: place, new: Place { offset: 0, ..place } };
            let plan = Plan { programs: vec![vec![section], vec![]], stretches };
            let bytes = plan.bytes();
            prop_assert_eq!(&Plan::parse(&bytes, 1000, 2000).unwrap(), &plan);
            for cut in 0..bytes.len() {
                prop_assert!(Plan::parse(&bytes[..cut], 1000, 2000).is_err());
            }
            prop_assert!(Plan::parse(&[&bytes[..], &[0]].concat(), 1000, 2000).is_err());
            // What leads out of the base is refused.
            let end = plan.stretches.iter().map(|stretch| stretch.old + stretch.size).max().unwrap_or(97);
            prop_assert!(Plan::parse(&bytes, end.max(97), 2000).is_ok());
            if end > 97 {
                prop_assert!(Plan::parse(&bytes, end - 1, 2000).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_plan_inside_its_bounds_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(plan) = Plan::parse(&bytes, 300, 300) {
                prop_assert!(plan.stretches.iter().all(|s| s.old + s.size <= 300 && s.new + s.size <= 300));
                prop_assert_eq!(plan.within(0..300).collect::<Vec<_>>(), plan.stretches);
            }
        }

        #[test]
        fn a_byte_moves_with_the_longest_stretch_that_covers_it(stretches in stretches(), at in 0u32..1000) {
            let covering = stretches.iter().filter(|s| s.old <= at && at < s.old + s.size);
            if let Some(longest) = covering.rev().max_by_key(|s| s.size) {
                prop_assert_eq!(Shifts::new(&stretches).moved(at), at - longest.old + longest.new);
            }
        }
    }
}
