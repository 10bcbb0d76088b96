//! Files that others read while we write them: the old content or the new, never half.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file. Not flushed: for files in memory (`/run`).
pub fn replace(path: &Path, data: &[u8]) -> io::Result<()> {
    write_and_rename(path, data, false)
}

/// Replaces a file; it survives a power cut when this returns.
pub fn replace_durably(path: &Path, data: &[u8]) -> io::Result<()> {
    write_and_rename(path, data, true)
}

fn write_and_rename(path: &Path, data: &[u8], durably: bool) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(data)?;
    if durably {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    if durably { File::open(folder)?.sync_all() } else { Ok(()) }
}
