//! Whether a program for EFI carries a signature (Microsoft: PE Format, "The Attribute Certificate Table"). Whose it is, and whether it
//! fits, is for firmware to judge: a file without one it does not even look at.

use std::io;

/// The DOS header, up to where it says where the other one is.
const DOS: usize = 64;
/// From `PE\0\0` to the end of the fifth data directory of a PE32+ file.
const HEAD: usize = 24 + 112 + 5 * 8;
/// Of an entry of the table.
const CERTIFICATE: usize = 8;
const REVISION: u16 = 0x0200;
const PKCS_SIGNED_DATA: u16 = 2;

/// Looks at a file of `size` bytes, of which `read` fills a buffer from a byte on. What is no PE32+ file has no signature. Reads at
/// most a quarter of a KiB.
pub(super) fn is_signed(size: u64, read: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> io::Result<bool> {
    let is_inside = |at: u64, length: usize| at.checked_add(length as u64).is_some_and(|end| end <= size);
    let mut dos = [0; DOS];
    if !is_inside(0, DOS) {
        return Ok(false);
    }
    read(0, &mut dos)?;
    let head_at = u64::from(u32_at(&dos, 0x3c));
    if !dos.starts_with(b"MZ") || !is_inside(head_at, HEAD) {
        return Ok(false);
    }
    let mut head = [0; HEAD];
    read(head_at, &mut head)?;
    let (length_of_rest, magic, directories) =
        (u16_at(&head, 20), u16_at(&head, 24), u32_at(&head, 24 + 108));
    let has_table = usize::from(length_of_rest) >= HEAD - 24 && magic == 0x20b && directories >= 5;
    if !head.starts_with(b"PE\0\0") || !has_table {
        return Ok(false);
    }
    let (at, length) = (u64::from(u32_at(&head, HEAD - 8)), u32_at(&head, HEAD - 4));
    let length_of_table = usize::try_from(length).unwrap_or(usize::MAX);
    if at == 0 || length_of_table <= CERTIFICATE || !is_inside(at, length_of_table) {
        return Ok(false);
    }
    let mut certificate = [0; CERTIFICATE];
    read(at, &mut certificate)?;
    let length_of_first = usize::try_from(u32_at(&certificate, 0)).unwrap_or(usize::MAX);
    Ok((CERTIFICATE + 1..=length_of_table).contains(&length_of_first)
        && u16_at(&certificate, 4) == REVISION
        && u16_at(&certificate, 6) == PKCS_SIGNED_DATA)
}

/// The same, of bytes in memory.
pub fn is_signed_in(data: &[u8]) -> bool {
    let read = |at: u64, buffer: &mut [u8]| {
        let part = usize::try_from(at).ok().and_then(|at| data.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    is_signed(data.len() as u64, read).unwrap_or(false)
}

/// Little-endian; `at` is inside of the headers, whose sizes are fixed.
fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PE: usize = 0x80;
    const TABLE: usize = PE + HEAD - 8;
    const CERTIFICATES: usize = 0x200;

    /// The headers of a program for EFI that is signed, and its certificate; nothing else.
    pub(in crate::update) fn signed() -> Vec<u8> {
        let mut file = vec![0; CERTIFICATES + 16];
        put(&mut file, 0, b"MZ");
        put(&mut file, 0x3c, &0x80u32.to_le_bytes());
        put(&mut file, PE, b"PE\0\0");
        put(&mut file, PE + 20, &240u16.to_le_bytes());
        put(&mut file, PE + 24, &0x20bu16.to_le_bytes());
        put(&mut file, PE + 24 + 108, &16u32.to_le_bytes());
        put(&mut file, TABLE, &0x200u32.to_le_bytes());
        put(&mut file, TABLE + 4, &16u32.to_le_bytes());
        put(&mut file, CERTIFICATES, &16u32.to_le_bytes());
        put(&mut file, CERTIFICATES + 4, &[0, 2, 2, 0]);
        file
    }

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn a_signature_is_seen() {
        assert!(is_signed_in(&signed()));
    }

    #[test]
    fn what_has_none_or_lies_about_it_is_not_signed() {
        let cases: &[(usize, &[u8])] = &[
            (0, b"ZM"),
            // The header: elsewhere, beyond the end, at the end, over the end of the numbers.
            (0x3c, &[0x90, 0, 0, 0]),
            (0x3c, &[0xff, 0xff, 0xff, 0xff]),
            (0x3c, &[0x10, 0x02, 0, 0]),
            (0x3c, &[0xf0, 0xff, 0xff, 0xff]),
            (PE, b"NE"),
            // The rest of the header: too short, of 32 bits, without this directory.
            (PE + 20, &[0, 0]),
            (PE + 24, &[0x0b, 0x01]),
            (PE + 24 + 108, &[4, 0, 0, 0]),
            // The table: none, empty, beyond the end.
            (TABLE, &[0; 8]),
            (TABLE + 4, &[0; 4]),
            (TABLE + 4, &[8, 0, 0, 0]),
            (TABLE + 4, &[17, 0, 0, 0]),
            (TABLE, &[0xff; 8]),
            // The certificate: empty, longer than the table, of another kind.
            (CERTIFICATES, &[8, 0, 0, 0]),
            (CERTIFICATES, &[17, 0, 0, 0]),
            (CERTIFICATES + 4, &[0, 1]),
            (CERTIFICATES + 6, &[1, 0]),
        ];
        for (at, bytes) in cases {
            let mut file = signed();
            put(&mut file, *at, bytes);
            assert!(!is_signed_in(&file), "{bytes:x?} at {at:#x}");
        }
        let whole = signed();
        for length in 0..whole.len() {
            assert!(!is_signed_in(&whole[..length]), "the first {length} bytes");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told() {
        let failing = |_: u64, _: &mut [u8]| Err(io::ErrorKind::UnexpectedEof.into());
        assert!(is_signed(1 << 20, failing).is_err());
    }
}
