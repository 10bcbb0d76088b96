//! `apiclient watch`, as somebody sees it who waits for something.

use hyper::Method;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::harness::Server;

/// A client that watches, and its lines of both outputs.
struct Watcher {
    process: Child,
    out: Receiver<String>,
    errors: Receiver<String>,
}

impl Watcher {
    fn start(server: &Server, arguments: &[&str]) -> Self {
        let mut command = server.client_command(&[&["watch"], arguments].concat());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, errors) = (lines(process.stdout.take().unwrap()), lines(process.stderr.take().unwrap()));
        Self { process, out, errors }
    }

    fn next(&self) -> String {
        self.out.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

fn commit(server: &Server, settings: &Value) {
    assert_eq!(server.send(Method::PATCH, "/settings", &settings.to_string()).status, 204);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
}

/// Commits until the watcher has begun to listen.
fn begun(server: &Server, watcher: &Watcher) {
    for number in 0..200 {
        commit(server, &json!({"motd": format!("begin {number}")}));
        if watcher.out.recv_timeout(Duration::from_millis(100)).is_ok() {
            // What else came of it.
            while watcher.out.recv_timeout(Duration::from_millis(300)).is_ok() {}
            return;
        }
    }
    panic!("the watcher does not listen");
}

#[test]
fn each_event_is_a_line_in_words_or_json() {
    let server = Server::start();
    let (people, programs) =
        (Watcher::start(&server, &[]), Watcher::start(&server, &["--json", "--events", "commit"]));
    begun(&server, &people);
    begun(&server, &programs);
    while people.out.recv_timeout(Duration::from_millis(300)).is_ok() {}
    server.send(Method::PATCH, "/settings", r#"{"network": {"hostname": "n"}}"#);
    server.send(Method::POST, "/tx/commit_and_apply", "");
    let generation = server.get("/generations")[0]["number"].clone();
    let line = people.next();
    assert!(
        line.ends_with(&format!(
            "Z  commit     generation {generation} from default: settings.network.hostname"
        )),
        "{line}"
    );
    let line = people.next();
    assert!(
        line.contains(&format!(
            "  apply      generation {generation}: generation {generation} is committed, but not applied yet"
        )),
        "{line}"
    );
    let told: Value = serde_json::from_str(&programs.next()).unwrap();
    let data =
        json!({"generation": generation, "transaction": "default", "keys": ["settings.network.hostname"]});
    assert_eq!((&told["event"], &told["data"]), (&json!("commit"), &data));
    // The kind that was not asked for is not told.
    assert!(programs.out.recv_timeout(Duration::from_millis(500)).is_err());
}

#[test]
fn a_key_that_changes_is_told_with_both_values() {
    let server = Server::start();
    let (people, programs) =
        (Watcher::start(&server, &["settings.motd"]), Watcher::start(&server, &["containers.web", "--json"]));
    begun(&server, &people);
    commit(&server, &json!({"motd": "a"}));
    people.next();
    commit(&server, &json!({"network": {"hostname": "n"}}));
    commit(&server, &json!({"motd": "b", "network": {"hostname": "m"}}));
    let line = people.next();
    assert!(line.contains("Z  settings.motd: \"a\" -> \"b\"  (generation "), "{line}");
    server.send(Method::DELETE, "/settings?keys=motd", "");
    server.send(Method::POST, "/tx/commit", "");
    assert!(people.next().contains("settings.motd: \"b\" -> not set"));
    for number in 0..100 {
        commit(
            &server,
            &json!({"containers": {"web": {"image": "a", "env": {"TOKEN": format!("hunter{number}")}}}}),
        );
        if let Ok(line) = programs.out.recv_timeout(Duration::from_millis(200)) {
            let told: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (&told["key"], &told["new"]),
                (&json!("settings.containers.web.env.TOKEN"), &json!("(not shown)"))
            );
            return;
        }
    }
    panic!("a change below the key was not told");
}

#[test]
fn a_stream_that_ends_is_begun_again_and_nothing_is_missed() {
    let mut server = Server::start();
    let watcher = Watcher::start(&server, &["--events", "commit"]);
    begun(&server, &watcher);
    server.kill_and_restart();
    commit(&server, &json!({"motd": "while away"}));
    let said = watcher.errors.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(
        said.contains("the stream of events ended: ") && said.contains("trying again (1 of 10)"),
        "{said}"
    );
    // The new server does not know what the old one told.
    let line = watcher.next();
    assert!(line.contains("lost       events from before the API server started again"), "{line}");
    assert!(watcher.next().ends_with("from default: settings.motd"));
}

#[test]
fn who_cannot_watch_is_told_at_once() {
    let server = Server::start();
    for (arguments, code, expected) in [
        (&["watch", "hostname"][..], 1, "did you mean settings.network.hostname?"),
        (&["watch", "--events", "nonsense"], 2, "possible values: commit, apply, service, container"),
        (&["--socket", "/nonexistent.sock", "watch"], 1, "is the node running"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_apiclient"))
            .env("NO_COLOR", "1")
            .args(
                [&["--socket", server.socket().to_str().unwrap()], arguments]
                    .concat()
                    .iter()
                    .skip(if arguments[0] == "watch" { 0 } else { 2 }),
            )
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(expected), "{arguments:?}: {said}");
    }
}
