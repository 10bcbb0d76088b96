//! The EFI system partition: FAT32 with systemd-boot and the unified kernel image as a Type #2 entry (UAPI group: Boot Loader
//! Specification). Written by mkfs.vfat and mtools: the fatfs crate writes folders that fsck refuses.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

use crate::artifacts::uki_name;
use crate::cache::{Entry, Key};
use crate::command::run_quiet;
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::secure_boot;
use crate::toolbox::Toolbox;
use crate::variant::Mib;

/// In the toolbox, and in the root: a version that stays renews the one of the ESP by it.
pub const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Boots the newest entry at once, and nobody at the console changes its command line.
const LOADER_CONF: &str = "timeout 0\neditor no\n";

/// What firmware that can boot nothing else does, if it has a shell: start again, which takes the next try. The loader gives up when
/// the image that it chose does not start.
const STARTUP: &str = "reset\r\n";

pub fn build(
    project: &Project,
    toolbox: &Toolbox,
    uki: &Entry,
    loader: &Path,
    signed: Option<&Entry>,
    size: Mib,
) -> Result<Entry> {
    let mut key = Key::new("esp 4")
        .text(&toolbox.id)
        .entry(uki)
        .file(loader)?
        .text(&size.0.to_string())
        .text(LOADER_CONF)
        .text(STARTUP)
        .text(project.version);
    if let Some(signed) = signed {
        key = key.entry(signed);
    }
    project.cache.step("esp", "systemd-boot and the unified kernel image", key, |out| {
        let uki = signed.unwrap_or(uki).path.join(uki_name(project.version));
        let image = out.join("esp.img");
        let keys = signed.map(|signed| secure_boot::enrolment(&signed.path)).unwrap_or_default();
        write(toolbox, &image, size, loader, &uki, &keys)
    })
}

/// Makes the file system in `image`, with a loader, a unified kernel image by its own name, and what more is to be in it.
pub fn write(
    toolbox: &Toolbox,
    image: &Path,
    size: Mib,
    loader: &Path,
    uki: &Path,
    more: &[(PathBuf, String)],
) -> Result<()> {
    fs::File::create(image)?.set_len(size.bytes())?;
    run_quiet(
        toolbox.command("mkfs.vfat").args(["--invariant", "-F", "32", "-n", "ESP"]).arg(image),
        "making the file system of the ESP",
    )?;
    let loader_conf = image.with_file_name("loader.conf");
    fs::write(&loader_conf, LOADER_CONF)?;
    let startup = image.with_file_name("startup.nsh");
    fs::write(&startup, STARTUP)?;
    // The loader may lie where the toolbox's programs do not see it: in a toolbox that the cache only links to.
    let loader_copy = image.with_file_name("loader-of-the-esp.efi");
    fs::copy(loader, &loader_copy).with_context(|| format!("cannot copy {}", loader.display()))?;
    let mtools = |program: &str| {
        let mut command = toolbox.command(program);
        command.env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH.to_string()).env("TZ", "UTC").arg("-i").arg(image);
        command
    };
    let mut folders: Vec<String> =
        ["::/EFI", "::/EFI/BOOT", "::/EFI/Linux", "::/loader"].map(str::to_owned).to_vec();
    if !more.is_empty() {
        folders.extend(["::/loader/keys", secure_boot::KEYS_FOLDER].map(str::to_owned));
    }
    run_quiet(mtools("mmd").args(folders), "making folders in the ESP")?;
    let uki_name = uki.file_name().unwrap_or_default().to_string_lossy();
    let mut files = vec![
        (loader_copy.clone(), "::/EFI/BOOT/BOOTX64.EFI".to_owned()),
        (uki.to_owned(), format!("::/EFI/Linux/{uki_name}")),
        (loader_conf.clone(), "::/loader/loader.conf".to_owned()),
        (startup.clone(), "::/startup.nsh".to_owned()),
    ];
    files.extend_from_slice(more);
    for (from, to) in files {
        run_quiet(mtools("mcopy").arg(from).arg(&to), &format!("writing {to} in the ESP"))?;
    }
    for copied in [startup, loader_conf, loader_copy] {
        fs::remove_file(copied)?;
    }
    Ok(())
}
