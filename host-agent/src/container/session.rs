//! `container-shim --exec REQUEST`: runs a further process in a container, for whom its standard input is connected to; `container-shim
//! --copy REQUEST` runs what carries files of one ([`files`](crate::container::files)).
//!
//! One process for each, the parent of what it runs: so it knows how that ended, which the runtime in the foreground does not tell
//! (exit code 9 and SIGKILL are the same there), and ends it when nobody is there for it any more. It answers the request
//! ([`apiserver::agent::Exec`], [`apiserver::agent::Copy`]) on the connection itself, and then speaks [`frames`](apiserver::exec::frames): the agent hands the
//! connection over and carries no byte. It ends with the agent: one that comes after would know nothing of it.

use apiserver::agent::{Copy, ErrorKind, Exec, Response};
use apiserver::exec::frames::{FromAgent, Size, ToAgent};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, setsid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use seccompiler::BpfProgram;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::container::files as container_files;
use crate::container::inside;
use crate::container::process::process;
use crate::container::profile;
use crate::container::record::Places;
use crate::container::root::Preparation;
use crate::container::runtime::{self, YOUKI, forget, youki_with_log};
use crate::container::shim::SHIM;
use crate::files;

/// For a process to become its command: less than the API server waits, and than the runtime's leftovers are kept for.
const STARTING: Duration = Duration::from_secs(50);
/// Bytes of output in one frame.
const PIECE: usize = 16 << 10;
/// How long the output of a process that has ended is waited for, in all, and how many bytes of it are taken, as a pipe holds: others
/// that it left may hold it open, and go on writing.
const REST: Duration = Duration::from_millis(500);
const PIPE: usize = 64 << 10;
/// Between looks whether somebody is still there.
const LOOK: Duration = Duration::from_millis(500);
/// What a process gets to end by itself, once nobody is there for it.
const GRACE: Duration = Duration::from_secs(2);
/// Ends the input of a terminal (termios(3), VEOF).
const END_OF_INPUT: u8 = 4;

/// What is run.
enum Work {
    Command(Exec),
    Files(Copy),
}

impl Work {
    fn container(&self) -> &str {
        match self {
            Self::Command(exec) => &exec.name,
            Self::Files(copy) => &copy.name,
        }
    }
}

/// Runs a command to its end.
pub fn run(request: &str) -> ExitCode {
    serve_to_the_end(serde_json::from_str(request).map(Work::Command))
}

/// Carries files to the end.
pub fn copy(request: &str) -> ExitCode {
    serve_to_the_end(serde_json::from_str(request).map(Work::Files))
}

fn serve_to_the_end(work: serde_json::Result<Work>) -> ExitCode {
    // Before anything else is open: these have to have the numbers that they have in the process.
    let passed = Passed::open(work.as_ref().map_or("", Work::container));
    let begun = passed.and_then(|passed| {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        // The agent was gone before that.
        if std::os::unix::process::parent_id() == 1 {
            return Err(io::Error::other("the host agent has gone"));
        }
        prctl::set_child_subreaper(true)?;
        let _ = setsid();
        let connection = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        connection.set_nonblocking(true)?;
        Ok((passed, connection))
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = begun.and_then(|(passed, connection)| {
        runtime?.block_on(async {
            let (from, to) = tokio::net::UnixStream::from_std(connection)?.into_split();
            serve(work?, passed, from, to).await
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<4>exec: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the process gets beside its input and output.
struct Passed {
    program: OwnedFd,
    namespace: OwnedFd,
    inside: OwnedFd,
    /// The other end of the socket.
    control: OwnedFd,
}

impl Passed {
    fn open(container: &str) -> io::Result<Self> {
        let pid = fs::read_to_string(Places::of(container).pid());
        // Of one that has ended nothing is found, which is told when the runtime is asked.
        let user = pid.map_or("/proc/self/ns/user".to_owned(), |pid| format!("/proc/{}/ns/user", pid.trim()));
        // No more than the right to run it: nobody can read it or write to it by this.
        let program = open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = open(user.as_str(), flags, Mode::empty())
            .or_else(|_| open("/proc/self/ns/user", flags, Mode::empty()))?;
        let (inside, control) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        let numbers = [&program, &namespace, &inside].map(AsRawFd::as_raw_fd);
        if numbers != [inside::PROGRAM, inside::NAMESPACE, inside::CONTROL] {
            return Err(io::Error::other("it was started with more open than its input and output"));
        }
        for passed in [&program, &namespace, &inside] {
            fcntl(passed, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(Self { program, namespace, inside, control })
    }
}

async fn serve(work: Work, passed: Passed, from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let connection = to.as_ref().as_fd().try_clone_to_owned()?;
    // Given up, it ends: the runtime with its future, and a process that waits for its profile with the socket.
    let begin = async {
        match &work {
            Work::Command(exec) => begin(exec, passed).await,
            Work::Files(copy) => {
                // For a container's process, which this one is not.
                drop(passed);
                begin_copy(copy)
            }
        }
    };
    let begun = tokio::select! {
        begun = timeout(STARTING, begin) => {
            begun.unwrap_or_else(|_| Err(format!("it did not begin within {} s", STARTING.as_secs())))
        }
        () = hung_up(&connection) => return Ok(()),
        _ = stop.recv() => return Ok(()),
    };
    let response = match &begun {
        Ok(_) => Response::Done,
        Err(message) => Response::Error { kind: ErrorKind::Failed, message: message.clone() },
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    let told = to.write_all(&line).await;
    let Ok(running) = begun else { return told };
    match told {
        Ok(()) => running.converse(from, to, stop).await,
        Err(_) => running.end().await,
    }
}

/// A folder for what the runtime reads and writes. Not in the container's: a socket has a short path (unix(7)).
struct Folder(PathBuf);

impl Folder {
    fn make() -> io::Result<Self> {
        let path = PathBuf::from(format!("/run/exec-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The process, which has become its command.
struct Running {
    pid: Pid,
    /// Of the container's processes.
    group: PathBuf,
    streams: Streams,
}

/// This end of its input and output.
enum Streams {
    Pipes { input: Sender, outputs: Vec<(Receiver, Wrap)> },
    Terminal { input: Sender, output: Receiver, master: OwnedFd },
}

impl Streams {
    /// The command has not begun: whatever is there are the runtime's own words.
    fn drop_what_the_runtime_said(&self) {
        let Self::Pipes { outputs, .. } = self else { return };
        let mut buffer = [0; 4 << 10];
        for (output, _) in outputs {
            while matches!(nix::unistd::read(output, &mut buffer), Ok(1..)) {}
        }
    }
}

type Wrap = fn(Vec<u8>) -> FromAgent;

/// The other end, until the process has it.
struct Theirs {
    input: Stdio,
    output: Stdio,
    errors: Stdio,
}

/// Out of the agent's group: this one ends what it runs after the agent has ended.
fn leave_agent(places: &Places) -> io::Result<()> {
    fs::write(places.group.join("shim/cgroup.procs"), "0")
}

/// What carries files says on its own what it cannot do.
fn begin_copy(copy: &Copy) -> Result<Running, String> {
    let places = Places::of(&copy.name);
    leave_agent(&places).map_err(|error| format!("{} has ended meanwhile: {error}", copy.name))?;
    let cannot = |error: io::Error| format!("cannot start {SHIM}: {error}");
    let request = serde_json::to_string(copy).map_err(|error| error.to_string())?;
    let (streams, theirs) = pipes(true, |_| Ok(())).map_err(cannot)?;
    let mut command = std::process::Command::new(SHIM);
    command.arg(container_files::WORD).arg(request).process_group(0);
    command.stdin(theirs.input).stdout(theirs.output).stderr(theirs.errors);
    let child = command.spawn().map_err(cannot)?;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    Ok(Running { pid, group: places.group.join("shim"), streams })
}

async fn begin(request: &Exec, passed: Passed) -> Result<Running, String> {
    let places = Places::of(&request.name);
    let name = &request.name;
    let gone = |error: io::Error| format!("{name} has ended meanwhile: {error}");
    leave_agent(&places).map_err(gone)?;
    let config = fs::read(places.bundle().join("config.json")).map_err(gone)?;
    let config: Value = serde_json::from_slice(&config).map_err(|error| format!("config.json: {error}"))?;
    let ids = Preparation::read(&places).map_err(gone)?.ids;
    runtime::allow_limits(&config);
    let programs = match &config["linux"]["seccomp"] {
        Value::Null => Vec::new(),
        profile => profile::programs(profile)?,
    };
    let folder = Folder::make().map_err(|error| format!("cannot make a folder in /run: {error}"))?;
    let (console, piped) = match request.terminal {
        Some(_) => {
            let listener = UnixListener::bind(folder.at("console"));
            (Some(listener.map_err(|error| format!("cannot make a socket: {error}"))?), None)
        }
        None => {
            let give = |pipe: &OwnedFd| Ok(runtime::give(pipe, &config, ids)?);
            let pipes = pipes(request.apart, give).map_err(|error| format!("cannot make a pipe: {error}"))?;
            (None, Some(pipes))
        }
    };
    let (ours, theirs) = piped.unzip();
    let theirs = theirs.unwrap_or_else(|| Theirs {
        // It gets the terminal in their place.
        input: Stdio::null(),
        output: Stdio::null(),
        errors: Stdio::null(),
    });
    let mut process = process(&config, &request.command, request.terminal.is_some());
    let id = |name: &str| config["process"]["user"][name].as_u64().and_then(|id| u32::try_from(id).ok());
    let user = ids.map(|_| (id("uid").unwrap_or(0), id("gid").unwrap_or(0)));
    if user.is_some() {
        // It enters the container's user namespace by itself, and becomes its user there.
        process["user"] = json!({"uid": 0, "gid": 0});
    }
    files::replace_secretly(&folder.at("process.json"), process.to_string().as_bytes())
        .map_err(|error| format!("cannot write what the runtime is told: {error}"))?;
    let Passed { program, namespace, inside, control } = passed;
    run_runtime(name, &folder, theirs, console.is_some()).await?;
    // The process has its own.
    drop((program, namespace, inside));
    let pid = fs::read_to_string(folder.at("pid")).ok().and_then(|text| text.trim().parse().ok());
    let pid = Pid::from_raw(pid.ok_or("the runtime did not tell the process")?);
    let group = places.group.join("payload");
    let streams = match (console, ours) {
        (Some(console), _) => {
            terminal(&console, request.terminal).map_err(|error| format!("there is no terminal: {error}"))
        }
        (None, Some(streams)) => {
            streams.drop_what_the_runtime_said();
            Ok(streams)
        }
        (None, None) => Err("there is nothing to speak to it by".to_owned()),
    };
    forget(name);
    // From here on there is a process to be ended.
    let streams = match streams {
        Ok(streams) => streams,
        Err(error) => {
            end(pid, &group).await;
            return Err(error);
        }
    };
    let running = Running { pid, group, streams };
    match release(control, user, &programs).await {
        Ok(None) => Ok(running),
        Ok(Some(reason)) => {
            let _ = running.end().await;
            Err(reason)
        }
        Err(error) => {
            let _ = running.end().await;
            Err(format!("the process was lost before it began: {error}"))
        }
    }
}

/// Pipes to and from a process, given to its user.
fn pipes(apart: bool, give: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<(Streams, Theirs)> {
    let (their_input, input) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, their_output) = pipe2(OFlag::O_CLOEXEC)?;
    give(&their_input).and_then(|()| give(&their_output))?;
    let mut outputs = vec![(receiver(output)?, FromAgent::Output as Wrap)];
    let their_errors = if apart {
        let (errors, their_errors) = pipe2(OFlag::O_CLOEXEC)?;
        give(&their_errors)?;
        outputs.push((receiver(errors)?, FromAgent::Errors as Wrap));
        their_errors
    } else {
        their_output.try_clone()?
    };
    let input = Sender::from_owned_fd(not_blocking(input)?)?;
    let theirs =
        Theirs { input: their_input.into(), output: their_output.into(), errors: their_errors.into() };
    Ok((Streams::Pipes { input, outputs }, theirs))
}

fn receiver(fd: OwnedFd) -> io::Result<Receiver> {
    Receiver::from_owned_fd(not_blocking(fd)?)
}

fn not_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// Has the runtime begin it: when this is over, the process waits to be told what to do, and is a child of ours.
async fn run_runtime(name: &str, folder: &Folder, theirs: Theirs, has_terminal: bool) -> Result<(), String> {
    let log = folder.at("log");
    let mut command = youki_with_log(&log);
    command
        .args(["exec", "--detach", "--preserve-fds", inside::PASSED, "--process"])
        .arg(folder.at("process.json"));
    command.arg("--pid-file").arg(folder.at("pid"));
    if has_terminal {
        command.arg("--console-socket").arg(folder.at("console"));
    }
    command.arg(name).stdin(theirs.input).stdout(theirs.output).stderr(theirs.errors);
    let mut command = Command::from(command);
    let child = command.kill_on_drop(true).spawn();
    // With the command go our copies of the process's input and output.
    drop(command);
    let mut child = child.map_err(|error| format!("cannot start {YOUKI}: {error}"))?;
    match child.wait().await {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let said = log.lines().rfind(|line| line.contains("ERROR")).or(log.lines().last());
            Err(format!("the runtime could not begin it: {}", said.unwrap_or("it said nothing")))
        }
        Err(error) => Err(format!("cannot wait for {YOUKI}: {error}")),
    }
}

/// The terminal that the runtime has made in the container and sent.
fn terminal(console: &UnixListener, size: Option<Size>) -> io::Result<Streams> {
    console.set_nonblocking(true)?;
    let (from, _) = console.accept()?;
    from.set_nonblocking(true)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&from, &mut [IoSliceMut::new(&mut [0; 256])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let master = descriptors.next().and_then(|mut descriptors| descriptors.next());
    let master = not_blocking(master.ok_or(io::ErrorKind::NotFound)?)?;
    if let Some(size) = size {
        resize(&master, size)?;
    }
    let input = Sender::from_owned_fd_unchecked(master.try_clone()?)?;
    let output = Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
    Ok(Streams::Terminal { input, output, master })
}

fn resize(master: &OwnedFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

/// Lets the process become its command; why it did not, if so.
async fn release(
    control: OwnedFd,
    user: Option<(u32, u32)>,
    programs: &[BpfProgram],
) -> io::Result<Option<String>> {
    let control = UnixStream::from(control);
    control.set_nonblocking(true)?;
    let mut control = tokio::net::UnixStream::from_std(control)?;
    control.write_all(&inside::encode(user, programs)).await?;
    let mut reason = Vec::new();
    (&mut control).take(4 << 10).read_to_end(&mut reason).await?;
    Ok(Some(String::from_utf8_lossy(&reason).into_owned()).filter(|reason| !reason.is_empty()))
}

impl Running {
    /// Carries its input and output until it ends, or until nobody is there for it.
    async fn converse(
        self,
        from: OwnedReadHalf,
        to: OwnedWriteHalf,
        mut stop: tokio::signal::unix::Signal,
    ) -> io::Result<()> {
        let Self { pid, group, streams } = self;
        let connection = to.as_ref().as_fd().try_clone_to_owned()?;
        let (frames, to_write) = mpsc::channel(2);
        let writer = tokio::spawn(write(to_write, to));
        let (ended, has_ended) = watch::channel(false);
        let relay = |output, wrap| tokio::spawn(relay(output, wrap, frames.clone(), has_ended.clone()));
        let (input, master, relays) = match streams {
            Streams::Pipes { input, outputs } => {
                let relays: Vec<_> = outputs.into_iter().map(|(output, wrap)| relay(output, wrap)).collect();
                (input, None, relays)
            }
            Streams::Terminal { input, output, master } => {
                (input, Some(master), vec![relay(output, FromAgent::Output)])
            }
        };
        let code = tokio::select! {
            code = wait(pid) => code?,
            () = take(from, input, master, frames.clone()) => None,
            () = hung_up(&connection) => None,
            _ = stop.recv() => None,
        };
        let Some(code) = code else {
            // A terminal that nobody holds hangs up.
            relays.iter().for_each(tokio::task::JoinHandle::abort);
            writer.abort();
            drop((relays, writer));
            end(pid, &group).await;
            return Ok(());
        };
        ended.send_replace(true);
        let rest = async {
            for relay in relays {
                let _ = relay.await;
            }
            let _ = frames.send(FromAgent::Exited(code)).await;
            drop(frames);
            let _ = writer.await;
        };
        tokio::select! {
            () = rest => {}
            () = hung_up(&connection) => {}
            _ = stop.recv() => {}
        }
        Ok(())
    }

    /// Ends it before anybody has heard of it.
    async fn end(self) -> io::Result<()> {
        let Self { pid, group, streams } = self;
        drop(streams);
        end(pid, &group).await;
        Ok(())
    }
}

async fn write(mut frames: mpsc::Receiver<FromAgent>, mut to: OwnedWriteHalf) {
    while let Some(frame) = frames.recv().await {
        if frame.write(&mut to).await.is_err() {
            return;
        }
    }
}

/// Hands on what the process writes.
async fn relay(
    mut output: impl AsyncRead + Unpin,
    wrap: Wrap,
    frames: mpsc::Sender<FromAgent>,
    mut has_ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; PIECE];
    let (mut patience, mut left) = (REST, PIPE);
    while left > 0 {
        let is_over = *has_ended.borrow();
        let begun = Instant::now();
        let read = if is_over {
            let Ok(read) = timeout(patience, output.read(&mut buffer)).await else { return };
            patience = patience.saturating_sub(begun.elapsed());
            read
        } else {
            tokio::select! {
                biased;
                read = output.read(&mut buffer) => read,
                Ok(_) = has_ended.wait_for(|ended| *ended) => continue,
                else => return,
            }
        };
        match read {
            // EIO: nobody has the terminal open any more.
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if is_over {
                    left = left.saturating_sub(count);
                }
                if frames.send(wrap(buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Does what it is told until the other side ends, or says what is not of the protocol.
async fn take(from: OwnedReadHalf, input: Sender, master: Option<OwnedFd>, frames: mpsc::Sender<FromAgent>) {
    let mut from = BufReader::new(from);
    // None when it takes nothing more. What is sent all the same is dropped, so that its sender goes on.
    let mut input = Some(input);
    let mut is_in_line = false;
    while let Ok(Some(frame)) = ToAgent::read(&mut from).await {
        match frame {
            ToAgent::Input(data) => {
                is_in_line = data.last().map_or(is_in_line, |byte| *byte != b'\n');
                if let Some(open) = &mut input
                    && open.write_all(&data).await.is_err()
                {
                    input = None;
                }
                if frames.send(FromAgent::Taken).await.is_err() {
                    return;
                }
            }
            ToAgent::EndOfInput => {
                if let (Some(open), Some(_)) = (&mut input, &master) {
                    // The first one behind a line without an end only hands that on.
                    let ends: &[u8] = if is_in_line { &[END_OF_INPUT; 2] } else { &[END_OF_INPUT] };
                    let _ = open.write_all(ends).await;
                }
                input = None;
            }
            ToAgent::Resized(size) => {
                if let Some(master) = &master {
                    let _ = resize(master, size);
                }
            }
        }
    }
}

/// Returns when nobody is at the other end, also while nothing is read from there.
async fn hung_up(connection: &OwnedFd) {
    loop {
        sleep(LOOK).await;
        let mut asked = [PollFd::new(connection.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        let _ = poll(&mut asked, PollTimeout::ZERO);
        if asked[0].revents().is_some_and(|events| events.intersects(gone)) {
            return;
        }
    }
}

/// Waits for its end: its exit code, 128 + n for signal n.
async fn wait(pid: Pid) -> io::Result<Option<u8>> {
    let mut children = signal(SignalKind::child())?;
    loop {
        // Also what is left to us by others that have ended.
        for _ in 0..1024 {
            let code = |code: i32| Ok(Some(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(ended, status)) if ended == pid => return code(status),
                Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => {
                    return code(128 + signal as i32);
                }
                Ok(WaitStatus::StillAlive) => break,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        children.recv().await;
    }
}

/// Ends it with all of its session and waits for that. The runtime makes it the leader of one; what has a session of its own, as
/// daemons do, stays.
async fn end(pid: Pid, group: &Path) {
    for sent in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGCONT] {
        signal_session(pid, group, sent);
    }
    let _ = timeout(GRACE, wait(pid)).await;
    // Again, as some may have been made meanwhile.
    for _ in 0..10 {
        if !signal_session(pid, group, Signal::SIGKILL) {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let _ = timeout(GRACE, wait(pid)).await;
}

/// Whether there was anybody.
fn signal_session(leader: Pid, group: &Path, sent: Signal) -> bool {
    let of_group = kill(Pid::from_raw(-leader.as_raw()), sent).is_ok();
    let all = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids = all.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw);
    // A shell with a terminal gives each job a process group.
    let jobs = pids.filter(|pid| session_of(*pid) == Some(leader)).filter(|pid| kill(*pid, sent).is_ok());
    jobs.count() > 0 || of_group
}

fn session_of(pid: Pid) -> Option<Pid> {
    session_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Of a process that lives, in its `/proc/PID/stat` (proc_pid_stat(5)): the name, which is in parentheses, may hold anything.
fn session_in(stat: &str) -> Option<Pid> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let lives = !matches!(fields.first(), Some(&"Z" | &"X"));
    fields.get(3).filter(|_| lives)?.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    struct Far {
        from: tokio::net::unix::OwnedReadHalf,
        to: OwnedWriteHalf,
    }

    /// A process of this host in place of a container's, and who speaks to it.
    #[expect(clippy::zombie_processes, reason = "`wait` waits for it")]
    fn converse(script: &str, apart: bool) -> (Far, tokio::task::JoinHandle<io::Result<()>>, Pid) {
        let (streams, theirs) = pipes(apart, |_| Ok(())).unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).process_group(0);
        let child = command.stdin(theirs.input).stdout(theirs.output).stderr(theirs.errors).spawn().unwrap();
        drop(command);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (from, to) = ours.into_split();
        let running = Running { pid, group: PathBuf::from("/nonexistent"), streams };
        let task = tokio::spawn(running.converse(from, to, signal(SignalKind::terminate()).unwrap()));
        let (from, to) = theirs.into_split();
        (Far { from, to }, task, pid)
    }

    async fn heard(far: &mut Far) -> (Vec<u8>, Vec<u8>, u64, Option<u8>) {
        let (mut output, mut errors, mut taken) = (Vec::new(), Vec::new(), 0);
        loop {
            let frame = timeout(Duration::from_secs(20), FromAgent::read(&mut far.from)).await.unwrap();
            match frame.unwrap() {
                Some(FromAgent::Output(data)) => output.extend(data),
                Some(FromAgent::Errors(data)) => errors.extend(data),
                Some(FromAgent::Taken) => taken += 1,
                Some(FromAgent::Exited(code)) => return (output, errors, taken, Some(code)),
                None => return (output, errors, taken, None),
            }
        }
    }

    #[test]
    fn a_session_is_found_whatever_the_name_of_the_process() {
        for (stat, session) in [
            ("7 (sh) S 1 7 5 34816 7 4194304", Some(5)),
            ("7 (a) S 1 2 3 4) S 1 7 6 0", Some(6)),
            ("7 (sh) Z 1 7 5 0", None),
            ("7 (sh", None),
        ] {
            assert_eq!(session_in(stat), session.map(Pid::from_raw), "{stat}");
        }
        assert_eq!(session_of(Pid::this()), Some(nix::unistd::getsid(None).unwrap()));
    }

    #[tokio::test]
    async fn output_and_exit_code_are_told_apart_or_together() {
        let (mut far, task, _) = converse("echo out; echo err >&2; exit 9", true);
        assert_eq!(heard(&mut far).await, (b"out\n".to_vec(), b"err\n".to_vec(), 0, Some(9)));
        task.await.unwrap().unwrap();
        let (mut far, _, _) = converse("echo out; echo err >&2; kill -9 $$", false);
        assert_eq!(heard(&mut far).await, (b"out\nerr\n".to_vec(), vec![], 0, Some(137)));
    }

    #[tokio::test]
    async fn a_lot_goes_through_while_nobody_reads_first() {
        let (mut far, _, _) = converse("cat", true);
        let data: Vec<u8> = (0..1_u32 << 20).map(|number| (number / 7) as u8).collect();
        let sent = data.clone();
        let mut to = far.to;
        let sender = tokio::spawn(async move {
            for piece in sent.chunks(16 << 10) {
                ToAgent::Input(piece.to_vec()).write(&mut to).await.unwrap();
            }
            ToAgent::EndOfInput.write(&mut to).await.unwrap();
            to
        });
        let (unused, _) = tokio::net::UnixStream::pair().unwrap();
        far.to = unused.into_split().1;
        let (output, _, taken, code) = heard(&mut far).await;
        assert!(output == data && (taken, code) == (64, Some(0)));
        drop(sender.await.unwrap());
    }

    #[tokio::test]
    async fn a_process_that_takes_no_input_does_not_keep_who_sends_it() {
        let (mut far, _, _) = converse("exec <&-; sleep 1; exit 3", true);
        sleep(Duration::from_millis(200)).await;
        for _ in 0..3 {
            ToAgent::Input(vec![0; 1000]).write(&mut far.to).await.unwrap();
        }
        assert_eq!(heard(&mut far).await, (vec![], vec![], 3, Some(3)));
    }

    #[tokio::test]
    async fn what_it_left_behind_does_not_keep_the_end_from_being_told() {
        let (mut far, task, pid) = converse("sleep 600 & echo begun", true);
        assert_eq!(heard(&mut far).await, (b"begun\n".to_vec(), vec![], 0, Some(0)));
        task.await.unwrap().unwrap();
        let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
    }

    #[tokio::test]
    async fn what_it_left_behind_may_go_on_writing() {
        for script in ["while :; do echo on; sleep 0.1; done & exit 3", "yes & sleep 0.3; exit 3"] {
            let (mut far, task, pid) = converse(script, true);
            let (_, _, _, code) = timeout(Duration::from_secs(10), heard(&mut far)).await.unwrap();
            assert_eq!(code, Some(3), "{script}");
            task.await.unwrap().unwrap();
            let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
        }
    }

    #[tokio::test]
    async fn it_ends_with_all_of_its_group_when_nobody_is_there() {
        for script in ["sleep 600", "trap '' HUP TERM; sleep 600 & wait", "cat >/dev/null"] {
            let (mut far, task, pid) = converse(script, true);
            // More than it takes: nothing is read from there any more.
            let flood = async {
                loop {
                    ToAgent::Input(vec![0; 16 << 10]).write(&mut far.to).await.unwrap();
                }
            };
            let _ = timeout(Duration::from_millis(300), flood).await;
            drop(far);
            timeout(Duration::from_secs(10), task).await.unwrap().unwrap().unwrap();
            // Orphans are init's to reap.
            let lives = || kill(Pid::from_raw(-pid.as_raw()), None).is_ok();
            for _ in 0..100 {
                if !lives() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
            assert!(!lives(), "{script}: something runs");
        }
    }
}
