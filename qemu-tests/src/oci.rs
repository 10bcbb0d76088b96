//! Images that stories make: layers, and what describes them in either of the two formats that registries have.

use anyhow::{Context, Result};
use build::cache::hex;
use build::command::run_quiet;
use build::oci;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::Path;
use tar::{Builder, EntryType, Header};

use crate::bench::bench;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// One layer, as a registry keeps it.
#[derive(Debug, Clone)]
pub struct Layer {
    packing: Packing,
    diff_id: String,
    data: Vec<u8>,
}

impl Layer {
    /// Packs a tar archive.
    #[track_caller]
    pub fn new(archive: &[u8], packing: Packing) -> Self {
        let data = pack(archive, packing).unwrap_or_else(|error| panic!("a layer: {error:#}"));
        Self { packing, diff_id: digest(archive), data }
    }

    /// One that is gzipped already, from its file and its digest before that.
    pub(crate) fn gzipped(data: Vec<u8>, diff_id: String) -> Self {
        Self { packing: Packing::Gzip, diff_id, data }
    }
}

fn pack(archive: &[u8], packing: Packing) -> Result<Vec<u8>> {
    match packing {
        Packing::Plain => Ok(archive.to_vec()),
        Packing::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(archive)?;
            Ok(encoder.finish()?)
        }
        Packing::Zstd => {
            let mut file = tempfile::Builder::new().prefix("caisson-layer-").tempfile_in("/tmp")?;
            file.write_all(archive)?;
            run_quiet(bench().toolbox.command("zstd").args(["-q", "-c"]).arg(file.path()), "zstd")
        }
    }
}

/// An image that is not yet anywhere.
#[derive(Debug, Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    /// What of its configuration says how it is run (OCI Image Specification 1.1, config.md).
    pub config: Value,
    /// Described as Docker does ("Image Manifest V 2, Schema 2"), not as the OCI does.
    pub is_docker: bool,
}

impl Image {
    /// The preloaded busybox.
    #[track_caller]
    pub fn busybox() -> Self {
        Self::try_busybox().unwrap_or_else(|error| panic!("the image of busybox: {error:#}"))
    }

    fn try_busybox() -> Result<Self> {
        let bench = bench();
        let layout = oci::preload(&bench.project, &bench.toolbox, "busybox")?.entry.path.join("layout");
        let read_json = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap_or_default();
            layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
        };
        let index = read_json(&layout.join("index.json"))?;
        let manifest = read_json(&blob(&index["manifests"][0]["digest"]))?;
        let config = read_json(&blob(&manifest["config"]["digest"]))?;
        let diff_id = config["rootfs"]["diff_ids"][0].as_str().context("an image without layers")?;
        let layer = Layer::gzipped(fs::read(blob(&manifest["layers"][0]["digest"]))?, diff_id.to_owned());
        Ok(Self { layers: vec![layer], config: config["config"].clone(), is_docker: false })
    }

    /// One without layers, which says nothing of how it is run.
    pub fn empty() -> Self {
        Self { layers: Vec::new(), config: json!({}), is_docker: false }
    }

    /// The same with one more layer.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The same with this in its configuration.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// The same, described as Docker does.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.is_docker = true;
        self
    }

    fn config_json(&self) -> Value {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
    }

    /// All that is pushed: blobs, then the manifest.
    pub(crate) fn describe(&self) -> (Vec<Vec<u8>>, Document) {
        let (manifest, config, layer) = if self.is_docker {
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar",
            )
        } else {
            (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar",
            )
        };
        let layers = self.layers.iter().map(|one| {
            let media = match (one.packing, self.is_docker) {
                (Packing::Plain, _) => layer.to_owned(),
                (Packing::Gzip, true) => format!("{layer}.gzip"),
                (Packing::Zstd, true) => format!("{layer}.zstd"),
                (Packing::Gzip, false) => format!("{layer}+gzip"),
                (Packing::Zstd, false) => format!("{layer}+zstd"),
            };
            Document { media, data: one.data.clone() }.descriptor()
        });
        let own = Document { media: config.to_owned(), data: self.config_json().to_string().into_bytes() };
        let text = json!({
            "schemaVersion": 2,
            "mediaType": manifest,
            "config": own.descriptor(),
            "layers": layers.collect::<Vec<_>>(),
        });
        let blobs = self.layers.iter().map(|layer| layer.data.clone()).chain([own.data]).collect();
        (blobs, Document { media: manifest.to_owned(), data: text.to_string().into_bytes() })
    }
}

/// What names images of several platforms. Each manifest is in the registry already.
pub(crate) fn index(manifests: &[(&str, Document)], is_docker: bool) -> Document {
    let media = if is_docker {
        "application/vnd.docker.distribution.manifest.list.v2+json"
    } else {
        "application/vnd.oci.image.index.v1+json"
    };
    let entries = manifests.iter().map(|(architecture, manifest)| {
        let mut entry = manifest.descriptor();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    });
    let entries: Vec<Value> = entries.collect();
    let text = json!({"schemaVersion": 2, "mediaType": media, "manifests": entries});
    Document { media: media.to_owned(), data: text.to_string().into_bytes() }
}

/// Something that is named by its digest.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub media: String,
    pub data: Vec<u8>,
}

impl Document {
    pub(crate) fn digest(&self) -> String {
        digest(&self.data)
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media, "digest": self.digest(), "size": self.data.len()})
    }
}

pub(crate) fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}

/// The archive of a layer, written entry by entry with names as they are. Owners are root.
pub struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    #[must_use]
    pub fn folder(self, name: &str, mode: u32) -> Self {
        self.owned_folder(name, mode, 0)
    }

    /// The user and the group have the same number.
    #[must_use]
    pub fn owned_folder(self, name: &str, mode: u32, owner: u64) -> Self {
        self.entry(EntryType::Directory, name, mode, owner, "", &[])
    }

    #[must_use]
    pub fn file(self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, mode, 0, "", content.as_ref())
    }

    /// A whiteout (OCI Image Specification 1.1, layer.md), by the name of what is gone.
    #[must_use]
    pub fn whiteout(self, name: &str) -> Self {
        let (folder, name) = name.rsplit_once('/').unwrap_or((".", name));
        self.file(&format!("{folder}/.wh.{name}"), 0o644, "")
    }

    #[must_use]
    pub fn link(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name, 0o777, 0, to, &[])
    }

    #[must_use]
    pub fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Link, name, 0o644, 0, to, &[])
    }

    /// A character device.
    #[must_use]
    pub fn device(self, name: &str) -> Self {
        self.entry(EntryType::Char, name, 0o666, 0, "", &[])
    }

    /// Extended attributes of what comes next.
    #[must_use]
    pub fn attributes(mut self, attributes: &[(&str, &[u8])]) -> Self {
        let names: Vec<String> = attributes.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let records = names.iter().map(String::as_str).zip(attributes.iter().map(|(_, value)| *value));
        self.0.append_pax_extensions(records).expect("attributes in an archive");
        self
    }

    fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        mode: u32,
        owner: u64,
        target: &str,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(content.len() as u64);
        // A time that no build has.
        header.set_mtime(1_234_567_890);
        header.set_cksum();
        self.0.append(&header, content).expect("an entry in an archive");
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("an archive")
    }
}

impl Default for Archive {
    fn default() -> Self {
        Self::new()
    }
}
