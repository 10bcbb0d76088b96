//! What an update meets on a disk: its partition table, and programs for EFI.

use flate2::Crc;
use host_agent::update::{Medium, is_signed_in, name_slot};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

const SECTOR: usize = 512;
/// Sectors of a disk with both copies of a table and little more.
const SECTORS: usize = 80;
const LAST: usize = SECTORS - 1;
/// The first sectors of an input are the primary copy, the others the backup.
const COPY: usize = 33;
const SLOT: [u32; 2] = [4, 5];

/// A disk in memory that ends where a disk ends.
struct Disk<'a> {
    data: Cursor<&'a mut [u8]>,
    writes: usize,
}

impl Read for Disk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.data.read(buffer)
    }
}

impl Seek for Disk<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.data.seek(to)
    }
}

impl Write for Disk<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        self.data.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Medium for Disk<'_> {
    fn flush_all(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A slot is named in both copies, and found named the next time; or nothing is changed.
pub(crate) fn partition_table(input: &[u8]) {
    let mut data = vec![0; SECTORS * SECTOR];
    let (primary, backup) = input.split_at(input.len().min(COPY * SECTOR));
    data[SECTOR..SECTOR + primary.len()].copy_from_slice(primary);
    let backup = &backup[..backup.len().min(COPY * SECTOR)];
    let end = data.len();
    data[end - backup.len()..].copy_from_slice(backup);
    for header in [1, LAST] {
        mend(&mut data, header);
    }
    let before = data.clone();
    let size = data.len() as u64;
    let name = |data: &mut Vec<u8>| {
        let mut disk = Disk { data: Cursor::new(&mut data[..]), writes: 0 };
        let named = name_slot(&mut disk, size, SLOT, &[7; 32]);
        (named, disk.writes)
    };
    match name(&mut data).0 {
        Ok(()) => assert_eq!(name(&mut data), (Ok(()), 0), "it is not found named"),
        Err(error) => {
            assert!(error.len() < 1024, "{error}");
            assert!(error.contains("nothing was changed"), "{error}");
            assert!(data == before, "{error}, and something was changed");
        }
    }
}

/// Makes the sums of a header and of its entries right, so that more of it is looked at; unless the reserved field says not to.
fn mend(data: &mut [u8], header: usize) {
    let header = header * SECTOR;
    let field = |data: &[u8], at: usize| {
        let bytes = &data[header + at..header + at + 4];
        usize::try_from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).unwrap_or(usize::MAX)
    };
    if data[header + 20] != 0 {
        return;
    }
    let sum = |data: &[u8]| {
        let mut sum = Crc::new();
        sum.update(data);
        sum.sum().to_le_bytes()
    };
    let (entries, count, each) = (field(data, 72), field(data, 80), field(data, 84));
    let entries = entries.checked_mul(SECTOR).zip(count.checked_mul(each));
    let entries = entries.and_then(|(from, length)| data.get(from..from.checked_add(length)?));
    if let Some(sum) = entries.map(sum) {
        data[header + 88..header + 92].copy_from_slice(&sum);
    }
    data[header + 16..header + 20].fill(0);
    let sum = sum(&data[header..header + 92]);
    data[header + 16..header + 20].copy_from_slice(&sum);
}

/// Both copies; the primary one alone; and one that has a partition too few.
pub(crate) fn partition_table_seeds() -> Vec<Vec<u8>> {
    let both = [table(1, LAST, 2, 5), table(LAST, 1, LAST - COPY + 1, 5)];
    let backup = [&both[1][SECTOR..], &both[1][..SECTOR]].concat();
    vec![[&both[0][..], &backup].concat(), both[0].clone(), table(1, LAST, 2, 4)]
}

/// A header, and entries of which so many are used.
fn table(here: usize, other: usize, entries: usize, used: u8) -> Vec<u8> {
    let mut data = vec![0; COPY * SECTOR];
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    for (at, value) in [(24, here), (32, other), (40, 34), (48, SECTORS - 34), (72, entries)] {
        put(at, &(value as u64).to_le_bytes());
    }
    put(80, &[128, 0, 0, 0, 128, 0, 0, 0]);
    for number in 0..used {
        let at = SECTOR + usize::from(number) * 128;
        put(at, &[1; 16]);
        put(at + 16, &[number + 1; 16]);
        put(at + 32, &[34 + number, 0, 0, 0, 0, 0, 0, 0, 34 + number]);
    }
    data
}

/// Whether a program is signed: the same for all of it that is behind the signature.
pub(crate) fn signature(input: &[u8]) {
    if is_signed_in(input) {
        assert!(is_signed_in(&[input, &[0; 16]].concat()));
        assert!(!is_signed_in(&input[..64]));
    }
}

/// The headers of a program that is signed, and its certificate.
pub(crate) fn signature_seeds() -> Vec<Vec<u8>> {
    let mut file = vec![0; 0x210];
    let fields: [(usize, &[u8]); 8] = [
        (0, b"MZ"),
        (0x3c, &[0x80]),
        (0x80, b"PE\0\0"),
        (0x94, &[240]),
        (0x98, &[0x0b, 0x02]),
        (0x104, &[16]),
        (0x128, &[0, 2, 0, 0, 16]),
        (0x200, &[16, 0, 0, 0, 0, 2, 2, 0]),
    ];
    for (at, bytes) in fields {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    vec![file]
}
