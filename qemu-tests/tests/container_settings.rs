//! What settings say of a container, and what the container has of it.

use qemu_tests::{Config, ContainerHealthState, ContainerState, ContainerStatus, Health, Node, script};
use serde_json::{Value, json};

fn with(text: &str, more: Value) -> Value {
    let mut container = script(text);
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

#[test]
fn health_checks_are_asked_and_who_fails_is_started_again() {
    let node = Node::boot_healthy(Config::direct());
    let server = "mkdir /www; echo fine > /www/health; sleep 2; exec httpd -f -p 8080 -h /www";
    let check = |more: Value| {
        let mut check = json!({"interval": 1, "timeout": 3, "retries": 2});
        for (key, value) in more.as_object().into_iter().flatten() {
            check[key] = value.clone();
        }
        json!({ "health-check": check })
    };
    node.set(&json!({"containers": {
        "web": with(server, check(json!({"http": "http://localhost:8080/health", "start-period": 60}))),
        "port": with("exec sleep 3600", check(json!({"tcp": 8080, "start-period": 60}))),
        // It begins when the one that it needs is healthy.
        "after": with("wget -q -O - http://localhost:8080/health; exec sleep 3600", json!({"after": ["web"]})),
        "breaks": with(
            "touch /up; sleep 6; rm /up; exec sleep 3600",
            check(json!({"command": ["sh", "-c", "ls -d /up"]})),
        ),
        "missing": with("exec sleep 3600", {
            let mut more = check(json!({"http": "http://localhost:8080/nothing"}));
            more["restart"] = json!("no");
            more["essential"] = json!(true);
            more
        }),
    }}));
    for name in ["web", "port"] {
        node.wait_for_container(name, "it is healthy", |container| {
            container.health.as_ref().is_some_and(|health| health.state == ContainerHealthState::Healthy)
        });
    }
    assert_eq!(node.wait_for_logs("after", "fine").trim(), "fine");
    // One that may be started again is, with the reason.
    node.wait_for_container("breaks", "it is started again", |container| {
        container.restarts >= 1 && container.state == ContainerState::Running
    });
    node.wait_for_container("breaks", "it failed again", |container| {
        let reason = "its health check failed 2 times in a row: \"sh\" ended with exit status 1: ls: /up";
        container.error.as_ref().is_some_and(|error| error.contains(reason))
    });
    assert!(node.console().contains("container breaks: its health check failed 2 times in a row"));
    // One that may not runs on, and the node is not well.
    let missing = node.wait_for_container("missing", "it is unhealthy", |container| {
        container.health.as_ref().is_some_and(|health| health.state == ContainerHealthState::Unhealthy)
    });
    assert_eq!((missing.state, missing.restarts), (ContainerState::Running, 0));
    assert_eq!(node.status().health, Health::Degraded);
    let problems = node.problems();
    assert!(problems.contains("settings.containers.missing: its health check failed"), "{problems}");
    assert!(problems.contains("answers with status 404"), "{problems}");
    let (_, list) = node.client(&["container", "list"]);
    assert!(list.contains("running, healthy") && list.contains("running, unhealthy"), "{list}");
    node.set(&json!({"containers": {"missing": {"health-check": {"http": "http://localhost:8080/health"}}}}));
    node.wait_for_container("missing", "it is healthy", ContainerStatus::is_up);
}

#[test]
fn what_a_container_is_told_it_has() {
    let mut node = Node::boot_healthy(Config::direct());
    let probe = "
        echo \"args: $0 $1\"
        echo \"in $(pwd) as $(id -u):$(id -g) on $(hostname)\"
        echo \"open files: $(ulimit -n)\"
        echo \"capabilities: $(grep CapBnd /proc/self/status | tr -d '\\t')\"
        touch /file 2>&1
        echo kept >> /data/file && echo \"kept: $(wc -l < /data/file)\"
        echo shared > /shared/file && echo wrote to the shared one
        df -k /fast | tail -1 | awk '{print \"fast: \" $2}'
        touch /fast/file /sys/nothing 2>&1
        echo \"memory.high: $(cat /sys/fs/cgroup/memory.high) cpu.max: $(cat /sys/fs/cgroup/cpu.max)\"
        echo the end
        trap 'echo asked by USR1; sleep 12; echo ended in order; exit 0' USR1
        while :; do sleep 1; done";
    let settings = json!({
        "image": "localhost/busybox", "command": ["/bin/sh", "-c", probe], "args": ["zero", "one"],
        "working-directory": "/tmp", "user": "1000:1001", "hostname": "db.example.com", "read-only": true,
        "stop-signal": "SIGUSR1", "stop-timeout": 40,
        "memory": "64MiB", "memory-high": "48MiB", "cpus": "0.5",
        "capabilities": {"net-raw": true, "chown": false},
        "resource-limits": {"max-open-files": {"soft-limit": 100, "hard-limit": 200}},
        "volumes": {
            "data": {"path": "/data"},
            "shared": {"path": "/shared", "name": "common"},
            "fast": {"path": "/fast", "kind": "tmpfs", "size": "1MiB"},
        },
    });
    node.set(&json!({"containers": {
        "probe": settings,
        "reader": with(
            "while ! cat /common/file 2>/dev/null; do sleep 1; done; touch /common/mine 2>&1; exec sleep 3600",
            // Who is first decides whose the volume is.
            json!({"after": ["probe"], "volumes": {"common": {"path": "/common", "name": "common", "read-only": true}}}),
        ),
    }}));
    let log = node.wait_for_logs("probe", "the end");
    for wanted in [
        "args: zero one",
        "in /tmp as 1000:1001 on db.example.com",
        "open files: 100",
        "touch: /file: Read-only file system",
        "kept: 1",
        "wrote to the shared one",
        "fast: 1024",
        "touch: /sys/nothing:",
        "memory.high: 50331648 cpu.max: 50000 100000",
    ] {
        assert!(log.contains(wanted), "{wanted:?} is not in:\n{log}");
    }
    // CAP_CHOWN (0) is gone, CAP_NET_RAW (13) is there.
    assert!(log.contains("CapBnd:00000000a80425fa"), "{log}");
    let log = node.wait_for_logs("reader", "touch:");
    assert!(log.contains("shared") && log.contains("touch: /common/mine: Read-only file system"), "{log}");
    // Its own time to end, longer than any other's, also when the node ends.
    node.reboot();
    let log = node.wait_for_logs("probe", "kept: 2");
    assert!(log.contains("asked by USR1\nended in order"), "{log}");
    // A volume stays when its container goes.
    node.set(&json!({"containers": {"probe": {"stop-signal": "SIGKILL"}}}));
    node.wait_for_logs("probe", "kept: 3");
    node.power_off();
    assert_eq!(node.file("data", "/volumes/probe.data/file").lines().count(), 3);
}
