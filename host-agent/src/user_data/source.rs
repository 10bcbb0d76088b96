//! Where user data can be.

use std::fmt;

pub(super) const STATE_FILE: &str = "/state/user-data.toml";
pub(super) const STATE_NET_TOML: &str = "/state/net.toml";

/// In the order of precedence: what an earlier source says of a key holds. First what belongs to one boot, then what belongs to
/// the machine, then what lies on a disk, and last what comes over a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    CommandLine,
    FwCfg,
    FwCfgNetToml,
    Smbios,
    /// Of the block device with this name.
    NoCloud(String),
    NoCloudNetToml(String),
    StateFile,
    StateNetToml,
    Metadata,
}

impl Source {
    /// Whether it has Bottlerocket's net.toml, rather than settings.
    pub(super) fn is_net_toml(&self) -> bool {
        matches!(self, Self::FwCfgNetToml | Self::NoCloudNetToml(_) | Self::StateNetToml)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the kernel command line"),
            Self::FwCfg => f.write_str("fw_cfg"),
            Self::FwCfgNetToml => f.write_str("net.toml in fw_cfg"),
            Self::Smbios => f.write_str("SMBIOS"),
            Self::NoCloud(device) => write!(f, "the NoCloud disk {device}"),
            Self::NoCloudNetToml(device) => write!(f, "net.toml of the NoCloud disk {device}"),
            Self::StateFile => f.write_str(STATE_FILE),
            Self::StateNetToml => f.write_str(STATE_NET_TOML),
            Self::Metadata => f.write_str("the metadata service"),
        }
    }
}

/// A source that has something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub source: Source,
    /// Unpacked, and at most [`settings::LARGEST_USER_DATA`] bytes.
    pub content: Vec<u8>,
}

/// A source that has something which cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub source: Source,
    pub message: String,
}

/// All names, for a sentence.
pub(super) fn names<'a>(sources: impl Iterator<Item = &'a Source>) -> String {
    let names: Vec<String> = sources.map(ToString::to_string).collect();
    match names.as_slice() {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        names => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_a_sentence() {
        let all = [Source::FwCfg, Source::NoCloud("vdb".to_owned()), Source::StateFile];
        assert_eq!(names(all.iter()), "fw_cfg, the NoCloud disk vdb and /state/user-data.toml");
        assert_eq!(names(all[..2].iter()), "fw_cfg and the NoCloud disk vdb");
        assert_eq!(names(all[..1].iter()), "fw_cfg");
    }
}
