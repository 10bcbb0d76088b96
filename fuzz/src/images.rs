//! What a registry sends: manifests, layers, configurations; and what people call images.

use host_agent::container::bundle::{ImageConfig, command, user};
use host_agent::container::health;
use host_agent::container::layer::Layer;
use host_agent::container::manifest::{self, LARGEST_LAYER, Manifest};
use host_agent::container::reference;
use host_agent::container::unpack::Tree;
use settings::{Container, ImageReference};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::Runtime;

/// Bytes that a layer may unpack to.
const LARGEST: u64 = 1 << 20;
/// Beside the tree: no layer may read it, change it or put something there.
const OUTSIDE: &str = "outside";
const KEPT: &[u8] = b"kept";

fn done<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the fuzzer's own files: {error}"))
}

/// Two layers, one over the other: what is in front of the last `LAYER`, and what is behind it. Nothing comes out of the tree.
pub(crate) fn layer(input: &[u8]) {
    const LAYER: &[u8] = b"\n-- layer --\n";
    let cut = input.windows(LAYER.len()).rposition(|bytes| bytes == LAYER);
    let (lower, upper) = cut.map_or((input, &[][..]), |at| (&input[..at], &input[at + LAYER.len()..]));
    let folder = crate::folder();
    let (root, outside) = (folder.path().join("rootfs"), folder.path().join(OUTSIDE));
    done(fs::create_dir(&root));
    done(fs::create_dir(&outside));
    done(fs::write(outside.join("file"), KEPT));
    if let Ok(mut tree) = Tree::open(&root) {
        for layer in [lower, upper] {
            if let Err(error) = tree.add_layer(layer) {
                assert!(error.to_string().len() < 64 << 10, "{error}");
                break;
            }
        }
    }
    assert!(done(fs::read(outside.join("file"))) == KEPT, "a layer wrote outside of its tree");
    assert_eq!(done(fs::read_dir(&outside)).count(), 1, "a layer came out of its tree");
    assert_eq!(done(fs::read_dir(folder.path())).count(), 2, "a layer came out of its tree");
    has_no_devices(&root);
}

fn has_no_devices(folder: &Path) {
    for entry in done(fs::read_dir(folder)) {
        let path = done(entry).path();
        let about = done(fs::symlink_metadata(&path));
        let kind = about.file_type();
        let is_of_files = kind.is_dir() || kind.is_file() || kind.is_symlink() || kind.is_fifo();
        assert!(is_of_files, "{kind:?} in a tree");
        if kind.is_dir() {
            has_no_devices(&path);
        }
    }
}

/// An archive with files, links in and out, and what takes files away.
pub(crate) fn layer_seeds() -> Vec<Vec<u8>> {
    let entry = |name: &str, kind: u8, mode: &str, link: &str, content: &[u8]| {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:0>7}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut data = header.to_vec();
        data.extend(content);
        data.resize(data.len().next_multiple_of(512), 0);
        data
    };
    let lower = [
        entry("bin/", b'5', "755", "", b""),
        entry("bin/sh", b'0', "4755", "", b"program"),
        entry("bin/ash", b'1', "755", "bin/sh", b""),
        entry("out", b'2', "777", "../outside", b""),
        entry("null", b'3', "666", "", b""),
    ]
    .concat();
    let upper = [
        entry("out/new", b'0', "644", "", b"x"),
        entry("bin/.wh.ash", b'0', "644", "", b""),
        entry("bin/.wh..wh..opq", b'0', "644", "", b""),
        entry("../outside/file", b'0', "644", "", b"x"),
        entry("PaxHeaders/x", b'x', "644", "", b"19 SCHILY.xattr.a=b\n"),
        entry("file", b'0', "644", "", b"y"),
    ]
    .concat();
    vec![
        [lower.as_slice(), &[0; 1024]].concat(),
        [lower.as_slice(), b"\n-- layer --\n", &upper, &[0; 1024]].concat(),
    ]
}

/// A packed layer, whose kind its first byte tells: it unpacks to no more than it may, or to a mistake.
pub(crate) fn packed_layer(input: &[u8]) {
    let Some((kind, packed)) = input.split_first() else { return };
    let kind = ["gzip", "zstd", "tar"][usize::from(*kind) % 3];
    let mut file: File = done(tempfile::tempfile());
    done(file.write_all(packed));
    done(file.rewind());
    let Ok(mut layer) = Layer::open(file, kind, LARGEST, Arc::default()) else { return };
    let mut buffer = vec![0; 64 << 10];
    let mut all = 0;
    while let Ok(read @ 1..) = layer.read(&mut buffer) {
        all += read as u64;
        assert!(all <= LARGEST, "it unpacks to {all} bytes");
    }
}

pub(crate) fn packed_layer_seeds() -> Vec<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(vec![0], flate2::Compression::default());
    done(gzip.write_all(&[0; 1024]));
    let gzip = done(gzip.finish());
    let twice = [gzip.as_slice(), &gzip[1..]].concat();
    // A frame of one block that is stored (RFC 8878, 3.1.1), and one of a block of one byte again and again.
    let stored = [&[1, 0x28, 0xb5, 0x2f, 0xfd, 0x20, 4, 0x21, 0, 0][..], b"abcd"].concat();
    let repeated = vec![1, 0x28, 0xb5, 0x2f, 0xfd, 0x20, 200, 0x43, 6, 0, 7];
    vec![gzip, twice, stored, repeated, vec![2, 0, 0, 0]]
}

/// An image's configuration, its `/etc/passwd` and its `/etc/group`, with `==` between them.
pub(crate) fn image_config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.split("==");
    let mut part = || parts.next().unwrap_or_default();
    let Ok(config) = serde_json::from_str::<ImageConfig>(part()) else { return };
    if let Ok(command) = command(&Container::default(), &config) {
        assert!(!command.is_empty());
    }
    let wanted = config.config.user.as_deref().unwrap_or_default();
    if let Ok(found) = user(wanted, part(), part())
        && let Some(uid) = wanted.split(':').next().and_then(|uid| uid.parse::<u32>().ok())
    {
        assert_eq!(found.uid, uid, "a number names somebody else");
    }
}

pub(crate) fn image_config_seeds() -> Vec<Vec<u8>> {
    vec![br#"{"config": {"User": "web:5", "Env": ["A=b"], "Entrypoint": ["sh"], "Cmd": ["-c", "true"], "WorkingDir": "/", "StopSignal": "SIGTERM"}, "rootfs": {"diff_ids": ["sha256:aa"]}}==root:x:0:0::/:/bin/sh
web:x:7:8::/:/bin/sh
==web:x:8:
"#.to_vec()]
}

/// What stands in a registry by an image's name: nothing that a node does not take, and nothing that would be another path.
pub(crate) fn image_manifest(input: &[u8]) {
    let is_digest = |text: &str| {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        assert!(hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text:?}");
    };
    match manifest::read(input) {
        Err(error) => assert!(error.len() < 4096, "{error}"),
        Ok(Manifest::Index(digest)) => is_digest(&digest),
        Ok(Manifest::Image(image)) => {
            is_digest(&image.config.digest);
            assert!((0..=4 << 20).contains(&image.config.size), "{}", image.config.size);
            assert!(image.layers.len() <= 128);
            for layer in &image.layers {
                is_digest(&layer.digest);
                assert!((0..=LARGEST_LAYER).contains(&layer.size), "{}", layer.size);
            }
        }
    }
}

pub(crate) fn image_manifest_seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let image = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":7}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":32654}}],"annotations":{{"a":"b"}}}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[{{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","digest":"{digest}","size":7,"platform":{{"architecture":"amd64","os":"linux","variant":"v1"}}}}]}}"#
    );
    vec![image.into_bytes(), index.into_bytes()]
}

/// What settings take for a reference, the registry's client takes too, and means the same by it.
pub(crate) fn image_reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.parse::<ImageReference>() {
        Err(error) => assert!(error.len() < 4096),
        Ok(reference) => {
            assert_eq!(reference.as_str(), text);
            let parsed: oci_client::Reference =
                text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference::parse(text), Ok(parsed), "{text}");
        }
    }
}

pub(crate) fn image_reference_seeds() -> Vec<Vec<u8>> {
    let digest = format!("registry.example.com:5000/a/b_c.d:1.2-3@sha256:{}", "ab".repeat(32));
    vec![
        b"localhost/busybox".to_vec(),
        b"nginx:1.27".to_vec(),
        b"127.0.0.1:5000/a".to_vec(),
        digest.into_bytes(),
    ]
}

thread_local! {
    static RUNTIME: Runtime = done(tokio::runtime::Builder::new_current_thread().build());
}

/// What a container answers its health check by HTTP: a status, or words.
pub(crate) fn health_answer(input: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (near, mut far) = duplex(64 << 10);
            let container = async {
                let _ = far.write_all(input).await;
                let _ = far.shutdown().await;
                let _ = far.read_to_end(&mut Vec::new()).await;
            };
            let (answer, ()) = tokio::join!(health::status(near, "/health"), container);
            match answer {
                Ok(status) => assert!((100..1000).contains(&status), "{status}"),
                Err(error) => assert!(error.len() < 4096),
            }
        });
    });
}

pub(crate) fn health_answer_seeds() -> Vec<Vec<u8>> {
    vec![
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n".to_vec(),
        b"HTTP/1.0 204\r\n\r\n".to_vec(),
    ]
}
