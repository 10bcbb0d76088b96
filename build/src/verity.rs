//! dm-verity: the hash tree over the root, as `veritysetup format` writes it (kernel: `Documentation/admin-guide/
//! device-mapper/verity.rst`; on-disk format version 1, SHA-256, 4096-byte blocks).

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use update::verity;

use crate::cache::hex;

pub use update::verity::{BLOCK, SALT};

/// What the kernel needs to open a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verity {
    pub root_hash: [u8; 32],
    pub data_blocks: u64,
}

impl Verity {
    pub fn root_hash_hex(&self) -> String {
        hex(&self.root_hash)
    }

    /// PARTUUID of the root partition: the first half of the root hash.
    pub fn root_uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.root_hash[..16]);
        uuid
    }

    /// PARTUUID of the verity partition: the second half of the root hash.
    pub fn verity_uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.root_hash[16..]);
        uuid
    }

    /// The kernel's parameters that make this root `/` (kernel: `dm-init.rst`). A block that does not match panics the
    /// kernel: a node does not run from a root that was changed.
    pub fn kernel_parameters(&self) -> String {
        let data = uuid_text(self.root_uuid());
        let hashes = uuid_text(self.verity_uuid());
        let sectors = self.data_blocks * (BLOCK as u64 / 512);
        format!(
            "dm-mod.create=\"root,,0,ro,0 {sectors} verity 1 PARTUUID={data} PARTUUID={hashes} {BLOCK} {BLOCK} {} 1 sha256 {} {} 1 panic_on_corruption\" \
             dm-mod.waitfor=PARTUUID={data},PARTUUID={hashes} root=/dev/dm-0 ro",
            self.data_blocks,
            self.root_hash_hex(),
            hex(&SALT),
        )
    }
}

/// Writes the verity partition's content for `data` to `tree`.
pub fn format(data: &Path, tree: &Path) -> Result<Verity> {
    let file = File::open(data).with_context(|| format!("cannot open {}", data.display()))?;
    let size = file.metadata()?.len();
    ensure!(
        size > 0 && size.is_multiple_of(BLOCK as u64),
        "{} is not a whole number of {BLOCK}-byte blocks",
        data.display()
    );
    let (verity, content) = hash(BufReader::with_capacity(1 << 20, file), size / BLOCK as u64)?;
    fs::write(tree, content).with_context(|| format!("cannot write {}", tree.display()))?;
    Ok(verity)
}

/// The root hash, in hex, that a root and its tree give; an error when the tree is not that of the root.
pub fn check(root: &[u8], tree: &[u8]) -> Result<String> {
    ensure!(tree.get(..8) == Some(b"verity\0\0"), "there is no verity tree");
    let blocks =
        tree.get(72..80).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).unwrap_or(0);
    ensure!(
        blocks > 0 && blocks <= root.len() as u64 / BLOCK as u64,
        "the verity tree is for {blocks} blocks, which the root does not have"
    );
    let (verity, content) = hash(root, blocks)?;
    ensure!(
        tree.get(..content.len()) == Some(&content),
        "the verity tree does not match the root: one of them was changed"
    );
    Ok(verity.root_hash_hex())
}

fn hash(mut reader: impl Read, data_blocks: u64) -> Result<(Verity, Vec<u8>)> {
    let mut out = vec![0; usize::try_from(verity::tree_size(data_blocks))?];
    out[..BLOCK].copy_from_slice(&verity::superblock(&SALT, data_blocks));
    let mut sink = |offset: u64, block: &[u8; BLOCK]| {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        out[at..at + BLOCK].copy_from_slice(block);
        Ok(())
    };
    let mut tree = verity::Tree::new(&SALT, data_blocks)?;
    let mut block = [0; BLOCK];
    for _ in 0..data_blocks {
        reader.read_exact(&mut block)?;
        tree.push(&block, &mut sink)?;
    }
    let root_hash = tree.finish(&mut sink)?;
    Ok((Verity { root_hash, data_blocks }, out))
}

/// A GUID's text. Its first three fields are little-endian on disk (UEFI specification, appendix A); we take the bytes of the
/// hash as the text's order, so that a person can compare them.
pub fn uuid_text(uuid: [u8; 16]) -> String {
    let text = hex(&uuid);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_changes_the_root_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (data, tree) = (dir.path().join("data"), dir.path().join("tree"));
        let mut content = vec![7u8; BLOCK * 300];
        fs::write(&data, &content).unwrap();
        let before = format(&data, &tree).unwrap();
        // a superblock, one top block, three blocks of leaves
        assert_eq!(fs::metadata(&tree).unwrap().len(), 5 * BLOCK as u64);
        content[BLOCK * 299 + 17] ^= 1;
        fs::write(&data, &content).unwrap();
        assert_ne!(before.root_hash, format(&data, &tree).unwrap().root_hash);
    }

    #[test]
    fn half_a_block_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::write(&data, [0; 100]).unwrap();
        assert!(format(&data, &dir.path().join("tree")).is_err());
    }
}
