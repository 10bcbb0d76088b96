//! The images that a node has: preloaded ones in the verified root, pulled ones in `/data/images`.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

use crate::container::bundle::ImageConfig;
use crate::files;

const PRELOADED: &str = "/usr/lib/caisson/images";
pub const PULLED: &str = "/data/images";
/// In the folder of a pull: the reference that it is for.
pub const PULLED_FOR: &str = "reference";
/// In the folder of an image that was pulled: the highest user or group that a file of it has.
pub const HIGHEST_ID: &str = "highest-id";
const REFERENCES: &str = "/data/images/references.json";
/// A list of the references that are kept though no setting names them.
const PINNED: &str = "/data/images/pinned.json";
/// More than its references have, which are bounded in number and length.
const LARGEST_PINNED: u64 = 1 << 20;
/// An image configuration larger than this is not read.
pub const LARGEST_CONFIG: u64 = 4 << 20;

/// The references that settings name. Locked while references.json or pinned.json is read or changed.
static WANTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// One for each digest that somebody works on.
static TURNS: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>> = Mutex::new(BTreeMap::new());

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An image that is complete on this node.
#[derive(Debug, Clone)]
pub struct Image {
    pub rootfs: PathBuf,
    pub config: ImageConfig,
    /// The highest user or group that a file of it has.
    pub highest_id: u32,
}

/// As the build writes it.
#[derive(Debug, Deserialize)]
pub(super) struct Preloaded {
    /// With its tag.
    pub(super) reference: String,
    pub(super) digest: Option<String>,
    pub(super) directory: String,
}

/// The right to make or remove the folder of a digest: two containers may want the same image at the same time.
pub type Turn = OwnedMutexGuard<()>;

fn turns_of(digest: &str) -> Arc<tokio::sync::Mutex<()>> {
    let mut turns = locked(&TURNS);
    turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    turns.entry(digest.to_owned()).or_default().clone()
}

pub async fn turn(digest: &str) -> Turn {
    turns_of(digest).lock_owned().await
}

/// The image of a reference, if the node has it. An error when it has it and cannot use it.
pub fn find(reference: &str) -> Result<Option<Image>, String> {
    let folder = match preloaded_folder(reference) {
        Some(folder) => folder,
        None => {
            let _wanted = locked(&WANTED);
            match references().remove(reference).map(|digest| folder_of(&digest)) {
                Some(folder) if folder.is_dir() => folder,
                _ => return Ok(None),
            }
        }
    };
    let found = load(&folder).map(Some);
    found.map_err(|error| format!("the image {reference} in {} cannot be used: {error}", folder.display()))
}

/// Loads the image of a folder that is complete.
pub fn load(folder: &Path) -> io::Result<Image> {
    let path = folder.join("config.json");
    if fs::metadata(&path)?.len() > LARGEST_CONFIG {
        return Err(io::Error::other("the image's configuration is too large"));
    }
    let config = serde_json::from_slice(&fs::read(path)?)?;
    // Those that are part of the system have none, and no such users.
    let highest_id = match fs::read_to_string(folder.join(HIGHEST_ID)) {
        Ok(text) => text.parse().map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(Image { rootfs: folder.join("rootfs"), config, highest_id })
}

/// The images that are part of the system.
pub(super) fn all_preloaded() -> Vec<Preloaded> {
    let index = fs::read(Path::new(PRELOADED).join("index.json")).ok();
    index.and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or_default()
}

/// The folder of a preloaded image. A name without a tag means `latest`, without a registry `localhost` too.
pub(super) fn preloaded_folder(reference: &str) -> Option<PathBuf> {
    let image = all_preloaded().into_iter().find(|image| same(&image.reference, reference))?;
    Some(Path::new(PRELOADED).join(image.directory))
}

/// Whether `wanted` means the preloaded image `have`, which is written in full.
pub(super) fn same(have: &str, wanted: &str) -> bool {
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

/// Where an image is while it is pulled, and until a pull that broke off is taken up.
pub fn pull_of(digest: &str) -> PathBuf {
    Path::new(PULLED).join(format!(".pull-{}", digest.replace(':', "-")))
}

/// The digest of such a folder, by its name.
pub(super) fn digest_of(name: &str) -> String {
    name.strip_prefix(".pull-").unwrap_or(name).replacen('-', ":", 1)
}

fn references() -> BTreeMap<String, String> {
    fs::read(REFERENCES).ok().and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or_default()
}

fn change_references(change: impl FnOnce(&mut BTreeMap<String, String>)) -> io::Result<()> {
    let before = references();
    let mut all = before.clone();
    change(&mut all);
    if all == before {
        return Ok(());
    }
    files::replace_durably(Path::new(REFERENCES), &serde_json::to_vec_pretty(&all)?)
}

/// Remembers what a reference was when it was pulled, also over a restart without network.
pub fn remember(reference: &str, digest: &str) -> io::Result<()> {
    let _wanted = locked(&WANTED);
    change_references(|all| {
        all.insert(reference.to_owned(), digest.to_owned());
    })
}

/// The next pull looks at the image anew.
pub fn forget(reference: &str) -> io::Result<()> {
    let _wanted = locked(&WANTED);
    change_references(|all| {
        all.remove(reference);
    })
}

/// What is kept though no setting names it. A list that cannot be read keeps it all; one that is broken is none.
fn pinned(path: &Path) -> io::Result<BTreeSet<String>> {
    match files::read_bounded(path, LARGEST_PINNED) {
        Ok(data) => Ok(serde_json::from_slice(&data).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn change_pinned(path: &Path, change: impl FnOnce(&mut BTreeSet<String>) -> bool) -> io::Result<()> {
    let mut all = pinned(path)?;
    if !change(&mut all) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    files::replace_durably(path, &serde_json::to_vec_pretty(&all)?)
}

/// Keeps a reference until it is [`unpin`]ned, also over restarts.
pub(super) fn pin(reference: &str) -> io::Result<()> {
    let _wanted = locked(&WANTED);
    change_pinned(Path::new(PINNED), |all| all.insert(reference.to_owned()))
}

/// Keeps a reference no longer than settings name it.
pub(super) fn unpin(reference: &str) -> io::Result<()> {
    let _wanted = locked(&WANTED);
    change_pinned(Path::new(PINNED), |all| all.remove(reference))
}

/// The digests of what was pulled, by reference, and the references that are pinned.
pub(super) fn remembered() -> io::Result<(BTreeMap<String, String>, BTreeSet<String>)> {
    let _wanted = locked(&WANTED);
    let mut found = references();
    found.retain(|_, digest| folder_of(digest).is_dir());
    Ok((found, pinned(Path::new(PINNED))?))
}

/// Says which references settings name. Before what they name is looked for: beside what is pinned nothing else is kept.
pub fn want(references: BTreeSet<String>) {
    *locked(&WANTED) = references;
}

/// Removes pulled images that neither settings nor a running container uses and that are not pinned, and what pulls left that nobody
/// goes on with. Blocking.
pub fn remove_unused() {
    remove_unused_after(|_| ());
}

/// The same; the folder of each is looked at before it goes.
pub(super) fn remove_unused_after(mut look: impl FnMut(&Path)) {
    for entry in fs::read_dir(PULLED).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // `sha256-…`, or `.pull-sha256-…` of a pull that was cut off.
        let digest = digest_of(&name);
        if !path.is_dir() {
            continue;
        }
        // Somebody pulls it now.
        let Ok(_turn) = turns_of(&digest).try_lock_owned() else { continue };
        let is_of_use = if name.starts_with(".pull-") { is_awaited(&path) } else { is_used(&path) };
        if !is_of_use {
            look(&path);
            remove(&path);
        }
    }
}

/// Removes what broken pulls of a reference have left, but for those that go on. Blocking.
pub fn remove_pulls(reference: &str) {
    for entry in fs::read_dir(PULLED).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(".pull-") {
            continue;
        }
        let is_of_it = fs::read_to_string(entry.path().join(PULLED_FOR)).is_ok_and(|text| text == reference);
        if is_of_it && let Ok(_turn) = turns_of(&digest_of(&name)).try_lock_owned() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Removes the folder of an image. Before the first of its files goes, it loses the name that says that it is complete: a power cut in
/// the middle leaves what nobody takes for an image.
pub fn remove(folder: &Path) {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let gone = folder.with_file_name(format!(".pull-{name}"));
    let is_whole = !name.starts_with('.');
    if is_whole && gone.exists() {
        let _ = fs::remove_dir_all(&gone);
    }
    let doomed = if is_whole && fs::rename(folder, &gone).is_ok() { &gone } else { folder };
    let _ = fs::remove_dir_all(doomed);
}

/// Whether the reference that a pull was for is wanted, and not there by now.
fn is_awaited(folder: &Path) -> bool {
    let Ok(reference) = fs::read_to_string(folder.join(PULLED_FOR)) else { return false };
    let wanted = locked(&WANTED);
    let is_kept = pinned(Path::new(PINNED)).is_ok_and(|pinned| pinned.contains(&reference));
    (wanted.contains(&reference) || is_kept) && !references().contains_key(&reference)
}

fn is_used(folder: &Path) -> bool {
    let wanted = locked(&WANTED);
    let Ok(pinned) = pinned(Path::new(PINNED)) else { return true };
    let is_kept = |reference: &String| wanted.contains(reference) || pinned.contains(reference);
    let kept = change_references(|all| all.retain(|reference, _| is_kept(reference)));
    // What cannot be written down cannot be relied on after a restart: better to keep too much.
    kept.is_err() || references().values().any(|digest| folder_of(digest) == folder) || is_mounted(folder)
}

/// Whether a container has the image below its root, also one that no setting names any more.
fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let lower = format!("lowerdir={},", folder.join("rootfs").display());
    mounts.contains(&lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_stays_so_until_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images/pinned.json");
        assert_eq!(pinned(&path).unwrap(), BTreeSet::new());
        for name in ["r/a:1", "r/b:1"] {
            change_pinned(&path, |all| all.insert(name.to_owned())).unwrap();
        }
        change_pinned(&path, |all| all.remove("r/a:1")).unwrap();
        assert_eq!(pinned(&path).unwrap(), BTreeSet::from(["r/b:1".to_owned()]));
        // One that cannot be read is not taken for none.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(pinned(&path).is_err());
    }

    #[test]
    fn a_name_without_tag_means_latest() {
        assert!(same("localhost/busybox:latest", "localhost/busybox"));
        assert!(same("localhost/busybox:1.37.0", "localhost/busybox:1.37.0"));
        assert!(!same("localhost/busybox:latest", "localhost/busybox:1"));
        assert!(!same("localhost/busybox:latest", "busybox"));
    }
}
