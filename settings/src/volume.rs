//! `settings.containers.NAME.volumes`: folders that a container has beside those of its image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::scalar::{ContainerName, ContainerPath, Memory, checked_string, shown};

/// A folder that a container has beside those of its image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    /// Where it is in the container. Each volume needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/var/lib/app")]
    pub path: Option<ContainerPath>,
    /// `named`: a folder on the data partition that stays; `tmpfs`: in memory, and empty at each start; `host`: a folder of the node;
    /// `disk`: a further disk of the node, by its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"tmpfs", extend("x-default" = "`named`"))]
    pub kind: Option<VolumeKind>,
    /// Which named one it is. Containers that name the same share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"uploads", extend("x-default" = "one of its own, `CONTAINER.VOLUME`"))]
    pub name: Option<ContainerName>,
    /// The folder of the node: one in `/data/mnt`, which can be written to; or `/data/log` or `/sys`, which cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/data/mnt/disk1")]
    pub source: Option<HostPath>,
    /// The label of the disk's ext4: at most 16 letters, digits, `-`, `_` and `.`. Containers that name the same share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"database")]
    pub label: Option<DiskLabel>,
    /// What may be written to one in memory. It counts as the container's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"64MiB", extend("x-default" = "`64MiB`"))]
    pub size: Option<Memory>,
    /// Whether the container cannot write to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub read_only: Option<bool>,
}

/// What a volume is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    #[default]
    Named,
    Tmpfs,
    Host,
    Disk,
}

checked_string!(
    /// The label of a disk: 1 to 16 letters, digits, `-`, `_` and `.`, the first a letter or a digit.
    DiskLabel,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if first && text.len() <= 16 && text.bytes().all(plain) {
            return Ok(());
        }
        Err(format!("{} is not a label of a disk: at most 16 letters, digits, '-', '_' and '.', the first a letter or a digit", shown(text)))
    }
);

checked_string!(
    /// A folder of the node that containers may have: `/data/mnt/NAME`, `/data/log` or `/sys`.
    HostPath,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        // One name: what is below it may be written by a container, and lead anywhere.
        let is_mount = text.strip_prefix("/data/mnt/").is_some_and(|name| {
            (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
        });
        if is_mount || READ_ONLY.contains(&text) {
            return Ok(());
        }
        Err(format!("{} is not a folder of the node that containers may have: there are /data/mnt/NAME, {}", shown(text), READ_ONLY.join(", ")))
    }
);

const READ_ONLY: [&str; 2] = ["/data/log", "/sys"];

impl HostPath {
    /// Whether no container may write to it.
    pub fn is_read_only(&self) -> bool {
        READ_ONLY.contains(&self.as_str())
    }
}

const MOST_VOLUMES: usize = 32;

/// What must hold of the volumes of a container: keys below it, with reasons.
pub(crate) fn mistakes(all: &BTreeMap<ContainerName, Volume>) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    if all.len() > MOST_VOLUMES {
        let reason = format!("{} are more than the {MOST_VOLUMES} that a container can have", all.len());
        mistakes.push(("volumes".to_owned(), reason));
    }
    for (name, volume) in all {
        let mut wrong =
            |key: &str, reason: &str| mistakes.push((format!("volumes.{name}.{key}"), reason.to_owned()));
        let kind = volume.kind.unwrap_or_default();
        match &volume.path {
            None => wrong("path", "missing: where it is in the container"),
            Some(path) => {
                let same = |other: &&Volume| other.path.as_ref() == Some(path);
                if all.values().take_while(|other| !std::ptr::eq(*other, volume)).find(same).is_some() {
                    wrong("path", "another volume is there");
                }
            }
        }
        match (kind, &volume.source) {
            (VolumeKind::Host, None) => wrong("source", "missing: a volume of the kind host needs it"),
            (VolumeKind::Host, Some(source)) if source.is_read_only() && volume.read_only == Some(false) => {
                wrong("read-only", "no container may write there: it has to be true, or not set");
            }
            (VolumeKind::Named | VolumeKind::Tmpfs | VolumeKind::Disk, Some(_)) => {
                wrong("source", "only a volume of the kind host has it");
            }
            _ => {}
        }
        match (kind, &volume.label) {
            (VolumeKind::Disk, None) => wrong("label", "missing: a volume of the kind disk needs it"),
            (VolumeKind::Named | VolumeKind::Tmpfs | VolumeKind::Host, Some(_)) => {
                wrong("label", "only a volume of the kind disk has it");
            }
            _ => {}
        }
        if volume.size.is_some() && kind != VolumeKind::Tmpfs {
            wrong("size", "only a volume of the kind tmpfs has it");
        }
        if volume.name.is_some() && kind != VolumeKind::Named {
            wrong("name", "only a volume of the kind named has it");
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use crate::from_json;
    use serde_json::json;

    #[test]
    fn volumes_are_whole() {
        let check = |volumes| {
            let tree = json!({"containers": {"web": {"image": "a", "volumes": volumes}}});
            from_json(&tree).and_then(|settings| settings.check()).map_err(|mistakes| mistakes.to_string())
        };
        check(json!({"data": {"path": "/data"}})).unwrap();
        check(json!({"data": {"path": "/tmp", "kind": "tmpfs", "size": "1MiB"}})).unwrap();
        check(json!({"data": {"path": "/logs", "kind": "host", "source": "/data/log"}})).unwrap();
        for (volumes, expected) in [
            (json!({"data": {}}), "volumes.data.path: missing"),
            (json!({"a": {"path": "/x"}, "b": {"path": "/x"}}), "volumes.b.path: another volume is there"),
            (json!({"a": {"path": "/x", "kind": "host"}}), "volumes.a.source: missing"),
            (
                json!({"a": {"path": "/x", "source": "/sys"}}),
                "volumes.a.source: only a volume of the kind host",
            ),
            (json!({"a": {"path": "/x", "size": "1MiB"}}), "volumes.a.size: only"),
            (json!({"a": {"path": "/x", "kind": "disk"}}), "volumes.a.label: missing"),
            (json!({"a": {"path": "/x", "label": "db"}}), "volumes.a.label: only a volume of the kind disk"),
            (json!({"a": {"path": "/x", "kind": "disk", "label": "../x"}}), "is not a label of a disk"),
            (
                json!({"a": {"path": "/x", "kind": "host", "source": "/sys", "read-only": false}}),
                "volumes.a.read-only: no container may write",
            ),
            (json!({"a": {"path": "/x", "kind": "host", "source": "/state"}}), "is not a folder of the node"),
            (
                json!({"a": {"path": "/x", "kind": "host", "source": "/data/mnt/../x"}}),
                "is not a folder of the node",
            ),
            (
                json!({"a": {"path": "/x", "kind": "host", "source": "/data/mnt/.."}}),
                "is not a folder of the node",
            ),
            (json!({"a": {"path": "x"}}), "is not a place in a container"),
        ] {
            let error = check(volumes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
