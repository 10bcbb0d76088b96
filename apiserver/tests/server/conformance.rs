//! Bottlerocket's endpoints, from a table: its documented codes and bodies. Left out are `/exec`, `/report` and ephemeral storage.

use apiserver::agent::{ApplyOutcome, ErrorKind, Request, Response};
use hyper::Method;
use serde_json::{Value, json};
use std::sync::Mutex;

use crate::agent::{agent, answer};
use crate::harness::Server;

/// What is expected of the body.
enum Body {
    Json(Value),
    /// Text that has this in it.
    Says(&'static str),
    Empty,
}

use Body::{Empty, Json, Says};

/// Method, path and query, body, status, answer; sent in this order to one server.
fn table() -> Vec<(&'static str, &'static str, &'static str, u16, Body)> {
    let motd = r#"{"motd": "x"}"#;
    let os = json!({"pretty_name": "Caisson 0.1.0", "variant_id": "default", "version_id": "0.1.0", "build_id": "", "arch": "x86_64"});
    let not_initialized = NOT_INITIALIZED;
    let service = json!({"host-agent": {"configuration-files": [], "restart-commands": []}});
    vec![
        ("GET", "/?prefix=settings", "", 200, Json(json!({"settings": {"motd": "Welcome"}}))),
        ("GET", "/?prefix=os", "", 200, Json(json!({"os": os.clone()}))),
        ("GET", "/?prefix=", "", 400, Says("empty")),
        ("GET", "/settings", "", 200, Json(json!({"motd": "Welcome"}))),
        ("GET", "/settings?keys=settings.motd,settings.none", "", 200, Json(json!({"motd": "Welcome"}))),
        ("GET", "/settings?keys=settings.motd&prefix=settings.n", "", 200, Json(json!({"motd": "Welcome"}))),
        ("GET", "/settings?prefix=nonesuch", "", 200, Json(json!({}))),
        ("GET", "/settings?keys=", "", 400, Says("empty")),
        ("GET", "/settings?keys=a..b", "", 400, Says("is not a key")),
        ("PATCH", "/settings", motd, 204, Empty),
        ("PATCH", "/settings?tx=other", motd, 204, Empty),
        ("PATCH", "/settings", "{", 400, Says("JSON")),
        ("PATCH", "/settings", r#"{"nonesuch": 1}"#, 400, Says("unknown key")),
        (
            "PATCH",
            "/settings/keypair?tx=pair",
            r#"{"request_payload": ["network.hostname=n", "settings.motd=1"]}"#,
            204,
            Empty,
        ),
        ("PATCH", "/settings/keypair", r#"{"request_payload": ["motd"]}"#, 400, Says("KEY=VALUE")),
        ("GET", "/tx", "", 200, Json(json!({"motd": "x"}))),
        ("GET", "/tx?tx=pair", "", 200, Json(json!({"motd": "1", "network": {"hostname": "n"}}))),
        ("GET", "/tx?tx=nonesuch", "", 200, Json(json!({}))),
        ("GET", "/tx/list", "", 200, Json(json!(["default", "other", "pair"]))),
        ("GET", "/tx/removed?tx=pair", "", 200, Json(json!([]))),
        ("DELETE", "/tx?tx=pair", "", 200, Json(json!(["settings.motd", "settings.network.hostname"]))),
        ("DELETE", "/tx?tx=pair", "", 200, Json(json!([]))),
        ("POST", "/tx/commit", "", 200, Json(json!(["settings.motd"]))),
        ("POST", "/tx/commit", "", 422, Says("Tried to commit with no pending changes")),
        ("POST", "/tx/commit_and_apply?tx=other", "", 200, Json(json!(["settings.motd"]))),
        ("POST", "/tx/commit_and_apply?tx=other", "", 422, Says("Tried to commit with no pending changes")),
        ("POST", "/tx/apply", "", 204, Empty),
        ("POST", "/tx/apply?keys=settings.motd", "", 204, Empty),
        ("POST", "/tx/apply?keys=", "", 400, Says("empty")),
        ("GET", "/os", "", 200, Json(os)),
        ("GET", "/os?prefix=arch", "", 200, Json(json!({"arch": "x86_64"}))),
        ("GET", "/os?prefix=nonesuch", "", 200, Json(json!({}))),
        (
            "GET",
            "/metadata/affected-services?keys=settings.motd,settings.nonesuch",
            "",
            200,
            Json(json!({"settings.motd": ["motd"]})),
        ),
        ("GET", "/metadata/affected-services", "", 400, Says("Missing required input 'keys'")),
        ("GET", "/metadata/affected-services?keys=", "", 400, Says("empty")),
        ("GET", "/metadata/setting-generators", "", 200, Json(json!({}))),
        ("GET", "/metadata/templates?keys=settings.motd", "", 200, Json(json!({}))),
        ("GET", "/metadata/templates", "", 400, Says("Missing required input 'keys'")),
        (
            "GET",
            "/services?prefix=host-agent.c",
            "",
            200,
            Json(json!({"host-agent": {"configuration-files": []}})),
        ),
        ("GET", "/services?prefix=nonesuch", "", 200, Json(json!({}))),
        ("GET", "/services?names=nonesuch", "", 404, Says("nonesuch")),
        ("GET", "/services?names=host-agent", "", 200, Json(service)),
        (
            "GET",
            "/services?names=motd",
            "",
            200,
            Json(json!({"motd": {"configuration-files": ["motd"], "restart-commands": []}})),
        ),
        ("GET", "/configuration-files", "", 200, Json(json!({"motd": {"path": "/run/etc/motd"}}))),
        (
            "GET",
            "/configuration-files?names=hosts",
            "",
            200,
            Json(json!({"hosts": {"path": "/run/etc/hosts"}})),
        ),
        ("GET", "/configuration-files?prefix=x", "", 200, Json(json!({}))),
        ("GET", "/configuration-files?names=chrony-conf", "", 404, Says("chrony-conf")),
        ("GET", "/updates/status", "", 404, Says(not_initialized)),
        ("POST", "/actions/refresh-updates", "", 204, Empty),
        ("GET", "/updates/status", "", 423, Says("try again")),
        ("POST", "/actions/refresh-updates", "", 423, Says("try again")),
        ("GET", "/updates/status", "", 200, Json(update_status())),
        ("POST", "/actions/prepare-update", "", 204, Empty),
        ("POST", "/actions/activate-update", "", 404, Says("nothing is staged")),
        ("POST", "/actions/deactivate-update", "", 409, Says("not activated")),
        ("POST", "/actions/reboot", "", 204, Empty),
    ]
}

const NOT_INITIALIZED: &str = "Update status is uninitialized, refresh-updates to initialize it";

/// As Bottlerocket's openapi.yaml and its updater have it.
fn update_status() -> Value {
    json!({
        "update_state": "Available",
        "available_updates": ["1.26.1", "1.26.0"],
        "chosen_update": {"arch": "x86_64", "version": "1.26.1", "variant": "default"},
        "active_partition": {"image": {"arch": "x86_64", "version": "1.26.0", "variant": "default"}, "next_to_boot": true},
        "staging_partition": null,
        "most_recent_command": {
            "cmd_type": "refresh", "cmd_status": "Success", "timestamp": "2024-10-24T20:07:36.123456789Z",
            "exit_status": 0, "stderr": "",
        },
    })
}

/// Looking for updates, as the table goes: not yet, begun and under way, done.
fn updates(steps: &mut std::ops::RangeFrom<u32>) -> Response {
    let error = |kind, message: &str| Response::Error { kind, message: message.to_owned() };
    match steps.next() {
        Some(0) => error(ErrorKind::NotFound, NOT_INITIALIZED),
        Some(1) => Response::Done,
        Some(2 | 3) => error(ErrorKind::Busy, "an update command runs: try again when it is done"),
        _ => Response::Updates { status: serde_json::from_value(update_status()).unwrap() },
    }
}

fn obliging(request: Request, steps: &Mutex<std::ops::RangeFrom<u32>>) -> String {
    answer(&match request {
        Request::UpdateStatus | Request::RefreshUpdates => updates(&mut steps.lock().unwrap()),
        Request::PrepareUpdate => Response::Done,
        Request::ActivateUpdate => {
            Response::Error { kind: ErrorKind::NotFound, message: "nothing is staged".to_owned() }
        }
        Request::DeactivateUpdate => {
            Response::Error { kind: ErrorKind::Conflict, message: "not activated".to_owned() }
        }
        Request::Apply { generation, .. } => {
            Response::Apply(ApplyOutcome { generation, ..Default::default() })
        }
        Request::Services => Response::Services { services: vec![crate::model::host_agent()] },
        _ => Response::Done,
    })
}

#[test]
fn every_endpoint_answers_as_bottlerockets_does() {
    let server = Server::start();
    let steps = Mutex::new(0..);
    agent(&server, move |request| obliging(request, &steps));
    for (method, uri, body, status, expected) in table() {
        let method: Method = method.parse().unwrap();
        let answer = server.send(method.clone(), uri, body);
        let text = answer.text();
        let fits = match &expected {
            Json(value) => is_part(value, &serde_json::from_str(&text).unwrap_or_default()),
            Says(part) => text.contains(part),
            Empty => text.is_empty(),
        };
        assert!(answer.status == status && fits, "{method} {uri}: {} {text}", answer.status);
    }
}

/// Objects may have more than Bottlerocket's: what PID 1 knows of a service.
fn is_part(expected: &Value, value: &Value) -> bool {
    match (expected, value) {
        (Value::Object(expected), Value::Object(value)) if !expected.is_empty() => {
            expected.iter().all(|(name, part)| value.get(name).is_some_and(|value| is_part(part, value)))
        }
        _ => expected == value,
    }
}
