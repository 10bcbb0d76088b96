//! Files as a tar stream, as `apiclient container cp` carries them: from a container to here, and from here into a container. Each end
//! may be hostile to the other one, and the tree that is read may change while it is read. So names are resolved by the kernel, folder by
//! folder; no link is followed but those of the path that a person named; no device and no pipe is opened; and however many files there
//! are, however large, memory is bounded.

pub mod gate;
pub mod pack;
pub mod unpack;

#[cfg(test)]
mod tests;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Folders within each other that are carried.
const DEEPEST: usize = 128;

/// What was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// With links; without folders.
    pub files: u64,
    pub bytes: u64,
}

/// This process's descriptors, by their numbers: what was looked at can be opened by these, and nothing that has taken its place. Works
/// on in a container's root, whose `/proc` is another.
pub struct Descriptors(OwnedFd);

impl Descriptors {
    pub fn open() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open("/proc/self/fd", flags, Mode::empty())?))
    }

    /// Opens for reading what `file` was opened for nothing (O_PATH).
    fn read(&self, file: &OwnedFd) -> io::Result<std::fs::File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, file.as_raw_fd().to_string().as_str(), flags, Mode::empty())?.into())
    }
}

fn kind(mode: nix::libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

/// Names come from who is not trusted, and errors go to terminals.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path:?}: {error}"))
}
