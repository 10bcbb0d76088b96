//! zstd frames whose memory is known before the first byte is unpacked. A part of a root is one frame whose window is its content
//! ([`open`]); a whole root is one frame with a window of its own ([`stream`]).

use ruzstd::decoding::StreamingDecoder;
use std::io::Read;

const MAGIC: u32 = 0xfd2f_b528;

/// Content sizes that a frame may have, bytes.
pub const MAX_SIZE: usize = 4 << 20;

/// The most that a packed frame of `size` bytes takes: blocks that do not shrink are stored, with three bytes before each 128 KiB.
pub const fn packed_bound(size: usize) -> usize {
    size + size / 128 + 64
}

/// A frame that holds `size` bytes, to be read. Takes about three times `size` of memory while it is read.
///
/// # Errors
///
/// In words: what of the frame is not as it must be.
pub fn open(packed: &[u8], size: usize) -> Result<impl Read, String> {
    let told = content_size(packed).ok_or("it is not a zstd frame that tells its size")?;
    if told != size as u64 || size > MAX_SIZE {
        return Err(format!("the frame holds {told} bytes instead of {size}"));
    }
    StreamingDecoder::new(packed).map_err(|error| error.to_string())
}

/// Unpacks a whole frame into `out`, which it has to fill.
///
/// # Errors
///
/// As [`open`], and when the frame is damaged or longer than it says.
pub fn unpack(packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut frame = open(packed, out.len())?;
    frame.read_exact(out).map_err(|error| error.to_string())?;
    at_end(&mut frame)
}

/// Nothing may follow.
pub(crate) fn at_end(frame: &mut impl Read) -> Result<(), String> {
    match frame.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err("the frame goes on behind its end".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The content size of a frame that is a single segment without a dictionary (RFC 8878, 3.1.1.1); none for any other frame.
fn content_size(packed: &[u8]) -> Option<u64> {
    let (magic, rest) = packed.split_first_chunk::<4>()?;
    let (descriptor, rest) = rest.split_first()?;
    if u32::from_le_bytes(*magic) != MAGIC || descriptor & 0x20 == 0 || descriptor & 0b1011 != 0 {
        return None;
    }
    match descriptor >> 6 {
        0 => rest.first().map(|size| u64::from(*size)),
        1 => rest.first_chunk().map(|size| u64::from(u16::from_le_bytes(*size)) + 256),
        2 => rest.first_chunk().map(|size| u64::from(u32::from_le_bytes(*size))),
        _ => rest.first_chunk().map(|size| u64::from_le_bytes(*size)),
    }
}

/// Packs `content` for [`open`]: one frame, as small as zstd makes it.
#[cfg(feature = "make")]
pub fn pack(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    // A window as large as the content makes the frame a single segment.
    let window = content.len().next_power_of_two().trailing_zeros().clamp(10, 27);
    compressor.set_parameter(CParameter::WindowLog(window))?;
    compressor.set_parameter(CParameter::ChecksumFlag(false))?;
    compressor.compress(content)
}

#[cfg(feature = "make")]
use zstd::zstd_safe::CParameter;

#[cfg(feature = "make")]
const LEVEL: i32 = 19;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_that_wants_more_than_it_may_is_refused_unread() {
        let packed = pack(&[7; 5000]).unwrap();
        for size in [0, 4999, 5001] {
            assert!(open(&packed, size).is_err(), "{size}");
        }
        // A window of its own, of 128 MiB; and a frame that does not tell its size.
        let wide = [0x28, 0xb5, 0x2f, 0xfd, 0x80, 0x88, 0, 0x14, 0, 0];
        assert!(open(&wide, 5120).is_err());
        let large = pack(&vec![0; MAX_SIZE + 1]).unwrap();
        assert!(open(&large, MAX_SIZE + 1).is_err());
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(content in prop::collection::vec(any::<u8>(), 0..4000), times in 1usize..300) {
            let content = content.repeat(times);
            let packed = pack(&content).unwrap();
            prop_assert!(packed.len() <= packed_bound(content.len()));
            let mut out = vec![0; content.len()];
            unpack(&packed, &mut out).unwrap();
            prop_assert_eq!(out, content);
        }

        #[test]
        fn a_damaged_frame_is_an_error_and_no_panic(content in prop::collection::vec(0u8..4, 1..3000), at in any::<prop::sample::Index>(), with in 1u8..) {
            let mut packed = pack(&content).unwrap();
            let at = at.index(packed.len());
            packed[at] ^= with;
            let mut out = vec![0; content.len()];
            let _ = unpack(&packed, &mut out);
            prop_assert!(unpack(&packed[..at], &mut out).is_err());
        }

        #[test]
        fn any_bytes_are_an_error_and_no_panic(packed in prop::collection::vec(any::<u8>(), 0..200), size in 0usize..5000) {
            let _ = unpack(&packed, &mut vec![0; size]);
        }
    }
}
