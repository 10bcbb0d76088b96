//! Images, as the agent tells of them, and as it is told to pull and remove them.

use apiserver::agent::{ErrorKind, ImageRequest, Request, Response};
use hyper::Method;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::agent::{agent, answer};
use crate::harness::Server;

fn image(state: &str, error: Option<&str>) -> Value {
    json!({
        "reference": "r.example/team/app:1", "state": state, "digest": "sha256:0123456789abcdef", "bytes": 5 << 20,
        "pulled-at": "2026-01-31T12:00:00Z", "pinned": true, "used-by": ["web"], "error": error
    })
}

fn images(all: &[Value]) -> String {
    answer(&Response::Images { images: serde_json::from_value(json!(all)).unwrap() })
}

fn refused(kind: ErrorKind, message: &str) -> String {
    answer(&Response::Error { kind, message: message.to_owned() })
}

fn removed(all: Value) -> String {
    answer(&Response::RemovedImages { removed: serde_json::from_value(all).unwrap() })
}

#[test]
fn images_are_listed_inspected_and_removed_and_what_refuses_says_why() {
    let server = Server::start();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    agent(&server, move |request| {
        let Request::Images { what } = request else { panic!("asked for {request:?}") };
        heard.lock().unwrap().push(format!("{what:?}"));
        let part = json!([{"references": [], "digest": "sha256:9876543210abcdef", "is-whole": false, "bytes": 1 << 20}]);
        match &what {
            ImageRequest::List => images(&[image("pulled", None)]),
            ImageRequest::Inspect(reference) if reference.as_str() == "r.example/team/app:1" => {
                let mut shown = image("pulled", None);
                for (key, value) in [
                    ("command", json!(["serve"])),
                    ("entrypoint", json!([])),
                    ("env", json!(["PASSWORD=x"])),
                    ("ports", json!(["80/tcp"])),
                    ("volumes", json!([])),
                    ("labels", json!({})),
                    ("layers", json!(["sha256:7"])),
                ] {
                    shown[key] = value;
                }
                answer(&Response::Image(serde_json::from_value(shown).unwrap()))
            }
            ImageRequest::Remove(reference) if reference.as_str() == "r.example/team/app:1" => {
                refused(ErrorKind::Conflict, "is used by web")
            }
            ImageRequest::Remove(reference) if reference.as_str() == "old" => removed(json!([
                {"references": ["old"], "digest": "sha256:1", "is-whole": true, "bytes": 3 << 19}
            ])),
            ImageRequest::Prune { .. } => removed(part),
            _ => refused(ErrorKind::NotFound, "there are r.example/team/app:1"),
        }
    });
    let reference = "r.example/team/app:1";
    for (arguments, code, said) in [
        (
            &["image", "list"][..],
            0,
            "r.example/team/app:1     sha256:0123456789ab    5.0 MiB kept      2026-01-31T12:00:00Z  web",
        ),
        (&["image", "list", "--json"], 0, "\"used-by\": [\n      \"web\"\n    ]"),
        (&["image", "inspect", reference], 0, "env         PASSWORD=x"),
        (&["image", "inspect", reference, "--json"], 0, "\"layers\": [\n    \"sha256:7\"\n  ]"),
        (&["image", "inspect", "r/b"], 1, "there are r.example/team/app:1"),
        (&["image", "remove", reference], 1, "is used by web"),
        (&["image", "remove", "old"], 0, "old: 1.5 MiB\nremoved old\n"),
        (
            &["image", "prune"],
            0,
            "what a broken pull of sha256:9876543210ab had left: 1.0 MiB\n1.0 MiB freed\n",
        ),
        (&["image", "prune", "--all"], 0, "1.0 MiB freed"),
        // What is no reference does not come to the agent.
        (&["image", "remove", "Team/../etc"], 1, "\"Team/../etc\" is not an image reference"),
        (&["image", "pull", "r.example/App:1"], 1, "\"r.example/App:1\" is not an image reference"),
    ] {
        let output = server.client(arguments);
        let told = [output.stdout.clone(), output.stderr.clone()].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.code() == Some(code) && told.contains(said), "{arguments:?}: {told}");
    }
    for (method, uri, status, said) in [
        (Method::DELETE, "/images", 400, "name the image"),
        (Method::POST, "/images/prune?all=yes", 400, "\"all\" is neither true nor false"),
        (Method::POST, "/images", 405, "it has GET, DELETE"),
        (Method::GET, "/images/pull", 405, "it has POST"),
    ] {
        let answer = server.send(method, uri, "");
        assert!(answer.status == status && answer.text().contains(said), "{uri}: {}", answer.text());
    }
    let asked = asked.lock().unwrap().join(" ");
    assert!(!asked.contains("etc") && !asked.contains("App"), "{asked}");
    assert!(asked.contains("Prune { all: false }") && asked.contains("Prune { all: true }"), "{asked}");
    // Who only reads may know which images there are, and not what is in one.
    assert_eq!(server.send_as_reader(Method::GET, "/images", "").status, 200);
    for (method, uri, status) in [
        (Method::GET, "/images/inspect?reference=a", 403),
        (Method::POST, "/images/pull?reference=a", 405),
        (Method::DELETE, "/images?reference=a", 405),
    ] {
        assert_eq!(server.send_as_reader(method, uri, "").status, status, "{uri}");
    }
}

#[test]
fn who_pulls_an_image_waits_until_it_is_there_or_is_told_why_not() {
    for (last, code, said) in [
        (image("pulled", None), 0, "pulled r.example/team/app:1: sha256:0123456789abcdef, 5.0 MiB"),
        (image("failed", Some("no such image")), 1, "r.example/team/app:1 was not pulled: no such image"),
        // The one that was there before is there still.
        (image("pulled", Some("no way there")), 1, "r.example/team/app:1 was not pulled: no way there"),
    ] {
        let server = Server::start();
        let looks = AtomicUsize::new(0);
        agent(&server, move |request| match request {
            Request::Images { what: ImageRequest::Pull(reference) } => {
                assert_eq!(reference.as_str(), "r.example/team/app:1");
                answer(&Response::Done)
            }
            Request::Images { what: ImageRequest::List } => match looks.fetch_add(1, Ordering::SeqCst) {
                // One try has failed, and is not the last.
                0 => images(&[image("pulling", Some("no way there"))]),
                1 => "no answer at all\n".to_owned(),
                _ => images(std::slice::from_ref(&last)),
            },
            request => panic!("asked for {request:?}"),
        });
        let output = server.client(&["image", "pull", "r.example/team/app:1"]);
        let told = [output.stdout.clone(), output.stderr.clone()].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.code() == Some(code) && told.contains(said), "{told}");
    }
}
