//! The record of a disk's writes that QEMU's `blklogwrites` makes: the format of the kernel's dm-log-writes
//! (`Documentation/admin-guide/device-mapper/log-writes.rst`, `drivers/md/dm-log-writes.c`).

use anyhow::{Context, Result, ensure};
use std::ops::Range;

/// Bytes of a sector, of the disk and of the record.
pub(super) const SECTOR: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// A record that begins: magic, version 1, no entries, 512-byte sectors.
pub const EMPTY_RECORD: [u8; SECTOR] = {
    let mut bytes = [0; SECTOR];
    let magic = MAGIC.to_le_bytes();
    let mut at = 0;
    while at < magic.len() {
        bytes[at] = magic[at];
        at += 1;
    }
    bytes[8] = 1;
    bytes[25] = 2;
    bytes
};

/// What happened to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `data`: where in the record; none for a discard, after which zeros are read.
    Write { sector: u64, sectors: u64, data: Option<Range<usize>> },
    /// All that was written before is on the disk.
    Flush,
}

/// All events of a record, in the order in which they were begun; where a guest writes while a flush is under way, that is kinder than
/// a disk may be, and what waits for its own writes before it flushes does not care. QEMU flushes too when it ends, which is at each
/// restart of the guest. A write that is to be on the disk at once (FUA) is one with a flush after it: stricter than
/// what it says, and virtio has none.
pub fn read_record(record: &[u8]) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    read(record, &mut events)?;
    Ok(events)
}

/// Entries of a record that may not be written yet when QEMU is killed: as many as the two queues of a disk have requests, one for each
/// processor of the node.
const UNDER_WAY: u64 = 512;

/// The events up to the last flush of a record whose QEMU was killed, and what was lost. It may end in what was not written to it any
/// more; an error when it has a hole before that, as after a write that failed.
pub(super) fn read_flushed(record: &[u8]) -> Result<(Vec<Event>, String)> {
    let (mut events, mut unread) = (Vec::new(), 0);
    if let Err(error) = read(record, &mut events) {
        unread = number(record, 16)?.saturating_sub(events.len() as u64);
        ensure!(unread <= UNDER_WAY, "{error:#}: the record has a hole");
    }
    let flushed = events.iter().rposition(|event| *event == Event::Flush).unwrap_or(0);
    let lost = events.len() - flushed;
    let what = format!(
        "{flushed} events up to the last flush; {lost} later ones are lost, and {unread} were under way"
    );
    events.truncate(flushed);
    Ok((events, what))
}

fn read(record: &[u8], events: &mut Vec<Event>) -> Result<()> {
    ensure!(number(record, 0)? == MAGIC && number(record, 8)? == 1, "this is no record of writes");
    let count = number(record, 16)?;
    let mut at = SECTOR;
    for entry in 0..count {
        let (sector, sectors, flags) =
            (number(record, at)?, number(record, at + 8)?, number(record, at + 16)?);
        ensure!(sectors > 0 || flags > 0, "entry {entry} of {count} was not written");
        at += SECTOR;
        // What comes with a flush is written after it.
        if flags & FLUSH != 0 {
            events.push(Event::Flush);
        }
        if sectors == 0 {
            continue;
        }
        let data = if flags & DISCARD == 0 {
            let bytes = usize::try_from(sectors)?.checked_mul(SECTOR).context("a write without end")?;
            let end = at.checked_add(bytes).filter(|end| *end <= record.len());
            let data = at..end.with_context(|| format!("the record ends in entry {entry} of {count}"))?;
            at = data.end;
            Some(data)
        } else {
            None
        };
        events.push(Event::Write { sector, sectors, data });
        if flags & FUA != 0 {
            events.push(Event::Flush);
        }
    }
    Ok(())
}

fn number(record: &[u8], at: usize) -> Result<u64> {
    let bytes = record.get(at..at + 8).with_context(|| format!("the record ends at byte {at}"))?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sector: u64, sectors: u64, flags: u64, data: &[u8]) -> Vec<u8> {
        let mut entry: Vec<u8> =
            [sector, sectors, flags, 0].iter().flat_map(|field| field.to_le_bytes()).collect();
        entry.resize(SECTOR, 0);
        entry.extend_from_slice(data);
        entry
    }

    #[test]
    fn writes_flushes_and_discards_come_in_their_order() {
        let mut record = EMPTY_RECORD.to_vec();
        assert_eq!(read_record(&record).unwrap(), []);
        record[16] = 4;
        record.extend(entry(7, 2, 0, &[1; 2 * SECTOR]));
        record.extend(entry(0, 0, FLUSH, &[]));
        record.extend(entry(9, 4, DISCARD, &[]));
        record.extend(entry(1, 1, FUA, &[2; SECTOR]));
        let events = read_record(&record).unwrap();
        assert_eq!(
            events,
            [
                Event::Write { sector: 7, sectors: 2, data: Some(1024..2048) },
                Event::Flush,
                Event::Write { sector: 9, sectors: 4, data: None },
                Event::Write { sector: 1, sectors: 1, data: Some(3584..4096) },
                Event::Flush,
            ]
        );
        assert!(read_record(&record[..4000]).unwrap_err().to_string().contains("entry 3 of 4"));
        assert!(read_record(&[0; SECTOR]).is_err());
    }

    #[test]
    fn what_was_under_way_may_be_missing_and_nothing_else() {
        let mut record = EMPTY_RECORD.to_vec();
        record.extend(entry(0, 0, FLUSH, &[]));
        record.extend(entry(1, 1, 0, &[1; SECTOR]));
        record.extend([0; SECTOR]);
        record[16] = 4;
        assert_eq!(read_flushed(&record).unwrap().0, []);
        record[16..18].copy_from_slice(&1000_u16.to_le_bytes());
        let error = read_flushed(&record).unwrap_err().to_string();
        assert_eq!(error, "entry 2 of 1000 was not written: the record has a hole");
    }
}
