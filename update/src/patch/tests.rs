//! Patches from end to end: made, cut, altered, applied in pieces.

use proptest::prelude::*;

use super::head::{ENTRY_SIZE, HEAD_SIZE};
use super::*;
use crate::ReadAt;
use crate::verity::{BLOCK, Hash};

const FROM: Hash = [1; 32];
const TO: Hash = [2; 32];

/// Bytes without a pattern that zstd could find.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn whole(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().max(1).next_multiple_of(BLOCK), 0);
    bytes
}

/// In segments of 64 KiB, so that small roots have several.
fn patch(base: &[u8], new: &[u8]) -> Vec<u8> {
    super::make::make_in_segments((base, FROM), (new, TO), SEGMENT as u32).unwrap()
}

const SEGMENT: usize = 64 << 10;

fn applier(base: &[u8]) -> Applier<&[u8]> {
    Applier::new(base, FROM, TO, 1 << 30)
}

/// Applies a patch that comes in pieces of these sizes, over and over.
fn apply(base: &[u8], patch: &[u8], pieces: &[usize]) -> Result<Vec<u8>, (Error, usize)> {
    let mut applier = applier(base);
    let (mut out, mut rest) = (Vec::new(), patch);
    for piece in pieces.iter().cycle() {
        let (mut piece, behind) = rest.split_at((*piece).clamp(1, rest.len().max(1)).min(rest.len()));
        rest = behind;
        loop {
            match applier.push(&mut piece) {
                Ok(Some(segment)) => {
                    assert_eq!(segment.offset, out.len() as u64);
                    out.extend(segment.content);
                }
                Ok(None) => break,
                Err(error) => return Err((error, out.len())),
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    if applier.is_done() { Ok(out) } else { Err((damaged("it ends early"), out.len())) }
}

/// Edits of a root: some bytes changed, put in, taken out, moved.
fn edited() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let edit =
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..600, any::<u64>(), 0u8..4);
    (any::<u64>(), 1usize..40_000, prop::collection::vec(edit, 0..8)).prop_map(|(seed, len, edits)| {
        let base = whole(noise(seed, len));
        let mut new = base.clone();
        for (at, other, len, seed, kind) in edits {
            let (at, other) = (at.index(new.len().max(1)), other.index(base.len()));
            let end = (at + len).min(new.len());
            let from = &base[other..(other + len).min(base.len())];
            match kind {
                0 => drop(new.splice(at..end, noise(seed, len))),
                1 => drop(new.splice(at..end, [])),
                2 => drop(new.splice(at..at, from.iter().copied())),
                _ => new[at..end].iter_mut().step_by(5).for_each(|byte| *byte = byte.wrapping_add(1)),
            }
        }
        (base, whole(new))
    })
}

/// A root of several segments, and one with a few bytes put in near its begin.
fn large() -> (Vec<u8>, Vec<u8>) {
    let base = whole(noise(7, 2 * SEGMENT + SEGMENT / 2));
    let mut new = base.clone();
    new.splice(5000..5000, b"a line more".repeat(9));
    (base, whole(new))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_patch_gives_the_new_root_whatever_the_pieces_it_comes_in(
        (base, new) in edited(), pieces in prop::collection::vec(1usize..3000, 1..6),
    ) {
        let patch = patch(&base, &new);
        prop_assert_eq!(apply(&base, &patch, &pieces).unwrap(), new);
    }

    #[test]
    fn any_pair_of_roots_can_be_patched(a in prop::collection::vec(0u8..3, 0..9000), b in prop::collection::vec(0u8..3, 0..9000)) {
        let (base, new) = (whole(a), whole(b));
        prop_assert_eq!(apply(&base, &patch(&base, &new), &[1 << 20]).unwrap(), new);
    }

    #[test]
    fn a_patch_that_was_cut_or_altered_gives_nothing_that_is_wrong(
        (base, new) in edited(), at in any::<prop::sample::Index>(), with in 1u8..,
    ) {
        let mut patch = patch(&base, &new);
        let at = at.index(patch.len());
        prop_assert!(apply(&base, &patch[..at], &[4096]).is_err());
        patch[at] ^= with;
        // What is not noticed changes nothing: a bit that zstd does not look at.
        if let Ok(made) = apply(&base, &patch, &[4096]) {
            prop_assert_eq!(made, new);
        }
    }

    #[test]
    fn any_bytes_behind_a_true_head_are_refused_and_no_panic(
        tail in prop::collection::vec(any::<u8>(), 0..400), numbers in prop::array::uniform5(prop_oneof![0u32..9, Just(4096), Just(8192), any::<u32>()]),
    ) {
        let mut bytes = [&b"caispat\x01"[..], &FROM, &TO].concat();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(tail);
        prop_assert!(apply(&vec![0; 8192], &bytes, &[512]).is_err());
    }
}

#[test]
fn a_change_of_a_few_bytes_makes_a_patch_of_some_hundred() {
    let (base, new) = large();
    let patch = patch(&base, &new);
    assert!(patch.len() < 1000, "{} bytes", patch.len());
    assert!(apply(&base, &patch, &[1000]).unwrap() == new);
    assert_eq!(patch, self::patch(&base, &new), "the same roots give the same bytes");
}

#[test]
fn an_update_that_was_cut_goes_on_at_any_segment() {
    let (base, new) = large();
    let patch = patch(&base, &new);
    for segment in 0..=3 {
        let mut applier = applier(&base);
        assert_eq!(applier.seek(segment).unwrap(), None);
        // The head comes with something behind it, as servers send it.
        let mut input = &patch[..patch.len() - 1];
        while applier.seek(segment).unwrap().is_none() {
            let mut piece = input.split_off(..50).unwrap();
            applier.push(&mut piece).unwrap();
        }
        let at = usize::try_from(applier.seek(segment).unwrap().unwrap()).unwrap();
        let (mut input, mut made) = (&patch[at..], segment as usize * SEGMENT);
        while let Some(found) = applier.push(&mut input).unwrap() {
            assert_eq!((found.number as usize, found.offset as usize), (made / SEGMENT, made));
            assert!(found.content == &new[made..made + found.content.len()]);
            made += found.content.len();
        }
        assert!(applier.is_done() && made >= new.len());
        assert!(matches!(applier.seek(4), Err(Error::NoSegment(4))));
    }
}

#[test]
fn a_patch_for_other_roots_is_refused_by_its_head() {
    let (base, new) = (vec![1; BLOCK], vec![2; 3 * BLOCK]);
    let patch = patch(&base, &new);
    let tell = |applier: Applier<&[u8]>| {
        let mut applier = applier;
        applier.push(&mut &patch[..HEAD_SIZE]).unwrap_err().to_string()
    };
    let wants = "01".repeat(32);
    assert_eq!(
        tell(Applier::new(&base, TO, TO, 1 << 30)),
        format!("the patch is for another root than the one that runs (it wants {wants})")
    );
    let makes = "02".repeat(32);
    assert_eq!(
        tell(Applier::new(&base, FROM, FROM, 1 << 30)),
        format!("the patch makes another root than the one that was asked for ({makes})")
    );
    assert_eq!(
        tell(Applier::new(&base, FROM, TO, 2 * BLOCK as u64)),
        "the patch makes a root of 12288 bytes, the slot has room for 8192"
    );
    let mut later = patch.clone();
    later[7] = 2;
    let error = applier(&base).push(&mut &later[..]).unwrap_err().to_string();
    assert_eq!(error, "the patch is damaged: it is of format 2, this version knows 1");
}

#[test]
fn a_base_that_is_not_what_it_was_is_noticed_before_anything_is_handed_out() {
    let (base, new) = large();
    let patch = patch(&base, &new);
    let mut changed = base.clone();
    changed[SEGMENT + SEGMENT / 2] ^= 1;
    let (error, made) = apply(&changed, &patch, &[1 << 20]).unwrap_err();
    assert!(matches!(error, Error::Segment { segment: 1 }), "{error}");
    assert_eq!(made, SEGMENT);
    let (error, made) = apply(&base[..2 * SEGMENT], &patch, &[1 << 20]).unwrap_err();
    assert!(matches!(error, Error::Base { .. }), "{error}");
    assert_eq!(made, 2 * SEGMENT);
}

#[test]
fn after_an_error_nothing_more_comes() {
    let (base, new) = (vec![1; BLOCK], vec![2; BLOCK]);
    let patch = patch(&base, &new);
    let mut applier = Applier::new(&base[..], TO, TO, 1 << 30);
    assert!(applier.push(&mut &patch[..]).is_err());
    assert_eq!(
        applier.push(&mut &patch[..]).unwrap_err().to_string(),
        "the patch is damaged: it was refused before"
    );
}

#[test]
fn more_bytes_than_a_patch_has_are_an_error() {
    let (base, new) = (vec![1; BLOCK], vec![2; BLOCK]);
    let longer = [patch(&base, &new), vec![0]].concat();
    let (error, made) = apply(&base, &longer, &[1 << 20]).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), made),
        ("the patch is damaged: it goes on behind its end", BLOCK)
    );
}

#[test]
fn a_segment_packed_into_more_than_it_could_take_is_refused_before_it_comes() {
    let (base, new) = (vec![1; BLOCK], vec![2; BLOCK]);
    let mut patch = patch(&base, &new);
    patch[HEAD_SIZE..HEAD_SIZE + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = applier(&base).push(&mut &patch[..HEAD_SIZE + ENTRY_SIZE]).unwrap_err().to_string();
    assert_eq!(error, "the patch is damaged: a segment is longer than it may be");
}

/// Reads that count.
struct Slow<'a>(&'a [u8], std::cell::Cell<u64>);

impl ReadAt for Slow<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.1.set(self.1.get() + buffer.len() as u64);
        self.0.read_at(offset, buffer)
    }
}

#[test]
fn each_byte_of_the_base_that_is_used_is_read_once() {
    let (base, new) = large();
    let patch = patch(&base, &new);
    let slow = Slow(&base, 0.into());
    let mut applier = Applier::new(&slow, FROM, TO, 1 << 30);
    let mut input = &patch[..];
    while applier.push(&mut input).unwrap().is_some() {}
    assert!(slow.1.get() <= new.len() as u64, "{} bytes read for {}", slow.1.get(), new.len());
}

/// A program as linkers lay it out: addresses, call frames, then code behind a page's gap; each function calls others and reads data.
/// The functions have these sizes.
fn program(sizes: &[usize]) -> Vec<u8> {
    const CODE: usize = 4096 * 8;
    const GAP: usize = 4096;
    let starts: Vec<usize> = sizes
        .iter()
        .scan(CODE, |at, size| {
            *at += size;
            Some(*at - size)
        })
        .collect();
    let end = CODE + sizes.iter().sum::<usize>();
    let mut file = vec![0; end.next_multiple_of(BLOCK)];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &[62, 0]);
    put(32, &64u64.to_le_bytes());
    put(56, &3u16.to_le_bytes());
    let (table, frames) = (4096 * 4, 4096 * 5);
    let table_size = 12 + 8 * sizes.len();
    for (at, (kind, flags, offset, address, size)) in [
        (1u32, 4u32, 0, 0, CODE),
        (1, 5, CODE, CODE + GAP, end - CODE),
        (0x6474_e550, 4, table, table, table_size),
    ]
    .into_iter()
    .enumerate()
    {
        put(64 + 56 * at, &kind.to_le_bytes());
        put(68 + 56 * at, &flags.to_le_bytes());
        for (number, value) in [(8, offset), (16, address), (32, size), (40, size)] {
            put(64 + 56 * at + number, &(value as u64).to_le_bytes());
        }
    }
    let frames = frames.max((table + table_size).next_multiple_of(8));
    put(frames, &20u32.to_le_bytes());
    for (number, (start, size)) in starts.iter().zip(sizes).enumerate() {
        let address = start + GAP;
        put(4096 + 8 * number, &(address as u64).to_le_bytes());
        let record = frames + 24 * (number + 1);
        put(table + 12 + 8 * number, &((address as i32) - table as i32).to_le_bytes());
        put(table + 16 + 8 * number, &((record - table) as u32).to_le_bytes());
        put(record, &20u32.to_le_bytes());
        put(record + 4, &((record + 4 - frames) as u32).to_le_bytes());
        put(record + 8, &(address as i32 - (record + 8) as i32).to_le_bytes());
        put(record + 12, &(*size as u32).to_le_bytes());
        let body = noise(number as u64 + 1, *size);
        put(*start, &body);
        for (call, at) in (20..size - 20).step_by(30).enumerate() {
            let target = starts[(number * 7 + call * 13) % starts.len()] + GAP;
            put(start + at, &[0xe8]);
            put(start + at + 1, &(target as i32 - (address + at + 5) as i32).to_le_bytes());
            // lea rdi, [rip + …]
            let data = 4096 + 8 * ((number + call) % sizes.len());
            put(start + at + 8, &[0x48, 0x8d, 0x3d]);
            put(start + at + 11, &(data as i32 - (address + at + 15) as i32).to_le_bytes());
        }
    }
    file
}

fn sizes() -> Vec<usize> {
    (0..150).map(|number| 200 + 37 * (number % 11)).collect()
}

/// A root with a program of two functions that grow.
fn two_programs() -> (Vec<u8>, Vec<u8>) {
    let mut sizes = sizes();
    let base = [vec![0; BLOCK], program(&sizes)].concat();
    sizes[40] += 29;
    sizes[90] += 5;
    (base, [vec![0; BLOCK], program(&sizes)].concat())
}

#[test]
fn a_function_that_grew_does_not_make_each_call_a_difference() {
    let (base, new) = two_programs();
    let changed = base.iter().zip(&new).filter(|(a, b)| a != b).count();
    assert!(changed > 40_000, "{changed} bytes of {} differ", new.len());
    let patch = patch(&base, &new);
    assert!(apply(&base, &patch, &[1000]).unwrap() == new);
    // The same without the begin of an ELF file: nothing is taken for a program, nothing foretold.
    let hide = |mut root: Vec<u8>| {
        root[BLOCK] = 0;
        root
    };
    let plain = self::patch(&hide(base), &hide(new));
    assert!(4 * patch.len() < plain.len(), "{} bytes, {} without", patch.len(), plain.len());
}

/// A node applies by the rule that it was built with: another rule is another version of the format.
#[test]
fn what_is_foretold_stays_the_same() {
    use sha2::{Digest, Sha256};
    let (base, new) = two_programs();
    let grown = |functions: usize| (9 * BLOCK + sizes()[..functions].iter().sum::<usize>()) as u32;
    let stretches = [(0, grown(41), 0), (grown(41), grown(91), 29), (grown(91), base.len() as u32 - 34, 34)]
        .map(|(old, end, moved)| plan::Stretch { old, new: old + moved, size: end - old });
    let programs = elf::programs(&base, &new, &stretches);
    assert_eq!(programs.len(), 1);
    let shifts = plan::Shifts::new(&stretches);
    let predictor = predict::Predictor { programs: &programs, rule: predict::Rule::Moved(&shifts) };
    let mut digest = Sha256::new();
    for stretch in stretches {
        let mut bytes = base[stretch.old as usize..][..stretch.size as usize].to_vec();
        predictor.predict(stretch, &mut bytes);
        digest.update(bytes);
    }
    assert_eq!(
        hex(&digest.finalize().into()),
        "3b7c0e5b8528b22e28f7b914c42bce3d5fd7e45cdf51ff4214722a5f257a1dd2"
    );
}
