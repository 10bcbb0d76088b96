//! A client of the API: HTTP/1.1 over a Unix socket, or over the hybrid vsock socket of a VMM.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

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
    within(endpoint, &Ask { method, uri, body, headers: &[], upgrades: false }, timeout).await
}

/// What is asked for.
struct Ask<'a> {
    method: Method,
    uri: &'a str,
    body: Vec<u8>,
    headers: &'a [(&'static str, &'a str)],
    /// The connection is to speak another protocol afterwards.
    upgrades: bool,
}

async fn within(endpoint: &Endpoint, ask: &Ask<'_>, timeout: Duration) -> Result<Answer, ClientError> {
    let answer = tokio::time::timeout(timeout, request_unbounded(endpoint, ask)).await;
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
    runtime(endpoint)?.block_on(request(endpoint, method, uri, body, timeout))
}

/// As [`request_blocking`]; a refusal is JSON, with its mistakes one by one.
pub(crate) fn request_with_json_errors(
    endpoint: &Endpoint,
    method: Method,
    uri: &str,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Answer, ClientError> {
    let ask = Ask { method, uri, body, headers: &[("accept", "application/json")], upgrades: false };
    runtime(endpoint)?.block_on(within(endpoint, &ask, timeout))
}

/// A connection that goes on as a websocket (RFC 6455), or what the node refused that with; within `timeout`.
pub(crate) async fn open_websocket(
    endpoint: &Endpoint,
    uri: &str,
    timeout: Duration,
) -> Result<Result<Upgraded, Answer>, ClientError> {
    let key = generate_key();
    let headers =
        [("upgrade", "websocket"), ("sec-websocket-version", "13"), ("sec-websocket-key", key.as_str())];
    let ask = Ask { method: Method::GET, uri, body: Vec::new(), headers: &headers, upgrades: true };
    let open = async {
        let response = begin(endpoint, &ask).await?;
        if response.status() != 101 {
            return whole(endpoint, response).await.map(Err);
        }
        let accept = response.headers().get("sec-websocket-accept").and_then(|value| value.to_str().ok());
        if accept != Some(derive_accept_key(key.as_bytes()).as_str()) {
            return Err(broken(endpoint, "it does not speak as a websocket".to_owned()));
        }
        let upgraded = hyper::upgrade::on(response).await;
        upgraded.map(Ok).map_err(|error| broken(endpoint, error.to_string()))
    };
    tokio::time::timeout(timeout, open).await.unwrap_or_else(|_| {
        Err(ClientError::TimedOut { path: endpoint.path().to_owned(), seconds: timeout.as_secs() })
    })
}

pub(crate) fn runtime(endpoint: &Endpoint) -> Result<Runtime, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| ClientError::Connect { path: endpoint.path().to_owned(), error })
}

/// A stream of server-sent events that has begun.
pub(crate) struct Stream {
    runtime: Runtime,
    endpoint: Endpoint,
    body: Incoming,
    events: Events,
    waiting: VecDeque<Event>,
}

/// One event of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: Option<String>,
    pub(crate) kind: String,
    pub(crate) data: String,
}

impl Stream {
    /// After so long without a byte the node is taken to be gone: it says something every 15 s.
    const SILENCE: Duration = Duration::from_secs(45);

    /// Begins behind the event with the id `last`, or with what comes next. Or what the node refused it with.
    pub(crate) fn begin(
        endpoint: &Endpoint,
        uri: &str,
        last: Option<&str>,
    ) -> Result<Result<Self, Answer>, ClientError> {
        let runtime = runtime(endpoint)?;
        let headers: Vec<(&'static str, &str)> =
            last.into_iter().map(|last| ("last-event-id", last)).collect();
        let ask = Ask { method: Method::GET, uri, body: Vec::new(), headers: &headers, upgrades: false };
        let head = async { tokio::time::timeout(Self::SILENCE, begin(endpoint, &ask)).await };
        let response = runtime.block_on(head).unwrap_or_else(|_| Err(silent(endpoint)))?;
        if response.status() != 200 {
            return runtime.block_on(whole(endpoint, response)).map(Err);
        }
        let (endpoint, body) = (endpoint.clone(), response.into_body());
        Ok(Ok(Self { runtime, endpoint, body, events: Events::default(), waiting: VecDeque::new() }))
    }

    /// Waits for the next event; none when the stream has ended.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, ClientError> {
        while self.waiting.is_empty() {
            let frame = async { tokio::time::timeout(Self::SILENCE, self.body.frame()).await };
            let frame = self.runtime.block_on(frame).map_err(|_| silent(&self.endpoint))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| broken(&self.endpoint, error.to_string()))?;
            self.waiting.extend(frame.data_ref().map(|data| self.events.read(data)).into_iter().flatten());
        }
        Ok(self.waiting.pop_front())
    }
}

/// Hands on the body of an answer as it comes, to its end or until `take` fails. Or what the node refused it with.
pub(crate) fn follow(
    endpoint: &Endpoint,
    uri: &str,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Result<(), Answer>, ClientError> {
    let ask = Ask {
        method: Method::GET,
        uri,
        body: Vec::new(),
        headers: &[("accept", "application/json")],
        upgrades: false,
    };
    let following = async {
        let head = tokio::time::timeout(Stream::SILENCE, begin(endpoint, &ask)).await;
        let response = head.unwrap_or_else(|_| Err(silent(endpoint)))?;
        if response.status() != 200 {
            return whole(endpoint, response).await.map(Err);
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(endpoint, error.to_string()))?;
            // Whoever reads what is printed may have gone.
            if frame.data_ref().is_some_and(|data| take(data).is_err()) {
                break;
            }
        }
        Ok(Ok(()))
    };
    runtime(endpoint)?.block_on(following)
}

fn silent(endpoint: &Endpoint) -> ClientError {
    ClientError::TimedOut { path: endpoint.path().to_owned(), seconds: Stream::SILENCE.as_secs() }
}

/// Bytes of a stream that are not a whole event yet.
#[derive(Debug, Default)]
struct Events(Vec<u8>);

impl Events {
    /// Larger than any event of the server's.
    const LARGEST: usize = 4 << 20;

    fn read(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.0.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.0.windows(2).position(|pair| pair == b"\n\n") {
            let rest = self.0.split_off(end + 2);
            let text = std::mem::replace(&mut self.0, rest);
            events.extend(event(&String::from_utf8_lossy(&text)));
        }
        if self.0.len() > Self::LARGEST {
            self.0.clear();
        }
        events
    }
}

/// None of a comment.
fn event(text: &str) -> Option<Event> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim_start)
            .map(str::to_owned)
    };
    Some(Event { id: field("id"), kind: field("event")?, data: field("data")? })
}

fn broken(endpoint: &Endpoint, reason: String) -> ClientError {
    ClientError::Broken { path: endpoint.path().to_owned(), reason }
}

/// Sends a request, and waits for the head of its answer.
async fn begin(endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response<Incoming>, ClientError> {
    let uri = ask.uri;
    // "settings" would be taken for the name of a host.
    if !uri.starts_with('/') {
        return Err(ClientError::BadUri(uri.to_owned()));
    }
    let mut builder = Request::builder().method(ask.method.clone()).uri(uri);
    let connection = if ask.upgrades { "upgrade" } else { "close" };
    builder = builder.header("host", "localhost").header("connection", connection);
    if !ask.body.is_empty() {
        builder = builder.header("content-type", "application/json");
    }
    for (name, value) in ask.headers {
        builder = builder.header(*name, *value);
    }
    let body = Full::new(Bytes::from(ask.body.clone()));
    let request = builder.body(body).map_err(|_| ClientError::BadUri(uri.to_owned()))?;
    let stream = connect(endpoint).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(endpoint, error.to_string()))?;
    // It ends with the answer, or with the interest in it.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(|error| broken(endpoint, error.to_string()))
}

async fn request_unbounded(endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Answer, ClientError> {
    whole(endpoint, begin(endpoint, ask).await?).await
}

async fn whole(endpoint: &Endpoint, response: Response<Incoming>) -> Result<Answer, ClientError> {
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
    let body = body.map_err(|error| broken(endpoint, error.to_string()))?;
    Ok(Answer { status, body: body.to_bytes().to_vec() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = b"id: a-1\nevent: commit\ndata: {\"a\":1}\n\n: still here\n\nevent: lost\ndata: {}\n\n";
        let expected = [("a-1", "commit", "{\"a\":1}"), ("", "lost", "{}")].map(|(id, kind, data)| Event {
            id: Some(id.to_owned()).filter(|id| !id.is_empty()),
            kind: kind.to_owned(),
            data: data.to_owned(),
        });
        for size in [1, 2, 7, stream.len()] {
            let mut events = Events::default();
            let read: Vec<Event> = stream.chunks(size).flat_map(|bytes| events.read(bytes)).collect();
            assert_eq!(read, expected, "{size}");
        }
        // Whatever has no end takes no memory.
        let mut events = Events::default();
        (0..5).for_each(|_| assert!(events.read(&[b'x'; 1 << 20]).is_empty()));
        assert!(events.0.len() < 2 << 20);
    }
}
