//! `apiclient exec`: a process in a container, with this one's input, output and terminal.

use bytes::Bytes;
use clap::Args;
use futures_util::future::select_all;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::cli::Api;
use crate::cli_terminal::{self, Raw};
use crate::client::{Endpoint, open_websocket, runtime};
use crate::exec::messages::{
    Capacity, FromClient, FromServer, Initialize, LONGEST_COMMAND, Stream, Tty, length, limits, too_long,
};

/// What `apiclient` ends with when the process did not run, or nobody knows how it ended; as ssh does.
const FAILED: u8 = 255;
/// Bytes of input in one message.
pub(crate) const PIECE: usize = 16 << 10;
/// So often the node is told that we are there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A node that says nothing for so long is gone: it says something every 2 s.
const SILENCE: Duration = Duration::from_secs(45);
/// For a node to take our half of the closing.
const CLOSING: Duration = Duration::from_secs(1);
/// As a program ends that writes to a pipe which nobody reads (SIGPIPE).
const NOBODY_READS: u8 = 128 + 13;

#[derive(Args)]
pub(crate) struct Exec {
    /// Give it a terminal; it has one anyway when input and output here are terminals
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Give it none
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Nothing changes: the input is always passed on
    #[arg(short, long)]
    interactive: bool,
    /// As container list shows it; a host container also without its group
    name: String,
    /// What to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs it. The exit code is the process's own, or [`FAILED`].
pub(crate) fn exec(api: &Api, exec: &Exec) -> ExitCode {
    let has_terminal = exec.tty || (!exec.no_tty && cli_terminal::is_whole());
    let tty = has_terminal.then(|| Tty { size: cli_terminal::size() });
    let (command, target) = (exec.command.clone(), exec.name.clone());
    let length = length(&command);
    let ended = match length > LONGEST_COMMAND {
        true => Err(too_long(length)),
        false => {
            let initialize = Initialize { command, target, tty, extended: true, files: None };
            run(api, initialize, read_input, Output::begin)
        }
    };
    // The terminal is as it was again.
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(reason) => {
            eprintln!("apiclient: {reason}");
            ExitCode::from(FAILED)
        }
    }
}

type Sink = SplitSink<WebSocketStream<TokioIo<Upgraded>>, Message>;

/// Runs what `initialize` says to its end: its exit code. Input and output begin when it does.
pub(crate) fn run(
    api: &Api,
    initialize: Initialize,
    input: impl FnOnce() -> mpsc::Receiver<Bytes>,
    output: impl FnOnce() -> Output,
) -> Result<u8, String> {
    let runtime = runtime(&api.endpoint).map_err(|error| error.to_string())?;
    let ended = runtime.block_on(converse(api, initialize, input, output));
    runtime.shutdown_background();
    ended
}

async fn converse(
    api: &Api,
    initialize: Initialize,
    read_input: impl FnOnce() -> mpsc::Receiver<Bytes>,
    begin_output: impl FnOnce() -> Output,
) -> Result<u8, String> {
    let endpoint = &api.endpoint;
    let has_terminal = initialize.tty.is_some();
    let upgraded = open_websocket(endpoint, "/exec", api.timeout).await.map_err(|error| error.to_string())?;
    let upgraded = upgraded.map_err(|answer| match answer.status {
        404 => "the node knows no exec: it runs an older version".to_owned(),
        _ => answer.text(),
    })?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(limits())).await;
    let (sink, mut stream) = socket.split();
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| format!("cannot take signals: {error}"))?;
    let mut signals =
        [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()]
            .into_iter()
            .map(|kind| Ok((u8::try_from(kind.as_raw_value()).unwrap_or(0), signal(kind)?)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| format!("cannot take signals: {error}"))?;
    let node = Node { sink: Mutex::new(sink) };
    node.tell(&FromClient::Initialize(initialize)).await?;
    let (capacity, mut known) = watch::channel(None::<Capacity>);
    // Each direction waits for its own: a process that does not read must not keep what it writes.
    let output = async {
        // From when the process runs.
        let mut output: Option<Output> = None;
        let mut begin_output = Some(begin_output);
        let mut raw = None;
        let mut failed = None;
        let ended = loop {
            let message = timeout(SILENCE, stream.next()).await;
            let message =
                message.map_err(|_| format!("the node has said nothing for {} s", SILENCE.as_secs()))?;
            match received(endpoint, message)? {
                Received::Nothing => {}
                Received::Failed(reason) => failed = Some(reason),
                Received::Capacity(told) => {
                    if let Some(begin) = begin_output.take() {
                        output = Some(begin());
                        if has_terminal {
                            let begun = Raw::begin();
                            raw = begun.map_err(|error| format!("cannot change the terminal: {error}"))?;
                        }
                    }
                    capacity.send_replace(Some(told));
                }
                Received::Output(stream, data) => {
                    let Some(output) = &output else { continue };
                    if output.pieces.send((stream, data)).await.is_err() {
                        break Ok(NOBODY_READS);
                    }
                }
                Received::Ended(ended) => break ended,
            }
        };
        if let Some(output) = output {
            output.end().await;
        }
        drop(raw);
        ended.map_err(|reason| failed.unwrap_or(reason))
    };
    let input = async {
        let _ = known.wait_for(Option::is_some).await;
        let mut pieces = read_input();
        let mut sent = 0;
        loop {
            let has_room = |known: &Option<Capacity>| known.is_some_and(|known| known.has_room(sent));
            let _ = known.wait_for(has_room).await;
            let Some(data) = pieces.recv().await else { break };
            sent += 1;
            node.send(Message::Binary(data)).await?;
        }
        node.tell(&FromClient::ContentComplete).await?;
        std::future::pending().await
    };
    let resizes = async {
        loop {
            resized.recv().await;
            if let Some(size) = cli_terminal::size().filter(|_| has_terminal) {
                node.tell(&FromClient::Winch(size)).await?;
            }
        }
    };
    let heartbeat = async {
        loop {
            sleep(HEARTBEAT).await;
            node.send(Message::Ping(Bytes::new())).await?;
        }
    };
    let ended = tokio::select! {
        biased;
        // Else the terminal would be left as it is now.
        number = ended_by(&mut signals) => Ok(128 + number),
        ended = output => ended,
        ended = input => ended,
        ended = resizes => ended,
        ended = heartbeat => ended,
    };
    // The node waits for our half of the closing.
    let _ = timeout(CLOSING, async { node.sink.lock().await.close().await }).await;
    ended
}

/// Waits for a signal that asks this program to end; its number.
async fn ended_by(signals: &mut [(u8, Signal)]) -> u8 {
    let received = signals.iter_mut().map(|(number, signal)| {
        Box::pin(async {
            signal.recv().await;
            *number
        })
    });
    select_all(received).await.0
}

/// The node, as what is sent to it goes.
struct Node {
    sink: Mutex<Sink>,
}

impl Node {
    async fn tell(&self, told: &FromClient) -> Result<(), String> {
        self.send(Message::text(serde_json::to_string(told).unwrap_or_default())).await
    }

    async fn send(&self, message: Message) -> Result<(), String> {
        match self.sink.lock().await.send(message).await {
            Ok(()) => Ok(()),
            Err(Error::Capacity(error)) => Err(error.to_string()),
            // What it said last is still to be read.
            Err(_) => std::future::pending().await,
        }
    }
}

enum Received {
    Nothing,
    Capacity(Capacity),
    Output(Stream, Bytes),
    Failed(String),
    /// The exit code, or why there is none.
    Ended(Result<u8, String>),
}

fn received(endpoint: &Endpoint, message: Option<Result<Message, Error>>) -> Result<Received, String> {
    match message {
        Some(Ok(Message::Binary(data))) => {
            let stream = data.first().copied().and_then(Stream::of);
            let stream =
                stream.ok_or("the node tells what was written in another way than this client knows")?;
            Ok(Received::Output(stream, data.slice(1..)))
        }
        Some(Ok(Message::Text(text))) => Ok(match serde_json::from_str(&text) {
            Ok(FromServer::Capacity(capacity)) => Received::Capacity(capacity),
            Ok(FromServer::Failed(reason)) => Received::Failed(reason),
            // Of a newer node.
            Err(_) => Received::Nothing,
        }),
        Some(Ok(Message::Close(close))) => Ok(Received::Ended(closed(close))),
        Some(Ok(_)) => Ok(Received::Nothing),
        Some(Err(error)) => {
            let path = match endpoint {
                Endpoint::Unix(path) | Endpoint::HybridVsock(path) => path.display(),
            };
            Ok(Received::Ended(Err(format!("the connection to {path} broke: {error}"))))
        }
        None => Ok(Received::Ended(Err("the node closed the connection".to_owned()))),
    }
}

fn closed(close: Option<CloseFrame>) -> Result<u8, String> {
    let Some(CloseFrame { code, reason }) = close else {
        return Err("the node ended it without a reason".to_owned());
    };
    match (code, reason.parse()) {
        (CloseCode::Normal, Ok(code)) => Ok(code),
        (CloseCode::Normal, Err(_)) => Err("the node tells no exit code".to_owned()),
        _ => Err(reason.to_string()),
    }
}

/// The standard input, read by a thread that waits for as long as it likes: nobody waits for the thread.
pub(crate) fn read_input() -> mpsc::Receiver<Bytes> {
    let (pieces, input) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if pieces.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    input
}

/// What the process writes, taken by a thread: the next piece waits for it.
pub(crate) struct Output {
    pieces: mpsc::Sender<(Stream, Bytes)>,
    ended: oneshot::Receiver<()>,
}

impl Output {
    /// To the standard output and error.
    fn begin() -> Self {
        Self::to(|mut output| {
            while let Some((stream, data)) = output.blocking_recv() {
                let written = match stream {
                    Stream::Output => write(io::stdout().lock(), &data),
                    Stream::Errors => write(io::stderr().lock(), &data),
                };
                if written.is_err() {
                    break;
                }
            }
        })
    }

    /// Until `take` returns, or there is nothing more.
    pub(crate) fn to(take: impl FnOnce(mpsc::Receiver<(Stream, Bytes)>) + Send + 'static) -> Self {
        let (pieces, output) = mpsc::channel(4);
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            take(output);
            let _ = end.send(());
        });
        Self { pieces, ended }
    }

    async fn end(self) {
        drop(self.pieces);
        let _ = self.ended.await;
    }
}

fn write(mut to: impl Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_in_a_normal_closing_is_an_exit_code() {
        let frame = |code, reason: &str| Some(CloseFrame { code, reason: reason.into() });
        assert_eq!(closed(frame(CloseCode::Normal, "137")), Ok(137));
        assert_eq!(closed(frame(CloseCode::Normal, "")), Err("the node tells no exit code".to_owned()));
        assert_eq!(closed(frame(CloseCode::Error, "3")), Err("3".to_owned()));
        assert!(closed(frame(CloseCode::Normal, "256")).is_err() && closed(None).is_err());
    }
}
