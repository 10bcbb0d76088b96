//! User data of all sources that need no mount and no network, as the machine has them in files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::Write;
use std::path::Path;

use crate::examples;

/// Ends one source, and the first byte of the next one says which it is. Text in UTF-8 has no such bytes.
const SEPARATOR: [u8; 2] = [0xff, 0xfe];

const CMDLINE: &str = "proc/cmdline";
const SMBIOS: &str = "sys/firmware/dmi/tables/DMI";
const FW_CFG: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/caisson/user-data/raw";
const STATE: &str = "state/user-data.toml";

thread_local! {
    static MACHINE: tempfile::TempDir = machine();
}

fn machine() -> tempfile::TempDir {
    let root = crate::folder();
    for file in [CMDLINE, SMBIOS, FW_CFG, STATE] {
        let folder = root.path().join(file);
        let made = folder.parent().map(fs::create_dir_all);
        assert!(made.is_some_and(|made| made.is_ok()), "cannot make the folder of {file}");
    }
    root
}

pub(crate) fn check(input: &[u8]) {
    MACHINE.with(|root| {
        let root = root.path();
        [CMDLINE, SMBIOS, FW_CFG, STATE].iter().for_each(|file| _ = fs::remove_file(root.join(file)));
        let mut rest = input;
        let mut sources = 0;
        while let Some((kind, after)) = rest.split_first() {
            let end = after.windows(2).position(|pair| pair == SEPARATOR);
            let content = &after[..end.unwrap_or(after.len())];
            rest = end.map_or(&[], |end| &after[end + 2..]);
            write(root, *kind, content);
            sources += 1;
        }
        match host_agent::user_data::settings_below(root) {
            Ok(settings) => {
                assert_eq!(settings::from_json(&settings.to_json()).as_ref(), Ok(&settings));
            }
            Err(problems) => {
                assert!(!problems.is_empty() && sources > 0, "{problems:?}");
                assert!(problems.len() <= 4 * 17, "{} problems", problems.len());
                for problem in problems {
                    assert!(problem.subject.starts_with("user data from "), "{problem:?}");
                    assert!(!problem.message.is_empty() && problem.message.len() < 4096, "{problem:?}");
                }
            }
        }
    });
}

fn write(root: &Path, kind: u8, content: &[u8]) {
    let word = |content: &[u8]| format!("caisson.user-data={}", STANDARD.encode(content)).into_bytes();
    let (file, content) = match kind % 9 {
        0 => (STATE, content.to_vec()),
        1 => (FW_CFG, content.to_vec()),
        2 => (CMDLINE, content.to_vec()),
        3 => (CMDLINE, [b"quiet ", word(content).as_slice(), b"\n"].concat()),
        4 => (SMBIOS, content.to_vec()),
        5 => (SMBIOS, smbios(&word(content))),
        // What is compressed well is found by nobody who changes bytes here and there.
        6 => (STATE, gzip(content)),
        7 => (FW_CFG, gzip(content)),
        _ => (SMBIOS, smbios(&word(&gzip(content)))),
    };
    fs::write(root.join(file), content).unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
}

/// A table of one structure for the OEM with one string, and its end.
fn smbios(string: &[u8]) -> Vec<u8> {
    [&[11, 5, 0, 0, 1], string, &[0, 0, 127, 4, 0, 0, 0, 0]].concat()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).and_then(|()| encoder.finish()).unwrap_or_default()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let texts: Vec<Vec<u8>> =
        examples::toml().into_iter().chain(examples::json()).map(String::into_bytes).collect();
    let mut seeds = Vec::new();
    for (kind, text) in (0u8..9).cycle().zip(&texts) {
        seeds.push([&[kind], text.as_slice()].concat());
    }
    // Bytes as they lie there: gzip, base64, a table.
    for text in texts.iter().take(4) {
        seeds.push([&[1], gzip(text).as_slice()].concat());
        let word = format!("caisson.user-data={}", STANDARD.encode(gzip(text)));
        seeds.push([b"\x02quiet caisson.metadata=ec2 ", word.as_bytes()].concat());
        seeds.push([&[4], smbios(word.as_bytes()).as_slice()].concat());
    }
    // All sources at once.
    let all: Vec<Vec<u8>> = [0u8, 1, 3, 5]
        .iter()
        .zip(&texts[1..])
        .map(|(kind, text)| [&[*kind], text.as_slice()].concat())
        .collect();
    seeds.push(all.join(&SEPARATOR[..]));
    seeds.retain(|seed| seed.len() < 8 << 10);
    seeds
}
