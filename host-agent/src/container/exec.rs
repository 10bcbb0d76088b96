//! A further process in a container that runs, for the agent itself.

use apiserver::agent::{Exec, Response};
use apiserver::exec::frames::{FromAgent, ToAgent};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::container::shim;

/// Bytes of its output that are kept.
const LARGEST_OUTPUT: usize = 4 << 10;
/// Characters of a line that is told.
const LONGEST_LINE: usize = 200;
/// Bytes of what the shim says first.
const LARGEST_ANSWER: u64 = 64 << 10;

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// 128 + n for signal n.
    pub(super) code: u8,
    /// The first part of what it wrote on both outputs.
    pub(super) output: String,
}

impl Ended {
    /// The last line that is not empty, without control characters.
    pub(super) fn last_line(&self) -> String {
        let line = self.output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        line.chars().filter(|character| !character.is_control()).take(LONGEST_LINE).collect()
    }
}

/// Runs a command without input in a container, confined as that is, at most `patience` long.
pub(super) async fn output(name: &str, command: &[&str], patience: Duration) -> Result<Ended, String> {
    let cannot = |error: io::Error| format!("cannot start {}: {error}", shim::SHIM);
    let exec = Exec {
        name: name.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        terminal: None,
        apart: false,
        asker: None,
    };
    let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
    let mut shim = shim::exec(&exec, theirs).map_err(cannot)?;
    // With our end of the connection the process ends too.
    let ended = timeout(patience, ended(ours)).await;
    tokio::task::spawn_local(async move { shim.wait().await });
    ended.unwrap_or_else(|_| Err(format!("it did not end within {} s", patience.as_secs())))
}

/// Hears the shim out.
async fn ended(mut connection: UnixStream) -> Result<Ended, String> {
    let lost = |error: io::Error| format!("its shim was lost: {error}");
    let (from, mut to) = connection.split();
    let (mut from, mut line) = (BufReader::new(from), Vec::new());
    (&mut from).take(LARGEST_ANSWER).read_until(b'\n', &mut line).await.map_err(lost)?;
    match serde_json::from_slice(&line) {
        Ok(Response::Done) => {}
        Ok(Response::Error { message, .. }) => return Err(message),
        _ => return Err("its shim did not begin it".to_owned()),
    }
    // It may have ended already, and has said how.
    let _ = ToAgent::EndOfInput.write(&mut to).await;
    let mut output = Vec::new();
    loop {
        match FromAgent::read(&mut from).await.map_err(lost)? {
            // The rest is read, so that the writer can go on, and dropped.
            Some(FromAgent::Output(data) | FromAgent::Errors(data)) => {
                output.extend_from_slice(&data[..data.len().min(LARGEST_OUTPUT - output.len())]);
            }
            Some(FromAgent::Taken) => {}
            Some(FromAgent::Exited(code)) => {
                return Ok(Ended { code, output: String::from_utf8_lossy(&output).into_owned() });
            }
            None => return Err("its shim ended before it".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_shim_says_is_heard_to_the_end_and_kept_to_a_bound() {
        use tokio::io::AsyncWriteExt;
        let hear = async |answer: &str, frames: &[FromAgent]| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let say = async {
                theirs.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                for frame in frames {
                    let _ = frame.write(&mut theirs).await;
                }
                drop(theirs);
            };
            tokio::join!(ended(ours), say).0
        };
        let done = r#"{"result": "done"}"#;
        let large = FromAgent::Output(vec![b'x'; 60 << 10]);
        let all =
            hear(done, &[large.clone(), FromAgent::Taken, large, FromAgent::Exited(137)]).await.unwrap();
        assert_eq!((all.code, all.output.len()), (137, LARGEST_OUTPUT));
        assert_eq!(hear(done, &[]).await, Err("its shim ended before it".to_owned()));
        let refused = r#"{"result": "error", "kind": "failed", "message": "cannot run \"x\""}"#;
        assert_eq!(hear(refused, &[]).await, Err("cannot run \"x\"".to_owned()));
    }

    #[test]
    fn the_last_line_is_one_line() {
        let ended = |output: &str| Ended { code: 1, output: output.to_owned() }.last_line();
        assert_eq!(ended("a\nb\u{1b}[31m c\n\n"), "b[31m c");
        assert_eq!(ended(""), "");
        assert_eq!(ended(&"x".repeat(1000)).len(), LONGEST_LINE);
    }
}
