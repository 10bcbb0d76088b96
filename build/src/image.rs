//! `cargo caisson image`: the chain of steps from sources to the files under `target/caisson/VARIANT/`.

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::fs;
use std::time::Instant;

use crate::artifacts::{Artifacts, copy_sparse, uki_name};
use crate::cache::{Entry, Key, remove_tree, sha256_file};
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::sbom::Part;
use crate::secure_boot::Keys;
use crate::toolbox::{LockPolicy, Set, Toolbox};
use crate::variant::Variant;
use crate::verity::Verity;
use crate::{disk, esp, guest, kernel, oci, root, sbom, secure_boot, uki};

/// Builds what is missing of a variant.
pub fn build(project: &Project, variant: &str, lock: LockPolicy) -> Result<Artifacts> {
    let variant = Variant::load(project, variant)?;
    if lock == LockPolicy::Update {
        for set in [Set::Tests, Set::Workload] {
            Toolbox::open_set(project, set, lock)?;
        }
    }
    build_in(project, &variant, lock, Artifacts::of(project, &variant.name))
}

/// Builds what is missing of a variant, and puts what is finished where `artifacts` are.
pub fn build_in(
    project: &Project,
    variant: &Variant,
    lock: LockPolicy,
    artifacts: Artifacts,
) -> Result<Artifacts> {
    let begun = Instant::now();
    let toolbox = Toolbox::open(project, lock)?;
    let network = Toolbox::open_set(project, Set::Network, lock)?;
    let rust = guest::Rust::find(project)?;

    let (kernel, bundled, own) = compile(project, &toolbox, &network, &rust)?;
    let built = [bundled.clone(), own].concat();
    let programs: Vec<(&Entry, Vec<&str>)> =
        built.iter().map(|(entry, names)| (entry, names.clone())).collect();
    let nft = guest::nft(project, &network)?;
    let preloaded = variant
        .preload
        .iter()
        .map(|name| oci::preload(project, &toolbox, name))
        .collect::<Result<Vec<_>>>()?;
    let licences = sbom::collect(project, &toolbox, &network, &rust, &bundled, &kernel)?;
    let keys = Keys::find(project)?;
    let loader = match &keys {
        Some(keys) => keys.signed_loader(project, &toolbox)?.path.join(secure_boot::LOADER),
        None => toolbox.root.join(esp::LOADER),
    };
    let inputs = root::Inputs {
        variant,
        programs: &programs,
        nft: &nft,
        preloaded: &preloaded,
        licences: &licences,
        loader: &loader,
    };
    let (root, verity) = root::build(project, &toolbox, &inputs)?;
    let cmdline = format!("{} {}", variant.kernel_parameters.join(" "), verity.kernel_parameters());
    let uki = unified(project, &toolbox, &kernel, variant, &cmdline)?;
    let signed = keys.map(|keys| keys.signed(project, &toolbox, &uki)).transpose()?;
    let esp = esp::build(project, &toolbox, &uki, &loader, signed.as_ref(), variant.partitions.esp)?;
    let uki = signed.unwrap_or(uki);
    let inputs = disk::Inputs { esp: &esp, root: &root, verity: &verity, sizes: &variant.partitions };
    let disk = disk::build(project, &toolbox, &inputs)?;

    let key =
        Key::new("artifacts 1").entry(&disk).entry(&kernel).entry(&licences).text(project.version).hex();
    let current = fs::read_to_string(artifacts.stamp()).is_ok_and(|stamp| stamp == key) && artifacts.exist();
    if !current {
        let parts: Vec<Part> = serde_json::from_slice(&fs::read(licences.path.join("parts.json"))?)?;
        let steps = Steps { kernel, root, uki, disk };
        export(project, variant, &artifacts, &steps, &verity, &cmdline, &parts)?;
        fs::write(artifacts.stamp(), key)?;
    }
    eprintln!("  {} in {:.1} s", if current { "up to date" } else { "built" }, begun.elapsed().as_secs_f64());
    Ok(artifacts)
}

/// The kernel, the programs of others and our own ones, beside each other: each has long times in which it has work for one
/// processor only. Fails when all have ended, with the first failure.
fn compile(
    project: &Project,
    toolbox: &Toolbox,
    network: &Toolbox,
    rust: &guest::Rust,
) -> Result<(Entry, Vec<guest::Programs>, Vec<guest::Programs>)> {
    let own = || {
        let build = |package| guest::build(project, toolbox, rust, package);
        let packages = guest::GUEST_PACKAGES.iter();
        packages.map(|package| Ok((build(package)?, package.programs.to_vec()))).collect::<Result<Vec<_>>>()
    };
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| kernel::build(project, toolbox));
        let bundled = scope.spawn(|| guest::bundled(project, toolbox, network, rust));
        let own = own();
        let (kernel, bundled) = (kernel.join(), bundled.join());
        let panicked = |_| anyhow!("the builder panicked, as told above");
        Ok((kernel.map_err(panicked)??, bundled.map_err(panicked)??, own?))
    })
}

fn unified(
    project: &Project,
    toolbox: &Toolbox,
    kernel: &Entry,
    variant: &Variant,
    cmdline: &str,
) -> Result<Entry> {
    let release = root::os_release(project, variant);
    let key = Key::new("uki 1").text(&toolbox.id).entry(kernel).text(cmdline).text(&release);
    project.cache.step("uki", "the unified kernel image", key, |out| {
        let stub = fs::read(toolbox.root.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub"))
            .context("the toolbox has no EFI stub")?;
        let linux = fs::read(kernel.path.join("bzImage"))?;
        let sections: [(&str, &[u8]); 3] =
            [(".osrel", release.as_bytes()), (".cmdline", cmdline.as_bytes()), (".linux", &linux)];
        fs::write(out.join(uki_name(project.version)), uki::build(&stub, &sections)?)?;
        Ok(())
    })
}

struct Steps {
    kernel: Entry,
    root: Entry,
    uki: Entry,
    disk: Entry,
}

fn export(
    project: &Project,
    variant: &Variant,
    artifacts: &Artifacts,
    steps: &Steps,
    verity: &Verity,
    cmdline: &str,
    parts: &[Part],
) -> Result<()> {
    remove_tree(&artifacts.dir)?;
    fs::create_dir_all(&artifacts.dir).with_context(|| format!("cannot make {}", artifacts.dir.display()))?;
    for (from, to) in [
        (steps.disk.path.join("disk.img"), artifacts.disk()),
        (steps.disk.path.join("disk.qcow2"), artifacts.qcow2()),
        (steps.kernel.path.join("vmlinux"), artifacts.vmlinux()),
        (steps.root.path.join("root.erofs"), artifacts.root()),
        (steps.root.path.join("root.verity"), artifacts.verity()),
        (steps.uki.path.join(uki_name(project.version)), artifacts.uki()),
    ] {
        copy_sparse(&from, &to)?;
    }
    fs::write(artifacts.cmdline(), format!("{cmdline}\n"))?;
    let root_hash = verity.root_hash_hex();
    let sbom = sbom::document(&variant.name, project.version, &root_hash, parts);
    fs::write(artifacts.sbom(), serde_json::to_vec_pretty(&sbom)?)?;
    let mut files = serde_json::Map::new();
    for path in [
        artifacts.disk(),
        artifacts.vmlinux(),
        artifacts.cmdline(),
        artifacts.root(),
        artifacts.verity(),
        artifacts.uki(),
        artifacts.sbom(),
    ] {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, json!({"bytes": fs::metadata(&path)?.len(), "sha256": sha256_file(&path)?}));
    }
    let manifest = json!({
        "id": "caisson",
        "variant": variant.name,
        "version": project.version,
        "arch": "x86_64",
        "time": SOURCE_DATE_EPOCH,
        "root-hash": root_hash,
        "root-blocks": verity.data_blocks,
        "cmdline": cmdline,
        "files": files,
    });
    fs::write(artifacts.manifest(), format!("{}\n", serde_json::to_string_pretty(&manifest)?))?;
    Ok(())
}
