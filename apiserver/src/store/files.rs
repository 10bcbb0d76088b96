//! What the store asks of a file system: small enough for a test to cut the power between any two steps.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// No document of ours is larger; a larger file is not read whole.
const LARGEST: u64 = 4 << 20;

/// One folder. What was written, renamed or removed may be lost by a power cut, each for itself and in any order, until the file
/// (its content) or the folder (names) was flushed.
pub trait Files: Debug {
    /// A file that was written.
    type Written;

    /// For people.
    fn path(&self, name: &str) -> PathBuf;
    fn names(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file, or replaces what is in it.
    fn write(&self, name: &str, data: &[u8]) -> io::Result<Self::Written>;
    /// When it returns, what the file holds survives a power cut; its name may not.
    fn flush(&self, file: &Self::Written) -> io::Result<()>;
    /// When it returns, the names of the folder survive a power cut.
    fn flush_folder(&self) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A folder of the real file system.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Files for Folder {
    type Written = File;

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        File::open(self.path(name))?.take(LARGEST).read_to_end(&mut data)?;
        Ok(data)
    }

    fn write(&self, name: &str, data: &[u8]) -> io::Result<File> {
        let mut file = File::create(self.path(name))?;
        file.write_all(data)?;
        Ok(file)
    }

    fn flush(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn flush_folder(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }
}
