//! What a stretch of a program becomes when what its addresses lead to has moved.

use super::plan::{Kind, Section, Shifts, Stretch};

/// Smaller numbers are no addresses: the first page is never mapped.
const LOWEST_ADDRESS: u64 = 4096;

pub(super) struct Predictor<'a> {
    pub(super) programs: &'a [Vec<Section>],
    pub(super) rule: Rule<'a>,
}

/// What is written in place of an address.
pub(super) enum Rule<'a> {
    /// The address where that is now which was there.
    Moved(&'a Shifts),
    /// A number that tells what is there in this root, wherever that is: for the maker, who looks for what resembles what.
    #[cfg(feature = "make")]
    Named(&'a [u8]),
}

impl Predictor<'_> {
    /// Changes `bytes`, the base's at `stretch.old`, to what is expected at `stretch.new`. Only what lies within the stretch is looked
    /// at.
    pub(super) fn predict(&self, stretch: Stretch, bytes: &mut [u8]) {
        let end = stretch.old.saturating_add(stretch.size);
        for program in self.programs {
            for section in program {
                let old = section.old.range();
                let (from, to) = (old.start.max(stretch.old), old.end.min(end));
                if section.kind == Kind::Zeroes || from >= to {
                    continue;
                }
                let (skip, take) = ((from - stretch.old) as usize, (to - from) as usize);
                let Some(bytes) = bytes.get_mut(skip..).and_then(|bytes| bytes.get_mut(..take)) else {
                    continue;
                };
                let here = Here {
                    predictor: self,
                    program,
                    section,
                    old: from,
                    new: stretch.new + (from - stretch.old),
                };
                match section.kind {
                    Kind::Code => here.code(bytes),
                    Kind::Words => here.words(bytes),
                    Kind::Jumps => here.jumps(bytes),
                    Kind::Frames => here.frames(bytes),
                    Kind::Table => here.table(bytes),
                    Kind::Zeroes => {}
                }
            }
        }
    }

    /// What stands, in the new program, for `address` in the old one, in a field that tells how far it is from `origin` in the new one.
    fn becomes(&self, program: &[Section], address: i64, origin: i64) -> Option<i64> {
        let address = u32::try_from(address).ok()?;
        let (section, into) =
            program.iter().find_map(|section| Some((section, section.old.inside(address)?)))?;
        match &self.rule {
            Rule::Moved(shifts) => Some(i64::from(moved(program, section, into, shifts)?) - origin),
            #[cfg(feature = "make")]
            Rule::Named(root) => super::elf::name(root, section, into, i64::from(address) - origin),
        }
    }
}

/// The address where that is now which was `into` an old section.
fn moved(program: &[Section], section: &Section, into: u32, shifts: &Shifts) -> Option<u32> {
    if section.kind == Kind::Zeroes {
        return section.new.address.checked_add(into);
    }
    let offset = shifts.moved(section.old.offset.checked_add(into)?);
    let in_file = |section: &&Section| section.kind != Kind::Zeroes;
    program.iter().filter(in_file).find_map(|section| section.new.address_at(offset))
}

/// A part of a section: `old` and `new` are where its first byte is in the roots.
struct Here<'a> {
    predictor: &'a Predictor<'a>,
    program: &'a [Section],
    section: &'a Section,
    old: u32,
    new: u32,
}

impl Here<'_> {
    /// The addresses of the byte `at` bytes from here, before and after. None when it moves out of its section.
    fn addresses(&self, at: usize) -> Option<(u32, u32)> {
        let at = u32::try_from(at).ok()?;
        let Section { old, new, .. } = self.section;
        Some((old.address_at(self.old.checked_add(at)?)?, new.address_at(self.new.checked_add(at)?)?))
    }

    /// [`Predictor::becomes`], for a field of 32 bits.
    fn becomes(&self, address: i64, origin: i64) -> Option<[u8; 4]> {
        let value = self.predictor.becomes(self.program, address, origin)?;
        i32::try_from(value).ok().map(i32::to_le_bytes)
    }

    /// The field `at`, which holds how far it is from the byte `beyond` it to somewhere.
    fn displacement(&self, field: [u8; 4], at: usize, beyond: i64) -> Option<[u8; 4]> {
        let (old, new) = self.addresses(at)?;
        self.becomes(i64::from(old) + beyond + i64::from(i32::from_le_bytes(field)), i64::from(new) + beyond)
    }

    fn code(&self, bytes: &mut [u8]) {
        let mut at = 0;
        while let Some((opcode, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) {
            let Some((skip, immediate)) = operand(*opcode, rest.first().copied().unwrap_or(0)) else {
                at += 1;
                continue;
            };
            let field = bytes.get(at + skip..).and_then(|bytes| bytes.first_chunk::<4>());
            let predicted = field.and_then(|field| self.displacement(*field, at + skip, 4 + immediate));
            match predicted {
                Some(predicted) => {
                    put(bytes, at + skip, &predicted);
                    at += skip + 4;
                }
                None => at += 1,
            }
        }
    }

    fn words(&self, bytes: &mut [u8]) {
        for at in self.aligned::<8>(bytes.len()) {
            let Some(word) = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<8>()) else { break };
            let word = u64::from_le_bytes(*word);
            let address = i64::try_from(word).ok().filter(|_| word >= LOWEST_ADDRESS);
            if let Some(value) = address.and_then(|address| self.predictor.becomes(self.program, address, 0))
            {
                put(bytes, at, &value.to_le_bytes());
                continue;
            }
            for at in [at, at + 4] {
                self.to_code(bytes, at);
            }
        }
    }

    /// Such a table holds how far it is from the table to the code; the field itself is near enough to the table's begin.
    fn jumps(&self, bytes: &mut [u8]) {
        for at in self.aligned::<4>(bytes.len()) {
            self.to_code(bytes, at);
        }
    }

    fn frames(&self, bytes: &mut [u8]) {
        for at in self.aligned::<4>(bytes.len()) {
            let Some(record) = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<8>()) else { break };
            let record = u64::from_le_bytes(*record);
            let (size, back) = (record as u32, (record >> 32) as u32);
            // How far it is back to the record that this one belongs to, which is in this section too.
            let Some((old, new)) = self.addresses(at + 4) else { break };
            let owner = old.checked_sub(back).filter(|owner| *owner >= self.section.old.address);
            let (Some(owner), true) =
                (owner, back > 8 && back % 4 == 0 && size % 4 == 0 && (12..0x1_0000).contains(&size))
            else {
                continue;
            };
            if self.to_code(bytes, at + 8)
                && let Some(ahead) = self.predictor.becomes(self.program, owner.into(), new.into())
                && let Ok(back) = u32::try_from(-ahead)
            {
                put(bytes, at + 4, &back.to_le_bytes());
            }
        }
    }

    /// Changes the field `at` when it leads from where it is to code, and tells whether it does.
    fn to_code(&self, bytes: &mut [u8], at: usize) -> bool {
        let Some(field) = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<4>()) else { return false };
        let leads_to =
            self.addresses(at).map(|(old, _)| i64::from(old) + i64::from(i32::from_le_bytes(*field)));
        let is_code = |address: u32| {
            self.program
                .iter()
                .any(|section| section.kind == Kind::Code && section.old.inside(address).is_some())
        };
        if !leads_to.and_then(|address| u32::try_from(address).ok()).is_some_and(is_code) {
            return false;
        }
        if let Some(predicted) = self.displacement(*field, at, 0) {
            put(bytes, at, &predicted);
        }
        true
    }

    fn table(&self, bytes: &mut [u8]) {
        let (old, new) = (i64::from(self.section.old.address), i64::from(self.section.new.address));
        for at in self.aligned::<4>(bytes.len()) {
            let Some(field) = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<4>()) else { break };
            if let Some(predicted) = self.becomes(old + i64::from(i32::from_le_bytes(*field)), new) {
                put(bytes, at, &predicted);
            }
        }
    }

    /// Offsets from here of words that are aligned as the section is.
    fn aligned<const SIZE: usize>(&self, len: usize) -> impl Iterator<Item = usize> + use<SIZE> {
        let into = (self.old - self.section.old.offset) as usize;
        (into.next_multiple_of(SIZE) - into..len).step_by(SIZE)
    }
}

/// How far from an opcode its displacement is, and how many bytes of the instruction follow it; none when these two bytes are no
/// instruction that has one. Prefixes stand before and do not matter.
fn operand(opcode: u8, next: u8) -> Option<(usize, i64)> {
    // ModR/M: an operand relative to the instruction pointer
    let relative = next & 0xc7 == 0x05;
    match opcode {
        // call, jmp
        0xe8 | 0xe9 => Some((1, 0)),
        // jcc
        0x0f if next & 0xf0 == 0x80 => Some((2, 0)),
        // with an immediate of 8 or of 32 bits behind the displacement
        0x80 | 0x83 | 0xc6 | 0xf6 if relative => Some((2, 1)),
        0x81 | 0xc7 | 0xf7 if relative => Some((2, 4)),
        // lea, mov, cmp, test, xchg, movsxd, add, or, and, sub, xor, inc, dec, call, jmp, push; and with 0f before: movups, movaps,
        // movdqa, movdqu, movzx, cmpxchg, xadd, cmovcc is left out
        0x8d
        | 0x8b
        | 0x89
        | 0x8a
        | 0x88
        | 0x3b
        | 0x39
        | 0x3a
        | 0x38
        | 0x84..=0x87
        | 0x63
        | 0x03
        | 0x01
        | 0x0b
        | 0x09
        | 0x23
        | 0x21
        | 0x2b
        | 0x33
        | 0x31
        | 0xff
        | 0xfe
        | 0x10
        | 0x11
        | 0x28
        | 0x29
        | 0x6f
        | 0x7f
        | 0xb6
        | 0xb7
        | 0xb0
        | 0xb1
        | 0xc0
        | 0xc1
            if relative =>
        {
            Some((2, 0))
        }
        _ => None,
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|bytes| bytes.get_mut(..value.len())) {
        place.copy_from_slice(value);
    }
}
