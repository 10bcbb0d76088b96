//! A folder in memory that knows what a power cut may leave of it.
//!
//! A disk gives no order to what was not flushed: each change of a name since the folder was last flushed may be there or not,
//! whatever came before or after it, and of the content that a file was given since it was last flushed, any blocks of 512 bytes
//! or of 4 KiB. What is not there reads as zeros, or lies beyond the file's end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::files::Files;

type Data = Rc<[u8]>;

/// One step that a power cut may come after.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Write { name: String, file: usize, data: Data },
    Flush { file: usize },
    FlushFolder,
    Rename { from: String, to: String },
    Remove { name: String },
}

/// A change of the folder's names.
#[derive(Debug, Clone)]
enum Naming {
    Made(String, usize),
    Renamed(String, String, usize),
    Removed(String),
}

impl Naming {
    fn act(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Made(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Renamed(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Self::Removed(name) => drop(names.remove(name)),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Data,
    /// What programs see, while it differs.
    written: Option<Data>,
}

/// A disk with its cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    files: Vec<Content>,
    durable: BTreeMap<String, usize>,
    /// What programs see.
    names: BTreeMap<String, usize>,
    /// Since the folder was flushed.
    unflushed: Vec<Naming>,
}

/// What a cut has left: whole files by name.
pub(crate) type Left = BTreeMap<String, Data>;

impl Disk {
    pub(crate) fn of(left: &Left) -> Self {
        let files = left.values().map(|data| Content { durable: data.clone(), written: None }).collect();
        let names: BTreeMap<String, usize> = left.keys().cloned().zip(0..).collect();
        Self { files, durable: names.clone(), names, unflushed: Vec::new() }
    }

    pub(crate) fn act(&mut self, step: &Step) {
        match step {
            Step::Write { name, file, data } => {
                if *file == self.files.len() {
                    self.files.push(Content::default());
                    self.rename(Naming::Made(name.clone(), *file));
                }
                self.files[*file].written = Some(data.clone());
            }
            Step::Flush { file } => {
                if let Some(written) = self.files[*file].written.take() {
                    self.files[*file].durable = written;
                }
            }
            Step::FlushFolder => {
                self.durable = self.names.clone();
                self.unflushed.clear();
            }
            Step::Rename { from, to } => {
                self.rename(Naming::Renamed(from.clone(), to.clone(), self.names[from]));
            }
            Step::Remove { name } => self.rename(Naming::Removed(name.clone())),
        }
    }

    fn rename(&mut self, naming: Naming) {
        naming.act(&mut self.names);
        self.unflushed.push(naming);
    }

    fn data(&self, name: &str) -> Option<Data> {
        let Content { durable, written } = &self.files[*self.names.get(name)?];
        Some(written.as_ref().unwrap_or(durable).clone())
    }

    /// What is left when nothing is there that need not be.
    pub(crate) fn durable_only(&self) -> Self {
        let left = self.durable.iter().map(|(name, file)| (name.clone(), self.files[*file].durable.clone()));
        Self::of(&left.collect())
    }

    /// Everything that a cut may leave now, each once; `dice` choose among what are too many.
    pub(crate) fn cuts(&self, dice: &mut Dice, most: usize) -> BTreeSet<Left> {
        let all = 1u64 << self.unflushed.len().min(32);
        let mut cuts = BTreeSet::new();
        // The ends first: nothing of it, all of it.
        let masks = [0, all - 1].into_iter().chain(0..all.min(64)).chain((0..8).map(|_| dice.roll(all)));
        for mask in masks.collect::<Vec<_>>() {
            let mut names = self.durable.clone();
            let chosen = self.unflushed.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
            chosen.for_each(|(_, naming)| naming.act(&mut names));
            self.contents(&names, dice, &mut cuts);
            if cuts.len() >= most {
                break;
            }
        }
        cuts
    }

    /// What the files of these names may hold.
    fn contents(&self, names: &BTreeMap<String, usize>, dice: &mut Dice, cuts: &mut BTreeSet<Left>) {
        let whole = |file: &usize| {
            let Content { durable, written } = &self.files[*file];
            written.as_ref().unwrap_or(durable).clone()
        };
        let base: Left = names.iter().map(|(name, file)| (name.clone(), whole(file))).collect();
        let unsafe_files = names.iter().filter(|(_, file)| self.files[**file].written.is_some());
        for (name, file) in unsafe_files {
            for torn in torn(&self.files[*file], dice) {
                cuts.insert(
                    base.iter()
                        .map(|(other, data)| (other.clone(), data.clone()))
                        .chain([(name.clone(), torn)])
                        .collect(),
                );
            }
        }
        cuts.insert(base);
    }
}

/// What may be there of a file's content that was not flushed.
fn torn(content: &Content, dice: &mut Dice) -> Vec<Data> {
    let Content { durable, written } = content;
    let Some(written) = written else { return vec![durable.clone()] };
    let mut torn = vec![durable.clone(), vec![0; written.len()].into()];
    for block in [512, 4096] {
        let blocks = written.len().div_ceil(block);
        // The beginning, cut off there or followed by zeros.
        for end in (0..blocks).map(|count| count * block) {
            torn.push(written[..end].into());
            let zeros = std::iter::repeat_n(0, written.len() - end);
            torn.push(written[..end].iter().copied().chain(zeros).collect());
        }
        for _ in 0..4 {
            let mask = dice.roll(1 << blocks.min(63));
            let kept = |(at, byte): (usize, &u8)| if mask >> (at / block % 63) & 1 == 1 { *byte } else { 0 };
            torn.push(written.iter().enumerate().map(kept).collect());
        }
    }
    torn
}

/// A folder on such a disk, with a record of what was done to it. Clones are the same folder.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) disk: Rc<RefCell<Disk>>,
    pub(crate) steps: Rc<RefCell<Vec<Step>>>,
}

impl Recorded {
    pub(crate) fn on(disk: Disk) -> Self {
        Self { disk: Rc::new(RefCell::new(disk)), steps: Rc::default() }
    }

    fn act(&self, step: Step) {
        self.disk.borrow_mut().act(&step);
        self.steps.borrow_mut().push(step);
    }

    fn exists(&self, name: &str) -> io::Result<()> {
        self.read(name).map(drop)
    }
}

impl Files for Recorded {
    type Written = usize;

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/recorded").join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.borrow().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let data = self.disk.borrow().data(name);
        data.map(|data| data.to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&self, name: &str, data: &[u8]) -> io::Result<usize> {
        let file = {
            let disk = self.disk.borrow();
            disk.names.get(name).copied().unwrap_or(disk.files.len())
        };
        self.act(Step::Write { name: name.to_owned(), file, data: data.into() });
        Ok(file)
    }

    fn flush(&self, file: &usize) -> io::Result<()> {
        self.act(Step::Flush { file: *file });
        Ok(())
    }

    fn flush_folder(&self) -> io::Result<()> {
        self.act(Step::FlushFolder);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.exists(from)?;
        self.act(Step::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.exists(name)?;
        self.act(Step::Remove { name: name.to_owned() });
        Ok(())
    }
}

/// Chance that can be repeated (xorshift64*).
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides.max(1)
    }
}
