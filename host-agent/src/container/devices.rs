//! Devices of the node that a container has by its settings.
//!
//! The shim makes their nodes anew, in a folder of its own, and the runtime mounts them where the container is to have them: so they have
//! another name there, and may be opened whoever the container's users are. What may be done with them the control group says.

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use settings::Device;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A device as the kernel numbers it, and where a container has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    major: u64,
    minor: u64,
    access: String,
    path: String,
}

/// Finds what settings name. It has to be there, and to be a device of characters.
pub(super) fn find(devices: &[Device]) -> Result<Vec<Node>, String> {
    devices.iter().map(find_one).collect()
}

fn find_one(device: &Device) -> Result<Node, String> {
    let name = device.node();
    let metadata = fs::symlink_metadata(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("the node has no {name}"),
        _ => format!("{name} cannot be looked at: {error}"),
    })?;
    if !metadata.file_type().is_char_device() {
        return Err(format!("{name} of the node is not a device of characters"));
    }
    let number = metadata.rdev();
    let (access, path) = (device.access(), device.path().to_owned());
    Ok(Node { major: major(number), minor: minor(number), access, path })
}

/// What the runtime is told: what may be done with them, for the control group.
pub(super) fn rules(nodes: &[Node]) -> Vec<Value> {
    let rule = |node: &Node| json!({"allow": true, "type": "c", "major": node.major, "minor": node.minor, "access": node.access});
    nodes.iter().map(rule).collect()
}

/// The same: where they are mounted.
pub(super) fn mounts(nodes: &[Node], folder: &Path) -> Vec<Value> {
    let mount = |(at, node): (usize, &Node)| {
        json!({
            "destination": node.path, "type": "bind", "source": made(folder, at),
            "options": ["bind", "rw", "nosuid", "noexec"],
        })
    };
    nodes.iter().enumerate().map(mount).collect()
}

fn made(folder: &Path, at: usize) -> PathBuf {
    folder.join(at.to_string())
}

/// Makes them, where no other device is let in.
pub(super) fn make(nodes: &[Node], folder: &Path) -> io::Result<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devices"), folder, Some("tmpfs"), flags, Some("mode=755,size=64k"))?;
    for (at, node) in nodes.iter().enumerate() {
        let path = made(folder, at);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(node.major, node.minor))?;
        // Whatever the umask is.
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_number_or_told_as_missing() {
        let device = |text: &str| Device::try_from(text.to_owned()).unwrap();
        let error = find(&[device("/dev/vport77p7")]).unwrap_err();
        assert_eq!(error, "the node has no /dev/vport77p7");
        let node = Node { major: 10, minor: 229, access: "rw".to_owned(), path: "/dev/a/fuse".to_owned() };
        let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
        assert_eq!(rules(std::slice::from_ref(&node)), [rule]);
        let mount = &mounts(&[node], Path::new("/run/x"))[0];
        assert_eq!((&mount["source"], &mount["destination"]), (&json!("/run/x/0"), &json!("/dev/a/fuse")));
        assert!(!mount["options"].to_string().contains("nodev"));
    }
}
