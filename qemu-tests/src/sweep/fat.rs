//! FAT32 as firmware reads it: the first table, no word of what a mark says about a clean end (Microsoft, "FAT32 File System
//! Specification", 1.03). Long names count where they fit their short one, else the short one does.

use std::ops::Range;

use super::record::SECTOR;

const ENTRY: usize = 32;
/// Bytes of a folder that are looked at.
const LARGEST_FOLDER: usize = 1 << 20;

/// A file of one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub name: String,
    pub size: usize,
    /// Where its content is, in sectors of the volume; none when its chain of clusters is broken.
    pub content: Option<Vec<Range<usize>>>,
}

/// A volume, as far as it can be read.
pub(super) struct Volume<'a> {
    bytes: &'a [u8],
    table: Range<usize>,
    cluster_sectors: usize,
    data: usize,
    root: u32,
}

/// What was read: who changes none of these sectors changes nothing of what was found.
pub(super) type Read = Vec<Range<usize>>;

impl<'a> Volume<'a> {
    /// None where there is no FAT32 with sectors of 512 bytes.
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        let (reserved, tables) = (usize::from(u16_at(bytes, 14)?), usize::from(*bytes.get(16)?));
        let size = usize::try_from(u32_at(bytes, 36)?).ok()?;
        let is_fat = u16_at(bytes, 510)? == 0xaa55 && usize::from(u16_at(bytes, 11)?) == SECTOR && tables > 0;
        let cluster_sectors = usize::from(*bytes.get(13)?);
        (is_fat && cluster_sectors.is_power_of_two() && size > 0).then_some(Self {
            bytes,
            table: reserved..reserved + size,
            cluster_sectors,
            data: reserved + tables * size,
            root: u32_at(bytes, 44)?,
        })
    }

    /// The files of a folder, and what was read to know them.
    pub(super) fn list(&self, path: &str) -> (Option<Vec<File>>, Read) {
        let mut read = vec![0..1, self.table.clone()];
        let mut folder = Some(self.root);
        for name in path.split('/') {
            let entries = folder.and_then(|first| self.entries(first, &mut read));
            folder = entries.and_then(|entries| {
                entries
                    .iter()
                    .find(|entry| entry.is_folder && entry.name.eq_ignore_ascii_case(name))
                    .map(|entry| entry.first)
            });
        }
        let entries = folder.and_then(|first| self.entries(first, &mut read));
        let file = |entry: Entry| {
            let clusters = entry.size.div_ceil(self.cluster_sectors * SECTOR);
            let content = self.chain(entry.first, clusters);
            File { name: entry.name, size: entry.size, content }
        };
        (entries.map(|all| all.into_iter().filter(|entry| !entry.is_folder).map(file).collect()), read)
    }

    fn next(&self, cluster: u32) -> Option<u32> {
        let at = self.table.start * SECTOR + usize::try_from(cluster).ok()? * 4;
        (at + 4 <= self.table.end * SECTOR)
            .then(|| u32_at(self.bytes, at))
            .flatten()
            .map(|next| next & 0x0fff_ffff)
    }

    fn sectors(&self, cluster: u32) -> Option<Range<usize>> {
        let start = self.data + usize::try_from(cluster.checked_sub(2)?).ok()? * self.cluster_sectors;
        let end = start + self.cluster_sectors;
        (end * SECTOR <= self.bytes.len()).then_some(start..end)
    }

    /// So many clusters from `first` on, as runs of sectors.
    fn chain(&self, first: u32, clusters: usize) -> Option<Vec<Range<usize>>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut cluster = first;
        for number in 0..clusters {
            if number > 0 {
                cluster = self.next(cluster)?;
            }
            let sectors = self.sectors(cluster)?;
            match runs.last_mut() {
                Some(run) if run.end == sectors.start => run.end = sectors.end,
                _ => runs.push(sectors),
            }
        }
        Some(runs)
    }

    fn entries(&self, first: u32, read: &mut Read) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut long = LongName::default();
        let (mut cluster, mut bytes) = (first, 0);
        loop {
            let sectors = self.sectors(cluster)?;
            read.push(sectors.clone());
            let content = self.bytes.get(sectors.start * SECTOR..sectors.end * SECTOR)?;
            for slot in content.as_chunks::<ENTRY>().0 {
                match (slot[0], slot[11]) {
                    (0, _) => return Some(entries),
                    (0xe5, _) => long = LongName::default(),
                    (_, 0x0f) => long.push(slot),
                    // The volume's label.
                    (_, kind) if kind & 0x08 != 0 => long = LongName::default(),
                    _ => entries.push(Entry::new(slot, &std::mem::take(&mut long))),
                }
            }
            bytes += content.len();
            cluster = self.next(cluster)?;
            if cluster >= 0x0fff_fff8 {
                return Some(entries);
            }
            if bytes > LARGEST_FOLDER {
                return None;
            }
        }
    }
}

/// Gives a file a second name in its folder, as a power cut in a rename does: two files of the same clusters. None where there is no
/// such file, or no room.
pub fn add_name(volume: &mut [u8], folder: &str, file: &str, name: &str) -> Option<()> {
    let (_, read) = Volume::open(volume)?.list(folder);
    let slots: Vec<usize> = read
        .last()?
        .clone()
        .flat_map(|sector| (0..SECTOR / ENTRY).map(move |slot| sector * SECTOR + slot * ENTRY))
        .collect();
    let mut long = LongName::default();
    let mut found = None;
    for at in &slots {
        let slot: &[u8; ENTRY] = volume.get(*at..at + ENTRY)?.try_into().ok()?;
        if slot[0] != 0xe5 && slot[11] == 0x0f {
            long.push(slot);
        } else if slot[0] != 0xe5 && Entry::new(slot, &std::mem::take(&mut long)).name == file {
            found = Some(*slot);
        }
    }
    let mut short = found?;
    short[..11].copy_from_slice(b"TWIN~1  TWI");
    let units: Vec<u16> = name.encode_utf16().chain([0]).collect();
    let parts = units.chunks(13).count();
    let is_free = |at: &usize| matches!(volume.get(*at), Some(0 | 0xe5));
    let room = slots.windows(parts + 1).find(|run| run.iter().all(is_free))?.to_vec();
    for (number, at) in (1..=parts).rev().zip(&room) {
        let mut part = [0xffff; 13];
        let text = units.chunks(13).nth(number - 1)?;
        part[..text.len()].copy_from_slice(text);
        let bytes: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let mut slot = [0; ENTRY];
        slot[0] = u8::try_from(number).ok()? | if number == parts { 0x40 } else { 0 };
        (slot[11], slot[13]) = (0x0f, sum(&short));
        slot[1..11].copy_from_slice(&bytes[..10]);
        slot[14..26].copy_from_slice(&bytes[10..22]);
        slot[28..32].copy_from_slice(&bytes[22..]);
        volume[*at..at + ENTRY].copy_from_slice(&slot);
    }
    let last = room.last()?;
    volume[*last..last + ENTRY].copy_from_slice(&short);
    Some(())
}

/// Of a short name: what its long one repeats.
fn sum(slot: &[u8; ENTRY]) -> u8 {
    slot[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

struct Entry {
    name: String,
    is_folder: bool,
    first: u32,
    size: usize,
}

impl Entry {
    fn new(slot: &[u8; ENTRY], long: &LongName) -> Self {
        let short = |part: &[u8], is_lower: bool| {
            let text = String::from_utf8_lossy(part).trim_end().to_owned();
            if is_lower { text.to_ascii_lowercase() } else { text }
        };
        let (stem, extension) =
            (short(&slot[..8], slot[12] & 8 != 0), short(&slot[8..11], slot[12] & 16 != 0));
        let name = if extension.is_empty() { stem } else { format!("{stem}.{extension}") };
        let high = u32::from(u16_at(slot, 20).unwrap_or(0));
        Self {
            name: long.of(slot).unwrap_or(name),
            is_folder: slot[11] & 0x10 != 0,
            first: (high << 16) | u32::from(u16_at(slot, 26).unwrap_or(0)),
            size: u32_at(slot, 28).and_then(|size| usize::try_from(size).ok()).unwrap_or(0),
        }
    }
}

/// The parts of a long name, which stand before their short one, the last part first.
#[derive(Default)]
struct LongName {
    /// The last part first.
    parts: Vec<[u16; 13]>,
    sum: u8,
    /// Of the part that has to come next; 0 when all are there.
    next: u8,
}

impl LongName {
    fn push(&mut self, slot: &[u8; ENTRY]) {
        let (order, is_last) = (slot[0] & 0x3f, slot[0] & 0x40 != 0);
        if is_last {
            *self = Self { parts: Vec::new(), sum: slot[13], next: order };
        }
        if order == 0 || order != self.next || slot[13] != self.sum {
            *self = Self::default();
            return;
        }
        let units: Vec<u16> = [1..11, 14..26, 28..32]
            .into_iter()
            .flat_map(|part| slot[part].as_chunks::<2>().0)
            .map(|unit| u16::from_le_bytes(*unit))
            .collect();
        self.parts.extend(<[u16; 13]>::try_from(units));
        self.next = order - 1;
    }

    /// The name, if it is whole and this short entry's.
    fn of(&self, slot: &[u8; ENTRY]) -> Option<String> {
        let units: Vec<u16> = self
            .parts
            .iter()
            .rev()
            .flatten()
            .copied()
            .take_while(|unit| *unit != 0 && *unit != 0xffff)
            .collect();
        (!self.parts.is_empty() && self.next == 0 && sum(slot) == self.sum)
            .then(|| String::from_utf16_lossy(&units))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
