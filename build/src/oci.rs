//! The small OCI image that every variant can preload: Debian's static busybox.
//!
//! The step's folder holds `layout/` (an OCI image layout, as a registry or `oci-dir:` tool takes it) and the same unpacked:
//! `config.json` (the image configuration) and `rootfs/`, which is what goes into the root.

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::cache::{Entry, Key, hex};
use crate::command::run_quiet;
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::toolbox::Toolbox;

/// An image that can be preloaded.
pub struct Preloaded {
    pub entry: Entry,
    /// Name of its folder in the image.
    pub name: String,
    /// References that mean this image.
    pub references: Vec<String>,
    /// Digest of its manifest.
    pub digest: String,
}

/// The preloaded image `name`, as `images/*.toml` calls it.
pub fn preload(project: &Project, toolbox: &Toolbox, name: &str) -> Result<Preloaded> {
    anyhow::ensure!(
        name == "busybox",
        "the builder does not know how to make the image {name:?}: it knows busybox"
    );
    let package = toolbox.package("busybox-static")?;
    let key = Key::new("busybox 1").text(&package.sha256).text(&toolbox.id);
    let key = key.text(&SOURCE_DATE_EPOCH.to_string());
    let entry = project
        .cache
        .step("busybox", "an OCI image of Debian's busybox-static", key, |out| busybox(toolbox, out))?;
    let digest = fs::read_to_string(entry.path.join("digest"))?;
    // Debian's version without epoch, revision and rebuild: what its users call it.
    let version = package.version.rsplit(':').next().unwrap_or_default();
    let version: String = version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let references = ["latest", &version].map(|tag| format!("localhost/busybox:{tag}")).to_vec();
    Ok(Preloaded { entry, name: name.to_owned(), references, digest })
}

fn busybox(toolbox: &Toolbox, out: &Path) -> Result<()> {
    let rootfs = out.join("rootfs");
    let bin = rootfs.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(toolbox.root.join("usr/bin/busybox"), bin.join("busybox"))
        .context("the toolbox has no busybox")?;
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755))?;
    for folder in [&rootfs, &bin] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let applets =
        run_quiet(toolbox.command("/usr/bin/busybox").arg("--list"), "asking busybox for its commands")?;
    for applet in String::from_utf8(applets)?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(applet))?;
    }
    for (folder, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
    ] {
        let folder = rootfs.join(folder);
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
    }
    write(
        &rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write(&rootfs.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    layout(toolbox, out, &rootfs)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?)
}

/// The layout of the OCI Image Specification 1.1, with one gzipped layer.
fn layout(toolbox: &Toolbox, out: &Path, rootfs: &Path) -> Result<()> {
    let layout = out.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let tar = out.join("layer.tar");
    run_quiet(
        toolbox
            .command("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"])
            .arg(format!("--mtime=@{SOURCE_DATE_EPOCH}"))
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(rootfs)
            .arg("."),
        "packing the layer of busybox",
    )?;
    let diff_id = digest(&fs::read(&tar)?);
    run_quiet(toolbox.command("gzip").args(["-9", "-n"]).arg(&tar), "compressing the layer of busybox")?;
    let layer = fs::read(out.join("layer.tar.gz"))?;
    fs::remove_file(out.join("layer.tar.gz"))?;

    let put = |data: &[u8]| -> Result<String> {
        let digest = digest(data);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), data)?;
        Ok(digest)
    };
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }))?;
    fs::write(out.join("config.json"), &config)?;
    let descriptor =
        |media: &str, digest: &str, size: usize| json!({"mediaType": media, "digest": digest, "size": size});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &put(&config)?, config.len()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &put(&layer)?, layer.len())],
    }))?;
    let manifest_digest = put(&manifest)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut entry =
        descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_digest, manifest.len());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(
        layout.join("index.json"),
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?,
    )?;
    fs::write(out.join("digest"), manifest_digest)?;
    Ok(())
}

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}
