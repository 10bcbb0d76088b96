//! One line on a terminal while something takes long. Nobody else sees it.

use hyper::Method;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Endpoint, request_blocking};

/// Shows the line until it is dropped.
pub(crate) struct Progress {
    running: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

const EVERY: Duration = Duration::from_secs(1);
/// Columns: a line that is broken cannot be written over.
const WIDEST: usize = 79;

impl Progress {
    /// `what` is done: `applying`. None when no person watches.
    pub(crate) fn begin(endpoint: &Endpoint, what: &'static str) -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let endpoint = endpoint.clone();
        let (running, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let containers = request_blocking(&endpoint, Method::GET, "/containers", Vec::new(), EVERY);
                let containers =
                    containers.map(|answer| serde_json::from_slice(&answer.body).unwrap_or_default());
                show(&line(what, begun.elapsed(), &containers.unwrap_or_default()));
            }
            show("");
        });
        Some(Self { running: Some(running), thread: Some(thread) })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes over the line before, where a person watches; nothing clears it.
pub(crate) fn show(line: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let line: String = line.chars().take(WIDEST).collect();
        let _ = write!(terminal, "\r\x1b[K{line}").and_then(|()| terminal.flush());
    }
}

/// What is waited for, how long, and which containers are on their way.
fn line(what: &str, since: Duration, containers: &Value) -> String {
    let on_their_way = containers.as_array().into_iter().flatten().filter_map(|container| {
        let state = container["state"]
            .as_str()
            .filter(|state| ["pulling", "starting", "stopping"].contains(state))?;
        Some(format!("{} is {state}", container["name"].as_str()?))
    });
    let parts: Vec<String> =
        std::iter::once(format!("{what}, {} s", since.as_secs())).chain(on_their_way).collect();
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_tells_how_long_and_what_is_on_its_way() {
        let containers = json!([
            {"name": "web", "state": "pulling"}, {"name": "db", "state": "running"}, {"name": "a", "state": "stopping"}
        ]);
        let seconds = Duration::from_secs;
        assert_eq!(
            line("applying", seconds(3), &containers),
            "applying, 3 s · web is pulling · a is stopping"
        );
        assert_eq!(line("applying", seconds(1), &Value::Null), "applying, 1 s");
    }
}
