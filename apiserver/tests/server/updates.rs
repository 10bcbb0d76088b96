//! `apiclient update check` against an agent that looks for updates.

use apiserver::agent::{ErrorKind, Request, Response};
use serde_json::{Value, json};
use std::sync::Mutex;

use crate::agent::{agent, answer};
use crate::harness::Server;

fn status(timestamp: &str, failure: Option<&str>) -> Value {
    json!({
        "update_state": "Available",
        "available_updates": ["1.1.0"],
        "chosen_update": {"arch": "x86_64", "version": "1.1.0", "variant": "default"},
        "active_partition": null,
        "staging_partition": null,
        "most_recent_command": {
            "cmd_type": "refresh", "cmd_status": if failure.is_some() { "Failed" } else { "Success" },
            "timestamp": timestamp, "exit_status": i32::from(failure.is_some()), "stderr": failure.unwrap_or_default(),
        },
    })
}

/// Answers the questions for the status one after the other: a status, none yet, or busy.
fn checking(statuses: Vec<Result<Value, ErrorKind>>) -> impl Fn(Request) -> String + Send + Sync + 'static {
    let statuses = Mutex::new(statuses.into_iter());
    move |request| {
        answer(&match request {
            Request::UpdateStatus => match statuses.lock().unwrap().next().expect("asked once too often") {
                Ok(status) => Response::Updates { status: serde_json::from_value(status).unwrap() },
                Err(kind) => Response::Error { kind, message: "not now".to_owned() },
            },
            _ => Response::Done,
        })
    }
}

#[test]
fn a_check_waits_for_its_own_end_and_shows_what_there_is() {
    let server = Server::start();
    let (old, new) = (status("2026-01-01T00:00:00Z", None), status("2026-01-02T00:00:00Z", None));
    agent(&server, checking(vec![Ok(old.clone()), Err(ErrorKind::Busy), Ok(old), Ok(new.clone())]));
    let output = server.client(&["update", "check"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), new);
    assert!(output.stdout.starts_with(b"{\n  \"active_partition\": null"), "{output:?}");
}

#[test]
fn a_check_that_fails_says_why() {
    let server = Server::start();
    let failed = status("2026-01-02T00:00:00Z", Some("no repository is set: set it"));
    agent(&server, checking(vec![Err(ErrorKind::NotFound), Ok(failed)]));
    let output = server.client(&["update", "check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "apiclient: cannot look for updates: no repository is set: set it\n");
    assert_eq!(server.client(&["update", "install"]).status.code(), Some(2));
}

#[test]
fn a_check_while_another_command_runs_is_refused() {
    let server = Server::start();
    agent(&server, |request| {
        let message = "an update command is running: try again when it is over".to_owned();
        answer(&match request {
            Request::RefreshUpdates => Response::Error { kind: ErrorKind::Busy, message },
            _ => Response::Updates { status: serde_json::from_value(status("x", None)).unwrap() },
        })
    });
    let output = server.client(&["update", "check"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("Status 423 when POSTing /actions/refresh-updates: an update command is running"),
        "{said}"
    );
}
