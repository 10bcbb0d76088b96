//! `GET /events`: what a listener gets.

use apiserver::agent::{
    ApplyOutcome, ApplyStep, ContainerKind, ContainerState, ContainerStatus, Request, Response,
};
use hyper::Method;
use serde_json::{Value, json};
use settings::Step;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::agent::{agent, answer};
use crate::harness::{Server, signal};

/// A stream; without `read` nothing is taken of it.
struct Listener {
    stream: BufReader<UnixStream>,
    /// Of the last event.
    id: String,
}

impl Listener {
    fn open(socket: PathBuf, last: Option<&str>) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let last = last.map(|last| format!("last-event-id: {last}\r\n")).unwrap_or_default();
        write!(stream, "GET /events HTTP/1.1\r\nhost: a\r\n{last}\r\n").unwrap();
        Self { stream: BufReader::new(stream), id: String::new() }
    }

    /// Of a server that has begun to answer.
    fn begun(socket: PathBuf, last: Option<&str>) -> Self {
        let mut listener = Self::open(socket, last);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(listener.stream.read_line(&mut head).unwrap(), 0, "{head}");
        }
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"),
            "{head}"
        );
        listener
    }

    /// Kind and data of the next event; none when the stream has ended.
    fn next(&mut self) -> Option<(String, Value)> {
        let (mut kind, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            if self.stream.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The lines of HTTP's chunks begin with none of these.
            if let Some(id) = line.strip_prefix("id: ") {
                self.id = id.trim().to_owned();
            } else if let Some(name) = line.strip_prefix("event: ") {
                kind = name.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((kind, serde_json::from_str(data).unwrap()));
            }
        }
    }

    fn motd(&mut self) -> Value {
        let (kind, data) = self.next().unwrap();
        assert_eq!(kind, "commit");
        data["generation"].clone()
    }
}

fn commit(server: &Server, motd: &str) {
    server.send(Method::PATCH, "/settings", &json!({"motd": motd}).to_string());
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
}

#[test]
fn commits_and_what_became_of_applying_them() {
    let server = Server::start();
    let mut listener = Listener::begun(server.socket(), None);
    let mut reader = Listener::begun(server.read_socket(), None);
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    server.send(Method::POST, "/tx/commit_and_apply", "");
    let committed = json!({"generation": 1, "transaction": "default", "keys": ["settings.motd"]});
    for listener in [&mut listener, &mut reader] {
        assert_eq!(listener.next().unwrap(), ("commit".to_owned(), committed.clone()));
        let (kind, applied) = listener.next().unwrap();
        assert!(
            kind == "apply" && applied["error"].as_str().unwrap().contains("does not answer"),
            "{applied}"
        );
    }
    agent(&server, |request| {
        answer(&match request {
            Request::Apply { generation, .. } => {
                let steps = vec![ApplyStep::new(Step::Motd, Some("the disk is full".to_owned()), false)];
                Response::Apply(ApplyOutcome { generation, steps })
            }
            _ => Response::Done,
        })
    });
    server.send(Method::POST, "/tx/apply", "");
    let steps = json!([{
        "name": "motd", "error": "the disk is full", "files": ["/run/etc/motd"], "services": [], "again": false
    }]);
    let applied = json!({"generation": 1, "error": null, "steps": steps});
    assert_eq!(listener.next().unwrap(), ("apply".to_owned(), applied));
    // The same again is no commit.
    commit(&server, "x");
    commit(&server, "y");
    assert_eq!(listener.motd(), 2);
}

#[test]
fn who_comes_again_goes_on_where_it_was() {
    let mut server = Server::start();
    let mut first = Listener::begun(server.socket(), None);
    (1..=3).for_each(|number| commit(&server, &number.to_string()));
    assert_eq!(first.motd(), 1);
    let id = first.id.clone();
    drop(first);
    let mut again = Listener::begun(server.socket(), Some(&id));
    assert_eq!((again.motd(), again.motd()), (json!(2), json!(3)));
    // Who names none gets what comes.
    let mut new = Listener::begun(server.socket(), None);
    commit(&server, "4");
    assert_eq!((new.motd(), again.motd()), (json!(4), json!(4)));
    // Another process does not know what there was.
    server.kill_and_restart();
    commit(&server, "5");
    let mut later = Listener::begun(server.socket(), Some(&id));
    assert_eq!(later.next().unwrap(), ("lost".to_owned(), json!({"count": null})));
    assert_eq!(later.motd(), 5);
}

#[test]
fn a_listener_that_reads_too_slowly_is_told_what_it_lost_and_holds_up_nobody() {
    let server = Server::start();
    let mut slow = Listener::begun(server.socket(), None);
    let env: serde_json::Map<_, _> = (0..200).map(|n| (format!("A{n}"), json!("x"))).collect();
    for number in 0..300 {
        // Keys of several kilobytes in every event.
        let mut env = env.clone();
        env.values_mut().for_each(|value| *value = json!(number.to_string()));
        let containers = json!({"containers": {"web": {"image": "a", "env": env}}});
        server.send(Method::PATCH, "/settings", &containers.to_string());
        assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
    }
    let (mut commits, mut lost) = (0, 0);
    while commits + lost < 300 {
        let (kind, data) = slow.next().unwrap();
        match kind.as_str() {
            "lost" => lost += data["count"].as_u64().unwrap(),
            _ => commits += 1,
        }
    }
    assert!(commits > 10 && lost > 100 && commits + lost == 300, "{commits} {lost}");
    assert!(server.peak_memory_kib() < 32 << 10, "{} KiB", server.peak_memory_kib());
}

#[test]
fn containers_are_looked_at_only_while_somebody_listens() {
    let server = Server::start();
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    agent(&server, move |request| {
        answer(&match request {
            Request::Containers => {
                let containers = match count.fetch_add(1, Ordering::SeqCst) {
                    0 => Vec::new(),
                    _ => vec![running("web")],
                };
                Response::Containers { containers }
            }
            Request::Services => Response::Services { services: vec![crate::model::host_agent()] },
            other => panic!("asked for {other:?}"),
        })
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let begun = Instant::now();
    let mut listeners: Vec<Listener> = (0..4).map(|_| Listener::begun(server.socket(), None)).collect();
    let came = json!({"name": "web", "old": null, "new": "running", "restarts": 0, "exit-code": null, "error": null, "health": null});
    for listener in &mut listeners {
        assert_eq!(listener.next().unwrap(), ("container".to_owned(), came.clone()));
    }
    std::thread::sleep(Duration::from_secs(2));
    let most = u32::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    assert!(asked.load(Ordering::SeqCst) <= most, "{asked:?} times in {:?}", begun.elapsed());
    drop(listeners);
    std::thread::sleep(Duration::from_millis(1500));
    let after = asked.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(asked.load(Ordering::SeqCst), after);
}

fn running(name: &str) -> ContainerStatus {
    ContainerStatus {
        name: name.to_owned(),
        kind: ContainerKind::Container,
        superpowered: false,
        image: "a".to_owned(),
        state: ContainerState::Running,
        pid: Some(1),
        exit_code: None,
        restarts: 0,
        delay_ms: None,
        delays_ms: Vec::new(),
        error: None,
        essential: false,
        started_at_ms: Some(1),
        health: None,
        waits_for: None,
        next_run_at: None,
        update: None,
        replica_of: None,
        runs_once: false,
        addresses: Vec::new(),
        pull: None,
        user_namespace: None,
    }
}

#[test]
fn there_are_places_for_32_and_readers_leave_some() {
    let server = Server::start();
    let refused = |socket: PathBuf| {
        let mut text = String::new();
        let mut listener = Listener::open(socket, None);
        while !text.contains("listen to events already") {
            assert_ne!(listener.stream.read_line(&mut text).unwrap(), 0, "{text}");
        }
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    };
    let readers: Vec<Listener> = (0..16).map(|_| Listener::begun(server.read_socket(), None)).collect();
    refused(server.read_socket());
    let others: Vec<Listener> = (0..16).map(|_| Listener::begun(server.socket(), None)).collect();
    refused(server.socket());
    drop((readers, others));
    // Those that went make room.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mut listener = Listener::open(server.read_socket(), None);
        let mut line = String::new();
        listener.stream.read_line(&mut line).unwrap();
        if line.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < deadline, "{line}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stream_ends_with_the_server() {
    let mut server = Server::start();
    let mut listener = Listener::begun(server.socket(), None);
    let (ended, end) = mpsc::channel();
    commit(&server, "x");
    assert_eq!(listener.motd(), 1);
    signal(&server, "-TERM");
    std::thread::spawn(move || {
        let mut rest = String::new();
        let _ = ended.send(listener.stream.read_to_string(&mut rest).map(|_| rest));
    });
    // In order: with HTTP's last chunk.
    let rest = end.recv_timeout(Duration::from_secs(3)).unwrap().unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest:?}");
    assert!(server.process.wait().unwrap().success());
}
