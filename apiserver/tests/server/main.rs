//! The real API server on a folder of its own, met by good and by hostile clients.

mod agent;
mod apply;
mod bad_inputs;
mod command_line;
mod conformance;
mod containers;
mod edit;
mod events;
mod exec;
mod explain;
mod generations;
mod harness;
mod hostile;
mod images;
mod metrics;
mod model;
mod reader;
mod stop;
mod taken_over;
mod trial;
mod updates;
mod watch;

use harness::Server;
use hyper::Method;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

#[test]
fn a_commit_is_there_after_kill_9_and_a_pending_change_is_not() {
    let mut server = Server::start();
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
    assert_eq!(server.send(Method::PATCH, "/settings", r#"{"motd": "kept"}"#).status, 204);
    assert_eq!(server.get("/tx"), json!({"motd": "kept"}));
    let committed = server.send(Method::POST, "/tx/commit", "");
    assert_eq!((committed.status, committed.text()), (200, "[\"settings.motd\"]".to_owned()));
    assert_eq!(server.send(Method::PATCH, "/settings?tx=other", r#"{"motd": "pending"}"#).status, 204);
    server.kill_and_restart();
    assert_eq!(server.get("/settings?keys=settings.motd"), json!({"motd": "kept"}));
    assert_eq!(server.get("/tx/list"), json!([]));
    assert_eq!(server.get("/generations")[0]["number"], 1);
}

#[test]
fn answers_are_bottlerockets() {
    let server = Server::start();
    assert_eq!(
        server.get("/os"),
        json!({"pretty_name": "Caisson 0.1.0", "variant_id": "default", "version_id": "0.1.0", "build_id": "", "arch": "x86_64"})
    );
    assert_eq!(server.get("/os?prefix=ver"), json!({"version_id": "0.1.0"}));
    assert_eq!(server.get("/?prefix=settings.mot"), json!({"settings": {"motd": "Welcome"}}));
    assert_eq!(server.get("/settings?prefix=none"), json!({}));
    assert_eq!(server.get("/os?prefix=o"), json!({}));
    assert_eq!(
        server.get("/settings?keys=settings.%22motd%22,settings.nonesuch"),
        json!({"motd": "Welcome"})
    );
    let keypair = server.send(
        Method::PATCH,
        "/settings/keypair?tx=t",
        r#"{"request_payload": ["motd=42", "settings.network.hostname=n"]}"#,
    );
    assert_eq!(keypair.status, 204, "{}", keypair.text());
    assert_eq!(
        server.send(Method::DELETE, "/tx?tx=t", "").text(),
        r#"["settings.motd","settings.network.hostname"]"#
    );
    for (method, uri, body, status, text) in [
        (Method::POST, "/tx/commit", "", 422, "Tried to commit with no pending changes"),
        (Method::GET, "/?prefix=", "", 400, "prefix"),
        (Method::GET, "/settings?keys=settings..x", "", 400, "a part of it is empty"),
        (Method::GET, "/settings?keys=settings.motd,", "", 400, "a part of it is empty"),
        (Method::POST, "/tx/apply?keys=a%20b", "", 400, "is not a key"),
        (Method::GET, "/nowhere", "", 404, "/settings"),
        (Method::PUT, "/settings", "", 405, "PUT"),
        (Method::PATCH, "/settings", "{", 400, "not JSON"),
        (Method::PATCH, "/settings", r#"{"mot": "x"}"#, 400, "did you mean \"motd\""),
        (Method::PATCH, "/settings?tx=a%2Fb", r#"{"motd": "x"}"#, 400, "transaction"),
        (Method::GET, "/containers", "", 503, "host agent"),
    ] {
        let answer = server.send(method.clone(), uri, body);
        assert!(
            answer.status == status && answer.text().contains(text),
            "{method} {uri}: {} {}",
            answer.status,
            answer.text()
        );
    }
}

#[test]
fn a_container_without_an_image_is_refused_at_commit_and_can_be_mended() {
    let server = Server::start();
    server.send(Method::PATCH, "/settings", r#"{"containers": {"web": {"command": ["a"]}}}"#);
    let refused = server.send(Method::POST, "/tx/commit", "");
    assert!(
        refused.status == 400 && refused.text().contains("settings.containers.web.image"),
        "{}",
        refused.text()
    );
    server.send(Method::PATCH, "/settings", r#"{"containers": {"web": {"image": "busybox"}}}"#);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
}

#[test]
fn errors_are_json_for_who_accepts_json() {
    let server = Server::start();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream
        .write_all(
            b"GET /nowhere HTTP/1.1\r\nhost: a\r\naccept: application/json\r\nconnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("content-type: application/json"),
        "{answer}"
    );
    assert!(answer.contains("\r\n\r\n{\"error\":\"there is nothing at /nowhere"), "{answer}");
}

#[test]
fn a_node_whose_settings_folder_cannot_be_read_answers_and_takes_nothing() {
    let mut server = Server::start();
    server.send(Method::PATCH, "/settings", r#"{"motd": "one"}"#);
    server.send(Method::POST, "/tx/commit", "");
    let settings = server.dir.path().join("settings");
    let (aside, path) = (server.dir.path().join("aside"), settings.display().to_string());
    std::fs::rename(&settings, &aside).unwrap();
    std::fs::write(&settings, "not a folder").unwrap();
    server.kill_and_restart();
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
    let problems = server.get("/")["status"]["problems"].to_string();
    assert!(problems.contains(&path) && problems.contains("cannot be read"), "{problems}");
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    for (method, uri) in [(Method::POST, "/tx/commit"), (Method::GET, "/generations")] {
        let refused = server.send(method, uri, "");
        assert!(refused.status == 500 && refused.text().contains(&path), "{}", refused.text());
    }
    // Nothing was lost: mended, the node has its settings again.
    std::fs::remove_file(&settings).unwrap();
    std::fs::rename(&aside, &settings).unwrap();
    server.kill_and_restart();
    assert_eq!(server.get("/settings"), json!({"motd": "one"}));
}

#[test]
fn what_is_damaged_on_disk_is_told_and_the_generation_before_is_used() {
    let mut server = Server::start();
    for motd in ["one", "two"] {
        server.send(Method::PATCH, "/settings", &json!({"motd": motd}).to_string());
        server.send(Method::POST, "/tx/commit", "");
    }
    std::fs::write(server.dir.path().join("settings/generation-000002.toml"), "").unwrap();
    server.kill_and_restart();
    assert_eq!(server.get("/settings"), json!({"motd": "one"}));
    let problems = server.get("/?prefix=status")["status"]["problems"].to_string();
    assert!(problems.contains("generation 2") && problems.contains("cut short"), "{problems}");
}
