//! Containers' logs, as the agent hands them on.

use apiserver::agent::{
    ContainerAction, ErrorKind, LogFrom, LogPosition, LogStart, NewLogs, Request, Response,
};
use hyper::Method;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::agent::{agent, answer};
use crate::harness::Server;

#[test]
fn a_log_that_json_makes_large_comes_whole() {
    let server = Server::start();
    let text = "\u{1}".repeat(1 << 20);
    agent(&server, move |request| {
        let Request::ContainerLogs { name, start } = request else { panic!("asked for {request:?}") };
        assert_eq!((name.as_str(), start), ("web", LogStart { lines: Some(5), since_ms: None }));
        answer(&Response::Logs { text: text.clone() })
    });
    let log = server.send(Method::GET, "/containers/web/logs?lines=5", "");
    assert_eq!((log.status, log.body.len()), (200, 1 << 20));
}

#[test]
fn an_answer_of_no_use_is_not_taken_for_none() {
    for (given, expected) in [
        ("x".repeat(9 << 20), "longer than 8 MiB"),
        ("{\"result\": \"logs\"".to_owned(), "cut short"),
        ("{\"result\": \"of another version\"}\n".to_owned(), "unknown variant"),
    ] {
        let server = Server::start();
        agent(&server, move |_| given.clone());
        let log = server.send(Method::GET, "/containers/web/logs", "");
        assert!(log.status == 500 && log.text().contains(expected), "{} {}", log.status, log.text());
        assert!(!log.text().contains("does not answer"), "{}", log.text());
    }
}

#[test]
fn how_a_container_was_started_is_told_but_not_to_who_only_reads() {
    let server = Server::start();
    agent(&server, |request| {
        let Request::InspectContainer { name } = request else { panic!("asked for {request:?}") };
        let message = format!("there is no container {name:?}: there are web");
        answer(&Response::Error { kind: ErrorKind::NotFound, message })
    });
    let unknown = server.client(&["container", "inspect", "wbe"]);
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(unknown.status.code() == Some(1) && said.contains("there are web"), "{unknown:?}");
    let refused = server.send_as_reader(Method::GET, "/containers/web/inspect", "");
    assert!(refused.status == 403 && refused.text().contains("may be secret"), "{}", refused.text());
}

#[test]
fn containers_are_stopped_and_started_by_hand_and_what_refuses_says_why() {
    let server = Server::start();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    agent(&server, move |request| {
        let Request::ContainerAction { name, action } = request else { panic!("asked for {request:?}") };
        let refused = |kind, message: &str| Response::Error { kind, message: message.to_owned() };
        let response = match name.as_str() {
            "web" => Response::Done,
            "bootstrap-containers.a" => refused(ErrorKind::Conflict, "at a boot only"),
            _ => refused(ErrorKind::NotFound, "there are web"),
        };
        heard.lock().unwrap().push((name, action));
        answer(&response)
    });
    for (uri, status, text) in [
        ("/containers/web/stop", 204, ""),
        ("/containers/web/start", 204, ""),
        ("/containers/web/restart", 204, ""),
        ("/containers/web/pause", 204, ""),
        ("/containers/web/unpause", 204, ""),
        ("/containers/bootstrap-containers.a/stop", 409, "at a boot only"),
        ("/containers/wbe/stop", 404, "there are web"),
        ("/containers/web/logs", 405, "it has GET"),
        ("/containers/web/end", 404, "containers/NAME/stop"),
    ] {
        let answer = server.send(Method::POST, uri, "");
        let said = answer.text();
        assert!(answer.status == status && said.contains(text), "{uri}: {} {said}", answer.status);
    }
    let asked = asked.lock().unwrap();
    let of_web: Vec<_> = asked.iter().filter(|(name, _)| name == "web").map(|(_, action)| *action).collect();
    use ContainerAction::{Pause, Restart, Start, Stop, Unpause};
    assert_eq!(of_web, [Stop, Start, Restart, Pause, Unpause]);
    // What is no action is not asked of the agent.
    assert_eq!(asked.len(), 7);
}

/// The agent has three pieces, of which one comes later, and is gone for a moment; then the container is gone.
#[test]
fn who_follows_a_log_is_told_all_of_it_until_the_container_is_gone() {
    let server = Server::start();
    let asked = AtomicUsize::new(1);
    agent(&server, move |request| {
        let Request::FollowContainerLogs { name, from } = request else { panic!("asked for {request:?}") };
        let at = |offset| LogPosition { inode: 1, made_ns: 2, offset };
        let new = |text: &str, offset, has_more| {
            answer(&Response::NewLogs(NewLogs { text: text.to_owned(), next: at(offset), has_more }))
        };
        if name != "web" {
            let message = "there are web".to_owned();
            return answer(&Response::Error { kind: ErrorKind::NotFound, message });
        }
        match (from, asked.fetch_add(1, Ordering::SeqCst)) {
            (LogFrom::Start(LogStart { lines: Some(2), since_ms: Some(1500) }), 1) => new("a\n", 2, true),
            (LogFrom::After(place), 2) if place == at(2) => new("b\n", 4, false),
            (LogFrom::After(place), 3) if place == at(4) => "no answer at all\n".to_owned(),
            (LogFrom::After(place), 4) if place == at(4) => new("c\n", 6, false),
            (_, 5) => {
                answer(&Response::Error { kind: ErrorKind::NotFound, message: "there are none".to_owned() })
            }
            (from, count) => panic!("{from:?} {count}"),
        }
    });
    let since = "1970-01-01T00:00:01.5Z";
    let output = server.client(&["container", "logs", "web", "--follow", "--tail", "2", "--since", since]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a\nb\nc\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    for (arguments, said) in [
        (&["container", "logs", "wbe", "--follow"][..], "there are web"),
        (
            &["container", "logs", "web", "--follow", "--since", "noon"],
            "\"noon\" is neither a time before now",
        ),
        (&["container", "logs", "web", "--since", "noon"], "\"noon\" is neither a time before now"),
    ] {
        let output = server.client(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && told.contains(said), "{arguments:?}: {output:?}");
    }
    let refused = server.send_as_reader(Method::GET, "/containers/web/logs?follow=true", "");
    assert_eq!(refused.status, 403, "{}", refused.text());
    let refused = server.send(Method::GET, "/containers/web/logs?follow=yes", "");
    assert_eq!(refused.status, 400, "{}", refused.text());
}

#[test]
fn there_are_places_for_16_who_follow_logs() {
    let server = Server::start();
    agent(&server, |_| {
        let next = LogPosition::default();
        answer(&Response::NewLogs(NewLogs { text: String::new(), next, has_more: false }))
    });
    let follow = || {
        let mut stream = BufReader::new(UnixStream::connect(server.socket()).unwrap());
        let ask = b"GET /containers/web/logs?follow=true HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.get_mut().write_all(ask).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        (stream, line)
    };
    let mut all: Vec<_> = (0..16).map(|_| follow()).collect();
    assert!(all.iter().all(|(_, line)| line.starts_with("HTTP/1.1 200")), "{:?}", all[15].1);
    assert!(follow().1.starts_with("HTTP/1.1 503"));
    let refused = server.client(&["container", "logs", "web", "--follow"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("16 clients follow logs already"),
        "{refused:?}"
    );
    // One that goes makes room.
    all.pop();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !follow().1.starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "the place of one that is gone stays taken");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_containers_use_is_told_of_all_and_of_one_that_runs() {
    let server = Server::start();
    let looks = AtomicU64::new(0);
    agent(&server, move |request| match request {
        Request::ContainerStats => {
            let look = looks.fetch_add(1, Ordering::SeqCst);
            let web = json!({
                "name": "web", "at-ms": 1000 * look, "cpu-us": 500_000 * look, "memory-bytes": 1 << 20, "memory-peak-bytes": 3 << 20,
                "memory-limit-bytes": null, "memory-high-events": 4, "oom-kills": 5, "pids": 6, "pids-limit": 1024,
                "io-read-bytes": 7, "io-written-bytes": 8
            });
            answer(&Response::ContainerStats { containers: vec![serde_json::from_value(web).unwrap()] })
        }
        Request::Containers => {
            let db = json!({
                "name": "db", "image": "a", "state": "exited", "restarts": 0, "delays-ms": [], "essential": false
            });
            answer(&Response::Containers { containers: vec![serde_json::from_value(db).unwrap()] })
        }
        request => panic!("asked for {request:?}"),
    });
    let shown = server.client(&["container", "stats"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row: Vec<&str> = shown.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    let row = row.join(" ");
    assert!(
        row.starts_with("web 50.0 % ") && row.contains(" 1.0 MiB 3.0 MiB - 4 5 6/1024 7 B 8 B"),
        "{shown}"
    );
    let numbers = server.client(&["container", "stats", "web", "--json"]);
    let numbers: Value = serde_json::from_slice(&numbers.stdout).unwrap();
    assert_eq!((&numbers[0]["name"], &numbers[0]["oom-kills"]), (&json!("web"), &json!(5)));
    for (name, said) in [("db", "db does not run"), ("wbe", "there is no container \"wbe\": there are db")] {
        let refused = server.client(&["container", "stats", name]);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && told.contains(said), "{refused:?}");
    }
    // Who only reads is told too: there is no secret in it.
    assert_eq!(server.send_as_reader(Method::GET, "/containers/stats", "").status, 200);
    assert_eq!(server.send(Method::POST, "/containers/stats", "").status, 405);
}
