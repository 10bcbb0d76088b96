//! Programs whose languages bring a runtime of their own: Java's virtual machine, and Go in an image of nothing else.

use qemu_tests::{
    Archive, Config, ContainerHealthState, ContainerState, ContainerStatus, Image, Layer, Node, Packing,
    Pushes, Registry, workload,
};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

/// For an image to be pulled and its program to answer.
const PATIENCE: Duration = Duration::from_secs(240);

/// A port of the loopback that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its number").port()
}

/// What a web server of the node answers, if it does.
fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

fn is_healthy(container: &ContainerStatus) -> bool {
    container.health.as_ref().is_some_and(|health| health.state == ContainerHealthState::Healthy)
}

/// The JVM sizes its heap and its threads by the control group that it finds, and compiles while it runs.
#[test]
fn a_java_program_sees_what_its_container_may_have() {
    let registry = Registry::start();
    let image = registry.push("team/java", "21", &workload::java());
    let port = free_port();
    let mut node = Node::new(Config { cpus: 2, memory_mib: 1024, ..Config::direct() }.registry(&registry));
    node.config.ports = vec![(port, 8080)];
    node.start();
    node.wait_until_healthy();
    let command = [
        "java",
        "-XshowSettings:system",
        "-m",
        "jdk.httpserver",
        "-b",
        "0.0.0.0",
        "-p",
        "8080",
        "-d",
        "/etc",
    ];
    node.set(&json!({"containers": {"web": {
        "image": image.by_tag, "command": command, "networks": ["front"], "ports": ["8080:8080"],
        "memory": "256MiB", "cpus": "1", "read-only": true,
        "health-check": {"http": "http://localhost:8080/passwd", "start-period": 240},
    }}}));
    node.wait_for("it is healthy", PATIENCE, |node| is_healthy(&node.container("web")).then_some(()));
    let log = node.logs("web");
    for limit in [
        "Provider: cgroupv2",
        "Effective CPU Count: 1",
        "Memory Limit: 256.00M",
        "Maximum Processes Limit: 1024",
    ] {
        assert!(log.contains(limit), "{limit}: {log}");
    }
    let page = page(port).expect("it answers");
    assert!(page.contains(" 200 OK") && page.contains("passwd"), "{page}");
    // It ends when it is asked to, and says so.
    let (code, said) = node.client(&["container", "stop", "web"]);
    assert_eq!(code, 0, "{said}");
    let stopped = node.container("web");
    assert_eq!((stopped.state, stopped.exit_code), (ContainerState::Stopped, Some(143)), "{stopped:?}");
    node.power_off();
}

/// The node's mirror is a container of its own. What is pushed to it through its port is pulled by the node, and is there after a
/// reboot.
#[test]
fn a_node_pulls_from_a_registry_that_is_its_own_container() {
    let outside = Registry::start();
    let image = outside.push("team/registry", "2", &workload::registry());
    let port = free_port();
    let mut node = Node::new(Config::direct().registry(&outside));
    node.config.ports = vec![(port, 5000)];
    node.start();
    node.wait_until_healthy();
    node.set(&json!({
        "container-registry": {"mirrors": [{"registry": "apps.example", "endpoint": ["http://127.0.0.1:5000"]}]},
        "containers": {"registry": {
            "image": image.by_tag, "networks": ["front"], "ports": ["5000:5000"], "read-only": true,
            "volumes": {"images": {"path": "/data"}},
            "health-check": {"http": "http://localhost:5000/v2/", "start-period": 60},
        }},
    }));
    node.wait_for("it is healthy", PATIENCE, |node| is_healthy(&node.container("registry")).then_some(()));
    let archive = Archive::new().file("etc/story", 0o644, "told by the node to itself\n");
    let layer = Layer::new(&archive.finish(), Packing::Gzip);
    let app = Image::busybox().layer(layer);
    let app = app.with("Cmd", json!(["sh", "-c", "cat /etc/story; exec sleep 3600"]));
    Pushes::to(port, "apps.example").push("team/app", "1", &app);
    node.set(&json!({"containers": {"app": {"image": "apps.example/team/app:1", "after": ["registry"]}}}));
    node.wait_for_logs("app", "told by the node to itself");

    // All by itself: what it pulled, and what its registry has.
    drop(outside);
    node.reboot();
    node.wait_for_logs("app", "told by the node to itself");
    node.wait_for("it is healthy", PATIENCE, |node| is_healthy(&node.container("registry")).then_some(()));
    let (code, said) = node.client(&["image", "pull", "apps.example/team/app:1"]);
    assert_eq!(code, 0, "{said}");
    node.power_off();
}
