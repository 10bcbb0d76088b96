//! A client of the API: HTTP/1.1 over a Unix socket, or over the hybrid vsock socket of a VMM.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The vsock port that the API listens on.
pub const VSOCK_PORT: u32 = 1024;

/// An answer larger than this is not read.
const LARGEST_ANSWER: usize = 64 << 20;

/// How to reach an API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket that speaks HTTP: `/run/api.sock` in the guest, `api.sock` of a VM on the host.
    Unix(PathBuf),
    /// A VMM's Unix socket for vsock (Firecracker's convention): send `CONNECT 1024\n`, read `OK …\n`, then HTTP.
    HybridVsock(PathBuf),
}

impl Endpoint {
    fn path(&self) -> &Path {
        match self {
            Self::Unix(path) | Self::HybridVsock(path) => path,
        }
    }
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {path}: {error}; is the node running, and may this user open the socket?", path = .path.display())]
    Connect { path: PathBuf, error: io::Error },
    #[error("the VMM at {path} did not connect to the API: {reason}; the API listens on vsock only when the VMM asks for it", path = .path.display())]
    Vsock { path: PathBuf, reason: String },
    #[error("{path} did not answer within {seconds} s", path = .path.display())]
    TimedOut { path: PathBuf, seconds: u64 },
    #[error("the connection to {path} broke: {reason}", path = .path.display())]
    Broken { path: PathBuf, reason: String },
    #[error("{0:?} is not a path of the API, such as /settings?prefix=motd")]
    BadUri(String),
}

/// Sends one request and reads its answer, all within `timeout`.
pub async fn request(
    endpoint: &Endpoint,
    method: Method,
    uri: &str,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Answer, ClientError> {
    let answer = tokio::time::timeout(timeout, request_unbounded(endpoint, method, uri, body)).await;
    answer.unwrap_or_else(|_| {
        Err(ClientError::TimedOut { path: endpoint.path().to_owned(), seconds: timeout.as_secs() })
    })
}

/// As [`request`], for programs without an async runtime.
pub fn request_blocking(
    endpoint: &Endpoint,
    method: Method,
    uri: &str,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Answer, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| ClientError::Connect { path: endpoint.path().to_owned(), error })?;
    runtime.block_on(request(endpoint, method, uri, body, timeout))
}

async fn request_unbounded(
    endpoint: &Endpoint,
    method: Method,
    uri: &str,
    body: Vec<u8>,
) -> Result<Answer, ClientError> {
    // "settings" would be taken for the name of a host.
    if !uri.starts_with('/') {
        return Err(ClientError::BadUri(uri.to_owned()));
    }
    let broken = |reason: String| ClientError::Broken { path: endpoint.path().to_owned(), reason };
    let mut builder =
        Request::builder().method(method).uri(uri).header("host", "localhost").header("connection", "close");
    if !body.is_empty() {
        builder = builder.header("content-type", "application/json");
    }
    let request =
        builder.body(Full::new(Bytes::from(body))).map_err(|_| ClientError::BadUri(uri.to_owned()))?;
    let stream = connect(endpoint).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|error| broken(error.to_string()))?;
        Ok(Answer { status, body: body.to_bytes().to_vec() })
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection has ended; what it carried may still be in the exchange's hands.
        _ = connection => exchange.await,
    }
}

/// Connects; waits while the listener's queue is full, which a socket that does not block reports as an error (connect(2)).
pub(crate) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            connected => return connected,
        }
    }
}

async fn connect(endpoint: &Endpoint) -> Result<UnixStream, ClientError> {
    let path = endpoint.path();
    let mut stream =
        connect_unix(path).await.map_err(|error| ClientError::Connect { path: path.to_owned(), error })?;
    if let Endpoint::HybridVsock(_) = endpoint {
        let failed = |reason: String| ClientError::Vsock { path: path.to_owned(), reason };
        stream
            .write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes())
            .await
            .map_err(|error| failed(error.to_string()))?;
        // Byte by byte: what follows the line is already HTTP.
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < 64 {
            match stream.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => return Err(failed("it closed the connection".to_owned())),
            }
        }
        if !line.starts_with(b"OK") {
            return Err(failed(format!("it said {:?}", String::from_utf8_lossy(&line))));
        }
    }
    Ok(stream)
}
