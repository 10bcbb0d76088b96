//! Requests to the node's API: HTTP/1.1 over its socket, one for each connection. As little as the bench wants, so that it links none of
//! what it measures, and is compiled in seconds.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::place::API;

const PATIENCE: Duration = Duration::from_secs(120);

/// The body of an answer that grants the request.
pub(crate) fn ask(method: &str, uri: &str, body: &str) -> Result<Vec<u8>> {
    let exchange = || -> Result<Vec<u8>> {
        let mut stream = UnixStream::connect(API)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "{method} {uri} HTTP/1.1\r\nhost: node\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().with_context(|| format!("caisson: {method} {uri}"))?;
    let (status, body) = parse(&answer).with_context(|| format!("caisson: {method} {uri}"))?;
    if !(200..300).contains(&status) {
        bail!("caisson: {method} {uri} was refused: {status}: {}", String::from_utf8_lossy(body));
    }
    Ok(body.to_vec())
}

/// Status and body of a whole answer (RFC 9112), whose body is not in chunks.
fn parse(answer: &[u8]) -> Result<(u16, &[u8])> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("an answer without an end of its head")?;
    let (head, body) = (std::str::from_utf8(&answer[..end])?.to_ascii_lowercase(), &answer[end + 4..]);
    ensure!(!head.contains("transfer-encoding"), "an answer in chunks");
    let status = head.split(' ').nth(1).context("an answer without a status")?.parse()?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let (status, body) = parse(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").unwrap();
        assert_eq!((status, body), (404, &b"no"[..]));
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n").is_err());
    }
}
