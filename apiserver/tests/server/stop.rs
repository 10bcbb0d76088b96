//! What clients get when the server is told to end.

use apiserver::agent::Response;
use hyper::Method;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::agent::{agent, answer};
use crate::apply::applier;
use crate::harness::{Server, signal};

#[test]
fn a_request_that_is_under_way_is_answered_before_the_server_ends() {
    let mut server = Server::start();
    let requests = applier(&server, Duration::from_millis(700), None);
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    let idle = UnixStream::connect(server.socket()).unwrap();
    let (answer, ended) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| server.send(Method::POST, "/tx/commit_and_apply", ""));
        requests.recv().unwrap();
        signal(&server, "-TERM");
        (asking.join().unwrap(), Instant::now())
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(server.process.wait().unwrap().success());
    assert!(ended.elapsed() < Duration::from_secs(2), "an idle connection held up the end");
    drop(idle);
}

#[test]
fn who_asked_for_a_restart_is_answered_before_the_server_ends() {
    let mut server = Server::start();
    let (asked, requests) = channel();
    agent(&server, move |request| {
        asked.send(request).unwrap();
        // PID 1 stops the services at once; the agent's answer comes after that.
        std::thread::sleep(Duration::from_secs(6));
        answer(&Response::Done)
    });
    std::thread::scope(|scope| {
        let client = scope.spawn(|| server.client(&["reboot"]));
        requests.recv().unwrap();
        signal(&server, "-TERM");
        let client = client.join().unwrap();
        assert!(client.status.success() && client.stdout == b"Rebooting.\n", "{client:?}");
    });
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn a_request_that_was_sent_but_not_read_is_answered_before_the_server_ends() {
    let mut server = Server::start();
    let mut streams: Vec<UnixStream> =
        (0..8).map(|_| UnixStream::connect(server.socket()).unwrap()).collect();
    // All of them are accepted once a later one is answered.
    assert_eq!(server.send(Method::GET, "/settings", "").status, 200);
    signal(&server, "-STOP");
    for stream in &mut streams {
        stream.write_all(b"GET /settings HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    }
    signal(&server, "-TERM");
    signal(&server, "-CONT");
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    assert!(server.process.wait().unwrap().success());
}
