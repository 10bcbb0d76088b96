//! The way from the network to the node's figures: `GET /metrics` of the API over plain HTTP, and nothing else of it. The API
//! server itself cannot reach the network.

use apiserver::client::{Endpoint, request};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::IpFreebind};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const API: &str = "/run/api-read.sock";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at once; further ones are closed.
const MOST: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of request line and headers.
const LARGEST_HEAD: usize = 16 << 10;
/// For the API's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// For one connection, which has one request.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(15);
/// After a failed accept (no more descriptors), so that the processor has something else to do.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct Exporter {
    api: Endpoint,
    listening: Option<Listening>,
}

struct Listening {
    address: SocketAddr,
    /// The only one that counts: the port is free as soon as it is dropped.
    _listener: Rc<TcpListener>,
    task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Exporter {
    fn default() -> Self {
        Self { api: Endpoint::Unix(API.into()), listening: None }
    }
}

impl Exporter {
    /// Listens where it is wanted and nowhere else. Within a `LocalSet`.
    pub fn listen(&mut self, wanted: Option<SocketAddr>) -> Result<(), String> {
        if self.listening.as_ref().map(|listening| listening.address) == wanted {
            return Ok(());
        }
        // First, as it may be on the same port.
        self.listening = None;
        let Some(address) = wanted else { return Ok(()) };
        let listener = bind(address).map_err(|error| {
            format!("cannot listen on {address}: {error}; choose another settings.metrics.address if something else is there")
        })?;
        let listener = Rc::new(listener);
        let task = tokio::task::spawn_local(serve(Rc::downgrade(&listener), self.api.clone()));
        self.listening = Some(Listening { address, _listener: listener, task });
        Ok(())
    }
}

/// Also on an address that the node does not have yet: DHCP may bring it.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(MOST as u32)
}

/// Until the listener is gone.
async fn serve(listener: Weak<TcpListener>, api: Endpoint) {
    let free = Arc::new(Semaphore::new(MOST));
    loop {
        match accept(&listener).await {
            Some(Ok(stream)) => {
                let Ok(permit) = free.clone().try_acquire_owned() else { continue };
                let api = api.clone();
                tokio::task::spawn_local(async move {
                    answer_connection(stream, &api).await;
                    drop(permit);
                });
            }
            Some(Err(error)) => {
                eprintln!("<4>metrics: cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
            None => return,
        }
    }
}

async fn accept(listener: &Weak<TcpListener>) -> Option<io::Result<TcpStream>> {
    poll_fn(|context| match listener.upgrade() {
        Some(listener) => {
            listener.poll_accept(context).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
        }
        None => Poll::Ready(None),
    })
    .await
}

async fn answer_connection(stream: TcpStream, api: &Endpoint) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, api).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(WHOLE_TIMEOUT, connection).await;
}

async fn answer(asked: &Request<Incoming>, api: &Endpoint) -> Response<Full<Bytes>> {
    if asked.method() != Method::GET || asked.uri().path() != "/metrics" {
        return reply(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "there is only GET /metrics here".into(),
        );
    }
    match request(api, Method::GET, "/metrics", Vec::new(), ANSWER_TIMEOUT).await {
        Ok(answer) if answer.is_success() => reply(StatusCode::OK, OPENMETRICS, answer.body.into()),
        Ok(answer) => reply(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", answer.body.into()),
        Err(error) => reply(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", error.to_string().into()),
    }
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::task::LocalSet;

    async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn free_address() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// An API that has `figures`, and says so of every path.
    fn api(path: &std::path::Path) {
        let listener = UnixListener::bind(path).unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nfigures").await;
            }
        });
    }

    #[tokio::test]
    async fn figures_and_nothing_else_are_told_where_it_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let story = async {
            api(&dir.path().join("api.sock"));
            let mut exporter =
                Exporter { api: Endpoint::Unix(dir.path().join("api.sock")), ..Exporter::default() };
            let address = free_address();
            exporter.listen(Some(address)).unwrap();
            let told = get(address, "/metrics").await.unwrap();
            assert!(told.starts_with("HTTP/1.1 200") && told.contains(OPENMETRICS), "{told}");
            assert!(told.ends_with("figures"), "{told}");
            for other in ["/", "/settings", "/metrics/x", "//metrics"] {
                let told = get(address, other).await.unwrap();
                assert!(told.starts_with("HTTP/1.1 404"), "{other}: {told}");
            }
            // The same port, and then none.
            let everywhere = SocketAddr::new("0.0.0.0".parse().unwrap(), address.port());
            exporter.listen(Some(everywhere)).unwrap();
            assert!(get(address, "/metrics").await.unwrap().ends_with("figures"));
            exporter.listen(None).unwrap();
            assert!(get(address, "/metrics").await.is_err());
        };
        LocalSet::new().run_until(story).await;
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_few_places_and_a_port_that_is_taken_is_told() {
        let story = async {
            let mut exporter = Exporter::default();
            let address = free_address();
            exporter.listen(Some(address)).unwrap();
            let mut silent = Vec::new();
            for _ in 0..MOST {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            sleep(Duration::from_millis(50)).await;
            let mut one_more = TcpStream::connect(address).await.unwrap();
            assert!(matches!(one_more.read(&mut [0; 1]).await, Ok(0) | Err(_)));
            let mut second = Exporter::default();
            let error = second.listen(Some(address)).unwrap_err();
            assert!(error.contains(&format!("cannot listen on {address}")), "{error}");
            // An address of documentation, which nobody has.
            second.listen(Some(SocketAddr::new("192.0.2.1".parse().unwrap(), address.port()))).unwrap();
        };
        LocalSet::new().run_until(story).await;
    }
}
