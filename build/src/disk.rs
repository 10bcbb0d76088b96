//! The disk: a GPT with the partitions of ARCHITECTURE.md, and what is in them.

use anyhow::{Context, Result, ensure};
use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::cache::{Entry, Key};
use crate::command::run_quiet;
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::toolbox::Toolbox;
use crate::variant::{Mib, Partitions};
use crate::verity::Verity;

pub const SECTOR: u64 = 512;
/// Sectors of a table's entries: 128 of 128 bytes.
const ENTRIES: u64 = 32;
const MIB: u64 = 1 << 20;

/// Type GUIDs of the UAPI group's Discoverable Partitions Specification.
mod types {
    pub(super) const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
    pub(super) const ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    pub(super) const VERITY_X86_64: &str = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5";
    pub(super) const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
}

/// The same in every image: a node's own identity is made at its first boot.
const DISK_GUID: &str = "ca155011-0000-4000-8000-000000000000";
const STATE_UUID: &str = "ca155011-0000-4000-8000-000000000005";
const DATA_UUID: &str = "ca155011-0000-4000-8000-000000000006";

/// File systems grow online only as far as their descriptor blocks were reserved for at first: 1 TiB of 4 KiB blocks.
const DATA_GROWS_TO_BLOCKS: u64 = 1 << 28;

pub struct Inputs<'a> {
    pub esp: &'a Entry,
    pub root: &'a Entry,
    pub verity: &'a Verity,
    pub sizes: &'a Partitions,
}

struct Partition {
    name: &'static str,
    /// None for what is not in the table.
    kind: Option<&'static str>,
    guid: [u8; 16],
    size: u64,
    content: Option<PathBuf>,
}

/// Builds `disk.img` and `disk.qcow2`.
pub fn build(project: &Project, toolbox: &Toolbox, inputs: &Inputs<'_>) -> Result<Entry> {
    let key = Key::new("disk 3")
        .text(&toolbox.id)
        .entry(inputs.esp)
        .entry(inputs.root)
        .text(&format!("{:?}", inputs.sizes));
    project.cache.step(
        "disk",
        "partitions, state and data file systems, disk.img and disk.qcow2",
        key,
        |out| {
            let (state, data) = (out.join("state.ext4"), out.join("data.ext4"));
            ext4(toolbox, &state, inputs.sizes.state.bytes(), STATE_UUID, "state", 4, None)?;
            ext4(
                toolbox,
                &data,
                inputs.sizes.data.bytes(),
                DATA_UUID,
                "data",
                8,
                Some(DATA_GROWS_TO_BLOCKS),
            )?;
            let image = out.join("disk.img");
            write_disk(&image, &partitions(inputs, state.clone(), data.clone())?)?;
            for file in [state, data] {
                fs::remove_file(file)?;
            }
            let qcow2 = out.join("disk.qcow2");
            run_quiet(
                toolbox
                    .command("qemu-img")
                    .args(["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"])
                    .arg(&image)
                    .arg(&qcow2),
                "converting disk.img to qcow2",
            )?;
            Ok(())
        },
    )
}

fn partitions(inputs: &Inputs<'_>, state: PathBuf, data: PathBuf) -> Result<[Partition; 7]> {
    let sizes = inputs.sizes;
    let spare = |number: u8| guid_bytes(&format!("ca155011-0000-4000-8000-00000000000{number}"));
    let partition = |name, kind, guid, size: Mib, content: Option<PathBuf>| Partition {
        name,
        kind: Some(kind),
        guid,
        size: size.bytes(),
        content,
    };
    let (root, tree) = (guid_of_hash(inputs.verity.root_uuid()), guid_of_hash(inputs.verity.verity_uuid()));
    Ok([
        partition("esp", types::ESP, spare(1)?, sizes.esp, Some(inputs.esp.path.join("esp.img"))),
        partition("root-a", types::ROOT_X86_64, root, sizes.root, Some(inputs.root.path.join("root.erofs"))),
        partition(
            "verity-a",
            types::VERITY_X86_64,
            tree,
            sizes.verity,
            Some(inputs.root.path.join("root.verity")),
        ),
        partition("root-b", types::ROOT_X86_64, spare(3)?, sizes.root, None),
        partition("verity-b", types::VERITY_X86_64, spare(4)?, sizes.verity, None),
        partition("state", types::LINUX, guid_bytes(STATE_UUID)?, sizes.state, Some(state)),
        // The first boot lists it: see `init::grow`.
        Partition { kind: None, ..partition("data", types::LINUX, [0; 16], sizes.data, Some(data)) },
    ])
}

fn write_disk(image: &Path, partitions: &[Partition]) -> Result<()> {
    let mut disk = File::options().read(true).write(true).create_new(true).open(image)?;
    // One MiB before the first partition for the table, one after the last for its backup.
    let size = partitions.iter().map(|partition| partition.size).sum::<u64>() + 2 * MIB;
    disk.set_len(size)?;
    let mut table = GPT::new_from(&mut disk, SECTOR, guid_bytes(DISK_GUID)?)?;
    let mut at = MIB;
    for (number, partition) in (1..).zip(partitions) {
        if let Some(kind) = partition.kind {
            table[number] = GPTPartitionEntry {
                partition_type_guid: guid_bytes(kind)?,
                unique_partition_guid: partition.guid,
                starting_lba: at / SECTOR,
                ending_lba: (at + partition.size) / SECTOR - 1,
                attribute_bits: 0,
                partition_name: partition.name.into(),
            };
        }
        if let Some(content) = &partition.content {
            let length =
                fs::metadata(content).with_context(|| format!("cannot read {}", content.display()))?.len();
            ensure!(
                length <= partition.size,
                "{} has {length} bytes, the partition {} only {}: enlarge it under [partitions] in images/*.toml",
                content.display(),
                partition.name,
                partition.size
            );
            write_at(&mut disk, at, content)?;
        }
        at += partition.size;
    }
    GPT::write_protective_mbr_into(&mut disk, SECTOR)?;
    write_table(&mut disk, &table)
}

/// Writes both copies of the table. It ends with the last partition that it lists: the kernel takes no table that speaks of more than
/// the disk has, and a disk that is cut off behind that is to have a table all the same.
pub fn write_table(disk: &mut File, table: &GPT) -> Result<()> {
    let entries: Vec<GPTPartitionEntry> = table.iter().map(|(_, entry)| entry.clone()).collect();
    // gptman would put them behind the last usable sector, which is in what we do not list.
    let backup_entries = table.header.backup_lba - ENTRIES;
    let mut primary = table.header.clone();
    primary.last_usable_lba = entries.iter().map(|entry| entry.ending_lba).max().unwrap_or(0);
    let backup = GPTHeader {
        primary_lba: primary.backup_lba,
        backup_lba: primary.primary_lba,
        partition_entry_lba: backup_entries,
        ..primary.clone()
    };
    for mut header in [primary, backup] {
        header.update_partition_entry_array_crc32(&entries);
        header.update_crc32_checksum();
        header.write_into(disk, SECTOR, &entries)?;
    }
    Ok(())
}

/// Copies a file into the disk; blocks of zeros stay holes.
fn write_at(disk: &mut File, mut at: u64, content: &Path) -> Result<()> {
    let mut file = File::open(content)?;
    let mut block = vec![0; 64 << 10];
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match file.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(at))?;
            disk.write_all(&block[..filled])?;
        }
        at += filled as u64;
    }
}

/// An ext4 file system with 4096-byte blocks: mkfs takes smaller ones for small partitions, and the kernel then refuses them on
/// devices with 4096-byte blocks.
fn ext4(
    toolbox: &Toolbox,
    file: &Path,
    size: u64,
    uuid: &str,
    label: &str,
    journal_mib: u32,
    grow: Option<u64>,
) -> Result<()> {
    File::create(file)?.set_len(size)?;
    let mut extended =
        format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    if let Some(blocks) = grow {
        extended.push_str(&format!(",resize={blocks}"));
    }
    let mut command = toolbox.command("mke2fs");
    command
        .args(["-F", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-U", uuid, "-L", label, "-E", &extended]);
    command.args(["-J", &format!("size={journal_mib}")]).arg(file);
    command.env("E2FSPROGS_FAKE_TIME", SOURCE_DATE_EPOCH.to_string());
    run_quiet(&mut command, &format!("making the file system {label}"))?;
    Ok(())
}

/// The 16 bytes of a GUID as a GPT holds them: the first three fields are little-endian (UEFI specification, appendix A).
pub fn guid_bytes(text: &str) -> Result<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    ensure!(digits.len() == 32 && digits.is_ascii(), "{text:?} is not a GUID");
    let mut bytes = [0; 16];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[index * 2..index * 2 + 2], 16)
            .with_context(|| format!("{text:?} is not a GUID"))?;
    }
    Ok(guid_of_hash(bytes))
}

/// Turns a GUID between the order of its text, which is the order of the root hash, and the order on disk.
pub fn guid_of_hash(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_on_disk_has_its_first_fields_reversed() {
        let bytes = guid_bytes("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").unwrap();
        assert_eq!(bytes[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        assert!(guid_bytes("c12a7328").is_err());
    }

    /// Both copies of the table, and what is behind its end, are where they belong.
    #[test]
    fn the_table_ends_before_what_it_does_not_list() {
        let dir = tempfile::tempdir().unwrap();
        let (content, image) = (dir.path().join("content"), dir.path().join("disk"));
        fs::write(&content, vec![7; 2 << 20]).unwrap();
        let listed = Partition {
            name: "state",
            kind: Some(types::LINUX),
            guid: [1; 16],
            size: 2 * MIB,
            content: Some(content.clone()),
        };
        let unlisted =
            Partition { name: "data", kind: None, guid: [0; 16], size: 2 * MIB, content: Some(content) };
        write_disk(&image, &[listed, unlisted]).unwrap();
        let data = fs::read(&image).unwrap();
        assert!(data[1 << 20..5 << 20].iter().all(|byte| *byte == 7), "something was written over");
        for lba in [1, data.len() as u64 / SECTOR - 1] {
            let mut disk = std::io::Cursor::new(&data);
            disk.set_position(lba * SECTOR);
            let header = GPTHeader::read_from(&mut disk).unwrap();
            assert_eq!(header.last_usable_lba, 3 * MIB / SECTOR - 1);
            let entries = header.read_partitions(&mut disk, SECTOR).unwrap();
            assert_eq!(
                header.generate_partition_entry_array_crc32(&entries),
                header.partition_entry_array_crc32
            );
            assert_eq!(entries.iter().filter(|entry| entry.is_used()).count(), 1);
        }
    }

    #[test]
    fn content_larger_than_its_partition_is_refused_and_says_where_to_enlarge_it() {
        let dir = tempfile::tempdir().unwrap();
        let content = dir.path().join("content");
        fs::write(&content, vec![1; 2 << 20]).unwrap();
        let partition = Partition {
            name: "root-a",
            kind: Some(types::LINUX),
            guid: [1; 16],
            size: MIB,
            content: Some(content),
        };
        let error = write_disk(&dir.path().join("disk"), &[partition]).unwrap_err().to_string();
        assert!(error.contains("root-a") && error.contains("images/"), "{error}");
    }
}
