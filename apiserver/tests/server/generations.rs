//! Looking at older settings, going back to them, and removing settings.

use hyper::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::apply::applier;
use crate::harness::Server;

fn commit(server: &Server, settings: &Value) {
    assert_eq!(server.send(Method::PATCH, "/settings", &settings.to_string()).status, 204);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
}

fn web(token: &str) -> Value {
    json!({"containers": {"web": {"image": "a", "env": {"TOKEN": token}}}})
}

#[track_caller]
fn refused(server: &Server, method: Method, uri: &str, status: u16, text: &str) {
    let answer = server.send(method, uri, "");
    assert!(answer.status == status && answer.text().contains(text), "{} {}", answer.status, answer.text());
}

#[test]
fn an_older_generation_is_shown_and_compared() {
    let server = Server::start();
    commit(&server, &json!({"motd": "one"}));
    commit(&server, &web("hunter1"));
    commit(&server, &json!({"motd": "three", "containers": {"web": {"env": {"TOKEN": "hunter2"}}}}));
    let first = server.get("/generations/1");
    assert_eq!((&first["number"], &first["transaction"]), (&json!(1), &json!("default")));
    assert_eq!((&first["os-version"], &first["outcome"]), (&json!("0.1.0"), &Value::Null));
    assert_eq!(first["settings"], json!({"motd": "one"}));
    let differences = json!({
        "settings.containers.web.env.TOKEN": {"old": "(not shown)", "new": "(not shown)"},
        "settings.motd": {"old": "one", "new": "three"},
    });
    assert_eq!(server.get("/generations/diff?from=2&to=3"), differences);
    assert_eq!(server.get("/generations/diff?from=2"), differences);
    assert_eq!(server.get("/generations/diff?from=3"), json!({}));
    // Before the first one nothing was set.
    assert_eq!(
        server.get("/generations/diff?from=0&to=1"),
        json!({"settings.motd": {"old": null, "new": "one"}})
    );
    let shown = String::from_utf8(server.client(&["diff", "1"]).stdout).unwrap();
    assert!(shown.contains("settings.containers.web.image\n  + \"a\"\n"), "{shown}");
    assert!(!shown.contains("hunter"), "{shown}");
    refused(&server, Method::GET, "/generations/9", 404, "there is no generation 9");
    refused(&server, Method::GET, "/generations/diff?from=1&to=9", 404, "there is no generation 9");
    refused(&server, Method::GET, "/generations/diff?to=1", 400, "name two generations");
    refused(&server, Method::GET, "/generations/x", 400, "\"x\" is not the number of a generation");
    refused(&server, Method::POST, "/generations/1", 405, "POST");
    refused(&server, Method::GET, "/generations/1/restore", 405, "GET");
}

#[test]
fn an_older_generation_is_restored_as_a_new_one_and_applied() {
    let server = Server::start();
    let requests = applier(&server, Duration::ZERO, None);
    commit(&server, &json!({"motd": "one"}));
    commit(&server, &web("t"));
    let restored = server.client(&["restore", "1"]);
    let keys = "settings.containers.web.env.TOKEN, settings.containers.web.image";
    let said = format!("restored from generation 1: {keys}\n");
    assert_eq!(String::from_utf8_lossy(&restored.stdout), said, "{restored:?}");
    assert_eq!(server.get("/settings"), json!({"motd": "one"}));
    assert!(requests.try_recv().unwrap().is_some());
    let newest = &server.get("/generations")[0];
    assert_eq!((&newest["number"], &newest["transaction"]), (&json!(3), &json!("restore-1")));
    assert_eq!(newest["outcome"]["generation"], 3);
    // Again: nothing differs, and nothing is committed.
    assert_eq!(server.send(Method::POST, "/generations/1/restore", "").text(), "[]");
    assert!(requests.try_recv().is_err());
    assert_eq!(server.get("/generations").as_array().unwrap().len(), 3);
    for command in ["history", "generations"] {
        assert!(String::from_utf8(server.client(&[command]).stdout).unwrap().contains("restore-1"));
    }
    refused(&server, Method::POST, "/generations/9/restore", 404, "there is no generation 9");
    let unknown = server.client(&["restore", "9"]);
    let said = "apiclient: there is no generation 9: GET /generations lists those that are kept\n";
    assert_eq!((unknown.status.code(), String::from_utf8_lossy(&unknown.stderr).as_ref()), (Some(1), said));
}

#[test]
fn what_is_deleted_is_gone_and_its_default_holds() {
    let mut server = Server::start();
    let containers = &web("t")["containers"];
    commit(&server, &json!({"motd": "x", "network": {"hostname": "n"}, "containers": containers}));
    let uri = "/settings?keys=motd,settings.containers.web";
    assert_eq!(server.send(Method::DELETE, uri, "").status, 204);
    assert_eq!(server.get("/settings")["motd"], "x");
    assert_eq!(server.get("/tx/removed"), json!(["settings.containers.web", "settings.motd"]));
    assert_eq!(server.get("/tx"), json!({}));
    let committed = server.send(Method::POST, "/tx/commit", "");
    assert_eq!(
        committed.text(),
        r#"["settings.containers.web.env.TOKEN","settings.containers.web.image","settings.motd"]"#
    );
    server.kill_and_restart();
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome", "network": {"hostname": "n"}}));
    for (keys, status, text) in [
        ("?keys=motd", 404, "settings.motd is not set: its value is a default of the image"),
        ("?keys=network.hostname,mtd", 404, "settings.mtd is not set"),
        ("?keys=containers", 404, "settings.containers is not set"),
        ("?keys=network.host", 404, "settings.network.host is not set"),
        ("?keys=settings", 400, "settings is everything"),
        ("?keys=a..b", 400, "is not a key"),
        ("?keys=", 400, "keys"),
        ("", 400, "name the keys to delete"),
    ] {
        refused(&server, Method::DELETE, &format!("/settings{keys}"), status, text);
    }
    // Nothing of a refused one was staged.
    refused(&server, Method::POST, "/tx/commit", 422, "no pending changes");
    // What is only staged is removed from what is staged, and then there is nothing to commit.
    server.send(Method::PATCH, "/settings?tx=t", r#"{"motd": "y"}"#);
    assert_eq!(server.send(Method::DELETE, "/settings?keys=motd&tx=t", "").status, 204);
    refused(&server, Method::POST, "/tx/commit?tx=t", 422, "no pending changes");
}

#[test]
fn a_commit_that_was_made_for_another_generation_is_refused() {
    let server = Server::start();
    commit(&server, &json!({"motd": "one"}));
    server.send(Method::PATCH, "/settings?tx=late", r#"{"motd": "late"}"#);
    commit(&server, &json!({"motd": "two"}));
    for uri in ["/tx/commit?tx=late&generation=1", "/tx/commit_and_apply?tx=late&generation=1&dry-run=true"] {
        refused(&server, Method::POST, uri, 409, "generation 2 is the newest, not 1: look at what changed");
    }
    assert_eq!(server.get("/settings"), json!({"motd": "two"}));
    assert_eq!(server.send(Method::POST, "/tx/commit?tx=late&generation=2", "").status, 200);
    assert_eq!(server.get("/settings"), json!({"motd": "late"}));
}

#[test]
fn the_client_deletes_values_and_tables() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    commit(&server, &web("t"));
    commit(&server, &json!({"network": {"hostname": "n"}}));
    let refused = server.client(&["delete", "containers.web.image"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("web.image: missing"), "{said}");
    assert!(server.client(&["delete", "containers.web", "network"]).status.success());
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
    let unset = server.client(&["delete", "network"]);
    assert_eq!(unset.stderr, b"apiclient: settings.network is not set\n");
    assert_eq!(server.client(&["delete"]).status.code(), Some(2));
    assert_eq!(server.get("/tx/list"), json!([]));
}

#[test]
fn a_list_of_a_hundred_large_generations_is_quick_and_small() {
    let server = Server::start();
    // Many values: reading all of them takes the longest, half a second where their heads take 15 ms.
    let env: serde_json::Map<_, _> = (0..256).map(|n| (format!("A{n}"), json!("x"))).collect();
    let containers: serde_json::Map<_, _> =
        (0..32).map(|n| (format!("c{n}"), json!({"image": "a", "env": env}))).collect();
    commit(&server, &json!({"containers": containers}));
    for number in 0..101 {
        commit(&server, &json!({"motd": number.to_string()}));
    }
    let begun = Instant::now();
    assert_eq!(server.get("/generations").as_array().unwrap().len(), 100);
    assert!(begun.elapsed() < Duration::from_millis(250), "{:?}", begun.elapsed());
    refused(&server, Method::GET, "/generations/2", 404, "there is no generation 2");
    assert!(server.peak_memory_kib() < 32 << 10, "{} KiB", server.peak_memory_kib());
}
