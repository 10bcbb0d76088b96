//! The superblock of an ext4 has 1024 bytes, two sectors of a disk that writes no more than one at once. A power cut between them
//! leaves the one half of before, and a checksum that fits to none: the kernel does not mount that, whatever the journal holds. All
//! that changes while a file system is in use is in the first half but for the checksum, and either first half is good: the kernel
//! waits for the superblock before it writes to the journal, and after it (`fs/ext4/super.c`, `ext4_commit_super`). So the checksum is
//! made anew when nothing else is wrong: its numbers fit each other and the device, and what never changes is as in the first backup,
//! where there is one.

use crc::{CRC_32_ISCSI, Crc};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;

pub const SIZE: usize = 1024;
const OFFSET: u64 = 1024;
const CHECKSUM: usize = 0x3fc;
pub(crate) const MAGIC: u64 = 0xef53;
/// `metadata_csum`, of the features that a kernel has to know to write.
const HAS_CHECKSUM: u64 = 0x400;
/// The largest block, 64 KiB.
const LARGEST_SHIFT: u64 = 6;
/// What is as it was when the file system was made, or is changed in the backups too (kernel: `filesystems/ext4/super.rst`): sizes,
/// magic, first inode, size of inodes, `compat`; and from the UUID on, the journal's inode, the seed of hashes, the kind of checksum,
/// its seed.
const FIXED: [Range<usize>; 9] = [
    0x14..0x2c,
    0x38..0x3a,
    0x54..0x5a,
    0x5c..0x60,
    0x68..0x78,
    0xe0..0xe8,
    0xec..0x100,
    0x175..0x176,
    0x270..0x274,
];
/// Features, and those of them that come and go: that the journal is to be read; that files wait to be removed.
const FEATURES: [(usize, u64); 2] = [(0x60, 0x4), (0x64, 0x10000)];

/// Makes the checksum of a torn superblock fit. True when something was written: the file system is to be mounted again. An error says
/// what is wrong beside the checksum.
pub fn mend<D: Read + Write + Seek>(device: &mut D) -> Result<bool, String> {
    let mut block = read(device, OFFSET)?;
    if number(&block, 0x38) & 0xffff != MAGIC || number(&block, 0x64) & HAS_CHECKSUM == 0 {
        return Err("there is no ext4 with checksums".to_owned());
    }
    if is_sound(&block) {
        return Ok(false);
    }
    let shift = number(&block, 0x18);
    if shift > LARGEST_SHIFT {
        return Err("its superblock is damaged".to_owned());
    }
    fits(device, &block, shift)?;
    as_in_backup(device, &block, shift)?;
    let checksum = checksum(&block).to_le_bytes();
    if let Some(place) = block.get_mut(CHECKSUM..) {
        place.copy_from_slice(&checksum);
    }
    device
        .seek(SeekFrom::Start(OFFSET))
        .and_then(|_| device.write_all(&block))
        .and_then(|()| device.flush())
        .map_err(|error| format!("cannot write its superblock: {error}"))?;
    Ok(true)
}

/// Whether its numbers fit each other, and the device.
fn fits<D: Seek>(device: &mut D, block: &[u8; SIZE], shift: u64) -> Result<(), String> {
    let size = device.seek(SeekFrom::End(0)).map_err(|error| format!("cannot read its size: {error}"))?;
    let (blocks, group, inode) = (blocks(block), number(block, 0x20), number(block, 0x58) & 0xffff);
    let groups = blocks.saturating_sub(number(block, 0x14)).div_ceil(group.max(1));
    let fits = group == 8u64 << shift.saturating_add(10)
        && blocks.saturating_mul(1024u64 << shift) <= size
        && number(block, 0x1c) == shift
        && number(block, 0x0) == groups.saturating_mul(number(block, 0x28))
        && number(block, 0x4c) == 1
        && inode.is_power_of_two()
        && (128..=1024u64 << shift).contains(&inode);
    if fits {
        Ok(())
    } else {
        Err("its superblock is damaged, and not only torn: its numbers do not fit".to_owned())
    }
}

/// Whether what never changes is as in the first block of the second group, where the superblock is at its beginning. A file system of
/// one group has no such backup; and one that was just grown may have it in its journal only.
fn as_in_backup<D: Read + Seek>(device: &mut D, block: &[u8; SIZE], shift: u64) -> Result<(), String> {
    let second = number(block, 0x14).saturating_add(number(block, 0x20));
    if blocks(block) <= second {
        return Ok(());
    }
    let backup = read(device, second.saturating_mul(1024u64 << shift))?;
    if !is_sound(&backup) {
        return Ok(());
    }
    let same_features =
        FEATURES.iter().all(|(at, passing)| number(block, *at) & !passing == number(&backup, *at) & !passing);
    if !same_features || FIXED.iter().any(|range| block.get(range.clone()) != backup.get(range.clone())) {
        return Err(
            "its superblock is damaged, and not only torn: it differs from the first backup".to_owned()
        );
    }
    Ok(())
}

/// Blocks of the file system.
pub(crate) fn blocks(block: &[u8; SIZE]) -> u64 {
    number(block, 0x4) | number(block, 0x150) << 32
}

fn read<D: Read + Seek>(device: &mut D, at: u64) -> Result<[u8; SIZE], String> {
    let mut block = [0; SIZE];
    device
        .seek(SeekFrom::Start(at))
        .and_then(|_| device.read_exact(&mut block))
        .map_err(|error| format!("cannot read byte {at} of it: {error}"))?;
    Ok(block)
}

fn is_sound(block: &[u8; SIZE]) -> bool {
    number(block, 0x38) & 0xffff == MAGIC && number(block, CHECKSUM) == u64::from(checksum(block))
}

/// CRC-32C without its last inversion (`ext4_superblock_csum`).
fn checksum(block: &[u8; SIZE]) -> u32 {
    !Crc::<u32>::new(&CRC_32_ISCSI).checksum(block.get(..CHECKSUM).unwrap_or_default())
}

/// A number of four bytes.
pub(crate) fn number(block: &[u8], at: usize) -> u64 {
    let bytes = block.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_le_bytes).unwrap_or(0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// Blocks of 1024 bytes, 8192 of them in a group.
    const BACKUP: usize = 8193 << 10;

    /// A file system of so many groups, with its first backup.
    fn device_of(groups: u32) -> Vec<u8> {
        let mut block = [0; SIZE];
        let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x0, 64 * groups);
        put(0x4, 8192 * groups);
        put(0x14, 1);
        put(0x20, 8192);
        put(0x28, 64);
        put(0x38, 0xef53);
        put(0x4c, 1);
        put(0x58, 256);
        put(0x64, 0x400);
        put(0x68, 77);
        let mut device = vec![0; 17 << 20];
        write(&mut device, 1024, &mut block);
        if groups > 1 {
            write(&mut device, BACKUP, &mut block);
        }
        device
    }

    fn device() -> Vec<u8> {
        device_of(2)
    }

    fn write(device: &mut [u8], at: usize, block: &mut [u8; SIZE]) {
        let sum = checksum(block);
        block[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        device[at..at + SIZE].copy_from_slice(block);
    }

    /// The same when it is in use.
    fn mounted(device: &[u8]) -> Vec<u8> {
        let mut next = device.to_vec();
        let mut block: [u8; SIZE] = device[1024..2048].try_into().unwrap();
        block[0x60] = 4;
        block[0x2c] = 9;
        write(&mut next, 1024, &mut block);
        next
    }

    fn mended(device: &[u8]) -> (Vec<u8>, Result<bool, String>) {
        let mut cursor = Cursor::new(device.to_vec());
        let done = mend(&mut cursor);
        (cursor.into_inner(), done)
    }

    #[test]
    fn a_torn_superblock_is_the_one_of_its_first_half() {
        for before in [device(), device_of(1)] {
            let after = mounted(&before);
            for (first, second) in [(&before, &after), (&after, &before)] {
                let torn = [&first[..1536], &second[1536..]].concat();
                let (mended, done) = mended(&torn);
                assert_eq!(done, Ok(true));
                assert!(&mended == first);
            }
            assert_eq!(mended(&before).1, Ok(false));
        }
    }

    #[test]
    fn what_is_not_only_torn_is_left() {
        for (at, expected) in [
            (1024 + 0x38, "no ext4"),
            (1024 + 0x60, "differs from the first backup"),
            (1024 + 0x68, "differs from the first backup"),
            (1024 + 0x18, "its superblock is damaged"),
            (1024 + 0x4, "do not fit"),
            (1024 + 0x28, "do not fit"),
            (1024 + 0x20, "do not fit"),
            (1024 + 0xf0, "differs from the first backup"),
        ] {
            let mut device = device();
            device[at] ^= 0x48;
            let (left, done) = mended(&device);
            assert!(done.as_ref().is_err_and(|error| error.contains(expected)), "{at:#x}: {done:?}");
            assert!(left == device);
        }
    }

    proptest! {
        #[test]
        fn nothing_but_the_checksum_is_ever_written(at in 1024usize..2048, byte: u8) {
            let mut device = device();
            device[at] = byte;
            let (left, _) = mended(&device);
            prop_assert!(left[..1024 + CHECKSUM] == device[..1024 + CHECKSUM] && left[2048..] == device[2048..]);
        }
    }
}
