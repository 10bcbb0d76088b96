//! Debian's docker-registry on the host's loopback, and an image in it.

use anyhow::{Context, Result, ensure};
use build::cache::hex;
use build::command::{run_quiet, tail};
use build::oci;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::bench::bench;

const START: Duration = Duration::from_secs(20);

pub struct Registry {
    port: u16,
    server: Child,
    folder: TempDir,
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
        let mut registry = Self { port, server: command.spawn()?, folder };
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
        let pass = format!("busybox nc 127.0.0.1 {} | busybox dd bs=64k count=32 2>/dev/null\n", self.port);
        fs::write(&script, pass).expect("a script");
        (Self::ADDRESS.to_owned(), format!("sh {}", script.display()))
    }

    /// For [`crate::Config::guest_forward`]; [`crate::Config::registry`] sets it.
    pub fn forward(&self) -> (String, String) {
        (Self::ADDRESS.to_owned(), format!("busybox nc 127.0.0.1 {}", self.port))
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
            self.push(name, "latest", self.pack(&tree, owner)?, json!(["true"]))
        };
        publish().unwrap_or_else(|error| panic!("{name} cannot be pushed: {error:#}"))
    }

    fn try_publish(&self, name: &str, tag: &str, story: &str, bytes: usize) -> Result<Published> {
        let command = json!(["sh", "-c", "cat /etc/story; ls /etc; exec sleep 3600"]);
        self.push(name, tag, self.layer(story, bytes)?, command)
    }

    /// Pushes busybox with one more layer, given with its diff id.
    fn push(&self, name: &str, tag: &str, layer: (String, Vec<u8>), command: Value) -> Result<Published> {
        let bench = bench();
        let layout = oci::preload(&bench.project, &bench.toolbox, "busybox")?.entry.path.join("layout");
        let read_json = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap_or_default();
            layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
        };
        let index = read_json(&layout.join("index.json"))?;
        let mut manifest = read_json(&blob(&index["manifests"][0]["digest"]))?;
        let mut config = read_json(&blob(&manifest["config"]["digest"]))?;
        self.push_blob(name, fs::read(blob(&manifest["layers"][0]["digest"]))?)?;

        let (diff_id, layer) = layer;
        let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().context("an image without layers")?;
        diff_ids.push(json!(diff_id));
        config["config"]["Cmd"] = command;
        let media = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers = manifest["layers"].as_array_mut().context("an image without layers")?;
        layers.push(json!({"mediaType": media, "digest": digest(&layer), "size": layer.len()}));
        self.push_blob(name, layer)?;
        let config = serde_json::to_vec(&config)?;
        manifest["config"]["digest"] = json!(digest(&config));
        manifest["config"]["size"] = json!(config.len());
        self.push_blob(name, config)?;
        let manifest = serde_json::to_vec(&manifest)?;
        let manifest_digest = digest(&manifest);
        let media = "application/vnd.oci.image.manifest.v1+json";
        self.send(Method::PUT, &format!("/v2/{name}/manifests/{tag}"), media, manifest)?;
        Ok(Published {
            by_tag: format!("{}/{name}:{tag}", Self::ADDRESS),
            by_digest: format!("{}/{name}@{manifest_digest}", Self::ADDRESS),
        })
    }

    /// A gzipped layer and its diff id.
    fn layer(&self, story: &str, bytes: usize) -> Result<(String, Vec<u8>)> {
        let tree = self.folder.path().join("layer");
        fs::create_dir_all(tree.join("etc"))?;
        fs::write(tree.join("etc/story"), format!("{story}\n"))?;
        let blocks = (0..bytes.div_ceil(32)).flat_map(|number| Sha256::digest(number.to_le_bytes()));
        fs::write(tree.join("etc/large"), blocks.take(bytes).collect::<Vec<u8>>())?;
        // A whiteout (OCI Image Specification, layer.md): the file of the layers below is gone.
        fs::write(tree.join("etc/.wh.group"), "")?;
        self.pack(&tree, 0)
    }

    /// What is in a folder, as a gzipped layer and its diff id.
    fn pack(&self, tree: &Path, owner: u32) -> Result<(String, Vec<u8>)> {
        let tar = self.folder.path().join("layer.tar");
        let mut command = bench().toolbox.command("tar");
        let owners = [format!("--owner=+{owner}"), format!("--group=+{owner}")];
        command.args(owners).arg("-cf").arg(&tar).arg("-C").arg(tree).arg(".");
        run_quiet(&mut command, "tar")?;
        let diff_id = digest(&fs::read(&tar)?);
        let layer = run_quiet(bench().toolbox.command("gzip").args(["-n", "-c"]).arg(&tar), "gzip")?;
        Ok((diff_id, layer))
    }

    /// A monolithic upload (OCI Distribution Specification, "Pushing blobs").
    fn push_blob(&self, name: &str, data: Vec<u8>) -> Result<()> {
        let media = "application/octet-stream";
        let location = self.send(Method::POST, &format!("/v2/{name}/blobs/uploads/"), media, Vec::new())?;
        let location = location.context("the registry says nothing about where to upload")?;
        let path = location.split_once("/v2/").map_or(location.as_str(), |(_, path)| path);
        let uri = format!("/v2/{path}&digest={}", digest(&data));
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

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}
