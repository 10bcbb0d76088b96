//! Connections: accepted within limits, served one request after the other.

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::access::{Access, Client};
use crate::events::AnyBody;
use crate::impatient::Impatient;
use crate::reply::Refusal;
use crate::routes;
use crate::state::State;
use crate::store::Peer;
use crate::trials;
use crate::vsock::VsockListener;

/// Connections at once.
const MOST_CONNECTIONS: usize = 1024;
/// Of them on the socket that only reads, so that whoever reads keeps nobody out who acts.
const MOST_READERS: usize = 128;
/// Connections beyond that which are told to come again; further ones are closed.
const MOST_REFUSED: usize = 256;
/// Bytes that the kernel keeps for a client that does not read; it takes twice as many. They count as this service's memory
/// (cgroup v2, memory.stat: sock), and by default are 208 KiB of each connection.
const SEND_BUFFER: usize = 8 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of request line and headers.
const LARGEST_HEAD: usize = 16 << 10;
/// How long a client may take nothing of its answer; as long as a listener to events.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one connection may last: one that is always busy would never be looked at again.
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);
/// What a request that is under way then still gets; applying takes the longest.
const LAST_REQUEST: Duration = Duration::from_secs(150);
/// What requests that are under way get when the server stops: a restart of the node waits for the agent, and its answer is to
/// be written still. PID 1 ends the service 2 s later (stop-timeout of os/services/apiserver.toml).
const STOPPING: Duration = Duration::from_secs(8);
/// What a connection gets then to show that there is a request on it, which was sent but not yet read.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// After a failed accept (no more descriptors), so that the processor has something else to do.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the API. Clones share one state.
#[derive(Clone)]
pub struct Server {
    state: Rc<RefCell<State>>,
    active: Rc<Cell<usize>>,
    readers: Rc<Cell<usize>>,
    longest_connection: Duration,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// Within a `LocalSet`.
    pub fn new(state: State) -> Self {
        let active = state.counts.connections.clone();
        let state = Rc::new(RefCell::new(state));
        tokio::task::spawn_local(trials::watch(state.clone()));
        Self {
            state,
            active,
            readers: Rc::default(),
            longest_connection: LONGEST_CONNECTION,
            stopping: watch::Sender::new(false),
        }
    }

    /// Closes idle connections, and lets requests that are under way finish for 8 seconds.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        self.state.borrow().events.close();
        for _ in 0..STOPPING.as_millis() / 20 {
            if self.active.get() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Serves a Unix socket until the task is aborted. Within a `LocalSet`.
    pub async fn serve_unix(self, listener: UnixListener, access: Access) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let peer = stream.peer_cred().ok();
                    let peer =
                        Peer { uid: peer.map(|peer| peer.uid()), pid: peer.and_then(|peer| peer.pid()) };
                    let _ = setsockopt(&stream, SndBuf, &SEND_BUFFER);
                    self.admit(stream, Client { access, peer });
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Serves a vsock socket until the task is aborted; only the host (CID 2) is admitted.
    pub async fn serve_vsock(self, listener: VsockListener) {
        loop {
            match listener.accept().await {
                Ok(Some(stream)) => {
                    self.admit(stream, Client { access: Access::Full, peer: Peer::default() })
                }
                Ok(None) => {}
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn pause(&self, error: &io::Error) {
        eprintln!("<4>cannot accept a connection: {error}");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn admit(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, client: Client) {
        // Too many even to be told so.
        if self.active.get() > MOST_CONNECTIONS + MOST_REFUSED {
            return;
        }
        let server = self.clone();
        let readers = usize::from(client.access == Access::ReadOnly);
        server.active.set(server.active.get() + 1);
        server.readers.set(server.readers.get() + readers);
        tokio::task::spawn_local(async move {
            if server.active.get() > MOST_CONNECTIONS || readers * server.readers.get() > MOST_READERS {
                refuse(stream).await;
            } else {
                server.serve(stream, client).await;
            }
            server.active.set(server.active.get() - 1);
            server.readers.set(server.readers.get() - readers);
        });
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, client: Client) {
        let (state, listener) = (&self.state, &RefCell::new(Weak::new()));
        let goes_on = Arc::new(AtomicBool::new(false));
        let service = service_fn(async |request| {
            let response = routes::handle(state, client, request).await;
            if let AnyBody::Stream(_, listening) = response.body() {
                listener.replace(listening.clone());
            }
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                goes_on.store(true, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(LARGEST_HEAD)
            // Else answers are copied into one more buffer, which no budget counts.
            .writev(true)
            .serve_connection(TokioIo::new(Impatient::new(stream, WRITE_TIMEOUT, goes_on.clone())), service)
            // For `GET /exec`: the connection ends here, and goes on there, with time-outs of its own.
            .with_upgrades();
        tokio::pin!(connection);
        let mut stopping = self.stopping.subscribe();
        // What a broken client did to its connection is nobody else's business.
        let patience = loop {
            tokio::select! {
                _ = &mut connection => return,
                _ = stopping.wait_for(|stopping| *stopping) => break STOPPING,
                () = tokio::time::sleep(self.longest_connection) => {
                    // Who listens may stay; who takes nothing is no listener any more.
                    if listener.borrow().strong_count() == 0 {
                        break LAST_REQUEST;
                    }
                }
            }
        };
        // A connection on which nothing was read is closed at once by what follows.
        if tokio::time::timeout(LAST_LOOK, &mut connection).await.is_ok() {
            return;
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(patience, connection).await;
    }
}

/// Says that the server is busy, to whoever sends a request soon: an answer without a request is no HTTP.
async fn refuse(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(|_: Request<Incoming>| async {
        let reason = "too many connections at once: try again in a few seconds";
        Ok::<_, Infallible>(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason).reply(false).map(Full::new))
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Paths;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;
    use tokio::time::{sleep, timeout};

    fn server(dir: &std::path::Path) -> Server {
        let at = |name: &str| dir.join(name);
        std::fs::create_dir(at("settings")).unwrap();
        std::fs::write(at("defaults.toml"), "").unwrap();
        std::fs::write(at("os-release"), "").unwrap();
        let paths = Paths {
            settings: at("settings"),
            defaults: at("defaults.toml"),
            os_release: at("os-release"),
            agent: at("agent.sock"),
        };
        let longest_connection = Duration::from_millis(100);
        Server { longest_connection, ..Server::new(State::open(&paths).unwrap()) }
    }

    async fn read(stream: &mut UnixStream) -> Option<String> {
        let mut buffer = [0; 4096];
        let count = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        (count > 0).then(|| String::from_utf8_lossy(&buffer[..count]).into_owned())
    }

    #[tokio::test]
    async fn a_connection_has_its_end_unless_somebody_listens_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let story = async {
            let server = server(dir.path());
            let connect = || {
                let (ours, theirs) = UnixStream::pair().unwrap();
                server.admit(ours, Client { access: Access::Full, peer: Peer::default() });
                theirs
            };
            let (mut idle, mut listener) = (connect(), connect());
            listener.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            assert!(read(&mut listener).await.unwrap().contains("200 OK"));
            idle.write_all(b"GET /tx/list HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            while read(&mut idle).await.is_some() {}
            sleep(server.longest_connection * 3).await;
            server.state.borrow().events.committed(7, "t", &[]);
            let mut heard = String::new();
            while !heard.contains("\"generation\":7") {
                heard += &read(&mut listener).await.unwrap();
            }
        };
        LocalSet::new().run_until(story).await;
    }
}
