//! A section of a kernel image, which is a PE file. It lies on a file system that anybody could have written to: nothing in it is
//! believed.

use update::ReadAt;

/// Where the file says where its header is, and what such a header holds (Microsoft's PE format).
const HEADER_AT: u64 = 0x3c;
const HEADER: u64 = 24;
const SECTION_HEADER: usize = 40;
/// Sections that a file may have.
const MOST_SECTIONS: u16 = 96;

/// The data of a section of at most `largest` bytes.
pub(super) fn section(image: &impl ReadAt, name: &str, largest: usize) -> Result<Vec<u8>, String> {
    fn read<const SIZE: usize>(image: &impl ReadAt, at: u64) -> Result<[u8; SIZE], String> {
        let mut bytes = [0; SIZE];
        image.read_at(at, &mut bytes).map_err(|error| format!("it cannot be read at byte {at}: {error}"))?;
        Ok(bytes)
    }
    let pe = u64::from(u32::from_le_bytes(read(image, HEADER_AT)?));
    if read(image, pe)? != *b"PE\0\0" {
        return Err("it is no kernel image".to_owned());
    }
    let count = u16::from_le_bytes(read(image, pe + 6)?).min(MOST_SECTIONS);
    let table = pe + HEADER + u64::from(u16::from_le_bytes(read(image, pe + 20)?));
    for number in 0..u64::from(count) {
        let at = table + number * SECTION_HEADER as u64;
        let found: [u8; 8] = read(image, at)?;
        if found.split(|byte| *byte == 0).next() != Some(name.as_bytes()) {
            continue;
        }
        let size = usize::try_from(u32::from_le_bytes(read(image, at + 8)?)).unwrap_or(usize::MAX);
        if size > largest {
            return Err(format!("its section {name} has {size} bytes, more than {largest}"));
        }
        let offset = u64::from(u32::from_le_bytes(read(image, at + 20)?));
        let mut data = vec![0; size];
        image
            .read_at(offset, &mut data)
            .map_err(|error| format!("its section {name} is cut short: {error}"))?;
        return Ok(data);
    }
    Err(format!("it has no section {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Vec<u8> {
        let mut pe = vec![0; 0x300];
        let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x3c, &0x80u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x86, &2u16.to_le_bytes());
        put(0x94, &0x20u16.to_le_bytes());
        put(0xb8, b".text\0\0\0");
        put(0xe0, b".cmdline");
        put(0xe8, &5u32.to_le_bytes());
        put(0xf4, &0x200u32.to_le_bytes());
        put(0x200, b"quiet");
        pe
    }

    #[test]
    fn a_section_is_found_and_one_that_is_none_is_told() {
        let image = image();
        assert_eq!(section(&&image[..], ".cmdline", 5).unwrap(), b"quiet");
        assert_eq!(
            section(&&image[..], ".cmdline", 4).unwrap_err(),
            "its section .cmdline has 5 bytes, more than 4"
        );
        assert_eq!(section(&&image[..], ".linux", 9).unwrap_err(), "it has no section .linux");
        assert_eq!(section(&&[0; 100][..], ".linux", 9).unwrap_err(), "it is no kernel image");
        assert!(section(&&image[..0x202], ".cmdline", 5).unwrap_err().contains("is cut short"));
    }

    proptest! {
        #[test]
        fn no_bytes_do_any_harm(changes in prop::collection::vec((0usize..0x300, any::<u8>()), 0..8), end in 0usize..=0x300) {
            let mut image = image();
            changes.iter().for_each(|(at, byte)| image[*at] = *byte);
            if let Ok(data) = section(&&image[..end], ".cmdline", 64) {
                prop_assert!(data.len() <= 64);
            }
        }
    }
}
