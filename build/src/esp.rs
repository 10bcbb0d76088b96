//! The EFI system partition: FAT32 with systemd-boot and the unified kernel image as a Type #2 entry (UAPI group: Boot Loader
//! Specification). Written by mkfs.vfat and mtools: the fatfs crate writes folders that fsck refuses.

use anyhow::Result;
use std::fs;
use std::path::Path;

use crate::artifacts::uki_name;
use crate::cache::{Entry, Key};
use crate::command::run_quiet;
use crate::project::{Project, SOURCE_DATE_EPOCH};
use crate::toolbox::Toolbox;
use crate::variant::Mib;

const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Boots the newest entry at once, and nobody at the console changes its command line.
const LOADER_CONF: &str = "timeout 0\neditor no\n";

pub fn build(project: &Project, toolbox: &Toolbox, uki: &Entry, size: Mib) -> Result<Entry> {
    let key = Key::new("esp 1")
        .text(&toolbox.id)
        .entry(uki)
        .text(&size.0.to_string())
        .text(LOADER_CONF)
        .text(project.version);
    project.cache.step("esp", "systemd-boot and the unified kernel image", key, |out| {
        let image = out.join("esp.img");
        fs::File::create(&image)?.set_len(size.bytes())?;
        run_quiet(
            toolbox.command("mkfs.vfat").args(["--invariant", "-F", "32", "-n", "ESP"]).arg(&image),
            "making the file system of the ESP",
        )?;
        let loader_conf = out.join("loader.conf");
        fs::write(&loader_conf, LOADER_CONF)?;
        let mtools = |program: &str| {
            let mut command = toolbox.command(program);
            command
                .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH.to_string())
                .env("TZ", "UTC")
                .arg("-i")
                .arg(&image);
            command
        };
        run_quiet(
            mtools("mmd").args(["::/EFI", "::/EFI/BOOT", "::/EFI/Linux", "::/loader"]),
            "making folders in the ESP",
        )?;
        let uki_name = uki_name(project.version);
        for (from, to) in [
            (Path::new("/").join(LOADER), "::/EFI/BOOT/BOOTX64.EFI".to_owned()),
            (uki.path.join(&uki_name), format!("::/EFI/Linux/{uki_name}")),
            (loader_conf.clone(), "::/loader/loader.conf".to_owned()),
        ] {
            run_quiet(mtools("mcopy").arg(from).arg(&to), &format!("writing {to} in the ESP"))?;
        }
        Ok(fs::remove_file(loader_conf)?)
    })
}
