//! What an update is made of: whoever serves a repository can send anything.

use boot_choice::{Entry, FileName, choose};
use update::chunks::{HEAD_SIZE, Index};
use update::manifest::Manifest;
use update::patch::Applier;

/// A manifest that is read can be published again, and says the same.
pub(crate) fn manifest(input: &[u8]) {
    match Manifest::parse(input) {
        Ok(manifest) => {
            let written = manifest.clone().write().expect("what was read can be written");
            let again = Manifest::parse(&written).expect("what was written can be read");
            assert_eq!(again.write().ok(), Some(written));
        }
        Err(error) => assert!(error.to_string().len() < 4096),
    }
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let hash = "ab".repeat(32);
    let file = |name: &str| format!("{{\"target\": \"{name}\", \"size\": 4096}}");
    vec![
        b"{\"format\": 1, \"lines\": []}".to_vec(),
        format!(
            "{{\"format\": 1, \"lines\": [{{\"variant\": \"default\", \"arch\": \"x86_64\", \"floor\": \"1.0.0\", \"max-version\": \"1.2.0\", \"updates\": [{{\"version\": \"1.2.0\", \"root\": {{\"hash\": \"{hash}\", \"size\": 8192, \"full\": {}, \"leaves\": {}, \"patches\": [{{\"from\": \"{hash}\", \"target\": \"p\", \"size\": 10}}]}}, \"uki\": {{\"name\": \"caisson_1.2.0.efi\", \"target\": \"u\", \"size\": 5, \"sha256\": \"{hash}\"}}, \"waves\": [{{\"below\": 2048, \"start\": \"2026-11-24T12:00:00Z\"}}]}}]}}]}}",
            file("a.zst"),
            file("a.leaves")
        )
        .into_bytes(),
    ]
}

/// A patch of a base that is all zeros gives segments in order, none behind the slot's end, and nothing behind a mistake.
pub(crate) fn patch(input: &[u8]) {
    const ROOM: u64 = 64 << 10;
    let base = vec![0; 32 << 10];
    let mut applier = Applier::new(base.as_slice(), [1; 32], [2; 32], ROOM);
    let (mut rest, mut end) = (input, 0);
    while let Ok(Some(segment)) = applier.push(&mut rest) {
        assert_eq!(segment.offset, end);
        end += segment.content.len() as u64;
        assert!(end <= ROOM);
    }
}

/// A head with hashes that fit, and what may follow.
pub(crate) fn patch_seeds() -> Vec<Vec<u8>> {
    let mut head = b"caispat\x01".to_vec();
    head.extend([1; 32]);
    head.extend([2; 32]);
    for number in [32u32 << 10, 8192, 4096, 20, 8] {
        head.extend(number.to_le_bytes());
    }
    let with_table = [head.as_slice(), &[0; 72]].concat();
    vec![head, with_table]
}

/// The index of a root in chunks: what it speaks of is inside of it.
pub(crate) fn chunks(input: &[u8]) {
    let Some(head) = input.first_chunk::<HEAD_SIZE>() else { return };
    let Ok(size) = Index::size(head, 64 << 10) else { return };
    let Some(index) = input.get(..size).and_then(|index| Index::parse(index).ok()) else { return };
    let mut content = Vec::new();
    for chunk in 0..index.chunks() {
        let place = index.place(chunk..chunk + 1).expect("a chunk has a place");
        assert!(place.start <= place.end && place.end <= index.file_size());
        let packed = usize::try_from(place.start).ok().zip(usize::try_from(place.end).ok());
        if let Some(packed) = packed.and_then(|(start, end)| input.get(start..end))
            && index.unpack(chunk, packed, &mut content).is_ok()
        {
            assert_eq!(content.len(), index.content(chunk).len());
        }
    }
}

pub(crate) fn chunks_seeds() -> Vec<Vec<u8>> {
    let mut index = 0x184d_2a5e_u32.to_le_bytes().to_vec();
    index.extend(20u32.to_le_bytes());
    index.extend(b"caischk\x01");
    for number in [64u32 << 10, 64 << 10, 10] {
        index.extend(number.to_le_bytes());
    }
    vec![index]
}

/// Names in the ESP: something boots, a blessed entry keeps its name, and a try is counted.
pub(crate) fn boot_names(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let names = text.lines().take(16).filter_map(FileName::parse);
    let entries: Vec<Entry> =
        names.filter_map(|name| Entry::new(name, "NAME=Caisson\nID=caisson\nVERSION_ID=1\n")).collect();
    let chosen = choose(&entries);
    assert_eq!(chosen.is_none(), entries.is_empty());
    if let Some(chosen) = chosen {
        let name = &chosen.name;
        match (name.counter(), name.tried()) {
            (None, tried) => assert!(tried.is_none()),
            (Some(before), tried) => {
                let after = tried.and_then(|name| name.counter()).expect("a try is counted");
                assert!(after.left <= before.left && after.done >= before.done);
            }
        }
    }
}

pub(crate) fn boot_names_seeds() -> Vec<Vec<u8>> {
    vec![
        b"caisson_1.0.0.efi\ncaisson_1.1.0+3.efi\n".to_vec(),
        b"caisson_1.1.0+2-1.efi\nCAISSON_1.efi\n.hidden.efi\n+0.efi".to_vec(),
    ]
}
