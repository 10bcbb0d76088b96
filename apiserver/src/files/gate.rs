//! Lets the tar library read one entry, and of what lies between two entries no more than memory can take: long names and attributes (GNU
//! tar's, PAX) of a file are read whole.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use tar::{Entry, EntryType};

/// Bytes of the long names and attributes of one file.
const LARGEST_EXTENSIONS: u64 = 1 << 20;

pub struct Gate<R> {
    from: R,
    at: Rc<Cell<u64>>,
    until: Rc<Cell<u64>>,
}

/// Who opens it.
pub struct Keeper {
    at: Rc<Cell<u64>>,
    until: Rc<Cell<u64>>,
}

impl<R: Read> Gate<R> {
    pub fn new(from: R) -> (Self, Keeper) {
        let (at, until) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(LARGEST_EXTENSIONS)));
        let keeper = Keeper { at: at.clone(), until: until.clone() };
        (Self { from, at, until }, keeper)
    }
}

impl Keeper {
    /// An entry has been found: from here on its content may be read, and what leads to the next one.
    pub fn open<R: Read>(&self, entry: &Entry<'_, R>) -> io::Result<()> {
        // A sparse file's size is not that of what is in the archive.
        let is_sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let content = if is_sparse { entry.header().entry_size()? } else { entry.size() };
        self.until.set(self.at.get().saturating_add(content).saturating_add(LARGEST_EXTENSIONS));
        Ok(())
    }
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.get().saturating_sub(self.at.get());
        if left == 0 {
            let reason =
                format!("the names and attributes of a file are larger than {LARGEST_EXTENSIONS} bytes");
            // Trying again does not help.
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.from.read(&mut buffer[..most])?;
        self.at.set(self.at.get() + read as u64);
        Ok(read)
    }
}
