//! What somebody sends who has opened a websocket for `GET /exec`: the real server, and an agent that is only pretended.

use apiserver::access::Access;
use apiserver::agent::{Copy, Exec, Request};
use apiserver::exec::frames::{FromAgent, ToAgent};
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::http::{connect, place};

/// How long a session may last whose client has said all and reads what comes. The time passes at once whenever all wait for it.
const LONGEST: Duration = Duration::from_secs(200);
/// How long it says nothing before it goes.
const SILENT: Duration = Duration::from_secs(3);
const OPENING: &[u8] = b"GET /exec HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

thread_local! {
    static PLACE: (tempfile::TempDir, Runtime) = prepared();
}

fn prepared() -> (tempfile::TempDir, Runtime) {
    let (folder, runtime) = place();
    let settings = folder.path().join("settings");
    fs::create_dir(&settings).unwrap_or_else(|error| panic!("cannot make a store: {error}"));
    (folder, runtime)
}

/// What came to the agent.
#[derive(Debug, Default)]
struct Heard {
    asked: Option<Request>,
    frames: Vec<ToAgent>,
}

pub(crate) fn check(input: &[u8]) {
    let (Heard { asked, frames }, answer) = converse(input);
    match &asked {
        Some(Request::Exec(exec)) => is_allowed(exec),
        Some(Request::Copy(copy)) => may_be_copied(copy),
        _ => {}
    }
    assert!(asked.is_some() || frames.is_empty());
    let ends = frames.iter().position(|frame| *frame == ToAgent::EndOfInput);
    let is_input = |frame: &ToAgent| matches!(frame, ToAgent::Input(_) | ToAgent::EndOfInput);
    assert!(ends.is_none_or(|end| !frames[end + 1..].iter().any(is_input)), "input after its end");
    is_a_conversation(&answer);
}

/// What the agent heard, and what the client did.
fn converse(input: &[u8]) -> (Heard, Vec<u8>) {
    PLACE.with(|(folder, runtime)| {
        let heard = Rc::new(RefCell::new(Heard::default()));
        let answer = LocalSet::new().block_on(runtime, exchange(folder.path(), input, heard.clone()));
        (heard.take(), answer)
    })
}

/// Sends it, ends, and reads until the server ends.
async fn exchange(folder: &Path, sent: &[u8], heard: Rc<RefCell<Heard>>) -> Vec<u8> {
    let socket = folder.join("agent.sock");
    let _ = fs::remove_file(&socket);
    let agent = UnixListener::bind(&socket).unwrap_or_else(|error| panic!("cannot listen: {error}"));
    let agent = tokio::task::spawn_local(pretend(agent, heard));
    let (serving, stream) = connect(folder, Access::Full).await;
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let _ = writer.write_all(OPENING).await;
        // It may have had enough of it before the end.
        let _ = writer.write_all(sent).await;
        // Silent, and still there: who goes is not told how it ends.
        tokio::time::sleep(SILENT).await;
        let _ = writer.shutdown().await;
    };
    let mut answer = Vec::new();
    let both = async { tokio::join!(write, reader.read_to_end(&mut answer)) };
    let ended = tokio::time::timeout(LONGEST, both).await.is_ok();
    serving.abort();
    agent.abort();
    // What it was asked for may have been wrong.
    if let Err(error) = agent.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
    assert!(ended, "the session lasts longer than {LONGEST:?}");
    answer
}

/// Echoes the input, and ends with its end.
async fn pretend(listener: UnixListener, heard: Rc<RefCell<Heard>>) {
    let Ok((stream, _)) = listener.accept().await else { return };
    let (from, mut to) = stream.into_split();
    let (mut from, mut line) = (BufReader::new(from), Vec::new());
    let _ = from.read_until(b'\n', &mut line).await;
    match serde_json::from_slice(&line) {
        Ok(request @ (Request::Exec(_) | Request::Copy(_))) => heard.borrow_mut().asked = Some(request),
        other => panic!("the agent was asked for something else: {other:?}"),
    }
    let _ = to.write_all(b"{\"result\":\"done\"}\n").await;
    while let Some(frame) = ToAgent::read(&mut from).await.unwrap_or_else(|error| panic!("{error}")) {
        heard.borrow_mut().frames.push(frame.clone());
        let answers = match frame {
            ToAgent::Input(data) => vec![FromAgent::Output(data), FromAgent::Taken],
            ToAgent::EndOfInput => vec![FromAgent::Exited(0)],
            ToAgent::Resized(_) => Vec::new(),
        };
        for answer in answers {
            let _ = answer.write(&mut to).await;
        }
    }
}

fn is_name(name: &str) {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-.".contains(character);
    assert!(!name.is_empty() && name.chars().all(plain), "{name:?}");
    assert!(!name.contains("..") && !name.starts_with('.'), "{name:?}");
}

fn may_be_copied(copy: &Copy) {
    is_name(&copy.name);
    let path = copy.files.path();
    assert!(!path.is_empty() && path.len() < 4096 && !path.contains('\0'), "{path:?}");
}

/// The agent need not look at it again.
fn is_allowed(exec: &Exec) {
    is_name(&exec.name);
    let length: usize = exec.command.iter().map(String::len).sum();
    assert!(length <= 12 << 10 && exec.command.first().is_some_and(|program| !program.is_empty()));
    assert!(!exec.command.iter().any(|word| word.contains('\0')));
}

/// What the server says after the opening are whole messages, not masked, and of known kinds (RFC 6455, section 5.2).
fn is_a_conversation(answer: &[u8]) {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    let Some(mut rest) = end.map(|end| &answer[end..]) else { return };
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(answer));
    while let [kind, length, after @ ..] = rest {
        assert!([0x81, 0x82, 0x88, 0x89, 0x8a].contains(kind), "{kind:#x}");
        let (length, after) = match (length, after) {
            (126, [a, b, after @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), after),
            (127, after) if after.len() >= 8 => {
                let (long, after) = after.split_at(8);
                (long.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), after)
            }
            (length @ ..126, after) => (usize::from(*length), after),
            _ => return,
        };
        // The client may have gone in the middle of it.
        rest = after.get(length..).unwrap_or_default();
    }
}

/// As a client has to: masked, here with zeros, so that what is found is what is sent.
fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind, 0x80 | 126][..], &length, &[0; 4], data].concat()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| frame(0x81, text.as_bytes());
    let begin = text(r#"{"Initialize":{"command":[{"Unix":[108,115]}],"target":"web","tty":null}}"#);
    let terminal = text(
        r#"{"Initialize":{"command":[{"Unix":[115,104]}],"target":"host-containers.admin","tty":{"size":{"rows":24,"cols":80}},"extended":true}}"#,
    );
    let copy = text(
        r#"{"Initialize":{"command":[],"target":"web","tty":null,"extended":true,"files":{"Into":{"path":"/srv","is_contents":true}}}}"#,
    );
    let (input, end) = (frame(0x82, b"hello"), text("\"ContentComplete\""));
    vec![
        [begin.as_slice(), &input, &end].concat(),
        [terminal.as_slice(), &text(r#"{"Winch":{"rows":50,"cols":132}}"#), &input, &end].concat(),
        [copy.as_slice(), &input, &end].concat(),
        [begin.as_slice(), &input.repeat(40)].concat(),
        [begin.as_slice(), &frame(0x02, b"a"), &frame(0x00, b"b"), &frame(0x80, b"c"), &end].concat(),
        [begin.as_slice(), &frame(0x89, b"ping"), &frame(0x8a, b""), &frame(0x88, &[3, 232])].concat(),
        [begin.as_slice(), &[0x82, 0x80 | 127, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
        [input.as_slice(), &begin].concat(),
        text("{"),
        Vec::new(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_comes_to_the_agent_and_back() {
        let (heard, answer) = converse(&seeds()[0]);
        let Some(Request::Exec(exec)) = heard.asked else { panic!() };
        assert_eq!(exec.command, ["ls"]);
        assert_eq!(heard.frames, [ToAgent::Input(b"hello".to_vec()), ToAgent::EndOfInput]);
        // The output, and the exit code as the reason of the closing.
        assert!(answer.ends_with(b"\x82\x05hello\x88\x03\x03\xe80"), "{}", String::from_utf8_lossy(&answer));
    }
}
