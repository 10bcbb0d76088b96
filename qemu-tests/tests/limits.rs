//! Requests that no client would send. The node keeps answering.

use qemu_tests::{Config, Node, Wire};
use std::time::{Duration, Instant};

#[test]
fn what_no_client_would_send() {
    let node = Node::boot(Config::direct());
    a_body_of_ten_megabytes(&node);
    a_body_without_an_end(&node);
    half_a_request(&node);
    what_is_not_http(&node);
    a_thousand_connections(&node);
}

#[track_caller]
fn still_answers(node: &Node) {
    let asked = Instant::now();
    node.get("/os");
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?} to answer", asked.elapsed());
}

fn a_body_of_ten_megabytes(node: &Node) {
    let body = format!("{{\"motd\": \"{}\"}}", "a".repeat(10 << 20));
    let mut wire = Wire::open(node);
    let head = format!("PATCH /settings HTTP/1.1\r\nhost: node\r\ncontent-length: {}\r\n\r\n", body.len());
    wire.send(head.as_bytes());
    wire.send(body.as_bytes());
    let answer = wire.read();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("larger than"), "{answer:?}");
    still_answers(node);
}

/// Nothing says how large it will be.
fn a_body_without_an_end(node: &Node) {
    let mut wire = Wire::open(node);
    wire.send(b"PATCH /settings HTTP/1.1\r\nhost: node\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let sent = (0..1000).take_while(|_| wire.send(chunk.as_bytes())).count();
    assert!(sent < 1000, "it took 64 MB");
    let answer = wire.read();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer:?}");
    still_answers(node);
}

fn half_a_request(node: &Node) {
    let mut halves = Vec::new();
    for half in [
        "GE",
        "GET /os HTTP/1.1\r\nhost: no",
        "PATCH /settings HTTP/1.1\r\nhost: node\r\ncontent-length: 30\r\n\r\n{\"motd\"",
    ] {
        let mut wire = Wire::open(node);
        wire.send(half.as_bytes());
        halves.push(wire);
    }
    still_answers(node);
    // It does not wait for ever for the other half.
    for mut wire in halves {
        let answer = wire.read();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }
    still_answers(node);
}

fn what_is_not_http(node: &Node) {
    let mut wire = Wire::open(node);
    wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n");
    let answer = wire.read();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    still_answers(node);
}

fn a_thousand_connections(node: &Node) {
    let begun = Instant::now();
    let connections: Vec<Wire> = (0..1000)
        .map(|_| {
            let mut wire = Wire::open(node);
            wire.send(b"GET /os HTTP/1.1\r\nhost: node\r\n");
            wire
        })
        .collect();
    // While they are open a further one may have to wait for a place, as long as an idle one may keep it.
    node.wait_for_api();
    drop(connections);
    still_answers(node);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
}
