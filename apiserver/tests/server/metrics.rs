//! `GET /metrics`.

use apiserver::agent::{
    ContainerKind, ContainerState, ContainerStatus, Health, Metrics, Request, Response, Stalled, Status,
    Usage,
};
use hyper::Method;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::agent::{agent, answer};
use crate::harness::Server;
use crate::model::host_agent;

fn node() -> Metrics {
    let status = Status {
        secure_boot: None,
        time: Default::default(),
        health: Health::Degraded,
        problems: Vec::new(),
        machine_id: "0".repeat(32),
        state: "ext4".to_owned(),
        data: "ext4".to_owned(),
        boot_phases: Vec::new(),
        addresses: BTreeMap::new(),
        memory_total_kib: 2048,
        memory_available_kib: 1024,
    };
    let container = ContainerStatus {
        name: "web".to_owned(),
        kind: ContainerKind::Container,
        superpowered: false,
        image: "registry.example/secret-project:1".to_owned(),
        state: ContainerState::Running,
        pid: Some(9),
        exit_code: None,
        restarts: 2,
        delay_ms: None,
        delays_ms: Vec::new(),
        error: None,
        essential: true,
        started_at_ms: Some(1),
        health: None,
        waits_for: None,
        next_run_at: None,
        update: None,
        replica_of: None,
        runs_once: false,
        addresses: Vec::new(),
        pull: None,
        user_namespace: None,
    };
    let usage =
        |name: &str| BTreeMap::from([(name.to_owned(), Usage { cpu_us: 1_500_000, memory_bytes: 4096 })]);
    Metrics {
        status,
        services: vec![host_agent()],
        containers: vec![container],
        uptime_ms: 2500,
        service_usage: usage("host-agent"),
        container_usage: usage("web"),
        stalled: vec![Stalled { resource: "io".to_owned(), share: "some".to_owned(), microseconds: 7 }],
    }
}

#[test]
fn figures_of_the_node_its_containers_and_the_api_are_told_to_readers_too() {
    let server = Server::start();
    agent(&server, |request| {
        assert_eq!(request, Request::Metrics);
        answer(&Response::Metrics(Box::new(node())))
    });
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    server.send(Method::POST, "/tx/commit", "");
    server.send(Method::GET, "/nonesuch", "");
    for told in [server.send(Method::GET, "/metrics", ""), server.send_as_reader(Method::GET, "/metrics", "")]
    {
        assert_eq!(told.status, 200);
        let text = told.text();
        for line in [
            "caisson_host_agent_up 1",
            "caisson_os_info{version=\"0.1.0\",variant=\"default\",arch=\"x86_64\"} 1",
            "caisson_node_health{caisson_node_health=\"degraded\"} 1",
            "caisson_node_health{caisson_node_health=\"healthy\"} 0",
            "caisson_node_uptime_seconds 2.5",
            "caisson_node_memory_available_bytes 1048576",
            "caisson_node_stalled_seconds_total{resource=\"io\",share=\"some\"} 0.000007",
            "caisson_service_state{service=\"host-agent\",caisson_service_state=\"ready\"} 1",
            "caisson_service_restarts_total{service=\"host-agent\"} 3",
            "caisson_container_state{container=\"web\",caisson_container_state=\"running\"} 1",
            "caisson_container_cpu_seconds_total{container=\"web\"} 1.5",
            "caisson_container_memory_bytes{container=\"web\"} 4096",
            "caisson_settings_generation 1",
            "caisson_settings_commits_total 1",
            "caisson_settings_failed_applies_total 0",
            "caisson_api_requests_total{code=\"204\"} 1",
            "caisson_api_requests_total{code=\"404\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n") && !text.contains("secret-project"), "{text}");
    }
}

#[test]
fn without_the_agent_the_apis_own_figures_are_told() {
    let server = Server::start();
    server.send(Method::POST, "/tx/apply", "");
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).unwrap();
    for part in [
        "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n",
        "caisson_host_agent_up 0\n",
        "caisson_settings_failed_applies_total 1\n",
        "caisson_api_connections 1\n",
        "caisson_api_requests_total{code=\"503\"} 1\n",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
    assert!(!told.contains("caisson_node_health"), "{told}");
}
