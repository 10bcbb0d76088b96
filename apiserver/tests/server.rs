//! The real API server on a folder of its own, met by good and by hostile clients.

use apiserver::client::{Answer, Endpoint, request_blocking};
use hyper::Method;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

struct Server {
    dir: tempfile::TempDir,
    process: Child,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("settings")).unwrap();
        std::fs::write(dir.path().join("defaults.toml"), "motd = \"Welcome\"\n").unwrap();
        std::fs::write(
            dir.path().join("os-release"),
            "PRETTY_NAME=\"Caisson 0.1.0\"\nVERSION_ID=0.1.0\nVARIANT_ID=default\n",
        )
        .unwrap();
        let process = Self::spawn(&dir);
        Self { dir, process }
    }

    fn spawn(dir: &tempfile::TempDir) -> Child {
        let at = |name: &str| dir.path().join(name);
        let _ = std::fs::remove_file(at("api.sock"));
        let process = Command::new(env!("CARGO_BIN_EXE_apiserver"))
            .arg("--settings-dir")
            .arg(at("settings"))
            .arg("--defaults")
            .arg(at("defaults.toml"))
            .arg("--os-release")
            .arg(at("os-release"))
            .arg("--agent-socket")
            .arg(at("agent.sock"))
            .arg("--listen")
            .arg(at("api.sock"))
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(at("api.sock")).is_err() {
            assert!(Instant::now() < deadline, "the API server did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        process
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn send(&self, method: Method, uri: &str, body: &str) -> Answer {
        let endpoint = Endpoint::Unix(self.socket());
        request_blocking(&endpoint, method, uri, body.as_bytes().to_vec(), Duration::from_secs(20)).unwrap()
    }

    fn get(&self, uri: &str) -> Value {
        let answer = self.send(Method::GET, uri, "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn client(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_apiclient"))
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .output()
            .unwrap()
    }

    fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::spawn(&self.dir);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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
fn a_commit_that_cannot_be_applied_is_told_and_stays() {
    let server = Server::start();
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    let answer = server.send(Method::POST, "/tx/commit_and_apply", "");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("generation 1 is committed, but not applied"), "{}", answer.text());
    assert_eq!(server.get("/settings"), json!({"motd": "x"}));
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
fn the_clients_exit_codes_and_words() {
    let server = Server::start();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = server.client(&["get", "settings.motd"]);
    assert_eq!(shown.status.code(), Some(0));
    let value: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(value, json!({"settings": {"motd": "Welcome"}}));
    let refused = server.client(&["set", "network.hostname=a_b"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("settings.network.hostname: \"a_b\" is not a host name"),
        "{}",
        said(&refused)
    );
    for usage in [&["set"][..], &["set", "a=b", "-j", "{}"], &["nonsense"], &["raw"], &["set", "-j", "{"]] {
        assert_eq!(server.client(usage).status.code(), Some(2), "{usage:?}");
    }
    let nobody = Command::new(env!("CARGO_BIN_EXE_apiclient"))
        .args(["--socket", "/nonexistent.sock", "get"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said(&nobody).contains("is the node running"), "{}", said(&nobody));
    assert_eq!(server.client(&["raw", "-u", "/settings"]).stdout, b"{\"motd\":\"Welcome\"}\n");
}
