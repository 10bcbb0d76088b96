//! What a repository offers: its target `manifest.json`, as a publisher writes it and a node reads it.
//!
//! What is not known is kept by who rewrites a manifest, and ignored by a node: a publisher may say more than an old node
//! understands. What would mislead a node that does not understand it comes with another `format`, which is refused.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

use crate::waves::Waves;

/// The name of the manifest among the targets.
pub const MANIFEST: &str = "manifest.json";
/// Bytes that a manifest may have.
pub const LARGEST_MANIFEST: usize = 1 << 20;
const FORMAT: u32 = 1;
const MOST_LINES: usize = 64;
const MOST_UPDATES: usize = 256;
const MOST_PATCHES: usize = 64;
/// Bytes of a version.
const LONGEST_VERSION: usize = 64;
/// Bytes of a name of a variant, an architecture or a target.
const LONGEST_NAME: usize = 200;
/// Bytes of a file: 16 GiB.
const LARGEST_FILE: u64 = 16 << 30;
const BLOCK: u64 = 4096;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error("it has {0} bytes, more than the {LARGEST_MANIFEST} of a manifest")]
    TooLarge(usize),
    #[error(
        "it is of format {0}, and this version reads format {FORMAT}: install a version in between first, which the publisher names"
    )]
    Format(u64),
    #[error("{key}: {reason}")]
    Wrong { key: String, reason: String },
}

/// A version, as semver.org 2.0.0 has it; at most 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(semver::Version);

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST_VERSION {
            return Err(format!("{} bytes are more than the {LONGEST_VERSION} of a version", text.len()));
        }
        let wrong = |error| format!("{text:?} is not a version, such as 1.2.0 (semver.org): {error}");
        semver::Version::parse(text).map(Self).map_err(wrong)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The root hash of dm-verity, which names a root to the bit; or SHA-256 of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let is_plain = text.len() == 64 && text.bytes().all(|byte| !byte.is_ascii_uppercase());
        let bytes: Option<Vec<u8>> = text
            .as_bytes()
            .chunks(2)
            .map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?))
            .collect();
        let bytes = bytes.filter(|_| is_plain).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| "not a hash of 64 hexadecimal digits, a to f small".to_owned())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A name of a variant, an architecture or a target: at most 200 letters, digits, `.`, `_`, `-` and `+`, not `.` first. It is
/// safe as a part of a path or URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
        if (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.') {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(60).collect();
        Err(format!(
            "{shown:?} is not a name: at most {LONGEST_NAME} letters, digits, '.', '_', '-' and '+', not '.' first"
        ))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number of bytes that a file or a root can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Size(u64);

impl Size {
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Size {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        match bytes {
            1..=LARGEST_FILE => Ok(Self(bytes)),
            _ => Err(format!("{bytes} bytes: a size is 1 to {LARGEST_FILE}")),
        }
    }
}

/// Text in JSON.
macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Version Hash Name);

/// All that a repository offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    format: u32,
    /// One for each variant and architecture.
    pub lines: Vec<Line>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// The versions of one variant on one architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    pub variant: Name,
    pub arch: Name,
    /// Nothing above it is installed, and a node that is above it goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_version: Option<Version>,
    /// Nothing below it is installed, whatever a node asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Version>,
    pub updates: Vec<Update>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Update {
    pub version: Version,
    pub root: Root,
    /// The unified kernel image, as a target.
    pub uki: Uki,
    /// None: all nodes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waves: Option<Waves>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// The root, and the ways to get it. Whatever the way, what it gives must have this hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Root {
    pub hash: Hash,
    /// Whole blocks of 4096 bytes.
    pub size: Size,
    /// All of it, in chunks that are packed each for itself ([`crate::chunks`]).
    pub full: File,
    /// The hashes of its blocks, 32 bytes each, in order: by them a node with any older version knows which chunks it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<File>,
    /// What differs from older roots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<Patch>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// A target, and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub target: Name,
    pub size: Size,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Hash of what it changes: of a root, its root hash.
    pub from: Hash,
    pub target: Name,
    pub size: Size,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uki {
    /// What it is called on the ESP, without the counter of tries.
    pub name: Name,
    pub target: Name,
    pub size: Size,
    pub sha256: Hash,
    /// What differs from older kernel images: `from` is the SHA-256 of one ([`crate::file`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<Patch>,
}

impl Update {
    pub fn new(version: Version, root: Root, uki: Uki, waves: Option<Waves>) -> Self {
        Self { version, root, uki, waves, extra: Map::new() }
    }

    /// All targets that it is made of.
    pub fn targets(&self) -> impl Iterator<Item = &Name> {
        let leaves = self.root.leaves.iter().map(|leaves| &leaves.target);
        let patches = self.root.patches.iter().chain(&self.uki.patches).map(|patch| &patch.target);
        [&self.uki.target, &self.root.full.target].into_iter().chain(leaves).chain(patches)
    }
}

impl Root {
    pub fn new(hash: Hash, size: Size, full: File, leaves: Option<File>, patches: Vec<Patch>) -> Self {
        Self { hash, size, full, leaves, patches, extra: Map::new() }
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self { format: FORMAT, lines: Vec::new(), extra: Map::new() }
    }
}

/// Read before anything else, as what comes with another format may have another shape.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

impl Manifest {
    /// Reads what came from outside.
    pub fn parse(data: &[u8]) -> Result<Self, ManifestError> {
        if data.len() > LARGEST_MANIFEST {
            return Err(ManifestError::TooLarge(data.len()));
        }
        let head: Head = read(data)?;
        if head.format != u64::from(FORMAT) {
            return Err(ManifestError::Format(head.format));
        }
        let manifest: Self = read(data)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// As it is published: newest versions first. Fails for what no node would read.
    pub fn write(mut self) -> Result<Vec<u8>, ManifestError> {
        for line in &mut self.lines {
            line.updates.sort_by(|a, b| b.version.cmp(&a.version));
        }
        self.lines.sort_by(|a, b| (&a.variant, &a.arch).cmp(&(&b.variant, &b.arch)));
        let mut data = serde_json::to_vec_pretty(&self)
            .map_err(|error| ManifestError::Wrong { key: ".".to_owned(), reason: error.to_string() })?;
        data.push(b'\n');
        Self::parse(&data)?;
        Ok(data)
    }

    pub fn line(&self, variant: &str, arch: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.variant.as_str() == variant && line.arch.as_str() == arch)
    }

    /// The line of a variant, which is made if there is none.
    pub fn line_mut(&mut self, variant: &Name, arch: &Name) -> &mut Line {
        let is_it = |line: &Line| line.variant == *variant && line.arch == *arch;
        let index = self.lines.iter().position(is_it).unwrap_or_else(|| {
            let (variant, arch) = (variant.clone(), arch.clone());
            let line =
                Line { variant, arch, max_version: None, floor: None, updates: vec![], extra: Map::new() };
            self.lines.push(line);
            self.lines.len() - 1
        });
        &mut self.lines[index]
    }

    fn check(&self) -> Result<(), ManifestError> {
        let wrong = |key: String, reason: String| Err(ManifestError::Wrong { key, reason });
        if self.lines.len() > MOST_LINES {
            return wrong("lines".to_owned(), format!("{} are more than {MOST_LINES}", self.lines.len()));
        }
        for (index, line) in self.lines.iter().enumerate() {
            let here = format!("lines[{index}]");
            let is_same = |other: &Line| other.variant == line.variant && other.arch == line.arch;
            if self.lines[..index].iter().any(is_same) {
                return wrong(here, format!("variant {} on {} is there twice", line.variant, line.arch));
            }
            line.check(&here)?;
        }
        Ok(())
    }
}

impl Line {
    fn check(&self, here: &str) -> Result<(), ManifestError> {
        let wrong = |key: String, reason: String| Err(ManifestError::Wrong { key, reason });
        if let (Some(floor), Some(max)) = (&self.floor, &self.max_version)
            && floor > max
        {
            let reason = format!("{floor} is above max-version, {max}: no version is between them");
            return wrong(format!("{here}.floor"), reason);
        }
        if self.updates.len() > MOST_UPDATES {
            let reason = format!("{} are more than {MOST_UPDATES}", self.updates.len());
            return wrong(format!("{here}.updates"), reason);
        }
        for (index, update) in self.updates.iter().enumerate() {
            let here = format!("{here}.updates[{index}]");
            let size = update.root.size;
            if self.updates[..index].iter().any(|other| other.version == update.version) {
                return wrong(format!("{here}.version"), format!("{} is there twice", update.version));
            }
            if !size.bytes().is_multiple_of(BLOCK) {
                let reason = format!("{} bytes are not whole blocks of {BLOCK}", size.bytes());
                return wrong(format!("{here}.root.size"), reason);
            }
            for (of, patches) in [("root", &update.root.patches), ("uki", &update.uki.patches)] {
                if patches.len() > MOST_PATCHES {
                    let reason = format!("{} are more than {MOST_PATCHES}", patches.len());
                    return wrong(format!("{here}.{of}.patches"), reason);
                }
            }
        }
        Ok(())
    }
}

fn read<'de, T: Deserialize<'de>>(data: &'de [u8]) -> Result<T, ManifestError> {
    let mut json = serde_json::Deserializer::from_slice(data);
    let read: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (key, reason) = (error.path().to_string(), error.into_inner().to_string());
        ManifestError::Wrong { key, reason }
    })?;
    let rest = |error: serde_json::Error| ManifestError::Wrong { key: ".".into(), reason: error.to_string() };
    json.end().map_err(rest)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn example() -> Value {
        let file = |target: &str| json!({"target": target, "size": 4096});
        json!({"format": 1, "lines": [{
            "variant": "default", "arch": "x86_64", "max-version": "1.2.0", "floor": "1.0.0",
            "updates": [{
                "version": "1.2.0",
                "root": {
                    "hash": "ab".repeat(32), "size": 8192, "full": file("a.zst"),
                    "leaves": file("a.leaves"),
                    "patches": [{"from": "cd".repeat(32), "target": "a.patch", "size": 10}],
                },
                "uki": {
                    "name": "caisson_1.2.0.efi", "target": "a.efi", "size": 5, "sha256": "ef".repeat(32),
                    "patches": [{"from": "01".repeat(32), "target": "b.patch", "size": 10}],
                },
                "waves": [{"below": 2048, "start": "2026-11-24T12:00:00Z"}],
            }],
        }]})
    }

    fn parse(tree: &Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(tree.to_string().as_bytes())
    }

    #[test]
    fn what_a_newer_publisher_says_more_is_kept_and_ignored() {
        let mut tree = example();
        tree["colour"] = json!("blue");
        tree["lines"][0]["updates"][0]["root"]["by-pigeon"] = json!({"target": "a", "size": 1});
        let written = parse(&tree).unwrap().write().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), tree);
        assert_eq!(parse(&tree).unwrap().write().unwrap(), written);
    }

    #[test]
    fn another_format_is_told_as_that_whatever_else_it_has() {
        let error = parse(&json!({"format": 2, "lines": "elsewhere"})).unwrap_err();
        assert_eq!(error, ManifestError::Format(2));
        assert!(error.to_string().contains("install a version in between"));
    }

    #[test]
    fn mistakes_say_where_they_are() {
        let update = "/lines/0/updates/0";
        for (pointer, value, expected) in [
            ("/format", json!("one"), "format: invalid type"),
            ("/lines", json!({}), "lines: invalid type"),
            ("/lines/0/floor", json!("1.3.0"), "lines[0].floor: 1.3.0 is above max-version, 1.2.0"),
            ("/lines/0/variant", json!("../x"), "lines[0].variant: \"../x\" is not a name"),
            ("/lines/0/arch", json!("a".repeat(201)), "lines[0].arch: \"aaaa"),
            (&format!("{update}/version"), json!("1.2"), "updates[0].version: \"1.2\" is not a version"),
            (&format!("{update}/version"), json!(format!("1.0.0-{}", "a".repeat(60))), "more than the 64"),
            (&format!("{update}/root/size"), json!(8193), "updates[0].root.size: 8193 bytes are not whole"),
            (&format!("{update}/root/size"), json!(0), "root.size: 0 bytes: a size is"),
            (&format!("{update}/root/hash"), json!("AB".repeat(32)), "root.hash: not a hash"),
            (&format!("{update}/root/full/size"), json!(u64::MAX), "full.size: 18446744073709551615 bytes"),
            (&format!("{update}/root/full/target"), json!(".hidden"), "full.target: \".hidden\""),
            (&format!("{update}/uki/sha256"), json!("ab"), "uki.sha256: not a hash"),
            (&format!("{update}/uki"), json!({}), "uki: missing field `name`"),
            (
                &format!("{update}/waves"),
                json!([{"below": 5, "start": "2026-11-24T12:00:00Z"}]),
                "waves: waves below 5",
            ),
        ] {
            let mut tree = example();
            *tree.pointer_mut(pointer).unwrap() = value;
            let error = parse(&tree).unwrap_err().to_string();
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }

    #[test]
    fn what_is_there_twice_or_too_often_is_refused() {
        let mut tree = example();
        let line = tree["lines"][0].clone();
        tree["lines"] = json!(vec![&line; 2]);
        assert!(parse(&tree).unwrap_err().to_string().contains("default on x86_64 is there twice"));
        let mut tree = example();
        let update = tree["lines"][0]["updates"][0].clone();
        tree["lines"][0]["updates"] = json!(vec![&update; 2]);
        assert!(parse(&tree).unwrap_err().to_string().contains("updates[1].version: 1.2.0 is there twice"));
        tree["lines"][0]["updates"] = json!(vec![&update; MOST_UPDATES + 1]);
        assert!(parse(&tree).unwrap_err().to_string().contains("257 are more than 256"));
        for of in ["root", "uki"] {
            let mut tree = example();
            let patches = &mut tree["lines"][0]["updates"][0][of]["patches"];
            *patches = json!(vec![&patches[0]; MOST_PATCHES + 1]);
            let error = parse(&tree).unwrap_err().to_string();
            assert!(error.contains(&format!("updates[0].{of}.patches: 65 are more than 64")), "{error}");
        }
        assert_eq!(Manifest::parse(&[b' '; LARGEST_MANIFEST + 1]), Err(ManifestError::TooLarge(1_048_577)));
        assert!(Manifest::parse(b"{\"format\": 1, \"lines\": []} {}").is_err());
        // Nested without an end.
        assert!(Manifest::parse("[".repeat(LARGEST_MANIFEST).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_refused(
            at in 0usize..1000, byte in any::<u8>(), cut in 0usize..1000,
        ) {
            let mut data = example().to_string().into_bytes();
            let at = at % data.len();
            data[at] = byte;
            data.truncate(data.len().saturating_sub(cut / 10));
            if let Ok(manifest) = Manifest::parse(&data) {
                prop_assert!(manifest.write().is_ok());
            }
        }
    }
}
