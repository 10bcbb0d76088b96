//! Pulling an image from an OCI registry into `/data/images`.

use flate2::read::GzDecoder;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::container::image::{self, folder_of};
use crate::container::unpack::Tree;

const MOST_LAYERS: usize = 128;
const LARGEST_LAYER: i64 = 8 << 30;
/// Host names and ports of registries that speak plain HTTP; only the VMM can name them.
const INSECURE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/caisson/insecure-registries/raw";

/// Why an image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullError {
    pub message: String,
    /// Trying again soon is of use.
    pub transient: bool,
}

/// Pulls an image unless the node has it, and remembers its reference.
pub async fn pull(reference: &str) -> Result<(), PullError> {
    let parsed: Reference = reference.parse().map_err(|error| PullError {
        message: format!("{reference} is not an image reference: {error}"),
        transient: false,
    })?;
    let registry = parsed.resolve_registry().to_owned();
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(insecure_registries()),
        connect_timeout: Some(Duration::from_secs(20)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: "caisson",
        ..ClientConfig::default()
    });
    let failed = |error: OciDistributionError| explain(reference, &registry, &error);
    let (manifest, digest, config) =
        client.pull_manifest_and_config(&parsed, &RegistryAuth::Anonymous).await.map_err(failed)?;
    let refused = |message: String| PullError {
        message: format!("the image {reference} cannot be used: {message}"),
        transient: false,
    };
    if manifest.layers.len() > MOST_LAYERS {
        return Err(refused(format!("it has {} layers, more than {MOST_LAYERS}", manifest.layers.len())));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !(0..=LARGEST_LAYER).contains(&layer.size)) {
        return Err(refused(format!("a layer says that it has {} bytes", layer.size)));
    }
    let folder = folder_of(&digest);
    if !folder.is_dir() {
        let stored = |error: io::Error| PullError {
            message: format!("the image {reference} cannot be stored: {error}"),
            transient: error.kind() != io::ErrorKind::InvalidData,
        };
        let work = Work::new(&digest).map_err(stored)?;
        for (number, layer) in manifest.layers.iter().enumerate() {
            fetch(&client, &parsed, layer, &work.layer(number)).await.map_err(failed)?;
        }
        let layers: Vec<(PathBuf, String)> = manifest
            .layers
            .iter()
            .enumerate()
            .map(|(number, layer)| (work.layer(number), layer.media_type.clone()))
            .collect();
        let root = work.path.clone();
        let unpacked = tokio::task::spawn_blocking(move || store(&root, &layers, &config)).await;
        unpacked.map_err(|error| refused(error.to_string()))?.map_err(stored)?;
        work.finish(&folder).map_err(stored)?;
    }
    image::remember(reference, &digest).map_err(|error| PullError {
        message: format!("cannot remember the image {reference}: {error}"),
        transient: true,
    })
}

async fn fetch(
    client: &Client,
    image: &Reference,
    layer: &OciDescriptor,
    to: &Path,
) -> Result<(), OciDistributionError> {
    // The client checks the digest of what arrives.
    let file = tokio::fs::File::create(to).await?;
    client.pull_blob(image, layer, Bounded { file, left: u64::try_from(layer.size).unwrap_or(0) }).await
}

/// A file that takes no more bytes than its descriptor promised.
struct Bounded {
    file: tokio::fs::File,
    left: u64,
}

impl tokio::io::AsyncWrite for Bounded {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        if data.len() as u64 > self.left {
            return std::task::Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a layer is larger than its manifest says",
            )));
        }
        let written = std::task::ready!(std::pin::Pin::new(&mut self.file).poll_write(context, data))?;
        self.left -= written as u64;
        std::task::Poll::Ready(Ok(written))
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.file).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.file).poll_shutdown(context)
    }
}

/// Unpacks the layers and writes the configuration. Blocking.
fn store(work: &Path, layers: &[(PathBuf, String)], config: &str) -> io::Result<()> {
    let rootfs = work.join("rootfs");
    fs::create_dir(&rootfs)?;
    let mut tree = Tree::open(&rootfs)?;
    for (path, media_type) in layers {
        let file = BufReader::new(File::open(path)?);
        let reader: Box<dyn Read> = if media_type.ends_with("gzip") {
            Box::new(GzDecoder::new(file))
        } else if media_type.ends_with("zstd") {
            Box::new(
                ruzstd::decoding::StreamingDecoder::new(file)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?,
            )
        } else if media_type.ends_with("tar") {
            Box::new(file)
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a layer is of a kind that is not known: {media_type}"),
            ));
        };
        tree.add_layer(reader)?;
        fs::remove_file(path)?;
    }
    fs::write(work.join("config.json"), config)
}

/// A folder for one pull; removed unless it is finished.
struct Work {
    path: PathBuf,
}

impl Work {
    fn new(digest: &str) -> io::Result<Self> {
        let path = Path::new(image::PULLED).join(format!(".pull-{}", digest.replace(':', "-")));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    fn layer(&self, number: usize) -> PathBuf {
        self.path.join(format!("layer-{number}"))
    }

    /// Everything is on the disk before the folder gets the name that says that it is complete.
    fn finish(self, folder: &Path) -> io::Result<()> {
        nix::unistd::syncfs(&File::open(&self.path)?)?;
        fs::rename(&self.path, folder)?;
        File::open(image::PULLED)?.sync_all()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
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
