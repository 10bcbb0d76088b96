//! Disks for the guest, and damage to them.

use build::command::run_quiet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::bench::bench;

/// A NoCloud disk (cloud-init: a volume called `cidata` with `user-data` and `meta-data`) as ISO 9660, made in `folder`.
#[track_caller]
pub fn nocloud_iso(folder: &Path, user_data: &[u8]) -> PathBuf {
    let (content, image) = nocloud_folder(folder, user_data);
    let mut command = bench().toolbox.command("genisoimage");
    command.args(["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"]).arg(&image).arg(content);
    run_quiet(&mut command, "genisoimage").unwrap_or_else(|error| panic!("{error:#}"));
    image
}

/// The same as FAT.
#[track_caller]
pub fn nocloud_vfat(folder: &Path, user_data: &[u8]) -> PathBuf {
    let (content, image) = nocloud_folder(folder, user_data);
    File::create(&image).and_then(|file| file.set_len(4 << 20)).expect("a file of 4 MiB");
    let mut command = bench().toolbox.command("mkfs.vfat");
    run_quiet(command.args(["-n", "CIDATA"]).arg(&image), "mkfs.vfat").unwrap_or_else(|e| panic!("{e:#}"));
    let mut command = bench().toolbox.command("mcopy");
    command.arg("-i").arg(&image).args([content.join("user-data"), content.join("meta-data")]).arg("::");
    run_quiet(&mut command, "mcopy").unwrap_or_else(|error| panic!("{error:#}"));
    image
}

fn nocloud_folder(folder: &Path, user_data: &[u8]) -> (PathBuf, PathBuf) {
    let content = folder.join("nocloud");
    fs::create_dir_all(&content).expect("a folder");
    fs::write(content.join("user-data"), user_data).expect("user-data");
    fs::write(content.join("meta-data"), "instance-id: story\n").expect("meta-data");
    (content, folder.join("nocloud.img"))
}

/// An empty ext4 with a label, made in `folder`.
#[track_caller]
pub fn ext4_disk(folder: &Path, label: &str) -> PathBuf {
    let image = folder.join(format!("{label}.img"));
    File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("a file of 32 MiB");
    let mut command = bench().toolbox.command("mke2fs");
    command.args(["-F", "-q", "-t", "ext4", "-L", label]).arg(&image);
    run_quiet(&mut command, "mke2fs").unwrap_or_else(|error| panic!("{error:#}"));
    image
}

/// Changes one byte of a file.
#[track_caller]
pub fn flip(file: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(file).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte to change");
    file.write_all_at(&[byte[0] ^ 0x01], offset).expect("a changed byte");
}

/// Zeros over a part of a file.
#[track_caller]
pub fn wipe(file: &Path, start: u64, bytes: usize) {
    let file = File::options().write(true).open(file).expect("the file");
    file.write_all_at(&vec![0; bytes], start).expect("zeros");
}
