//! The entries of a layer's tar archive, with the manners in which archivers say long names, attributes and holes of files.
//!
//! The parser keeps nothing between two entries and reads nothing by itself: how much of an archive is in memory is decided here.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use tar_core::EntryType;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

/// Long names, attributes and the list of holes of one file. They are whole in memory.
const LARGEST_EXTENSIONS: usize = 1 << 20;
/// Beside those, the headers around them.
const LARGEST_HEAD: usize = LARGEST_EXTENSIONS + (64 << 10);
const MOST_PIECES: usize = 10_000;
const BLOCK: u64 = 512;

/// An archive that is read from its start to its end.
pub struct Archive<R> {
    layer: R,
    parser: Parser,
    head: Vec<u8>,
    /// What follows of the entry that was told last, with what fills its last block.
    left: u64,
    padding: u64,
}

/// What an archive says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryType,
    /// As it is in the archive: it may lead anywhere.
    pub path: PathBuf,
    pub target: Option<OsString>,
    /// With the kind of the file, or without it.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes.
    pub attributes: Vec<(OsString, Vec<u8>)>,
    /// Of a file with holes.
    pub pieces: Option<Pieces>,
}

/// Where in a file its content is; the rest is zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// Offset and length, in their order, one after the other.
    all: Vec<(u64, u64)>,
    size: u64,
}

impl Pieces {
    /// `stored` is how many bytes the archive has of them.
    fn new(all: Vec<(u64, u64)>, size: u64, stored: u64) -> io::Result<Self> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &all {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| refused("a file's pieces are not in their order"))?;
            // Not more than `end`.
            sum += length;
        }
        if sum != stored {
            return Err(refused("a file's pieces are not as large as what is there of them"));
        }
        Ok(Self { all, size })
    }
}

impl<R: Read> Archive<R> {
    pub fn new(layer: R) -> Self {
        let limits = Limits {
            max_metadata_size: LARGEST_EXTENSIONS as u32,
            max_sparse_entries: MOST_PIECES,
            ..Limits::default()
        };
        let mut parser = Parser::new(limits);
        // Builders write times before 1970.
        parser.set_ignore_pax_errors(true);
        Self { layer, parser, head: Vec::new(), left: 0, padding: 0 }
    }

    /// The next entry; what was not read of the one before is passed over. An archive that just stops between two entries ends there.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.layer.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(cut_short());
        }
        self.head.clear();
        loop {
            let wanted = match self.parser.parse(&self.head).map_err(refused)? {
                ParseEvent::NeedData { min_bytes } => min_bytes.max(self.head.len() + BLOCK as usize),
                ParseEvent::Entry { entry, .. } => {
                    let (told, size) = (told(&entry, None), entry.size);
                    self.follows(size)?;
                    return Ok(Some(told));
                }
                ParseEvent::SparseEntry { entry, sparse_map, real_size, .. } => {
                    let size = entry.size;
                    let all = sparse_map.iter().map(|piece| (piece.offset, piece.length)).collect();
                    let told = told(&entry, Some(Pieces::new(all, real_size, size)?));
                    self.follows(size)?;
                    return Ok(Some(told));
                }
                // Of all entries that follow: no builder of images writes such.
                ParseEvent::GlobalExtensions { .. } => {
                    self.head.clear();
                    BLOCK as usize
                }
                ParseEvent::End { .. } => return Ok(None),
            };
            if !self.read_head(wanted)? {
                return Ok(None);
            }
        }
    }

    /// False at the end of the archive.
    fn read_head(&mut self, wanted: usize) -> io::Result<bool> {
        if wanted > LARGEST_HEAD {
            return Err(refused("the names and attributes of a file are too large"));
        }
        let more = (wanted - self.head.len()) as u64;
        let read = self.layer.by_ref().take(more).read_to_end(&mut self.head)?;
        if read as u64 == more {
            return Ok(true);
        }
        // One block of zeros, or none, where there ought to be two.
        if self.head.iter().all(|byte| *byte == 0) { Ok(false) } else { Err(cut_short()) }
    }

    fn follows(&mut self, size: u64) -> io::Result<()> {
        let padded = size.checked_next_multiple_of(BLOCK).ok_or_else(|| refused("a file without end"))?;
        (self.left, self.padding) = (size, padded - size);
        Ok(())
    }

    /// What the file of the last entry holds.
    pub fn content(&mut self, entry: &Entry) -> Content<'_, R> {
        let pieces = entry.pieces.clone();
        let Pieces { all, size } = pieces.unwrap_or(Pieces { all: vec![(0, self.left)], size: self.left });
        Content { archive: self, pieces: all.into_iter(), piece: None, at: 0, size }
    }
}

fn told(entry: &ParsedEntry<'_>, pieces: Option<Pieces>) -> Entry {
    let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    Entry {
        kind: entry.entry_type,
        path: text(&entry.path).into(),
        target: entry.link_target.as_deref().map(text),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        attributes: entry.xattrs.iter().map(|(name, value)| (text(name), value.to_vec())).collect(),
        pieces,
    }
}

/// What a file holds.
pub struct Content<'a, R> {
    archive: &'a mut Archive<R>,
    pieces: std::vec::IntoIter<(u64, u64)>,
    /// What is left of the one that comes next.
    piece: Option<(u64, u64)>,
    at: u64,
    size: u64,
}

/// What comes next in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// So many bytes, which are in the buffer now.
    Data(usize),
    /// So many zeros, which are nowhere.
    Hole(u64),
    End,
}

impl<R: Read> Content<'_, R> {
    pub fn next_chunk(&mut self, buffer: &mut [u8]) -> io::Result<Chunk> {
        while matches!(self.piece, None | Some((_, 0))) && self.pieces.len() > 0 {
            self.piece = self.pieces.next();
        }
        let piece = self.piece.filter(|(_, length)| *length > 0);
        let hole = piece.map_or(self.size, |(offset, _)| offset) - self.at;
        if hole > 0 {
            self.at += hole;
            return Ok(Chunk::Hole(hole));
        }
        let Some((offset, length)) = piece else { return Ok(Chunk::End) };
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.archive.layer.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(cut_short());
        }
        self.archive.left -= read as u64;
        self.at += read as u64;
        self.piece = Some((offset + read as u64, length - read as u64));
        Ok(Chunk::Data(read))
    }
}

/// Trying again does not help.
fn refused(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its archive cannot be used: {reason}"))
}

fn cut_short() -> io::Error {
    refused("it is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_in_their_order_and_within_the_file() {
        let check = |all: &[(u64, u64)], size, stored| Pieces::new(all.to_vec(), size, stored).is_ok();
        assert!(check(&[(0, 5), (5, 1), (100, 0)], 100, 6) && check(&[], 1 << 40, 0));
        for (all, size, stored) in [
            (&[(5, 1), (0, 5)][..], 100, 6),
            (&[(0, 5), (4, 1)], 100, 6),
            (&[(0, 101)], 100, 101),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[(0, 5)], 100, 6),
        ] {
            assert!(!check(all, size, stored), "{all:?}");
        }
    }
}
