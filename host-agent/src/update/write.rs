//! What is written to the spare slot: a root, and the verity tree over it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use update::blocks::Leaves;
use update::verity::{self, BLOCK, Hash, SALT, Tree};

/// A slot that is being written, from its first block to its last.
pub(super) struct Writer {
    root: File,
    tree_device: File,
    tree: Tree<'static>,
    at: u64,
    size: u64,
}

fn to_write(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

impl Writer {
    /// `size`: of the root, in bytes, whole blocks.
    pub(super) fn new(root: &Path, tree: &Path, size: u64) -> Result<Self, String> {
        let open = |path: &Path| {
            to_write(path).map_err(|error| format!("cannot open {} for writing: {error}", path.display()))
        };
        let blocks = size / BLOCK as u64;
        Ok(Self {
            root: open(root)?,
            tree_device: open(tree)?,
            tree: Tree::new(&SALT, blocks).map_err(|error| error.to_string())?,
            at: 0,
            size,
        })
    }

    /// Bytes that are written.
    pub(super) fn written(&self) -> u64 {
        self.at
    }

    /// Takes up what an earlier attempt wrote, as far as it is the new root's: bytes.
    pub(super) fn resume(&mut self, leaves: &Leaves) -> Result<u64, String> {
        let mut block = [0; BLOCK];
        while self.at < self.size {
            let number = u32::try_from(self.at / BLOCK as u64).unwrap_or(u32::MAX);
            if self.root.read_exact_at(&mut block, self.at).is_err() {
                break;
            }
            if leaves.get(number) != Some(&verity::hash_block(&SALT, &block)) {
                break;
            }
            self.push(&block)?;
        }
        Ok(self.at)
    }

    /// The next part of the root: whole blocks.
    pub(super) fn write(&mut self, content: &[u8]) -> Result<(), String> {
        self.root.write_all_at(content, self.at).map_err(|error| failed(self.at, &error))?;
        let (blocks, rest) = content.as_chunks::<BLOCK>();
        if !rest.is_empty() {
            return Err(format!("{} bytes are not whole blocks", content.len()));
        }
        blocks.iter().try_for_each(|block| self.push(block))
    }

    fn push(&mut self, block: &[u8; BLOCK]) -> Result<(), String> {
        let device = &self.tree_device;
        let mut sink = |offset: u64, block: &[u8; BLOCK]| device.write_all_at(block, offset);
        self.tree.push(block, &mut sink).map_err(|error| error.to_string())?;
        self.at += BLOCK as u64;
        Ok(())
    }

    /// Ends the tree; both are on the disk when this returns. Gives the root hash of what came.
    pub(super) fn finish(self) -> Result<Hash, String> {
        let device = &self.tree_device;
        let mut sink = |offset: u64, block: &[u8; BLOCK]| device.write_all_at(block, offset);
        let hash = self.tree.finish(&mut sink).map_err(|error| error.to_string())?;
        let superblock = verity::superblock(&SALT, self.size / BLOCK as u64);
        let flush = || -> io::Result<()> {
            device.write_all_at(&superblock, 0)?;
            self.root.sync_all()?;
            device.sync_all()
        };
        flush().map_err(|error| failed(self.at, &error))?;
        Ok(hash)
    }
}

fn failed(at: u64, error: &io::Error) -> String {
    format!(
        "cannot write the slot (at byte {at}): {error}; the running slot is as it was, and the next attempt begins anew"
    )
}

/// The root hash of what is on a device.
pub(super) fn hash_of(root: &Path, size: u64) -> Result<Hash, String> {
    let mut parts = Parts::of(root, size)?;
    let mut tree = Tree::new(&SALT, size / BLOCK as u64).map_err(|error| error.to_string())?;
    let mut nowhere = |_: u64, _: &[u8; BLOCK]| Ok(());
    while let Some(part) = parts.next()? {
        for block in part.as_chunks::<BLOCK>().0 {
            tree.push(block, &mut nowhere).map_err(|error| error.to_string())?;
        }
    }
    tree.finish(&mut nowhere).map_err(|error| error.to_string())
}

/// To be read past the page cache, so that it is the medium that answers; where that cannot be, as any file.
pub(super) fn open_direct(path: &Path) -> io::Result<File> {
    let direct = File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(path);
    direct.or_else(|_| File::open(path))
}

/// What is on a device, part by part.
pub(super) struct Parts<'a> {
    path: &'a Path,
    file: File,
    buffer: Aligned,
    at: u64,
    size: u64,
}

impl<'a> Parts<'a> {
    /// The first `size` bytes, whole blocks.
    pub(super) fn of(path: &'a Path, size: u64) -> Result<Self, String> {
        let file =
            open_direct(path).map_err(|error| format!("cannot read {} again: {error}", path.display()))?;
        Ok(Self { path, file, buffer: Aligned::new(PART), at: 0, size })
    }

    /// The next one; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, String> {
        let count = PART.min(usize::try_from(self.size - self.at).unwrap_or(PART));
        let part = self.buffer.part(count);
        self.file.read_exact_at(part, self.at).map_err(|error| {
            format!("cannot read {} again, at byte {}: {error}", self.path.display(), self.at)
        })?;
        self.at += count as u64;
        Ok((count > 0).then_some(part))
    }
}

const PART: usize = 256 << 10;

/// Memory that begins at a multiple of a block, as reads past the page cache want it.
pub(super) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    pub(super) fn new(size: usize) -> Self {
        let bytes = vec![0; size + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { bytes, start }
    }

    pub(super) fn part(&mut self, size: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|at| u8::try_from((at / BLOCK * 31 + at * 7) % 256).unwrap()).collect()
    }

    struct Slot {
        folder: tempfile::TempDir,
    }

    impl Slot {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["root", "tree"] {
                fs::write(folder.path().join(name), vec![0xff; 400 * BLOCK]).unwrap();
            }
            Self { folder }
        }

        fn writer(&self, size: usize) -> Writer {
            let at = |name| self.folder.path().join(name);
            Writer::new(&at("root"), &at("tree"), size as u64).unwrap()
        }
    }

    #[test]
    fn what_was_written_has_the_hash_that_is_read_back_and_a_tree() {
        let (slot, root) = (Slot::new(), root(300));
        let mut writer = slot.writer(root.len());
        root.chunks(7 * BLOCK).for_each(|part| writer.write(part).unwrap());
        let hash = writer.finish().unwrap();
        let path = slot.folder.path().join("root");
        assert_eq!(hash_of(&path, root.len() as u64).unwrap(), hash);
        let tree = fs::read(slot.folder.path().join("tree")).unwrap();
        let leaves_at = usize::try_from(verity::leaves_offset(300)).unwrap();
        assert_eq!(tree[leaves_at..leaves_at + 32], verity::hash_block(&SALT, &root[..BLOCK]));
        let mut changed = fs::read(&path).unwrap();
        changed[100 * BLOCK] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_ne!(hash_of(&path, root.len() as u64).unwrap(), hash);
    }

    #[test]
    fn an_attempt_that_was_cut_is_taken_up() {
        let (slot, root) = (Slot::new(), root(300));
        let bytes: Vec<u8> = root.chunks(BLOCK).flat_map(|block| verity::hash_block(&SALT, block)).collect();
        let leaves = Leaves::new(&bytes, 300).unwrap();
        let mut writer = slot.writer(root.len());
        assert_eq!(writer.resume(&leaves).unwrap(), 0);
        writer.write(&root[..200 * BLOCK]).unwrap();
        drop(writer);
        let mut writer = slot.writer(root.len());
        assert_eq!(writer.resume(&leaves).unwrap(), 200 * BLOCK as u64);
        writer.write(&root[200 * BLOCK..]).unwrap();
        let hash = writer.finish().unwrap();
        assert_eq!(leaves.root_hash(&SALT).unwrap(), hash);
    }
}
