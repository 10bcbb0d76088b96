//! The socket that only reads.

use hyper::Method;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;

use crate::harness::Server;

#[test]
fn a_reader_changes_nothing() {
    let server = Server::start();
    for (method, uri, body) in [
        (Method::PATCH, "/settings", r#"{"motd": "x"}"#),
        (Method::PATCH, "/settings/keypair", r#"{"request_payload": ["motd=x"]}"#),
        (Method::DELETE, "/settings?keys=motd", ""),
        (Method::DELETE, "/tx", ""),
        (Method::POST, "/tx/commit", ""),
        (Method::POST, "/tx/apply", ""),
        (Method::POST, "/generations/1/restore", ""),
        (Method::POST, "/actions/reboot", ""),
        (Method::POST, "/containers/web/stop", ""),
        (Method::POST, "/containers/web/start", ""),
        (Method::POST, "/containers/web/restart", ""),
        (Method::PUT, "/settings", ""),
        (Method::OPTIONS, "/", ""),
    ] {
        let refused = server.send_as_reader(method.clone(), uri, body);
        assert_eq!(refused.status, 405, "{method} {uri}: {}", refused.text());
        assert!(refused.text().contains("only reads: use /run/api.sock"), "{}", refused.text());
    }
    assert_eq!(server.get("/tx/list"), json!([]));
}

#[test]
fn a_reader_sees_no_secret() {
    let server = Server::start();
    let web =
        |token: &str| json!({"containers": {"web": {"image": "a", "env": {"TOKEN": token}}}}).to_string();
    server.send(Method::PATCH, "/settings", &web("hunter1"));
    server.send(Method::POST, "/tx/commit", "");
    server.send(Method::PATCH, "/settings?tx=t", &web("hunter2"));
    let shown = json!({"image": "a", "env": {"TOKEN": "(not shown)"}});
    for (uri, pointer) in [
        ("/settings", "/containers/web"),
        ("/settings?keys=settings.containers.web.env.TOKEN,settings.containers.web.image", "/containers/web"),
        ("/", "/settings/containers/web"),
        ("/tx?tx=t", "/containers/web"),
        ("/generations/1", "/settings/containers/web"),
    ] {
        let answer = server.send_as_reader(Method::GET, uri, "");
        let value: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(value.pointer(pointer), Some(&shown), "{uri}: {value}");
        assert!(server.send(Method::GET, uri, "").text().contains("hunter"), "{uri}");
    }
    for uri in ["/generations", "/generations/diff?from=1", "/os", "/tx/list", "/schema"] {
        let answer = server.send_as_reader(Method::GET, uri, "");
        assert!(answer.status == 200 && !answer.text().contains("hunter"), "{uri}: {}", answer.text());
    }
    let log = server.send_as_reader(Method::GET, "/containers/web/logs", "");
    assert!(log.status == 403 && log.text().contains("may hold secrets"), "{}", log.text());
}

#[test]
fn readers_keep_nobody_out_who_acts() {
    let server = Server::start();
    let idle: Vec<UnixStream> =
        (0..500).map(|_| UnixStream::connect(server.read_socket()).unwrap()).collect();
    let refused = server.send_as_reader(Method::GET, "/settings", "");
    assert!(refused.status == 503 && refused.text().contains("too many connections"), "{}", refused.text());
    assert_eq!(server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#).status, 204);
    drop(idle);
}

/// Not even who may change all settings is told; the agent is, which gives them to containers.
#[test]
fn secrets_of_containers_are_told_to_the_agent_alone() {
    let server = Server::start();
    let change =
        |secret: &str| json!({"secrets": {"db": secret}, "motd": secret.len().to_string()}).to_string();
    server.send(Method::PATCH, "/settings", &change("hunter1"));
    server.send(Method::POST, "/tx/commit", "");
    server.send(Method::PATCH, "/settings?tx=t", &change("hunter22"));
    for uri in [
        "/",
        "/settings",
        "/settings?keys=settings.secrets.db",
        "/settings?prefix=sec",
        "/tx?tx=t",
        "/generations",
        "/generations/1",
        "/generations/diff?from=0",
    ] {
        let answer = server.send(Method::GET, uri, "").text();
        assert!(!answer.contains("hunter"), "{uri}: {answer}");
    }
    assert_eq!(server.get("/settings")["secrets"]["db"], "(not shown)");
    assert_eq!(server.settings_for_the_agent()["secrets"]["db"], "hunter1");

    // What was read is no secret when it is written again.
    server.send(Method::PATCH, "/settings?tx=back", &server.get("/settings").to_string());
    let refused = server.send(Method::POST, "/tx/commit?tx=back", "");
    assert!(refused.status == 400 && refused.text().contains("leave it out"), "{}", refused.text());
    assert_eq!(server.settings_for_the_agent()["secrets"]["db"], "hunter1");
}
