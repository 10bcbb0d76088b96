//! Pulling an image from an OCI registry into `/data/images`.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use oci_client::Reference;
use oci_client::client::{BlobResponse, Client};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

use crate::container::access::{Access, Source};
use crate::container::blob::{self, Part, Refused};
use crate::container::bundle::ImageConfig;
use crate::container::image::{self, Turn, folder_of};
use crate::container::layer::Layer;
use crate::container::progress::Progress;
use crate::container::reference;
use crate::container::registry::{self, Registry};
use crate::container::unpack::{LARGEST_TREE, RESERVE, Tree};
use crate::memory::GiveBack;
use crate::space::Space;

/// Layers that are downloaded at once.
const AT_ONCE: usize = 3;
const ROOTFS: &str = "rootfs";
/// What all layers may unpack to: the files, and half a million headers and paddings.
const LARGEST_STREAM: u64 = LARGEST_TREE + (1 << 30);
/// Host names and ports of registries that speak plain HTTP; only the VMM can name them.
const INSECURE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/caisson/insecure-registries/raw";

/// Why an image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullError {
    pub message: String,
    /// Trying again soon is of use.
    pub transient: bool,
}

/// Pulls an image unless the node has it, and remembers its reference. Dropped, it stops at the next bytes that come. The servers
/// that may have it are asked one after the other.
pub async fn pull(reference: &str, access: &Access) -> Result<(), PullError> {
    // Last of all that this has: buffers, windows of layers, the way to the registry.
    let _memory = GiveBack;
    let parsed = reference::parse(reference).map_err(|message| PullError { message, transient: false })?;
    let mut errors = Vec::new();
    for source in access.sources(&parsed) {
        match pull_from(reference, access, source).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind == Kind::Node => return Err(error.error),
            Err(error) => errors.push(error.error),
        }
    }
    Err(PullError {
        transient: errors.iter().any(|error| error.transient),
        message: errors.into_iter().map(|error| error.message).collect::<Vec<_>>().join("; "),
    })
}

/// Whose fault it is that an image cannot be pulled: another server may do better, and this node will not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Node,
}

struct Failure {
    kind: Kind,
    error: PullError,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self { kind: Kind::Server, error }
    }
}

async fn pull_from(reference: &str, access: &Access, source: Source) -> Result<(), Failure> {
    let unusable = |message| Failure { kind: Kind::Node, error: PullError { message, transient: false } };
    let insecure = insecure_registries();
    let client = access.client(&source, &insecure).map_err(unusable)?;
    let registry = Registry {
        client: &client,
        http: access.http().map_err(unusable)?,
        scheme: if source.is_plain(&insecure) { "http" } else { "https" },
        login: access.login(&source.server),
    };
    let manifest = registry.manifest(&source.reference).await;
    let (manifest, digest) = manifest.map_err(|failure| match failure {
        registry::Failure::Registry(error) => explain(reference, &source.server, &error),
        registry::Failure::Unusable(message) => refused(reference, &message),
    })?;
    let mut turn = image::turn(&digest).await;
    // Another container's pull may have brought it meanwhile.
    if let Err(error) = image::load(&folder_of(&digest)) {
        if error.kind() != io::ErrorKind::NotFound {
            eprintln!(
                "<4>the image {reference} on the data partition cannot be used, it is pulled again: {error}"
            );
        }
        let Source { reference: parsed, server: registry, .. } = source;
        turn = Pull { reference, registry, parsed, client, manifest }.download(&digest, turn).await?;
    }
    let remembered = image::remember(reference, &digest);
    drop(turn);
    remembered.map_err(|error| Failure {
        kind: Kind::Node,
        error: PullError {
            message: format!("cannot remember the image {reference}: {error}"),
            transient: true,
        },
    })
}

fn refused(reference: &str, message: &str) -> PullError {
    PullError { message: format!("the image {reference} cannot be used: {message}"), transient: false }
}

/// An image that the node does not have.
struct Pull<'a> {
    reference: &'a str,
    registry: String,
    parsed: Reference,
    client: Client,
    manifest: OciImageManifest,
}

impl Pull<'_> {
    async fn download(&self, digest: &str, turn: Turn) -> Result<Turn, Failure> {
        let mut text = Vec::new();
        self.fetch(&self.manifest.config, &mut text).await?;
        let config: ImageConfig = serde_json::from_slice(&text)
            .map_err(|error| refused(self.reference, &format!("its configuration: {error}")))?;
        let diff_ids = config.rootfs.diff_ids;
        let sizes: u64 = self.manifest.layers.iter().filter_map(|layer| u64::try_from(layer.size).ok()).sum();
        let layers = self.manifest.layers.iter();
        let layers: Vec<_> = layers.map(|layer| (layer.media_type.clone(), layer.digest.clone())).collect();
        if diff_ids.len() != layers.len() {
            let message = format!("its configuration names {} of {} layers", diff_ids.len(), layers.len());
            return Err(refused(self.reference, &message).into());
        }
        let (digest, reference) = (digest.to_owned(), self.reference.to_owned());
        let mut work = self.blocking(move || Work::new(&digest, &reference, turn)).await?;
        let missing = sizes.saturating_sub(there_already(&work.path));
        if enough_space(missing).is_err() {
            // What others left may be in the way.
            let _ = tokio::task::spawn_blocking(image::remove_all_unused).await;
        }
        if let Err(error) = enough_space(missing) {
            work.is_kept = false;
            return Err(self.not_stored(&error));
        }
        // A layer may be there twice.
        let blobs: BTreeMap<&str, &OciDescriptor> =
            self.manifest.layers.iter().map(|layer| (layer.digest.as_str(), layer)).collect();
        let size = |layer: &OciDescriptor| u64::try_from(layer.size).unwrap_or(0);
        let progress =
            Progress::begin(self.reference, blobs.iter().map(|(digest, layer)| (*digest, size(layer))));
        let fetches = blobs.into_values().map(|layer| self.fetch_layer(layer, &work, &progress));
        let fetched: Result<(), Failure> =
            stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect().await;
        // What is there of them is of use to the next attempt, and to none when the disk is at fault: it may be full of them.
        work.is_kept = matches!(&fetched, Err(failure) if failure.kind == Kind::Server);
        fetched?;
        progress.unpacks();
        let given_up = GiveUp::default();
        let flag = given_up.0.clone();
        // The folder goes with the task, which outlives this future: nobody else takes it before the task has ended.
        self.blocking(move || {
            let highest_id = work.unpack(&layers, &diff_ids, &flag)?;
            fs::write(work.path.join(image::HIGHEST_ID), highest_id.to_string())?;
            fs::write(work.path.join("config.json"), text)?;
            work.finish()
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let done = tokio::task::spawn_blocking(task).await;
        let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
        if done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            // For the next attempt.
            let _ = tokio::task::spawn_blocking(image::remove_all_unused).await;
        }
        done.map_err(|error| self.not_stored(&error))
    }

    fn not_stored(&self, error: &io::Error) -> Failure {
        // Layers that cannot be unpacked are their server's, or may be.
        let transient = error.kind() != io::ErrorKind::InvalidData;
        let message = format!("the image {} cannot be stored: {error}", self.reference);
        let kind = if transient { Kind::Node } else { Kind::Server };
        Failure { kind, error: PullError { message, transient } }
    }

    async fn fetch_layer(
        &self,
        layer: &OciDescriptor,
        work: &Work,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let size = u64::try_from(layer.size).unwrap_or(0);
        let open = async |at| {
            let answer = self.client.pull_blob_stream_partial(&self.parsed, layer, at, None).await;
            let (is_whole, sized) = match answer {
                Ok(BlobResponse::Full(sized)) => (true, sized),
                Ok(BlobResponse::Partial(sized)) => (false, sized),
                Err(error) => {
                    // The manifest was allowed a moment ago: a token has run out, or could not be renewed.
                    let may_pass = matches!(error, OciDistributionError::UnauthorizedError { .. });
                    let mut error = explain(self.reference, &self.registry, &error);
                    error.transient |= may_pass;
                    return Err(Refused { is_transient: error.transient, error });
                }
            };
            let from = if is_whole { 0 } else { at };
            Ok(Part { is_whole, stream: progress.counted(&layer.digest, from, sized.stream) })
        };
        let done = blob::fetch(&work.blob(&layer.digest), &layer.digest, size, open).await;
        done.map(|()| progress.has_layer(&layer.digest)).map_err(|failure| match failure {
            blob::Failure::Server(error) => error.into(),
            blob::Failure::Disk(error) => self.not_stored(&error),
            blob::Failure::Broken(error) => PullError {
                message: format!(
                    "cannot pull {} from {}: {error}; trying again, from where it broke off",
                    self.reference, self.registry
                ),
                transient: true,
            }
            .into(),
            blob::Failure::Wrong(found) => PullError {
                message: format!(
                    "what the registry {} sent for {} is not what its digest says: {} is {found}",
                    self.registry, self.reference, layer.digest
                ),
                transient: false,
            }
            .into(),
        })
    }

    async fn fetch(&self, what: &OciDescriptor, to: impl AsyncWrite + Unpin) -> Result<(), PullError> {
        let bounded = Bounded { to, left: u64::try_from(what.size).unwrap_or(0) };
        // The client checks the digest of what arrives.
        let fetched = self.client.pull_blob(&self.parsed, what, bounded).await;
        fetched.map_err(|error| explain(self.reference, &self.registry, &error))
    }
}

/// Bytes that an attempt before has left.
fn there_already(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(fs::Metadata::is_file).map(|file| file.len()).sum()
}

/// Before anything is downloaded. The unpacked files come on top; unpacking looks at the space again.
fn enough_space(sizes: u64) -> io::Result<()> {
    let Space { free, .. } = Space::of(Path::new(image::PULLED))?;
    if free >= sizes.saturating_add(RESERVE) {
        return Ok(());
    }
    let message = format!(
        "its layers have {} MiB, and {} MiB are free on the data partition: give the machine a larger disk",
        sizes >> 20,
        free >> 20
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, message))
}

/// Tells the task that unpacks, when the pull is dropped, that nobody waits for it any more.
#[derive(Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes no more bytes than a descriptor promised.
struct Bounded<W> {
    to: W,
    left: u64,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Bounded<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.len() as u64 > self.left {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is larger than its manifest says",
            )));
        }
        let written = ready!(Pin::new(&mut self.to).poll_write(context, data))?;
        self.left -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(context)
    }
}

/// A folder for one pull. What a pull leaves that broke off, the next one takes up.
struct Work {
    path: PathBuf,
    folder: PathBuf,
    turn: Option<Turn>,
    /// Another attempt follows: also when this one is not even told to stop.
    is_kept: bool,
}

impl Work {
    fn new(digest: &str, reference: &str, turn: Turn) -> io::Result<Self> {
        let (path, folder) = (image::pull_of(digest), folder_of(digest));
        // One that is there and cannot be used.
        if folder.exists() {
            image::remove(&folder);
        }
        let _ = fs::remove_dir_all(path.join(ROOTFS));
        fs::create_dir_all(&path)?;
        // The tag meant another image then, or another server did.
        image::remove_pulls(reference);
        fs::write(path.join(image::PULLED_FOR), reference)?;
        Ok(Self { path, folder, turn: Some(turn), is_kept: true })
    }

    fn blob(&self, digest: &str) -> PathBuf {
        // What is no digest was refused before (`manifest`): there is no `/` in it.
        self.path.join(digest.replace(':', "-"))
    }

    /// Unpacks the layers, of these media types; each has to be what the image's configuration says. Returns the highest user or group of
    /// their files.
    fn unpack(
        &self,
        layers: &[(String, String)],
        diff_ids: &[String],
        given_up: &Arc<AtomicBool>,
    ) -> io::Result<u32> {
        let rootfs = self.path.join(ROOTFS);
        fs::create_dir(&rootfs)?;
        let mut tree = Tree::open(&rootfs)?;
        let mut left = LARGEST_STREAM;
        for (number, ((media_type, digest), wanted)) in layers.iter().zip(diff_ids).enumerate() {
            let path = self.blob(digest);
            let mut layer = Layer::open(File::open(&path)?, media_type, left, given_up.clone())?;
            tree.add_layer(&mut layer)?;
            let (found, rest) = layer.finish()?;
            if found != *wanted {
                let message = format!("layer {number} unpacks to {found}, its configuration says {wanted}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            left = rest;
            if !layers[number + 1..].iter().any(|(_, later)| later == digest) {
                fs::remove_file(path)?;
            }
        }
        Ok(tree.highest_id())
    }

    /// Everything is on the disk before the folder gets the name that says that it is complete.
    fn finish(mut self) -> io::Result<Turn> {
        fs::remove_file(self.path.join(image::PULLED_FOR))?;
        nix::unistd::syncfs(&File::open(&self.path)?)?;
        fs::rename(&self.path, &self.folder)?;
        File::open(image::PULLED)?.sync_all()?;
        self.turn.take().ok_or_else(|| io::Error::other("finished twice"))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn insecure_registries() -> Vec<String> {
    let text = fs::read_to_string(INSECURE).unwrap_or_default();
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A registry's answer for a person.
fn explain(reference: &str, registry: &str, error: &OciDistributionError) -> PullError {
    let permanent = |message: String| PullError { message, transient: false };
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => {
            permanent(format!("the registry {registry} has no image {reference}: check its name and tag"))
        }
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|error| {
                matches!(
                    error.code,
                    OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound
                )
            }) =>
        {
            permanent(format!("the registry {registry} has no image {reference}: check its name and tag"))
        }
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            permanent(format!(
                "the registry {registry} does not let {reference} be pulled without logging in, or does not have it"
            ))
        }
        OciDistributionError::DigestError(error) => permanent(format!(
            "what the registry {registry} sent for {reference} is not what its digest says: {error}"
        )),
        OciDistributionError::IoError(error) if error.kind() == io::ErrorKind::InvalidData => {
            permanent(format!("what the registry {registry} sent for {reference} cannot be used: {error}"))
        }
        other => {
            // The innermost cause is what a person can act on: "connection refused", "no such host".
            let mut causes = vec![other.to_string()];
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                causes.push(cause.to_string());
                source = cause.source();
            }
            causes.dedup();
            PullError {
                message: format!(
                    "cannot pull {reference} from {registry}: {}; trying again",
                    causes.join(": ")
                ),
                transient: true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn no_more_is_taken_than_was_promised() {
        let mut taken = Vec::new();
        let mut bounded = Bounded { to: &mut taken, left: 3 };
        bounded.write_all(b"ab").await.unwrap();
        assert_eq!(bounded.write_all(b"cd").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(taken, b"ab");
    }

    fn work(layers: &[&[u8]]) -> (tempfile::TempDir, Work) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("work");
        fs::create_dir(&path).unwrap();
        let work = Work { path, folder: dir.path().join("done"), turn: None, is_kept: false };
        for (number, layer) in layers.iter().enumerate() {
            fs::write(work.blob(&format!("sha256:{number}")), layer).unwrap();
        }
        (dir, work)
    }

    #[test]
    fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
        // An empty archive: two zero blocks.
        let layer = [0; 1024];
        let id = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".to_owned();
        let layers = [("application/vnd.oci.image.layer.v1.tar".to_owned(), "sha256:0".to_owned())];
        let unpack = |id: &String| {
            let (_dir, work) = work(&[&layer]);
            work.unpack(&layers, std::slice::from_ref(id), &Arc::default())
        };
        unpack(&id).unwrap();
        let error = unpack(&id.replace('5', "6")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(&id), "{error}");
    }

    #[tokio::test]
    async fn one_digest_is_pulled_by_one_at_a_time() {
        let turn = image::turn("sha256:one").await;
        let other = tokio::time::timeout(Duration::from_secs(5), image::turn("sha256:two")).await;
        assert!(other.is_ok(), "another digest had to wait");
        let mut same = Box::pin(image::turn("sha256:one"));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut same).await.is_err());
        drop(turn);
        same.await;
    }
}
