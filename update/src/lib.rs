//! What an update is made of, apart from files, network and time: the host's builder publishes it, the guest's agent applies it.
//!
//! A new root comes in one of three ways ([`choose`]): as a [`patch`] of the running root, as the [`blocks`] that the running root
//! does not have, or whole. Whatever the way, the [`verity`] tree is made from what was written, and its root hash must be the
//! signed one.

pub mod blocks;
pub mod choose;
pub mod chunks;
pub mod file;
pub mod frame;
pub mod manifest;
pub mod offer;
pub mod patch;
pub mod verity;
pub mod waves;

use std::io;

/// Reads at an offset. The running root, which is known bit by bit: its reads are verified by the kernel.
pub trait ReadAt {
    /// Fills `buffer` from `offset` (bytes) on.
    ///
    /// # Errors
    ///
    /// The medium's, and `UnexpectedEof` when it ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}
