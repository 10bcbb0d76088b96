//! The images that a node has: preloaded ones in the verified root, pulled ones in `/data/images`.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::OwnedMutexGuard;

use crate::container::bundle::ImageConfig;
use crate::container::manifest::is_digest;
use crate::container::record::Places;
use crate::files;
use crate::space::Space;

const PRELOADED: &str = "/usr/lib/caisson/images";
pub const PULLED: &str = "/data/images";
/// In the folder of a pull: the reference that it is for.
pub const PULLED_FOR: &str = "reference";
/// In the folder of an image that was pulled: the highest user or group that a file of it has.
pub const HIGHEST_ID: &str = "highest-id";
const REFERENCES: &str = "/data/images/references.json";
/// A list of the references that are kept though no setting names them.
const PINNED: &str = "/data/images/pinned.json";
/// Images that nobody wants any more, by digest ([`Unused`]).
const UNUSED: &str = "/data/images/unused.json";
/// More than references in such a file have, which are bounded in number and length.
const LARGEST_LIST: u64 = 1 << 20;
/// For how long an image is kept that nobody wants: who goes back to it need not download it. It goes earlier when space is tight.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// An image configuration larger than this is not read.
pub const LARGEST_CONFIG: u64 = 4 << 20;

/// The references that settings name; none before they are known. Locked while references.json, pinned.json or unused.json is read or
/// changed.
static WANTED: Mutex<Option<BTreeSet<String>>> = Mutex::new(None);
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

/// An image that neither settings nor a person want any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unused {
    /// What it was last.
    pub(super) reference: String,
    /// Seconds since 1970.
    since: u64,
}

impl Unused {
    /// From now on.
    pub(super) fn now(reference: &str) -> Self {
        Self { reference: reference.to_owned(), since: now() }
    }

    fn is_due(&self, now: u64) -> bool {
        now.saturating_sub(self.since) >= KEPT_FOR.as_secs()
    }
}

/// What goes of the images that nobody uses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Collect<'a> {
    /// What nobody has wanted for long, and the oldest of the rest while space is tight.
    Due,
    /// The same, and these, by reference or digest.
    These(&'a BTreeSet<String>),
    All,
}

impl Collect<'_> {
    /// `unused`: what is known of an image that nobody uses. Pure.
    fn keeps(self, digest: &str, unused: Option<&Unused>, now: u64) -> bool {
        let is_young = unused.is_some_and(|unused| !unused.is_due(now));
        is_young
            && match self {
                Self::Due => true,
                Self::These(these) => {
                    !these.contains(digest) && !unused.is_some_and(|unused| these.contains(&unused.reference))
                }
                Self::All => false,
            }
    }
}

/// Digests, what nobody has wanted for the longest time first. Pure.
fn oldest_first(unused: &BTreeMap<String, Unused>) -> Vec<String> {
    let mut all: Vec<_> = unused.iter().map(|(digest, unused)| (unused.since, digest)).collect();
    all.sort_unstable();
    all.into_iter().map(|(_, digest)| digest.clone()).collect()
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
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
            let digest = references().remove(reference).or_else(|| take_back(reference));
            match digest.map(|digest| folder_of(&digest)) {
                Some(folder) if folder.is_dir() => folder,
                _ => return Ok(None),
            }
        }
    };
    let found = load(&folder).map(Some);
    found.map_err(|error| format!("the image {reference} in {} cannot be used: {error}", folder.display()))
}

/// The digest of an image that is wanted again. What a tag is now its registry is asked; a digest means what it meant. For who holds the
/// lock.
fn take_back(reference: &str) -> Option<String> {
    let all = if reference.contains('@') { unused() } else { return None };
    let (digest, _) = all.iter().find(|(_, unused)| unused.reference == reference)?;
    // It may be about to be removed: then it is pulled, after that.
    let _turn = turns_of(digest).try_lock_owned().ok()?;
    let taken = change_references(|all| {
        all.insert(reference.to_owned(), digest.clone());
    });
    taken.ok().map(|()| digest.clone())
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
    write_changed(REFERENCES, references(), change)
}

/// Writes what a file is to hold, if that is something else than `before`.
fn write_changed<T: Clone + PartialEq + Serialize>(
    path: &str,
    before: T,
    change: impl FnOnce(&mut T),
) -> io::Result<()> {
    let mut after = before.clone();
    change(&mut after);
    if after == before {
        return Ok(());
    }
    files::replace_durably(Path::new(path), &serde_json::to_vec_pretty(&after)?)
}

/// Remembers what a reference was when it was pulled, also over a restart without network.
pub fn remember(reference: &str, digest: &str) -> io::Result<()> {
    let _wanted = locked(&WANTED);
    if let Some(before) = references().remove(reference).filter(|before| before != digest) {
        note_unused([(reference.to_owned(), before)])?;
    }
    change_references(|all| {
        all.insert(reference.to_owned(), digest.to_owned());
    })
}

/// The next pull looks at the image anew.
pub fn forget(reference: &str) -> io::Result<()> {
    let _wanted = locked(&WANTED);
    change_unused(|all| all.retain(|_, unused| unused.reference != reference))?;
    change_references(|all| {
        all.remove(reference);
    })
}

/// What is kept though no setting names it. A list that cannot be read keeps it all; one that is broken is none.
fn pinned(path: &Path) -> io::Result<BTreeSet<String>> {
    match files::read_bounded(path, LARGEST_LIST) {
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

/// Images that nobody wants, and that are there still, by digest.
pub(super) fn left() -> BTreeMap<String, Unused> {
    let _wanted = locked(&WANTED);
    let mut all = unused();
    retain_left(&mut all);
    all
}

/// For who holds the lock.
fn retain_left(unused: &mut BTreeMap<String, Unused>) {
    let used: BTreeSet<String> = references().into_values().collect();
    unused.retain(|digest, _| !used.contains(digest) && folder_of(digest).is_dir());
}

/// One that cannot be read is none: what is not in it is removed at once. What is no digest is not in it: folders are named by these.
fn unused() -> BTreeMap<String, Unused> {
    unused_in(Path::new(UNUSED))
}

fn unused_in(path: &Path) -> BTreeMap<String, Unused> {
    let data = files::read_bounded(path, LARGEST_LIST).ok();
    let mut all: BTreeMap<String, Unused> =
        data.and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or_default();
    all.retain(|digest, _| is_digest(digest));
    all
}

fn change_unused(change: impl FnOnce(&mut BTreeMap<String, Unused>)) -> io::Result<()> {
    write_changed(UNUSED, unused(), change)
}

/// From now on nobody wants these: references and their digests.
fn note_unused(references: impl IntoIterator<Item = (String, String)>) -> io::Result<()> {
    change_unused(|all| {
        all.extend(references.into_iter().map(|(reference, digest)| (digest, Unused::now(&reference))));
    })
}

/// Says which references settings name. Before what they name is looked for: others, beside what is pinned, are not wanted any more.
pub fn want(references: BTreeSet<String>) {
    *locked(&WANTED) = Some(references);
}

/// Removes pulled images that neither settings nor a running container has used for long and that are not pinned, more of them when space
/// is tight, and what pulls left that nobody goes on with. Blocking.
pub fn remove_unused() {
    collect(Collect::Due, |_| ());
}

/// The same, without waiting until it is long. Blocking.
pub(super) fn remove_all_unused() {
    collect(Collect::All, |_| ());
}

/// Removes images that nobody uses; the folder of each is looked at before it goes.
pub(super) fn collect(what: Collect<'_>, mut look: impl FnMut(&Path)) {
    let now = now();
    for entry in fs::read_dir(PULLED).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // `sha256-…`, or `.pull-sha256-…` of a pull that was cut off.
        let digest = digest_of(&name);
        if !path.is_dir() {
            continue;
        }
        // Somebody pulls it now.
        let Ok(_turn) = turns_of(&digest).try_lock_owned() else { continue };
        let is_of_use = if name.starts_with(".pull-") {
            is_awaited(&path)
        } else {
            is_used(&path) || what.keeps(&digest, left().get(&digest), now)
        };
        if !is_of_use {
            look(&path);
            remove(&path);
        }
    }
    let is_tight = || Space::of(Path::new(PULLED)).is_ok_and(Space::is_tight);
    for digest in oldest_first(&left()) {
        if !is_tight() {
            break;
        }
        let path = folder_of(&digest);
        // Somebody else removes it: the next look tells whether that was enough.
        let Ok(_turn) = turns_of(&digest).try_lock_owned() else { break };
        if !is_used(&path) {
            look(&path);
            remove(&path);
        }
    }
    let _wanted = locked(&WANTED);
    let tidied = change_unused(|all| {
        retain_left(all);
        // The clock was set back.
        all.values_mut().for_each(|unused| unused.since = unused.since.min(now));
    });
    if let Err(error) = tidied {
        eprintln!("<4>cannot write down which images nobody uses: {error}");
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
    let Some(wanted) = &*wanted else { return true };
    let is_kept = pinned(Path::new(PINNED)).is_ok_and(|pinned| pinned.contains(&reference));
    (wanted.contains(&reference) || is_kept) && !references().contains_key(&reference)
}

fn is_used(folder: &Path) -> bool {
    let wanted = locked(&WANTED);
    let Some(wanted) = &*wanted else { return true };
    // What cannot be written down (the disk is full) is in the list still.
    let _ = let_go(wanted);
    references().values().any(|digest| folder_of(digest) == folder) || is_below_a_container(folder)
}

/// Forgets references that neither settings name nor a person keeps. Noted first: a power cut between leaves it in both lists, and of use.
fn let_go(wanted: &BTreeSet<String>) -> io::Result<()> {
    let pinned = pinned(Path::new(PINNED))?;
    let is_kept = |reference: &String| wanted.contains(reference) || pinned.contains(reference);
    note_unused(references().into_iter().filter(|(reference, _)| !is_kept(reference)))?;
    change_references(|all| all.retain(|reference, _| is_kept(reference)))
}

/// Whether the root of a container is made of the image, or was last, also of one that no setting names any more. Not by the mounts: where
/// ids are translated, they name another folder.
pub(super) fn is_below_a_container(folder: &Path) -> bool {
    let rootfs = folder.join("rootfs");
    Places::all().any(|places| fs::read_link(places.lower()).is_ok_and(|lower| lower == rootfs))
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

    /// What is in the list is removed, by the name of a folder.
    #[test]
    fn a_list_of_what_is_unused_names_nothing_but_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("unused.json");
        assert!(unused_in(&path).is_empty());
        let digest = format!("sha256:{}", "0a".repeat(32));
        let names = ["../containers", "/state", "", "sha256:../..", digest.as_str()];
        let all: BTreeMap<&str, Unused> = names.map(|name| (name, Unused::now("r/a:1"))).into();
        fs::write(&path, serde_json::to_vec(&all).unwrap()).unwrap();
        assert_eq!(unused_in(&path).into_keys().collect::<Vec<_>>(), [digest]);
        fs::write(&path, "{").unwrap();
        assert!(unused_in(&path).is_empty());
    }

    #[test]
    fn what_nobody_wants_is_kept_for_a_week_unless_it_is_asked_to_go() {
        let now = 1_800_000_000;
        let unused = |reference: &str, age: u64| Unused { reference: reference.to_owned(), since: now - age };
        let week = KEPT_FOR.as_secs();
        let keeps = |what: Collect<'_>, age| what.keeps("sha256:1", Some(&unused("r/a:1", age)), now);
        assert!(keeps(Collect::Due, 0) && keeps(Collect::Due, week - 1) && !keeps(Collect::Due, week));
        assert!(!keeps(Collect::All, 0));
        // What nothing is known of.
        assert!(!Collect::Due.keeps("sha256:1", None, now));
        for (these, kept) in [("r/a:1", false), ("sha256:1", false), ("r/b:1", true)] {
            let these = BTreeSet::from([these.to_owned()]);
            assert_eq!(keeps(Collect::These(&these), 5), kept);
            assert!(!keeps(Collect::These(&these), week));
        }
        // The clock was set back by a day.
        assert!(Collect::Due.keeps("sha256:1", Some(&unused("r/a:1", 5)), now - 24 * 3600));
        let all = BTreeMap::from([
            ("sha256:1".to_owned(), unused("r/a:1", 7)),
            ("sha256:2".to_owned(), unused("r/b:1", 9)),
            ("sha256:3".to_owned(), unused("r/c:1", 8)),
        ]);
        assert_eq!(oldest_first(&all), ["sha256:2", "sha256:3", "sha256:1"]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<BTreeMap<String, Unused>>(&text).unwrap(), all);
    }

    #[test]
    fn a_name_without_tag_means_latest() {
        assert!(same("localhost/busybox:latest", "localhost/busybox"));
        assert!(same("localhost/busybox:1.37.0", "localhost/busybox:1.37.0"));
        assert!(!same("localhost/busybox:latest", "localhost/busybox:1"));
        assert!(!same("localhost/busybox:latest", "busybox"));
    }
}
