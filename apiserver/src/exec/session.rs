//! One process, from the server's side: between a client that is not trusted and the agent.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::frames::{FromAgent, Size, ToAgent};
use super::messages::{
    Capacity, FromClient, FromServer, Initialize, LONGEST_COMMAND, LONGEST_PATH, MOST_OUTSTANDING, Stream,
    length, limits, reason, too_long,
};
use crate::access::Client;
use crate::agent;
use crate::client::connect_unix;
use crate::events::AnyBody;
use crate::reply::Refusal;
use crate::state::State;

/// Processes at once. Each can make this process hold some 200 KiB.
const MOST: usize = 16;
/// For a client to say what is to be run, and for the agent to run it.
const BEGINNING: Duration = Duration::from_secs(10);
const STARTING: Duration = Duration::from_secs(60);
/// Bottlerocket's client gives a server up that says nothing for 10 s.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A client that says nothing for so long, not even that it hears the heartbeat, is gone. Ours says something every 5 s, also while
/// nobody reads what it writes.
const SILENCE: Duration = Duration::from_secs(60);
/// For a client to close its side.
const CLOSING: Duration = Duration::from_secs(5);
/// Of a terminal whose client does not tell it.
const USUAL_SIZE: Size = Size { rows: 24, cols: 80 };
/// Bytes of the agent's answer to a request.
const LARGEST_ANSWER: u64 = 64 << 10;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How many there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Rc<Cell<usize>>);

struct Counted(Sessions);

impl Sessions {
    fn enter(&self) -> Result<Counted, Refusal> {
        let others = self.0.get();
        if others >= MOST {
            let reason =
                format!("{others} processes run by exec already: end one of them, or try again later");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason));
        }
        self.0.set(others + 1);
        Ok(Counted(self.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// Turns the connection of a request into a websocket, and serves that beside other connections.
pub(crate) fn begin(
    state: &Rc<RefCell<State>>,
    client: Client,
    mut request: Request<Incoming>,
) -> Result<Response<AnyBody>, Refusal> {
    client.access.check(request.method(), &["exec"])?;
    let key = key(&request)?;
    let counted = state.borrow().sessions.enter()?;
    let agent = state.borrow().agent().to_owned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::task::spawn_local(async move {
        let _counted = counted;
        // The answer has to be written first.
        let Ok(Ok(upgraded)) = timeout(BEGINNING, upgrade).await else { return };
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits())).await;
        serve(socket, agent, client).await;
    });
    let mut response = Response::new(AnyBody::Whole(Full::default()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept.map_err(|error| Refusal::internal(error.to_string()))?);
    Ok(response)
}

/// The key of a request to open a websocket (RFC 6455, section 4.2.1).
fn key(request: &Request<Incoming>) -> Result<String, Refusal> {
    let header = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let has = |name, wanted: &str| {
        let words = header(name).unwrap_or_default().split(',');
        words.map(str::trim).any(|word| word.eq_ignore_ascii_case(wanted))
    };
    if !has(CONNECTION, "upgrade")
        || !has(UPGRADE, "websocket")
        || header(SEC_WEBSOCKET_VERSION) != Some("13")
    {
        let reason = "exec speaks by a websocket of version 13: use `apiclient exec NAME COMMAND`";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, reason));
    }
    let key = header(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    key.map(str::to_owned)
        .ok_or_else(|| Refusal::bad_request("sec-websocket-key has to be 16 bytes in base64"))
}

/// Why the server closes a websocket.
struct Close(CloseCode, String);

impl Close {
    fn gone() -> Self {
        Self(CloseCode::Away, "the client has gone".to_owned())
    }

    fn failed(why: impl std::fmt::Display) -> Self {
        Self(CloseCode::Error, format!("failed to spawn process: {why}"))
    }

    fn agent(error: &std::io::Error) -> Self {
        Self(CloseCode::Error, format!("the host agent ended it: {error}"))
    }
}

async fn serve(mut socket: Socket, agent: PathBuf, client: Client) {
    let initialize = timeout(BEGINNING, initialize(&mut socket)).await.unwrap_or_else(|_| {
        Err(Close(CloseCode::Policy, format!("no Initialize within {} s", BEGINNING.as_secs())))
    });
    let is_extended = initialize.as_ref().is_ok_and(|initialize| initialize.extended);
    let ended = match initialize {
        Ok(initialize) => converse(&mut socket, &agent, initialize, client).await,
        Err(close) => Err(close),
    };
    let (Close(code, text), failed) = match ended {
        Ok(exit_code) => (Close(CloseCode::Normal, exit_code.to_string()), false),
        Err(close) => (close, true),
    };
    let close = async {
        if is_extended && failed {
            let _ = socket.send(message(&FromServer::Failed(text.clone()))).await;
        }
        let frame = CloseFrame { code, reason: reason(&text).into() };
        let _ = socket.send(Message::Close(Some(frame))).await;
        // Until the client has said the same: what it sent meanwhile would make the kernel drop our last words.
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = timeout(CLOSING, close).await;
}

/// Runs a process to its end; its exit code.
async fn converse(
    socket: &mut Socket,
    agent: &Path,
    initialize: Initialize,
    client: Client,
) -> Result<u8, Close> {
    let is_extended = initialize.extended;
    let request = request(initialize, client)?;
    let started = timeout(STARTING, start(agent, &request)).await;
    let (from_agent, mut to_agent) = started.unwrap_or_else(|_| {
        Err(Close::failed(format!("the host agent did not begin it within {} s", STARTING.as_secs())))
    })?;
    let (sink, mut stream) = socket.split();
    // Each direction waits for its own: a process that does not read must not keep what it writes.
    let (sink, course) = (Mutex::new(sink), RefCell::new(Course::default()));
    // None while the client is not listened to, as the process takes nothing.
    let heard = Cell::new(Some(Instant::now()));
    let send = async |message| sink.lock().await.send(message).await.map_err(|_| Close::gone());
    let tell = async |capacity| send(message(&FromServer::Capacity(capacity))).await;
    let begun = course.borrow().capacity();
    tell(begun).await?;
    let input = async {
        loop {
            let message = stream.next().await;
            let frame = course.borrow_mut().received(message)?;
            if let Some(frame) = frame {
                heard.set(None);
                if frame.write(&mut to_agent).await.is_err() {
                    // It has ended, and has said how: that is still to be read.
                    return std::future::pending().await;
                }
            }
            heard.set(Some(Instant::now()));
        }
    };
    let output = async {
        let mut from_agent = from_agent;
        loop {
            match FromAgent::read(&mut from_agent).await.map_err(|error| Close::agent(&error))? {
                Some(FromAgent::Output(data)) => send(output(Stream::Output, data, is_extended)).await?,
                Some(FromAgent::Errors(data)) => send(output(Stream::Errors, data, is_extended)).await?,
                Some(FromAgent::Taken) => {
                    let capacity = course.borrow_mut().taken();
                    if let Some(capacity) = capacity {
                        tell(capacity).await?;
                    }
                }
                Some(FromAgent::Exited(code)) => return Ok(code),
                None => {
                    let text = "the host agent ended it: was it started again?".to_owned();
                    return Err(Close(CloseCode::Error, text));
                }
            }
        }
    };
    let heartbeat = async {
        loop {
            sleep(HEARTBEAT).await;
            send(Message::Ping(Bytes::new())).await?;
        }
    };
    let silence = async {
        loop {
            sleep(HEARTBEAT).await;
            if heard.get().is_some_and(|heard| heard.elapsed() > SILENCE) {
                return Err(Close::gone());
            }
        }
    };
    tokio::select! {
        // What the process wrote before its end is told before a mistake of the client's.
        biased;
        ended = output => ended,
        ended = input => ended,
        ended = heartbeat => ended,
        ended = silence => ended,
    }
}

fn output(stream: Stream, data: Vec<u8>, is_extended: bool) -> Message {
    if !is_extended {
        return Message::Binary(data.into());
    }
    Message::Binary([&[stream as u8], data.as_slice()].concat().into())
}

fn message(told: &FromServer) -> Message {
    Message::text(serde_json::to_string(told).unwrap_or_default())
}

/// The first message, which says what to run.
async fn initialize(socket: &mut Socket) -> Result<Initialize, Close> {
    loop {
        let early = || Close(CloseCode::Policy, "process data sent before initialization".to_owned());
        match received(socket.next().await)? {
            Received::Nothing => {}
            Received::Input(_) => return Err(early()),
            Received::Told(FromClient::Initialize(initialize)) => return Ok(initialize),
            Received::Told(_) => return Err(early()),
        }
    }
}

/// What the agent is asked for. What cannot be is refused here.
fn request(initialize: Initialize, client: Client) -> Result<agent::Request, Close> {
    let Initialize { command, target, tty, extended, files } = initialize;
    if !is_name(&target) {
        let text = "it is not the name of a container, such as web or host-containers.admin";
        return Err(Close::failed(format!("{:?}: {text}", target.chars().take(80).collect::<String>())));
    }
    if let Some(files) = files {
        if !extended || tty.is_some() || !command.is_empty() {
            return Err(Close::failed(
                "files are copied without a command and without a terminal, and \"extended\" is true",
            ));
        }
        let path = files.path();
        if path.is_empty() || path.len() > LONGEST_PATH || path.contains('\0') {
            return Err(Close::failed(format!(
                "a path in a container has 1 to {LONGEST_PATH} bytes, and none of them is zero"
            )));
        }
        return Ok(agent::Request::Copy(agent::Copy { name: target, files, asker: client.peer.uid }));
    }
    let length = length(&command);
    if length > LONGEST_COMMAND {
        return Err(Close::failed(too_long(length)));
    }
    let command: Result<Vec<String>, OsString> = command.into_iter().map(OsString::into_string).collect();
    let command = command
        .map_err(|word| Close::failed(format!("{word:?} is not UTF-8, as the OCI runtime wants it")))?;
    if command.first().is_none_or(String::is_empty) {
        return Err(Close::failed("no command is named"));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Close::failed("a word of the command holds a zero byte"));
    }
    let terminal = tty.map(|tty| tty.size.unwrap_or(USUAL_SIZE));
    Ok(agent::Request::Exec(agent::Exec {
        name: target,
        command,
        apart: extended && terminal.is_none(),
        terminal,
        asker: client.peer.uid,
    }))
}

/// Of `settings.containers`, or with its group before it.
fn is_name(text: &str) -> bool {
    match text.split_once('.') {
        None => text.parse::<settings::Identifier>().is_ok(),
        Some(("host-containers" | "bootstrap-containers", name)) => {
            name.parse::<settings::Identifier>().is_ok()
        }
        Some(_) => false,
    }
}

/// Has the agent run it.
async fn start(
    agent: &Path,
    request: &agent::Request,
) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), Close> {
    let exchange = async {
        let (from, mut to) = connect_unix(agent).await?.into_split();
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        to.write_all(&line).await?;
        let (mut from, mut answer) = (BufReader::new(from), Vec::new());
        (&mut from).take(LARGEST_ANSWER).read_until(b'\n', &mut answer).await?;
        Ok::<_, std::io::Error>((from, to, answer))
    };
    let (from, to, answer) = exchange.await.map_err(|error| {
        Close::failed(format!("the host agent does not answer ({error}); is it starting?"))
    })?;
    match serde_json::from_slice(&answer) {
        Ok(agent::Response::Done) => Ok((from, to)),
        Ok(agent::Response::Error { message, .. }) => Err(Close::failed(message)),
        _ if answer.is_empty() => Err(Close::failed("the host agent gave no answer")),
        _ => Err(Close::failed("the host agent's answer cannot be used")),
    }
}

enum Received {
    Nothing,
    Input(Bytes),
    Told(FromClient),
}

/// What one message of the client's is.
fn received(message: Option<Result<Message, Error>>) -> Result<Received, Close> {
    match message {
        Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
            Ok(told) => Ok(Received::Told(told)),
            Err(error) => Err(Close(CloseCode::Invalid, format!("invalid JSON in client message: {error}"))),
        },
        Some(Ok(Message::Binary(data))) => Ok(Received::Input(data)),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Received::Nothing),
        Some(Err(Error::Capacity(CapacityError::MessageTooLong { size, max_size }))) => {
            Err(Close(CloseCode::Size, format!("a message of {size} bytes; {max_size} are allowed")))
        }
        Some(Err(Error::Protocol(error))) => Err(Close(CloseCode::Protocol, error.to_string())),
        Some(Err(Error::Utf8(_))) => Err(Close(CloseCode::Invalid, "a text message is not UTF-8".to_owned())),
        Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Close::gone()),
    }
}

/// What has gone to a process that runs. Pure.
#[derive(Debug, Default)]
struct Course {
    sent: u64,
    taken: u64,
    is_complete: bool,
}

impl Course {
    fn capacity(&self) -> Capacity {
        Capacity { max_messages_outstanding: MOST_OUTSTANDING, messages_written: self.taken }
    }

    /// The process has taken one more; what the client is told of it, now and then.
    fn taken(&mut self) -> Option<Capacity> {
        self.taken += 1;
        (self.taken.is_multiple_of(MOST_OUTSTANDING / 2)).then(|| self.capacity())
    }

    fn received(&mut self, message: Option<Result<Message, Error>>) -> Result<Option<ToAgent>, Close> {
        match received(message)? {
            Received::Nothing => Ok(None),
            Received::Input(_) if self.is_complete => {
                Err(Close(CloseCode::Policy, "input sent after ContentComplete".to_owned()))
            }
            Received::Input(_) if self.sent.saturating_sub(self.taken) >= MOST_OUTSTANDING => {
                Err(Close(CloseCode::Size, "write buffer full; obey capacity updates".to_owned()))
            }
            Received::Input(data) => {
                self.sent += 1;
                Ok(Some(ToAgent::Input(data.into())))
            }
            Received::Told(FromClient::ContentComplete) if self.is_complete => Ok(None),
            Received::Told(FromClient::ContentComplete) => {
                self.is_complete = true;
                Ok(Some(ToAgent::EndOfInput))
            }
            Received::Told(FromClient::Winch(size)) => Ok(Some(ToAgent::Resized(size))),
            Received::Told(FromClient::Initialize(_)) => {
                Err(Close(CloseCode::Policy, "a process runs already: one connection for each".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Option<Result<Message, Error>> {
        Some(Ok(Message::Binary(Bytes::from_static(b"x"))))
    }

    fn text(text: &str) -> Option<Result<Message, Error>> {
        Some(Ok(Message::text(text)))
    }

    #[test]
    fn a_client_that_obeys_the_capacity_is_never_refused_and_another_one_is() {
        let mut course = Course::default();
        for _ in 0..MOST_OUTSTANDING {
            assert!(matches!(course.received(data()), Ok(Some(ToAgent::Input(_)))));
        }
        let refused = course.received(data()).err().unwrap();
        assert_eq!(
            (refused.0, refused.1.as_str()),
            (CloseCode::Size, "write buffer full; obey capacity updates")
        );
        // It is told before it would have to wait for ever.
        let told: Vec<Capacity> = (0..MOST_OUTSTANDING).filter_map(|_| course.taken()).collect();
        assert_eq!(told.iter().map(|capacity| capacity.messages_written).collect::<Vec<_>>(), [8, 16]);
        assert!(course.received(data()).is_ok());
    }

    #[test]
    fn what_a_client_may_not_send_closes_with_bottlerockets_codes() {
        let initialize = r#"{"Initialize": {"command": [], "target": "a", "tty": null}}"#;
        for (message, code) in [
            (text("{"), CloseCode::Invalid),
            (text(r#"{"Winch": {"rows": 70000, "cols": 1}}"#), CloseCode::Invalid),
            (text(initialize), CloseCode::Policy),
            (None, CloseCode::Away),
        ] {
            let refused = Course::default().received(message).err().unwrap();
            assert_eq!(refused.0, code, "{}", refused.1);
        }
        let mut course = Course::default();
        assert_eq!(course.received(text("\"ContentComplete\"")).ok().flatten(), Some(ToAgent::EndOfInput));
        assert_eq!(course.received(text("\"ContentComplete\"")).ok().flatten(), None);
        assert_eq!(course.received(data()).err().unwrap().0, CloseCode::Policy);
    }
}
