//! What `cargo caisson bench api` compares the API server with: hyper on a Unix socket, one thread, and nothing else.

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Response, server::conn::http1};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio::net::UnixListener;
use tokio::task::LocalSet;

fn main() -> std::io::Result<()> {
    let path = std::env::args_os().nth(1).expect("the path of a socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::bind(path)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                let hello = service_fn(|_| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), hello).await;
            });
        }
    })
}
