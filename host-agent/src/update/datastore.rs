//! The metadata that was trusted last, so that nobody can show a node older one. It is kept on a disk; tough, which writes files
//! in place and not durably, works on a copy in memory.
//!
//! The time of the last check is not kept: a node whose clock was ahead once would take nothing until that time.

use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::Path;

use super::plan::LARGEST_ROOT;
use crate::files;

/// Bytes of one file of metadata.
pub(super) const LARGEST: u64 = 1 << 20;
const KEPT: [&str; 4] = ["root.json", "timestamp.json", "snapshot.json", "targets.json"];
/// Which root of trust the kept one descends from: written last.
const ORIGIN: &str = "origin";

/// Copies what is kept to `work`. What cannot be read is as if it were not there: it is on the node's own disk, and a repository
/// is not to be shut out by it.
pub(super) fn open(kept: &Path, work: &Path) -> io::Result<()> {
    match fs::remove_dir_all(work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(work)?,
    }
    for name in KEPT {
        if let Ok(data) = files::read_bounded(&kept.join(name), LARGEST) {
            fs::write(work.join(name), data)?;
        }
    }
    Ok(())
}

/// The newest root that descends from the image's: a server cannot hide a newer one that was seen.
pub(super) fn newest_root(kept: &Path, image: &[u8]) -> Vec<u8> {
    let origin = files::read_bounded(&kept.join(ORIGIN), 64).unwrap_or_default();
    let root = files::read_bounded(&kept.join("root.json"), LARGEST_ROOT);
    match root {
        Ok(root) if origin == Sha256::digest(image)[..] => root,
        _ => image.to_vec(),
    }
}

/// Keeps what is trusted now.
pub(super) fn keep(work: &Path, kept: &Path, image: &[u8]) -> io::Result<()> {
    fs::create_dir_all(kept)?;
    let replace = |name: &str, data: &[u8]| {
        let known = files::read_bounded(&kept.join(name), LARGEST);
        if known.is_ok_and(|known| same(&known, data)) {
            return Ok(());
        }
        files::replace_durably(&kept.join(name), data)
    };
    for name in KEPT {
        replace(name, &files::read_bounded(&work.join(name), LARGEST)?)?;
    }
    replace(ORIGIN, &Sha256::digest(image))
}

/// Whether two files say the same: tough writes the members of an object in any order.
fn same(a: &[u8], b: &[u8]) -> bool {
    let json = |data| serde_json::from_slice::<serde_json::Value>(data).ok();
    a == b || json(a).is_some_and(|a| Some(a) == json(b))
}
