//! `apiclient` as a person or a script meets it.

use apiserver::agent::{ApplyOutcome, ContainerProcesses, ImageRequest, Request, Response};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::Duration;

use crate::agent::{agent, answer};
use crate::apply::applier;
use crate::harness::Server;

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
    // Staged by the server whatever its form; it is the agent that is missing.
    for set in [&["set", "motd", "a=b"][..], &["set", "motd=a=b"], &["set", "settings.motd=a=b"]] {
        let output = server.client(set);
        assert!(
            output.status.code() == Some(1) && said(&output).contains("committed, but not applied"),
            "{output:?}"
        );
        assert_eq!(server.get("/settings"), json!({"motd": "a=b"}));
    }
    let words = server.client(&["set", "motd=a", "hunter2"]);
    assert!(words.status.code() == Some(2) && !said(&words).contains("hunter2"), "{words:?}");
    server.client(&["set", "motd=Welcome"]);
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

/// Each is a thing that people type; each answer is for them, not about HTTP.
#[test]
fn mistakes_made_by_hand_are_told_with_the_key_and_a_way_out() {
    let server = Server::start();
    std::fs::write(server.dir.path().join("bare.toml"), "motd = \"x\"\n").unwrap();
    std::fs::write(server.dir.path().join("bare.json"), "{\"motd\": \"x\"}").unwrap();
    let at = |name: &str| server.dir.path().join(name).display().to_string();
    let (toml, json, missing) = (at("bare.toml"), at("bare.json"), at("missing.toml"));
    for (arguments, code, expected) in [
        (&["set", "motd"][..], 2, "argument 1 is not KEY=VALUE"),
        (&["set", "motd=hello", "world"], 2, "a value with spaces is put in quotes"),
        (&["set", "mtod=hello"], 1, "settings.mtod: unknown key; did you mean \"motd\"?"),
        (&["set", "hostname=node-1"], 1, "did you mean settings.network.hostname?"),
        (&["set", "network=node-1"], 1, "settings.network: expected a key below it (hostname, hosts"),
        (
            &["set", "network.hostname=my_node"],
            1,
            "settings.network.hostname: \"my_node\" is not a host name",
        ),
        (&["set", "network.hostname="], 1, "settings.network.hostname: \"\" is not a host name"),
        (
            &["set", "container.web.image=a"],
            1,
            "settings.container: unknown key; did you mean \"containers\"?",
        ),
        (&["set", "containers.web=busybox"], 1, "settings.containers.web: expected a key below it (image"),
        (&["set", "containers.Web.image=a"], 1, "settings.containers.Web: \"Web\" is not a name"),
        (&["set", "containers..image=a"], 1, "\"containers..image\" is not a key"),
        (&["set", "containers.web.cmd=[\"a\"]"], 1, "did you mean \"command\"?"),
        (
            &["set", "containers.web.command=sleep 60"],
            1,
            "expected a list of strings, such as [\"sleep\", \"60\"]",
        ),
        (&["set", "containers.web.command=[sleep]"], 1, "settings.containers.web.command: expected a list"),
        (&["set", "containers.web.memory=64MB"], 1, "settings.containers.web.memory: \"64MB\" is not a size"),
        (&["set", "containers.web.pids=ten"], 1, "settings.containers.web.pids: expected a number"),
        (&["set", "containers.web.pids=-1"], 1, "settings.containers.web.pids: expected a whole number"),
        (&["set", "containers.web.restart=never"], 1, "\"never\" is not one of always, on-failure, no"),
        (&["set", "containers.web.essential=yes"], 1, "essential: expected true or false"),
        (&["set", "containers.web.env.my-var=b"], 1, "\"my-var\" is not a name for an environment variable"),
        (&["set", "containers.web.pids=5"], 1, "settings.containers.web.image: missing"),
        (&["set", "-j", "{\"motd\": 5}"], 1, "settings.motd: expected a string, found a number"),
        (&["set", "-j", "{\"settings\": {}, \"motd\": \"x\"}"], 2, "there is \"motd\" beside \"settings\""),
        (&["set", "-j", "{}"], 1, "Tried to commit with no pending changes"),
        (&["apply", &toml], 1, "bare.toml: line 1: motd: put it under [settings]"),
        (&["apply", &json], 1, "bare.json: there is no key \"settings\" at the top"),
        (&["apply", &missing], 1, "missing.toml: No such file"),
        (&["get", "setings"], 0, "nothing is there with a name that begins with \"setings\""),
        (&["get", "/setings"], 1, "there is nothing at /setings: there are /, /settings"),
        (&["raw", "-u", "settings"], 1, "\"settings\" is not a path of the API"),
        (&["status"], 0, ""),
    ] {
        let output = server.client(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(expected), "{arguments:?}: {output:?}");
        assert!(!said.contains("PATCH") && !said.contains("tx="), "{arguments:?}: {said}");
    }
    let status = String::from_utf8(server.client(&["status"]).stdout).unwrap();
    assert!(
        status.starts_with("health      starting\n\nPROBLEM  apiserver: host-agent: the host"),
        "{status}"
    );
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
}

/// An agent with nothing to complain of.
fn content(request: Request) -> String {
    // A frame: it has ended, with 0.
    let more = if matches!(request, Request::Exec(_) | Request::Copy(_)) { "x\0\0\0\u{1}\0" } else { "" };
    let line = answer(&match request {
        Request::Apply { generation, .. } => {
            Response::Apply(ApplyOutcome { generation, ..Default::default() })
        }
        Request::Containers => {
            let web = json!({
                "name": "web", "image": "a", "state": "stopped", "restarts": 0, "delays-ms": [], "essential": false
            });
            Response::Containers { containers: vec![serde_json::from_value(web).unwrap()] }
        }
        Request::InspectContainer { name } => {
            let container = json!({
                "name": name, "image": "a", "state": "stopped", "restarts": 0, "delays-ms": [], "essential": false,
                "image-digest": "sha256:00", "runtime": {"ociVersion": "1.2.0"}
            });
            Response::Container(serde_json::from_value(container).unwrap())
        }
        Request::ContainerProcesses { .. } => {
            Response::ContainerProcesses(ContainerProcesses { processes: Vec::new(), more: 0 })
        }
        Request::ContainerStats => Response::ContainerStats { containers: Vec::new() },
        Request::Services => Response::Services { services: Vec::new() },
        Request::Images { what: ImageRequest::List } => {
            let image = json!({
                "reference": "registry.example.com/team/web:2", "state": "pulled", "digest": "sha256:00", "bytes": 4096,
                "pulled-at": null, "pinned": true, "used-by": [], "error": null
            });
            Response::Images { images: vec![serde_json::from_value(image).unwrap()] }
        }
        Request::Images { what: ImageRequest::Inspect(reference) } => {
            let image = json!({
                "reference": reference, "state": "pulled", "digest": "sha256:00", "bytes": 4096, "pulled-at": null, "pinned": true,
                "used-by": [], "error": null, "created": null, "architecture": "amd64", "os": "linux", "entrypoint": [],
                "command": ["serve"], "env": [], "user": null, "working-dir": null, "stop-signal": null, "ports": [],
                "volumes": [], "labels": {}, "layers": []
            });
            Response::Image(serde_json::from_value(image).unwrap())
        }
        Request::Images { what: ImageRequest::Remove(_) | ImageRequest::Prune { .. } } => {
            Response::RemovedImages { removed: Vec::new() }
        }
        Request::ContainerLogs { .. } => Response::Logs { text: "hello\n".to_owned() },
        _ => Response::Done,
    });
    line + more
}

/// Runs lines as a shell does, one after the other, on one node.
fn all_work(lines: &[&str]) {
    let server = Server::start();
    agent(&server, content);
    let dir = server.dir.path();
    std::fs::write(dir.join("settings.toml"), "[settings.dns]\nsearch-list = [\"example.com\"]\n").unwrap();
    std::fs::write(dir.join("network.toml"), "[settings.network]\nhostname = \"tried\"\n").unwrap();
    std::fs::create_dir(dir.join("site")).unwrap();
    for line in lines {
        // The editor of the reader is not there, and who watches does so until it is enough.
        let line = line.replace("EDITOR=vi", "EDITOR=true");
        let ends = if line.contains(" watch") { "timeout 1" } else { "env" };
        let client = env!("CARGO_BIN_EXE_apiclient");
        let script = format!("apiclient() {{ {ends} {client} --socket api.sock \"$@\"; }}\n{line}");
        let output =
            Command::new("sh").args(["-c", &script]).current_dir(dir).env("EDITOR", "true").output().unwrap();
        let expected = if line.contains(" watch") { 124 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{line}: {output:?}");
    }
}

#[test]
fn the_examples_of_help_work() {
    let output = Command::new(env!("CARGO_BIN_EXE_apiclient")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> =
        help.lines().map(str::trim).filter(|line| line.starts_with("apiclient ")).collect();
    assert!(lines.len() >= 14, "{help}");
    all_work(&lines);
}

#[test]
fn the_examples_of_the_page_work() {
    let page = include_str!("../../../docs/apiclient.md");
    let lines: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(lines.len() >= 20, "{lines:?}");
    all_work(&lines);
}

#[test]
fn every_command_has_help() {
    let output = Command::new(env!("CARGO_BIN_EXE_apiclient")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for name in apiserver::cli::definition().get_subcommands().map(|command| command.get_name().to_owned()) {
        assert!(help.contains(&format!("\n  {name} ")), "{name} is not in {help}");
        let output = Command::new(env!("CARGO_BIN_EXE_apiclient")).args([&name, "--help"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.contains("Usage: apiclient"), "{name}: {said}");
    }
}

/// A terminal, which `script` makes, has colour; a pipe has none, nor has who does not want it.
#[test]
fn colour_is_for_terminals() {
    let server = Server::start();
    let shown = |environment: &str| {
        let client = env!("CARGO_BIN_EXE_apiclient");
        let line = format!("{environment} {client} --socket {} status", server.socket().display());
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(shown("env").starts_with("health      \x1b[33mstarting\x1b[0m"), "{:?}", shown("env"));
    assert!(shown("NO_COLOR=1").starts_with("health      starting"), "{:?}", shown("NO_COLOR=1"));
    assert!(server.client(&["status"]).stdout.starts_with(b"health      starting"));
}

#[test]
fn who_waits_at_a_terminal_sees_for_how_long() {
    let server = Server::start();
    let _requests = applier(&server, Duration::from_millis(2500), None);
    let line =
        format!("{} --socket {} set motd=slow", env!("CARGO_BIN_EXE_apiclient"), server.socket().display());
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("\r\x1b[Kapplying, 1 s"), "{shown:?}");
    // Nothing of it stays.
    assert!(shown.ends_with("\r\x1b[K"), "{shown:?}");
    let piped = server.client(&["set", "motd=other"]);
    assert!(piped.status.success() && piped.stderr.is_empty() && piped.stdout.is_empty(), "{piped:?}");
}
