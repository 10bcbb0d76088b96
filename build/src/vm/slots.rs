//! Which slot a machine without firmware boots: what a VMM does that loads the kernel itself, by the loader's rule (`boot_choice`).

use anyhow::{Context, Result};
use boot_choice::{Entry, FileName, choose};
use std::path::Path;

use crate::command::run_quiet;
use crate::inspect::Disk;
use crate::toolbox::Toolbox;
use crate::uki;

const FOLDER: &str = "/EFI/Linux";

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// A bzImage.
    pub kernel: Vec<u8>,
    pub cmdline: String,
}

/// Chooses, and counts the try in the entry's name before anything runs: a boot that never ends has used it up. None when no entry
/// of the ESP can boot.
pub fn take(toolbox: &Toolbox, path: &Path) -> Result<Option<Chosen>> {
    let disk = Disk::open(path)?;
    let mut entries = Vec::new();
    for node in disk.files("esp")? {
        let name = node.path.strip_prefix(FOLDER).and_then(|name| name.strip_prefix('/'));
        let Some(name) = name.and_then(FileName::parse) else { continue };
        let image = disk.read("esp", &node.path)?;
        // A file that is no kernel image is not listed by the loader either.
        let Ok(release) = uki::section(&image, ".osrel") else { continue };
        entries.extend(Entry::new(name, &String::from_utf8_lossy(release)));
    }
    let Some(chosen) = choose(&entries) else { return Ok(None) };
    let old = chosen.name.as_str();
    let image = disk.read("esp", &format!("{FOLDER}/{old}"))?;
    if let Some(new) = chosen.name.tried().filter(|new| *new != chosen.name) {
        let esp = format!("{}@@{}", path.display(), disk.partition("esp")?.start);
        let mut rename = toolbox.command("mren");
        rename.args(["-i", &esp]).args([old, new.as_str()].map(|name| format!("::{FOLDER}/{name}")));
        run_quiet(&mut rename, &format!("counting a try of {old}"))?;
    }
    let text = |section| uki::section(&image, section).with_context(|| format!("{old} has no {section}"));
    let cmdline = String::from_utf8_lossy(text(".cmdline")?).trim().to_owned();
    Ok(Some(Chosen { kernel: text(".linux")?.to_vec(), cmdline }))
}
