//! Where things are: the sources, the cache, the version.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

use crate::cache::Cache;

/// Every time stamp in what is built: 2026-11-01 00:00:00 UTC. Moves with releases, not with the clock.
pub const SOURCE_DATE_EPOCH: u64 = 1_793_491_200;

pub struct Project {
    /// The root of the workspace.
    pub sources: PathBuf,
    pub cache: Cache,
    pub version: &'static str,
}

impl Project {
    pub fn open() -> Result<Self> {
        Ok(Self { sources: sources()?, cache: Cache::open()?, version: env!("CARGO_PKG_VERSION") })
    }

    /// Where a variant's finished files are.
    pub fn artifacts(&self, variant: &str) -> PathBuf {
        target_dir(&self.sources).join("caisson").join(variant)
    }

    pub fn log(&self, step: &str) -> PathBuf {
        self.cache.root().join("logs").join(format!("{step}.log"))
    }
}

/// The workspace that this program was built from.
pub fn sources() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().context("the build crate is not inside a workspace")?;
    anyhow::ensure!(
        root.join("Cargo.toml").is_file(),
        "the sources that `cargo caisson` was built from are gone from {}: run it from a clone",
        root.display()
    );
    Ok(root.to_owned())
}

/// `target`, or what `CAISSON_TARGET` says. Not `CARGO_TARGET_DIR`: that is where cargo keeps its own results.
pub fn target_dir(sources: &Path) -> PathBuf {
    match std::env::var_os("CAISSON_TARGET") {
        Some(dir) => PathBuf::from(dir),
        None => sources.join("target"),
    }
}
