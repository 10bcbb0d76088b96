//! From the bytes of a source to user data: base64 where a source holds only text, and gzip in all of them. Pure.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use flate2::bufread::GzDecoder;
use settings::LARGEST_USER_DATA;
use std::io::Read;

/// RFC 1952, 2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// `base64` fills the last group up with `=`; people cut that off.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Bytes of the largest user data as base64.
pub(super) const LARGEST_BASE64: usize = LARGEST_USER_DATA.div_ceil(3) * 4;

pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    if text.len() > LARGEST_BASE64 {
        return Err(format!("{} bytes of base64 are more than {LARGEST_BASE64}", text.len()));
    }
    BASE64.decode(text).map_err(|error| {
        format!("this is not base64 (RFC 4648, section 4): {error}; `base64 -w0 FILE` makes it")
    })
}

/// Unpacks what is compressed. None when a source says nothing: it is empty, or all white space.
pub(super) fn unpack(raw: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let content = if raw.starts_with(&GZIP) { gunzip(raw)? } else { raw.to_vec() };
    if content.len() > LARGEST_USER_DATA {
        return Err(format!("it is larger than {LARGEST_USER_DATA} bytes"));
    }
    Ok(Some(content).filter(|content| !is_empty(content)))
}

/// Stops one byte after what is allowed, whatever the rest would unpack to.
fn gunzip(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let mut rest = packed;
    while rest.starts_with(&GZIP) {
        let left = (LARGEST_USER_DATA + 1).saturating_sub(content.len()) as u64;
        let mut member = GzDecoder::new(rest);
        (&mut member).take(left).read_to_end(&mut content).map_err(|error| {
            format!("it begins as gzip does, but cannot be unpacked: {error}; `gzip -t FILE` tests it")
        })?;
        if content.len() > LARGEST_USER_DATA {
            return Err(format!("it unpacks to more than {LARGEST_USER_DATA} bytes"));
        }
        rest = member.into_inner();
    }
    if rest.iter().any(|byte| *byte != 0) {
        // Half of it is not what was meant.
        return Err(format!("{} bytes that are not gzip follow what is: was it cut or joined?", rest.len()));
    }
    if content.starts_with(&GZIP) {
        return Err("it is compressed twice: compress it once".to_owned());
    }
    Ok(content)
}

fn is_empty(content: &[u8]) -> bool {
    content.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write;

    pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_empty_source_says_nothing() {
        for empty in [&b""[..], b"\0", b"\n \n", &gzip(b""), &gzip(b"\n")] {
            assert_eq!(unpack(empty), Ok(None));
        }
        assert_eq!(unpack(b"a"), Ok(Some(b"a".to_vec())));
    }

    #[test]
    fn what_is_compressed_is_unpacked_once_and_within_bounds() {
        assert_eq!(unpack(&gzip(b"motd")), Ok(Some(b"motd".to_vec())));
        assert_eq!(unpack(&[gzip(b"mo"), gzip(b"td"), vec![0]].concat()), Ok(Some(b"motd".to_vec())));
        let largest = vec![b'a'; LARGEST_USER_DATA];
        assert_eq!(unpack(&gzip(&largest)).unwrap().unwrap().len(), LARGEST_USER_DATA);
        let bomb = gzip(&vec![b'a'; 64 << 20]);
        for (packed, expected) in [
            (gzip(&[largest.as_slice(), b"a"].concat()), "unpacks to more than 65536 bytes"),
            // 64 KiB that become 64 MiB; damaged at their end, which is not come to.
            (bomb[..bomb.len() - 8].to_vec(), "unpacks to more than 65536 bytes"),
            ([largest.as_slice(), b"a"].concat(), "larger than 65536 bytes"),
            (gzip(&gzip(b"a")), "compressed twice"),
            ([gzip(b"a"), b"[settings]".to_vec()].concat(), "10 bytes that are not gzip follow"),
            (gzip(b"a")[..18].to_vec(), "cannot be unpacked"),
            (GZIP.to_vec(), "cannot be unpacked"),
        ] {
            let error = unpack(&packed).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn base64_is_read_with_and_without_its_padding() {
        assert_eq!(from_base64("aGk="), Ok(b"hi".to_vec()));
        assert_eq!(from_base64("aGk"), Ok(b"hi".to_vec()));
        for wrong in ["aGk=\n", "a", "{}", &"A".repeat(LARGEST_BASE64 + 4)] {
            let error = from_base64(wrong).unwrap_err();
            assert!(error.contains("base64") && error.len() < 200, "{error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_stay_within_bounds(
            head in proptest::bool::ANY,
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            good in proptest::collection::vec(any::<u8>(), 0..50),
            cut in 0usize..80,
        ) {
            let packed = gzip(&good);
            let mut damaged = packed[..cut.min(packed.len())].to_vec();
            damaged.extend(&bytes);
            let hostile = if head { damaged } else { bytes };
            if let Ok(Some(content)) = unpack(&hostile) {
                prop_assert!(content.len() <= LARGEST_USER_DATA);
            }
            let _ = from_base64(&String::from_utf8_lossy(&hostile));
        }

        #[test]
        fn what_was_packed_comes_back(content in proptest::collection::vec(1u8.., 1..300)) {
            prop_assume!(!is_empty(&content) && !content.starts_with(&GZIP));
            prop_assert_eq!(unpack(&gzip(&content)), Ok(Some(content.clone())));
            let text = BASE64.encode(&content);
            prop_assert_eq!(from_base64(text.trim_end_matches('=')), Ok(content));
        }
    }
}
