//! Images with all that layers may have, in both formats that registries have, packed in all three manners.

use build::command::run_quiet;
use qemu_tests::{Archive, Config, Image, Layer, Node, Packing, Registry, bench, workload};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Of each file with a hole, which ends in these bytes. The node's disk has half as much.
const SPARSE: u64 = 2 << 30;
const END: &str = "end.";
/// Layers of one image; a node takes 128.
const MANY: usize = 120;
/// May bind to ports below 1024 (`struct vfs_ns_cap_data` of `linux/capability.h`, revision 2).
const NET_BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Asked of a shell in the root of the image, and what it says, its lines joined.
const FACTS: &[(&str, &str)] = &[
    ("ls a; cat a/kept", "kept through first"),
    ("ls b", "new"),
    // Two of three names are left, one of them of another layer.
    ("ls c; cat c/two c/three; stat -c %h c/two", "three two content content 2"),
    ("cat d/inside e", "inside a file now"),
    ("stat -c '%a %u:%g' suid shared sticky owned", "4755 0:0 2775 0:0 1777 0:0 700 999:999"),
    ("stat -c %Y a/kept suid", "1234567890 1234567890"),
    ("getfattr -h -n security.capability suid | grep -c security.capability=", "1"),
    ("getfattr -h -n user.note suid | grep -c user.note=", "1"),
    // Devices are the runtime's.
    ("ls -A devices", ""),
    ("ls sparse", "gnu pax-0.0 pax-0.1 pax-1.0"),
    ("stat -c %s sparse/*", "2147483648 2147483648 2147483648 2147483648"),
    ("for f in sparse/*; do dd if=$f bs=1 skip=2147483644 2>/dev/null; echo; done", "end. end. end. end."),
    ("[ $(du -sk sparse | cut -f1) -lt 1024 ] && echo small", "small"),
];

/// Says each fact in a line with its number.
fn script() -> String {
    let facts = FACTS.iter().enumerate();
    let lines: String = facts.map(|(number, (ask, _))| format!("echo {number}: $({ask})\n")).collect();
    format!("cd /; {lines}echo all is said; exec sleep 3600")
}

#[track_caller]
fn assert_facts(log: &str, what: &str) {
    for (number, (ask, expected)) in FACTS.iter().enumerate() {
        let start = format!("{number}:");
        let line = log.lines().find_map(|line| line.strip_prefix(&start));
        assert_eq!(line.map(str::trim), Some(*expected), "{what}: {ask}: {log}");
    }
}

/// Two layers over each other.
fn layers() -> [Vec<u8>; 2] {
    let lower = Archive::new()
        .folder("a", 0o755)
        .file("a/kept", 0o644, "first\n")
        .file("a/gone", 0o644, "")
        .link("alias", "/a")
        .folder("b", 0o755)
        .file("b/old", 0o644, "")
        .folder("b/folder", 0o755)
        .file("b/folder/old", 0o644, "")
        .file("c/one", 0o644, "content\n")
        .hard_link("c/two", "c/one")
        .file("d", 0o644, "a file")
        .file("e/inside", 0o644, "")
        .attributes(&[("security.capability", &NET_BIND), ("user.note", b"a\n\n\0bc")])
        .file("suid", 0o4755, "#!/bin/sh\n")
        .folder("shared", 0o2775)
        .folder("sticky", 0o1777)
        .owned_folder("owned", 0o700, 999)
        .folder("devices", 0o755)
        .device("devices/null");
    let upper = Archive::new()
        .whiteout("a/gone")
        .file("alias/through", 0o644, "")
        .file("b/new", 0o644, "")
        .whiteout("b/.wh..opq")
        .hard_link("c/three", "c/one")
        .whiteout("c/one")
        .folder("d", 0o755)
        .file("d/inside", 0o644, "inside\n")
        .file("e", 0o644, "a file now\n");
    [lower.finish(), upper.finish()]
}

/// A file with a hole as GNU tar packs it.
fn sparse(name: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::Builder::new().prefix("caisson-sparse-").tempdir_in("/tmp").expect("a folder");
    fs::create_dir(folder.path().join("sparse")).expect("a folder");
    let file = File::create(folder.path().join("sparse").join(name)).expect("a file");
    file.write_all_at(END.as_bytes(), SPARSE - END.len() as u64).expect("its end");
    let mut tar = bench().toolbox.command("tar");
    tar.args(["--create", "--sparse", "--owner=0", "--group=0"]).args(options).arg("-C").arg(folder.path());
    let archive = run_quiet(tar.arg("sparse"), "tar").unwrap_or_else(|error| panic!("{error:#}"));
    assert!(archive.len() < 1 << 20, "{name} has {} bytes", archive.len());
    archive
}

#[test]
fn what_layers_may_have_is_in_the_container() {
    let [lower, upper] = layers();
    let image = workload::attributes()
        .layer(Layer::new(&lower, Packing::Gzip))
        .layer(Layer::new(&sparse("gnu", &["--format=gnu"]), Packing::Plain))
        .layer(Layer::new(&sparse("pax-0.0", &["--format=posix", "--sparse-version=0.0"]), Packing::Zstd))
        .layer(Layer::new(&sparse("pax-0.1", &["--format=posix", "--sparse-version=0.1"]), Packing::Gzip))
        .layer(Layer::new(&sparse("pax-1.0", &["--format=posix", "--sparse-version=1.0"]), Packing::Zstd))
        .layer(Layer::new(&upper, Packing::Zstd))
        .with("Cmd", json!(["sh", "-c", script()]));
    let wrong = Image::busybox().with("Cmd", json!(["echo", "of another machine"]));
    let registry = Registry::start();
    let images = [("arm64", wrong.clone()), ("amd64", image.clone())];
    let oci = registry.push_index("stories/oci", "1", &images);
    let docker =
        registry.push_index("stories/docker", "1", &images.map(|(name, image)| (name, image.docker())));
    // Without what names the platforms.
    let alone = registry.push("stories/alone", "1", &image.docker());

    // Each layer replaces a file, adds one and takes the one before away.
    let layer = |number: usize| {
        let archive = Archive::new()
            .file("many/last", 0o644, format!("{number}\n"))
            .file(&format!("many/of-{number}"), 0o644, "")
            .whiteout(&format!("many/of-{}", number - 1));
        Layer::new(&archive.finish(), Packing::Gzip)
    };
    let mut many = Image::busybox()
        .with("Cmd", json!(["sh", "-c", "ls /many; cat /many/last; echo all is said; exec sleep 3600"]));
    many.layers.extend((2..=MANY).map(layer));
    assert_eq!(many.layers.len(), MANY);
    let many = registry.push("stories/many", "1", &many);

    let node = Node::boot_healthy(Config { cpus: 2, ..Config::direct().registry(&registry) });
    node.set(&json!({"containers": {
        "oci": {"image": oci.by_tag},
        "docker": {"image": docker.by_digest},
        "alone": {"image": alone.by_tag},
        "many": {"image": many.by_tag},
    }}));
    for name in ["oci", "docker", "alone"] {
        assert_facts(&node.wait_for_logs(name, "all is said"), name);
    }
    let log = node.wait_for_logs("many", "all is said");
    assert_eq!(log, format!("last\nof-{MANY}\n{MANY}\nall is said\n"));
}
