//! Another root on a node's disk: the image's own, and one service more.

use anyhow::{Context, Result};
use build::cache::{Key, files_below};
use build::disk::SECTOR;
use build::guest::{self, Rust};
use build::project::Project;
use build::root;
use build::toolbox::{LockPolicy, Set, Toolbox};
use build::variant::Variant;
use build::{esp, kernel, oci, sbom};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::bench::bench;
use crate::node::Node;

/// Builds the image's root again with a service `name` that runs `script` with busybox's shell as root, and installs it in
/// slot b of a node that is off, which boots it from now on. What the image has no way to do, such as to kill its services,
/// a story does by this.
#[track_caller]
pub fn install_in_slot_b(node: &mut Node, name: &str, script: &str) {
    let installed = with_service(node, name, script)
        .and_then(|(project, variant)| build_and_write(node, &project, &variant));
    node.config.cmdline = Some(installed.unwrap_or_else(|error| panic!("the root with {name}: {error:#}")));
}

/// The same, with nothing more than the root of trust of a repository of updates.
#[track_caller]
pub fn install_with_update_root(node: &mut Node, update_root: &Path) {
    let real = &bench().project;
    let installed = Variant::load(real, "default").and_then(|mut variant| {
        variant.update_root = Some(update_root.to_owned());
        build_and_write(node, real, &variant)
    });
    node.config.cmdline =
        Some(installed.unwrap_or_else(|error| panic!("the root with an update root: {error:#}")));
}

/// The sources of what a root takes from os/, and the variant, with the service added.
fn with_service(node: &Node, name: &str, script: &str) -> Result<(Project, Variant)> {
    let real = &bench().project;
    let sources = node.path("sources");
    let os = real.sources.join("os");
    for file in files_below(&os)? {
        let copy = sources.join("os").join(file.strip_prefix(&os)?);
        fs::create_dir_all(copy.parent().context("a file without a folder")?)?;
        fs::copy(&file, &copy)?;
    }
    fs::write(sources.join(format!("os/services/{name}.toml")), service("/usr/bin/busybox", script))?;
    let mut variant = Variant::load(real, "default")?;
    variant.services.push(name.to_owned());
    Ok((Project { sources, cache: real.cache.clone(), version: real.version }, variant))
}

/// The file of a service that runs `script` as root, once the agent is ready.
pub(crate) fn service(busybox: &str, script: &str) -> String {
    let exec = serde_json::json!([busybox, "sh", "-c", script]);
    format!(
        "description = \"A story\"\nexec = {exec}\nafter = [\"apiserver\", \"host-agent\"]\nready = \"started\"\nrestart = \"no\"\n"
    )
}

fn build_and_write(node: &Node, project: &Project, variant: &Variant) -> Result<String> {
    let bench = bench();
    let real = &bench.project;
    let rust = Rust::find(real)?;
    let network = Toolbox::open_set(real, Set::Network, LockPolicy::Newest)?;
    let bundled = guest::bundled(real, &bench.toolbox, &network, &rust)?;
    let nft = guest::nft(real, &network)?;
    let busybox = oci::preload(real, &bench.toolbox, "busybox")?;
    let shell = real.cache.step(
        "shell",
        "a shell for the tests",
        Key::new("shell 1").entry(&busybox.entry),
        |out| {
            fs::copy(busybox.entry.path.join("rootfs/bin/busybox"), out.join("busybox"))?;
            Ok(())
        },
    )?;
    let mut built = bundled.clone();
    built.push((shell, vec!["busybox"]));
    for package in guest::GUEST_PACKAGES {
        built.push((guest::build(real, &bench.toolbox, &rust, package)?, package.programs.to_vec()));
    }
    let programs: Vec<_> = built.iter().map(|(entry, names)| (entry, names.clone())).collect();
    let licences = sbom::collect(
        real,
        &bench.toolbox,
        &network,
        &rust,
        &bundled,
        &kernel::build(real, &bench.toolbox)?,
    )?;
    let preloaded = [busybox];
    let loader = bench.toolbox.root.join(esp::LOADER);
    let inputs = root::Inputs {
        variant,
        programs: &programs,
        nft: &nft,
        preloaded: &preloaded,
        licences: &licences,
        loader: &loader,
    };
    let (entry, verity) = root::build(project, &bench.toolbox, &inputs)?;

    write_slot(
        &node.disk_path(),
        [
            ("root-b", &entry.path.join("root.erofs"), verity.root_uuid()),
            ("verity-b", &entry.path.join("root.verity"), verity.verity_uuid()),
        ],
    )?;
    Ok(format!("{} {}", variant.kernel_parameters.join(" "), verity.kernel_parameters()))
}

fn write_slot(disk: &Path, parts: [(&str, &Path, [u8; 16]); 2]) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(disk)?;
    let mut table = gptman::GPT::read_from(&mut file, SECTOR)?;
    for (name, content, uuid) in parts {
        let (_, entry) = table
            .iter_mut()
            .find(|(_, entry)| entry.partition_name.as_str() == name)
            .with_context(|| format!("the disk has no partition {name}"))?;
        entry.unique_partition_guid = build::disk::guid_of_hash(uuid);
        file.write_all_at(&fs::read(content)?, entry.starting_lba * SECTOR)?;
    }
    build::disk::write_table(&mut file, &table)
}
