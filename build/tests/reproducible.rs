//! The same sources give the same bytes, wherever and whenever they are built.

use build::artifacts::Artifacts;
use build::cache::{Cache, files_below, sha256_file};
use build::image;
use build::project::Project;
use build::toolbox::LockPolicy;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Builds from a copy of the sources in another folder, with a cache of its own.
///
/// Programs of the guest are compiled again, the root, its tree, the UKI and the disk are made again. What takes most of the time is
/// shared, unless `CAISSON_REPRODUCE=all`: toolbox, kernel, programs of others, and of our own the agent, which is compiled as the
/// other ones are, at the same places of the same toolbox.
#[test]
fn a_build_elsewhere_gives_the_same_bytes() {
    let first = Project::open().unwrap();
    let one = image::build(&first, "default", LockPolicy::Newest).unwrap();

    let elsewhere = tempfile::tempdir_in(first.cache.root()).unwrap();
    let copy = elsewhere.path().join("a folder with another name");
    copy_sources(&first.sources, &copy);
    let cache = elsewhere.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let shared: &[&str] = match std::env::var("CAISSON_REPRODUCE").as_deref() {
        Ok("all") => &[],
        _ => &["toolbox", "kernel", "youki", "ntpd", "netavark", "aardvark-dns", "nft", "host-agent"],
    };
    for step in shared {
        symlink(first.cache.root().join(step), cache.join(step)).unwrap();
    }
    let second = Project { sources: copy, cache: Cache::at(&cache).unwrap(), version: first.version };
    let two = image::build(&second, "default", LockPolicy::Newest).unwrap();

    assert_ne!(one.dir, two.dir);
    for file in [
        Artifacts::root,
        Artifacts::verity,
        Artifacts::uki,
        Artifacts::disk,
        Artifacts::vmlinux,
        Artifacts::sbom,
    ] {
        let (a, b) = (file(&one), file(&two));
        let name = a.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(
            sha256_file(&a).unwrap(),
            sha256_file(&b).unwrap(),
            "{name} differs between two builds of the same sources"
        );
    }
}

fn copy_sources(from: &Path, to: &Path) {
    for file in files_below(from).unwrap() {
        let name = file.strip_prefix(from).unwrap();
        if name.starts_with(".git") {
            continue;
        }
        fs::create_dir_all(to.join(name).parent().unwrap()).unwrap();
        fs::copy(&file, to.join(name)).unwrap();
    }
}
