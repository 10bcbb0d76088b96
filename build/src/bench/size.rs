//! `cargo caisson bench size`: bytes of what is shipped, and of what is in the root.

use anyhow::Result;
use serde::Serialize;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Goal, goals_table};
use crate::artifacts::Artifacts;
use crate::inspect::{Disk, Kind};
use crate::report;

const MIB: f64 = 1_048_576.0;
/// Files of the root that the table names.
const LARGEST: usize = 12;

/// What the image may weigh, in bytes.
pub const UKI_LIMIT: u64 = 7 << 20;
pub const ROOT_LIMIT: u64 = 40 << 20;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sizes {
    pub bench: &'static str,
    pub variant: String,
    /// Of each artifact: bytes, and bytes as stored (without holes).
    pub files: Vec<FileSize>,
    /// The largest files of the root.
    pub root: Vec<(String, u64)>,
    pub goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
pub struct FileSize {
    pub name: String,
    pub bytes: u64,
    pub stored: u64,
}

pub fn measure(artifacts: &Artifacts, variant: &str) -> Result<Sizes> {
    let files = [
        artifacts.uki(),
        artifacts.vmlinux(),
        artifacts.root(),
        artifacts.verity(),
        artifacts.disk(),
        artifacts.qcow2(),
    ]
    .iter()
    .map(|path| size(path))
    .collect::<Result<Vec<_>>>()?;
    let mut root: Vec<(String, u64)> = Disk::open(&artifacts.disk())?
        .files("root-a")?
        .into_iter()
        .filter_map(|node| match node.kind {
            Kind::File(bytes) => Some((node.path, bytes)),
            _ => None,
        })
        .collect();
    root.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    root.truncate(LARGEST);
    let mib = |path: &Path| -> Result<f64> { Ok(fs::metadata(path)?.len() as f64 / MIB) };
    let goals = vec![
        Goal::new("UKI, MiB", mib(&artifacts.uki())?, UKI_LIMIT as f64 / MIB),
        Goal::new("root, MiB", mib(&artifacts.root())?, ROOT_LIMIT as f64 / MIB),
    ];
    Ok(Sizes { bench: "size", variant: variant.to_owned(), files, root, goals })
}

fn size(path: &Path) -> Result<FileSize> {
    let metadata = fs::metadata(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // st_blocks counts 512 bytes, whatever the file system's block is (stat(2)).
    Ok(FileSize { name, bytes: metadata.len(), stored: metadata.blocks() * 512 })
}

pub fn table(sizes: &Sizes) -> String {
    let mut text = format!("{:<28} {:>12} {:>12}\n", "FILE", "BYTES", "AS STORED");
    for file in &sizes.files {
        text.push_str(&format!("{:<28} {:>12} {:>12}\n", file.name, file.bytes, file.stored));
    }
    text.push_str("\nthe largest files of the root\n");
    for (path, bytes) in &sizes.root {
        text.push_str(&format!("{:>12}  {path}\n", report::bytes(*bytes)));
    }
    text.push('\n');
    text + &goals_table(&sizes.goals)
}
