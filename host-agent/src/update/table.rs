//! The partition table: a slot is named by the hash of what is in it.
//!
//! A root's PARTUUID is the first half of its root hash, its verity partition's the second half. A power cut after any of the writes
//! leaves a table that firmware and kernel read: first the backup at the disk's end, flushed, then the primary one. While the primary
//! is torn, both take the backup (UEFI specification, 5.3.2; the kernel by `gpt` on its command line).

use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use update::verity::Hash;

const SECTOR: u64 = 512;
/// Entries of a table, and bytes of each, as `disk.img` has them. With others, which the specification allows, a header could ask
/// for any memory, and the backup would not fit where it is written.
const ENTRIES: (u32, u32) = (128, 128);
/// Sectors of all entries.
const ARRAY: u64 = 32;

/// What a table is on: a disk, or a model of one.
pub trait Medium: Read + Write + Seek {
    /// What was written survives a power cut when this returns.
    fn flush_all(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn flush_all(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// The PARTUUIDs of a root and its tree, as they are on disk: the first three fields with the lowest byte first.
fn guids(hash: &Hash) -> [[u8; 16]; 2] {
    let guid = |half: &[u8]| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(half);
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    };
    [guid(&hash[..16]), guid(&hash[16..])]
}

/// Names the partitions with these numbers by the root hash. `size`: of the disk, in bytes. A table that has one good copy has two
/// when this returns.
pub fn name_slot(disk: &mut impl Medium, size: u64, numbers: [u32; 2], hash: &Hash) -> Result<(), String> {
    let (mut table, last) = read(disk, size)?;
    for number in numbers {
        if !table.iter().any(|(known, entry)| known == number && entry.is_used()) {
            return Err(format!("the disk's partition table has no partition {number}; nothing was changed"));
        }
    }
    let guids = guids(hash);
    let is_in_order =
        table.is_primary() && table.header.backup_lba == last && backup_is_good(disk, &table, last);
    let named = |table: &GPT| {
        numbers.iter().zip(&guids).all(|(number, guid)| table[*number].unique_partition_guid == *guid)
    };
    if is_in_order && named(&table) {
        return Ok(());
    }
    for (number, guid) in numbers.iter().zip(guids) {
        table[*number].unique_partition_guid = guid;
    }
    write(disk, last, &table).map_err(|error| {
        format!("cannot write the disk's partition table: {error}; the copy that was not written still holds")
    })
}

/// The table, if it is one of ours, and the number of the last sector.
fn read(disk: &mut impl Medium, size: u64) -> Result<(GPT, u64), String> {
    let last = (size / SECTOR).checked_sub(1).filter(|last| *last > 2 * ARRAY + 2);
    let last = last.ok_or_else(|| {
        format!("the disk has {size} bytes, too few for a partition table; nothing was changed")
    })?;
    for lba in [1, last] {
        check_shape(disk, lba, last)?;
    }
    let table = GPT::read_from(disk, SECTOR).map_err(|error| {
        format!("neither copy of the disk's partition table can be read: {error}; nothing was changed")
    })?;
    Ok((table, last))
}

/// Whether the header at a sector, if one can be read there, is of a table that we can read and write again. What is believed of it
/// after that is bounded.
fn check_shape(disk: &mut impl Medium, lba: u64, last: u64) -> Result<(), String> {
    let header =
        disk.seek(io::SeekFrom::Start(lba * SECTOR)).ok().and_then(|_| GPTHeader::read_from(disk).ok());
    let Some(header) = header else { return Ok(()) };
    let shape = (header.number_of_partition_entries, header.size_of_partition_entry);
    let is_on_disk = header.partition_entry_lba.checked_add(ARRAY).is_some_and(|end| end <= last + 1);
    if shape == ENTRIES && is_on_disk && header.primary_lba == lba {
        // Of partitions that all begin at sector 0 gptman asks for what they have in common, and panics.
        let entries = header.read_partitions(disk, SECTOR).unwrap_or_default();
        if entries.iter().any(|entry| entry.is_used() && entry.starting_lba == 0) {
            return Err(format!(
                "the partition table at sector {lba} of the disk has a partition that begins at sector 0, where none can; nothing was changed"
            ));
        }
        return Ok(());
    }
    Err(format!(
        "the partition table at sector {lba} of the disk is not one of ours ({} entries of {} bytes from sector {}): the disk was not made from disk.img, or its table was changed; nothing was changed",
        shape.0, shape.1, header.partition_entry_lba
    ))
}

/// Whether the table of a disk of `size` bytes names the partitions with these numbers by the root hash.
pub(super) fn is_named(
    disk: &mut impl Medium,
    size: u64,
    numbers: [u32; 2],
    hash: &Hash,
) -> Result<bool, String> {
    let (table, _) = read(disk, size)?;
    let has = |(number, guid): (&u32, [u8; 16])| {
        table.iter().any(|(known, entry)| known == *number && entry.unique_partition_guid == guid)
    };
    Ok(numbers.iter().zip(guids(hash)).all(has))
}

fn backup_is_good(disk: &mut impl Medium, table: &GPT, last: u64) -> bool {
    let read = |disk: &mut _| -> Option<bool> {
        Seek::seek(disk, io::SeekFrom::Start(last * SECTOR)).ok()?;
        let backup = GPTHeader::read_from(disk).ok()?;
        let entries = backup.read_partitions(disk, SECTOR).ok()?;
        let sum = backup.generate_partition_entry_array_crc32(&entries);
        Some(sum == backup.partition_entry_array_crc32 && sum == table.header.partition_entry_array_crc32)
    };
    read(disk) == Some(true)
}

fn write(disk: &mut impl Medium, last: u64, table: &GPT) -> Result<(), gptman::Error> {
    let entries: Vec<GPTPartitionEntry> = table.iter().map(|(_, entry)| entry.clone()).collect();
    let primary =
        GPTHeader { primary_lba: 1, backup_lba: last, partition_entry_lba: 2, ..table.header.clone() };
    let backup =
        GPTHeader { primary_lba: last, backup_lba: 1, partition_entry_lba: last - ARRAY, ..primary.clone() };
    for mut header in [backup, primary] {
        header.update_partition_entry_array_crc32(&entries);
        header.update_crc32_checksum();
        header.write_into(disk, SECTOR, &entries)?;
        disk.flush_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, SeekFrom};

    const SIZE: u64 = 4 << 20;
    const HASH: Hash = [
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 0xa1, 0xa2, 0xa3, 0xa4, 0xb1,
        0xb2, 0xc1, 0xc2, 9, 10, 11, 12, 13, 14, 15, 16,
    ];

    /// A disk in memory that remembers what was written, in sectors, and when it was flushed.
    struct Disk {
        data: Cursor<Vec<u8>>,
        log: Vec<Written>,
    }

    enum Written {
        Sector(u64, Vec<u8>),
        Flush,
    }

    impl Read for Disk {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.data.read(buffer)
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.data.seek(to)
        }
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let at = self.data.position();
            self.data.write_all(data)?;
            let (first, end) = (at / SECTOR, (at + data.len() as u64).div_ceil(SECTOR));
            for sector in first..end {
                let from = usize::try_from(sector * SECTOR).unwrap();
                let content = self.data.get_ref()[from..from + 512].to_vec();
                self.log.push(Written::Sector(sector, content));
            }
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Medium for Disk {
        fn flush_all(&mut self) -> io::Result<()> {
            self.log.push(Written::Flush);
            Ok(())
        }
    }

    fn disk() -> Disk {
        let mut data = Cursor::new(vec![0; usize::try_from(SIZE).unwrap()]);
        let mut table = GPT::new_from(&mut data, SECTOR, [7; 16]).unwrap();
        for (number, name) in (1u8..).zip(["esp", "root-a", "verity-a", "root-b", "verity-b"]) {
            table[number.into()] = GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: [number; 16],
                starting_lba: 1024 + u64::from(number) * 64,
                ending_lba: 1024 + u64::from(number) * 64 + 63,
                attribute_bits: 0,
                partition_name: name.into(),
            };
        }
        table.write_into(&mut data).unwrap();
        Disk { data, log: Vec::new() }
    }

    /// As firmware and kernel read: the primary copy, else the one in the last sector.
    fn read(data: &[u8]) -> Option<Vec<GPTPartitionEntry>> {
        [1, SIZE / SECTOR - 1].into_iter().find_map(|lba| {
            let mut cursor = Cursor::new(data);
            cursor.seek(SeekFrom::Start(lba * SECTOR)).unwrap();
            let header = GPTHeader::read_from(&mut cursor).ok()?;
            let entries = header.read_partitions(&mut cursor, SECTOR).ok()?;
            let sum = header.generate_partition_entry_array_crc32(&entries);
            (sum == header.partition_entry_array_crc32).then_some(entries)
        })
    }

    #[test]
    fn a_slot_is_named_by_what_is_in_it() {
        let mut disk = disk();
        name_slot(&mut disk, SIZE, [4, 5], &HASH).unwrap();
        let entries = read(disk.data.get_ref()).unwrap();
        // As text: 01234567-89ab-cdef-0102-030405060708.
        assert_eq!(
            entries[3].unique_partition_guid,
            [0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        assert_eq!(entries[4].unique_partition_guid[..4], [0xa4, 0xa3, 0xa2, 0xa1]);
        assert_eq!((entries[1].unique_partition_guid, entries[0].unique_partition_guid), ([2; 16], [1; 16]));
        // Again: nothing is written.
        disk.log.clear();
        name_slot(&mut disk, SIZE, [4, 5], &HASH).unwrap();
        assert!(disk.log.is_empty());
        assert!(name_slot(&mut disk, SIZE, [9, 5], &HASH).unwrap_err().contains("no partition 9"));
    }

    #[test]
    fn a_table_with_one_bad_copy_is_written_and_has_two_again() {
        for bad in [SECTOR, 2 * SECTOR, SIZE - SECTOR, SIZE - 33 * SECTOR] {
            let mut disk = disk();
            let at = usize::try_from(bad).unwrap();
            disk.data.get_mut()[at + 20] ^= 1;
            name_slot(&mut disk, SIZE, [4, 5], &HASH).unwrap();
            for gone in [SECTOR, SIZE - SECTOR] {
                let mut data = disk.data.get_ref().clone();
                data[usize::try_from(gone).unwrap()] ^= 1;
                assert_eq!(read(&data).unwrap()[3].unique_partition_guid[0], 0x67, "{bad} {gone}");
            }
        }
        let mut disk = disk();
        disk.data.get_mut()[512] ^= 1;
        let last = usize::try_from(SIZE - SECTOR).unwrap();
        disk.data.get_mut()[last] ^= 1;
        assert!(name_slot(&mut disk, SIZE, [4, 5], &HASH).unwrap_err().contains("neither copy"));
        assert!(disk.log.is_empty());
    }

    /// Fields of a header whose sum is right all the same.
    #[test]
    fn a_table_that_asks_for_any_memory_is_refused() {
        let last = SIZE / SECTOR - 1;
        let fields: [(usize, &[u8]); 5] = [
            (24, &(u64::MAX / 2).to_le_bytes()),
            (72, &u64::MAX.to_le_bytes()),
            (72, &(last - 30).to_le_bytes()),
            (80, &u32::MAX.to_le_bytes()),
            (84, &(1u32 << 30).to_le_bytes()),
        ];
        for (field, value) in fields {
            for lba in [1, last] {
                let mut disk = disk();
                let at = usize::try_from(lba * SECTOR).unwrap();
                let header = &mut disk.data.get_mut()[at..at + 92];
                header[field..field + value.len()].copy_from_slice(value);
                header[16..20].fill(0);
                let mut sum = flate2::Crc::new();
                sum.update(header);
                header[16..20].copy_from_slice(&sum.sum().to_le_bytes());
                let error = name_slot(&mut disk, SIZE, [4, 5], &HASH).unwrap_err();
                assert!(
                    error.contains("is not one of ours") && error.contains("nothing was changed"),
                    "{error}"
                );
                assert!(disk.log.is_empty());
            }
        }
        let mut zero = disk();
        let mut table = GPT::read_from(&mut zero.data, SECTOR).unwrap();
        table[1].starting_lba = 0;
        write(&mut zero, last, &table).unwrap();
        assert!(name_slot(&mut zero, SIZE, [4, 5], &HASH).unwrap_err().contains("begins at sector 0"));
        assert!(name_slot(&mut disk(), 1024, [4, 5], &HASH).unwrap_err().contains("too few"));
        assert!(name_slot(&mut disk(), SIZE, [4, 500], &HASH).unwrap_err().contains("no partition 500"));
    }

    /// Every subset of what was not flushed may be on the disk, in any order: all subsets of up to two lost sectors, all prefixes, and
    /// all suffixes.
    #[test]
    fn a_power_cut_at_any_point_leaves_the_old_names_or_the_new_ones() {
        let mut disk = disk();
        let before = disk.data.get_ref().clone();
        name_slot(&mut disk, SIZE, [4, 5], &HASH).unwrap();
        let mut base = before;
        let mut points = 0;
        let mut check = |data: &[u8]| {
            let entries = read(data).expect("a table that can be read");
            let names = [entries[3].unique_partition_guid[0], entries[4].unique_partition_guid[0]];
            assert!(names == [4, 5] || names == [0x67, 0xa4], "{names:x?}");
            assert!(entries[1].unique_partition_guid == [2; 16] && entries[1].starting_lba == 1024 + 128);
            points += 1;
        };
        for round in disk.log.split(|written| matches!(written, Written::Flush)) {
            let sectors: Vec<_> = round
                .iter()
                .filter_map(|written| match written {
                    Written::Sector(sector, content) => Some((*sector, content)),
                    Written::Flush => None,
                })
                .collect();
            let with = |keep: &dyn Fn(usize) -> bool| {
                let mut data = base.clone();
                for (index, (sector, content)) in sectors.iter().enumerate() {
                    if keep(index) {
                        let at = usize::try_from(sector * SECTOR).unwrap();
                        data[at..at + 512].copy_from_slice(content);
                    }
                }
                data
            };
            for cut in 0..=sectors.len() {
                check(&with(&|index| index < cut));
                check(&with(&|index| index >= cut));
                for other in 0..cut {
                    check(&with(&|index| index != cut && index != other));
                }
            }
            base = with(&|_| true);
        }
        assert!(points > 500, "{points}");
    }
}
