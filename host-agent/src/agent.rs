//! The agent's own socket: who may ask, and what is answered.

use apiserver::agent::{
    Copy, ErrorKind, Exec, Files, ImageRequest, LARGEST_LINE, LogFrom, Request, Response,
};
use init_control::Request as InitRequest;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use settings::Settings;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::apply::Applier;
use crate::container::images::{self, Images};
use crate::container::record::Places;
use crate::container::{log, manager, processes, progress, shim};
use crate::figures;
use crate::init;
use crate::node::Node;
use crate::update::{Command, Refused, Updates};

/// root, and the API server.
const ADMITTED: [u32; 2] = [0, 274];
const MOST_CONNECTIONS: u32 = 64;
/// Processes that are run in containers by hand at once. The API server admits fewer: others may ask the agent itself.
const MOST_SESSIONS: usize = 20;
/// Characters of a program's name, or of a path, that are told in the log.
const LONGEST_PROGRAM: usize = 200;
const PATIENCE: Duration = Duration::from_secs(10);
const STOPPING: Duration = Duration::from_secs(2);
/// For the node's start, before an apply. The API server waits 120 s for its answer.
const START_PATIENCE: Duration = Duration::from_secs(100);
/// What goes around a log in an answer.
const WRAPPING: u64 = 1 << 10;
/// Bytes of a log that are sent at once to who follows it: more than its longest line.
const LARGEST_PIECE: u64 = 64 << 10;
/// The same, to who does not.
const LARGEST_LOG: u64 = 1 << 20;

#[derive(Clone)]
pub struct Agent {
    pub node: Rc<RefCell<Node>>,
    /// One apply after the other.
    pub applier: Rc<Mutex<Applier>>,
    pub updates: Updates,
    pub images: Images,
    free: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    started: watch::Sender<bool>,
}

impl Default for Agent {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(MOST_CONNECTIONS as usize));
        let (node, applier, updates) = (Rc::default(), Rc::default(), Updates::default());
        let images = Images::default();
        let sessions = Arc::new(Semaphore::new(MOST_SESSIONS));
        Self { node, applier, updates, images, free, sessions, started: watch::Sender::new(false) }
    }
}

impl Agent {
    /// From now on what is asked to be applied is applied: before, user data was to come first. Pulls by hand go on, too.
    pub fn start_is_over(&self) {
        self.started.send_replace(true);
        self.images.resume(&self.node.borrow().containers.access());
    }

    /// Lets requests that are under way finish, for 2 seconds; further ones are not answered. Who asked for a restart is to know
    /// that it begins, though it ends this process too.
    pub async fn stop(&self) {
        let _ = tokio::time::timeout(STOPPING, self.free.acquire_many(MOST_CONNECTIONS)).await;
    }

    /// Answers for ever. Within a `LocalSet`.
    pub async fn serve(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // After the connection: a place that is only waited with would keep `stop` waiting too.
                    let Ok(permit) = self.free.clone().acquire_owned().await else { return };
                    let agent = self.clone();
                    tokio::task::spawn_local(async move {
                        agent.answer_connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    eprintln!("<4>cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer_connection(&self, mut stream: UnixStream) {
        if !stream.peer_cred().is_ok_and(|peer| ADMITTED.contains(&peer.uid())) {
            return;
        }
        let mut line = Vec::new();
        let mut reader = BufReader::new((&mut stream).take(LARGEST_LINE));
        if !matches!(timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await, Ok(Ok(count)) if count > 0)
        {
            return;
        }
        let response = match serde_json::from_slice(&line) {
            Ok(Request::Exec(exec)) => match self.may_run(exec, &stream) {
                // What runs it answers, and more: the connection is its own from there on.
                Ok((exec, permit)) => return run(&exec.name, shim::exec(&exec, stream), permit),
                Err((kind, message)) => Response::Error { kind, message },
            },
            Ok(Request::Copy(copy)) => match self.may_copy(copy, &stream) {
                Ok((copy, permit)) => return run(&copy.name, shim::copy(&copy, stream), permit),
                Err((kind, message)) => Response::Error { kind, message },
            },
            Ok(request) => self.answer(request, &stream).await,
            Err(error) => failed(format!("this is not a request: {error}")),
        };
        let mut answer = serde_json::to_vec(&response).unwrap_or_default();
        answer.push(b'\n');
        let _ = timeout(PATIENCE, stream.write_all(&answer)).await;
    }

    /// Whether it can be run, and in which container.
    fn may_run(
        &self,
        mut exec: Exec,
        asker: &UnixStream,
    ) -> Result<(Exec, OwnedSemaphorePermit), (ErrorKind, String)> {
        if has_gone(asker) {
            return Err((ErrorKind::Failed, GONE.to_owned()));
        }
        exec.name = self.node.borrow().containers.running(&exec.name).map_err(refused)?;
        let permit = self.session()?;
        let asker = name_of(exec.asker);
        // Not its arguments, which may be secret.
        let program = exec.command.first().map(String::as_str).unwrap_or_default();
        let program: String = program.chars().take(LONGEST_PROGRAM).collect();
        eprintln!("<5>container {}: {asker} runs {program:?} in it", exec.name);
        Ok((exec, permit))
    }

    /// The same for files.
    fn may_copy(
        &self,
        mut copy: Copy,
        asker: &UnixStream,
    ) -> Result<(Copy, OwnedSemaphorePermit), (ErrorKind, String)> {
        if has_gone(asker) {
            return Err((ErrorKind::Failed, GONE.to_owned()));
        }
        // What carries files is no process of the container's, and does not stand still with these.
        copy.name = self.node.borrow().containers.alive(&copy.name).map_err(refused)?;
        let permit = self.session()?;
        let (asker, path): (_, String) =
            (name_of(copy.asker), copy.files.path().chars().take(LONGEST_PROGRAM).collect());
        let way = match copy.files {
            Files::From { .. } => "copies out of it",
            Files::Into { .. } => "copies into it, to",
        };
        eprintln!("<5>container {}: {asker} {way} {path:?}", copy.name);
        Ok((copy, permit))
    }

    fn session(&self) -> Result<OwnedSemaphorePermit, (ErrorKind, String)> {
        let too_many = format!("{MOST_SESSIONS} processes run by exec and cp already: end one of them first");
        self.sessions.clone().try_acquire_owned().map_err(|_| (ErrorKind::Busy, too_many))
    }

    async fn apply(
        &self,
        generation: u64,
        keys: &[String],
        settings: &Settings,
        asker: &UnixStream,
    ) -> Response {
        let mut started = self.started.subscribe();
        if timeout(START_PATIENCE, started.wait_for(|started| *started)).await.is_err() {
            return failed(
                "the node is still starting: what is committed is applied when that is over".to_owned(),
            );
        }
        let mut applier = self.applier.lock().await;
        if has_gone(asker) {
            return failed(GONE.to_owned());
        }
        Response::Apply(applier.apply(&self.node, generation, keys, settings).await)
    }

    fn update(&self, command: Command) -> Response {
        self.with_settings(|settings| self.updates.begin(command, settings))
    }

    fn with_settings(&self, begin: impl FnOnce(Settings) -> Result<(), Refused>) -> Response {
        let Some(settings) = self.applier.try_lock().ok().and_then(|applier| applier.applied().cloned())
        else {
            return failed("settings are being applied: try again when that is over".to_owned());
        };
        begin(settings).map_or_else(not_begun, |()| Response::Done)
    }

    /// Whether a container is not there, and may be when this agent has begun.
    fn is_to_come(&self, name: &str) -> bool {
        let containers = &self.node.borrow().containers;
        containers.status(name).is_none() && (!*self.started.borrow() || containers.is_wanted(name))
    }

    /// What is done with images by hand. Not before it is known what settings name: all else may be removed.
    async fn of_images(&self, what: ImageRequest) -> Response {
        if !*self.started.borrow() {
            return failed("the node is still starting: try again when that is over".to_owned());
        }
        let (uses, access) = {
            let containers = &self.node.borrow().containers;
            (containers.uses(), containers.access())
        };
        let done = match what {
            ImageRequest::List => self.images.list(uses).await.map(|images| Response::Images { images }),
            ImageRequest::Inspect(reference) => {
                let image = self.images.inspect(reference.as_str(), uses).await;
                image.map(|image| Response::Image(Box::new(image)))
            }
            ImageRequest::Pull(reference) => {
                self.images.pull(reference.as_str(), access).map(|()| Response::Done)
            }
            ImageRequest::Remove(reference) => {
                let removed = self.images.remove(reference.as_str(), uses).await;
                removed.map(|removed| Response::RemovedImages { removed })
            }
            ImageRequest::Prune { all } => {
                let removed = self.images.prune(all, uses).await;
                removed.map(|removed| Response::RemovedImages { removed })
            }
        };
        done.unwrap_or_else(|refused| match refused {
            images::Refused::Unknown(message) => Response::Error { kind: ErrorKind::NotFound, message },
            images::Refused::Conflict(message) => Response::Error { kind: ErrorKind::Conflict, message },
            images::Refused::Failed(message) => failed(message),
        })
    }

    async fn end(&self, request: &InitRequest) -> Response {
        if self.node.borrow_mut().bootstrap.puts_off(request) {
            return Response::Done;
        }
        match init::ask(request).await {
            Ok(_) => Response::Done,
            Err(error) => failed(format!("PID 1 does not answer: {error}")),
        }
    }

    async fn answer(&self, request: Request, asker: &UnixStream) -> Response {
        match request {
            Request::Apply { generation, keys, settings } => {
                self.apply(generation, &keys, &settings, asker).await
            }
            Request::Status => match init::status().await {
                Ok(status) => Response::Status(self.node.borrow_mut().status(&status)),
                Err(error) => failed(format!("PID 1 does not answer: {error}")),
            },
            Request::Services => match init::status().await {
                Ok(status) => Response::Services { services: status.services },
                Err(error) => failed(format!("PID 1 does not answer: {error}")),
            },
            Request::Containers => {
                Response::Containers { containers: self.node.borrow().containers.statuses() }
            }
            Request::ContainerStats => {
                Response::ContainerStats { containers: figures::container_stats(&self.node.borrow()) }
            }
            Request::Metrics => match init::status().await {
                Ok(status) => {
                    Response::Metrics(Box::new(figures::collect(&mut self.node.borrow_mut(), &status)))
                }
                Err(error) => failed(format!("PID 1 does not answer: {error}")),
            },
            Request::ContainerProcesses { name } => {
                let alive = self.node.borrow().containers.alive(&name);
                match alive.map_err(refused) {
                    Ok(name) => of_processes(&name).await,
                    Err((kind, message)) => Response::Error { kind, message },
                }
            }
            Request::InspectContainer { name } => {
                let node = self.node.borrow();
                match node.containers.inspect(&name) {
                    Ok(details) => Response::Container(Box::new(details)),
                    Err(refusal) => {
                        let (kind, message) = refused(refusal);
                        Response::Error { kind, message }
                    }
                }
            }
            // Who follows over a restart of the agent is not to take it for the container's end.
            Request::FollowContainerLogs { name, .. } if self.is_to_come(&name) => {
                failed(format!("{name} has not begun yet: try again when the node has started"))
            }
            Request::ContainerLogs { name, .. } | Request::FollowContainerLogs { name, .. }
                if self.node.borrow().containers.status(&name).is_none() =>
            {
                let message = self.node.borrow().containers.unknown(&name);
                Response::Error { kind: ErrorKind::NotFound, message }
            }
            Request::FollowContainerLogs { name, from } => {
                let path = Places::of(&self.node.borrow().containers.instance(&name)).log;
                let position = match from {
                    LogFrom::Start(start) => log::position(&path, start),
                    LogFrom::After(position) => position,
                };
                Response::NewLogs(log::after(&path, position, LARGEST_PIECE))
            }
            Request::ContainerLogs { name, start } => {
                let path = Places::of(&self.node.borrow().containers.instance(&name)).log;
                let text = log::read(&path, start, LARGEST_LOG);
                Response::Logs { text: log::newest(&text, LARGEST_LINE - WRAPPING).to_owned() }
            }
            Request::ContainerAction { .. } if has_gone(asker) => failed(GONE.to_owned()),
            Request::ContainerAction { name, action } => {
                match self.node.borrow_mut().containers.act(&name, action) {
                    Ok(()) => Response::Done,
                    Err(error) => {
                        let (kind, message) = refused(error);
                        Response::Error { kind, message }
                    }
                }
            }
            Request::Pulls => Response::Pulls { pulls: progress::all() },
            Request::Images { .. } if has_gone(asker) => failed(GONE.to_owned()),
            Request::Images { what } => self.of_images(what).await,
            // Answered by what runs it.
            Request::Exec(_) | Request::Copy(_) => {
                failed("a process is run on a connection of its own".to_owned())
            }
            Request::UpdateStatus => match self.updates.status() {
                Ok(Some(status)) => Response::Updates { status: Box::new(status) },
                Ok(None) => Response::Error {
                    kind: ErrorKind::NotFound,
                    message: "Update status is uninitialized, refresh-updates to initialize it".to_owned(),
                },
                Err(refused) => not_begun(refused),
            },
            Request::RefreshUpdates => self.with_settings(|settings| self.updates.refresh(settings)),
            Request::PrepareUpdate => self.update(Command::Prepare),
            Request::ActivateUpdate => self.update(Command::Activate),
            Request::DeactivateUpdate => self.update(Command::Deactivate),
            Request::RollbackUpdate => self.update(Command::Rollback),
            Request::PlanUpdate => self.update(Command::Plan),
            Request::VerifyUpdate => self.update(Command::Verify),
            Request::UpdateProgress => Response::UpdateProgress { progress: self.updates.progress() },
            Request::UpdateHistory => Response::UpdateHistory { outcomes: self.updates.history() },
            Request::Reboot | Request::PowerOff if has_gone(asker) => failed(GONE.to_owned()),
            Request::Reboot => self.end(&InitRequest::Reboot).await,
            Request::PowerOff => self.end(&InitRequest::PowerOff).await,
        }
    }
}

/// The processes of a container that runs.
async fn of_processes(name: &str) -> Response {
    let group = Places::of(name).group.join("payload");
    let listed = tokio::task::spawn_blocking(move || processes::list(&group));
    match timeout(PATIENCE, listed).await {
        Ok(Ok(found)) => Response::ContainerProcesses(found),
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed(format!(
            "a process of {name} kept the node waiting for {} s: it is not told",
            PATIENCE.as_secs()
        )),
    }
}

const GONE: &str = "whoever asked for this waits no longer";

/// Whether nobody waits for the answer. PID 1 keeps the socket over restarts of this process: a request may have lain there for
/// longer than its sender was willing to wait, and is not to be acted on then.
fn has_gone(asker: &UnixStream) -> bool {
    let mut asked = [PollFd::new(asker.as_fd(), PollFlags::empty())];
    // Told without being asked for; not when only the sender's direction is closed.
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut asked, PollTimeout::ZERO).is_ok()
        && asked[0].revents().is_some_and(|events| events.intersects(gone))
}

/// Who asked for something, for the log.
fn name_of(asker: Option<u32>) -> String {
    asker.map_or("the host".to_owned(), |uid| format!("uid {uid}"))
}

/// Within a `LocalSet`.
fn run(name: &str, shim: std::io::Result<tokio::process::Child>, permit: OwnedSemaphorePermit) {
    match shim {
        Ok(mut child) => {
            tokio::task::spawn_local(async move {
                let _ = child.wait().await;
                drop(permit);
            });
        }
        Err(error) => eprintln!("<3>container {name}: cannot start {}: {error}", shim::SHIM),
    }
}

fn refused(refused: manager::Refused) -> (ErrorKind, String) {
    match refused {
        manager::Refused::Unknown(message) => (ErrorKind::NotFound, message),
        manager::Refused::Conflict(message) => (ErrorKind::Conflict, message),
    }
}

fn not_begun(refused: Refused) -> Response {
    let (kind, message) = match refused {
        Refused::Busy => {
            (ErrorKind::Busy, "an update command is running: try again when it is over".to_owned())
        }
        Refused::Nothing(message) => (ErrorKind::NotFound, message),
        Refused::Conflict(message) => (ErrorKind::Conflict, message),
    };
    Response::Error { kind, message }
}

fn failed(message: String) -> Response {
    Response::Error { kind: ErrorKind::Failed, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver::agent::LogPosition;
    use tokio::task::LocalSet;

    #[tokio::test]
    async fn who_has_hung_up_is_known_and_who_only_listens_is_not_taken_for_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!has_gone(&ours));
        let theirs = theirs.into_std().unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!has_gone(&ours));
        drop(theirs);
        assert!(has_gone(&ours));
    }

    #[tokio::test]
    async fn who_follows_a_log_over_a_restart_is_not_told_that_its_container_is_gone() {
        let agent = Agent::default();
        let (asker, _theirs) = UnixStream::pair().unwrap();
        let ask = async || {
            let from = LogFrom::After(LogPosition::default());
            let follow = Request::FollowContainerLogs { name: "web".to_owned(), from };
            match agent.answer(follow, &asker).await {
                Response::Error { kind, .. } => kind,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ask().await, ErrorKind::Failed);
        agent.start_is_over();
        assert_eq!(ask().await, ErrorKind::NotFound);
    }

    /// Nothing to do, so that the test touches nothing: no step depends on the key.
    #[tokio::test]
    async fn an_apply_waits_for_the_start_and_is_not_done_for_nobody() {
        let apply = async {
            let agent = Agent::default();
            let nothing = Settings::default();
            let keys = ["settings.nonesuch".to_owned()];
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut early = Box::pin(agent.apply(1, &keys, &nothing, &ours));
            assert!(timeout(Duration::from_millis(20), &mut early).await.is_err());
            agent.start_is_over();
            assert!(matches!(early.await, Response::Apply(outcome) if outcome.generation == 1));
            drop(theirs);
            assert_eq!(agent.apply(2, &keys, &nothing, &ours).await, failed(GONE.to_owned()));
        };
        LocalSet::new().run_until(apply).await;
    }
}
