//! Asking PID 1 (`/run/init.sock`).

use init_control::{NodeStatus, Request, Response, SOCKET};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const PATIENCE: Duration = Duration::from_secs(5);
const LARGEST: u64 = 4 << 20;

/// Asks PID 1 and waits for its answer.
pub async fn ask(request: &Request) -> io::Result<Response> {
    let exchange = async {
        let mut stream = UnixStream::connect(SOCKET).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.take(LARGEST).read_to_end(&mut answer).await?;
        Ok(serde_json::from_slice(&answer)?)
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Turns a switch of PID 1 on or off, without waiting for what it starts again.
pub async fn switch(name: &str, on: bool) -> Result<(), String> {
    match ask(&Request::Switch { name: name.to_owned(), on }).await {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Error { message }) => Err(message),
        Ok(other) => Err(format!("PID 1 answered {other:?}")),
        Err(error) => Err(format!("PID 1 does not answer: {error}")),
    }
}

pub async fn status() -> io::Result<NodeStatus> {
    match ask(&Request::Status).await? {
        Response::Status(status) => Ok(status),
        other => Err(io::Error::other(format!("PID 1 answered {other:?}"))),
    }
}
