//! The root file system: plain erofs with everything that a node runs, and its verity tree.

use anyhow::{Context, Result};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::cache::{Entry, Key, files_below, remove_tree};
use crate::command::run_quiet;
use crate::oci::Preloaded;
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::toolbox::Toolbox;
use crate::variant::Variant;
use crate::verity::{self, Verity};
use crate::{esp, guest};

/// The file system's own identity: fixed, as the bytes of a root decide its hash.
const UUID: &str = "ca155011-0000-4000-8000-000000000002";

const FOLDERS: &[&str] =
    &["data", "dev", "etc", "mnt", "proc", "run", "state", "sys", "tmp", "usr/bin", "usr/lib/caisson"];

/// Absolute name → where it leads.
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/bin"),
    ("lib", "usr/lib"),
    ("etc/os-release", "../usr/lib/os-release"),
    ("etc/hostname", "../run/etc/hostname"),
    ("etc/hosts", "../run/etc/hosts"),
    ("etc/resolv.conf", "../run/etc/resolv.conf"),
    ("etc/motd", "../run/etc/motd"),
    ("etc/machine-id", "../run/etc/machine-id"),
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/:/bin/false\napi:x:274:274:API server:/:/bin/false\nntp:x:275:275:NTP client:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\napi:x:274:\nntp:x:275:\nnogroup:x:65534:\n"),
    // Static getaddrinfo loads no other module than these.
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
];

/// What goes into a root besides what is in the sources.
pub struct Inputs<'a> {
    pub variant: &'a Variant,
    /// Programs: the steps that built them, and the names to take from each.
    pub programs: &'a [(&'a Entry, Vec<&'a str>)],
    /// The program `nft` with its `libraries`.
    pub nft: &'a Entry,
    pub preloaded: &'a [Preloaded],
    /// A folder for `licences/`.
    pub licences: &'a Entry,
    /// The boot loader, signed where images are.
    pub loader: &'a Path,
}

/// Builds `root.erofs` and `root.verity`.
pub fn build(project: &Project, toolbox: &Toolbox, inputs: &Inputs<'_>) -> Result<(Entry, Verity)> {
    let release = os_release(project, inputs.variant);
    let mut key = Key::new("root 3")
        .text(COMPRESSED)
        .text(&toolbox.id)
        .text(&release)
        .entry(inputs.licences)
        .entry(inputs.nft);
    key = key.file(inputs.loader)?;
    for (entry, names) in inputs.programs {
        key = key.entry(entry).text(&names.join(" "));
    }
    for image in inputs.preloaded {
        key = key.entry(&image.entry).text(&image.references.join(" "));
    }
    for (from, to) in os_files(project, inputs.variant)? {
        key = key.file(&from)?.text(&to);
    }
    key = key.text(&FOLDERS.join(" "));
    for (name, text) in FILES.iter().chain(LINKS) {
        key = key.text(name).text(text);
    }
    let entry = project.cache.step("root", "the root file system and its verity tree", key, |out| {
        let tree = out.join("tree");
        stage(project, toolbox, inputs, &release, &tree)?;
        let image = out.join("root.erofs");
        erofs(toolbox, &tree, &image)?;
        let verity = verity::format(&image, &out.join("root.verity"))?;
        fs::write(out.join("verity.json"), serde_json::to_vec(&verity)?)?;
        Ok(())
    })?;
    let verity = serde_json::from_slice(&fs::read(entry.path.join("verity.json"))?)?;
    Ok((entry, verity))
}

/// What is compressed of a root: large, run for a moment at a container's start at most, or read by people. The rest is not: that reads
/// without work, and patches of it are smaller. Regular expressions of paths; the last one is all others (mkfs.erofs(1)).
const COMPRESSED: &str = "\
65536 0 ^usr/bin/(netavark|aardvark-dns|nft)$
65536 0 ^usr/lib/caisson/(nft|licences)/
0 0 .*
";

/// Makes a tree an erofs image, and removes the tree. The same tree gives the same bytes.
pub fn erofs(toolbox: &Toolbox, tree: &Path, image: &Path) -> Result<()> {
    let (time, uuid) = (format!("-T{SOURCE_DATE_EPOCH}"), format!("-U{UUID}"));
    let mut command = toolbox.command("mkfs.erofs");
    let hints = image.with_extension("hints");
    fs::write(&hints, COMPRESSED)?;
    let mut compress = std::ffi::OsString::from("--compress-hints=");
    compress.push(&hints);
    command.args(["--quiet", "--all-root", "-x-1", "-b4096", "-C65536", "-zlz4hc,12", &time, &uuid]);
    run_quiet(command.arg(compress).arg(image).arg(tree), "making an erofs")?;
    fs::remove_file(&hints)?;
    remove_tree(tree)
}

fn stage(
    project: &Project,
    toolbox: &Toolbox,
    inputs: &Inputs<'_>,
    release: &str,
    tree: &Path,
) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for (name, to) in LINKS {
        symlink(to, tree.join(name))?;
    }
    for (name, text) in FILES {
        put(&tree.join(name), text.as_bytes(), 0o644)?;
    }
    put(&tree.join("usr/lib/os-release"), release.as_bytes(), 0o644)?;
    let authorities = fs::read(toolbox.root.join("etc/ssl/certs/ca-certificates.crt"))?;
    put(&tree.join("etc/ssl/certs/ca-certificates.crt"), &authorities, 0o644)?;
    put(&tree.join(esp::LOADER), &fs::read(inputs.loader)?, 0o644)?;
    for (entry, names) in inputs.programs {
        for name in names {
            let program = entry.path.join(name);
            let data = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
            put(&tree.join("usr/bin").join(name), &data, 0o755)?;
        }
    }
    put(&tree.join("usr/bin/nft"), &fs::read(inputs.nft.path.join("nft"))?, 0o755)?;
    let libraries = inputs.nft.path.join("libraries");
    for file in files_below(&libraries)? {
        let name = file.strip_prefix(&libraries).unwrap_or(&file);
        // The loader is executed by the kernel; the others are only mapped.
        put(&tree.join(guest::NFT_FOLDER).join(name), &fs::read(&file)?, 0o755)?;
    }
    for (from, to) in os_files(project, inputs.variant)? {
        put(&tree.join(to), &fs::read(&from)?, 0o644)?;
    }
    let licences = inputs.licences.path.join("licences");
    for file in files_below(&licences)? {
        let name = file.strip_prefix(&licences).unwrap_or(&file);
        put(&tree.join("usr/lib/caisson/licences").join(name), &fs::read(&file)?, 0o644)?;
    }
    let images = tree.join("usr/lib/caisson/images");
    fs::create_dir_all(&images)?;
    let mut index = Vec::new();
    for image in inputs.preloaded {
        let folder = images.join(&image.name);
        fs::create_dir(&folder)?;
        for part in ["rootfs", "config.json"] {
            let mut copy = std::process::Command::new("cp");
            copy.arg("-a").arg(image.entry.path.join(part)).arg(&folder);
            run_quiet(&mut copy, "copying a preloaded image")?;
        }
        for reference in &image.references {
            index.push(json!({"reference": reference, "digest": image.digest, "directory": image.name}));
        }
    }
    put(&images.join("index.json"), &serde_json::to_vec_pretty(&index)?, 0o644)?;
    settle_modes(tree)
}

/// Files of `os/` that the variant takes, and where they go.
fn os_files(project: &Project, variant: &Variant) -> Result<Vec<(PathBuf, String)>> {
    let os = project.sources.join("os");
    let mut files = vec![
        (os.join("defaults.toml"), "usr/lib/caisson/defaults.toml".to_owned()),
        (os.join("seccomp/default.json"), "usr/lib/caisson/seccomp/default.json".to_owned()),
    ];
    for service in &variant.services {
        files.push((
            os.join(format!("services/{service}.toml")),
            format!("usr/lib/caisson/services/{service}.toml"),
        ));
    }
    if let Some(root) = &variant.update_root {
        crate::repo::check_root(root).context("update-root of the variant")?;
        files.push((root.clone(), "usr/lib/caisson/updates/root.json".to_owned()));
    }
    let extra = os.join("files");
    if extra.is_dir() {
        for file in files_below(&extra)? {
            let name = file.strip_prefix(&extra)?.to_string_lossy().into_owned();
            files.push((file, name));
        }
    }
    files.extend_from_slice(&variant.files);
    Ok(files)
}

/// `os-release` (freedesktop.org specification).
pub fn os_release(project: &Project, variant: &Variant) -> String {
    let version = project.version;
    let name = &variant.name;
    format!(
        "NAME=Caisson\nID=caisson\nPRETTY_NAME=\"Caisson {version} ({name})\"\nVERSION=\"{version}\"\nVERSION_ID={version}\nVARIANT_ID={name}\n"
    )
}

fn put(path: &Path, data: &[u8], mode: u32) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, data).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// The builder's umask has no say in the image: folders are 0755, except below preloaded images, which keep their own.
fn settle_modes(tree: &Path) -> Result<()> {
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.file_name() != "rootfs" {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}
