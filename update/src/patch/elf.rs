//! The programs of a root, found by the begin of their files: in an uncompressed erofs each file lies in one piece, from a block's
//! begin on (but for its last bytes, which may be elsewhere; what is foretold about those is wrong and no harm).

use super::plan::{Kind, Place, Section, Stretch};
use crate::verity::BLOCK;

/// A program: its sections by kind, in order of their addresses.
struct Program {
    offset: u32,
    end: u32,
    sections: Vec<(Kind, Place)>,
}

/// The programs that are in both roots and are not the same in both, with their sections.
pub(super) fn programs(base: &[u8], new: &[u8], stretches: &[Stretch]) -> Vec<Vec<Section>> {
    let old_programs = all(base);
    let mut pairs = Vec::new();
    for program in all(new) {
        // The program of the base that most of it comes from.
        let origin = old_programs.iter().max_by_key(|old| {
            let common = |stretch: &Stretch| {
                let (from, to) =
                    (program.offset.max(stretch.new), program.end.min(stretch.new + stretch.size));
                let moved = |at: u32| at - stretch.new + stretch.old;
                if from >= to {
                    return 0;
                }
                moved(to).min(old.end).saturating_sub(moved(from).max(old.offset))
            };
            stretches.iter().map(common).map(u64::from).sum::<u64>()
        });
        let Some(old) = origin else { continue };
        let content =
            |root: &'_ [u8], program: &Program| root[program.offset as usize..program.end as usize].to_vec();
        let same_kinds = old.sections.iter().map(|s| s.0).eq(program.sections.iter().map(|s| s.0));
        if same_kinds && content(base, old) != content(new, &program) {
            let pair = |((kind, old), (_, new)): (&(Kind, Place), &(Kind, Place))| Section {
                kind: *kind,
                old: *old,
                new: *new,
            };
            pairs.push(old.sections.iter().zip(&program.sections).map(pair).collect());
        }
    }
    pairs
}

fn all(root: &[u8]) -> Vec<Program> {
    (0..root.len()).step_by(BLOCK).filter_map(|at| Program::read(root, at)).collect()
}

impl Program {
    /// The program whose file begins at `offset`, if one does: 64-bit, little-endian, x86-64.
    fn read(root: &[u8], offset: usize) -> Option<Self> {
        const PT_LOAD: u32 = 1;
        const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
        const PF_X: u32 = 1;
        const PF_W: u32 = 2;
        let file = root.get(offset..)?;
        let machine = file.get(18..20)?;
        if !file.starts_with(b"\x7fELF\x02\x01") || machine != [62, 0] {
            return None;
        }
        let (table, count) =
            (usize::try_from(u64_at(file, 32)?).ok()?, u16::from_le_bytes([file[56], *file.get(57)?]));
        let headers = (0..usize::from(count.min(32)))
            .filter_map(|at| file.get(table.checked_add(at * 56)?..)?.first_chunk::<56>());
        let mut segments = Vec::new();
        let mut frames = None;
        for header in headers {
            let (kind, flags) = (u32_at(header, 0)?, u32_at(header, 4)?);
            let [offset, address, size, memory] =
                [8, 16, 32, 40].map(|at| u64_at(header, at).and_then(|n| u32::try_from(n).ok()));
            let (place, memory) = (Place { offset: offset?, address: address?, size: size? }, memory?);
            match kind {
                PT_LOAD => segments.push((flags, place, memory)),
                PT_GNU_EH_FRAME => frames = Some(place),
                _ => {}
            }
        }
        let mut sections = Vec::new();
        for (flags, place, memory) in segments {
            let mut from = place.offset;
            let mut cut = |kind: Kind, to: u32| {
                if to > from {
                    let address = place.address.checked_add(from - place.offset)?;
                    sections.push((kind, Place { offset: from, address, size: to - from }));
                    from = to;
                }
                Some(())
            };
            let end = place.offset.checked_add(place.size)?;
            if flags & PF_X != 0 {
                cut(Kind::Code, end)?;
            } else {
                if let Some(table) =
                    frames.filter(|table| place.inside(table.address).is_some() && flags & PF_W == 0)
                {
                    cut(Kind::Words, table.offset)?;
                    let table_end = table.offset.checked_add(table.size)?.min(end);
                    cut(Kind::Table, table_end)?;
                    // .eh_frame follows its table, aligned to 8.
                    let begin = table_end.checked_next_multiple_of(8)?.min(end);
                    cut(Kind::Words, begin)?;
                    cut(Kind::Frames, call_frames(file, begin, end))?;
                }
                cut(Kind::Words, end)?;
            }
            if memory > place.size {
                let address = place.address.checked_add(place.size)?;
                sections.push((Kind::Zeroes, Place { offset: 0, address, size: memory - place.size }));
            }
        }
        let start = u32::try_from(offset).ok()?;
        let mut last = start;
        for (kind, place) in &mut sections {
            if *kind != Kind::Zeroes {
                place.offset = place.offset.checked_add(start)?;
                // The end of a file may lie elsewhere, and the root end before.
                place.size = place.size.min((root.len() as u32).saturating_sub(place.offset));
                last = last.max(place.offset.checked_add(place.size)?);
            }
        }
        Some(Self { offset: start, end: last, sections })
    }
}

/// Where the call frames end that begin at `at` (LSB: ".eh_frame"): each record tells its size.
fn call_frames(file: &[u8], mut at: u32, end: u32) -> u32 {
    loop {
        let size = u32_at(file, at as usize).filter(|size| *size != 0 && *size != u32::MAX);
        match size.and_then(|size| at.checked_add(4)?.checked_add(size)).filter(|next| *next <= end) {
            Some(next) => at = next,
            None => return at,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
