//! `container-shim`: runs one container once, when its standard input says which ([`shim::Assignment`]) and that it may, and writes how it
//! ended.
//!
//! `container-shim --exec REQUEST` runs a further process in one: `container/session.rs`. `container-shim --inside COMMAND` becomes that
//! process: `container/inside.rs`. `container-shim --copy REQUEST` carries files of one, by `container-shim --files REQUEST` that does it in
//! the container's root: `container/files.rs`.
//!
//! One process for each container, the parent of all that runs in it: it makes the container's root, drives youki through its
//! command line, keeps the container's output in a bounded log, and outlives a restart of the host agent. One thread.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, setsid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use host_agent::clock::boottime_ms;
use host_agent::container::bundle::{STOP_SIGNAL, STOP_TIMEOUT};
use host_agent::container::log::ContainerLog;
use host_agent::container::record::{Exit, Places};
use host_agent::container::root::{self, Preparation};
use host_agent::container::runtime::{self, YOUKI, youki};
use host_agent::container::shim::Assignment;
use host_agent::container::{files, freeze, inside, netavark, session, shim, spec};
use host_agent::files::replace;

/// A command that cannot be executed ends within this time, in milliseconds: later 255 is the container's own word.
const EARLY: u64 = 5_000;
/// Bytes of what the runtime says that are kept.
const MOST_WORDS: usize = 64 << 10;
/// For youki to make or start a container.
const RUNTIME_TIMEOUT: u64 = 60_000;

fn main() -> ExitCode {
    // What a container is to run need not be text.
    let mut command = std::env::args_os().skip(1);
    if command.next().is_some_and(|word| word == inside::WORD) {
        return inside::run(command);
    }
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => run(),
        (Some("--exec"), Some(request)) => session::run(&request),
        (Some("--copy"), Some(request)) => session::copy(&request),
        (Some(files::WORD), Some(request)) => files::run(&request),
        _ => {
            eprintln!("<3>container-shim: started by the host agent, by nobody else");
            ExitCode::FAILURE
        }
    }
}

fn run() -> ExitCode {
    let mut words = io::stdin().lock();
    let Assignment { name, image } = match Assignment::read(&mut words) {
        Ok(Some(assignment)) => assignment,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>container-shim: cannot tell what to run: {error}");
            return ExitCode::FAILURE;
        }
    };
    // For who looks at the node's processes.
    if let Ok(title) = CString::new(format!("shim:{name}")) {
        let _ = prctl::set_name(&title);
    }
    let places = Places::of(&name);
    // First out of the agent's control group, which is killed when the agent is restarted.
    if let Err(error) = join_group(&places) {
        eprintln!("<3>container {name}: {error}");
    }
    let _ = setsid();
    let _ = prctl::set_child_subreaper(true);
    let Ok(lock) = File::options().create(true).truncate(false).write(true).open(places.lock()) else {
        eprintln!("<3>container {name}: cannot open {}", places.lock().display());
        return ExitCode::FAILURE;
    };
    if lock.try_lock().is_err() {
        eprintln!("<3>container {name}: another shim runs it");
        return ExitCode::FAILURE;
    }
    let _ = replace(&places.run.join("shim.pid"), std::process::id().to_string().as_bytes());
    let signals = block_signals();
    // What a shim before this one left when it was killed; its words would be taken for this one's.
    runtime::clear(&name, &places);
    let _ = fs::remove_file(runtime::log(&places));
    let prepared = prepare(&places, &image);
    // All until here went on beside the agent's own work. Without its word (it could not write the bundle, or has ended) there is no
    // container.
    if !shim::may_go(&mut words) {
        runtime::clear(&name, &places);
        return ExitCode::SUCCESS;
    }
    let _ = fs::remove_file(places.exit());
    let mut shim = Shim { name, image, places, started_at: boottime_ms() };
    let exit = shim.run(signals, prepared);
    runtime::clear(&shim.name, &shim.places);
    let data = serde_json::to_vec(&exit).unwrap_or_default();
    if let Err(error) = replace(&shim.places.exit(), &data) {
        eprintln!("<3>container {}: cannot write how it ended: {error}", shim.name);
    }
    drop(lock);
    ExitCode::SUCCESS
}

fn join_group(places: &Places) -> io::Result<()> {
    let shim = places.group.join("shim");
    fs::create_dir_all(&shim)?;
    let controllers = fs::read_to_string(places.group.join("cgroup.controllers"))?;
    let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write(places.group.join("cgroup.subtree_control"), all.join(" "))?;
    fs::write(shim.join("cgroup.procs"), "0")
}

/// Makes the container's root.
fn prepare(places: &Places, image: &str) -> Result<Preparation, String> {
    let preparation =
        Preparation::read(places).map_err(|error| format!("{}: {error}", places.preparation().display()))?;
    root::make(places, &preparation, image)?;
    Ok(preparation)
}

/// What the runtime is told, without what is for it alone: the rules for system calls are most of it.
#[derive(Serialize, Deserialize)]
struct Told {
    process: Value,
    #[serde(default)]
    annotations: Value,
}

struct Shim {
    name: String,
    image: String,
    places: Places,
    started_at: u64,
}

/// Whose words come out of the pipes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The runtime's: it makes the container.
    Made,
    /// The runtime's, or already the container's: it makes and starts it at once.
    MadeAndStarted,
    /// The runtime's, and already the container's: it may write before the runtime has told that it started it.
    Started,
    /// The container's.
    Runs,
}

/// What the container writes and what is left of it.
struct Streams {
    log: ContainerLog,
    readers: Vec<(&'static str, File)>,
    /// What the runtime said on stderr, until the container runs. The start of what the container says may be in it.
    said: Vec<u8>,
    /// What is for the log if it is the container's, and not if it is the runtime's.
    held: Vec<(&'static str, Vec<u8>)>,
    phase: Phase,
}

impl Shim {
    fn run(&mut self, signals: nix::Result<SignalFd>, prepared: Result<Preparation, String>) -> Exit {
        let signals = signals.map_err(|error| format!("cannot take signals: {error}"));
        let result = signals.and_then(|signals| self.run_inner(&signals, &prepared?));
        let out_of_memory = self.out_of_memory();
        let (exit_code, error) = match result {
            Ok(code) => (Some(code), None),
            Err(error) => (None, Some(error)),
        };
        Exit { exit_code, error, out_of_memory, started_at_ms: self.started_at, ended_at_ms: boottime_ms() }
    }

    fn run_inner(&mut self, signals: &SignalFd, preparation: &Preparation) -> Result<i32, String> {
        let config = self.config()?;
        runtime::allow_limits(&config);
        self.check_command(&config)?;
        // Those are made between the two; without any, one command does both in about two thirds of the time.
        let needs_networks = self.places.network().exists();
        let cannot_pipe = |error: nix::Error| format!("cannot make a pipe: {error}");
        // Never /dev/null: youki would open it for reading, and the container's writes would fail.
        let (out, out_writer) = pipe2(OFlag::O_CLOEXEC).map_err(cannot_pipe)?;
        let (err, err_writer) = pipe2(OFlag::O_CLOEXEC).map_err(cannot_pipe)?;
        for pipe in [&out, &err] {
            runtime::give(pipe, &config, preparation.ids).map_err(cannot_pipe)?;
        }
        let mut streams = Streams {
            log: ContainerLog::open(&self.places.log),
            readers: vec![("stdout", File::from(out)), ("stderr", File::from(err))],
            said: Vec::new(),
            held: Vec::new(),
            phase: if needs_networks { Phase::Made } else { Phase::MadeAndStarted },
        };
        for (_, reader) in &streams.readers {
            let _ = nix::fcntl::fcntl(reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        }
        let mut create = youki(&self.places);
        match needs_networks {
            true => create.arg("create"),
            false => create.args(["run", "--detach"]),
        };
        let create = create
            .arg("--bundle")
            .arg(self.places.bundle())
            .arg("--pid-file")
            .arg(self.places.pid())
            .arg(&self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::from(out_writer))
            .stderr(Stdio::from(err_writer))
            .spawn()
            .map_err(|error| format!("cannot start {YOUKI}: {error}"))?;
        let created = self.wait_for(signals, &mut streams, pid_of(create.id()))?;
        if created != Some(0) {
            let what = if needs_networks { "made" } else { "started" };
            return Err(self.refusal(what, &streams, &self.runtime_log()));
        }
        // The container has its own by now.
        root::take_off(&self.places);
        let payload =
            fs::read_to_string(self.places.pid()).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let payload = payload.ok_or_else(|| "the runtime did not tell the container's process".to_owned())?;
        if needs_networks {
            netavark::set_up(&self.places, payload)?;
            self.start(signals, &mut streams)?;
        }
        streams.release();
        streams.phase = Phase::Runs;
        let begun = boottime_ms();
        let code = self.watch(signals, &mut streams, payload, &Ending::of(&config));
        streams.drain();
        // The runtime executes the command last of all, with this code when it cannot.
        let log = self.runtime_log();
        if code == 255 && boottime_ms() - begun < EARLY && log.contains("ERROR") {
            streams.said.clear();
            return Err(self.refusal("started", &streams, &log));
        }
        Ok(code)
    }

    /// Lets the program of a container run that was made before.
    fn start(&self, signals: &SignalFd, streams: &mut Streams) -> Result<(), String> {
        let start = youki(&self.places)
            .arg("start")
            .arg(&self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut start = start.map_err(|error| format!("cannot start {YOUKI}: {error}"))?;
        streams.said.clear();
        streams.phase = Phase::Started;
        let started = self.wait_for(signals, streams, pid_of(start.id()))?;
        if started != Some(0) {
            let mut text = String::new();
            if let Some(stderr) = start.stderr.take() {
                let _ = stderr.take(8 << 10).read_to_string(&mut text);
            }
            return Err(self.refusal("started", streams, &format!("{text}{}", self.runtime_log())));
        }
        Ok(())
    }

    fn runtime_log(&self) -> String {
        fs::read_to_string(runtime::log(&self.places)).unwrap_or_default()
    }

    /// What the runtime said, in one line that a person can act on.
    fn refusal(&self, what: &str, streams: &Streams, more: &str) -> String {
        let said = String::from_utf8_lossy(&streams.said);
        let last =
            said.lines().chain(more.lines()).rfind(|line| line.contains("ERROR") || line.contains("rror:"));
        let last = last.or_else(|| said.lines().last()).unwrap_or("it said nothing");
        format!("the container could not be {what}: {last}")
    }

    /// What the runtime is told: a part of it.
    fn config(&self) -> Result<Value, String> {
        let config = fs::read(self.places.bundle().join("config.json"));
        let config = config.map_err(|error| format!("config.json: {error}"))?;
        let told = serde_json::from_slice::<Told>(&config).and_then(serde_json::to_value);
        told.map_err(|error| format!("config.json: {error}"))
    }

    /// A command that is not there is told by name, before the runtime says it in its own words.
    fn check_command(&self, config: &Value) -> Result<(), String> {
        let program = config["process"]["args"][0].as_str().unwrap_or_default();
        let path = config["process"]["env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let path = path.filter_map(|variable| variable.strip_prefix("PATH=")).next_back().unwrap_or_default();
        let places: Vec<String> = if program.contains('/') {
            let folder = config["process"]["cwd"].as_str().unwrap_or("/");
            vec![Path::new(folder).join(program).display().to_string()]
        } else {
            path.split(':').map(|folder| format!("{folder}/{program}")).collect()
        };
        let root =
            open(&self.places.rootfs(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let root = root.map_err(|error| format!("cannot open the container's root: {error}"))?;
        let mut not_a_program = false;
        for place in &places {
            // Links are followed as the container would follow them.
            let how =
                OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
            let Ok(file) = openat2(&root, place.as_str(), how) else { continue };
            let Ok(stat) = fstat(&file) else { continue };
            if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG
                && stat.st_mode & 0o111 != 0
            {
                return Ok(());
            }
            not_a_program = true;
        }
        let why =
            if not_a_program { "it is not a program that may be executed" } else { "there is no such file" };
        Err(format!(
            "{}.command: cannot run {program:?}: {why} in the image {}",
            spec::key(&self.name),
            self.image
        ))
    }

    /// Waits for a process of ours while output is taken; its exit code, `None` for a signal.
    fn wait_for(&self, signals: &SignalFd, streams: &mut Streams, child: Pid) -> Result<Option<i32>, String> {
        let deadline = boottime_ms() + RUNTIME_TIMEOUT;
        loop {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => {
                    streams.take();
                    return Ok(Some(code));
                }
                Ok(WaitStatus::Signaled(..)) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
            if boottime_ms() >= deadline {
                let _ = kill(child, Signal::SIGKILL);
                return Err(format!("the runtime did not answer within {} s", RUNTIME_TIMEOUT / 1000));
            }
            if streams.wait(signals, Duration::from_millis(200)) {
                let _ = kill(child, Signal::SIGKILL);
                return Err("it was stopped before it ran".to_owned());
            }
        }
    }

    /// Watches the running container to its end; its exit code, 128 + n for signal n.
    fn watch(&self, signals: &SignalFd, streams: &mut Streams, payload: i32, ending: &Ending) -> i32 {
        let payload = Pid::from_raw(payload);
        let mut kill_at: Option<u64> = None;
        loop {
            // Whatever the container leaves behind is ours to reap.
            for _ in 0..1024 {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(pid, code)) if pid == payload => return code,
                    Ok(WaitStatus::Signaled(pid, signal, _)) if pid == payload => return 128 + signal as i32,
                    Ok(WaitStatus::StillAlive) => break,
                    // No children: it ended before we looked.
                    Err(_) => return 255,
                    Ok(_) => {}
                }
            }
            if kill_at.is_some_and(|at| boottime_ms() >= at) {
                let _ = fs::write(self.places.group.join("payload/cgroup.kill"), "1");
                let _ = kill(payload, Signal::SIGKILL);
                kill_at = Some(boottime_ms() + 1000);
            }
            let asked =
                streams.wait(signals, Duration::from_millis(if kill_at.is_some() { 100 } else { 5000 }));
            if asked && kill_at.is_none() {
                let _ = kill(payload, ending.signal);
                // Of one that is paused this is the first that it hears.
                let _ = freeze::set(&self.places, false);
                kill_at = Some(boottime_ms() + ending.grace);
            }
        }
    }

    fn out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.places.group.join("payload/memory.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }
}

/// How the container is asked to end.
struct Ending {
    signal: Signal,
    /// Milliseconds until it is killed.
    grace: u64,
}

impl Ending {
    fn of(config: &Value) -> Self {
        let annotation = |name: &str| config["annotations"][name].as_str();
        let signal = annotation(STOP_SIGNAL).and_then(signal).unwrap_or(Signal::SIGTERM);
        let seconds = annotation(STOP_TIMEOUT).and_then(|text| text.parse::<u64>().ok());
        let grace = seconds.map_or(shim::GRACE, Duration::from_secs);
        Self { signal, grace: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// As images write them: a number, or a name with or without `SIG`. Real-time signals are not known.
fn signal(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let name = text.to_uppercase();
    if name.starts_with("SIG") { name.parse().ok() } else { format!("SIG{name}").parse().ok() }
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(0))
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

impl Streams {
    /// Waits for output or a signal; true when we are asked to stop.
    fn wait(&mut self, signals: &SignalFd, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        {
            let mut all = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            all.extend(self.readers.iter().map(|(_, reader)| PollFd::new(reader.as_fd(), PollFlags::POLLIN)));
            let _ = poll(&mut all, timeout);
        }
        self.take();
        let mut asked = false;
        for _ in 0..64 {
            match signals.read_signal() {
                Ok(Some(info)) => asked |= info.ssi_signo == Signal::SIGTERM as u32,
                _ => break,
            }
        }
        asked
    }

    /// Reads what is there, a bounded part of it.
    fn take(&mut self) {
        let mut buffer = [0; 32 << 10];
        let Self { log, readers, said, held, phase } = self;
        readers.retain_mut(|(stream, reader)| match reader.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                let data = &buffer[..count];
                if *phase != Phase::Runs {
                    said.extend_from_slice(&data[..count.min(MOST_WORDS.saturating_sub(said.len()))]);
                }
                match phase {
                    Phase::Made => {}
                    Phase::MadeAndStarted => held.push((stream, data.to_vec())),
                    Phase::Started | Phase::Runs => log.write(stream, data),
                }
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        });
        // The runtime has fewer words.
        if self.held.iter().map(|(_, data)| data.len()).sum::<usize>() > MOST_WORDS {
            self.release();
            self.phase = Phase::Started;
        }
    }

    /// What was held back is the container's.
    fn release(&mut self) {
        for (stream, data) in self.held.drain(..) {
            self.log.write(stream, &data);
        }
    }

    /// The rest, after the container's end.
    fn drain(&mut self) {
        for _ in 0..1024 {
            let before = self.log.bytes();
            self.take();
            if self.readers.is_empty() || self.log.bytes() == before {
                break;
            }
        }
        self.log.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    /// Until it is known whether the runtime or the container spoke, nothing is in the container's log; and then all of it, in order.
    #[test]
    fn what_a_container_says_before_the_runtime_has_ended_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.log");
        let (out, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut writer = File::from(writer);
        let mut streams = Streams {
            log: ContainerLog::open(&path),
            readers: vec![("stdout", File::from(out))],
            said: Vec::new(),
            held: Vec::new(),
            phase: Phase::MadeAndStarted,
        };
        let said = || fs::read_to_string(&path).unwrap();
        writer.write_all(b"first\n").unwrap();
        streams.take();
        assert_eq!((said().as_str(), streams.said.as_slice()), ("", &b"first\n"[..]));
        streams.release();
        streams.phase = Phase::Runs;
        writer.write_all(b"second\n").unwrap();
        streams.take();
        let lines: Vec<String> =
            said().lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
        assert_eq!(lines, ["stdout first", "stdout second"]);
        // More than a runtime says is the container's.
        streams.phase = Phase::MadeAndStarted;
        for _ in 0..3 {
            writer.write_all(&[b'x'; 32 << 10]).unwrap();
            streams.take();
        }
        assert!(streams.held.is_empty() && said().len() > MOST_WORDS, "{}", said().len());
    }

    #[test]
    fn a_container_is_asked_to_end_as_its_image_or_its_settings_say() {
        let ending = |annotations| {
            let ending = Ending::of(&json!({ "annotations": annotations }));
            (ending.signal, ending.grace)
        };
        assert_eq!(ending(Value::Null), (Signal::SIGTERM, 10_000));
        assert_eq!(ending(json!({STOP_SIGNAL: "SIGQUIT", STOP_TIMEOUT: "30"})), (Signal::SIGQUIT, 30_000));
        for (text, known) in [
            ("quit", Some(Signal::SIGQUIT)),
            ("3", Some(Signal::SIGQUIT)),
            ("SIGRTMIN+3", None),
            ("99", None),
        ] {
            assert_eq!(signal(text), known, "{text}");
        }
    }
}
