//! A repository of updates, as a publisher makes it of the built image.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use build::artifacts::Artifacts;
use build::esp;
use build::image;
use build::project::Project;
use build::repo::{self, Expiries, Keys, ROLES, Repository, Thresholds};
use build::toolbox::LockPolicy;
use build::variant::Variant;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use update::choose::Way;

use crate::bench::bench;
use crate::installed::service;

/// In the image, as part of what it preloads.
const BUSYBOX: &str = "/usr/lib/caisson/images/busybox/rootfs/bin/busybox";

/// What is wrong with a file that a server gives.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    Missing,
    /// The first 4 KiB: of a root its index, and of no chunk all. What a node needs of a root may lie anywhere, but always in the
    /// first chunk, where the superblock is.
    Short,
    /// A bit in each 4096 bytes.
    Altered,
}

pub struct Updates {
    folder: TempDir,
}

impl Updates {
    /// An empty one.
    #[track_caller]
    pub fn new() -> Self {
        Self::try_new().unwrap_or_else(|error| panic!("no repository: {error:#}"))
    }

    fn try_new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("caisson-updates-").tempdir_in("/tmp")?;
        let updates = Self { folder };
        fs::create_dir(updates.path("keys"))?;
        for (number, role) in ROLES.into_iter().enumerate() {
            // Ed25519 in PKCS #8 (RFC 8410, section 7).
            let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
            der.extend([u8::try_from(number)? + 1; 32]);
            let pem =
                format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
            fs::write(updates.path(&format!("keys/{role}.pem")), pem)?;
        }
        Repository::init(updates.folder(), &updates.keys()?, &Thresholds::new(), &expires()?)?;
        Ok(updates)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a server serves.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The root of trust, for an image.
    pub fn root(&self) -> PathBuf {
        self.path("metadata/1.root.json")
    }

    fn keys(&self) -> Result<Keys> {
        Keys::new(Some(self.path("keys")), &[])
    }

    /// Publishes the built image under another version. What was there before is what [`Updates::roll_back`] goes back to.
    #[track_caller]
    pub fn publish(&self, version: &str) {
        self.try_publish(version).unwrap_or_else(|error| panic!("cannot publish {version}: {error:#}"));
    }

    /// Builds the image once more as another version that trusts this repository, changed by `change`.
    #[track_caller]
    pub fn build(&self, version: &'static str, change: impl Fn(&mut Variant)) -> Artifacts {
        let build = || -> Result<Artifacts> {
            let real = &bench().project;
            let mut variant = Variant::load(real, "default")?;
            variant.update_root = Some(self.root());
            change(&mut variant);
            let project = Project { sources: real.sources.clone(), cache: real.cache.clone(), version };
            let folder = self.path(&format!("built-{version}"));
            image::build_in(&project, &variant, LockPolicy::Newest, Artifacts::in_folder(folder, &project))
        };
        build().unwrap_or_else(|error| panic!("cannot build {version}: {error:#}"))
    }

    /// Gives a version that is built a service that runs `script` with busybox's shell as root, once the agent is ready.
    #[track_caller]
    pub fn add_script(&self, variant: &mut Variant, script: &str) {
        let file = self.path("story.toml");
        fs::write(&file, service(BUSYBOX, script)).expect("the file of a service");
        variant.files.push((file, "usr/lib/caisson/services/story.toml".to_owned()));
    }

    /// Gives a version that is built a boot loader that says it is of a version with these three digits.
    #[track_caller]
    pub fn add_loader(&self, variant: &mut Variant, version: &str) {
        let file = self.path("loader.efi");
        fs::write(&file, newer_loader(version)).expect("a loader");
        variant.files.push((file, esp::LOADER.to_owned()));
    }

    /// Publishes what was built, with a patch from the version before.
    #[track_caller]
    pub fn publish_built(&self, built: &Artifacts) {
        self.publish_by(Way::Patch, built);
    }

    /// Publishes what was built, with no way to it that brings less than this one.
    #[track_caller]
    pub fn publish_by(&self, way: Way, built: &Artifacts) {
        let publish = || -> Result<()> {
            let scratch = tempfile::tempdir_in("/tmp")?;
            let mut repository = Repository::open(self.folder())?;
            repo::add(
                &mut repository,
                &built.dir,
                None,
                scratch.path(),
                usize::from(way == Way::Patch),
                Some(&bench().project),
            )?;
            if way == Way::Full {
                // As by a publisher who does not know of blocks.
                let updates = repository.manifest.lines.iter_mut().filter_map(|line| line.updates.last_mut());
                updates.for_each(|update| update.root.leaves = None);
            }
            repo::publish(&mut repository, &self.keys()?, &expires()?)
        };
        publish().unwrap_or_else(|error| panic!("cannot publish: {error:#}"));
    }

    /// Serves the targets once more in a folder of this name, with those that end so changed.
    #[track_caller]
    pub fn spoil(&self, folder: &str, ending: &str, change: Change) {
        let spoil = || -> Result<()> {
            fs::create_dir(self.path(folder))?;
            for target in fs::read_dir(self.path("targets"))? {
                let target = target?;
                let (from, to) = (target.path(), self.path(folder).join(target.file_name()));
                if !target.file_name().to_string_lossy().ends_with(ending) {
                    fs::hard_link(from, to)?;
                    continue;
                }
                let mut data = fs::read(from)?;
                match change {
                    Change::Missing => continue,
                    Change::Short => data.truncate(4096),
                    Change::Altered => data.chunks_mut(4096).for_each(|block| block[0] ^= 1),
                }
                fs::write(to, data)?;
            }
            Ok(())
        };
        spoil().unwrap_or_else(|error| panic!("cannot spoil the targets that end in {ending}: {error:#}"));
    }

    fn try_publish(&self, version: &str) -> Result<()> {
        let scratch = tempfile::tempdir_in("/tmp")?;
        let built = &bench().artifacts;
        let mut manifest: Value = serde_json::from_slice(&fs::read(built.manifest())?)?;
        manifest["version"] = json!(version);
        for name in manifest["files"].as_object().context("no files")?.keys() {
            std::os::unix::fs::symlink(built.dir.join(name), scratch.path().join(name))?;
        }
        fs::write(scratch.path().join("manifest.json"), manifest.to_string())?;
        let before = fs::read(self.path("metadata/timestamp.json"))?;
        let mut repository = Repository::open(self.folder())?;
        // Fast: it is not what is looked at here.
        repo::add(&mut repository, scratch.path(), None, scratch.path(), 1, Some(&bench().project))?;
        repo::publish(&mut repository, &self.keys()?, &expires()?)?;
        fs::write(self.path("before.json"), before)?;
        Ok(())
    }

    /// Serves what was there before the last version.
    #[track_caller]
    pub fn roll_back(&self) {
        fs::copy(self.path("before.json"), self.path("metadata/timestamp.json")).expect("an older timestamp");
    }
}

/// The boot loader of the image, which says that its version begins with these three digits.
#[track_caller]
pub fn newer_loader(version: &str) -> Vec<u8> {
    const BEFORE: &[u8] = b"#### LoaderInfo: systemd-boot ";
    let mut loader = fs::read(bench().toolbox.root.join(esp::LOADER)).expect("the loader");
    let at =
        loader.windows(BEFORE.len()).position(|bytes| bytes == BEFORE).expect("its version") + BEFORE.len();
    loader[at..at + 3].copy_from_slice(version.as_bytes());
    loader
}

impl Default for Updates {
    fn default() -> Self {
        Self::new()
    }
}

/// Far from the clock of any machine that runs a story.
fn expires() -> Result<Expiries> {
    let at = "2100-01-01T00:00:00Z".parse().context("a time")?;
    Ok(ROLES.into_iter().map(|role| (role, at)).collect())
}
