//! An update by the agent's own code, in a process of its own, from a repository as `cargo caisson repo` makes it.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::pairs::{OLD, Pair};
use super::server::{Sent, Server};
use crate::artifacts::{Artifacts, copy_sparse, uki_name};
use crate::cache::{Entry, Key, sha256_file};
use crate::project::{Project, target_dir};
use crate::repo::{self, Expiries, Keys, ROLES, Repository, Thresholds};
use crate::variant::Variant;

/// The ways to a new root, as the program knows them.
pub(super) const WAYS: [&str; 3] = ["patch", "blocks", "full"];

/// What the program tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Told {
    way: String,
    check_ms: u64,
    root_ms: u64,
    uki_ms: u64,
    peak_kib: u64,
}

/// One update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub parts: Parts,
    pub ms: u64,
    pub peak_kib: u64,
}

/// Bytes over the network, by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Parts {
    pub metadata: u64,
    pub root: u64,
    pub kernel_image: u64,
}

impl Parts {
    pub(super) fn all(&self) -> u64 {
        self.metadata + self.root + self.kernel_image
    }

    fn of(sent: &[Sent]) -> Self {
        let mut parts = Self::default();
        for Sent { path, bytes } in sent {
            let part = if path.contains(".efi") {
                &mut parts.kernel_image
            } else if [".root.zst", ".root.leaves", ".patch"].iter().any(|end| path.ends_with(end)) {
                &mut parts.root
            } else {
                &mut parts.metadata
            };
            *part += bytes;
        }
        parts
    }
}

/// A repository with both versions of a pair, in `repository`.
pub(super) fn publish(project: &Project, pair: &Pair) -> Result<Entry> {
    let mut key = Key::new("bench repository 1");
    for artifacts in [&pair.old, &pair.new] {
        for file in [artifacts.manifest(), artifacts.root(), artifacts.uki()] {
            key = key.text(&sha256_file(&file)?);
        }
    }
    // What makes patches and chunks.
    key = key.tree(&project.sources.join("update/src"))?.tree(&project.sources.join("build/src/repo"))?;
    project.cache.step("bench-repository", &format!("publishing {}", pair.name), key, |out| {
        let (keys, folder, scratch) = (out.join("keys"), out.join("repository"), out.join("scratch"));
        for made in [&keys, &scratch] {
            fs::create_dir(made)?;
        }
        for (number, role) in ROLES.into_iter().enumerate() {
            // Ed25519 in PKCS #8 (RFC 8410, section 7). Nothing is kept safe with these.
            let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
            der.extend([u8::try_from(number)? + 1; 32]);
            fs::write(keys.join(format!("{role}.pem")), pem::encode(&pem::Pem::new("PRIVATE KEY", der)))?;
        }
        let keys = Keys::new(Some(keys), &[])?;
        let at = "2100-01-01T00:00:00Z".parse().context("a time")?;
        let expires: Expiries = ROLES.into_iter().map(|role| (role, at)).collect();
        let mut repository = Repository::init(&folder, &keys, &Thresholds::new(), &expires)?;
        for artifacts in [&pair.old, &pair.new] {
            repo::add(&mut repository, &artifacts.dir, None, &scratch, 1, None)?;
        }
        repo::publish(&mut repository, &keys, &expires)
    })
}

/// Updates a node of the old version to the new one, and sees that it is the new one.
pub(super) fn update(
    project: &Project,
    pair: &Pair,
    program: &Path,
    server: &mut Server,
    way: &str,
) -> Result<Run> {
    let node = Node::new(project, pair, server)?;
    let output = Command::new(program)
        .arg(node.folder.path())
        .args([&server.url("metadata/"), way])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{}: the update by {way} failed", pair.name);
    let told: Told =
        serde_json::from_slice(&output.stdout).context("install-update tells what is not understood")?;
    ensure!(told.way == way, "{}: {} was less than {way}, and taken", pair.name, told.way);
    node.has(&pair.new)?;
    let parts = Parts::of(&server.sent()?);
    Ok(Run { parts, ms: told.check_ms + told.root_ms + told.uki_ms, peak_kib: told.peak_kib })
}

/// What a node has, as files.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new(project: &Project, pair: &Pair, server: &Server) -> Result<Self> {
        let target = target_dir(&project.sources);
        let node = Self { folder: tempfile::Builder::new().prefix("bench-node-").tempdir_in(target)? };
        let old = &pair.old;
        fs::copy(server.folder().join("metadata/1.root.json"), node.path("root.json"))?;
        fs::write(node.path("os-release"), format!("VERSION_ID={OLD}\nVARIANT_ID=default\n"))?;
        fs::write(node.path("machine-id"), "0123456789abcdef0123456789abcdef\n")?;
        fs::copy(old.cmdline(), node.path("cmdline"))?;
        for (from, name) in [(old.root(), "running.root"), (old.verity(), "running.verity")] {
            symlink(std::path::absolute(from)?, node.path(name))?;
        }
        copy_sparse(&old.disk(), &node.path("disk.img"))?;
        let sizes = Variant::load(project, "default")?.partitions;
        for (name, size) in [("spare.root", sizes.root), ("spare.verity", sizes.verity)] {
            File::create(node.path(name))?.set_len(size.bytes())?;
        }
        fs::create_dir(node.path("esp"))?;
        fs::copy(old.uki(), node.path("esp").join(uki_name(OLD)))?;
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn has(&self, new: &Artifacts) -> Result<()> {
        let root = fs::read(new.root())?;
        let mut slot = vec![0; root.len()];
        File::open(self.path("spare.root"))?.read_exact_at(&mut slot, 0)?;
        ensure!(slot == root, "what is in the slot is not {}", new.root().display());
        let name = new.uki().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let staged = fs::read(self.path("esp").join(format!("{name}.staged")))?;
        ensure!(staged == fs::read(new.uki())?, "what is staged is not {}", new.uki().display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_told_apart_by_its_name() {
        let sent = |(path, bytes): (&str, u64)| Sent { path: path.to_owned(), bytes };
        let all = [
            ("/metadata/timestamp.json", 1),
            ("/targets/ab.manifest.json", 2),
            ("/targets/ab.caisson-default-x86_64-1.1.0.from-1.0.0.patch", 4),
            ("/targets/ab.caisson-default-x86_64-1.1.0.root.leaves", 8),
            ("/targets/ab.caisson-default-x86_64-1.1.0.root.zst", 16),
            ("/targets/ab.caisson-default-x86_64-1.1.0.efi", 32),
            ("/targets/ab.caisson-default-x86_64-1.1.0.efi.from-1.0.0.patch", 64),
            ("/metadata/2.root.json", 128),
        ];
        let parts = Parts::of(&all.map(sent));
        assert_eq!(parts, Parts { metadata: 131, root: 28, kernel_image: 96 });
        assert_eq!(parts.all(), 255);
    }
}
