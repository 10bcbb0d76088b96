//! What the strictest disk has after a power cut: what was flushed, and nothing else.

use anyhow::{Context, Result, ensure};
use build::artifacts::copy_sparse;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::record::{Event, SECTOR, read_flushed};

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Makes `disk` from `before`, the disk as it was when the record began, and all that was written up to the last flush of the record.
/// Returns what there was, for a person.
pub fn rebuild(before: &Path, record: &Path, disk: &Path) -> Result<String> {
    let record = fs::read(record).with_context(|| format!("cannot read {}", record.display()))?;
    let (events, what) = read_flushed(&record)?;
    ensure!(!events.is_empty(), "nothing was flushed");
    copy_sparse(before, disk)?;
    let disk = File::options().write(true).open(disk)?;
    for event in events {
        let Event::Write { sector, sectors, data } = event else { continue };
        let mut at = sector * SECTOR as u64;
        match data {
            Some(data) => {
                let data = record.get(data).context("a write that is not in the record")?;
                disk.write_all_at(data, at)?;
            }
            None => {
                let end = at + sectors * SECTOR as u64;
                ensure!(end <= disk.metadata()?.len(), "a discard that ends after the disk");
                while at < end {
                    let some = (end - at).min(ZEROS.len() as u64);
                    disk.write_all_at(&ZEROS[..usize::try_from(some)?], at)?;
                    at += some;
                }
            }
        }
    }
    Ok(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::EMPTY_RECORD;

    #[test]
    fn what_was_not_flushed_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let [before, record, disk] = ["before", "record", "disk"].map(|name| folder.path().join(name));
        fs::write(&before, [1; 4 * SECTOR]).unwrap();
        let mut log = EMPTY_RECORD.to_vec();
        // The last entry was not written any more.
        log[16] = 5;
        for (sector, sectors, flags, content) in [(0, 1, 0, 2), (2, 1, 4, 0), (0, 0, 1, 0), (1, 1, 0, 3)] {
            let mut entry: Vec<u8> =
                [sector, sectors, flags, 0_u64].iter().flat_map(|field| field.to_le_bytes()).collect();
            entry.resize(if content == 0 { SECTOR } else { 2 * SECTOR }, content);
            entry[32..SECTOR].fill(0);
            log.extend(entry);
        }
        log.extend([0; SECTOR]);
        fs::write(&record, log).unwrap();
        rebuild(&before, &record, &disk).unwrap();
        let expected = [2, 1, 0, 1].map(|content| [content; SECTOR]).concat();
        assert!(fs::read(&disk).unwrap() == expected);
    }
}
