//! The agent's own socket: who may ask, and what is answered.

use apiserver::agent::{ErrorKind, LARGEST_LINE, Request, Response};
use init_control::Request as InitRequest;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::apply::Applier;
use crate::container::log;
use crate::container::record::Places;
use crate::init;
use crate::node::Node;

/// root, and the API server.
const ADMITTED: [u32; 2] = [0, 274];
const MOST_CONNECTIONS: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(10);
const STOPPING: Duration = Duration::from_secs(2);
/// Bytes of a log that are sent at once.
const LARGEST_LOG: u64 = 1 << 20;

#[derive(Clone)]
pub struct Agent {
    pub node: Rc<RefCell<Node>>,
    pub applier: Rc<RefCell<Applier>>,
    free: Arc<Semaphore>,
}

impl Default for Agent {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(MOST_CONNECTIONS as usize));
        Self { node: Rc::default(), applier: Rc::default(), free }
    }
}

impl Agent {
    /// Lets requests that are under way finish, for 2 seconds; further ones are not answered. Who asked for a restart is to know
    /// that it begins, though it ends this process too.
    pub async fn stop(&self) {
        let _ = tokio::time::timeout(STOPPING, self.free.acquire_many(MOST_CONNECTIONS)).await;
    }

    /// Answers for ever. Within a `LocalSet`.
    pub async fn serve(self, listener: UnixListener) {
        loop {
            let Ok(permit) = self.free.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
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
        let (reader, mut writer) = stream.split();
        let mut reader = BufReader::new(reader.take(LARGEST_LINE));
        if !matches!(tokio::time::timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await, Ok(Ok(count)) if count > 0)
        {
            return;
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => self.answer(request).await,
            Err(error) => failed(format!("this is not a request: {error}")),
        };
        let mut answer = serde_json::to_vec(&response).unwrap_or_default();
        answer.push(b'\n');
        let _ = tokio::time::timeout(PATIENCE, writer.write_all(&answer)).await;
    }

    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Apply { generation, settings, .. } => {
                Response::Apply(self.applier.borrow_mut().apply(&self.node, generation, &settings))
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
            Request::ContainerLogs { name, lines } => {
                if self.node.borrow().containers.status(&name).is_none() {
                    return Response::Error {
                        kind: ErrorKind::NotFound,
                        message: format!("there is no container {name:?}: GET /containers lists them"),
                    };
                }
                Response::Logs { text: log::read(&Places::of(&name).log, lines, LARGEST_LOG) }
            }
            Request::Reboot => match init::ask(&InitRequest::Reboot).await {
                Ok(_) => Response::Done,
                Err(error) => failed(format!("PID 1 does not answer: {error}")),
            },
        }
    }
}

fn failed(message: String) -> Response {
    Response::Error { kind: ErrorKind::Failed, message }
}
