//! From what `cargo caisson image` built to what a repository offers.

use anyhow::{Context, Result, anyhow, ensure};
use jiff::{Span, SpanRelativeTo, Timestamp, Unit};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use update::chunks;
use update::file;
use update::manifest::{File, Hash, Name, Patch, Root, Size, Uki, Update, Version};
use update::patch;
use update::verity;
use update::waves::{self, Step, Waves};

use super::metadata::Repository;
use crate::artifacts::uki_name;
use crate::cache::{Key, sha256_file};
use crate::project::Project;

/// What is read of `manifest.json` in a folder of artefacts.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Built {
    variant: String,
    version: String,
    arch: String,
    root_hash: String,
    files: BTreeMap<String, BuiltFile>,
}

#[derive(Deserialize)]
struct BuiltFile {
    bytes: u64,
    sha256: String,
}

/// What was added.
pub struct Added {
    pub(super) variant: Name,
    pub(super) arch: Name,
    version: Version,
    root: u64,
    full: u64,
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variant, arch, version, root, full } = self;
        write!(f, "{variant} {version} on {arch}: a root of {root} bytes, {full} of them to download at most")
    }
}

/// Copies a version's files from `folder`, where `cargo caisson image` left them, into the repository, and lists it, with patches
/// from the newest `patches` versions before it. A version that is there already is refused: nodes have it. What is packed is kept in the
/// cache of the project, if there is one.
pub fn add(
    repository: &mut Repository,
    folder: &Path,
    waves: Option<Waves>,
    scratch: &Path,
    patches: usize,
    kept: Option<&Project>,
) -> Result<Added> {
    let path = folder.join("manifest.json");
    let text = fs::read(&path).with_context(|| {
        format!("cannot read {}: `cargo caisson image` builds what is to be published", path.display())
    })?;
    let built: Built = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let told = |error: String| anyhow!("{}: {error}", path.display());
    let variant: Name = built.variant.parse().map_err(told)?;
    let arch: Name = built.arch.parse().map_err(told)?;
    let version: Version = built.version.parse().map_err(told)?;
    let root_hash: Hash = built.root_hash.parse().map_err(told)?;
    let known = repository.manifest.line(variant.as_str(), arch.as_str());
    let is_known = known.is_some_and(|line| line.updates.iter().any(|update| update.version == version));
    ensure!(
        !is_known,
        "the repository has {variant} {version} on {arch} already; nodes may have installed it, so publish a new version instead"
    );
    // The builder's files carry the builder's version; it is the same but for tests.
    let uki_file = built.files.keys().find(|name| name.ends_with(".efi")).cloned();
    let uki_file = uki_file.with_context(|| format!("{} has no UKI", path.display()))?;
    let file = |name: &str| -> Result<(PathBuf, u64, Hash)> {
        let said = built.files.get(name).with_context(|| format!("{} has no {name}", path.display()))?;
        let file = folder.join(name);
        ensure!(
            sha256_file(&file)? == said.sha256,
            "{} is not what was built: run `cargo caisson image` again",
            file.display()
        );
        Ok((file, said.bytes, said.sha256.parse().map_err(told)?))
    };
    let base = format!("caisson-{variant}-{arch}-{version}");
    let offer = |repository: &mut Repository, from: &Path, ending: &str| -> Result<File> {
        let name = format!("{base}{ending}");
        repository.add_target(&name, from)?;
        let size = Size::try_from(fs::metadata(from)?.len()).map_err(anyhow::Error::msg)?;
        Ok(File { target: name.parse().map_err(anyhow::Error::msg)?, size })
    };
    let (root, root_size, root_sha256) = file("root.erofs")?;
    let (tree, _, _) = file("root.verity")?;
    let (uki, _, sha256) = file(&uki_file)?;
    let root = fs::read(&root).with_context(|| format!("cannot read {}", root.display()))?;
    let made = scratch.join("made");
    let what = format!("packing a root of {} MiB", root_size >> 20);
    fs::write(&made, packed(kept, "packed-root", &what, &[root_sha256], || chunks::make(&root))?)?;
    let full = offer(repository, &made, ".root.zst")?;
    fs::write(&made, leaves(&tree, root_size)?)?;
    let leaves = offer(repository, &made, ".root.leaves")?;
    let image = fs::read(&uki).with_context(|| format!("cannot read {}", uki.display()))?;
    let (mut root_patches, mut uki_patches) = (Vec::new(), Vec::new());
    for base in bases(repository, &variant, &arch, &version, patches)? {
        let older = &base.version;
        let (what, hashes) = (format!("a patch from {older}"), [base.root_hash, root_hash, root_sha256]);
        let make = || patch::make((&base.root, base.root_hash.0), (&root, root_hash.0));
        let patch = packed(kept, "root-patch", &what, &hashes, make);
        if let Some(patch) = worth_it(patch, full.size.bytes(), &format!("root from that of {older}")) {
            fs::write(&made, patch)?;
            let File { target, size } = offer(repository, &made, &format!(".from-{older}.patch"))?;
            root_patches.push(Patch { from: base.root_hash, target, size });
        }
        let (patch, whole) = (file::make(&base.uki, &image), image.len() as u64);
        if let Some(patch) = worth_it(patch, whole, &format!("kernel image from that of {older}")) {
            fs::write(&made, patch)?;
            let File { target, size } = offer(repository, &made, &format!(".efi.from-{older}.patch"))?;
            uki_patches.push(Patch { from: base.uki_hash, target, size });
        }
    }
    let File { target, size } = offer(repository, &uki, ".efi")?;
    let name = uki_name(&version.to_string()).parse().map_err(anyhow::Error::msg)?;
    let added = Added {
        variant: variant.clone(),
        arch: arch.clone(),
        version: version.clone(),
        root: root_size,
        full: full.size.bytes(),
    };
    let root_size = Size::try_from(root_size).map_err(anyhow::Error::msg)?;
    let update = Update::new(
        version,
        Root::new(root_hash, root_size, full, Some(leaves), root_patches),
        Uki { name, target, size, sha256, patches: uki_patches },
        waves,
    );
    repository.manifest.line_mut(&variant, &arch).updates.push(update);
    Ok(added)
}

/// The hashes of a root's blocks, from the lowest level of its verity tree.
fn leaves(tree: &Path, root_size: u64) -> Result<Vec<u8>> {
    let tree = fs::read(tree).with_context(|| format!("cannot read {}", tree.display()))?;
    let blocks = root_size / verity::BLOCK as u64;
    let start = usize::try_from(verity::leaves_offset(blocks))?;
    let end = start + usize::try_from(blocks)? * verity::HASH;
    Ok(tree.get(start..end).context("the verity tree is shorter than its root says")?.to_vec())
}

/// What `make` makes of roots that are known by these hashes, from the project's cache when it was made before: this takes most of the
/// time of publishing, and stories publish the same roots again and again.
fn packed<E: std::error::Error + Send + Sync + 'static>(
    kept: Option<&Project>,
    step: &str,
    what: &str,
    of: &[Hash],
    make: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>> {
    let Some(project) = kept else { return Ok(make()?) };
    // By what it is made: our sources, and the crates that they use.
    let mut key = Key::new("packed 1").tree(&project.sources.join("update/src"))?;
    key = key.file(&project.sources.join("Cargo.lock"))?;
    for hash in of {
        key = key.text(&hash.to_string());
    }
    let entry = project.cache.step(step, what, key, |out| Ok(fs::write(out.join("packed"), make()?)?))?;
    let path = entry.path.join("packed");
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A patch that brings less than `whole` bytes.
fn worth_it(patch: Result<Vec<u8>, impl fmt::Display>, whole: u64, what: &str) -> Option<Vec<u8>> {
    match patch {
        Ok(patch) if (patch.len() as u64) < whole => return Some(patch),
        Ok(_) => eprintln!("  a patch of the {what} would be larger than the whole: left out"),
        Err(error) => eprintln!("  no patch of the {what}: {error:#}"),
    }
    None
}

/// What patches are made from.
struct Base {
    version: Version,
    root_hash: Hash,
    root: Vec<u8>,
    uki_hash: Hash,
    uki: Vec<u8>,
}

/// The newest `count` versions below `version`.
fn bases(
    repository: &Repository,
    variant: &Name,
    arch: &Name,
    version: &Version,
    count: usize,
) -> Result<Vec<Base>> {
    let line = repository.manifest.line(variant.as_str(), arch.as_str());
    let mut older: Vec<&Update> =
        line.iter().flat_map(|line| &line.updates).filter(|update| update.version < *version).collect();
    older.sort_by(|a, b| b.version.cmp(&a.version));
    let unpacked = |update: &&Update| -> Result<Base> {
        let target = update.root.full.target.as_str();
        let file = repository.read_target(target)?;
        let root = unpack(&file, update.root.size.bytes()).with_context(|| target.to_owned())?;
        Ok(Base {
            version: update.version.clone(),
            root_hash: update.root.hash,
            root,
            uki_hash: update.uki.sha256,
            uki: repository.read_target(update.uki.target.as_str())?,
        })
    };
    older.iter().take(count).map(unpacked).collect()
}

fn unpack(file: &[u8], root_size: u64) -> Result<Vec<u8>> {
    let head = file.first_chunk().context("it is too short to be a root in chunks")?;
    let index = chunks::Index::parse(
        file.get(..chunks::Index::size(head, root_size)?).context("it is shorter than its index")?,
    )?;
    let (mut root, mut content) = (Vec::with_capacity(usize::try_from(root_size)?), Vec::new());
    for chunk in 0..index.chunks() {
        let place = index.place(chunk..chunk + 1).context("a chunk without a place")?;
        let packed = file.get(usize::try_from(place.start)?..usize::try_from(place.end)?);
        index.unpack(chunk, packed.context("it is shorter than its chunks")?, &mut content)?;
        root.extend_from_slice(&content);
    }
    Ok(root)
}

/// No longer lists a version, nor its files.
pub(super) fn remove(
    repository: &mut Repository,
    variant: &Name,
    arch: &Name,
    version: &Version,
) -> Result<()> {
    let line = repository.manifest.line_mut(variant, arch);
    let index = line.updates.iter().position(|update| update.version == *version);
    let index = index.with_context(|| {
        let known: Vec<String> = line.updates.iter().map(|update| update.version.to_string()).collect();
        format!("the repository has no {variant} {version} on {arch}; it has {}", known.join(", "))
    })?;
    let update = line.updates.remove(index);
    let targets: Vec<Name> = update.targets().cloned().collect();
    targets.iter().try_for_each(|target| repository.remove_target(target.as_str()))
}

/// A file of waves, as Bottlerocket writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Schedule {
    waves: Vec<ScheduledWave>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScheduledWave {
    start_after: String,
    fleet_percentage: u32,
}

impl Schedule {
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    pub(super) fn waves(&self, start: Timestamp) -> Result<Waves> {
        let step = |wave: &ScheduledWave| -> Result<Step> {
            let wrong = || format!("{:?} is no time, such as \"4 hours\" or \"1 day\"", wave.start_after);
            let span: Span = wave.start_after.parse().with_context(wrong)?;
            let days = SpanRelativeTo::days_are_24_hours();
            let seconds = span.total((Unit::Second, days)).with_context(wrong)?;
            // Whole by far: a float has 53 bits.
            #[allow(clippy::cast_possible_truncation)]
            Ok(Step { seconds: seconds as i64, percent: wave.fleet_percentage })
        };
        let steps = self.waves.iter().map(step).collect::<Result<Vec<_>>>()?;
        waves::schedule(start, &steps).map_err(|error| anyhow!("the waves: {error}"))
    }
}
