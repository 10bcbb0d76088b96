//! The disk that the other runtimes run from: Debian's tree, the driver, and a registry's files with the images that are pulled.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cache::{Entry, Key, hex, remove_tree};
use crate::command::run_quiet;
use crate::oci;
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::toolbox::Toolbox;

/// Of the file system; most of it is a hole.
const SIZE: u64 = 2 << 30;
/// Of each of two layers above the one with the programs, before they are packed, which halves them.
const LAYER: usize = 8 << 20;

/// `rivals`: the tree with the runtimes. `driver`: what runs in it, and in the containers. Images 0 to `images` are in the registry.
pub(super) fn build(
    project: &Project,
    toolbox: &Toolbox,
    rivals: &Toolbox,
    driver: &Entry,
    images: u32,
) -> Result<Entry> {
    let busybox = oci::preload(project, toolbox, "busybox")?.entry;
    let key = Key::new("container bench disk 1").text(&toolbox.id).text(&rivals.id).entry(driver);
    let key = key.entry(&busybox).text(&images.to_string());
    project.cache.step("container-bench-disk", "a disk with other container runtimes", key, |out| {
        let tree = out.join("tree");
        let mut copy = toolbox.command("cp");
        run_quiet(copy.arg("-a").arg(&rivals.root).arg(&tree), "copying the tree with the runtimes")?;
        fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n")?;
        fs::write(tree.join("etc/resolv.conf"), "")?;
        let bench = tree.join("bench");
        fs::create_dir_all(bench.join("registry"))?;
        fs::copy(driver.path.join("container-bench"), bench.join("container-bench"))?;
        let configuration = json!({
            "version": 0.1, "log": {"level": "warn"}, "http": {"addr": "127.0.0.1:5000"},
            "storage": {"filesystem": {"rootdirectory": "/bench/registry"}},
        });
        fs::write(bench.join("registry.json"), configuration.to_string())?;
        for number in 0..=images {
            let folder = out.join("layers");
            image(toolbox, &folder, &busybox.path.join("rootfs"), &driver.path.join("say"), number)
                .and_then(|layers| publish(&bench.join("registry"), number, layers))
                .with_context(|| format!("making image {number} of the bench"))?;
            remove_tree(&folder)?;
        }
        let file = out.join("disk.ext4");
        File::create(&file)?.set_len(SIZE)?;
        let mut mke2fs = toolbox.command("mke2fs");
        mke2fs.args(["-F", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "nodiscard", "-d"]);
        run_quiet(mke2fs.arg(&tree).arg(&file), "making the disk with the runtimes")?;
        remove_tree(&tree)
    })
}

/// A layer: the digest of its tar, and the tar packed by gzip.
struct Layer {
    diff_id: String,
    packed: Vec<u8>,
}

/// The layers of an image that shares none with the others.
fn image(toolbox: &Toolbox, folder: &Path, busybox: &Path, say: &Path, number: u32) -> Result<Vec<Layer>> {
    let [programs, left, right] = ["programs", "left", "right"].map(|name| folder.join(name));
    fs::create_dir_all(folder)?;
    run_quiet(toolbox.command("cp").arg("-a").arg(busybox).arg(&programs), "copying busybox")?;
    fs::copy(say, programs.join("bin/say"))?;
    fs::set_permissions(programs.join("bin/say"), fs::Permissions::from_mode(0o755))?;
    fs::write(programs.join("etc/bench"), format!("{number}\n"))?;
    for (seed, tree) in [(2 * number, &left), (2 * number + 1, &right)] {
        let share = tree.join("usr/share").join(seed.to_string());
        fs::create_dir_all(&share)?;
        let text = text(seed, LAYER);
        // Files of 128 KiB, as of a real image.
        for (index, part) in text.as_bytes().chunks(128 << 10).enumerate() {
            File::create(share.join(index.to_string()))?.write_all(part)?;
        }
    }
    [programs, left, right].iter().map(|tree| layer(toolbox, folder, tree)).collect()
}

/// So many bytes of hexadecimal digits, other ones for each seed. Pure.
fn text(seed: u32, bytes: usize) -> String {
    let numbers =
        (0_u64..).map(|number| hex(&Sha256::digest([number, seed.into()].map(u64::to_le_bytes).concat())));
    let mut text: String = numbers.take(bytes.div_ceil(64)).collect();
    text.truncate(bytes);
    text
}

fn layer(toolbox: &Toolbox, folder: &Path, tree: &Path) -> Result<Layer> {
    let tar = folder.join("tar");
    let mut command = toolbox.command("tar");
    command.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    command.arg(format!("--mtime=@{SOURCE_DATE_EPOCH}")).arg("-cf").arg(&tar).arg("-C").arg(tree).arg(".");
    run_quiet(&mut command, "packing a layer")?;
    let diff_id = digest(&fs::read(&tar)?);
    let packed = run_quiet(toolbox.command("gzip").args(["-n", "-c"]).arg(&tar), "compressing a layer")?;
    Ok(Layer { diff_id, packed })
}

/// Puts an image into a registry's files as the registry itself would: `registry/storage/paths.go` of github.com/distribution/distribution.
fn publish(storage: &Path, number: u32, layers: Vec<Layer>) -> Result<()> {
    let root = storage.join("docker/registry/v2");
    let repository = root.join("repositories/bench");
    let blob = |data: &[u8]| -> Result<String> {
        let digest = digest(data);
        let hex = digest.trim_start_matches("sha256:");
        let folder = root.join("blobs/sha256").join(&hex[..2]).join(hex);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("data"), data)?;
        Ok(digest)
    };
    let link = |folder: &str, digest: &str| -> Result<()> {
        let folder = repository.join(folder);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join("link"), digest)?)
    };
    let part = |data: &[u8], media: &str| -> Result<Value> {
        let digest = blob(data)?;
        link(&format!("_layers/sha256/{}", digest.trim_start_matches("sha256:")), &digest)?;
        Ok(json!({"mediaType": media, "digest": digest, "size": data.len()}))
    };
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["say"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = part(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json")?;
    let parts = layers.iter().map(|layer| part(&layer.packed, "application/vnd.oci.image.layer.v1.tar+gzip"));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": parts.collect::<Result<Vec<_>>>()?,
    });
    let digest = blob(manifest.to_string().as_bytes())?;
    link(&format!("_manifests/revisions/sha256/{}", digest.trim_start_matches("sha256:")), &digest)?;
    link(&format!("_manifests/tags/{number}/current"), &digest)
}

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_another() {
        assert_eq!(text(1, 100).len(), 100);
        assert_ne!(text(1, 100), text(2, 100));
    }
}
