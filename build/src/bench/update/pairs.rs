//! Pairs of images: each has one thing changed in a copy of the sources, and is built from there as any image is.
//!
//! A copy has a cache of its own beside its sources, so that the results of a bench push nothing out of the builder's. What is the
//! same in both is taken from the builder's cache.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts::Artifacts;
use crate::cache::{Cache, Key, files_below, remove_tree};
use crate::command::run_quiet;
use crate::image;
use crate::project::{Project, target_dir};
use crate::toolbox::LockPolicy;
use crate::variant::Variant;

pub(super) const OLD: &str = "1.0.0";
pub(super) const NEW: &str = "1.1.0";

/// Two images, one version after the other.
pub(super) struct Pair {
    pub name: &'static str,
    /// What changed, for people.
    pub what: &'static str,
    pub old: Artifacts,
    pub new: Artifacts,
}

/// What is different in a copy of the sources.
enum Change {
    /// One line of a file: what it is, and what it becomes.
    Line { file: &'static str, from: &'static str, to: &'static str },
    /// Crates of `Cargo.lock` at older versions.
    Older(&'static [(&'static str, &'static str)]),
    /// Files without some of their lines.
    Without(&'static [(&'static str, &'static [&'static str])]),
}

/// A fix that makes code longer, so that what follows moves: an answer that should pass is no longer taken as final.
const FIX: Change = Change::Line {
    file: "host-agent/src/update/fetch.rs",
    from: "            status if status.is_server_error() => {",
    to: "            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {",
};

/// Crates that are in several or all of the guest's programs, each a release or two before the one that is locked.
const OLDER: Change = Change::Older(&[
    ("bytes", "1.12.1"),
    ("libc", "0.2.190"),
    ("http", "1.4.2"),
    ("httparse", "1.10.0"),
    ("indexmap", "2.14.1"),
    ("itoa", "1.0.18"),
    ("log", "0.4.34"),
    ("memchr", "2.8.2"),
    ("mio", "1.2.4"),
    ("once_cell", "1.21.3"),
    ("rustix", "1.1.5"),
    ("rustls", "0.23.45"),
    ("rustls-webpki", "0.103.16"),
    ("serde_json", "1.0.153"),
    ("slab", "0.4.11"),
    ("smallvec", "1.16.5"),
    ("socket2", "0.6.4"),
    ("thiserror", "2.0.20"),
    ("tokio-util", "0.7.19"),
    ("url", "2.5.7"),
    ("winnow", "1.0.4"),
    ("zlib-rs", "0.6.7"),
]);

/// What one commit brought to the kernel's configuration: bonds, preferences of IPv6 routers, a log that survives a reset.
const KERNEL: Change = Change::Without(&[
    (
        "os/kernel/10-base.config",
        &[
            "# The last words of a kernel that panicked or was reset, in memory that a warm reset leaves alone: why a slot failed.",
            "CONFIG_PSTORE=y",
            "CONFIG_PSTORE_CONSOLE=y",
            "CONFIG_PSTORE_RAM=y",
        ],
    ),
    (
        "os/kernel/40-network.config",
        &[
            "CONFIG_IPV6_MULTIPLE_TABLES=y",
            "# Preferences and further routes in what IPv6 routers advertise (RFC 4191).",
            "CONFIG_IPV6_ROUTER_PREF=y",
            "CONFIG_IPV6_ROUTE_INFO=y",
            "# settings.network.interfaces with kind = \"bond\".",
            "CONFIG_BONDING=y",
        ],
    ),
]);

/// Steps that the change leaves alone and that take long.
const SHARED: &[&str] = &["toolbox", "youki", "ntpd", "netavark", "aardvark-dns", "nft"];

/// Builds what is missing of all pairs: at first that compiles the guest's programs three times and two kernels.
pub(super) fn build(project: &Project) -> Result<Vec<Pair>> {
    // First what the others share.
    let plain = |version| {
        let folder = folder(project, &format!("plain-{version}"));
        image_of(&Project { sources: project.sources.clone(), cache: project.cache.clone(), version }, folder)
    };
    let (old, new) = (plain(OLD)?, plain(NEW)?);
    let fix = changed(project, "fix", &FIX, NEW, &["kernel", "init", "apiserver"])?;
    let older = changed(project, "dependencies", &OLDER, OLD, &["kernel"])?;
    let other = changed(project, "kernel", &KERNEL, OLD, &["init", "apiserver", "host-agent"])?;
    Ok(vec![
        Pair { name: "fix", what: "one line of one program", old, new: fix },
        Pair { name: "dependencies", what: "22 crates of all programs", old: older, new: new.clone() },
        Pair { name: "kernel", what: "the kernel, with three features more", old: other, new },
    ])
}

fn folder(project: &Project, name: &str) -> PathBuf {
    target_dir(&project.sources).join("bench-update").join(name)
}

fn image_of(project: &Project, folder: PathBuf) -> Result<Artifacts> {
    let variant = Variant::load(project, "default")?;
    let artifacts = Artifacts::in_folder(folder, project);
    image::build_in(project, &variant, LockPolicy::Newest, artifacts)
}

/// The image of a copy of the sources. `same`: further steps that the change leaves alone.
fn changed(
    project: &Project,
    name: &str,
    change: &Change,
    version: &'static str,
    same: &[&str],
) -> Result<Artifacts> {
    eprintln!("  the image of {name}");
    let place = project.cache.scratch(&format!("bench-update-{name}"))?;
    let (sources, cache) = (place.join("sources"), place.join("cache"));
    let edits = change.edits(project)?;
    copy(&project.sources, &sources, &edits)?;
    fs::create_dir_all(&cache)?;
    for step in SHARED.iter().chain(same) {
        let link = cache.join(step);
        if !link.is_symlink() {
            symlink(project.cache.root().join(step), &link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    let copy = Project { sources, cache: Cache::at(&cache)?, version };
    image_of(&copy, folder(project, name))
}

impl Change {
    /// The files that are other than in the sources, by their names there.
    fn edits(&self, project: &Project) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let read = |file: &str| {
            fs::read_to_string(project.sources.join(file)).with_context(|| format!("cannot read {file}"))
        };
        let edits = match self {
            Self::Line { file, from, to } => vec![(*file, with_line(&read(file)?, from, Some(to))?)],
            Self::Older(crates) => vec![("Cargo.lock", older_lock(project, crates)?)],
            Self::Without(files) => {
                let without = |(file, lines): &(&'static str, &[&str])| {
                    let text =
                        lines.iter().try_fold(read(file)?, |text, line| with_line(&text, line, None))?;
                    Ok((*file, text))
                };
                files.iter().map(without).collect::<Result<_>>()?
            }
        };
        Ok(edits.into_iter().map(|(file, text)| (PathBuf::from(file), text.into_bytes())).collect())
    }
}

/// A text with another line, or none, in place of one that is there once.
fn with_line(text: &str, from: &str, to: Option<&str>) -> Result<String> {
    let count = text.lines().filter(|line| *line == from).count();
    ensure!(
        count == 1,
        "the line {from:?} is there {count} times: name another one in bench/update/pairs.rs"
    );
    let lines = text.lines().filter_map(|line| if line == from { to } else { Some(line) });
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// `Cargo.lock` with crates at older versions, as cargo makes it.
fn older_lock(project: &Project, crates: &[(&str, &str)]) -> Result<String> {
    let lock = project.sources.join("Cargo.lock");
    let mut key = Key::new("bench lock 1").file(&lock)?;
    for (name, version) in crates {
        key = key.text(name).text(version);
    }
    let entry = project.cache.step("bench-lock", "older versions of crates", key, |out| {
        let tree = out.join("tree");
        copy(&project.sources, &tree, &BTreeMap::new())?;
        for (name, version) in crates {
            let locked = locked_version(&fs::read_to_string(tree.join("Cargo.lock"))?, name, version)
                .with_context(|| format!("Cargo.lock has no {name}: take it out of bench/update/pairs.rs"))?;
            let mut cargo = Command::new("cargo");
            cargo.args(["update", "--quiet", "--package", &format!("{name}@{locked}"), "--precise", version]);
            run_quiet(cargo.current_dir(&tree), &format!("locking {name} {version} instead of {locked}"))?;
        }
        fs::copy(tree.join("Cargo.lock"), out.join("Cargo.lock"))?;
        remove_tree(&tree)
    })?;
    Ok(fs::read_to_string(entry.path.join("Cargo.lock"))?)
}

/// The locked version of a crate that `wanted` could stand in for: the same up to the first number that is not zero.
fn locked_version(lock: &str, name: &str, wanted: &str) -> Option<String> {
    let compatible = |version: &str| {
        let of = |version: &str| -> Vec<String> {
            let numbers: Vec<String> = version.split('.').map(str::to_owned).collect();
            let end = numbers.iter().position(|number| number != "0").map_or(numbers.len(), |at| at + 1);
            numbers.into_iter().take(end).collect()
        };
        of(version) == of(wanted)
    };
    let lock: toml::Value = toml::from_str(lock).ok()?;
    let packages = lock.get("package")?.as_array()?;
    packages.iter().find_map(|package| {
        let version = package.get("version")?.as_str()?;
        (package.get("name")?.as_str()? == name && compatible(version)).then(|| version.to_owned())
    })
}

/// Makes `to` a copy of the sources with some files changed. What is as it should be already is left alone: cargo goes by times.
fn copy(from: &Path, to: &Path, edits: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let mut wanted: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for file in files_below(from)? {
        let name = file.strip_prefix(from)?;
        // Keys for Secure Boot stay where they are, and are found there.
        if !name.starts_with(".git") && !name.starts_with("keys") {
            wanted.insert(name.to_owned(), fs::read(&file)?);
        }
    }
    wanted.extend(edits.clone());
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for file in files_below(to)? {
        if !wanted.contains_key(file.strip_prefix(to)?) {
            fs::remove_file(&file)?;
        }
    }
    for (name, data) in wanted {
        let file = to.join(&name);
        if fs::read(&file).is_ok_and(|known| known == data) {
            continue;
        }
        fs::create_dir_all(file.parent().unwrap_or(to))?;
        fs::write(&file, data).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let keys = to.join("keys");
    match fs::remove_file(&keys) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ if from.join("keys").is_dir() => symlink(from.join("keys"), keys)?,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use update::manifest::Version;

    #[test]
    fn each_change_fits_the_sources_of_now() {
        let sources = crate::project::sources().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let project = Project { sources: sources.clone(), cache, version: OLD };
        let edits = FIX.edits(&project).unwrap();
        let (file, text) = edits.first_key_value().unwrap();
        let (text, was) =
            (String::from_utf8(text.clone()).unwrap(), fs::read_to_string(sources.join(file)).unwrap());
        assert_eq!(text.lines().zip(was.lines()).filter(|(new, old)| new != old).count(), 1);
        let Change::Older(crates) = OLDER else { panic!("other crates") };
        let lock = fs::read_to_string(sources.join("Cargo.lock")).unwrap();
        for (name, version) in crates {
            let locked = locked_version(&lock, name, version);
            let locked: Version = locked.unwrap_or_else(|| panic!("no {name}")).parse().unwrap();
            assert!(version.parse::<Version>().unwrap() < locked, "{name} {version}");
        }
        for (file, text) in KERNEL.edits(&project).unwrap() {
            assert!(text.len() < fs::read(sources.join(file)).unwrap().len());
        }
    }

    #[test]
    fn a_copy_follows_its_original_and_touches_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        fs::create_dir_all(from.join("keys")).unwrap();
        for name in ["a/same", "a/edited", "gone", "keys/db.key"] {
            fs::write(from.join(name), name).unwrap();
        }
        copy(&from, &to, &BTreeMap::new()).unwrap();
        let written = fs::metadata(to.join("a/same")).unwrap().modified().unwrap();
        fs::remove_file(from.join("gone")).unwrap();
        let edits = BTreeMap::from([("a/edited".into(), b"new".to_vec()), ("b/more".into(), b"x".to_vec())]);
        copy(&from, &to, &edits).unwrap();
        let names = files_below(&to).unwrap();
        let names: Vec<_> =
            names.iter().map(|name| name.strip_prefix(&to).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a/edited", "a/same", "b/more"]);
        assert_eq!(fs::read(to.join("a/edited")).unwrap(), b"new");
        assert_eq!(fs::metadata(to.join("a/same")).unwrap().modified().unwrap(), written);
        // No second copy of what is secret.
        assert!(to.join("keys").is_symlink());
    }
}
