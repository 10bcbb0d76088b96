//! The programs of a root, found by the begin of their files: in an uncompressed erofs each file lies in one piece, from a block's
//! begin on (but for its last bytes, which may be elsewhere; what is foretold about those is wrong and no harm).

use super::plan::{Kind, Place, Section, Stretch};
use super::predict::{Predictor, Rule};
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

/// The root with a name of what is there in place of each address: two functions that call the same one look alike, wherever it is.
pub(super) fn named(root: &[u8]) -> Vec<u8> {
    let mut out = root.to_vec();
    for program in all(root) {
        let itself = |(kind, place): &(Kind, Place)| Section { kind: *kind, old: *place, new: *place };
        let programs = [program.sections.iter().map(itself).collect::<Vec<_>>()];
        let predictor = Predictor { programs: &programs, rule: Rule::Named(root) };
        let whole = Stretch { old: program.offset, new: program.offset, size: program.end - program.offset };
        predictor.predict(whole, &mut out[program.offset as usize..program.end as usize]);
    }
    out
}

/// Nearer than this, what an address leads to moves together with the address.
const NEAR: i64 = 4096;

/// A number for what is `into` a section of a program of this root, `distance` away from where it is named. None: the field is better
/// left as it is.
pub(super) fn name(root: &[u8], section: &Section, into: u32, distance: i64) -> Option<i64> {
    let (near, size) = match section.kind {
        Kind::Zeroes => return Some(into.into()),
        Kind::Code => (distance.abs() < NEAR, 5),
        Kind::Words | Kind::Jumps => (false, 16),
        // What is there holds addresses itself.
        Kind::Frames | Kind::Table => (false, 0),
    };
    let there = root.get((section.old.offset + into) as usize..)?;
    let content = &there[..size.min(there.len())];
    // FNV-1a
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let name = content.iter().fold(0x811c_9dc5, mix) & 0x7fff_ffff;
    (!near).then_some(name.into())
}

impl Program {
    /// The program whose file begins at `offset`, if one does: 64-bit, little-endian, x86-64.
    fn read(root: &[u8], offset: usize) -> Option<Self> {
        const PT_LOAD: u32 = 1;
        const PT_DYNAMIC: u32 = 2;
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
        let (mut frames, mut dynamic) = (None, None);
        for header in headers {
            let (kind, flags) = (u32_at(header, 0)?, u32_at(header, 4)?);
            let [offset, address, size, memory] =
                [8, 16, 32, 40].map(|at| u64_at(header, at).and_then(|n| u32::try_from(n).ok()));
            let (place, memory) = (Place { offset: offset?, address: address?, size: size? }, memory?);
            match kind {
                PT_LOAD => segments.push((flags, place, memory)),
                PT_GNU_EH_FRAME => frames = Some(place),
                PT_DYNAMIC => dynamic = Some(place),
                _ => {}
            }
        }
        // A program that runs anywhere has its addresses in its table of relocations; others have them wherever they are used.
        let relocations = dynamic.and_then(|dynamic| relocations(file, dynamic));
        let data = if relocations.is_some() { Kind::Jumps } else { Kind::Words };
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
                if let Some((address, size)) = relocations.filter(|table| place.inside(table.0).is_some()) {
                    let begin = (address - place.address).checked_add(place.offset)?;
                    cut(Kind::Words, begin.checked_add(size)?.min(end))?;
                }
                if let Some(table) =
                    frames.filter(|table| place.inside(table.address).is_some() && flags & PF_W == 0)
                {
                    cut(data, table.offset)?;
                    let table_end = table.offset.checked_add(table.size)?.min(end);
                    cut(Kind::Table, table_end)?;
                    // .eh_frame follows its table, aligned to 8.
                    let begin = table_end.checked_next_multiple_of(8)?.min(end);
                    cut(data, begin)?;
                    cut(Kind::Frames, call_frames(file, begin, end))?;
                }
                cut(data, end)?;
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

/// Address and size of the table of relocations (ELF: `DT_RELA`).
fn relocations(file: &[u8], dynamic: Place) -> Option<(u32, u32)> {
    const DT_RELA: u64 = 7;
    const DT_RELASZ: u64 = 8;
    let entries = file.get(dynamic.offset as usize..)?.get(..dynamic.size as usize)?.as_chunks::<16>().0;
    let value = |tag: u64| {
        entries.iter().find(|entry| u64_at(*entry, 0) == Some(tag)).and_then(|entry| u64_at(entry, 8))
    };
    Some((value(DT_RELA)?.try_into().ok()?, value(DT_RELASZ)?.try_into().ok()?))
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
