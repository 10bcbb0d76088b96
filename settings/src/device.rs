//! `settings.containers.NAME.devices`: devices of the node that a container has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::scalar::{ContainerPath, shown};

/// A device of the node that a container has: `/dev/fuse`, `/dev/fuse:r` or `/dev/ttyS1:/dev/modem:rw`; behind the node's name its own,
/// and what it may do (`r` read, `w` write, `m` make further nodes of it). Only `/dev/fuse`, `/dev/kvm`, `/dev/net/tun`, serial ports
/// (`/dev/ttyS1` to `/dev/ttyS9`) and ports of a virtual machine (`/dev/vport1p1`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Device {
    node: String,
    path: ContainerPath,
    access: Access,
}

/// What may be done with a device: of `rwm`, in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Access {
    read: bool,
    write: bool,
    make: bool,
}

impl Access {
    const DEFAULT: Self = Self { read: true, write: true, make: false };

    fn read(text: &str) -> Option<Self> {
        let has = |letter| text.matches(letter).count() == 1;
        let access = Self { read: has('r'), write: has('w'), make: has('m') };
        let known = [access.read, access.write, access.make].iter().filter(|has| **has).count();
        // A device that it can make and not use is of no use.
        (known == text.len() && (access.read || access.write)).then_some(access)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.read, "r"), (self.write, "w"), (self.make, "m")];
        letters.iter().filter(|(has, _)| *has).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

/// Whether containers may have it. No disk is among them: who reads or writes blocks of one passes by every rule of the file system on it.
/// Nor is what the node itself runs by: its console, clock, watchdog, firmware and its own vsock.
fn may_be_had(node: &str) -> bool {
    let number = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        (1..=2).contains(&text.len()) && plain
    };
    match node {
        "/dev/fuse" | "/dev/kvm" | "/dev/net/tun" => true,
        // The first is the node's console.
        _ if node.starts_with("/dev/ttyS") => {
            matches!(node.strip_prefix("/dev/ttyS").map(str::as_bytes), Some([b'1'..=b'9']))
        }
        _ => node
            .strip_prefix("/dev/vport")
            .and_then(|rest| rest.split_once('p'))
            .is_some_and(|(device, port)| number(device) && number(port)),
    }
}

/// What every container has there by itself.
const TAKEN: [&str; 16] = [
    "console", "fd", "full", "kcore", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
    "stdout", "tty", "urandom", "zero",
];

impl Device {
    /// Its path on the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its path in the container.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// What the container may do with it, as the OCI runtime specification writes it.
    pub fn access(&self) -> String {
        self.access.to_string()
    }

    fn read(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let node = parts.next().unwrap_or_default().to_owned();
        let (path, access) = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => (None, None),
            (Some(path), None, _) if path.starts_with('/') => (Some(path), None),
            (Some(access), None, _) => (None, Some(access)),
            (Some(path), Some(access), None) => (Some(path), Some(access)),
            (.., Some(_)) => return Err(unreadable(text)),
        };
        if !may_be_had(&node) {
            return Err(format!(
                "{} is not a device that containers may have: there are /dev/fuse, /dev/kvm, /dev/net/tun, /dev/ttyS1 to /dev/ttyS9 and \
                 /dev/vport1p1 with its like; disks come as volumes",
                shown(&node)
            ));
        }
        let path = path.unwrap_or(&node).parse::<ContainerPath>().map_err(|_| unreadable(text))?;
        let below = path.as_str().strip_prefix("/dev/").ok_or_else(|| {
            format!(
                "{} is not a place for a device in a container: it has to be in /dev",
                shown(path.as_str())
            )
        })?;
        let first = below.split('/').next().unwrap_or_default();
        if TAKEN.contains(&first) {
            return Err(format!("{} is there in every container", shown(path.as_str())));
        }
        let access = access.map_or(Some(Access::DEFAULT), Access::read).ok_or_else(|| unreadable(text))?;
        Ok(Self { node, path, access })
    }
}

fn unreadable(text: &str) -> String {
    format!(
        "{} is not a device: write the node's path, with the container's behind it if that is another one, and what it may do if that is \
         not \"rw\", such as /dev/fuse, /dev/fuse:r or /dev/ttyS1:/dev/modem:rw",
        shown(text)
    )
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::read(&text)
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        let mut text = device.node.clone();
        if device.path.as_str() != device.node {
            text.push_str(&format!(":{}", device.path));
        }
        if device.access != Access::DEFAULT {
            text.push_str(&format!(":{}", device.access));
        }
        text
    }
}

const MOST_DEVICES: usize = 16;

/// What must hold of the devices of a container: a reason for each that does not.
pub(crate) fn mistakes(all: &[Device]) -> Vec<String> {
    let mut mistakes = Vec::new();
    if all.len() > MOST_DEVICES {
        mistakes.push(format!("{} are more than the {MOST_DEVICES} that a container can have", all.len()));
    }
    for (at, device) in all.iter().enumerate() {
        let before = &all[..at];
        if before.iter().any(|other| other.path == device.path) {
            mistakes.push(format!("two are to be at {}", shown(device.path())));
        }
        if before.iter().any(|other| other.node == device.node && other.access != device.access) {
            mistakes.push(format!(
                "{} is there twice, with different rights: the wider would hold",
                shown(device.node())
            ));
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;
    use serde_json::json;

    fn device(text: &str) -> Result<Device, String> {
        Device::try_from(text.to_owned())
    }

    #[test]
    fn a_device_has_a_place_and_rights() {
        for (text, node, path, access) in [
            ("/dev/fuse", "/dev/fuse", "/dev/fuse", "rw"),
            ("/dev/fuse:r", "/dev/fuse", "/dev/fuse", "r"),
            ("/dev/net/tun:mwr", "/dev/net/tun", "/dev/net/tun", "rwm"),
            ("/dev/ttyS1:/dev/modem", "/dev/ttyS1", "/dev/modem", "rw"),
            ("/dev/vport2p10:/dev/a/b:w", "/dev/vport2p10", "/dev/a/b", "w"),
        ] {
            let device = device(text).unwrap();
            assert_eq!((device.node(), device.path(), device.access().as_str()), (node, path, access));
            let again = String::from(device.clone());
            assert_eq!(Device::try_from(again).unwrap(), device, "{text}");
        }
    }

    #[test]
    fn what_would_open_the_node_is_refused() {
        for node in [
            "/dev/sda",
            "/dev/vda1",
            "/dev/nvme0n1",
            "/dev/dm-0",
            "/dev/loop0",
            "/dev/mem",
            "/dev/kmsg",
            "/dev/ttyS0",
            "/dev/ttyS10",
            "/dev/hvc0",
            "/dev/vsock",
            "/dev/watchdog",
            "/dev/rtc0",
            "/dev/port",
            "/dev/../dev/vda",
            "/dev/fuse/../vda",
            "/dev/vport1p",
            "/dev/vport01p1",
            "/dev/vportp1",
            "/dev/net",
            "/proc/kcore",
            "fuse",
            "",
        ] {
            assert!(
                device(node).is_err_and(|error| error.contains("not a device that containers may have")),
                "{node}"
            );
        }
        for (text, expected) in [
            ("/dev/fuse:", "is not a device: write"),
            ("/dev/fuse:x", "is not a device: write"),
            ("/dev/fuse:rr", "is not a device: write"),
            ("/dev/fuse:m", "is not a device: write"),
            ("/dev/fuse:/dev/a:r:w", "is not a device: write"),
            ("/dev/fuse:/dev/../etc/passwd", "is not a device: write"),
            ("/dev/fuse:/etc/fuse", "it has to be in /dev"),
            ("/dev/fuse:/dev/null", "is there in every container"),
            ("/dev/fuse:/dev/pts/0", "is there in every container"),
            ("/dev/fuse:/dev/urandom", "is there in every container"),
        ] {
            let error = device(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn no_two_are_at_one_place_and_none_has_two_kinds_of_rights() {
        let check = |devices| {
            let settings =
                from_json(&json!({"containers": {"web": {"image": "a", "devices": devices}}})).unwrap();
            settings.check().map_err(|mistakes| mistakes.to_string())
        };
        check(json!(["/dev/fuse", "/dev/fuse:/dev/other", "/dev/kvm"])).unwrap();
        for (devices, expected) in [
            (
                json!(["/dev/fuse:/dev/a", "/dev/kvm:/dev/a"]),
                "settings.containers.web.devices: two are to be at \"/dev/a\"",
            ),
            (json!(["/dev/fuse:r", "/dev/fuse:/dev/a"]), "with different rights"),
            (json!(vec!["/dev/fuse"; 17]), "more than the 16"),
        ] {
            let error = check(devices).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
