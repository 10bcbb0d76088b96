//! The data partition reaches to the end of the disk, whatever size that has: what to write for it, and in which order.
//!
//! An image does not list it: its file system is there, behind the last partition, and the first boot makes an entry for it. So a
//! disk that is too small for it, cut off somewhere in that file system, still has a table that the kernel takes, and a node that
//! can say what is wrong.
//!
//! A power cut after any of the writes leaves a table that the kernel reads: first the backup table at the disk's new end,
//! flushed, then the primary one. While the primary is torn, the kernel (told by `gpt` on its command line) takes the backup
//! in the last sector (UEFI specification, 5.3.2). The size of a sector is 512 bytes.

use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use std::io::{Cursor, Read, Seek, Write};

use crate::superblock::{self, blocks, number};

pub const SECTOR: u64 = 512;
/// Linux file system data (Discoverable Partitions Specification), as on disk: 0fc63daf-8483-4772-8e79-3d69d8477de4.
const LINUX: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
/// The same on every node, as the file system's own: ca155011-0000-4000-8000-000000000006.
const DATA: [u8; 16] = [0x11, 0x50, 0x15, 0xca, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 6];
/// Partitions end on a boundary of one MiB.
const ALIGN: u64 = 2048;
/// Sectors that the backup table takes at the end: 32 of entries and one of the header.
const BACKUP: u64 = 33;

/// What to do with a disk.
#[derive(Debug)]
pub enum Plan {
    /// The partition is there and reaches the end already.
    Nothing,
    Grow(Growth),
}

#[derive(Debug)]
pub struct Growth {
    /// The table had no such partition until now.
    pub is_new: bool,
    /// The partition's number, from 1 on.
    pub number: u32,
    /// In bytes.
    pub start: u64,
    pub size: u64,
    /// `(offset, bytes)`, in this order, with a flush after each.
    pub writes: Vec<(u64, Vec<u8>)>,
}

/// Reads the table of a disk of `size` bytes and plans to let the partition `name`, the last one, reach its end. A partition that
/// is not in the table is made where a file system waits for it behind the others.
pub fn plan<D: Read + Seek>(disk: &mut D, size: u64, name: &str) -> Result<Plan, String> {
    let mut table = GPT::read_from(disk, SECTOR)
        .map_err(|error| format!("its partition table cannot be read: {error}"))?;
    let sectors = size.checked_div(SECTOR).unwrap_or(0);
    let last = sectors.saturating_sub(BACKUP).saturating_sub(1);
    let used = |entry: &&GPTPartitionEntry| entry.is_used();
    let beyond =
        table.iter().map(|(_, entry)| entry).filter(used).map(|entry| entry.ending_lba).max().unwrap_or(0);
    let found = table
        .iter()
        .find(|(_, entry)| entry.is_used() && entry.partition_name.as_str() == name)
        .map(|(number, entry)| (number, entry.starting_lba, entry.ending_lba));
    let is_new = found.is_none();
    let (number, start, end) = match found {
        Some(found) => found,
        None => {
            let start = beyond.saturating_add(1).next_multiple_of(ALIGN);
            let length = waiting(disk, start.saturating_mul(SECTOR), name)?;
            let end = start.saturating_add(length).saturating_sub(1);
            if end > last {
                return Err(too_small(size, end));
            }
            let entry = GPTPartitionEntry {
                partition_type_guid: LINUX,
                unique_partition_guid: DATA,
                starting_lba: start,
                ending_lba: end,
                attribute_bits: 0,
                partition_name: name.into(),
            };
            let free = table.iter_mut().find(|(_, entry)| entry.is_unused());
            let (number, place) = free.ok_or("its partition table has no free entry")?;
            *place = entry;
            (number, start, end)
        }
    };
    let beyond = beyond.max(end);
    if beyond >= sectors {
        return Err(too_small(size, beyond));
    }
    if beyond != end {
        return Err(format!("the partition {name} is not the last one, so it cannot grow"));
    }
    // The last sector before a boundary.
    let new_end =
        last.saturating_add(1).checked_div(ALIGN).unwrap_or(0).saturating_mul(ALIGN).saturating_sub(1);
    // Read from the backup, the primary is torn: it is written again even when there is nothing to grow.
    let in_order = table.is_primary() && table.header.backup_lba == sectors.saturating_sub(1);
    if new_end <= end && in_order && !is_new {
        return Ok(Plan::Nothing);
    }
    let new_end = new_end.max(end);
    if let Some((_, entry)) = table.iter_mut().find(|(found, _)| *found == number) {
        entry.ending_lba = new_end;
    }
    let header = GPTHeader {
        primary_lba: 1,
        backup_lba: sectors.saturating_sub(1),
        last_usable_lba: last,
        partition_entry_lba: 2,
        ..table.header.clone()
    };
    let mut writes = Vec::new();
    let backup = GPTHeader {
        primary_lba: header.backup_lba,
        backup_lba: 1,
        partition_entry_lba: last.saturating_add(1),
        ..header.clone()
    };
    for (mut header, from) in [(backup, last.saturating_add(1)), (header, 1)] {
        // gptman writes to where the header says; a small buffer stands for that end of the disk.
        let entries: Vec<_> = table.iter().map(|(_, entry)| entry.clone()).collect();
        let mut buffer = Window {
            from: from.saturating_mul(SECTOR),
            data: Cursor::new(vec![0; usize::try_from(BACKUP.saturating_mul(SECTOR)).unwrap_or(0)]),
        };
        header.update_partition_entry_array_crc32(&entries);
        header.update_crc32_checksum();
        header
            .write_into(&mut buffer, SECTOR, &entries)
            .map_err(|error| format!("the new partition table cannot be made: {error}"))?;
        writes.push((buffer.from, buffer.data.into_inner()));
    }
    let size = new_end.saturating_add(1).saturating_sub(start).saturating_mul(SECTOR);
    Ok(Plan::Grow(Growth { is_new, number, start: start.saturating_mul(SECTOR), size, writes }))
}

fn too_small(size: u64, last_sector: u64) -> String {
    // The backup of the table comes behind the last partition.
    let needed = last_sector.saturating_add(1).saturating_mul(SECTOR) >> 20;
    format!(
        "it has {} MiB, but the image needs {} MiB: give the machine a disk at least as large as the image",
        size >> 20,
        needed.saturating_add(1)
    )
}

/// Sectors of the ext4 that begins at byte `at` (kernel: `filesystems/ext4/super.rst`).
fn waiting<D: Read + Seek>(disk: &mut D, at: u64, name: &str) -> Result<u64, String> {
    let none = || format!("it has no partition named {name}, and no file system where one would begin");
    let mut block = [0; superblock::SIZE];
    disk.seek(std::io::SeekFrom::Start(at.saturating_add(1024)))
        .and_then(|_| disk.read_exact(&mut block))
        .map_err(|_| none())?;
    let (magic, shift) = (number(&block, 0x38) & 0xffff, number(&block, 0x18));
    let blocks = blocks(&block);
    if magic != superblock::MAGIC || shift > 6 || blocks == 0 {
        return Err(none());
    }
    Ok(blocks.saturating_mul(2u64 << shift))
}

/// Blocks of 4096 bytes of the ext4 on a device, as its superblock has them now.
pub fn ext4_blocks<D: Read + Seek>(device: &mut D) -> Result<u64, String> {
    Ok(waiting(device, 0, "data")?.checked_div(8).unwrap_or(0))
}

/// A part of the disk in memory, addressed as on the disk.
struct Window {
    from: u64,
    data: Cursor<Vec<u8>>,
}

impl Write for Window {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.data.write(data)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Window {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        match to {
            std::io::SeekFrom::Start(at) => {
                let inside = at
                    .checked_sub(self.from)
                    .ok_or_else(|| std::io::Error::other("a write outside of the table"))?;
                self.data.set_position(inside);
                Ok(at)
            }
            _ => Ok(self.data.position().saturating_add(self.from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(size: u64) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; usize::try_from(size).unwrap()]);
        let mut table = GPT::new_from(&mut disk, SECTOR, [7; 16]).unwrap();
        for (number, name, start, length) in
            [(1, "state", 2048, 2048), (2, "data", 4096, size / SECTOR - 4096 - 2048)]
        {
            table[number] = GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: [u8::try_from(number).unwrap(); 16],
                starting_lba: start,
                ending_lba: start + length - 1,
                attribute_bits: 0,
                partition_name: name.into(),
            };
        }
        table.write_into(&mut disk).unwrap();
        disk.into_inner()
    }

    fn enlarged(by: u64) -> Vec<u8> {
        let mut disk = disk(8 * MIB);
        disk.resize(disk.len() + usize::try_from(by).unwrap(), 0);
        disk
    }

    fn growth(disk: &[u8]) -> Growth {
        match plan(&mut Cursor::new(disk), disk.len() as u64, "data").unwrap() {
            Plan::Grow(growth) => growth,
            Plan::Nothing => panic!("nothing to grow"),
        }
    }

    /// As the kernel reads with `gpt` on its command line: the primary table, else the one in the last sector.
    fn data_end(disk: &[u8]) -> u64 {
        let read = |lba: u64| -> Option<u64> {
            let mut cursor = Cursor::new(disk);
            cursor.seek(std::io::SeekFrom::Start(lba * SECTOR)).unwrap();
            let header = GPTHeader::read_from(&mut cursor).ok()?;
            let entries = header.read_partitions(&mut cursor, SECTOR).ok()?;
            let sum = header.generate_partition_entry_array_crc32(&entries);
            assert!(entries[0].partition_name.as_str() == "state" && entries[0].starting_lba == 2048);
            (sum == header.partition_entry_array_crc32).then(|| entries[1].ending_lba)
        };
        read(1).or_else(|| read(disk.len() as u64 / SECTOR - 1)).expect("no table can be read")
    }

    #[test]
    fn data_reaches_the_end_and_then_there_is_nothing_to_do() {
        let mut disk = enlarged(24 * MIB);
        let growth = growth(&disk);
        assert_eq!(growth.start + growth.size, 31 * MIB);
        for (at, bytes) in &growth.writes {
            disk[usize::try_from(*at).unwrap()..][..bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(data_end(&disk), 31 * MIB / SECTOR - 1);
        let again = plan(&mut Cursor::new(&disk), disk.len() as u64, "data").unwrap();
        assert!(matches!(again, Plan::Nothing), "{again:?}");
    }

    #[test]
    fn a_power_cut_between_any_two_sectors_leaves_a_table() {
        let before = enlarged(24 * MIB);
        let growth = growth(&before);
        let (old, new) = (data_end(&before), 31 * MIB / SECTOR - 1);
        let mut disk = before;
        for (at, bytes) in &growth.writes {
            for (index, sector) in bytes.chunks(512).enumerate() {
                let offset = usize::try_from(*at).unwrap() + index * 512;
                disk[offset..offset + 512].copy_from_slice(sector);
                let end = data_end(&disk);
                assert!(end == old || end == new, "{end}");
            }
        }
        assert_eq!(data_end(&disk), new);
    }

    /// As an image is: the table ends before the file system of `data`, which has 2 MiB from 2 MiB on.
    fn image(size: u64) -> Vec<u8> {
        let mut disk = disk(8 * MIB);
        let mut cursor = Cursor::new(&mut disk);
        let mut table = GPT::read_from(&mut cursor, SECTOR).unwrap();
        table.remove(2).unwrap();
        table.header.last_usable_lba = 4095;
        table.write_into(&mut cursor).unwrap();
        let at = 2 * 1024 * 1024 + 1024;
        disk[at + 4..at + 8].copy_from_slice(&512u32.to_le_bytes());
        disk[at + 0x18..at + 0x1c].copy_from_slice(&2u32.to_le_bytes());
        disk[at + 0x38..at + 0x3a].copy_from_slice(&0xef53u16.to_le_bytes());
        disk.resize(usize::try_from(size).unwrap(), 0);
        disk
    }

    #[test]
    fn the_first_boot_makes_the_partition_and_every_later_one_finds_it() {
        for size in [5 * MIB, 8 * MIB, 64 * MIB] {
            let mut disk = image(size);
            let growth = growth(&disk);
            assert!(growth.is_new && growth.number == 2 && growth.start == 2 * MIB, "{growth:?}");
            assert_eq!(growth.start + growth.size, size - MIB);
            for (at, bytes) in &growth.writes {
                disk[usize::try_from(*at).unwrap()..][..bytes.len()].copy_from_slice(bytes);
            }
            assert_eq!(data_end(&disk), (size - MIB) / SECTOR - 1);
            let again = plan(&mut Cursor::new(&disk), size, "data").unwrap();
            assert!(matches!(again, Plan::Nothing), "{again:?}");
        }
    }

    #[test]
    fn a_disk_too_small_for_the_file_system_that_waits_is_told_with_both_sizes() {
        let disk = image(3 * MIB);
        let error = plan(&mut Cursor::new(&disk), 3 * MIB, "data").unwrap_err();
        assert!(error.contains("has 3 MiB") && error.contains("needs 5 MiB"), "{error}");
        let nothing = vec![0; 3 * 1024 * 1024];
        assert!(plan(&mut Cursor::new(&nothing), 3 * MIB, "data").unwrap_err().contains("table"));
    }

    #[test]
    fn a_disk_smaller_than_its_table_is_told_with_both_sizes() {
        let disk = disk(8 * MIB);
        let error = plan(&mut Cursor::new(&disk), 6 * MIB, "data").unwrap_err();
        assert!(error.contains("6 MiB") && error.contains("at least as large"), "{error}");
    }
}
