//! Clients that mean no good, or have gone wrong.

use apiserver::client::{Endpoint, request_blocking};
use hyper::Method;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::harness::{Server, signal};

#[test]
fn a_body_of_ten_megabytes_is_refused_and_the_server_answers_on() {
    let server = Server::start();
    let body = format!("{{\"motd\": \"{}\"}}", "x".repeat(10 << 20));
    // Told its length, and not told it.
    for head in [format!("content-length: {}", body.len()), "transfer-encoding: chunked".to_owned()] {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "PATCH /settings HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n").unwrap();
        if head.starts_with("transfer") {
            let _ = write!(stream, "{:x}\r\n", body.len());
        }
        let _ = stream.write_all(body.as_bytes());
        let mut answer = [0; 64];
        let read = stream.read(&mut answer).unwrap_or(0);
        assert!(
            String::from_utf8_lossy(&answer[..read]).starts_with("HTTP/1.1 413"),
            "{head}: {}",
            String::from_utf8_lossy(&answer[..read])
        );
    }
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
}

#[test]
fn half_a_request_is_given_up_and_the_server_answers_meanwhile() {
    let server = Server::start();
    let mut half = UnixStream::connect(server.socket()).unwrap();
    half.write_all(b"GET /settings HTTP/1.1\r\nhos").unwrap();
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
    half.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).expect("the connection was not closed");
}

#[test]
fn a_thousand_connections_at_once_do_not_keep_others_out() {
    let server = Server::start();
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(UnixStream::connect(server.socket()).unwrap());
    }
    let begun = Instant::now();
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn one_connection_too_many_is_told_so_and_idle_ones_make_room() {
    let server = Server::start();
    let idle: Vec<UnixStream> = (0..1024).map(|_| UnixStream::connect(server.socket()).unwrap()).collect();
    for _ in 0..50 {
        let answer = server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
        assert_eq!((answer.status, answer.text().contains("too many connections")), (503, true));
    }
    // The server gives idle connections up, not the clients.
    let deadline = Instant::now() + Duration::from_secs(15);
    while server.send(Method::GET, "/settings", "").status != 200 {
        assert!(Instant::now() < deadline, "idle connections still keep others out");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(idle);
}

#[test]
fn the_client_gets_to_read_why_its_ten_megabytes_were_refused() {
    let server = Server::start();
    let endpoint = Endpoint::Unix(server.socket());
    for _ in 0..20 {
        let body = vec![b' '; 10 << 20];
        let answer =
            request_blocking(&endpoint, Method::PATCH, "/settings", body, Duration::from_secs(20)).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (413, "the body is larger than 2097152 bytes"));
    }
}

/// Its service has 64 MiB; so has whoever wants to make it exceed them.
#[test]
fn bodies_made_to_fill_the_memory_do_not() {
    let server = Server::start();
    let held = 2_000_000;
    for body in [
        format!("[{}0]", "{\"\":0},".repeat(held / 7)),
        format!("{{{}\"a\":0}}", (0..held / 12).map(|n| format!("\"k{n}\":0,")).collect::<String>()),
        "[".repeat(held),
        format!("{{\"{}\":0}}", "x".repeat(held)),
        // JSON in a string of JSON.
        format!("{{\"request_payload\": [\"containers=[{}0]\"]}}", "{\\\"\\\":0},".repeat(held / 9)),
    ] {
        let uri = if body.contains("request_payload") { "/settings/keypair" } else { "/settings" };
        let answer = server.send(Method::PATCH, uri, &body);
        assert!(
            answer.status == 400 && answer.body.len() < 8192,
            "{}: {} bytes",
            answer.status,
            answer.body.len()
        );
    }
    // Bodies that are nearly there, on many connections.
    let mut waiting = Vec::new();
    let head = format!("PATCH /settings HTTP/1.1\r\nhost: a\r\ncontent-length: {held}\r\n\r\n");
    for _ in 0..200 {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // Refused ones are closed in the middle.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b' '; held - 1]));
        waiting.push(stream);
    }
    // Meanwhile small requests are served.
    assert_eq!(server.send(Method::PATCH, "/settings", r#"{"motd": "still here"}"#).status, 204);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
    assert!(server.peak_memory_kib() < 48 << 10, "{} KiB", server.peak_memory_kib());
    drop(waiting);
    // What they held is given back.
    let deadline = Instant::now() + Duration::from_secs(5);
    let large = format!("{{\"motd\": \"x\"{}}}", " ".repeat(1_900_000));
    while server.send(Method::PATCH, "/settings", &large).status != 204 {
        assert!(Instant::now() < deadline, "large bodies are still refused");
    }
}

#[test]
fn answers_that_nobody_reads_do_not_fill_the_memory() {
    let server = Server::start();
    let env: serde_json::Map<_, _> = (0..4).map(|n| (format!("A{n}"), json!("x".repeat(60_000)))).collect();
    let web = json!({"containers": {"web": {"image": "a", "env": env}}});
    assert_eq!(server.send(Method::PATCH, "/settings", &web.to_string()).status, 204);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
    let mut waiting = Vec::new();
    for _ in 0..300 {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        stream.write_all(b"GET /settings HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        waiting.push(stream);
    }
    // Small answers are given meanwhile, and large ones refused.
    assert_eq!(server.get("/settings?prefix=motd"), json!({"motd": "Welcome"}));
    let refused = server.send(Method::GET, "/settings", "");
    assert!(refused.status == 503 && refused.text().contains("try again"), "{}", refused.status);
    assert!(server.peak_memory_kib() < 48 << 10, "{} KiB", server.peak_memory_kib());
    // The kernel holds little of them, as that is the service's memory too.
    drop(waiting.split_off(1));
    signal(&server, "-STOP");
    waiting[0].set_nonblocking(true).unwrap();
    let mut held = Vec::new();
    let _ = waiting[0].read_to_end(&mut held);
    assert!(held.len() < 32 << 10, "the kernel held {} bytes", held.len());
    signal(&server, "-CONT");
    waiting[0].set_nonblocking(false).unwrap();
    // Who reads its answer gets it whole, and what it held is given back.
    let mut answer = vec![0; 240_000 - held.len()];
    waiting[0].read_exact(&mut answer).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.send(Method::GET, "/settings", "").status != 200 {
        assert!(Instant::now() < deadline, "large answers are still refused");
    }
}

#[test]
fn settings_cannot_grow_beyond_what_a_restart_can_read() {
    let mut server = Server::start();
    let mut accepted = 0;
    for number in 0..10 {
        let env = json!({(format!("A{number}")): "x".repeat(60_000)});
        let web = json!({"containers": {"web": {"image": "a", "env": env}}});
        assert_eq!(server.send(Method::PATCH, "/settings?tx=t", &web.to_string()).status, 204);
        let answer = server.send(Method::POST, "/tx/commit?tx=t", "");
        if answer.status == 200 {
            accepted += 1;
        } else {
            assert!(answer.status == 400 && answer.text().contains("262144"), "{}", answer.text());
            server.send(Method::DELETE, "/tx?tx=t", "");
        }
    }
    assert_eq!(accepted, 4);
    server.kill_and_restart();
    assert_eq!(server.get("/settings")["containers"]["web"]["env"].as_object().unwrap().len(), 4);
}
