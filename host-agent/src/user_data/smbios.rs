//! Strings that a VMM puts into the SMBIOS table (DMTF DSP0134 3.x, 6.1 and 7.12). Pure.

/// A structure's header: type, length with the header, handle.
const HEADER: usize = 4;
const OEM_STRINGS: u8 = 11;
const END_OF_TABLE: u8 = 127;

/// All strings of all structures for the OEM. What is damaged ends the list: the rest of the table cannot be found then.
pub(super) fn oem_strings(table: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    Structures { rest: table }
        .filter(|(kind, _)| *kind == OEM_STRINGS)
        .flat_map(|(_, strings)| strings.split(|byte| *byte == 0))
}

#[derive(Clone)]
struct Structures<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Structures<'a> {
    /// Its type and its strings, with a zero byte between them.
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, length) = (*self.rest.first()?, usize::from(*self.rest.get(1)?));
        if kind == END_OF_TABLE || length < HEADER {
            return None;
        }
        // Two zero bytes end the strings, also where there are none.
        let after = self.rest.get(length..)?;
        let end = after.windows(2).position(|pair| pair == [0, 0])?;
        self.rest = &after[end + 2..];
        Some((kind, &after[..end]))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table as QEMU makes it: other structures before and after.
    pub(crate) fn table(strings: &[&str]) -> Vec<u8> {
        let bios = [&[0, 6, 0, 0, 1, 0][..], b"SeaBIOS\0\0"].concat();
        let count = u8::try_from(strings.len()).unwrap();
        let strings = strings.iter().flat_map(|string| [string.as_bytes(), b"\0"].concat());
        let oem = [11, 5, 0, 14, count].into_iter().chain(strings).chain([0]).collect();
        let memory = vec![16, 6, 0, 16, 0, 0, 0, 0];
        let end = vec![127, 4, 0, 127, 0, 0];
        [bios, oem, memory, end, b"left over".to_vec()].concat()
    }

    #[test]
    fn strings_for_the_oem_are_found_among_others() {
        let table = table(&["one", "caisson.user-data=aGk="]);
        assert_eq!(oem_strings(&table).collect::<Vec<_>>(), [&b"one"[..], b"caisson.user-data=aGk="]);
        // A structure that is shorter than its own header is none.
        assert_eq!(oem_strings(b"\x0b\x02no\0\0").count(), 0);
        // Cut anywhere, it is what is whole or nothing.
        for cut in 0..table.len() {
            assert!(oem_strings(&table[..cut]).count() <= 2);
        }
    }

    proptest! {
        #[test]
        fn a_hostile_table_never_panics_and_gives_no_more_than_it_has(
            kinds in proptest::collection::vec((proptest::sample::select(vec![0u8, 11, 127]), 0u8..9, proptest::collection::vec(0u8..3, 0..9)), 0..20)
        ) {
            let table: Vec<u8> = kinds.into_iter().flat_map(|(kind, length, rest)| [vec![kind, length], rest].concat()).collect();
            prop_assert!(oem_strings(&table).map(<[u8]>::len).sum::<usize>() <= table.len());
        }

        #[test]
        fn any_bytes_never_panic(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(oem_strings(&table).map(<[u8]>::len).sum::<usize>() <= table.len());
        }
    }
}
