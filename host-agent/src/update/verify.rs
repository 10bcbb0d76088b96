//! Both slots read back: whether each hashes to the root that its kernel image names, and where it does not.

use apiserver::updates::{SlotReport, SlotState, UpdateProgress};
use std::fs::File;
use std::os::unix::fs::FileExt;
use tokio::task::yield_now;
use update::verity::{self, BLOCK, HASH, Hash, SALT, Tree};

use super::Updates;
use super::esp::{Entries, Esp};
use super::journal::Journal;
use super::pe::section;
use super::running::Running;
use super::slots::{Partition, Slots};
use super::table;
use super::uki::hash_of_file;
use super::write::{Aligned, Parts, open_direct};

/// Bytes of a kernel's command line.
const LARGEST_CMDLINE: usize = 4096;

/// What a kernel image says of the root that it boots, or why it cannot.
struct Named {
    version: String,
    root: Result<Running, String>,
}

impl Updates {
    /// Reads both slots. Nothing is written.
    pub(super) async fn verify(&self) -> Result<Vec<SlotReport>, String> {
        let slots = Slots::find()?;
        let version = self.places.image()?.version;
        let (own, other) = {
            let esp = Esp::mount_to_read(&slots.esp.device)?;
            (named(&esp.entries, &version, &self.places.journal()), other(&esp.entries, &version, self)?)
        };
        let running = Running::read()?;
        let runs = match &own.root {
            Ok(root) if *root != running => Some("its kernel image on the ESP boots another root".to_owned()),
            Ok(_) => None,
            Err(reason) => Some(format!("its kernel image on the ESP: {reason}")),
        };
        let spare = slots.spare.to_string();
        let active = if slots.spare == 'a' { "b" } else { "a" }.to_owned();
        let size = |root: &Running| root.blocks * BLOCK as u64;
        let to_read = size(&running) + other.iter().flat_map(|other| &other.root).map(size).sum::<u64>();
        self.progress.replace(Some(UpdateProgress {
            version: version.clone(),
            way: "read".to_owned(),
            received: 0,
            total: 0,
            written: 0,
            root: to_read,
            elapsed_ms: 0,
        }));
        let active = SlotReport {
            slot: active,
            runs: true,
            version: Some(version),
            state: SlotState::Whole,
            damage: runs
                .or(self.damage(&slots, [&slots.running_slot, &slots.running_verity], running).await?),
        };
        let mut report =
            SlotReport { slot: spare, runs: false, version: None, state: SlotState::Empty, damage: None };
        if let Some(other) = other {
            report.state = SlotState::Whole;
            report.version = Some(other.version);
            report.damage = match other.root {
                Ok(root) => self.damage(&slots, [&slots.spare_root, &slots.spare_verity], root).await?,
                Err(reason) => Some(format!("its kernel image on the ESP: {reason}")),
            };
        }
        let mut all = [active, report].map(|report| match report.damage {
            Some(_) => SlotReport { state: SlotState::Damaged, ..report },
            None => report,
        });
        all.sort_by(|a, b| a.slot.cmp(&b.slot));
        Ok(all.into())
    }

    /// What is wrong with a slot that is to hold a root.
    async fn damage(
        &self,
        slots: &Slots,
        [root, tree]: [&Partition; 2],
        wanted: Running,
    ) -> Result<Option<String>, String> {
        let found = read(root, tree, wanted, |bytes| {
            if let Some(progress) = self.progress.borrow_mut().as_mut() {
                progress.written += bytes;
            }
        })
        .await;
        if let Some(damage) = found {
            return Ok(Some(damage));
        }
        let mut disk = File::open(&slots.disk)
            .map_err(|error| format!("cannot open {}: {error}", slots.disk.display()))?;
        let numbers = [root.number, tree.number];
        let is_named = table::is_named(&mut disk, slots.disk_size, numbers, &wanted.hash.0)?;
        let unnamed = "the partition table does not name it by its root hash: its kernel does not find it";
        Ok((!is_named).then(|| unnamed.to_owned()))
    }
}

/// The version beside the one that runs, staged or installed.
fn other(entries: &Entries, running: &str, updates: &Updates) -> Result<Option<Named>, String> {
    let versions = entries.versions()?;
    let other = versions.into_iter().find(|version| version != running);
    Ok(other.map(|version| named(entries, &version, &updates.places.journal())))
}

/// What the kernel image of a version says. One that is on its way is to be what was signed.
fn named(entries: &Entries, version: &str, journal: &std::path::Path) -> Named {
    let signed = Journal::read(journal).progress.filter(|progress| progress.version == version);
    let root = || -> Result<Running, String> {
        let file = entries.image_of(version)?.ok_or("there is none: nothing boots this slot")?;
        let cmdline = section(&file, ".cmdline", LARGEST_CMDLINE)?;
        let named = Running::parse(&String::from_utf8_lossy(&cmdline)).ok_or("it names no root")?;
        if let Some(signed) = signed {
            let (found, _) = hash_of_file(&file).map_err(|error| format!("it cannot be read: {error}"))?;
            if found.to_string() != signed.uki_sha256 {
                return Err("it is not what was staged: apiclient update apply stages it again".to_owned());
            }
        }
        Ok(named)
    };
    Named { version: version.to_owned(), root: root() }
}

/// Where a tree on a disk is not the one of the root that was read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    /// Blocks of the root whose hash is another one, and the first of them.
    blocks: u64,
    first: Option<u64>,
    /// The first byte of the tree that differs, rounded down to a block.
    tree: Option<u64>,
}

/// What differs between a slot and what it is to be; nothing when it is whole.
async fn read(
    root: &Partition,
    tree: &Partition,
    wanted: Running,
    mut tell: impl FnMut(u64),
) -> Option<String> {
    let mut differences = Differences::default();
    match hash(root, tree, wanted.blocks, &mut differences, &mut tell).await {
        Ok(found) => judge(&differences, found, wanted, root, tree),
        Err(error) => Some(error),
    }
}

async fn hash(
    root: &Partition,
    tree: &Partition,
    blocks: u64,
    differences: &mut Differences,
    tell: &mut impl FnMut(u64),
) -> Result<Hash, String> {
    let failed = |error: verity::Error| format!("{}: {error}", root.device.display());
    let mut parts = Parts::of(&root.device, blocks * BLOCK as u64)?;
    let on_disk = open_direct(&tree.device)
        .map_err(|error| format!("cannot read {}: {error}", tree.device.display()))?;
    let mut buffer = Aligned::new(BLOCK);
    let mut compare = |offset: u64, block: &[u8; BLOCK]| {
        let known = buffer.part(BLOCK);
        // What cannot be read is as good as different.
        if on_disk.read_exact_at(known, offset).is_err() {
            known.fill(0);
        }
        differences.compare(blocks, offset, known, block);
        Ok(())
    };
    let mut made = Tree::new(&SALT, blocks).map_err(failed)?;
    while let Some(part) = parts.next()? {
        for block in part.as_chunks::<BLOCK>().0 {
            made.push(block, &mut compare).map_err(failed)?;
        }
        tell(part.len() as u64);
        yield_now().await;
    }
    made.finish(&mut compare).map_err(failed)
}

impl Differences {
    fn compare(&mut self, blocks: u64, offset: u64, known: &[u8], made: &[u8]) {
        if known == made {
            return;
        }
        self.tree = Some(self.tree.map_or(offset, |first| first.min(offset)));
        let Some(at) = offset.checked_sub(verity::leaves_offset(blocks)) else { return };
        let pairs = known.as_chunks::<HASH>().0.iter().zip(made.as_chunks::<HASH>().0);
        for (number, _) in (at / HASH as u64..).zip(pairs).filter(|(_, (known, made))| known != made) {
            self.first.get_or_insert(number);
            self.blocks += 1;
        }
    }
}

fn judge(
    differences: &Differences,
    found: Hash,
    wanted: Running,
    root: &Partition,
    tree: &Partition,
) -> Option<String> {
    match differences {
        Differences { tree: None, .. } if found == wanted.hash.0 => None,
        Differences { tree: Some(at), .. } if found == wanted.hash.0 => Some(format!(
            "the root is whole, but its verity tree is not, from byte {at} of {} on",
            tree.device.display()
        )),
        Differences { blocks, first: Some(first), .. } => Some(format!(
            "{blocks} of {} blocks of the root are not what they were, the first at byte {} of {}",
            wanted.blocks,
            first * BLOCK as u64,
            root.device.display()
        )),
        _ => Some(format!("{} holds another root, {}", root.device.display(), update::manifest::Hash(found))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::write::Writer;
    use std::fs;
    use std::path::Path;

    const BLOCKS: usize = 300;

    fn partition(folder: &Path, name: &str) -> Partition {
        Partition { device: folder.join(name), number: 1, size: 0 }
    }

    /// What is told of a slot that was changed after it was written.
    async fn told(change: impl FnOnce(&mut [u8], &mut [u8])) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let (root, tree) = (partition(folder.path(), "root"), partition(folder.path(), "tree"));
        for partition in [&root, &tree] {
            fs::write(&partition.device, vec![0xff; 400 * BLOCK]).unwrap();
        }
        let size = BLOCKS * BLOCK;
        let content: Vec<u8> =
            (0..size).map(|at| u8::try_from((at / BLOCK * 7 + at) % 251).unwrap()).collect();
        let mut writer = Writer::new(&root.device, &tree.device, size as u64).unwrap();
        writer.write(&content).unwrap();
        let hash = writer.finish().unwrap();
        let (mut root_data, mut tree_data) =
            (fs::read(&root.device).unwrap(), fs::read(&tree.device).unwrap());
        change(&mut root_data, &mut tree_data);
        fs::write(&root.device, root_data).unwrap();
        fs::write(&tree.device, tree_data).unwrap();
        let wanted = Running { hash: update::manifest::Hash(hash), blocks: BLOCKS as u64 };
        let mut bytes = 0;
        let told = read(&root, &tree, wanted, |count| bytes += count).await;
        assert_eq!(bytes, size as u64);
        told.map(|text| text.replace(&format!("{}/", folder.path().display()), ""))
    }

    #[tokio::test]
    async fn a_slot_is_whole_or_it_is_told_where_not() {
        assert_eq!(told(|_, _| {}).await, None);
        // Behind its end is nobody's.
        assert_eq!(told(|root, _| root[BLOCKS * BLOCK] ^= 1).await, None);
        assert_eq!(
            told(|root, _| [7, 200, 201].iter().for_each(|block| root[block * BLOCK + 9] ^= 1))
                .await
                .unwrap(),
            "3 of 300 blocks of the root are not what they were, the first at byte 28672 of root"
        );
        assert_eq!(
            told(|_, tree| tree[2 * BLOCK + 40] ^= 1).await.unwrap(),
            "the root is whole, but its verity tree is not, from byte 8192 of tree on"
        );
    }

    #[tokio::test]
    async fn another_root_with_its_tree_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (root, tree) = (partition(folder.path(), "root"), partition(folder.path(), "tree"));
        for partition in [&root, &tree] {
            fs::write(&partition.device, vec![0; 8 * BLOCK]).unwrap();
        }
        let mut writer = Writer::new(&root.device, &tree.device, 4 * BLOCK as u64).unwrap();
        writer.write(&[1; 4 * BLOCK]).unwrap();
        writer.finish().unwrap();
        let wanted = Running { hash: update::manifest::Hash([9; 32]), blocks: 4 };
        let said = read(&root, &tree, wanted, |_| {}).await.unwrap();
        assert!(said.contains("holds another root"), "{said}");
    }
}
