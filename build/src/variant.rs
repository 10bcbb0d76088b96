//! A variant of the image: `images/NAME.toml`.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::fs;
use std::path::PathBuf;

use crate::project::Project;

/// What is in a variant. Unknown keys are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Variant {
    #[serde(skip)]
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Words of the kernel's command line, before those that name the root.
    pub kernel_parameters: Vec<String>,
    /// Services of `os/services`.
    pub services: Vec<String>,
    /// Containers to preload: names of images that the builder knows how to make.
    pub preload: Vec<String>,
    /// Which repository of updates a node trusts: its `metadata/1.root.json`, by its path in the sources. Without it, none.
    #[serde(default)]
    pub update_root: Option<PathBuf>,
    /// Further files of the root, and where they go in it: what a story changes of a version.
    #[serde(skip)]
    pub files: Vec<(PathBuf, String)>,
    pub partitions: Partitions,
}

/// Sizes of partitions, in whole MiB.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Partitions {
    pub esp: Mib,
    pub root: Mib,
    pub verity: Mib,
    pub state: Mib,
    /// At first; it grows to the end of the disk at boot.
    pub data: Mib,
}

/// A size written as `64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mib(pub u32);

impl Mib {
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl TryFrom<String> for Mib {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.strip_suffix("MiB")
            .and_then(|number| number.trim().parse().ok())
            .filter(|number| (1..=1 << 20).contains(number))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a size in MiB: write it as \"64MiB\""))
    }
}

impl Variant {
    pub fn load(project: &Project, name: &str) -> Result<Self> {
        let folder = project.sources.join("images");
        let path = folder.join(format!("{name}.toml"));
        let well_formed = !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !well_formed || !path.is_file() {
            let mut known: Vec<String> = fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned()))
                .collect();
            known.sort();
            bail!("there is no variant {name:?}: images/ has {}", known.join(", "));
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut variant: Self = toml::from_str(&text).with_context(|| format!("images/{name}.toml"))?;
        variant.name = name.to_owned();
        for service in &variant.services {
            let file = project.sources.join(format!("os/services/{service}.toml"));
            ensure!(file.is_file(), "images/{name}.toml: services: there is no os/services/{service}.toml");
        }
        variant.update_root = variant.update_root.map(|path| project.sources.join(path));
        Ok(variant)
    }
}
