//! One layer as a registry keeps it: decompressed, bounded, and hashed while it is read.

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A zstd frame that wants a larger window is refused: the window is kept in memory. 8 MiB is what every decoder should take
/// (RFC 8878, 3.1.1.1.2), and what zstd uses up to level 19.
const LARGEST_WINDOW: u64 = 32 << 20;
/// The longest header of a frame (RFC 8878, 3.1.1).
const LONGEST_HEADER: usize = 18;

/// The tar archive of a layer. Ends with an error when more than its bound is read, or when the pull was given up.
pub struct Layer {
    archive: Box<dyn Read>,
    hash: Sha256,
    left: u64,
    given_up: Arc<AtomicBool>,
}

impl Layer {
    /// `left` is how many bytes it may unpack to.
    pub fn open(file: File, media_type: &str, left: u64, given_up: Arc<AtomicBool>) -> io::Result<Self> {
        let archive: Box<dyn Read> = if media_type.ends_with("gzip") {
            // A gzip file may have several members (RFC 1952, 2.2); parallel compressors write such.
            Box::new(MultiGzDecoder::new(BufReader::new(file)))
        } else if media_type.ends_with("zstd") {
            Box::new(Frames::new(file))
        } else if media_type.ends_with("tar") {
            Box::new(file)
        } else {
            return Err(refused(format!("a layer is of a kind that is not known: {media_type}")));
        };
        Ok(Self { archive, hash: Sha256::new(), left, given_up })
    }

    /// Reads what follows the archive. Its `sha256:…` (the "diff id" of an image's configuration), and how many bytes are left.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
        let mut buffer = [0; 32 << 10];
        while self.read(&mut buffer)? > 0 {}
        let hex: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((format!("sha256:{hex}"), self.left))
    }
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("the pull was given up"));
        }
        let read = self.archive.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| refused("the image unpacks to more than a node takes".to_owned()))?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

fn refused(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// All frames of a zstd file, one after the other (RFC 8878, 3): the library's decoder stops after the first.
struct Frames<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
}

impl<R: Read + Seek> Frames<R> {
    fn new(source: R) -> Self {
        Self { source: BufReader::new(source), decoder: FrameDecoder::new() }
    }

    /// Begins the next frame with content; false at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let mut header = Vec::new();
            self.source.by_ref().take(LONGEST_HEADER as u64).read_to_end(&mut header)?;
            let length = header.len() as i64;
            match frame(&header) {
                Some(Frame::End) => return Ok(false),
                Some(Frame::Skip(content)) => {
                    self.source.seek_relative(8 + i64::from(content) - length)?;
                }
                Some(Frame::Window(window)) if window <= LARGEST_WINDOW => {
                    self.source.seek_relative(-length)?;
                    self.decoder.init(&mut self.source).map_err(|error| refused(error.to_string()))?;
                    return Ok(true);
                }
                Some(Frame::Window(window)) => {
                    return Err(refused(format!("a layer's zstd window is {window} bytes, too many")));
                }
                None => return Err(refused("a layer is not zstd, or is cut off".to_owned())),
            }
        }
    }
}

impl<R: Read + Seek> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What is decoded and beyond the window is handed out; else more is decoded; else the next frame begins.
        while self.decoder.can_collect() == 0 && !buffer.is_empty() {
            if self.decoder.is_finished() {
                if !self.begin()? {
                    return Ok(0);
                }
            } else {
                let some = BlockDecodingStrategy::UptoBlocks(1);
                let decoded = self.decoder.decode_blocks(&mut self.source, some);
                decoded.map_err(|error| refused(error.to_string()))?;
            }
        }
        self.decoder.read(buffer)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Frame {
    /// There is no further frame.
    End,
    /// A frame for other tools, with so much in it.
    Skip(u32),
    /// How much of what was decoded has to be kept, in bytes.
    Window(u64),
}

/// What a frame's first bytes say (RFC 8878, 3.1.1 and 3.1.2); `None` when they are not those of a frame.
fn frame(header: &[u8]) -> Option<Frame> {
    if header.is_empty() {
        return Some(Frame::End);
    }
    let magic = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    if magic & 0xffff_fff0 == 0x184d_2a50 {
        return Some(Frame::Skip(u32::from_le_bytes(header.get(4..8)?.try_into().ok()?)));
    }
    if magic != 0xfd2f_b528 {
        return None;
    }
    let descriptor = *header.get(4)?;
    if descriptor & 0x20 == 0 {
        let window = *header.get(5)?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(Frame::Window(base + base / 8 * u64::from(window & 7)));
    }
    // A single segment: the window is the whole content, whose size follows the dictionary's number.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = 1_usize << (descriptor >> 6);
    let mut number = [0; 8];
    number[..size].copy_from_slice(header.get(at..at + size)?);
    let number = u64::from_le_bytes(number);
    Some(Frame::Window(if size == 2 { number + 256 } else { number }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::{Cursor, Write};

    fn layer(kind: &str, data: &[u8], left: u64) -> io::Result<(Vec<u8>, String, u64)> {
        let mut file = tempfile::tempfile()?;
        file.write_all(data)?;
        file.rewind()?;
        let mut layer = Layer::open(file, kind, left, Arc::default())?;
        let mut content = Vec::new();
        layer.read_to_end(&mut content)?;
        let (id, left) = layer.finish()?;
        Ok((content, id, left))
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        compress_to_vec(Cursor::new(data), CompressionLevel::Fastest)
    }

    #[test]
    fn several_members_and_frames_are_one_layer() {
        let (first, second) = (vec![b'a'; 300_000], vec![b'b'; 5]);
        let both = [first.clone(), second.clone()].concat();
        let skipped = [&0x184d_2a55_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"any"].concat();
        let id = layer("x.tar", &both, 1 << 20).unwrap().1;
        for (kind, data) in [
            ("x.tar+gzip", [gzip(&first), gzip(&second)].concat()),
            ("x.tar+zstd", [zstd(&first), zstd(&second)].concat()),
            ("x.tar+zstd", [skipped.clone(), zstd(&first), skipped.clone(), zstd(&second), skipped].concat()),
        ] {
            let (content, found, left) = layer(kind, &data, 1 << 20).unwrap();
            assert_eq!((content == both, &found), (true, &id), "{kind}");
            assert_eq!(left, (1 << 20) - both.len() as u64);
        }
    }

    #[test]
    fn what_is_cut_off_or_too_large_is_an_error() {
        let data = vec![b'a'; 100_000];
        for (kind, packed) in [("x.tar+gzip", gzip(&data)), ("x.tar+zstd", zstd(&data))] {
            assert!(layer(kind, &packed[..packed.len() - 3], 1 << 20).is_err(), "{kind}");
            assert!(layer(kind, &packed, 99_999).is_err(), "{kind}");
            assert!(layer(kind, &[&packed[..], b"garbage"].concat(), 1 << 20).is_err(), "{kind}");
        }
        assert!(layer("x.tar+lzma", &data, 1 << 20).is_err());
    }

    #[test]
    fn a_pull_that_was_given_up_ends() {
        let given_up = Arc::new(AtomicBool::new(false));
        let mut layer =
            Layer::open(File::open("/dev/zero").unwrap(), "x.tar", 1 << 40, given_up.clone()).unwrap();
        layer.read_exact(&mut [0; 512]).unwrap();
        given_up.store(true, Ordering::Relaxed);
        assert!(layer.finish().is_err());
    }

    #[test]
    fn windows_are_known_before_memory_is_taken() {
        let header = |rest: &[u8]| frame(&[&[0x28, 0xb5, 0x2f, 0xfd][..], rest].concat());
        assert_eq!(header(&[0x00, 0x00]), Some(Frame::Window(1 << 10)));
        // 2^41 and seven eighths: the largest that can be said.
        assert_eq!(header(&[0x00, 0xff]), Some(Frame::Window((1 << 41) + (7 << 38))));
        assert_eq!(header(&[0x20, 9]), Some(Frame::Window(9)));
        assert_eq!(header(&[0x61, 7, 1, 0]), Some(Frame::Window(257)));
        assert_eq!(header(&[0x20]), None);
        let mut large = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff];
        large.extend([0; 64]);
        assert!(layer("x.tar+zstd", &large, 1 << 20).unwrap_err().to_string().contains("window"));
    }
}
