//! The root that runs, as the kernel's command line names it (kernel: `admin-guide/device-mapper/dm-init.rst`).

use std::fs;
use update::manifest::Hash;

/// A verified root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    pub hash: Hash,
    pub blocks: u64,
}

impl Running {
    pub(super) fn read() -> Result<Self, String> {
        let cmdline = fs::read_to_string("/proc/cmdline")
            .map_err(|error| format!("cannot read the kernel's command line: {error}"))?;
        Self::parse(&cmdline).ok_or_else(|| {
            "the kernel's command line names no root that is verified by its hash: the VMM passes another one than the image's".to_owned()
        })
    }

    /// `… verity 1 DATA HASHES 4096 4096 BLOCKS START sha256 HASH SALT …`
    pub fn parse(cmdline: &str) -> Option<Self> {
        let mut words = cmdline.split_whitespace().skip_while(|word| *word != "verity").skip(6);
        let blocks = words.next()?.parse().ok()?;
        let hash = words.skip_while(|word| *word != "sha256").nth(1)?.parse().ok()?;
        Some(Self { hash, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_that_the_command_line_names() {
        let hash = "ab".repeat(32);
        let cmdline = format!(
            "quiet dm-mod.create=\"root,,0,ro,0 51200 verity 1 PARTUUID=a PARTUUID=b 4096 4096 6400 1 sha256 {hash} 00 1 panic_on_corruption\" root=/dev/dm-0"
        );
        let running = Running::parse(&cmdline).unwrap();
        assert_eq!((running.blocks, running.hash.to_string()), (6400, hash));
        assert_eq!(Running::parse("quiet root=/dev/vda"), None);
    }
}
