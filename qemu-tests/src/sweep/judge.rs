//! What would boot from a disk as it is: firmware, loader and kernel, each by the rule it has. The state of the disk is kept so that one
//! changed sector costs little; what was found of it is found again when a sector changes that it hangs on, and only then.

use anyhow::{Context, Result, ensure};
use boot_choice::{Entry, FileName, choose};
use build::disk::guid_of_hash;
use build::uki;
use build::verity::uuid_text;
use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use std::io::{Cursor, Seek, SeekFrom};
use std::ops::Range;

use super::cuts::Subject;
use super::fat::{File, Volume};
use super::record::SECTOR;

const FOLDER: &str = "EFI/Linux";
const LOADER: &str = "BOOTX64.EFI";
const FOLDER_OF_LOADER: &str = "EFI/BOOT";
/// Sectors of a partition table at each end of a disk.
const TABLE: usize = 34;
/// Boots that are gone through until a blessed entry runs.
const MOST_BOOTS: usize = 32;
/// Places of files that are kept at a time.
const MOST_VIEWS: usize = 16;

/// A version that was published.
#[derive(Clone)]
pub struct Known {
    pub version: String,
    pub uki: Vec<u8>,
    pub root: Vec<u8>,
    pub tree: Vec<u8>,
}

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boots {
    /// The number of the [`Known`] one.
    pub version: usize,
    /// It has tries; what runs when they are used up verifies too.
    pub is_on_trial: bool,
}

/// What has to be known of a version.
struct Version {
    name: String,
    os_release: String,
    /// PARTUUIDs of root and tree, as its command line has them.
    partitions: [String; 2],
}

/// A partition of a slot: only which version it holds is kept of it.
struct Part {
    sectors: Range<usize>,
    /// For each sector, bit by bit: whether it is as in that version.
    same: Vec<u8>,
    /// For each version: sectors that are not.
    wrong: Vec<usize>,
}

/// A file of the ESP where it is now.
struct View {
    runs: Vec<Range<usize>>,
    size: usize,
    /// For each known content: sectors that differ; none for one of another size.
    wrong: Vec<Option<usize>>,
}

/// Where a sector belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Part {
        part: usize,
        offset: usize,
    },
    /// The partition table or the ESP.
    Image(usize),
}

/// What a sector holds, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Bit by bit: as in which version.
    Same(u8),
    Bytes(Box<[u8; SECTOR]>),
}

pub struct Judge {
    image: Vec<u8>,
    esp: Range<usize>,
    /// Root and tree of slot a, then of slot b.
    parts: [Part; 4],
    versions: Vec<Version>,
    /// Root and tree of each version.
    trees: Vec<[Vec<u8>; 2]>,
    /// The kernel images of all versions, then the loaders.
    contents: Vec<Vec<u8>>,
    views: Vec<View>,
    /// By sector of the ESP: the entries that were found hang on it.
    watched: Vec<bool>,
    /// Entries by their view; and the view of the loader.
    entries: Vec<(FileName, usize)>,
    loader: Option<usize>,
    /// Two names lead to the same clusters.
    is_shared: bool,
    table: Option<Vec<GPTPartitionEntry>>,
    table_is_old: bool,
    files_are_old: bool,
    is_old: bool,
    verdict: Result<Boots, String>,
}

impl Subject for Judge {
    type Place = Place;
    type Content = Content;
    type State = Boots;

    const AT_RANDOM: usize = 8;

    /// None for what has nothing to do with the choice.
    fn place(&self, sector: usize) -> Option<Place> {
        if let Some(part) = self.parts.iter().position(|part| part.sectors.contains(&sector)) {
            return Some(Place::Part { part, offset: sector - self.parts[part].sectors.start });
        }
        let is_table = sector < TABLE || sector >= self.image.len() / SECTOR - TABLE;
        (is_table || self.esp.contains(&sector)).then_some(Place::Image(sector))
    }

    /// What of a sector's bytes is kept there.
    fn content(&self, place: Place, bytes: &[u8; SECTOR]) -> Content {
        match place {
            Place::Part { part, offset } => Content::Same(same(&self.trees, part % 2, offset, bytes)),
            Place::Image(_) => Content::Bytes(Box::new(*bytes)),
        }
    }

    fn get(&self, place: Place) -> Content {
        match place {
            Place::Part { part, offset } => Content::Same(self.parts[part].same[offset]),
            Place::Image(sector) => {
                let mut bytes = Box::new([0; SECTOR]);
                bytes.copy_from_slice(&self.image[sector * SECTOR..(sector + 1) * SECTOR]);
                Content::Bytes(bytes)
            }
        }
    }

    /// Whether what is found of the table or the ESP's names hangs on a sector.
    fn is_watched(&self, place: Place) -> bool {
        match place {
            Place::Part { .. } => false,
            Place::Image(sector) => sector
                .checked_sub(self.esp.start)
                .and_then(|at| self.watched.get(at))
                .is_none_or(|watched| *watched),
        }
    }

    fn set(&mut self, place: Place, content: &Content) {
        match (place, content) {
            (Place::Part { part, offset }, Content::Same(new)) => {
                let part = &mut self.parts[part];
                let old = std::mem::replace(&mut part.same[offset], *new);
                for (version, wrong) in part.wrong.iter_mut().enumerate() {
                    let before = *wrong;
                    *wrong += usize::from(old >> version & 1);
                    *wrong -= usize::from(new >> version & 1);
                    self.is_old |= (before == 0) != (*wrong == 0);
                }
            }
            (Place::Image(sector), Content::Bytes(new)) => {
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                if self.image[bytes.clone()] == new[..] {
                    return;
                }
                if !self.esp.contains(&sector) {
                    self.table_is_old = true;
                } else {
                    let at = sector - self.esp.start;
                    self.files_are_old |= self.watched[at];
                    for view in &mut self.views {
                        self.is_old |= view.change(at, &self.contents, &self.image[bytes.clone()], &new[..]);
                    }
                }
                self.image[bytes].copy_from_slice(&new[..]);
            }
            _ => unreachable!("content of another place"),
        }
    }

    /// What would boot now.
    fn verdict(&mut self) -> &Result<Boots, String> {
        if self.table_is_old {
            self.table = self.read_table();
            self.table_is_old = false;
            self.is_old = true;
        }
        if self.files_are_old {
            self.read_files();
            self.files_are_old = false;
            self.is_old = true;
        }
        if self.is_old {
            self.verdict = self.decide();
            self.is_old = false;
        }
        &self.verdict
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }
}

impl Judge {
    /// `disk` reads a disk, from a byte on; it has `size` bytes.
    pub fn new(
        size: usize,
        known: Vec<Known>,
        mut disk: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        ensure!(known.len() <= 8, "at most 8 versions");
        // Zeros that nobody touches take no memory.
        let mut image = vec![0; size];
        let sectors = size / SECTOR;
        let mut fill = |image: &mut Vec<u8>, range: Range<usize>| {
            let bytes = range.start * SECTOR..range.end * SECTOR;
            disk(bytes.start, image.get_mut(bytes).context("a partition beyond the disk")?)
        };
        for range in [0..TABLE, sectors - TABLE..sectors] {
            fill(&mut image, range)?;
        }
        let table = GPT::read_from(&mut Cursor::new(&image), SECTOR as u64)?;
        let partition = |name: &str| -> Result<Range<usize>> {
            let (_, entry) = table
                .iter()
                .find(|(_, entry)| entry.partition_name.as_str() == name)
                .with_context(|| format!("there is no partition {name}"))?;
            Ok(usize::try_from(entry.starting_lba)?..usize::try_from(entry.ending_lba)? + 1)
        };
        let esp = partition("esp")?;
        fill(&mut image, esp.clone())?;
        let mut versions = Vec::new();
        let (mut trees, mut contents) = (Vec::new(), Vec::new());
        for Known { version, uki, root, tree } in known {
            versions.push(Version::of(version, &uki)?);
            contents.push(uki);
            trees.push([root, tree]);
        }
        let mut parts = Vec::new();
        for (name, kind) in [("root-a", 0), ("verity-a", 1), ("root-b", 0), ("verity-b", 1)] {
            let sectors = partition(name)?;
            fill(&mut image, sectors.clone())?;
            parts.push(Part { same: vec![0; sectors.len()], wrong: vec![0; trees.len()], sectors });
            let (number, part) = (parts.len() - 1, &parts[parts.len() - 1]);
            let same: Vec<u8> = (part.sectors.clone())
                .enumerate()
                .map(|(offset, sector)| {
                    same(&trees, kind, offset, &image[sector * SECTOR..(sector + 1) * SECTOR])
                })
                .collect();
            let wrong = |version: usize| same.iter().filter(|same| **same & (1 << version) == 0).count();
            parts[number].wrong = (0..trees.len()).map(wrong).collect();
            parts[number].same = same;
        }
        let parts = <[Part; 4]>::try_from(parts).ok().context("four partitions")?;
        let watched = vec![false; esp.len()];
        let mut judge = Self {
            image,
            esp,
            parts,
            versions,
            trees,
            contents,
            watched,
            views: Vec::new(),
            entries: Vec::new(),
            loader: None,
            is_shared: false,
            table: None,
            table_is_old: true,
            files_are_old: true,
            is_old: true,
            verdict: Err(String::new()),
        };
        let loader = judge.loader_file().context("there is no loader")?;
        let loader = judge.read(&loader.content.context("the loader cannot be read")?, loader.size);
        judge.contents.push(loader);
        Ok(judge)
    }

    /// A loader that may take the place of the one that is there.
    pub fn add_loader(&mut self, loader: Vec<u8>) {
        self.contents.push(loader);
        self.views.clear();
        self.files_are_old = true;
    }

    pub fn version(&self, number: usize) -> &str {
        &self.versions[number].name
    }

    /// As firmware and kernel read: the primary copy, else the one in the last sector.
    fn read_table(&self) -> Option<Vec<GPTPartitionEntry>> {
        let last = self.image.len() / SECTOR - 1;
        [1, last].into_iter().find_map(|sector| {
            let mut cursor = Cursor::new(&self.image);
            cursor.seek(SeekFrom::Start((sector * SECTOR) as u64)).ok()?;
            let header = GPTHeader::read_from(&mut cursor).ok()?;
            // What lies elsewhere is not in this image.
            let entries = usize::try_from(header.partition_entry_lba).ok()?;
            let is_here = header.primary_lba == sector as u64 && (entries < TABLE || entries > last - TABLE);
            let entries = header.read_partitions(&mut cursor, SECTOR as u64).ok().filter(|_| is_here)?;
            let sum = header.generate_partition_entry_array_crc32(&entries);
            (sum == header.partition_entry_array_crc32).then_some(entries)
        })
    }

    fn volume(&self) -> Option<Volume<'_>> {
        Volume::open(&self.image[self.esp.start * SECTOR..self.esp.end * SECTOR])
    }

    fn loader_file(&self) -> Option<File> {
        let (files, _) = self.volume()?.list(FOLDER_OF_LOADER);
        files?.into_iter().find(|file| file.name.eq_ignore_ascii_case(LOADER))
    }

    fn read_files(&mut self) {
        self.watched.fill(false);
        self.watched[0] = true;
        let (mut files, mut loader) = (Vec::new(), None);
        if let Some(volume) = self.volume() {
            let (found, read) = volume.list(FOLDER);
            let (beside_loader, read_too) = volume.list(FOLDER_OF_LOADER);
            files = found.unwrap_or_default();
            loader = beside_loader
                .unwrap_or_default()
                .into_iter()
                .find(|file| file.name.eq_ignore_ascii_case(LOADER));
            for range in read.into_iter().chain(read_too) {
                self.watched[range].fill(true);
            }
        }
        self.is_shared = overlap(files.iter().filter_map(|file| file.content.clone()).flatten().collect());
        if self.views.len() > MOST_VIEWS {
            self.views.clear();
        }
        self.loader = loader.and_then(|file| self.view(file));
        let entries = files.into_iter().filter_map(|file| {
            let name = FileName::parse(&file.name)?;
            Some((name, file))
        });
        let entries: Vec<_> = entries.collect();
        self.entries =
            entries.into_iter().filter_map(|(name, file)| Some((name, self.view(file)?))).collect();
    }

    /// The view of a file that can be read and is not empty.
    fn view(&mut self, file: File) -> Option<usize> {
        let runs = file.content.filter(|runs| file.size > 0 && !overlap(runs.clone()))?;
        if let Some(known) = self.views.iter().position(|view| view.size == file.size && view.runs == runs) {
            return Some(known);
        }
        let now = self.read(&runs, file.size);
        let wrong = |content: &Vec<u8>| {
            (content.len() == now.len())
                .then(|| content.chunks(SECTOR).zip(now.chunks(SECTOR)).filter(|(a, b)| a != b).count())
        };
        let wrong = self.contents.iter().map(wrong).collect();
        self.views.push(View { runs, size: file.size, wrong });
        Some(self.views.len() - 1)
    }

    fn read(&self, runs: &[Range<usize>], size: usize) -> Vec<u8> {
        let start = self.esp.start;
        let mut bytes: Vec<u8> = runs
            .iter()
            .flat_map(|run| &self.image[(start + run.start) * SECTOR..(start + run.end) * SECTOR])
            .copied()
            .collect();
        bytes.truncate(size);
        bytes
    }

    /// Boots, with what the loader does to the names, until an entry runs that is not counted. Each has to be whole on the way.
    fn decide(&self) -> Result<Boots, String> {
        let table = self.table.as_ref().ok_or("neither copy of the partition table can be read")?;
        let esp = self.esp.start as u64;
        if !table.iter().any(|entry| entry.partition_name.as_str() == "esp" && entry.starting_lba == esp) {
            return Err("the partition table has no ESP".to_owned());
        }
        let is_whole = |view: usize, content: usize| self.views[view].wrong[content] == Some(0);
        let mut loaders = self.versions.len()..self.contents.len();
        if !self.loader.is_some_and(|view| loaders.any(|loader| is_whole(view, loader))) {
            return Err("the loader is not whole".to_owned());
        }
        let mut entries = Vec::new();
        let mut images = Vec::new();
        for (name, view) in &self.entries {
            let image = (0..self.versions.len()).find(|version| is_whole(*view, *version));
            let os_release = match image {
                Some(version) => self.versions[version].os_release.clone(),
                None => {
                    let View { runs, size, .. } = &self.views[*view];
                    let bytes = self.read(runs, *size);
                    // No kernel image: the loader does not list it.
                    let Ok(text) = uki::section(&bytes, ".osrel") else { continue };
                    String::from_utf8_lossy(text).into_owned()
                }
            };
            if let Some(entry) = Entry::new(name.clone(), &os_release) {
                entries.push(entry);
                images.push(image);
            }
        }
        let mut first: Option<Boots> = None;
        for _ in 0..MOST_BOOTS {
            let chosen = choose(&entries).ok_or("no entry can boot")?;
            let at = entries.iter().position(|entry| entry == chosen).ok_or("no entry can boot")?;
            let name = &entries[at].name;
            let version =
                images[at].ok_or_else(|| format!("{} is chosen, and is not whole", name.as_str()))?;
            self.verify(table, version)
                .map_err(|reason| format!("{} is chosen, and {reason}", name.as_str()))?;
            let is_on_trial = name.counter().is_some();
            let first = first.get_or_insert(Boots { version, is_on_trial });
            match name.tried() {
                None => return Ok(first.clone()),
                Some(next) if *name != next && name.counter().is_some_and(|counter| counter.left > 0) => {
                    entries[at].name = next
                }
                Some(_) => return Err(format!("{} is chosen, though it has no tries left", name.as_str())),
            }
        }
        Err("trials without an end".to_owned())
    }

    /// As the kernel does with a version's command line.
    fn verify(&self, table: &[GPTPartitionEntry], version: usize) -> Result<(), String> {
        for (kind, (what, uuid)) in
            ["root", "verity tree"].into_iter().zip(&self.versions[version].partitions).enumerate()
        {
            let entry = table
                .iter()
                .find(|entry| {
                    entry.is_used() && uuid_text(guid_of_hash(entry.unique_partition_guid)) == *uuid
                })
                .ok_or_else(|| format!("no partition has the PARTUUID of its {what}"))?;
            let part = (self.parts.iter().enumerate())
                .find(|(number, part)| number % 2 == kind && part.sectors.start as u64 == entry.starting_lba)
                .ok_or_else(|| format!("the PARTUUID of its {what} is on no slot"))?;
            let wrong = part.1.wrong[version];
            if wrong > 0 {
                return Err(format!("{wrong} sectors of its {what} are not as they were signed"));
            }
        }
        Ok(())
    }
}

impl Version {
    fn of(name: String, image: &[u8]) -> Result<Self> {
        let text =
            |section| uki::section(image, section).map(|text| String::from_utf8_lossy(text).into_owned());
        let cmdline = text(".cmdline")?;
        let mut uuids =
            cmdline.split_whitespace().filter_map(|word| word.strip_prefix("PARTUUID=")).map(str::to_owned);
        let mut next = || uuids.next().context("the command line names no partitions");
        Ok(Self { name, os_release: text(".osrel")?, partitions: [next()?, next()?] })
    }
}

impl View {
    /// A sector of the ESP becomes another. Whether that means anything for what the file is.
    fn change(&mut self, sector: usize, contents: &[Vec<u8>], old: &[u8], new: &[u8]) -> bool {
        let mut before = 0;
        let Some(run) = self.runs.iter().find(|run| {
            let is_here = run.contains(&sector);
            before += if is_here { 0 } else { run.len() };
            is_here
        }) else {
            return false;
        };
        let from = (before + sector - run.start) * SECTOR;
        let to = (from + SECTOR).min(self.size);
        // The rest of the last cluster.
        if from >= to {
            return false;
        }
        let was_whole = self.wrong.contains(&Some(0));
        for (wrong, content) in self.wrong.iter_mut().zip(contents) {
            let (Some(wrong), Some(wanted)) = (wrong, content.get(from..to)) else { continue };
            *wrong += usize::from(wanted == &old[..to - from]);
            *wrong -= usize::from(wanted == &new[..to - from]);
        }
        !was_whole || !self.wrong.contains(&Some(0))
    }
}

fn overlap(mut runs: Vec<Range<usize>>) -> bool {
    runs.sort_by_key(|run| run.start);
    runs.windows(2).any(|pair| pair[0].end > pair[1].start)
}

/// In which versions a sector of a root (`kind` 0) or tree (1) is as these bytes; behind its end, in all.
fn same(trees: &[[Vec<u8>; 2]], kind: usize, offset: usize, bytes: &[u8]) -> u8 {
    let is_same = |version: &[Vec<u8>; 2]| {
        let rest = version[kind].get(offset * SECTOR..).unwrap_or_default();
        let wanted = &rest[..rest.len().min(SECTOR)];
        wanted == &bytes[..wanted.len()]
    };
    (0..).zip(trees).fold(0, |mask, (number, version)| mask | (u8::from(is_same(version)) << number))
}
