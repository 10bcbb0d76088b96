//! Debian's docker-registry on the host's loopback, and an image in it.

use anyhow::{Context, Result, ensure};
use build::command::{run_quiet, tail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::bench::bench;
use crate::oci::{self, Archive, Document, Image, Layer, Packing};

const START: Duration = Duration::from_secs(20);

pub struct Registry {
    server: Child,
    folder: TempDir,
    pushes: Pushes,
}

/// Pushes images to a registry that listens on the host's loopback, whoever runs it.
pub struct Pushes {
    port: u16,
    /// Where a guest finds it.
    address: &'static str,
}

/// An image in the registry.
pub struct Published {
    /// As a guest names it, by tag.
    pub by_tag: String,
    pub by_digest: String,
}

impl Registry {
    /// Where a guest finds it: an address of QEMU's network, which hands each connection to the host's loopback.
    pub const ADDRESS: &str = "10.0.2.100:5000";

    #[track_caller]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|error| panic!("the registry does not start: {error:#}"))
    }

    fn try_start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("caisson-registry-").tempdir_in("/tmp")?;
        // A port that was free a moment ago.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let storage = folder.path().join("storage");
        let configuration = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": storage}},
            "http": {"addr": format!("127.0.0.1:{port}")},
        });
        // JSON is YAML too.
        let file = folder.path().join("config.yml");
        fs::write(&file, configuration.to_string())?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = bench().toolbox.command("setpriv");
        command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(&file);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let pushes = Pushes { port, address: Self::ADDRESS };
        let mut registry = Self { server: command.spawn()?, folder, pushes };
        let deadline = Instant::now() + START;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let log = registry.folder.path().join("log");
            ensure!(registry.server.try_wait()?.is_none(), "it ended at once:\n{}", tail(&log, 10));
            ensure!(Instant::now() < deadline, "it does not listen within {} s", START.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    /// Lets each connection of a guest break after two mebibytes at most; instead of [`Registry::forward`].
    #[track_caller]
    pub fn breaking(&self) -> (String, String) {
        let script = self.folder.path().join("breaking");
        let pass =
            format!("busybox nc 127.0.0.1 {} | busybox dd bs=64k count=32 2>/dev/null\n", self.pushes.port);
        fs::write(&script, pass).expect("a script");
        (Self::ADDRESS.to_owned(), format!("sh {}", script.display()))
    }

    /// For [`crate::Config::guest_forward`]; [`crate::Config::registry`] sets it.
    pub fn forward(&self) -> (String, String) {
        (Self::ADDRESS.to_owned(), format!("busybox nc 127.0.0.1 {}", self.pushes.port))
    }

    /// Pushes busybox with one more layer, which adds `/etc/story` with `story` in it and takes `/etc/group` away.
    #[track_caller]
    pub fn publish(&self, name: &str, tag: &str, story: &str) -> Published {
        self.publish_large(name, tag, story, 0)
    }

    /// The same with a file of so many bytes that nothing packs.
    #[track_caller]
    pub fn publish_large(&self, name: &str, tag: &str, story: &str, bytes: usize) -> Published {
        let published = self.try_publish(name, tag, story, bytes);
        published.unwrap_or_else(|error| panic!("{name}:{tag} cannot be pushed: {error:#}"))
    }

    /// Pushes busybox with one more layer: what is written to a folder, as a user of the image's. The image names no command.
    #[track_caller]
    pub fn publish_files(&self, name: &str, owner: u32, write: impl FnOnce(&Path)) -> Published {
        let publish = || -> Result<Published> {
            let tree = self.folder.path().join(name.replace('/', "-"));
            fs::create_dir(&tree)?;
            write(&tree);
            let tar = self.folder.path().join("layer.tar");
            let mut command = bench().toolbox.command("tar");
            let owners = [format!("--owner=u:{owner}"), format!("--group=g:{owner}")];
            command.args(owners).arg("-cf").arg(&tar).arg("-C").arg(&tree).arg(".");
            run_quiet(&mut command, "tar")?;
            let layer = Layer::new(&fs::read(&tar)?, Packing::Gzip);
            self.pushes.try_push(name, "latest", &Image::busybox().layer(layer).with("Cmd", json!(["true"])))
        };
        publish().unwrap_or_else(|error| panic!("{name} cannot be pushed: {error:#}"))
    }

    fn try_publish(&self, name: &str, tag: &str, story: &str, bytes: usize) -> Result<Published> {
        let blocks = (0..bytes.div_ceil(32)).flat_map(|number| Sha256::digest(number.to_le_bytes()));
        let large: Vec<u8> = blocks.take(bytes).collect();
        let archive = Archive::new()
            .file("etc/story", 0o644, format!("{story}\n").as_bytes())
            .file("etc/large", 0o644, &large)
            .whiteout("etc/group");
        let image = Image::busybox()
            .layer(Layer::new(&archive.finish(), Packing::Gzip))
            .with("Cmd", json!(["sh", "-c", "cat /etc/story; ls /etc; exec sleep 3600"]));
        self.pushes.try_push(name, tag, &image)
    }

    /// Pushes an image.
    #[track_caller]
    pub fn push(&self, name: &str, tag: &str, image: &Image) -> Published {
        self.pushes.push(name, tag, image)
    }

    /// Pushes one image for each architecture, and what names them all, in the format of the first.
    #[track_caller]
    pub fn push_index(&self, name: &str, tag: &str, images: &[(&str, Image)]) -> Published {
        self.pushes.push_index(name, tag, images)
    }
}

impl Pushes {
    /// To the one at a port, which a guest finds at an address.
    pub fn to(port: u16, address: &'static str) -> Self {
        Self { port, address }
    }

    /// Pushes an image.
    #[track_caller]
    pub fn push(&self, name: &str, tag: &str, image: &Image) -> Published {
        self.try_push(name, tag, image)
            .unwrap_or_else(|error| panic!("{name}:{tag} cannot be pushed: {error:#}"))
    }

    fn try_push(&self, name: &str, tag: &str, image: &Image) -> Result<Published> {
        self.push_manifest(name, tag, &self.push_content(name, image)?)
    }

    /// As [`Registry::push_index`].
    #[track_caller]
    fn push_index(&self, name: &str, tag: &str, images: &[(&str, Image)]) -> Published {
        let push = || -> Result<Published> {
            let mut manifests = Vec::new();
            for (architecture, image) in images {
                let manifest = self.push_content(name, image)?;
                self.push_manifest(name, &manifest.digest(), &manifest)?;
                manifests.push((*architecture, manifest));
            }
            let is_docker = images.first().is_some_and(|(_, image)| image.is_docker);
            self.push_manifest(name, tag, &oci::index(&manifests, is_docker))
        };
        push().unwrap_or_else(|error| panic!("{name}:{tag} cannot be pushed: {error:#}"))
    }

    /// All of an image but its manifest, which is returned.
    fn push_content(&self, name: &str, image: &Image) -> Result<Document> {
        let (blobs, manifest) = image.describe();
        for blob in blobs {
            self.push_blob(name, blob)?;
        }
        Ok(manifest)
    }

    fn push_manifest(&self, name: &str, tag: &str, manifest: &Document) -> Result<Published> {
        let uri = format!("/v2/{name}/manifests/{tag}");
        self.send(Method::PUT, &uri, &manifest.media, manifest.data.clone())?;
        Ok(Published {
            by_tag: format!("{}/{name}:{tag}", self.address),
            by_digest: format!("{}/{name}@{}", self.address, manifest.digest()),
        })
    }

    /// A monolithic upload (OCI Distribution Specification, "Pushing blobs").
    fn push_blob(&self, name: &str, data: Vec<u8>) -> Result<()> {
        let media = "application/octet-stream";
        let location = self.send(Method::POST, &format!("/v2/{name}/blobs/uploads/"), media, Vec::new())?;
        let location = location.context("the registry says nothing about where to upload")?;
        let path = location.split_once("/v2/").map_or(location.as_str(), |(_, path)| path);
        let uri = format!("/v2/{path}&digest={}", oci::digest(&data));
        self.send(Method::PUT, &uri, media, data).map(drop)
    }

    /// Returns the header `location`.
    fn send(&self, method: Method, uri: &str, media: &str, body: Vec<u8>) -> Result<Option<String>> {
        let request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header("host", format!("127.0.0.1:{}", self.port))
            .header("content-type", media)
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let answer = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let location = response.headers().get("location").cloned();
                let body = response.into_body().collect().await?.to_bytes();
                ensure!(status.is_success(), "{method} {uri}: {status}: {}", String::from_utf8_lossy(&body));
                Ok(location.and_then(|location| location.to_str().ok().map(str::to_owned)))
            };
            tokio::pin!(answer);
            tokio::select! {
                biased;
                answer = &mut answer => answer,
                _ = connection => answer.await,
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(START, exchange).await })?
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
