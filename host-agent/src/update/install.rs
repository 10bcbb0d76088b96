//! Installing: the new root goes to the spare slot, by the way that brings least; its kernel image to the ESP ([`super::uki`]).
//!
//! Nothing that was signed is believed of what comes but the root hash and the kernel image's SHA-256: the slot is read again from
//! the disk at the end, and what it hashes to decides.

use apiserver::updates::{UpdatePlan, UpdateProgress};
use reqwest::Client;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::spawn_blocking;
use update::blocks::{Leaves, Plan};
use update::choose::{Sizes, Way};
use update::chunks::{HEAD_SIZE, Index};
use update::manifest::{self, Name, Root, Update};
use update::patch::Applier;
use update::verity::{self, BLOCK, HASH, SALT};
use url::Url;

use super::fetch::Download;
use super::running::Running;
use super::slots::Slots;
use super::table;
use super::write::{Writer, hash_of};

/// How far an installation is; none when there is none.
pub type Progress = Rc<RefCell<Option<UpdateProgress>>>;

/// Where a repository's files are.
#[derive(Debug)]
pub struct Files {
    pub client: Client,
    pub targets: Url,
    /// SHA-256 of each target by its name, which is a part of the file's.
    pub hashes: BTreeMap<String, String>,
}

impl Files {
    fn part(&self, name: &Name, range: Range<u64>) -> Result<Download, String> {
        let hash = self.hashes.get(name.as_str()).ok_or_else(|| {
            format!("the repository does not list {name}: its publisher has to add the version again")
        })?;
        let url = self.targets.join(&format!("{hash}.{name}")).map_err(|error| error.to_string())?;
        Ok(Download::new(self.client.clone(), url, range.start, range.end))
    }

    pub(super) fn whole(&self, file: &manifest::File) -> Result<Download, String> {
        self.part(&file.target, 0..file.size.bytes())
    }
}

/// What a version is installed from and to.
pub struct Install<'a> {
    pub slots: &'a Slots,
    pub running: Running,
    pub update: &'a Update,
    pub files: Files,
    pub progress: Progress,
    /// An earlier attempt wrote a part of the same root.
    pub resumes: bool,
}

/// A way and what is needed for it.
enum Ready {
    Patch(manifest::Patch),
    Blocks(Box<(Index, Plan)>),
    Full(Index),
}

impl Ready {
    /// What it is called, and how many bytes it brings, with what it takes to know which.
    fn told(&self, root: &Root) -> (&'static str, u64) {
        match self {
            Self::Patch(patch) => ("patch", patch.size.bytes()),
            Self::Blocks(ready) => {
                let (index, plan) = &**ready;
                let leaves = root.leaves.as_ref().map_or(0, |leaves| leaves.size.bytes());
                ("blocks", leaves + index.bytes() + plan.fetched)
            }
            Self::Full(index) => ("full", index.file_size()),
        }
    }
}

impl Install<'_> {
    /// How the new version would come, with all of the root: an earlier attempt may have written a part of it. Nothing is written.
    pub(super) async fn plan(&self, kernel_image: u64) -> Result<UpdatePlan, String> {
        self.fits()?;
        let (way, root) = self.prepare(None).await?.told(&self.update.root);
        Ok(UpdatePlan { version: self.update.version.to_string(), way: way.to_owned(), root, kernel_image })
    }

    fn fits(&self) -> Result<(), String> {
        let size = self.update.root.size.bytes();
        let (spare_root, spare_tree) = (&self.slots.spare_root, &self.slots.spare_verity);
        for (what, needs, has) in [
            ("root", size, spare_root.size),
            ("verity tree", verity::tree_size(size / BLOCK as u64), spare_tree.size),
        ] {
            if needs > has {
                return Err(format!(
                    "the new {what} has {needs} bytes, and the slot of this disk {has}: install the node anew, from the new disk.img"
                ));
            }
        }
        Ok(())
    }

    /// Writes the root and its tree, and names the slot by them. When this returns, the slot holds the new root. Tells by which way it
    /// came, and how many bytes that brings from its beginning.
    pub async fn root(&self) -> Result<(&'static str, u64), String> {
        self.fits()?;
        let root = &self.update.root;
        let size = root.size.bytes();
        let (spare_root, spare_tree) = (&self.slots.spare_root, &self.slots.spare_verity);
        let begun = Instant::now();
        let told = UpdateProgress {
            version: self.update.version.to_string(),
            way: String::new(),
            received: 0,
            total: 0,
            written: 0,
            root: size,
            elapsed_ms: 0,
        };
        self.progress.replace(Some(told));
        let mut writer = Writer::new(&spare_root.device, &spare_tree.device, size)?;
        let ready = self.prepare(Some(&mut writer)).await?;
        let told = ready.told(&self.update.root);
        match ready {
            Ready::Patch(patch) => self.by_patch(&patch, &mut writer, begun).await?,
            Ready::Blocks(ready) => self.by_blocks(&ready.0, &ready.1, &mut writer, begun).await?,
            Ready::Full(index) => self.whole(&index, &mut writer, begun).await?,
        }
        let hash = writer.finish()?;
        let device = spare_root.device.clone();
        let read_back =
            spawn_blocking(move || hash_of(&device, size)).await.map_err(|error| error.to_string())??;
        for (what, found) in [("what came", hash), ("what the disk holds of it", read_back)] {
            if found != root.hash.0 {
                return Err(format!(
                    "{what} is not the root that was signed ({}): {}. Nothing boots it; try again, and if it happens again, its publisher has to add the version anew",
                    root.hash,
                    manifest::Hash(found)
                ));
            }
        }
        self.name_slot()?;
        Ok(told)
    }

    /// Gives the slot its names in the partition table.
    pub(super) fn name_slot(&self) -> Result<(), String> {
        let disk = &self.slots.disk;
        let numbers = [self.slots.spare_root.number, self.slots.spare_verity.number];
        let mut disk = File::options()
            .read(true)
            .write(true)
            .open(disk)
            .map_err(|error| format!("cannot open {}: {error}", disk.display()))?;
        table::name_slot(&mut disk, self.slots.disk_size, numbers, &self.update.root.hash.0)
    }

    /// Which way brings least, and what is needed for it. With a writer, it takes up what an earlier attempt wrote.
    async fn prepare(&self, writer: Option<&mut Writer>) -> Result<Ready, String> {
        let root = &self.update.root;
        let patch = root.patches.iter().find(|patch| patch.from == self.running.hash);
        let leaves_size = root.leaves.as_ref().map_or(u64::MAX, |leaves| leaves.size.bytes());
        // Smaller than what it takes to know what another way would bring.
        let small = patch.filter(|patch| patch.size.bytes() <= leaves_size.min(root.full.size.bytes()));
        if let Some(patch) = small.filter(|_| !self.resumes) {
            return Ok(Ready::Patch(patch.clone()));
        }
        let leaves = match &root.leaves {
            Some(file) => Some(self.leaves(file).await?),
            None => None,
        };
        if let (true, Some(leaves), Some(writer)) = (self.resumes, &leaves, writer) {
            let kept = writer.resume(leaves)?;
            eprintln!("<6>update: {kept} bytes of an earlier attempt are kept");
        }
        if let Some(patch) = small {
            return Ok(Ready::Patch(patch.clone()));
        }
        let index = self.index().await?;
        let plan = match (&leaves, self.base_leaves()) {
            (Some(leaves), Ok(base)) => Some(Plan::new(&base, leaves, &index)),
            (Some(_), Err(error)) => {
                eprintln!("<4>update: the blocks of the running root cannot be told: {error}");
                None
            }
            (None, _) => None,
        };
        let sizes = Sizes {
            patch: patch.map(|patch| patch.size.bytes()),
            blocks: plan.as_ref().map(|plan| plan.fetched),
            full: root.full.size.bytes(),
        };
        Ok(match (sizes.choose().0, patch, plan) {
            (Way::Patch, Some(patch), _) => Ready::Patch(patch.clone()),
            (Way::Blocks, _, Some(plan)) => Ready::Blocks(Box::new((index, plan))),
            _ => Ready::Full(index),
        })
    }

    async fn leaves(&self, file: &manifest::File) -> Result<Leaves, String> {
        let blocks = self.update.root.size.bytes() / BLOCK as u64;
        let wrong = || format!("{} does not hold the hashes of the signed root's blocks", file.target);
        if file.size.bytes() != blocks * HASH as u64 {
            return Err(wrong());
        }
        let data = self.files.whole(file)?.all().await?;
        let leaves = Leaves::new(&data, blocks).ok_or_else(wrong)?;
        match leaves.root_hash(&SALT) {
            Ok(hash) if hash == self.update.root.hash.0 => Ok(leaves),
            _ => Err(wrong()),
        }
    }

    fn base_leaves(&self) -> Result<Leaves, String> {
        let device = &self.slots.running_verity.device;
        let blocks = self.running.blocks;
        let read = || -> std::io::Result<Vec<u8>> {
            let bytes = usize::try_from(blocks * HASH as u64).map_err(std::io::Error::other)?;
            let mut data = vec![0; bytes];
            File::open(device)?.read_exact_at(&mut data, verity::leaves_offset(blocks))?;
            Ok(data)
        };
        let data = read().map_err(|error| format!("cannot read {}: {error}", device.display()))?;
        Leaves::new(&data, blocks).ok_or_else(|| format!("{} is too short", device.display()))
    }

    async fn index(&self) -> Result<Index, String> {
        let full = &self.update.root.full;
        let about = |error: update::chunks::Error| format!("{}: {error}", full.target);
        let head = self.files.part(&full.target, 0..HEAD_SIZE as u64)?.all().await?;
        let first = head.first_chunk().ok_or_else(|| format!("{} is too short", full.target))?;
        let size = Index::size(first, self.update.root.size.bytes()).map_err(about)?;
        let data = self.files.part(&full.target, 0..(size as u64).min(full.size.bytes()))?.all().await?;
        let index = Index::parse(&data).map_err(about)?;
        if index.file_size() != full.size.bytes() {
            return Err(format!("{} has not the chunks that its index speaks of", full.target));
        }
        Ok(index)
    }

    fn running_root(&self) -> Result<File, String> {
        let device = &self.slots.running_root;
        File::open(device).map_err(|error| format!("cannot open {}: {error}", device.display()))
    }

    fn tell(&self, way: &str, received: u64, total: u64, writer: &Writer, begun: Instant) {
        if let Some(progress) = self.progress.borrow_mut().as_mut() {
            way.clone_into(&mut progress.way);
            (progress.received, progress.total) = (received, total);
            progress.written = writer.written();
            progress.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
    }

    async fn by_patch(
        &self,
        patch: &manifest::Patch,
        writer: &mut Writer,
        begun: Instant,
    ) -> Result<(), String> {
        let about = |error: update::patch::Error| format!("{}: {error}", patch.target);
        let base = self.running_root()?;
        let (from, to) = (self.running.hash.0, self.update.root.hash.0);
        let mut applier = Applier::new(base, from, to, self.slots.spare_root.size);
        let size = patch.size.bytes();
        let mut download = self.files.part(&patch.target, 0..size)?;
        let (mut received, mut sought) = (0, writer.written() == 0);
        while let Some(piece) = download.next().await? {
            received += piece.len() as u64;
            let mut input = &piece[..];
            while let Some(segment) = applier.push(&mut input).map_err(about)? {
                write_from(writer, segment.offset, segment.content)?;
                self.tell("patch", received, size, writer, begun);
                tokio::task::yield_now().await;
            }
            let next = |head: &update::patch::Head| {
                let segment = u32::try_from(writer.written() / u64::from(head.segment)).unwrap_or(u32::MAX);
                segment.min(head.segments())
            };
            if let Some(segment) = applier.head().filter(|_| !sought).map(next)
                && let Some(offset) = applier.seek(segment).map_err(about)?
            {
                download = self.files.part(&patch.target, offset..size)?;
                sought = true;
            }
            self.tell("patch", received, size, writer, begun);
        }
        if applier.is_done() { Ok(()) } else { Err(format!("{} ends too early", patch.target)) }
    }

    async fn by_blocks(
        &self,
        index: &Index,
        plan: &Plan,
        writer: &mut Writer,
        begun: Instant,
    ) -> Result<(), String> {
        let base = self.running_root()?;
        let mut received = 0;
        let mut fetches = plan.fetches.iter().peekable();
        let mut copies = plan.copies.iter().peekable();
        let mut chunk = 0;
        while chunk < index.chunks() {
            if fetches.peek().is_some_and(|fetch| fetch.start == chunk) {
                let fetch = fetches.next().cloned().unwrap_or(chunk..chunk + 1);
                chunk = fetch.end;
                self.chunks(index, fetch, writer, &mut |writer, bytes| {
                    received += bytes;
                    self.tell("blocks", received, plan.fetched, writer, begun);
                })
                .await?;
                continue;
            }
            let content = index.content(chunk);
            let mut data = vec![0; content.len()];
            for (number, block) in data.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let wanted = content.start / BLOCK as u32 + u32::try_from(number).unwrap_or(u32::MAX);
                while copies.peek().is_some_and(|copy| copy.new + copy.count <= wanted) {
                    copies.next();
                }
                let copy = copies.peek().filter(|copy| copy.new <= wanted);
                let copy = copy.ok_or("a block of the new root comes from nowhere: this is a bug")?;
                let at = u64::from(copy.base + (wanted - copy.new)) * BLOCK as u64;
                base.read_exact_at(block, at)
                    .map_err(|error| format!("cannot read the running root: {error}"))?;
            }
            write_from(writer, content.start.into(), &data)?;
            self.tell("blocks", received, plan.fetched, writer, begun);
            tokio::task::yield_now().await;
            chunk += 1;
        }
        Ok(())
    }

    async fn whole(&self, index: &Index, writer: &mut Writer, begun: Instant) -> Result<(), String> {
        let first = index.chunk_of(writer.written()).min(index.chunks());
        let start = index.place(first..first).map_or(0, |place| place.start);
        let (mut received, total) = (0, index.file_size() - start);
        self.chunks(index, first..index.chunks(), writer, &mut |writer, bytes| {
            received += bytes;
            self.tell("full", received, total, writer, begun);
        })
        .await
    }

    /// Fetches chunks that follow each other, and writes what is in them.
    async fn chunks(
        &self,
        index: &Index,
        chunks: Range<usize>,
        writer: &mut Writer,
        tell: &mut impl FnMut(&Writer, u64),
    ) -> Result<(), String> {
        let full = &self.update.root.full.target;
        let place = index.place(chunks.clone()).ok_or_else(|| format!("{full} has no such chunks"))?;
        let mut download = self.files.part(full, place)?;
        let (mut packed, mut content) = (Vec::new(), Vec::new());
        let mut chunk = chunks.start;
        let size = |chunk| index.place(chunk..chunk + 1).map_or(0, |place| place.end - place.start);
        while let Some(piece) = download.next().await? {
            tell(writer, piece.len() as u64);
            packed.extend_from_slice(&piece);
            while chunk < chunks.end {
                let Some(this) = usize::try_from(size(chunk)).ok().and_then(|size| packed.get(..size)) else {
                    break;
                };
                index.unpack(chunk, this, &mut content).map_err(|error| format!("{full}: {error}"))?;
                let used = this.len();
                write_from(writer, index.content(chunk).start.into(), &content)?;
                packed.drain(..used);
                chunk += 1;
                tokio::task::yield_now().await;
            }
        }
        if chunk == chunks.end { Ok(()) } else { Err(format!("{full} ends too early")) }
    }
}

/// Writes what of `content`, which belongs at `offset`, is not there yet.
fn write_from(writer: &mut Writer, offset: u64, content: &[u8]) -> Result<(), String> {
    let known =
        writer.written().checked_sub(offset).ok_or("a part of the new root is missing: this is a bug")?;
    match usize::try_from(known).ok().and_then(|known| content.get(known..)) {
        Some(rest) => writer.write(rest),
        None => Ok(()),
    }
}
