//! One file of a repository, got piece by piece: a connection that is cut is taken up where it was, so often and no more.
//!
//! What comes is bounded by the size that was signed. Whether it is right is for who takes it to see: chunks, patches and leaves make
//! a root with the signed hash, or none.

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};
use std::time::Duration;
use tokio::time::sleep;
use url::Url;

use super::transport::chain;

/// Connections that may fail without a byte more, one after the other.
const MOST_FAILURES: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Download {
    client: Client,
    url: Url,
    /// The next byte that is wanted, and the one behind the last.
    at: u64,
    end: u64,
    answer: Option<Response>,
    /// Of the answer, bytes before what is wanted: the server knows no ranges.
    surplus: u64,
    failures: u32,
}

impl Download {
    /// The bytes from `start` to before `end` of a file.
    pub(super) fn new(client: Client, url: Url, start: u64, end: u64) -> Self {
        Self { client, url, at: start, end, answer: None, surplus: 0, failures: 0 }
    }

    /// The next piece; none when all came.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        while self.at < self.end {
            match self.piece().await {
                Ok(piece) => {
                    self.failures = 0;
                    self.at += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(Failure::Final(reason)) => return Err(self.told(&reason)),
                Err(Failure::Passing(reason)) => {
                    self.answer = None;
                    self.failures += 1;
                    if self.failures > MOST_FAILURES {
                        return Err(self.told(&format!("{reason}; it was tried {} times", self.failures)));
                    }
                    sleep(FIRST_DELAY * 2u32.pow(self.failures - 1)).await;
                }
            }
        }
        Ok(None)
    }

    /// All of it, for what is small.
    pub(super) async fn all(mut self) -> Result<Vec<u8>, String> {
        let mut data = Vec::new();
        while let Some(piece) = self.next().await? {
            data.extend_from_slice(&piece);
        }
        Ok(data)
    }

    async fn piece(&mut self) -> Result<Bytes, Failure> {
        if self.answer.is_none() {
            self.ask().await?;
        }
        let Some(answer) = &mut self.answer else { return Err(passing("there is no answer")) };
        loop {
            let piece = answer.chunk().await.map_err(|error| passing(chain(&error.without_url())))?;
            let Some(mut piece) = piece else { return Err(passing("the server ended too early")) };
            let skipped = self.surplus.min(piece.len() as u64);
            self.surplus -= skipped;
            drop(piece.split_to(usize::try_from(skipped).unwrap_or(usize::MAX).min(piece.len())));
            // What a server sends beyond what was asked for is not wanted.
            piece.truncate(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
            if !piece.is_empty() {
                return Ok(piece);
            }
        }
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let range = format!("bytes={}-{}", self.at, self.end - 1);
        let answer = self.client.get(self.url.clone()).header(RANGE, range).send().await;
        let answer = answer.map_err(|error| {
            // A loop of redirects, or one that leaves https: no repetition mends that.
            let is_final = error.is_redirect();
            let text = chain(&error.without_url());
            if is_final { Failure::Final(text) } else { passing(text) }
        })?;
        self.surplus = match answer.status() {
            StatusCode::OK => self.at,
            StatusCode::PARTIAL_CONTENT if begins_at(&answer, self.at) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(Failure::Final("the server sent another range than was asked for".to_owned()));
            }
            status if status.is_server_error() => {
                return Err(passing(format!("the server answered {status}")));
            }
            status => return Err(Failure::Final(format!("the server answered {status}"))),
        };
        self.answer = Some(answer);
        Ok(())
    }

    fn told(&self, reason: &str) -> String {
        format!(
            "cannot get {}: {reason}. {} bytes are missing; the next attempt goes on from here",
            self.url,
            self.end - self.at
        )
    }
}

fn begins_at(answer: &Response, at: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    start == Some(at)
}

enum Failure {
    /// May be better the next time.
    Passing(String),
    Final(String),
}

fn passing(reason: impl Into<String>) -> Failure {
    Failure::Passing(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server that gives each answer to one connection.
    fn serve(answers: Vec<Vec<u8>>) -> (Url, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap()).parse().unwrap();
        let server = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).unwrap();
                let text = String::from_utf8_lossy(&request[..count]).to_lowercase();
                asked.extend(text.lines().find_map(|line| line.strip_prefix("range: ").map(str::to_owned)));
                stream.write_all(&answer).unwrap();
            }
            asked
        });
        (url, server)
    }

    fn answer(head: &str, body: &str, length: usize) -> Vec<u8> {
        format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
    }

    async fn get(answers: Vec<Vec<u8>>, start: u64, end: u64) -> (Result<String, String>, Vec<String>) {
        let (url, server) = serve(answers);
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder().no_proxy().build().unwrap();
        let all = Download::new(client, url, start, end).all().await;
        let all = all.map(|data| String::from_utf8(data).unwrap());
        (all, if all_served(&server) { server.join().unwrap() } else { vec![] })
    }

    fn all_served(server: &std::thread::JoinHandle<Vec<String>>) -> bool {
        for _ in 0..100 {
            if server.is_finished() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[tokio::test]
    async fn a_cut_is_taken_up_where_it_was() {
        let answers = vec![
            answer("206 Partial Content\r\ncontent-range: bytes 0-9/10", "0123", 10),
            answer("206 Partial Content\r\ncontent-range: bytes 4-9/10", "456", 6),
            // One that knows no ranges.
            answer("200 OK", "0123456789", 10),
        ];
        let (got, asked) = get(answers, 0, 10).await;
        assert_eq!(got.unwrap(), "0123456789");
        assert_eq!(asked, ["bytes=0-9", "bytes=4-9", "bytes=7-9"]);
    }

    #[tokio::test]
    async fn a_part_of_a_file_and_nothing_beyond_it() {
        let (got, _) = get(vec![answer("200 OK", "0123456789 and more", 19)], 3, 6).await;
        assert_eq!(got.unwrap(), "345");
    }

    #[tokio::test]
    async fn what_no_repetition_mends_is_told_at_once() {
        for (head, expected) in [
            ("404 Not Found", "the server answered 404"),
            ("206 Partial Content\r\ncontent-range: bytes 5-9/10", "another range"),
        ] {
            let (got, _) = get(vec![answer(head, "", 0)], 0, 10).await;
            let error = got.unwrap_err();
            assert!(error.contains(expected) && error.contains("10 bytes are missing"), "{error}");
        }
    }
}
