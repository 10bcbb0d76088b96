//! Speaks the host agent's protocol in its place.

use apiserver::agent::{Request, Response};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::harness::Server;

/// Answers each request with the line that `answering` makes of it, until the test ends.
pub(crate) fn agent(server: &Server, answering: impl Fn(Request) -> String + Send + Sync + 'static) {
    let listener = UnixListener::bind(server.dir.path().join("agent.sock")).unwrap();
    let answering = Arc::new(answering);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answering = answering.clone();
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let line = answering(serde_json::from_str(&line).unwrap());
                let _ = stream.get_mut().write_all(line.as_bytes());
            });
        }
    });
}

pub(crate) fn answer(response: &Response) -> String {
    format!("{}\n", serde_json::to_string(response).unwrap())
}
