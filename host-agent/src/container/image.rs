//! The images that a node has: preloaded ones in the verified root, pulled ones in `/data/images`.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::bundle::ImageConfig;
use crate::files;

const PRELOADED: &str = "/usr/lib/caisson/images";
pub const PULLED: &str = "/data/images";
const REFERENCES: &str = "/data/images/references.json";
/// An image configuration larger than this is not read.
const LARGEST_CONFIG: u64 = 4 << 20;

/// An image that is complete on this node.
#[derive(Debug, Clone)]
pub struct Image {
    pub rootfs: PathBuf,
    pub config: ImageConfig,
}

#[derive(Deserialize)]
struct Preloaded {
    reference: String,
    directory: String,
}

/// The image of a reference, if the node has it.
pub fn find(reference: &str) -> Option<Image> {
    let preloaded = preloaded(reference).map(|directory| Path::new(PRELOADED).join(directory));
    let folder = preloaded.or_else(|| references().remove(reference).map(|digest| folder_of(&digest)))?;
    load(&folder).ok()
}

fn load(folder: &Path) -> io::Result<Image> {
    let path = folder.join("config.json");
    if fs::metadata(&path)?.len() > LARGEST_CONFIG {
        return Err(io::Error::other("the image's configuration is too large"));
    }
    let config = serde_json::from_slice(&fs::read(path)?)?;
    Ok(Image { rootfs: folder.join("rootfs"), config })
}

/// The folder of a preloaded image. A name without a tag means `latest`, without a registry `localhost` too.
fn preloaded(reference: &str) -> Option<String> {
    let index: Vec<Preloaded> =
        serde_json::from_slice(&fs::read(Path::new(PRELOADED).join("index.json")).ok()?).ok()?;
    index.into_iter().find(|image| same(&image.reference, reference)).map(|image| image.directory)
}

/// Whether `wanted` means the preloaded image `have`, which is written in full.
fn same(have: &str, wanted: &str) -> bool {
    let last = wanted.rsplit('/').next().unwrap_or(wanted);
    let full = if last.contains(':') || wanted.contains('@') {
        wanted.to_owned()
    } else {
        format!("{wanted}:latest")
    };
    have == full
}

/// `sha256:…` → its folder. A folder with this name is complete.
pub fn folder_of(digest: &str) -> PathBuf {
    Path::new(PULLED).join(digest.replace(':', "-"))
}

fn references() -> BTreeMap<String, String> {
    fs::read(REFERENCES).ok().and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or_default()
}

/// Remembers what a reference was when it was pulled, also over a restart without network.
pub fn remember(reference: &str, digest: &str) -> io::Result<()> {
    let mut all = references();
    all.insert(reference.to_owned(), digest.to_owned());
    files::replace_durably(Path::new(REFERENCES), &serde_json::to_vec_pretty(&all)?)
}

/// Removes pulled images that none of `wanted` uses, and what interrupted pulls left.
pub fn remove_unused(wanted: &[String]) {
    let mut all = references();
    let before = all.len();
    all.retain(|reference, _| wanted.contains(reference));
    if all.len() != before {
        let data = serde_json::to_vec_pretty(&all).unwrap_or_default();
        let _ = files::replace_durably(Path::new(REFERENCES), &data);
    }
    let used: Vec<PathBuf> = all.values().map(|digest| folder_of(digest)).collect();
    for entry in fs::read_dir(PULLED).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !used.contains(&path) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_means_latest() {
        assert!(same("localhost/busybox:latest", "localhost/busybox"));
        assert!(same("localhost/busybox:1.37.0", "localhost/busybox:1.37.0"));
        assert!(!same("localhost/busybox:latest", "localhost/busybox:1"));
        assert!(!same("localhost/busybox:latest", "busybox"));
    }
}
