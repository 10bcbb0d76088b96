//! Which crates are compiled into a program, and under which licences: asked of cargo, with hashes from the lock file.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cache::hex;
use crate::command::run_quiet;

/// A crate in a program of the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Crate {
    pub name: String,
    pub version: String,
    /// SHA-256 of the published archive; none for our own.
    pub sha256: Option<String>,
    /// SPDX expression, as the crate declares it.
    pub licence: Option<String>,
    /// Licence texts that the crate carries: names in the folder of texts.
    pub texts: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: std::path::PathBuf,
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The crates that the packages `roots` of the workspace in `folder` link; `arguments` select features. Licence texts are
/// written to `texts`, each under the first half of its hash.
pub fn collect(folder: &Path, roots: &[&str], arguments: &[&str], texts: &Path) -> Result<Vec<Crate>> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", crate::guest::TARGET])
        .args(arguments);
    let output = run_quiet(cargo.current_dir(folder), "asking cargo which crates are used")?;
    let metadata: Metadata =
        serde_json::from_slice(&output).context("cargo metadata gave something unexpected")?;
    let lock: Lock =
        toml::from_str(&fs::read_to_string(folder.join("Cargo.lock"))?).context("Cargo.lock is not valid")?;
    let checksums: BTreeMap<(&str, &str), &str> = lock
        .package
        .iter()
        .filter_map(|package| {
            Some(((package.name.as_str(), package.version.as_str()), package.checksum.as_deref()?))
        })
        .collect();
    fs::create_dir_all(texts)?;
    let linked = linked(&metadata, roots);
    let mut crates = Vec::new();
    for package in metadata.packages.iter().filter(|package| linked.contains(package.id.as_str())) {
        crates.push(Crate {
            name: package.name.clone(),
            version: package.version.clone(),
            sha256: checksums
                .get(&(package.name.as_str(), package.version.as_str()))
                .map(|sum| (*sum).to_owned()),
            licence: package.license.clone(),
            texts: match (&package.source, package.manifest_path.parent()) {
                (Some(_), Some(folder)) => copy_texts(folder, texts)?,
                _ => Vec::new(),
            },
        });
    }
    crates.sort();
    Ok(crates)
}

/// Follows what is linked: neither build scripts, nor tests, nor procedural macros, which run in the compiler.
fn linked<'a>(metadata: &'a Metadata, roots: &[&str]) -> BTreeSet<&'a str> {
    let macros: BTreeSet<&str> = metadata
        .packages
        .iter()
        .filter(|package| {
            package.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
        })
        .map(|package| package.id.as_str())
        .collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut open: Vec<&str> = metadata
        .packages
        .iter()
        .filter(|package| roots.contains(&package.name.as_str()))
        .map(|package| package.id.as_str())
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if macros.contains(id) || !seen.insert(id) {
            continue;
        }
        let normal = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        open.extend(
            nodes
                .get(id)
                .into_iter()
                .flat_map(|node| node.deps.iter().filter(normal))
                .map(|dep| dep.pkg.as_str()),
        );
    }
    seen
}

fn copy_texts(folder: &Path, texts: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let is_licence = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"]
            .iter()
            .any(|start| name.starts_with(start));
        if !is_licence || !entry.file_type()?.is_file() {
            continue;
        }
        let data = fs::read(entry.path())?;
        let name = format!("{}.txt", &hex(&Sha256::digest(&data))[..16]);
        fs::write(texts.join(&name), data)?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}
