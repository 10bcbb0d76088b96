//! Programs whose languages bring a runtime of their own: Java's virtual machine, and Go in an image of nothing else.

use qemu_tests::{
    Archive, Config, ContainerState, Image, Layer, Node, Packing, Pushes, Registry, free_port, workload,
};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// For an image to be pulled and its program to answer.
const PATIENCE: Duration = Duration::from_secs(240);

/// The settings of the document's section about a registry.
fn example() -> &'static str {
    let page = include_str!("../../docs/containers.md");
    let section = page.split("\n## ").find(|section| section.starts_with("A registry on the node itself"));
    let block = section.and_then(|section| section.split("```toml\n").nth(1)?.split("```").next());
    block.expect("docs/containers.md has an example of a registry")
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

/// Waits until those run, and are healthy if that is looked at.
#[track_caller]
fn wait_for(node: &Node, names: &[&str]) {
    node.wait_until_healthy();
    node.wait_for(format!("{names:?} are up"), PATIENCE, |node| {
        let all = node.containers();
        let is_up = |name: &&str| all.iter().any(|one| one.name == **name && one.is_up());
        names.iter().all(is_up).then_some(())
    });
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
    wait_for(&node, &["web"]);
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

/// An image that tells a story.
fn telling(story: &str) -> Image {
    let archive = Archive::new().file("etc/story", 0o644, story);
    let layer = Layer::new(&archive.finish(), Packing::Gzip);
    Image::busybox().layer(layer).with("Cmd", json!(["sh", "-c", "cat /etc/story; exec sleep 3600"]))
}

/// The node's mirror is a container of its own. What is pushed to it through its port is pulled by the node, and is there after a
/// reboot.
#[test]
fn a_node_pulls_from_a_registry_that_is_its_own_container() {
    let outside = Registry::start();
    outside.push("team/registry", "2", &workload::registry());
    let port = free_port();
    let settings = example().replace("registry.example.com", Registry::ADDRESS);
    let mut node = Node::new(Config::direct().registry(&outside).user_data(settings));
    node.config.ports = vec![(port, 5000)];
    node.start();
    wait_for(&node, &["registry"]);
    let app = telling("told by the node to itself\n");
    let pushes = Pushes::to(port, "apps.example.com");
    pushes.push("team/app", "1", &app);
    node.set(
        &json!({"containers": {"app": {"image": "apps.example.com/team/app:1", "after": ["registry"]}}}),
    );
    node.wait_for_logs("app", "told by the node to itself");

    // All by itself: what it pulled, and what only its registry has.
    pushes.push("team/later", "1", &telling("told after a night\n"));
    drop(outside);
    node.reboot();
    wait_for(&node, &["registry", "app"]);
    node.set(&json!({"containers": {"later": {"image": "apps.example.com/team/later:1"}}}));
    node.wait_for_logs("later", "told after a night");
    node.power_off();
}
