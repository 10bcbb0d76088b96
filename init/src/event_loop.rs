//! The shell around the supervisor: waits for what happens, tells it, does what it says.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, recvmsg, setsockopt,
    socket, sockopt,
};
use nix::unistd::Pid;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use init::control::{NodeStatus, Problem, Request, Response};
use init::log_line::Lines;
use init::service::Start;
use init::supervisor::{Action, Event, Id, Supervisor};
use init::trial;

use crate::boot::Machine;
use crate::{power, requests, spawn};
use init::sys::boottime_ms;

const SIGNALS: u64 = 0;
const REQUESTS: u64 = 1;
const NOTIFY: u64 = 2;
const BUTTONS: u64 = 100;
const OUTPUTS: u64 = 1000;

/// A watchdog of 60 s is told that we live at least this often.
const LONGEST_WAIT: u64 = 10_000;
/// An end that does not come in this time is forced.
const END_TIMEOUT: u64 = 90_000;

struct Output {
    id: Id,
    pipe: File,
    lines: Lines,
}

struct Shell {
    machine: Machine,
    supervisor: Supervisor,
    epoll: Epoll,
    sockets: BTreeMap<Id, Vec<(String, OwnedFd)>>,
    outputs: BTreeMap<u64, Output>,
    next_output: u64,
    /// The first lines on stderr of services that end: what a failed one-shot had to say.
    last_words: BTreeMap<Id, String>,
    ending: Option<(power::End, u64)>,
    /// An end that was asked for, and begins when who asked has the answer.
    asked: Option<power::End>,
    was_ready: bool,
}

/// Runs the machine to its end.
pub(crate) fn run(mut machine: Machine, signals: Result<SignalFd, String>) -> ExitCode {
    let epoll = match Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC) {
        Ok(epoll) => epoll,
        Err(error) => {
            machine.console.say(0, "init", &format!("cannot make an epoll: {error}"));
            power::finish(power::End::Reboot, &mut machine.console, None);
            return ExitCode::FAILURE;
        }
    };
    let supervisor = Supervisor::new(std::mem::take(&mut machine.services));
    let mut shell = Shell {
        machine,
        supervisor,
        epoll,
        sockets: BTreeMap::new(),
        outputs: BTreeMap::new(),
        next_output: OUTPUTS,
        last_words: BTreeMap::new(),
        ending: None,
        asked: None,
        was_ready: false,
    };
    shell.run(signals)
}

impl Shell {
    fn run(&mut self, signals: Result<SignalFd, String>) -> ExitCode {
        let notify = self.listen_for_notifications();
        let control = requests::listen_for_requests();
        for failed in
            [signals.as_ref().err().cloned(), notify.as_ref().err().cloned(), control.as_ref().err().cloned()]
                .into_iter()
                .flatten()
        {
            self.problem("boot", failed, "this should not happen: please report it with the boot log");
        }
        let mut buttons = std::mem::take(&mut self.machine.buttons);
        let mut watchdog = self.machine.watchdog.take();
        if let Ok(signals) = &signals {
            self.watch(signals.as_fd(), SIGNALS);
        }
        if let Ok(control) = &control {
            self.watch(control.as_fd(), REQUESTS);
        }
        if let Ok(notify) = &notify {
            self.watch(notify.as_fd(), NOTIFY);
        }
        for (button, token) in buttons.iter().zip(BUTTONS..) {
            self.watch(button.as_fd(), token);
        }
        self.make_sockets();
        self.machine.phases.push(("services".to_owned(), boottime_ms()));
        self.happened(Event::Tick);

        let mut events = [EpollEvent::empty(); 32];
        loop {
            if self.over() {
                break;
            }
            if let Some(watchdog) = &mut watchdog {
                let _ = watchdog.write_all(b"\0");
            }
            let now = boottime_ms();
            let wait = self
                .supervisor
                .deadline()
                .map_or(LONGEST_WAIT, |due| due.saturating_sub(now))
                .min(LONGEST_WAIT);
            let wait =
                self.machine.trial.as_ref().map_or(wait, |trial| wait.min(trial.until().saturating_sub(now)));
            let wait = if self.ending.is_some() { wait.min(100) } else { wait };
            let timeout = EpollTimeout::try_from(wait.saturating_add(1)).unwrap_or(EpollTimeout::ZERO);
            let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
            for event in events.iter().take(count) {
                match event.data() {
                    SIGNALS => {
                        if let Ok(signals) = &signals {
                            self.read_signals(signals);
                        }
                    }
                    REQUESTS => {
                        if let Ok(control) = &control {
                            requests::answer_one(control, |request| self.answer(request));
                        }
                        if let Some(end) = self.asked.take() {
                            self.end(end, "asked through the API");
                        }
                    }
                    NOTIFY => {
                        if let Ok(notify) = &notify {
                            self.read_notification(notify);
                        }
                    }
                    token if token >= OUTPUTS => self.read_output(token),
                    token => {
                        let index = usize::try_from(token.saturating_sub(BUTTONS)).unwrap_or(usize::MAX);
                        if buttons.get_mut(index).is_some_and(power::pressed) {
                            self.end(power::End::PowerOff, "the power button was pressed");
                        }
                    }
                }
            }
            self.reap();
            self.look_at_trial();
            self.happened(Event::Tick);
        }
        self.drain_outputs();
        let end = self.ending.map_or(power::End::Reboot, |(end, _)| end);
        self.outputs.clear();
        power::finish(end, &mut self.machine.console, watchdog);
        ExitCode::FAILURE
    }

    /// A version that is still on trial when its time is over is restarted.
    fn look_at_trial(&mut self) {
        let now = boottime_ms();
        let Some(over) = self.machine.trial.take_if(|trial| trial.until() <= now) else { return };
        let Some(trial) = over.again() else { return };
        if trial.until() > now {
            self.machine.trial = Some(trial);
            return;
        }
        let reason = trial::reason(now.wrapping_div(1000), &self.supervisor.status());
        if let Err(error) = trial.say(&reason, now) {
            self.machine.console.say(
                3,
                "init",
                &format!("cannot keep why this version is restarted: {error}"),
            );
        }
        self.end(power::End::Reboot, &reason);
    }

    fn over(&self) -> bool {
        self.ending.is_some_and(|(_, forced_at)| self.supervisor.stopped() || boottime_ms() >= forced_at)
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64) {
        let _ = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token));
    }

    fn problem(&mut self, subject: &str, message: String, hint: &str) {
        self.machine.console.say(3, "init", &format!("{subject}: {message}"));
        self.machine.problems.push(Problem {
            source: "init".to_owned(),
            subject: subject.to_owned(),
            message,
            hint: hint.to_owned(),
        });
    }

    fn make_sockets(&mut self) {
        let ids = 0..self.supervisor.status().len();
        for id in ids {
            for message in self.make_sockets_of(id) {
                let name = self.supervisor.service(id).map(|service| service.name.clone());
                self.problem(
                    &name.unwrap_or_default(),
                    message,
                    "the service runs without this socket: see the boot log",
                );
            }
        }
    }

    /// Makes the sockets that a service is to have, and closes those that it is not. Returns what could not be made.
    fn make_sockets_of(&mut self, id: Id) -> Vec<String> {
        let Some(service) = self.supervisor.service(id) else { return Vec::new() };
        let there = self.sockets.remove(&id).unwrap_or_default();
        let (sockets, failures) =
            spawn::make_sockets(service, &self.machine.accounts, &self.machine.switches, there);
        self.sockets.insert(id, sockets);
        failures
    }

    /// Services get their sockets when they start: those that have such a socket are started again.
    fn switch(&mut self, name: &str, on: bool) -> Result<(), String> {
        let concerned: Vec<Id> = (0..self.supervisor.status().len())
            .filter(|id| {
                let sockets = self.supervisor.service(*id).into_iter().flat_map(|service| &service.sockets);
                sockets.into_iter().any(|socket| socket.when.as_deref() == Some(name))
            })
            .collect();
        if concerned.is_empty() {
            return Err(format!("no socket has the switch {name:?}"));
        }
        if !self.machine.switches.set(name, on) {
            return Ok(());
        }
        let failures: Vec<String> = concerned.iter().flat_map(|id| self.make_sockets_of(*id)).collect();
        if !failures.is_empty() {
            // As before, so that who asks again has it tried again.
            self.machine.switches.set(name, !on);
            return Err(failures.join("; "));
        }
        let what = if on { "on" } else { "off" };
        self.machine.console.say(6, "init", &format!("{name}: turned {what} by the settings"));
        for id in concerned {
            self.happened(Event::RestartAsked(id));
        }
        Ok(())
    }

    /// Tells the supervisor, and does what it says until nothing is left to do.
    fn happened(&mut self, event: Event) {
        let mut queue = VecDeque::from([event]);
        // Each event leads to at most a few more; a bound keeps a mistake from hanging PID 1.
        for _ in 0..1000 {
            let Some(event) = queue.pop_front() else { break };
            for action in self.supervisor.handle(boottime_ms(), event) {
                match action {
                    Action::Spawn(id) => queue.push_back(self.spawn(id)),
                    Action::Terminate(id) => self.signal(id, Signal::SIGTERM),
                    Action::Kill(id) => self.kill_group(id),
                    Action::Say(id, priority, text) => self.say(id, priority, &text),
                }
            }
        }
        if !self.was_ready && self.supervisor.ready() {
            self.was_ready = true;
            self.machine.phases.push(("ready".to_owned(), boottime_ms()));
        }
    }

    fn say(&mut self, id: Id, priority: u8, text: &str) {
        let Some(name) = self.supervisor.service(id).map(|service| service.name.clone()) else { return };
        self.machine.console.say(priority, &name, text);
        if priority <= 3 && text.starts_with("failed") {
            let words = self.last_words.remove(&id).unwrap_or_else(|| text.to_owned());
            let hint = format!("the log is /data/log/{name}.log");
            self.machine.problems.push(Problem { source: name.clone(), subject: name, message: words, hint });
        }
    }

    fn spawn(&mut self, id: Id) -> Event {
        let Some(service) = self.supervisor.service(id).cloned() else { return Event::Tick };
        let none = Vec::new();
        let sockets = self.sockets.get(&id).unwrap_or(&none);
        match spawn::spawn(&service, &self.machine.accounts, sockets) {
            Ok(spawned) => {
                let token = self.next_output;
                self.next_output = token.saturating_add(1);
                self.watch(spawned.output.as_fd(), token);
                self.outputs
                    .insert(token, Output { id, pipe: File::from(spawned.output), lines: Lines::default() });
                self.last_words.remove(&id);
                Event::Spawned(id, spawned.pid)
            }
            Err(error) => Event::NotSpawned(id, error),
        }
    }

    fn signal(&self, id: Id, signal: Signal) {
        if let Some(pid) = self.supervisor.pid(id).and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn kill_group(&self, id: Id) {
        self.signal(id, Signal::SIGKILL);
        if let Some(service) = self.supervisor.service(id) {
            let _ = fs::write(spawn::group_of(&service.name).join("cgroup.kill"), "1");
        }
    }

    /// Reads a bounded part of what a service wrote: one that floods must not keep PID 1 from the others.
    fn read_output(&mut self, token: u64) {
        let Some(mut output) = self.outputs.remove(&token) else { return };
        let mut buffer = [0; 16 << 10];
        let mut lines = Vec::new();
        let open = match output.pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                output.lines.push(buffer.get(..count).unwrap_or_default(), |priority, text| {
                    lines.push((priority, text.to_owned()))
                });
                true
            }
            Err(error) => {
                matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted)
            }
        };
        if !open {
            output.lines.flush(|priority, text| lines.push((priority, text.to_owned())));
        }
        let name = self.supervisor.service(output.id).map(|service| service.name.clone()).unwrap_or_default();
        for (priority, text) in lines {
            self.machine.console.say(priority, &name, &text);
            if priority <= 3 {
                self.last_words.insert(output.id, text);
            }
        }
        if open {
            self.outputs.insert(token, output);
        } else {
            let _ = self.epoll.delete(&output.pipe);
        }
    }

    fn drain_outputs(&mut self) {
        let tokens: Vec<u64> = self.outputs.keys().copied().collect();
        for token in tokens {
            self.read_output(token);
        }
    }

    fn reap(&mut self) {
        for (pid, end) in power::reap() {
            self.machine.console.logs.reaped(pid);
            let id = u32::try_from(pid).ok().and_then(|pid| self.supervisor.find_pid(pid));
            if let Some(id) = id {
                // Its last lines come before the news of its end.
                let tokens: Vec<u64> = self
                    .outputs
                    .iter()
                    .filter(|(_, output)| output.id == id)
                    .map(|(token, _)| *token)
                    .collect();
                for token in tokens {
                    self.read_output(token);
                }
                self.happened(Event::Exited(id, end));
            }
        }
    }

    fn read_signals(&mut self, signals: &SignalFd) {
        for _ in 0..64 {
            let Ok(Some(info)) = signals.read_signal() else { break };
            match Signal::try_from(i32::try_from(info.ssi_signo).unwrap_or(0)) {
                Ok(Signal::SIGTERM) => self.end(power::End::PowerOff, "asked by SIGTERM"),
                Ok(Signal::SIGINT) => self.end(power::End::Reboot, "asked by Ctrl-Alt-Del"),
                _ => {}
            }
        }
    }

    fn end(&mut self, end: power::End, why: &str) {
        if self.ending.is_some() {
            return;
        }
        let what = if end == power::End::Reboot { "reboot" } else { "power-off" };
        self.machine.console.say(5, "init", &format!("{what}: {why}"));
        self.ending = Some((end, boottime_ms().saturating_add(END_TIMEOUT)));
        self.happened(Event::Stop);
    }

    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(NodeStatus {
                services: self.supervisor.status(),
                problems: self.machine.problems.clone(),
                data: self.machine.data.to_owned(),
                state: self.machine.state.to_owned(),
                machine_id: self.machine.machine_id.clone(),
                phases: self.machine.phases.clone(),
                restarted_by_watchdog: self.machine.restarted_by_watchdog,
            }),
            Request::Restart { service } => match self.supervisor.find(&service) {
                Some(id) => {
                    self.happened(Event::RestartAsked(id));
                    Response::Done
                }
                None => Response::Error { message: format!("there is no service {service:?}") },
            },
            Request::Stop { service } => match self.supervisor.find(&service) {
                Some(id)
                    if self.supervisor.service(id).is_some_and(|service| service.start == Start::Asked) =>
                {
                    self.happened(Event::StopAsked(id));
                    Response::Done
                }
                Some(_) => Response::Error {
                    message: format!("{service} is started with the node, and ends with it"),
                },
                None => Response::Error { message: format!("there is no service {service:?}") },
            },
            Request::Switch { name, on } => match self.switch(&name, on) {
                Ok(()) => Response::Done,
                Err(message) => Response::Error { message },
            },
            Request::Reboot => {
                self.asked = Some(power::End::Reboot);
                Response::Done
            }
            Request::PowerOff => {
                self.asked = Some(power::End::PowerOff);
                Response::Done
            }
        }
    }

    fn listen_for_notifications(&self) -> Result<OwnedFd, String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot listen on {}: {error}", spawn::NOTIFY);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd =
            socket(AddressFamily::Unix, SockType::Datagram, flags, None).map_err(|error| failed(&error))?;
        let _ = fs::remove_file(spawn::NOTIFY);
        setsockopt(&fd, sockopt::PassCred, &true).map_err(|error| failed(&error))?;
        let address = UnixAddr::new(spawn::NOTIFY).map_err(|error| failed(&error))?;
        bind(fd.as_raw_fd(), &address).map_err(|error| failed(&error))?;
        // Services run as other users; who wrote is told by the kernel with each message.
        fs::set_permissions(spawn::NOTIFY, fs::Permissions::from_mode(0o666))
            .map_err(|error| failed(&error))?;
        Ok(fd)
    }

    fn read_notification(&mut self, socket: &OwnedFd) {
        for _ in 0..64 {
            let mut buffer = [0; 4096];
            let mut space = nix::cmsg_space!(nix::libc::ucred);
            let (length, pid) = {
                let mut parts = [IoSliceMut::new(&mut buffer)];
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
                let Ok(message) = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)
                else {
                    break;
                };
                let pid = message.cmsgs().ok().into_iter().flatten().find_map(|part| match part {
                    ControlMessageOwned::ScmCredentials(credentials) => u32::try_from(credentials.pid()).ok(),
                    _ => None,
                });
                (message.bytes, pid)
            };
            let ready = buffer
                .get(..length)
                .unwrap_or_default()
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"READY=1");
            if let (true, Some(id)) = (ready, pid.and_then(|pid| self.supervisor.find_pid(pid))) {
                self.happened(Event::Ready(id));
            }
        }
    }
}

/// The signals that PID 1 takes, as a descriptor. Before anything else: one that comes during the boot is kept until it is read.
pub(crate) fn block_signals() -> Result<SignalFd, String> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)
        .map_err(|error| format!("cannot block signals: {error}"))?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| format!("cannot make a signalfd: {error}"))
}
