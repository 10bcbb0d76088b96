//! What others would bring over the network for the same images: root and kernel image.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::pairs::Pair;
use super::server::Server;
use crate::artifacts::Artifacts;
use crate::cache::{Key, remove_tree, sha256_file};
use crate::command::run_quiet;
use crate::project::{Project, target_dir};
use crate::toolbox::Toolbox;

/// What rauc hashes, bytes (`rauc/src/hash_index.c`).
const CHUNK: usize = 4096;
const HASH: usize = 32;
/// What a version is made of.
const IMAGES: [&str; 2] = ["root", "kernel"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Peer {
    pub bytes: u64,
    pub ms: u64,
}

fn image(artifacts: &Artifacts, name: &str) -> PathBuf {
    if name == "root" { artifacts.root() } else { artifacts.uki() }
}

fn key(recipe: &str, tools: &Toolbox, all: &[&Artifacts]) -> Result<Key> {
    let mut key = Key::new(recipe).text(&tools.id);
    for artifacts in all {
        for name in IMAGES {
            key = key.text(&sha256_file(&image(artifacts, name))?);
        }
    }
    Ok(key)
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len())
}

/// Both images whole, each as small as zstd makes it. The time is for unpacking.
pub(super) fn zstd(project: &Project, tools: &Toolbox, pair: &Pair) -> Result<Peer> {
    let new = &pair.new;
    let packed = |folder: &Path, name: &str| folder.join(format!("{name}.zst"));
    let entry =
        project.cache.step("bench-zstd", "packing whole images", key("zstd 1", tools, &[new])?, |out| {
            IMAGES.iter().try_for_each(|name| pack(tools, &image(new, name), &packed(out, name)))
        })?;
    let work = tempfile::Builder::new().prefix("bench-zstd-").tempdir_in(target_dir(&project.sources))?;
    let (mut bytes, begun) = (0, Instant::now());
    for name in IMAGES {
        let packed = packed(&entry.path, name);
        bytes += size(&packed)?;
        let mut zstd = tools.command("zstd");
        zstd.args(["--quiet", "--decompress", "--long=27", "-o"]).arg(work.path().join(name));
        run_quiet(zstd.arg(packed), "unpacking with zstd")?;
    }
    Ok(Peer { bytes, ms: millis(begun) })
}

fn pack(tools: &Toolbox, from: &Path, to: &Path) -> Result<()> {
    let mut zstd = tools.command("zstd");
    zstd.args(["--quiet", "-19", "--long=27", "-o"]).arg(to).arg(from);
    run_quiet(&mut zstd, "packing with zstd").map(drop)
}

/// `casync extract` over HTTP, with both old images as seeds.
pub(super) fn casync(project: &Project, tools: &Toolbox, pair: &Pair) -> Result<Peer> {
    let work = tempfile::Builder::new().prefix("bench-casync-").tempdir_in(target_dir(&project.sources))?;
    let served = work.path().join("served");
    fs::create_dir(&served)?;
    let store = served.join("store.castr");
    for name in IMAGES {
        let mut casync = tools.command("casync");
        casync.arg("make").arg(format!("--store={}", store.display()));
        casync.arg(served.join(format!("{name}.caibx"))).arg(image(&pair.new, name));
        run_quiet(&mut casync, "casync make")?;
    }
    let mut server = Server::start(tools, &served)?;
    let mut ms = 0;
    for name in IMAGES {
        let out = work.path().join(name);
        let mut casync = tools.command("casync");
        casync.arg("extract").arg(format!("--store={}", server.url("store.castr")));
        for seed in IMAGES {
            casync.arg(format!("--seed={}", image(&pair.old, seed).display()));
        }
        casync.arg(server.url(&format!("{name}.caibx"))).arg(&out);
        let begun = Instant::now();
        run_quiet(&mut casync, "casync extract")?;
        ms += millis(begun);
        ensure!(fs::read(&out)? == fs::read(image(&pair.new, name))?, "casync made another {name}");
    }
    let bytes = server.sent()?.iter().map(|sent| sent.bytes).sum();
    Ok(Peer { bytes, ms })
}

/// What rauc cannot do without when it installs over HTTP with `adaptive=block-hash-index` for both images. It is not run: streaming
/// wants NBD and device-mapper of the kernel. What it reads of squashfs and dm-verity besides is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rauc {
    /// Bytes of the signed manifest of the bundle.
    pub manifest: u64,
    /// Bytes of the indexes in the bundle.
    pub indexes: u64,
    /// Chunks of the new images that the old ones do not have: each counts once, the empty one not at all.
    pub chunks: u64,
    /// Bytes of these chunks, all together as small as zstd makes them. No bundle can have less.
    pub packed: u64,
}

impl Rauc {
    pub(super) fn bytes(&self) -> u64 {
        self.manifest + self.indexes + self.packed
    }
}

/// Makes real bundles of both, and compares their indexes.
pub(super) fn rauc(project: &Project, tools: &Toolbox, pair: &Pair) -> Result<Rauc> {
    let key = key("rauc 1", tools, &[&pair.old, &pair.new])?;
    let entry =
        project.cache.step("bench-rauc", &format!("rauc's bundles of {}", pair.name), key, |out| {
            let [old, new] = [("old", &pair.old), ("new", &pair.new)].map(|(name, artifacts)| {
                let folder = out.join(name);
                bundle(tools, &folder, artifacts).map(|()| folder)
            });
            let (old, new) = (old?, new?);
            let bundle = fs::read(new.join("bundle"))?;
            let (mut indexes, mut known, mut chunks) = (0, HashSet::from([hash(&[0; CHUNK])]), Vec::new());
            for name in IMAGES {
                known.extend(index(&old, name)?);
            }
            let mut count = 0;
            for name in IMAGES {
                let (index, image) = (index(&new, name)?, padded(&image(&pair.new, name))?);
                indexes += (index.len() * HASH) as u64;
                let image = image.chunks(CHUNK);
                ensure!(index.len() == image.len(), "rauc's index of {name} is not of its chunks");
                for (hash, chunk) in index.into_iter().zip(image) {
                    if known.insert(hash) {
                        chunks.extend_from_slice(chunk);
                        count += 1;
                    }
                }
            }
            let (plain, packed) = (out.join("chunks"), out.join("chunks.zst"));
            fs::write(&plain, chunks)?;
            pack(tools, &plain, &packed)?;
            let figures =
                Rauc { manifest: signature_size(&bundle)?, indexes, chunks: count, packed: size(&packed)? };
            for folder in [old, new] {
                remove_tree(&folder)?;
            }
            Ok(fs::write(out.join("figures.json"), serde_json::to_vec(&figures)?)?)
        })?;
    Ok(serde_json::from_slice(&fs::read(entry.path.join("figures.json"))?)?)
}

/// A bundle of a version, and its indexes, which are taken out of it.
fn bundle(tools: &Toolbox, folder: &Path, artifacts: &Artifacts) -> Result<()> {
    let content = folder.join("content");
    fs::create_dir_all(&content)?;
    let mut manifest = "[update]\ncompatible=caisson\n\n[bundle]\nformat=verity\n".to_owned();
    for name in IMAGES {
        fs::write(content.join(format!("{name}.img")), padded(&image(artifacts, name))?)?;
        manifest += &format!("\n[image.{name}]\nfilename={name}.img\nadaptive=block-hash-index\n");
    }
    fs::write(content.join("manifest.raucm"), manifest)?;
    let path = |name: &str| folder.join(name);
    let mut openssl = tools.command("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=bench/"]);
    openssl.arg("-keyout").arg(path("key")).arg("-out").arg(path("certificate"));
    run_quiet(&mut openssl, "making a certificate for rauc")?;
    let mut rauc = tools.command("rauc");
    rauc.arg("bundle").arg(format!("--cert={}", path("certificate").display()));
    rauc.arg(format!("--key={}", path("key").display())).arg(&content).arg(path("bundle"));
    run_quiet(&mut rauc, "making a bundle of rauc")?;
    let mut unsquashfs = tools.command("unsquashfs");
    unsquashfs.args(["-quiet", "-no-progress", "-d"]).arg(path("bundled")).arg(path("bundle"));
    unsquashfs.args(IMAGES.map(|name| format!("{name}.img.block-hash-index")));
    run_quiet(&mut unsquashfs, "taking the indexes out of a bundle")?;
    Ok(())
}

fn index(folder: &Path, name: &str) -> Result<Vec<[u8; HASH]>> {
    let index = fs::read(folder.join("bundled").join(format!("{name}.img.block-hash-index")))?;
    let (hashes, rest) = index.as_chunks::<HASH>();
    ensure!(rest.is_empty(), "rauc's index of {name} is not whole hashes");
    Ok(hashes.to_vec())
}

fn hash(chunk: &[u8]) -> [u8; HASH] {
    Sha256::digest(chunk).into()
}

/// An image with zeroes up to whole chunks, as rauc wants it.
fn padded(image: &Path) -> Result<Vec<u8>> {
    let mut data = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    data.resize(data.len().next_multiple_of(CHUNK), 0);
    Ok(data)
}

/// A bundle ends with its signature, which holds the manifest, and the size of that (RAUC's manual, "Bundle Formats").
fn signature_size(bundle: &[u8]) -> Result<u64> {
    let size = bundle.last_chunk().map(|size| u64::from_be_bytes(*size));
    size.filter(|size| *size < bundle.len() as u64).context("a bundle of rauc does not end with a signature")
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_tells_the_size_of_its_signature_at_its_end() {
        let mut bundle = vec![7; 100];
        bundle.extend(50u64.to_be_bytes());
        assert_eq!(signature_size(&bundle).unwrap(), 50);
        assert!(signature_size(&bundle[..50]).is_err());
        assert!(signature_size(&[0; 3]).is_err());
    }
}
