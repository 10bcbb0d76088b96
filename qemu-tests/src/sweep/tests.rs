//! The sweep sees what it is made for: an update in its order survives each cut, and one in another order does not.

use build::disk::{SECTOR, guid_of_hash};
use build::uki;
use build::verity::Verity;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gptman::{GPT, GPTPartitionEntry};
use std::io::{Cursor, Write};
use std::ops::Range;

use super::{Boots, Event, Judge, Known, Report, Subject, sweep};

const SECTORS: usize = 80_000;
/// FAT32 begins with 65525 clusters.
const ESP: Range<usize> = 2048..72_048;
const SLOTS: [(&str, usize); 4] =
    [("root-a", 73_000), ("verity-a", 74_000), ("root-b", 75_000), ("verity-b", 76_000)];
const SLOT_SECTORS: usize = 64;
const OLD: &str = "EFI/Linux/caisson_0.1.0.efi";
const STAGED: &str = "caisson_0.2.0.efi.staged";
const ARMED: &str = "caisson_0.2.0+3.efi";

fn bytes(sectors: Range<usize>) -> Range<usize> {
    sectors.start * 512..sectors.end * 512
}

/// The smallest PE32+ file with room for more sections.
fn stub() -> Vec<u8> {
    let mut pe = vec![0; 0x600];
    let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x3c, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x94, &0xf0u16.to_le_bytes());
    put(0x98, &0x20bu16.to_le_bytes());
    put(0x98 + 32, &4096u32.to_le_bytes());
    put(0x98 + 36, &512u32.to_le_bytes());
    put(0x98 + 60, &0x400u32.to_le_bytes());
    pe
}

fn verity(number: u8) -> Verity {
    let mut root_hash = [number; 32];
    root_hash[16..].fill(number + 0x80);
    Verity { root_hash, data_blocks: 4 }
}

fn known(number: u8) -> Known {
    let version = format!("0.{number}.0");
    let fill = |seed: usize, size: usize| {
        (0..size).map(|at| ((at / 512 * 7 + seed) % 251) as u8).collect::<Vec<u8>>()
    };
    let os_release = format!("NAME=Caisson\nID=caisson\nVERSION_ID={version}\n");
    let linux = fill(usize::from(number) * 3, 9000);
    let sections = [
        (".osrel", os_release.as_bytes()),
        (".cmdline", verity(number).kernel_parameters().as_bytes()),
        (".linux", &linux),
    ]
    .map(|(name, data)| (name, data.to_vec()));
    let sections: Vec<(&str, &[u8])> = sections.iter().map(|(name, data)| (*name, &data[..])).collect();
    Known {
        uki: uki::build(&stub(), &sections).unwrap(),
        root: fill(usize::from(number) * 5, 4 * 4096),
        tree: fill(usize::from(number) * 11, 4096),
        version,
    }
}

/// A disk, and what was done to it.
struct Disk {
    image: Vec<u8>,
    record: Vec<u8>,
    events: Vec<Event>,
}

impl Disk {
    /// With the first version in slot a.
    fn new() -> Self {
        let mut disk = Self { image: vec![0; SECTORS * 512], record: Vec::new(), events: Vec::new() };
        let esp = Cursor::new(&mut disk.image[bytes(ESP)]);
        fatfs::format_volume(esp, FormatVolumeOptions::new().fat_type(FatType::Fat32).bytes_per_cluster(512))
            .unwrap();
        let first = known(1);
        disk.change(|disk| {
            disk.esp(|esp| {
                let root = esp.root_dir();
                for folder in ["EFI", "EFI/BOOT", "EFI/Linux"] {
                    root.create_dir(folder).unwrap();
                }
                root.create_file("EFI/BOOT/BOOTX64.EFI").unwrap().write_all(&[7; 3000]).unwrap();
                root.create_file(OLD).unwrap().write_all(&first.uki).unwrap();
            });
            disk.write(SLOTS[0].1, &first.root);
            disk.write(SLOTS[1].1, &first.tree);
            let mut image = Cursor::new(&mut disk.image);
            let mut table = GPT::new_from(&mut image, SECTOR, [9; 16]).unwrap();
            let spare = [[0x53; 16], [0x54; 16]];
            let named = [guid_of_hash(verity(1).root_uuid()), guid_of_hash(verity(1).verity_uuid())];
            let entry = |name: &str, sectors: Range<usize>, guid| GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: guid,
                starting_lba: sectors.start as u64,
                ending_lba: sectors.end as u64 - 1,
                attribute_bits: 0,
                partition_name: name.into(),
            };
            table[1] = entry("esp", ESP, [0x50; 16]);
            for ((number, (name, start)), guid) in (2..).zip(SLOTS).zip(named.into_iter().chain(spare)) {
                table[number] = entry(name, start..start + SLOT_SECTORS, guid);
            }
            table.write_into(&mut image).unwrap();
        });
        disk.events.clear();
        disk
    }

    fn judge(&self) -> Judge {
        let image = self.image.clone();
        let read = |from: usize, buffer: &mut [u8]| {
            buffer.copy_from_slice(&image[from..from + buffer.len()]);
            Ok(())
        };
        Judge::new(image.len(), vec![known(1), known(2)], read).unwrap()
    }

    fn write(&mut self, sector: usize, content: &[u8]) {
        self.image[sector * 512..sector * 512 + content.len()].copy_from_slice(content);
    }

    fn esp(&mut self, change: impl FnOnce(&FileSystem<Cursor<&mut [u8]>>)) {
        let esp = FileSystem::new(Cursor::new(&mut self.image[bytes(ESP)]), FsOptions::new()).unwrap();
        change(&esp);
        esp.unmount().unwrap();
    }

    /// Records what a change changes, in the order of the disk.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.image.clone();
        change(self);
        let is_changed =
            |sector: &usize| self.image[bytes(*sector..sector + 1)] != before[bytes(*sector..sector + 1)];
        let changed: Vec<usize> = (0..SECTORS).filter(is_changed).collect();
        for run in changed.chunk_by(|a, b| a + 1 == *b) {
            let at = self.record.len();
            self.record.extend_from_slice(&self.image[bytes(run[0]..run[0] + run.len())]);
            let data = Some(at..self.record.len());
            self.events.push(Event::Write { sector: run[0] as u64, sectors: run.len() as u64, data });
        }
    }

    fn flush(&mut self) {
        self.events.push(Event::Flush);
    }

    fn write_slot(&mut self) {
        let second = known(2);
        self.change(|disk| disk.write(SLOTS[2].1, &second.root));
        self.change(|disk| disk.write(SLOTS[3].1, &second.tree));
    }

    /// Both copies; `between` is done after the second one, at the end of the disk, was written.
    fn name_slot(&mut self, between: impl FnOnce(&mut Self)) {
        let mut named = self.image.clone();
        let mut table = GPT::read_from(&mut Cursor::new(&named), SECTOR).unwrap();
        table[4].unique_partition_guid = guid_of_hash(verity(2).root_uuid());
        table[5].unique_partition_guid = guid_of_hash(verity(2).verity_uuid());
        table.write_into(&mut Cursor::new(&mut named)).unwrap();
        self.change(|disk| disk.write(SECTORS - 34, &named[bytes(SECTORS - 34..SECTORS)]));
        between(self);
        self.change(|disk| disk.write(0, &named[bytes(0..34)]));
    }

    fn stage(&mut self) {
        self.change(|disk| {
            disk.esp(|esp| {
                let mut file = esp.root_dir().create_file(&format!("EFI/Linux/{STAGED}")).unwrap();
                file.write_all(&known(2).uki).unwrap();
            });
        });
    }

    fn arm(&mut self) {
        self.change(|disk| {
            disk.esp(|esp| {
                let folder = esp.root_dir().open_dir("EFI/Linux").unwrap();
                folder.rename(STAGED, &folder, ARMED).unwrap();
            });
        });
    }

    /// Sweeps what was done to a disk that was as `before`.
    fn swept(&self, judge: &mut Judge) -> Report<Boots> {
        sweep(judge, &self.record, &self.events, 1)
    }
}

fn boots(version: usize, is_on_trial: bool) -> Result<Boots, String> {
    Ok(Boots { version, is_on_trial })
}

#[test]
fn an_update_in_its_order_survives_every_cut() {
    let mut disk = Disk::new();
    let mut judge = disk.judge();
    assert_eq!(judge.verdict(), &boots(0, false));
    disk.write_slot();
    disk.flush();
    disk.name_slot(Disk::flush);
    disk.flush();
    disk.stage();
    disk.flush();
    disk.arm();
    let report = disk.swept(&mut judge);
    assert_eq!((report.failed, &report.failures), (0, &vec![]));
    assert_eq!(report.story, [boots(0, false), boots(1, true)]);
    assert!(report.total() > 400 && report.points.len() == 9, "{:?}", report.points);
    let count = |version, is_on_trial| report.states[&Boots { version, is_on_trial }];
    assert!(count(1, true) > 0 && count(0, false) > count(1, true));
}

#[test]
fn a_slot_that_is_not_flushed_before_it_boots_is_found() {
    let mut disk = Disk::new();
    let mut judge = disk.judge();
    disk.name_slot(Disk::flush);
    disk.stage();
    disk.flush();
    disk.write_slot();
    disk.arm();
    let report = disk.swept(&mut judge);
    assert!(report.failed > 0);
    let reason = &report.failures[0];
    assert!(
        reason.contains("caisson_0.2.0+3.efi is chosen, and") && reason.contains("not as they were signed"),
        "{reason}"
    );
}

#[test]
fn a_name_that_comes_before_its_kernel_image_is_found() {
    let mut disk = Disk::new();
    let mut judge = disk.judge();
    disk.write_slot();
    disk.flush();
    disk.name_slot(Disk::flush);
    disk.flush();
    disk.stage();
    disk.arm();
    let report = disk.swept(&mut judge);
    assert!(report.failures.iter().any(|reason| reason.contains("is not whole")), "{:?}", report.failures);
}

#[test]
fn a_table_whose_copies_are_written_at_once_is_found() {
    let mut disk = Disk::new();
    let mut judge = disk.judge();
    disk.name_slot(|_| {});
    let report = disk.swept(&mut judge);
    assert!(report.failures.iter().any(|reason| reason.contains("neither copy")), "{:?}", report.failures);
}

#[test]
fn a_trial_without_a_version_to_fall_back_to_is_found() {
    let mut disk = Disk::new();
    disk.write_slot();
    disk.name_slot(|_| {});
    disk.stage();
    disk.arm();
    disk.events.clear();
    let mut judge = disk.judge();
    assert_eq!(judge.verdict(), &boots(1, true));
    disk.change(|disk| disk.esp(|esp| esp.root_dir().remove(OLD).unwrap()));
    let report = disk.swept(&mut judge);
    assert!(report.failures.iter().any(|reason| reason.contains("no tries left")), "{:?}", report.failures);
}

#[test]
fn two_names_for_one_file_are_counted() {
    let mut disk = Disk::new();
    let mut judge = disk.judge();
    disk.change(|disk| {
        super::add_name(&mut disk.image[bytes(ESP)], "EFI/Linux", "caisson_0.1.0.efi", STAGED).unwrap();
    });
    disk.flush();
    disk.change(|disk| {
        disk.esp(|esp| drop(esp.root_dir().open_file(&format!("EFI/Linux/{STAGED}")).unwrap()))
    });
    let report = disk.swept(&mut judge);
    assert!(report.failed == 0 && report.shared > 0, "{report:?}");
}
