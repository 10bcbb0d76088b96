//! What was packed once is not packed again: to pack a root takes most of the time of publishing it, and who tries out updates
//! publishes the same ones again and again.

use anyhow::Result;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use update::chunks;
use update::patch::{self, MakeError};

use crate::cache::{Key, hex};
use crate::project::Project;

/// Files above which all are removed, about 16 MiB each.
const MOST: usize = 100;
const HASH: usize = 32;

/// Keeps what was packed, each by the hash of what went in; the file's own hash stands before it.
pub struct Packed(Option<Place>);

struct Place {
    folder: PathBuf,
    /// Of what packs: its sources and the crates that it uses.
    by: String,
}

impl Packed {
    /// All is packed anew.
    pub const fn nowhere() -> Self {
        Self(None)
    }

    /// # Errors
    ///
    /// When the cache cannot be written to, or the project's sources cannot be read.
    pub fn in_cache(project: &Project) -> Result<Self> {
        let by = Key::new("packed 1").tree(&project.sources.join("update/src"))?;
        let by = by.file(&project.sources.join("Cargo.lock"))?.hex();
        let folder = project.cache.scratch("packed")?;
        if fs::read_dir(&folder)?.count() > MOST {
            for file in fs::read_dir(&folder)?.flatten() {
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(Self(Some(Place { folder, by })))
    }

    /// [`chunks::make`].
    pub(super) fn root(&self, root: &[u8]) -> io::Result<Vec<u8>> {
        self.kept(&[b"root", &Sha256::digest(root)], || chunks::make(root))
    }

    /// [`patch::make`].
    pub(super) fn patch(
        &self,
        base: (&[u8], [u8; HASH]),
        new: (&[u8], [u8; HASH]),
    ) -> Result<Vec<u8>, MakeError> {
        // A root is its hash.
        self.kept(&[b"patch", &base.1, &new.1], || patch::make(base, new))
    }

    fn kept<E>(&self, of: &[&[u8]], make: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
        let Some(place) = &self.0 else { return make() };
        let file = place.file(of);
        if let Some(found) = read(&file) {
            return Ok(found);
        }
        let made = make()?;
        // Not to keep it is no failure.
        let _ = place.write(&file, &made);
        Ok(made)
    }
}

impl Place {
    fn file(&self, of: &[&[u8]]) -> PathBuf {
        let mut hash = Sha256::new_with_prefix(&self.by);
        for part in of {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        self.folder.join(hex(&hash.finalize()))
    }

    fn write(&self, file: &Path, content: &[u8]) -> io::Result<()> {
        let mut made = tempfile::NamedTempFile::new_in(&self.folder)?;
        made.write_all(&Sha256::digest(content))?;
        made.write_all(content)?;
        made.persist(file)?;
        Ok(())
    }
}

/// What is whole: a power cut may leave less of it.
fn read(file: &Path) -> Option<Vec<u8>> {
    let all = fs::read(file).ok()?;
    let (hash, content) = all.split_first_chunk::<HASH>()?;
    (hash[..] == Sha256::digest(content)[..]).then(|| content.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_made_and_what_is_damaged_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let packed = Packed(Some(Place { folder: folder.path().to_owned(), by: "test".to_owned() }));
        let root = vec![7; 4096];
        let first = packed.root(&root).unwrap();
        assert_eq!(first, chunks::make(&root).unwrap());
        let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        // It is taken from there.
        let other = [Sha256::digest(b"other").as_slice(), b"other"].concat();
        fs::write(&file, other).unwrap();
        assert_eq!(packed.root(&root).unwrap(), b"other");
        for damaged in [&b""[..], &[0; HASH], &[1; HASH + 5]] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(packed.root(&root).unwrap(), first);
        }
        assert_eq!(packed.root(&[7; 8192]).unwrap(), chunks::make(&[7; 8192]).unwrap());
    }
}
