//! `GET /`: what the node is, and how it is.

use apiserver::agent::init_status::{ServiceState, ServiceStatus};
use apiserver::agent::{Health, Request, Response, Status};
use hyper::Method;
use serde_json::json;

use crate::agent::{agent, answer};
use crate::harness::Server;

pub(crate) fn host_agent() -> ServiceStatus {
    ServiceStatus {
        name: "host-agent".to_owned(),
        state: ServiceState::Ready,
        pid: Some(7),
        restarts: 3,
        last_exit: None,
        ready_at_ms: Some(900),
        required: true,
    }
}

/// An agent of a node that is well, with one service.
fn healthy(request: Request) -> String {
    answer(&match request {
        Request::Status => Response::Status(Status {
            health: Health::Healthy,
            problems: Vec::new(),
            machine_id: "0".repeat(32),
            state: "ext4".to_owned(),
            data: "ext4".to_owned(),
            boot_phases: Vec::new(),
            addresses: Default::default(),
            time: Default::default(),
            memory_total_kib: 2048,
            memory_available_kib: 1024,
            secure_boot: None,
        }),
        Request::Services => Response::Services { services: vec![host_agent()] },
        other => panic!("asked for {other:?}"),
    })
}

#[test]
fn services_are_bottlerockets_and_pid_1s() {
    let server = Server::start();
    agent(&server, healthy);
    let service = json!({
        "configuration-files": [], "restart-commands": [],
        "name": "host-agent", "state": "ready", "pid": 7, "restarts": 3, "last-exit": null, "ready-at-ms": 900, "required": true,
    });
    assert_eq!(server.get("/services"), json!({"host-agent": service}));
    assert_eq!(server.get("/services?names=host-agent&prefix=x"), json!({"host-agent": service}));
    assert_eq!(server.get("/?prefix=services"), json!({"services": {"host-agent": service}}));
    let everything = server.get("/");
    let areas: Vec<&String> = everything.as_object().unwrap().keys().collect();
    assert_eq!(areas, ["os", "services", "settings", "status"]);
    assert_eq!(everything["services"], json!({"host-agent": service}));
    assert_eq!(everything["status"]["health"], "healthy");
    assert_eq!(server.send(Method::GET, "/services?names=nonesuch", "").status, 404);
    assert_eq!(server.get("/services?prefix=s"), json!({}));
    assert_eq!(
        server.get("/services?prefix=host-agent.restart-"),
        json!({"host-agent": {"restart-commands": []}})
    );
    let shown = server.client(&["get", "services"]);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&shown.stdout).unwrap()["services"]["host-agent"],
        service
    );
}

#[test]
fn a_node_without_its_agent_answers_and_says_so() {
    let server = Server::start();
    let everything = server.get("/");
    assert_eq!(everything["settings"], json!({"motd": "Welcome"}));
    assert!(everything.get("services").is_none(), "{everything}");
    // It may still be starting.
    assert_eq!(everything["status"]["health"], "starting");
    let problem = &everything["status"]["problems"][0];
    assert!(problem["subject"] == "host-agent" && problem["message"].to_string().contains("does not answer"));
    assert_eq!(server.get("/?prefix=services"), json!({}));
    assert_eq!(server.send(Method::GET, "/services", "").status, 503);
    // Once it was there, it is not starting any more when it is gone.
    agent(&server, healthy);
    assert_eq!(server.get("/?prefix=status")["status"]["health"], "healthy");
    std::fs::remove_file(server.dir.path().join("agent.sock")).unwrap();
    let status = &server.get("/?prefix=status")["status"];
    assert_eq!(status["health"], "degraded");
    assert!(status["problems"][0]["message"].to_string().contains("does not answer"), "{status}");
}

#[test]
fn a_node_that_lost_a_generation_is_not_healthy() {
    let mut server = Server::start();
    for motd in ["one", "two"] {
        server.send(Method::PATCH, "/settings", &json!({"motd": motd}).to_string());
        server.send(Method::POST, "/tx/commit", "");
    }
    agent(&server, healthy);
    assert_eq!(server.get("/?prefix=status")["status"]["health"], "healthy");
    std::fs::write(server.dir.path().join("settings/generation-000002.toml"), "").unwrap();
    server.kill_and_restart();
    let status = &server.get("/?prefix=status")["status"];
    assert_eq!((&status["health"], &status["state"]), (&json!("degraded"), &json!("ext4")));
    assert!(status["problems"][0]["message"].to_string().contains("generation 2"), "{status}");
}

#[test]
fn the_schema_is_shown_whole_and_by_key() {
    let server = Server::start();
    let whole = server.get("/schema");
    assert_eq!(whole["properties"]["network"]["$ref"], "#/$defs/Network");
    let hostname = server.get("/schema?key=settings.network.hostname");
    assert_eq!(hostname, server.get("/schema?key=network.hostname"));
    assert_eq!(hostname["$defs"]["Hostname"], whole["$defs"]["Hostname"]);
    assert_eq!(hostname["examples"], json!(["node-1.example.com"]));
    assert_eq!(server.send_as_reader(Method::GET, "/schema", "").status, 200);
}
