//! Asking a registry for the manifest of an image (OCI Distribution Specification 1.1, "Pulling manifests"). The client library logs in, and
//! brings blobs; a manifest it would read whole, whatever its size, and so would it an error.

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::client::Client;
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciImageManifest,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, HeaderMap};

use crate::container::manifest::{self, LARGEST, Manifest, read};

/// Bytes that are read of what a registry says beside a manifest.
const LARGEST_ERROR: usize = 64 << 10;

/// Why there is no manifest.
#[derive(Debug)]
pub(super) enum Failure {
    /// As the client library would say it.
    Registry(OciDistributionError),
    /// It is there, and of no use.
    Unusable(String),
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Self {
        Self::Registry(error)
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Registry(error.into())
    }
}

/// One server that is asked for one image.
pub(super) struct Registry<'a> {
    pub(super) client: &'a Client,
    /// With the same proxies and authorities.
    pub(super) http: reqwest::Client,
    /// `https`, or `http`.
    pub(super) scheme: &'static str,
    pub(super) login: RegistryAuth,
}

impl Registry<'_> {
    /// The manifest of an image for this node, and its digest.
    pub(super) async fn manifest(&self, image: &Reference) -> Result<(OciImageManifest, String), Failure> {
        // Without a token it may be had too, or says why not.
        let token = self.client.auth(image, &self.login, RegistryOperation::Pull).await?;
        let (found, digest) = self.fetch(image, image.digest(), token.as_deref()).await?;
        let of_node = match found {
            Manifest::Image(manifest) => return Ok((*manifest, digest)),
            Manifest::Index(of_node) => of_node,
        };
        match self.fetch(image, Some(&of_node), token.as_deref()).await? {
            (Manifest::Image(manifest), digest) => Ok((*manifest, digest)),
            (Manifest::Index(_), _) => {
                Err(Failure::Unusable("it names several images where it should name one".to_owned()))
            }
        }
    }

    async fn fetch(
        &self,
        image: &Reference,
        digest: Option<&str>,
        token: Option<&str>,
    ) -> Result<(Manifest, String), Failure> {
        let (server, name) = (image.resolve_registry(), image.repository());
        let which = digest.or(image.tag()).unwrap_or("latest");
        // Of a mirror: for which registry it is asked.
        let space = image.namespace().map(|of| format!("?ns={of}")).unwrap_or_default();
        let url = format!("{}://{server}/v2/{name}/manifests/{which}{space}", self.scheme);
        let kinds = [
            OCI_IMAGE_INDEX_MEDIA_TYPE,
            OCI_IMAGE_MEDIA_TYPE,
            IMAGE_MANIFEST_LIST_MEDIA_TYPE,
            IMAGE_MANIFEST_MEDIA_TYPE,
        ];
        let request = || self.http.get(&url).header(ACCEPT, kinds.join(", "));
        let mut answer = match token {
            Some(token) => request().bearer_auth(token).send().await?,
            None => request().send().await?,
        };
        // A password is not for who does not ask for one.
        if let (StatusCode::UNAUTHORIZED, None, RegistryAuth::Basic(user, password)) =
            (answer.status(), token, &self.login)
        {
            answer = request().basic_auth(user, Some(password)).send().await?;
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        if status != StatusCode::OK {
            let said = bounded(answer, LARGEST_ERROR).await?.unwrap_or_default();
            return Err(refused(status, &said, url).into());
        }
        let body = bounded(answer, LARGEST).await?.ok_or_else(|| Failure::Unusable(manifest::too_large()))?;
        let found = manifest::digest(&body, digest).map_err(Failure::Unusable)?;
        is_told(&headers, &body).map_err(Failure::Unusable)?;
        Ok((read(&body).map_err(Failure::Unusable)?, found))
    }
}

/// What a registry says of the digest, if it does, has to be true.
fn is_told(headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let told = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
    match told.filter(|told| told.starts_with("sha256:")) {
        Some(told) => manifest::digest(body, Some(told)).map(drop),
        None => Ok(()),
    }
}

/// All of an answer, unless it has more bytes.
async fn bounded(answer: reqwest::Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut stream = answer.bytes_stream();
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece: Bytes = piece?;
        if piece.len() > most - all.len() {
            return Ok(None);
        }
        all.extend_from_slice(&piece);
    }
    Ok(Some(all))
}

/// As the client library tells it of blobs.
fn refused(status: StatusCode, said: &[u8], url: String) -> OciDistributionError {
    match (status, serde_json::from_slice(said)) {
        (StatusCode::UNAUTHORIZED, _) => OciDistributionError::UnauthorizedError { url },
        (status, Ok(envelope)) if status.is_client_error() => {
            OciDistributionError::RegistryError { envelope, url }
        }
        (StatusCode::NOT_FOUND, _) => OciDistributionError::ImageManifestNotFoundError(url),
        (status, _) => {
            // The start of it, in one line.
            let message = String::from_utf8_lossy(said);
            let message = message.chars().filter(|character| !character.is_control()).take(200).collect();
            OciDistributionError::ServerError { code: status.as_u16(), url, message }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    /// Answers requests by their path, until it is dropped; `None`: zeros without end.
    async fn serve(listener: TcpListener, answers: BTreeMap<String, (u16, Option<String>)>) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (mut asked, mut line) = (String::new(), String::new());
            stream.read_line(&mut asked).await.unwrap();
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
            }
            let path = asked.split(' ').nth(1).unwrap_or_default();
            let gone = (404, Some(String::new()));
            let (status, body) = answers.get(path).unwrap_or(&gone);
            let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            match body {
                Some(body) => stream.write_all(body.as_bytes()).await.unwrap(),
                None => while stream.write_all(&[b' '; 64 << 10]).await.is_ok() {},
            }
        }
    }

    async fn ask(
        answers: impl IntoIterator<Item = (&'static str, (u16, Option<String>))>,
    ) -> Result<(OciImageManifest, String), Failure> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let path = |which: &str| format!("/v2/a/b/manifests/{which}");
        let mut answers: BTreeMap<_, _> =
            answers.into_iter().map(|(which, answer)| (path(which), answer)).collect();
        answers.insert("/v2/".to_owned(), (200, Some("{}".to_owned())));
        let config = oci_client::client::ClientConfig {
            protocol: oci_client::client::ClientProtocol::Http,
            ..Default::default()
        };
        let client = Client::try_from(config).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let registry = Registry { client: &client, http, scheme: "http", login: RegistryAuth::Anonymous };
        let image: Reference = format!("{server}/a/b:1").parse().unwrap();
        tokio::select! {
            found = registry.manifest(&image) => found,
            () = serve(listener, answers) => unreachable!(),
        }
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_read_to_its_end() {
        let Err(Failure::Unusable(reason)) = ask([("1", (200, None))]).await else { panic!() };
        assert!(reason.contains("more than 4194304 bytes"), "{reason}");
        let Err(Failure::Registry(error)) = ask([("1", (500, None))]).await else { panic!() };
        assert!(matches!(error, OciDistributionError::ServerError { code: 500, .. }), "{error}");
        let Err(Failure::Registry(error)) = ask([]).await else { panic!() };
        assert!(matches!(error, OciDistributionError::ImageManifestNotFoundError(_)), "{error}");
    }

    #[tokio::test]
    async fn an_index_leads_to_the_image_that_it_names_and_to_no_other() {
        let hex = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let image = json!({
            "schemaVersion": 2, "config": {"mediaType": "x", "digest": hex("c"), "size": 2}, "layers": []
        })
        .to_string();
        let digest = manifest::digest(image.as_bytes(), None).unwrap();
        let index = |digest: &str| {
            let one = json!({"mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": 3, "platform": {"os": "linux", "architecture": "amd64"}});
            (200, Some(json!({"schemaVersion": 2, "manifests": [one]}).to_string()))
        };
        let named: &'static str = Box::leak(digest.clone().into_boxed_str());
        let found = ask([("1", index(named)), (named, (200, Some(image.clone())))]).await.unwrap();
        assert_eq!((found.1, found.0.layers.len()), (digest, 0));
        let other: &'static str = Box::leak(hex("d").into_boxed_str());
        let Err(Failure::Unusable(reason)) = ask([("1", index(other)), (other, (200, Some(image)))]).await
        else {
            panic!()
        };
        assert!(reason.contains("is not what its digest says"), "{reason}");
    }
}
