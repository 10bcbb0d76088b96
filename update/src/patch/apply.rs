//! Applies a patch as it comes: bytes in, in pieces of any size; segments of the new root out, in order, each checked before it is
//! handed out.
//!
//! Memory, at most: a segment, the same packed, twice a segment for unpacking; and the plan (16 bytes a stretch). Below 10 MiB.

use sha2::{Digest, Sha256};
use std::io::Read;

use super::head::{Entry, HEAD_SIZE, Head};
use super::plan::{Plan, Shifts};
use super::predict::{Predictor, Rule};
use super::{Error, damaged};
use crate::verity::Hash;
use crate::{ReadAt, frame};

/// A patch that is being applied.
pub struct Applier<B> {
    base: B,
    /// Root hash of the base.
    from: Hash,
    /// Root hash that the new root is to have.
    to: Hash,
    /// Bytes that the slot has.
    room: u64,
    state: State,
    /// What came of the part that is waited for.
    buffer: Vec<u8>,
    out: Vec<u8>,
}

enum State {
    Head,
    Table(Head),
    Plan(Head, Vec<Entry>),
    Segments(Box<Ready>),
    Refused,
}

struct Ready {
    head: Head,
    table: Vec<Entry>,
    plan: Plan,
    shifts: Shifts,
    next: u32,
}

/// A piece of the new root.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub number: u32,
    /// Where it goes, bytes from the root's begin.
    pub offset: u64,
    pub content: &'a [u8],
}

impl<B: ReadAt> Applier<B> {
    /// For a patch of `base`, whose root hash is `from`, to the root with the hash `to`, in a slot of `room` bytes.
    pub fn new(base: B, from: Hash, to: Hash, room: u64) -> Self {
        Self { base, from, to, room, state: State::Head, buffer: Vec::new(), out: Vec::new() }
    }

    /// The patch's head, once it is here.
    pub fn head(&self) -> Option<&Head> {
        match &self.state {
            State::Head | State::Refused => None,
            State::Table(head) | State::Plan(head, _) => Some(head),
            State::Segments(ready) => Some(&ready.head),
        }
    }

    /// True when each segment was handed out.
    pub fn is_done(&self) -> bool {
        matches!(&self.state, State::Segments(ready) if ready.next >= ready.head.segments())
    }

    /// To go on where an update was cut: with what comes next, `segment` begins. Gives where that is in the patch, bytes from its
    /// begin; none as long as head, table and plan are not here. What came behind the plan is forgotten.
    ///
    /// # Errors
    ///
    /// When there is no such segment.
    pub fn seek(&mut self, segment: u32) -> Result<Option<u64>, Error> {
        let State::Segments(ready) = &mut self.state else { return Ok(None) };
        if segment > ready.head.segments() {
            return Err(Error::NoSegment(segment));
        }
        ready.next = segment;
        self.buffer.clear();
        let before =
            ready.table.iter().take(segment as usize).map(|entry| u64::from(entry.packed)).sum::<u64>();
        let start = HEAD_SIZE + ready.head.table_size() + ready.head.plan_packed as usize;
        Ok(Some(start as u64 + before))
    }

    /// Takes bytes of the patch from the front of `input`, until a segment is done or nothing is left.
    ///
    /// # Errors
    ///
    /// When the patch is damaged, hostile, or not for this base; nothing more comes of it then.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Segment<'_>>, Error> {
        loop {
            let want = match &self.state {
                State::Refused => return Err(damaged("it was refused before")),
                State::Head => HEAD_SIZE,
                State::Table(head) => head.table_size(),
                State::Plan(head, _) => head.plan_packed as usize,
                State::Segments(ready) => match ready.table.get(ready.next as usize) {
                    Some(entry) => entry.packed as usize,
                    None if input.is_empty() => return Ok(None),
                    None => return Err(damaged("it goes on behind its end")),
                },
            };
            let take = want.saturating_sub(self.buffer.len()).min(input.len());
            let (taken, rest) = input.split_at(take);
            self.buffer.extend_from_slice(taken);
            *input = rest;
            if self.buffer.len() < want {
                return Ok(None);
            }
            if let Some((number, offset)) = self.part()? {
                return Ok(Some(Segment { number, offset, content: &self.out }));
            }
        }
    }

    /// The buffer has the whole part that was waited for.
    fn part(&mut self) -> Result<Option<(u32, u64)>, Error> {
        let mut done = None;
        self.state = match std::mem::replace(&mut self.state, State::Refused) {
            State::Refused => State::Refused,
            State::Head => {
                let bytes = self.buffer.first_chunk().ok_or_else(|| damaged("its head is short"))?;
                State::Table(self.check(Head::parse(bytes)?)?)
            }
            State::Table(head) => {
                let table = head.parse_table(&self.buffer)?;
                State::Plan(head, table)
            }
            State::Plan(head, table) => {
                let mut bytes = vec![0; head.plan_size as usize];
                frame::unpack(&self.buffer, &mut bytes).map_err(damaged)?;
                let plan = Plan::parse(&bytes, head.base_size, head.new_size)?;
                let shifts = Shifts::new(&plan.stretches);
                State::Segments(Box::new(Ready { head, table, plan, shifts, next: 0 }))
            }
            State::Segments(mut ready) => {
                let offset = self.segment(&ready)?;
                done = Some((ready.next, offset));
                ready.next += 1;
                State::Segments(ready)
            }
        };
        self.buffer.clear();
        Ok(done)
    }

    fn check(&self, head: Head) -> Result<Head, Error> {
        if head.base != self.from {
            return Err(Error::OtherBase { wants: head.base });
        }
        if head.new != self.to {
            return Err(Error::OtherResult { makes: head.new });
        }
        if u64::from(head.new_size) > self.room {
            return Err(Error::TooLarge { makes: head.new_size, room: self.room });
        }
        Ok(head)
    }

    /// Makes the next segment in `out`.
    fn segment(&mut self, ready: &Ready) -> Result<u64, Error> {
        let range = ready.head.range(ready.next);
        let entry = ready.table.get(ready.next as usize).ok_or(Error::NoSegment(ready.next))?;
        self.out.clear();
        self.out.resize(range.len(), 0);
        let mut packed = frame::open(&self.buffer, range.len()).map_err(damaged)?;
        let mut read = |into: &mut [u8]| packed.read_exact(into).map_err(|error| damaged(error.to_string()));
        // As they are: the gaps between stretches.
        let mut at = 0;
        for stretch in ready.plan.within(range.clone()) {
            let start = (stretch.new - range.start) as usize;
            read(self.out.get_mut(at..start).ok_or_else(|| damaged("its stretches overlap"))?)?;
            at = start + stretch.size as usize;
        }
        read(self.out.get_mut(at..).unwrap_or_default())?;
        let predictor = Predictor { programs: &ready.plan.programs, rule: Rule::Moved(&ready.shifts) };
        let mut difference = vec![0; 64 << 10];
        for stretch in ready.plan.within(range.clone()) {
            let start = (stretch.new - range.start) as usize;
            let place = self.out.get_mut(start..).and_then(|out| out.get_mut(..stretch.size as usize));
            let place = place.ok_or_else(|| damaged("its stretches overlap"))?;
            let offset = u64::from(stretch.old);
            self.base.read_at(offset, place).map_err(|error| Error::Base { offset, error })?;
            predictor.predict(stretch, place);
            for place in place.chunks_mut(difference.len()) {
                let difference = &mut difference[..place.len()];
                read(difference)?;
                place
                    .iter_mut()
                    .zip(difference)
                    .for_each(|(byte, difference)| *byte = byte.wrapping_add(*difference));
            }
        }
        frame::at_end(&mut packed).map_err(damaged)?;
        if Hash::from(Sha256::digest(&self.out)) != entry.digest {
            return Err(Error::Segment { segment: ready.next });
        }
        Ok(u64::from(range.start))
    }
}
