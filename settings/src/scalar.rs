//! One type for each kind of value: what exists is valid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Declares a string that is checked when it is made.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(&text).map(|()| Self(text))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::try_from(text.to_owned())
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

pub(crate) use checked_string;

/// A value in an error: short, whatever it was.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// A name in an error: whole if it can be one at all, else its beginning.
pub(crate) fn shortened(name: &str) -> String {
    match name.char_indices().nth(300) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}...", &name[..end]),
    }
}

checked_string!(
    /// The message of the day: at most 4096 bytes.
    Motd,
    |text| match () {
        () if text.len() > 4096 => Err(format!("{} bytes are more than the 4096 of a message of the day", text.len())),
        () if text.contains('\0') => Err("a message of the day cannot hold a zero byte".to_owned()),
        () => Ok(()),
    }
);

checked_string!(
    /// A host name: at most 64 characters, parts of a-z, 0-9 and `-` joined by `.` (RFC 1123).
    Hostname,
    |text| {
        // The kernel's limit is shorter than that of names in the DNS.
        if text.len() <= 64 && is_domain(text) {
            return Ok(());
        }
        Err(format!("{} is not a host name: at most 64 characters, parts of a-z, 0-9 and '-' joined by '.' (RFC 1123)", shown(text)))
    }
);

/// Whether it is a name in the DNS, of letters, digits and '-' (RFC 1123, section 2.1).
pub(crate) fn is_domain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(label)
}

checked_string!(
    /// A name in the DNS: at most 253 characters, parts of a-z, 0-9 and `-` joined by `.` (RFC 1123).
    DomainName,
    |text| {
        if is_domain(text) {
            return Ok(());
        }
        Err(format!("{} is not a name of a host or domain: at most 253 characters, parts of a-z, 0-9 and '-' joined by '.' (RFC 1123)", shown(text)))
    }
);

/// An IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Address(IpAddr);

impl Address {
    pub fn get(self) -> IpAddr {
        self.0
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{} is not an IP address, such as 10.0.0.1 or fd00::1", shown(&text));
        text.parse().map(Self).map_err(|_| wrong())
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0.to_string()
    }
}

checked_string!(
    /// A server: a host or address, with `http://` or `https://` before it and a port after it where they are needed. No path,
    /// no user, no password.
    Origin,
    |text| {
        let (scheme, authority) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(("", authority), |(host, port)| (host, port)),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let host_is_fine = match authority.starts_with('[') {
            true => host.parse::<Ipv6Addr>().is_ok(),
            false => is_domain(host),
        };
        let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if matches!(scheme, None | Some("http" | "https")) && host_is_fine && port_is_fine {
            return Ok(());
        }
        Err(format!("{} is not a server, such as https://proxy.example.com:3128: it may have http:// or https://, a host and a port, and no path, user or password", shown(text)))
    }
);

impl Origin {
    /// `http` or `https`, if it says.
    pub fn scheme(&self) -> Option<&str> {
        self.split_once("://").map(|(scheme, _)| scheme)
    }

    /// Its host, and its port if it says.
    pub fn authority(&self) -> &str {
        let rest = self.split_once("://").map_or(self.as_str(), |(_, rest)| rest);
        rest.strip_suffix('/').unwrap_or(rest)
    }
}

checked_string!(
    /// The name of a container: at most 63 of a-z, 0-9 and `-`, not `-` at an end.
    ContainerName,
    |text| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let edges = text.bytes().next().is_some_and(plain) && text.bytes().last().is_some_and(plain);
        if edges && text.len() <= 63 && text.bytes().all(|byte| plain(byte) || byte == b'-') {
            return Ok(());
        }
        Err(format!("{} is not a name for a container: at most 63 of a-z, 0-9 and '-', not '-' at an end", shown(text)))
    }
);

checked_string!(
    /// A name of what the node itself runs: at most 76 letters, digits and `-`, and not `current`.
    Identifier,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        // In a container, `current` is the name of its own folder beside those of the others.
        if (1..=76).contains(&text.len()) && text.bytes().all(plain) && text != "current" {
            return Ok(());
        }
        Err(format!("{} is not a name: at most 76 letters, digits and '-', and not \"current\"", shown(text)))
    }
);

checked_string!(
    /// Reference of an image, as in `docker pull`: `[registry[:port]/]repository[:tag][@digest]`; a digest is a SHA-256.
    ImageReference,
    |text| {
        if text.len() <= 255 && is_image_reference(text) {
            return Ok(());
        }
        Err(format!(
            "{} is not an image reference: write it as registry.example:5000/team/app:tag or .../app@sha256: and 64 hexadecimal digits; team and app are in small letters",
            shown(text)
        ))
    }
);

/// What a reference is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageParts<'a> {
    /// With the registry, where it names one.
    pub name: &'a str,
    pub tag: Option<&'a str>,
    /// `sha256:…`
    pub digest: Option<&'a str>,
}

impl ImageReference {
    pub fn parts(&self) -> ImageParts<'_> {
        split_image_reference(self.as_str())
    }
}

fn split_image_reference(text: &str) -> ImageParts<'_> {
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    // Before the last `/`, a `:` is that of a port.
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    match rest[last..].split_once(':') {
        Some((part, tag)) => ImageParts { name: &rest[..last + part.len()], tag: Some(tag), digest },
        None => ImageParts { name: rest, tag: None, digest },
    }
}

/// By the grammar that registries keep (OCI Distribution Specification 1.1, "Pulling manifests"; and `docker pull`'s for hosts).
fn is_image_reference(text: &str) -> bool {
    let ImageParts { name: path, tag, digest } = split_image_reference(text);
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_digest = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_hex))
    };
    let is_tag = |tag: &str| {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        tag.len() <= 128
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte))
    };
    let is_host = |host: &str| {
        let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        host.split('.').all(is_label)
            && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let is_part = |part: &str| {
        let is_plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
        // What is between two of them; nothing may be before the first or behind the last.
        let is_between = |between: &str| {
            ["", ".", "_", "__"].contains(&between) || between.bytes().all(|byte| byte == b'-')
        };
        part.starts_with(is_plain) && part.ends_with(is_plain) && part.split(is_plain).all(is_between)
    };
    let path_is_fine = match path.split_once('/') {
        Some((first, rest)) => (is_host(first) || is_part(first)) && rest.split('/').all(is_part),
        // It is looked for as `docker.io/library/NAME`, which may have 255 characters behind the host.
        None => is_part(path) && path.len() <= 255 - "library/".len(),
    };
    path_is_fine && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

checked_string!(
    /// One item of a command: at most 65536 bytes.
    Argument,
    |text| match () {
        () if text.contains('\0') => Err("an item of a command cannot hold a zero byte".to_owned()),
        () if text.len() > 65_536 => Err(format!("{} bytes are more than the 65536 of an item of a command", text.len())),
        () => Ok(()),
    }
);

checked_string!(
    /// Name of an environment variable: letters, digits and `_`, not a digit first.
    EnvName,
    |text| {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if first && text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Ok(());
        }
        Err(format!("{} is not a name for an environment variable: letters, digits and '_', not a digit first", shown(text)))
    }
);

/// Value of an environment variable: at most 65536 bytes. It may be a secret, and is in no error and no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct EnvValue(String);

impl EnvValue {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EnvValue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.contains('\0') || text.len() > 65_536 {
            return Err(
                "the value of an environment variable has at most 65536 bytes, none of them zero".to_owned()
            );
        }
        Ok(Self(text))
    }
}

impl fmt::Debug for EnvValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// A size of memory: a whole number with KiB, MiB or GiB, from 1MiB to 16384GiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Memory {
    text: String,
    bytes: u64,
}

impl Memory {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        let bytes = units
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*factor));
        match bytes {
            Some(bytes) if (1 << 20..=1 << 44).contains(&bytes) => Ok(Self { text, bytes }),
            Some(_) => Err(format!("{} is not between 1MiB and 16384GiB", shown(&text))),
            None => Err(format!(
                "{} is not a size: write a whole number and KiB, MiB or GiB, such as \"64MiB\"",
                shown(&text)
            )),
        }
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.text
    }
}

checked_string!(
    /// A place in a container: an absolute path without `.`, `..` and empty parts, not `/` itself; at most 1024 bytes.
    ContainerPath,
    |text| {
        let part = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        let is_fine = text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part));
        if is_fine && text.len() <= 1024 {
            return Ok(());
        }
        Err(format!("{} is not a place in a container: write an absolute path without \"..\", such as /var/lib/app", shown(text)))
    }
);

checked_string!(
    /// A user, by name or number, and a group after `:` if it is to be another one than the user's.
    ContainerUser,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let name = |name: &str| (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('-');
        if text.splitn(2, ':').all(name) {
            return Ok(());
        }
        Err(format!("{} is not a user: write a name or a number of the image, with \":\" and a group behind it where that is needed, such as app or 1000:1000", shown(text)))
    }
);

/// Processors: `"0.01"` to `"1024"`, with at most two digits behind the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Cpus {
    text: String,
    hundredths: u32,
}

impl Cpus {
    /// Hundredths of a processor.
    pub fn hundredths(&self) -> u32 {
        self.hundredths
    }
}

impl TryFrom<String> for Cpus {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (whole, part) = text.split_once('.').unwrap_or((&text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = (digits(whole) && digits(part) && whole.len() <= 4 && part.len() <= 2)
            .then(|| format!("{whole}{part:0<2}").parse().ok())
            .flatten();
        match number.filter(|number| (1..=102_400).contains(number)) {
            Some(hundredths) => Ok(Self { text, hundredths }),
            None => Err(format!(
                "{} is not a number of processors: write 0.01 to 1024, with at most two digits behind the point, such as \"1.5\"",
                shown(&text)
            )),
        }
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> Self {
        cpus.text
    }
}

/// A time of 1 to 86400 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 86400))]
pub struct Seconds(u32);

impl Seconds {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Seconds {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let seconds = u32::try_from(number).ok().filter(|seconds| (1..=86_400).contains(seconds));
        seconds.map(Self).ok_or_else(|| format!("{number} is not between 1 and 86400 seconds"))
    }
}

/// A port of TCP or UDP, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 65535))]
pub struct Port(u16);

impl Port {
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u64> for Port {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.map(Self).ok_or_else(|| format!("{number} is not a port: there are 1 to 65535"))
    }
}

/// A limit on processes and threads, 1 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 65536))]
pub struct Pids(u32);

impl Pids {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Pids {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        u32::try_from(number)
            .ok()
            .filter(|number| (1..=65_536).contains(number))
            .map(Self)
            .ok_or_else(|| format!("{number} is not between 1 and 65536"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn image_references() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for fine in [
            "busybox",
            "localhost/busybox:latest",
            "Registry.example:5000/team/app:V1.2_3-",
            "a--b/c__d/e.f_g",
            "127.0.0.1:5000/a",
            "localhost:5000",
            &digest,
        ] {
            assert!(fine.parse::<ImageReference>().is_ok(), "{fine}");
        }
        for wrong in [
            "",
            "a b",
            "/a",
            "a//b",
            "../a",
            "a@sha256:12",
            "a:",
            "-a",
            "a@md5:0",
            "Busybox",
            "a/B",
            "a/b:5000/c",
            "a..b",
            "a___b",
            "a:-b",
            "-a.b/c",
            "a.b:/c",
            "a/b-",
        ] {
            assert!(wrong.parse::<ImageReference>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_of_what_the_node_runs() {
        for fine in ["admin", "A-1", &"a".repeat(76)] {
            assert!(fine.parse::<Identifier>().is_ok(), "{fine}");
        }
        for wrong in ["", "a_b", "a.b", "../a", "current", &"a".repeat(77)] {
            assert!(wrong.parse::<Identifier>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_names() {
        for fine in ["a", "node-1", "node-1.example.com", "9"] {
            assert!(fine.parse::<Hostname>().is_ok(), "{fine}");
        }
        for wrong in ["", "a_b", "-a", "a-", "a..b", ".a", "a b", &"a".repeat(65)] {
            assert!(wrong.parse::<Hostname>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn servers() {
        for (text, scheme, authority) in [
            ("proxy", None, "proxy"),
            ("10.0.0.1:3128", None, "10.0.0.1:3128"),
            ("https://[fd00::1]:443", Some("https"), "[fd00::1]:443"),
            ("http://a.example/", Some("http"), "a.example"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert_eq!((origin.scheme(), origin.authority()), (scheme, authority));
        }
        for wrong in [
            "",
            "http://",
            "ftp://a",
            "http://a/b",
            "http://u:p@a",
            "a:0",
            "a:65536",
            "a:",
            "[::1",
            "[a]",
            "a b",
            "a\n",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(Memory::try_from("64MiB".to_owned()).unwrap().bytes(), 64 << 20);
        for wrong in ["64", "64MB", "0MiB", "-1MiB", "99999999999999GiB", "1.5GiB", "MiB"] {
            assert!(Memory::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn processors() {
        for (text, hundredths) in [("1", 100), ("1.5", 150), ("0.05", 5), ("1024", 102_400)] {
            assert_eq!(Cpus::try_from(text.to_owned()).unwrap().hundredths(), hundredths, "{text}");
        }
        for wrong in ["", "0", "0.00", "1.", ".5", "1.005", "-1", "1025", "99999999999", "1e3"] {
            assert!(Cpus::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_and_users_of_containers() {
        for (text, is_fine) in
            [("/a/b", true), ("/", false), ("a", false), ("/a//b", false), ("/a/../b", false), ("/a/", false)]
        {
            assert_eq!(text.parse::<ContainerPath>().is_ok(), is_fine, "{text}");
        }
        for (text, is_fine) in
            [("app", true), ("1000:1000", true), ("a:b:c", false), (":b", false), ("a:", false), ("", false)]
        {
            assert_eq!(text.parse::<ContainerUser>().is_ok(), is_fine, "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let value = EnvValue::try_from("hunter2".to_owned()).unwrap();
        assert!(!format!("{value:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_comes_back_the_same(text in "\\PC{0,80}") {
            if let Ok(name) = text.parse::<ImageReference>() { prop_assert_eq!(name.as_str(), &text); }
            if let Ok(name) = text.parse::<Hostname>() { prop_assert_eq!(name.as_str(), &text); }
            if let Ok(memory) = Memory::try_from(text.clone()) { prop_assert_eq!(String::from(memory), text); }
        }
    }
}
