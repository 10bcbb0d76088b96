//! Images by hand: what `apiclient image` shows, pulls ahead of its use, and removes.

use apiserver::agent::{ImageDetails, ImageState, ImageStatus, RemovedImage};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::sleep;

use crate::container::access::Access;
use crate::container::image::{self, Collect, Preloaded, Unused, locked};
use crate::container::progress;
use crate::container::pull::pull;
use crate::files;

/// Images that are pulled by hand at once, and that are kept because they were, or are to be.
const MOST_PULLS: usize = 4;
const MOST_PINNED: usize = 100;
/// Of one pull, with growing pauses: what a try has brought is there for the next.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A configuration with more bytes is not shown.
const LARGEST_SHOWN: u64 = 256 << 10;

/// By reference: which containers have the image, by their names.
pub type Uses = BTreeMap<String, BTreeSet<String>>;

/// Why something is not done with an image.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Unknown(String),
    Conflict(String),
    Failed(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!(
            "cannot read or change the list of images in {}: {error}; apiclient status tells whether the disk is full",
            image::PULLED
        ))
    }
}

/// What was asked for by hand. Within a `LocalSet`.
#[derive(Clone, Default)]
pub struct Images {
    pulls: Rc<RefCell<BTreeMap<String, Pull>>>,
    places: Places,
    /// Bytes of images by their folder: what an image is does not change.
    sizes: Arc<Mutex<BTreeMap<PathBuf, u64>>>,
}

/// Who else pulls waits.
#[derive(Clone)]
struct Places(Rc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Rc::new(Semaphore::new(MOST_PULLS)))
    }
}

/// A pull that goes on, or has failed.
struct Pull {
    task: JoinHandle<()>,
    /// Of the last try.
    error: Option<String>,
    is_over: bool,
}

/// A pull as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pulling {
    error: Option<String>,
    is_over: bool,
}

/// All that is known of images, for a list of them.
#[derive(Debug, Default)]
struct Known {
    preloaded: Vec<Preloaded>,
    /// Digests of what was pulled.
    references: BTreeMap<String, String>,
    pinned: BTreeSet<String>,
    /// By digest, what nobody wants any more.
    unused: BTreeMap<String, Unused>,
    pulls: BTreeMap<String, Pulling>,
    uses: Uses,
}

impl Known {
    fn users(&self, reference: &str) -> Vec<String> {
        let is_it = |used: &str| used == reference || self.preloaded_as(used) == Some(reference);
        let users = self.uses.iter().filter(|(used, _)| is_it(used)).flat_map(|(_, names)| names);
        users.cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The full name of a preloaded image.
    fn preloaded_as(&self, reference: &str) -> Option<&str> {
        let found = self.preloaded.iter().find(|image| image::same(&image.reference, reference));
        found.map(|image| image.reference.as_str())
    }

    /// What nobody wants, by its reference, or by its digest where that reference is something else by now.
    fn unused(&self) -> BTreeMap<String, &String> {
        let mut all = BTreeMap::new();
        for (digest, Unused { reference, .. }) in &self.unused {
            let is_taken = self.references.contains_key(reference)
                || self.pinned.contains(reference)
                || self.pulls.contains_key(reference)
                || all.contains_key(reference);
            all.insert(if is_taken { digest.clone() } else { reference.clone() }, digest);
        }
        all
    }

    /// All images by their references: the system's own first, what nobody wants last. Sizes and times are not looked at.
    fn list(&self) -> Vec<ImageStatus> {
        let blank = |reference: &str| ImageStatus {
            reference: reference.to_owned(),
            state: ImageState::Pulled,
            digest: None,
            bytes: None,
            pulled_at: None,
            pinned: self.pinned.contains(reference),
            used_by: self.users(reference),
            error: None,
            pull: None,
        };
        let own = self.preloaded.iter().map(|own| ImageStatus {
            state: ImageState::Preloaded,
            digest: own.digest.clone(),
            ..blank(&own.reference)
        });
        let names = self.references.keys().chain(self.pulls.keys()).chain(&self.pinned);
        let names: BTreeSet<&String> = names.collect();
        let pulled = names.into_iter().map(|reference| {
            let pull = self.pulls.get(reference);
            let state = match pull {
                Some(Pulling { is_over: false, .. }) => ImageState::Pulling,
                // What is there is used, whatever became of pulling it again.
                _ if self.references.contains_key(reference) => ImageState::Pulled,
                _ => ImageState::Failed,
            };
            ImageStatus {
                state,
                digest: self.references.get(reference).cloned(),
                pull: (state == ImageState::Pulling).then(|| progress::of(reference)).flatten(),
                error: pull.and_then(|pull| pull.error.clone()),
                ..blank(reference)
            }
        });
        let unused = self.unused().into_iter().map(|(name, digest)| ImageStatus {
            state: ImageState::Unused,
            digest: Some(digest.clone()),
            ..blank(&name)
        });
        own.chain(pulled).chain(unused).collect()
    }

    /// Why an image is not removed by hand.
    fn check_removal(&self, reference: &str) -> Result<(), Refused> {
        if let Some(name) = self.preloaded_as(reference) {
            return Err(Refused::Conflict(format!(
                "the image {name} is part of the system, which is read-only: it comes and goes with updates"
            )));
        }
        let users = self.users(reference);
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(Refused::Conflict(format!(
                "the image {reference} is used by {users}: remove them first (apiclient delete), or give them another image"
            )));
        }
        let is_known = self.references.contains_key(reference)
            || self.pinned.contains(reference)
            || self.pulls.contains_key(reference)
            || self.unused().contains_key(reference);
        if is_known { Ok(()) } else { Err(self.unknown(reference)) }
    }

    fn unknown(&self, reference: &str) -> Refused {
        let names: Vec<String> = self.list().into_iter().map(|image| image.reference).collect();
        let there_are = match names.as_slice() {
            [] => "there are none".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        Refused::Unknown(format!("there is no image {reference}: {there_are}"))
    }

    /// What is not to be kept any more though it was pulled by hand.
    fn prunable(&self, all: bool) -> BTreeSet<String> {
        let is_pulled = |name: &String| self.pulls.get(name).is_some_and(|pull| !pull.is_over);
        let is_free = |name: &&String| all && self.users(name).is_empty() && !is_pulled(name);
        self.pinned.iter().filter(is_free).cloned().collect()
    }

    /// Why an image is not pulled by hand.
    fn check_pull(&self, reference: &str) -> Result<(), Refused> {
        if let Some(name) = self.preloaded_as(reference) {
            return Err(Refused::Conflict(format!(
                "the image {name} is part of the system: there is nothing to pull"
            )));
        }
        if self.pinned.len() >= MOST_PINNED && !self.pinned.contains(reference) {
            return Err(Refused::Conflict(format!(
                "{MOST_PINNED} images are kept already because they were pulled by hand: remove one of them first (apiclient image remove)"
            )));
        }
        Ok(())
    }
}

impl Images {
    fn known(&self, uses: Uses) -> Result<Known, Refused> {
        let (references, pinned) = image::remembered()?;
        let mut unused = image::left();
        // It has a container still.
        unused.retain(|digest, _| !image::is_below_a_container(&image::folder_of(digest)));
        let pulls = self.pulls.borrow();
        let pulling = |pull: &Pull| Pulling { error: pull.error.clone(), is_over: pull.is_over };
        let pulls = pulls.iter().map(|(name, pull)| (name.clone(), pulling(pull))).collect();
        Ok(Known { preloaded: image::all_preloaded(), references, pinned, unused, pulls, uses })
    }

    /// All images, with what they take on the disk.
    pub async fn list(&self, uses: Uses) -> Result<Vec<ImageStatus>, Refused> {
        let (mut list, sizes) = (self.known(uses)?.list(), self.sizes.clone());
        blocking(move || {
            list.iter_mut().for_each(|image| measure(image, &sizes));
            Ok(list)
        })
        .await
    }

    /// One image, with what its maker says of it.
    pub async fn inspect(&self, reference: &str, uses: Uses) -> Result<ImageDetails, Refused> {
        let known = self.known(uses)?;
        let name = known.preloaded_as(reference).unwrap_or(reference).to_owned();
        let Some(mut image) = known.list().into_iter().find(|image| image.reference == name) else {
            return Err(known.unknown(reference));
        };
        let sizes = self.sizes.clone();
        blocking(move || {
            measure(&mut image, &sizes);
            let Some(folder) = folder(&image) else {
                let error = image.error.map(|error| format!(" ({error})")).unwrap_or_default();
                return Err(Refused::Unknown(format!("the image {name} is not there yet{error}")));
            };
            let unreadable = |error| {
                Refused::Failed(format!(
                    "cannot read what the image {name} says of itself in {}: {error}",
                    folder.display()
                ))
            };
            let config = files::read_bounded(&folder.join("config.json"), LARGEST_SHOWN);
            details(image, &config.map_err(unreadable)?).map_err(|error| unreadable(error.into()))
        })
        .await
    }

    /// Pulls an image, and keeps it until it is removed by hand. Returns when that has begun: its state tells how it goes on. A tag that
    /// was pulled before means from then on what the registry says now.
    pub fn pull(&self, reference: &str, access: watch::Receiver<Access>) -> Result<(), Refused> {
        if self.pulls.borrow().get(reference).is_some_and(|pull| !pull.is_over) {
            return Ok(());
        }
        self.known(Uses::new())?.check_pull(reference)?;
        // First: what is there of it is not to be collected, and another agent is to go on with it.
        image::pin(reference)?;
        // Of pulls that failed only so many are remembered.
        let mut pulls = self.pulls.borrow_mut();
        if pulls.len() >= MOST_PINNED {
            pulls.retain(|_, pull| !pull.is_over);
        }
        drop(pulls);
        self.begin(reference, access);
        Ok(())
    }

    /// Goes on with what an agent before this one did not bring to an end.
    pub fn resume(&self, access: &watch::Receiver<Access>) {
        let Ok((references, pinned)) = image::remembered() else { return };
        for reference in pinned.iter().filter(|pinned| !references.contains_key(*pinned)) {
            self.begin(reference, access.clone());
        }
    }

    fn begin(&self, reference: &str, access: watch::Receiver<Access>) {
        let (images, name) = (self.clone(), reference.to_owned());
        let task = spawn_local(async move { images.bring(&name, access).await });
        let pull = Pull { task, error: None, is_over: false };
        self.pulls.borrow_mut().insert(reference.to_owned(), pull);
    }

    async fn bring(&self, reference: &str, access: watch::Receiver<Access>) {
        let Ok(_place) = self.places.0.acquire().await else { return };
        let mut pause = FIRST_PAUSE;
        for tried in 1..=TRIES {
            let now = access.borrow().clone();
            let Err(error) = pull(reference, &now).await else {
                self.pulls.borrow_mut().remove(reference);
                eprintln!("<5>the image {reference} was pulled by hand");
                return;
            };
            let is_over = !error.transient || tried == TRIES;
            let message = match error.transient && is_over {
                true => format!("{}; given up after {TRIES} tries: pull it again to go on", error.message),
                false => error.message,
            };
            if is_over {
                eprintln!("<4>the image {reference} was not pulled by hand: {message}");
            }
            if let Some(pull) = self.pulls.borrow_mut().get_mut(reference) {
                pull.error = Some(message);
                pull.is_over = is_over;
            }
            if is_over {
                // What cannot be had is not asked for again by the next agent; what was there before stays.
                if !error.transient {
                    forget_missing(reference);
                    let _ = spawn_blocking(image::remove_unused).await;
                }
                return;
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Removes an image that no container has: what it freed. Files that another reference means too stay.
    pub async fn remove(&self, reference: &str, uses: Uses) -> Result<Vec<RemovedImage>, Refused> {
        self.known(uses)?.check_removal(reference)?;
        let pull = self.pulls.borrow_mut().remove(reference);
        if let Some(pull) = pull {
            pull.task.abort();
            let _ = pull.task.await;
        }
        self.collect(BTreeSet::from([reference.to_owned()]), false).await
    }

    /// Removes what no container has: also what is kept because it was pulled by hand, if `all`.
    pub async fn prune(&self, all: bool, uses: Uses) -> Result<Vec<RemovedImage>, Refused> {
        let known = self.known(uses)?;
        let names = known.prunable(all);
        let stays = |name: &String| known.pinned.contains(name) && !names.contains(name);
        self.pulls.borrow_mut().retain(|name, pull| !pull.is_over || stays(name));
        self.collect(names, true).await
    }

    /// Keeps these no longer, and removes them, or all, unless somebody has them.
    async fn collect(&self, unwanted: BTreeSet<String>, all: bool) -> Result<Vec<RemovedImage>, Refused> {
        let sizes = self.sizes.clone();
        blocking(move || {
            for name in &unwanted {
                image::unpin(name)?;
            }
            let (mut references, _) = image::remembered()?;
            for (digest, unused) in image::left() {
                references.entry(unused.reference).or_insert(digest);
            }
            let mut removed = Vec::new();
            image::collect(if all { Collect::All } else { Collect::These(&unwanted) }, |folder| {
                let bytes = size(folder, &sizes);
                removed.push(RemovedImage { bytes, ..what_is_removed(folder, &references) });
            });
            locked(&sizes).retain(|folder, _| folder.exists());
            Ok(removed)
        })
        .await
    }
}

fn forget_missing(reference: &str) {
    let is_there = image::remembered().is_ok_and(|(references, _)| references.contains_key(reference));
    if !is_there && let Err(error) = image::unpin(reference) {
        eprintln!("<4>cannot write down that {reference} is not kept: {error}");
    }
}

async fn blocking<T: Send + 'static>(
    task: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = spawn_blocking(task).await;
    done.unwrap_or_else(|error| Err(Refused::Failed(format!("looking at images ended early: {error}"))))
}

/// Which images a folder of `/data/images` was, by its name.
fn what_is_removed(folder: &Path, references: &BTreeMap<String, String>) -> RemovedImage {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let digest = image::digest_of(&name);
    let is_whole = !name.starts_with('.');
    let of_it = references.iter().filter(|(_, its)| is_whole && **its == digest);
    RemovedImage { references: of_it.map(|(name, _)| name.clone()).collect(), digest, is_whole, bytes: 0 }
}

fn folder(image: &ImageStatus) -> Option<PathBuf> {
    match image.state {
        ImageState::Preloaded => image::preloaded_folder(&image.reference),
        _ => image.digest.as_deref().map(image::folder_of).filter(|folder| folder.is_dir()),
    }
}

/// Adds what the disk tells of an image. What it was pulled as is written once.
fn measure(image: &mut ImageStatus, sizes: &Mutex<BTreeMap<PathBuf, u64>>) {
    let Some(folder) = folder(image) else { return };
    image.bytes = Some(size(&folder, sizes));
    if image.state != ImageState::Preloaded {
        let written = fs::metadata(folder.join("config.json")).and_then(|metadata| metadata.modified());
        image.pulled_at = written.ok().and_then(|time| Timestamp::try_from(time).ok()).and_then(in_seconds);
    }
}

fn in_seconds(time: Timestamp) -> Option<String> {
    Some(Timestamp::from_second(time.as_second()).ok()?.to_string())
}

/// Measured once.
fn size(folder: &Path, sizes: &Mutex<BTreeMap<PathBuf, u64>>) -> u64 {
    let known = locked(sizes).get(folder).copied();
    known.unwrap_or_else(|| {
        let bytes = size_on_disk(folder);
        locked(sizes).insert(folder.to_owned(), bytes);
        bytes
    })
}

/// Bytes that the files of a folder take; one with several names counts once.
fn size_on_disk(folder: &Path) -> u64 {
    let (mut folders, mut seen, mut bytes) = (vec![folder.to_owned()], BTreeSet::new(), 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // Of a link itself, not of what it leads to.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            if metadata.is_dir() || metadata.nlink() == 1 || seen.insert(metadata.ino()) {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    bytes
}

/// What an image says of itself (OCI Image Specification 1.1, config.md).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Described {
    created: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
    config: Execution,
    rootfs: Layers,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Layers {
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

fn details(image: ImageStatus, config: &[u8]) -> Result<ImageDetails, serde_json::Error> {
    let Described { created, architecture, os, config, rootfs } = serde_json::from_slice(config)?;
    let names = |map: Option<BTreeMap<String, IgnoredAny>>| map.unwrap_or_default().into_keys().collect();
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(ImageDetails {
        image,
        created,
        architecture,
        os,
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        user: given(config.user),
        working_dir: given(config.working_dir),
        stop_signal: given(config.stop_signal),
        ports: names(config.exposed_ports),
        volumes: names(config.volumes),
        labels: config.labels.unwrap_or_default(),
        layers: rootfs.diff_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let name = |name: &str| name.to_owned();
        let own = Preloaded {
            reference: name("localhost/busybox:latest"),
            digest: Some(name("sha256:0")),
            directory: name("busybox"),
        };
        let failed = Pulling { error: Some(name("no such image")), is_over: true };
        let pulling = Pulling { error: None, is_over: false };
        Known {
            preloaded: vec![own],
            references: BTreeMap::from([
                (name("r/web:1"), name("sha256:1")),
                (name("r/db:1"), name("sha256:2")),
            ]),
            pinned: BTreeSet::from([name("r/db:1"), name("r/new:1")]),
            unused: [("sha256:3", "r/old:1"), ("sha256:4", "r/web:1"), ("sha256:5", "r/old:1")]
                .map(|(digest, reference)| (name(digest), Unused::now(reference)))
                .into(),
            pulls: BTreeMap::from([(name("r/new:1"), pulling), (name("r/none:1"), failed)]),
            uses: BTreeMap::from([
                (name("r/web:1"), BTreeSet::from([name("web"), name("again")])),
                (name("localhost/busybox"), BTreeSet::from([name("shell")])),
            ]),
        }
    }

    #[test]
    fn a_list_has_what_is_there_and_what_is_asked_for() {
        let list = known().list();
        let told: Vec<_> = list
            .iter()
            .map(|image| (image.reference.as_str(), image.state, image.pinned, image.used_by.join(" ")))
            .collect();
        assert_eq!(
            told,
            [
                ("localhost/busybox:latest", ImageState::Preloaded, false, "shell".to_owned()),
                ("r/db:1", ImageState::Pulled, true, String::new()),
                ("r/new:1", ImageState::Pulling, true, String::new()),
                ("r/none:1", ImageState::Failed, false, String::new()),
                ("r/web:1", ImageState::Pulled, false, "again web".to_owned()),
                ("r/old:1", ImageState::Unused, false, String::new()),
                // Their names mean other images.
                ("sha256:4", ImageState::Unused, false, String::new()),
                ("sha256:5", ImageState::Unused, false, String::new()),
            ]
        );
        assert_eq!(list[5].digest.as_deref(), Some("sha256:3"));
        assert_eq!(list[3].error.as_deref(), Some("no such image"));
        assert_eq!(list[4].digest.as_deref(), Some("sha256:1"));
    }

    #[test]
    fn what_is_used_or_the_systems_own_or_not_there_is_not_removed() {
        for (reference, said) in [
            ("r/web:1", "is used by again, web"),
            ("localhost/busybox", "is part of the system"),
            ("localhost/busybox:latest", "is part of the system"),
            (
                "r/web",
                "there are localhost/busybox:latest, r/db:1, r/new:1, r/none:1, r/web:1, r/old:1, sha256:4",
            ),
        ] {
            let refused = format!("{:?}", known().check_removal(reference).unwrap_err());
            assert!(refused.contains(said), "{refused}");
        }
        for reference in ["r/db:1", "r/new:1", "r/none:1", "r/old:1", "sha256:4", "sha256:5"] {
            assert_eq!(known().check_removal(reference), Ok(()));
        }
    }

    #[test]
    fn what_is_kept_by_hand_is_bounded() {
        assert_eq!(known().check_pull("r/other:1"), Ok(()));
        assert!(matches!(known().check_pull("localhost/busybox"), Err(Refused::Conflict(_))));
        let full = Known {
            pinned: (0..MOST_PINNED).map(|number| format!("r/{number}")).collect(),
            ..Known::default()
        };
        assert!(matches!(full.check_pull("r/other:1"), Err(Refused::Conflict(_))));
        assert_eq!(full.check_pull("r/7"), Ok(()));
    }

    #[test]
    fn what_is_pulled_by_hand_is_pruned_only_when_that_is_asked_for() {
        let mut known = known();
        known.pinned.insert("r/web:1".to_owned());
        assert_eq!(known.prunable(false), BTreeSet::new());
        // One is used, one is being pulled.
        assert_eq!(known.prunable(true), BTreeSet::from(["r/db:1".to_owned()]));
    }

    #[test]
    fn files_of_several_names_count_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join("image").join(name);
        fs::create_dir_all(at("folder")).unwrap();
        fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        fs::write(at("folder/file"), vec![1; 64 << 10]).unwrap();
        let once = size_on_disk(&at(""));
        assert!((64 << 10..80 << 10).contains(&once), "{once}");
        fs::hard_link(at("folder/file"), at("other")).unwrap();
        std::os::unix::fs::symlink("../outside", at("link")).unwrap();
        std::os::unix::fs::symlink("..", at("up")).unwrap();
        let again = size_on_disk(&at(""));
        assert!((once..once + (16 << 10)).contains(&again), "{once} {again}");
    }

    #[test]
    fn what_is_removed_has_its_names() {
        let references = BTreeMap::from([("r/a:1".to_owned(), "sha256:1".to_owned())]);
        let removed = what_is_removed(Path::new("/data/images/sha256-1"), &references);
        assert_eq!(
            (removed.references, removed.digest, removed.is_whole),
            (vec!["r/a:1".to_owned()], "sha256:1".to_owned(), true)
        );
        let removed = what_is_removed(Path::new("/data/images/.pull-sha256-1"), &references);
        assert_eq!(
            (removed.references, removed.digest, removed.is_whole),
            (vec![], "sha256:1".to_owned(), false)
        );
    }

    #[test]
    fn an_image_is_shown_as_its_maker_describes_it() {
        let image = known().list().remove(1);
        let config = br#"{"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "more": [1],
            "config": {"Cmd": ["serve"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}, "User": "", "Labels": {"x": "y"}},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:7"]}}"#;
        let shown = details(image.clone(), config).unwrap();
        assert_eq!(
            (shown.command, shown.ports, shown.user),
            (vec!["serve".to_owned()], vec!["80/tcp".to_owned()], None)
        );
        assert_eq!((shown.layers, shown.labels["x"].as_str()), (vec!["sha256:7".to_owned()], "y"));
        assert!(details(image.clone(), b"{}").is_ok() && details(image, b"[").is_err());
    }
}
