//! Looks at all sources but the metadata service.

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use settings::LARGEST_USER_DATA;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::content::unpack;
use super::source::{Found, STATE_FILE, STATE_NET_TOML, Source, Wrong};
use super::words::{self, Said};
use super::{nocloud, smbios};

const CMDLINE: &str = "/proc/cmdline";
/// Files of fw_cfg with names of ours (QEMU's docs/specs/fw_cfg.rst: users' names are below `opt/`).
const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/caisson";
/// The table as it is in memory. Unlike `/sys/firmware/dmi/entries` it needs nothing of the kernel but CONFIG_DMI.
const SMBIOS: &str = "/sys/firmware/dmi/tables/DMI";
/// The table of SMBIOS 2 has at most 64 KiB; that of 3 may hold the largest user data as base64, and more.
const LARGEST_SMBIOS: u64 = 256 << 10;
const BLOCK_DEVICES: &str = "/sys/class/block";
/// NoCloud disks that are read; with more, somebody makes fun of us.
const MOST_DISKS: usize = 8;

/// What there is, the first in precedence first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Collected {
    pub found: Vec<Found>,
    pub wrong: Vec<Wrong>,
    /// Somebody asks for the metadata service.
    pub metadata: bool,
}

impl Collected {
    /// Takes what was read of a source, not unpacked yet.
    pub(super) fn add(&mut self, source: Source, raw: Result<Option<Vec<u8>>, String>) {
        let unpacked = raw.and_then(|raw| raw.map_or(Ok(None), |raw| unpack(&raw)));
        match unpacked {
            Ok(Some(content)) => self.found.push(Found { source, content }),
            Ok(None) => {}
            Err(message) => self.wrong.push(Wrong { source, message }),
        }
    }

    fn add_said(&mut self, source: &Source, said: Said) {
        if let Some(user_data) = said.user_data {
            self.add(source.clone(), user_data.map(Some));
        }
        self.add_switch(source, said.metadata);
    }

    fn add_switch(&mut self, source: &Source, metadata: Option<Result<(), String>>) {
        match metadata {
            Some(Ok(())) => self.metadata = true,
            Some(Err(message)) => self.wrong.push(Wrong { source: source.clone(), message }),
            None => {}
        }
    }
}

/// Looks everywhere below `root`, which is `/` but in tests. Blocks.
pub(super) fn collect(root: &Path) -> Collected {
    let mut collected = Collected::default();
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let told = |read: io::Result<Option<Vec<u8>>>| read.map_err(|error| error.to_string());

    let cmdline = fs::read_to_string(below(CMDLINE)).unwrap_or_default();
    collected.add_said(&Source::CommandLine, words::of_cmdline(&cmdline));

    let fw_cfg = |name: &str| told(read_bounded(&below(FW_CFG).join(name).join("raw")));
    collected.add(Source::FwCfg, fw_cfg("user-data"));
    collected.add(Source::FwCfgNetToml, fw_cfg("net.toml"));
    collected.add_switch(&Source::FwCfg, fw_cfg_switch(fw_cfg("metadata")));

    let mut table = Vec::new();
    // A machine without the table has none of its strings either.
    let _ = File::open(below(SMBIOS)).and_then(|file| file.take(LARGEST_SMBIOS).read_to_end(&mut table));
    collected.add_said(&Source::Smbios, words::of_strings(smbios::oem_strings(&table)));

    let disks = nocloud::devices(&below(BLOCK_DEVICES)).into_iter();
    let disks = disks.filter_map(|device| nocloud::read(&device).map(|disk| (device, disk)));
    for (device, disk) in disks.take(MOST_DISKS) {
        match disk {
            Ok(disk) => {
                collected.add(Source::NoCloud(device.clone()), told(disk.user_data));
                collected.add(Source::NoCloudNetToml(device), told(disk.net_toml));
            }
            Err(error) => collected.add(Source::NoCloud(device), told(Err(error))),
        }
    }
    collected.add(Source::StateFile, told(read_bounded(&below(STATE_FILE))));
    collected.add(Source::StateNetToml, told(read_bounded(&below(STATE_NET_TOML))));
    collected
}

/// An empty file asks for nothing.
fn fw_cfg_switch(read: Result<Option<Vec<u8>>, String>) -> Option<Result<(), String>> {
    let read = read.map(|content| String::from_utf8_lossy(&content.unwrap_or_default()).into_owned());
    let value = read.map(|text| text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned());
    match value {
        Ok(value) if value.is_empty() => None,
        value => Some(value.and_then(|value| words::asks_for_ec2(&value))),
    }
}

/// Reads a file of at most the size of user data; none where there is no file. A disk of somebody else may have anything of
/// that name: what is no file is not waited for, and a link is not followed.
pub(super) fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::options().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut content = Vec::new();
    let most = LARGEST_USER_DATA as u64 + 1;
    file.take(most).read_to_end(&mut content)?;
    if content.len() as u64 == most {
        return Err(io::Error::other(format!("it is larger than {LARGEST_USER_DATA} bytes")));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::super::content::tests::gzip;
    use super::super::smbios::tests::table;
    use super::*;
    use tempfile::TempDir;

    fn machine(files: &[(&str, &[u8])]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn fw_cfg(name: &str) -> String {
        format!("{FW_CFG}/{name}/raw")
    }

    #[test]
    fn every_source_is_read_and_has_its_place() {
        let packed = gzip(b"fw");
        let root = machine(&[
            (STATE_FILE, b"state"),
            (STATE_NET_TOML, b"state net"),
            (&fw_cfg("net.toml"), b"fw net"),
            (SMBIOS, &table(&["caisson.user-data=c21iaW9z", "caisson.metadata=ec2"])),
            (&fw_cfg("user-data"), &packed),
            (CMDLINE, b"quiet caisson.user-data=Y21kbGluZQ==\n"),
        ]);
        let collected = collect(root.path());
        let found: Vec<_> = collected
            .found
            .iter()
            .map(|found| (found.source.clone(), std::str::from_utf8(&found.content).unwrap()))
            .collect();
        let expected = [
            (Source::CommandLine, "cmdline"),
            (Source::FwCfg, "fw"),
            (Source::FwCfgNetToml, "fw net"),
            (Source::Smbios, "smbios"),
            (Source::StateFile, "state"),
            (Source::StateNetToml, "state net"),
        ];
        assert_eq!(found, expected);
        assert!(found.is_sorted_by_key(|(source, _)| source.clone()));
        assert!(collected.wrong.is_empty() && collected.metadata);
    }

    #[test]
    fn a_machine_without_user_data_says_nothing() {
        assert_eq!(collect(machine(&[]).path()), Collected::default());
        let empty =
            machine(&[(CMDLINE, b"quiet\n"), (&fw_cfg("user-data"), b"\0"), (&fw_cfg("metadata"), b"\n\0")]);
        assert_eq!(collect(empty.path()), Collected::default());
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let large = vec![b'a'; LARGEST_USER_DATA + 1];
        let root = machine(&[
            (CMDLINE, b"caisson.user-data=*"),
            (&fw_cfg("user-data"), &large),
            (&fw_cfg("metadata"), b"gce"),
            (SMBIOS, &table(&["caisson.metadata=azure"])),
        ]);
        fs::create_dir_all(root.path().join(&STATE_FILE[1..])).unwrap();
        let collected = collect(root.path());
        let wrong: Vec<String> =
            collected.wrong.iter().map(|wrong| format!("{}: {}", wrong.source, wrong.message)).collect();
        for (wrong, expected) in wrong.iter().zip([
            "the kernel command line: this is not base64",
            "fw_cfg: it is larger than 65536 bytes",
            "fw_cfg: the metadata service \"gce\" is not known",
            "SMBIOS: the metadata service \"azure\" is not known",
            "/state/user-data.toml: it is not a file",
        ]) {
            assert!(wrong.starts_with(expected), "{wrong}");
        }
        assert_eq!(wrong.len(), 5);
        assert!(!collected.metadata && collected.found.is_empty());
    }

    #[test]
    fn neither_a_pipe_nor_a_link_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        std::os::unix::fs::symlink("/proc/version", &link).unwrap();
        assert!(read_bounded(&pipe).is_err() && read_bounded(&link).is_err());
    }
}
