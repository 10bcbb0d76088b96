//! All that a power cut may leave of a disk's writes: what was flushed is there, and of what came after, anything.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

use super::record::{Event, SECTOR};

/// Sectors of a block, which some disks write whole.
const BLOCK: usize = 8;
/// Of so many sectors of the table and of names, all subsets are tried.
const ALL_SUBSETS: usize = 10;
/// Else so many.
const SOME_SUBSETS: usize = 16_384;
const MOST_FAILURES: usize = 20;

/// How much of what was not flushed is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The first writes, whole.
    Prefix,
    /// The same, and of the last one the first blocks of 4 KiB.
    TornAtBlock,
    /// The same, and of the last one the first sectors of 512 bytes.
    TornAtSector,
    /// The last sectors.
    OnlyTheEnd,
    /// All but one sector.
    WithoutSector,
    /// All but one block of 4 KiB.
    WithoutBlock,
    /// One sector.
    OnlySector,
    /// Any sectors.
    AnySectors,
    /// Any sectors of the table, of folders and of the FAT, and all of the rest or nothing.
    AnyNames,
}

/// A disk, of which it is judged whether what has to hold does.
pub trait Subject {
    /// A sector that matters.
    type Place: Copy;
    /// What of a sector's bytes is kept.
    type Content;
    /// What holds.
    type State: Clone + Ord;

    /// How many of the cuts that are taken at random: three times so many for each sector.
    const AT_RANDOM: usize;

    /// None for what does not matter.
    fn place(&self, sector: usize) -> Option<Self::Place>;
    fn content(&self, place: Self::Place, bytes: &[u8; SECTOR]) -> Self::Content;
    fn get(&self, place: Self::Place) -> Self::Content;
    fn set(&mut self, place: Self::Place, content: &Self::Content);
    /// Whether the last verdict hangs on a sector that says where other things are.
    fn is_watched(&self, place: Self::Place) -> bool;
    /// What holds now; an error, in words, when what has to does not.
    fn verdict(&mut self) -> &Result<Self::State, String>;
    /// Whether something is odd that does no harm.
    fn is_shared(&self) -> bool {
        false
    }
}

/// What a sweep found.
#[derive(Debug)]
pub struct Report<S> {
    /// Cut points, each judged.
    pub points: BTreeMap<Kind, u64>,
    /// How often each state was found.
    pub states: BTreeMap<S, u64>,
    /// Neither what held before the writes nor what holds after them, such as when an entry was lost in a rename.
    pub elsewhere: u64,
    /// As [`Subject::is_shared`] says.
    pub shared: u64,
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<String>,
    /// What holds after each flush, where that is another than before.
    pub story: Vec<Result<S, String>>,
}

impl<S> Report<S> {
    pub fn total(&self) -> u64 {
        self.points.values().sum()
    }
}

/// A sector that was written and not flushed.
struct Pending<C> {
    cell: usize,
    content: C,
    /// The write ends with it, or a block of the disk does.
    ends_write: bool,
    ends_block: bool,
    block: usize,
}

/// A place on the disk and all that was written there.
struct Cell<P, C> {
    place: P,
    before: C,
    writes: Vec<usize>,
}

/// The writes between two flushes, and which of them are on the disk.
struct Round<'a, J: Subject> {
    judge: &'a mut J,
    report: &'a mut Report<J::State>,
    number: usize,
    pending: Vec<Pending<J::Content>>,
    cells: Vec<Cell<J::Place, J::Content>>,
    is_there: Vec<bool>,
    /// What holds without any of them, and with all.
    ends: [Result<J::State, String>; 2],
}

/// Judges the disk after each cut that there may have been. `judge` has the disk as it was before the first event; when this returns,
/// it is as after the last one.
pub fn sweep<J: Subject>(judge: &mut J, record: &[u8], events: &[Event], seed: u64) -> Report<J::State> {
    let mut report = Report {
        points: BTreeMap::new(),
        states: BTreeMap::new(),
        elsewhere: 0,
        shared: 0,
        failed: 0,
        failures: Vec::new(),
        story: Vec::new(),
    };
    report.story.push(judge.verdict().clone());
    let mut random = Random(seed);
    for (number, events) in events.split(|event| *event == Event::Flush).enumerate() {
        let mut round = Round::new(judge, &mut report, number, record, events);
        if !round.pending.is_empty() {
            round.sweep(&mut random);
        }
    }
    report
}

impl<'a, J: Subject> Round<'a, J> {
    fn new(
        judge: &'a mut J,
        report: &'a mut Report<J::State>,
        number: usize,
        record: &[u8],
        events: &[Event],
    ) -> Self {
        let mut pending: Vec<Pending<J::Content>> = Vec::new();
        let mut cells: Vec<Cell<J::Place, J::Content>> = Vec::new();
        let mut known = HashMap::new();
        for event in events {
            let Event::Write { sector, sectors, data } = event else { continue };
            let first = usize::try_from(*sector).unwrap_or(usize::MAX);
            for at in 0..usize::try_from(*sectors).unwrap_or(0) {
                let Some(place) = judge.place(first.saturating_add(at)) else { continue };
                let bytes = match data {
                    Some(data) => sector_of(record, data, at),
                    None => [0; SECTOR],
                };
                let cell = *known.entry(first + at).or_insert_with(|| {
                    cells.push(Cell { place, before: judge.get(place), writes: Vec::new() });
                    cells.len() - 1
                });
                cells[cell].writes.push(pending.len());
                pending.push(Pending {
                    cell,
                    content: judge.content(place, &bytes),
                    ends_write: false,
                    ends_block: (first + at + 1) % BLOCK == 0,
                    block: (first + at) / BLOCK,
                });
            }
            if let Some(last) = pending.last_mut() {
                last.ends_write = true;
            }
        }
        let before = judge.verdict().clone();
        let is_there = vec![false; pending.len()];
        Self { judge, report, number, pending, cells, is_there, ends: [before.clone(), before] }
    }

    fn sweep(&mut self, random: &mut Random) {
        let count = self.pending.len();
        let watched = |this: &Self| -> Vec<bool> {
            this.pending.iter().map(|pending| this.judge.is_watched(this.cells[pending.cell].place)).collect()
        };
        let names_before = watched(self);
        self.all(true);
        self.ends[1] = self.judge.verdict().clone();
        let names: Vec<usize> = (names_before.into_iter().zip(watched(self)).enumerate())
            .filter_map(|(number, (before, after))| (before || after).then_some(number))
            .collect();

        self.all(false);
        self.judge(Kind::Prefix);
        for number in 0..count {
            self.flip(number);
            self.judge(match &self.pending[number] {
                Pending { ends_write: true, .. } => Kind::Prefix,
                Pending { ends_block: true, .. } => Kind::TornAtBlock,
                _ => Kind::TornAtSector,
            });
        }
        for number in 0..count {
            self.flip(number);
            self.judge(Kind::WithoutSector);
            self.flip(number);
        }
        for block in self.blocks() {
            block.clone().for_each(|number| self.flip(number));
            self.judge(Kind::WithoutBlock);
            block.for_each(|number| self.flip(number));
        }
        for number in 0..count {
            self.flip(number);
            self.judge(Kind::OnlyTheEnd);
        }
        for number in 0..count {
            self.flip(number);
            self.judge(Kind::OnlySector);
            self.flip(number);
        }
        // About half of them, few, and nearly all.
        for there in [8, 1, 15] {
            for number in 0..count {
                if self.is_there[number] != (random.below(16) < there) {
                    self.flip(number);
                }
            }
            for _ in 0..J::AT_RANDOM * count {
                let number = random.below(count);
                if self.is_there[number] != (random.below(16) < there) {
                    self.flip(number);
                    self.judge(Kind::AnySectors);
                }
            }
        }
        for rest in [false, true] {
            if names.is_empty() || (rest && names.len() == count) {
                continue;
            }
            self.all(rest);
            for number in &names {
                if self.is_there[*number] {
                    self.flip(*number);
                }
            }
            if names.len() <= ALL_SUBSETS {
                self.judge(Kind::AnyNames);
                // In Gray's order, where the next subset differs in one.
                for step in 1..1usize << names.len() {
                    self.flip(names[step.trailing_zeros() as usize]);
                    self.judge(Kind::AnyNames);
                }
            } else {
                for _ in 0..SOME_SUBSETS {
                    self.flip(names[random.below(names.len())]);
                    self.judge(Kind::AnyNames);
                }
            }
        }
        self.all(true);
        let now = self.judge.verdict().clone();
        if self.report.story.last() != Some(&now) {
            self.report.story.push(now);
        }
    }

    /// Runs of pending sectors that are in one block.
    fn blocks(&self) -> Vec<Range<usize>> {
        let mut blocks: Vec<Range<usize>> = Vec::new();
        for (number, pending) in self.pending.iter().enumerate() {
            match blocks.last_mut() {
                Some(last) if self.pending[last.start].block == pending.block => last.end = number + 1,
                _ => blocks.push(number..number + 1),
            }
        }
        blocks
    }

    /// Puts a sector on the disk, or takes it away again. Of several for one place the last one that is there counts.
    fn flip(&mut self, number: usize) {
        self.is_there[number] = !self.is_there[number];
        let cell = &self.cells[self.pending[number].cell];
        let last = cell.writes.iter().rev().find(|number| self.is_there[**number]);
        let content = last.map_or(&cell.before, |number| &self.pending[*number].content);
        self.judge.set(cell.place, content);
    }

    fn all(&mut self, there: bool) {
        for number in 0..self.pending.len() {
            if self.is_there[number] != there {
                self.flip(number);
            }
        }
    }

    fn judge(&mut self, kind: Kind) {
        *self.report.points.entry(kind).or_default() += 1;
        let verdict = self.judge.verdict();
        match verdict {
            Ok(state) => {
                *self.report.states.entry(state.clone()).or_default() += 1;
                self.report.elsewhere += u64::from(!self.ends.contains(verdict));
            }
            Err(reason) => {
                self.report.failed += 1;
                if self.report.failures.len() < MOST_FAILURES {
                    let there = self.is_there.iter().filter(|there| **there).count();
                    self.report.failures.push(format!(
                        "{reason}: {kind}, {there} of the {} sectors that were written after flush {}",
                        self.pending.len(),
                        self.number
                    ));
                }
            }
        }
        self.report.shared += u64::from(self.judge.is_shared());
    }
}

fn sector_of(record: &[u8], data: &Range<usize>, at: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let start = data.start + at * SECTOR;
    if let Some(found) = record.get(start..start + SECTOR) {
        bytes.copy_from_slice(found);
    }
    bytes
}

impl fmt::Display for Kind {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str(match self {
            Self::Prefix => "the first writes, whole",
            Self::TornAtBlock => "the last write torn at 4 KiB",
            Self::TornAtSector => "the last write torn at 512 bytes",
            Self::OnlyTheEnd => "only the last sectors",
            Self::WithoutSector => "all but one sector",
            Self::WithoutBlock => "all but one block of 4 KiB",
            Self::OnlySector => "only one sector",
            Self::AnySectors => "any sectors",
            Self::AnyNames => "any sectors of the table and the names",
        })
    }
}

/// SplitMix64: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap_or(0)
    }
}
