//! Files that others read while we write them: the old content or the new, never half.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file. Not flushed: for files in memory (`/run`).
pub fn replace(path: &Path, data: &[u8]) -> io::Result<()> {
    write_and_rename(path, data, 0o666, false)
}

/// The same for what nobody but root is to read.
pub fn replace_secretly(path: &Path, data: &[u8]) -> io::Result<()> {
    write_and_rename(path, data, 0o600, false)
}

/// Replaces a file; it survives a power cut when this returns.
pub fn replace_durably(path: &Path, data: &[u8]) -> io::Result<()> {
    write_and_rename(path, data, 0o666, true)
}

/// Reads a file of at most `largest` bytes; one that is larger is an error.
pub fn read_bounded(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)?.take(largest.saturating_add(1)).read_to_end(&mut data)?;
    if data.len() as u64 > largest {
        return Err(io::Error::other(format!("it has more than {largest} bytes")));
    }
    Ok(data)
}

/// `mode`: of a file that is made, less what the process's own mask takes.
fn write_and_rename(path: &Path, data: &[u8], mode: u32, durably: bool) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.new"));
    // What was left there may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(data)?;
    if durably {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    if durably { File::open(folder)?.sync_all() } else { Ok(()) }
}
