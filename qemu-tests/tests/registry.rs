//! Images from a real registry.

use qemu_tests::{Config, ContainerState, Node, Registry};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn an_image_is_pulled_by_tag_and_by_digest() {
    let registry = Registry::start();
    let image = registry.publish("stories/one", "latest", "once upon a time");
    let other = registry.publish("stories/two", "1.0", "and they lived happily");
    let mut node = Node::boot_healthy(Config::direct().registry(&registry));
    node.set(&json!({"containers": {
        "by-tag": {"image": image.by_tag},
        // Pulled at the same time as the one before: one of them waits for the other.
        "the-same": {"image": image.by_tag},
        "by-digest": {"image": other.by_digest},
    }}));
    // The last layer's file is there, and the one it takes away is not; the image's own command runs.
    for (name, story) in [
        ("by-tag", "once upon a time"),
        ("the-same", "once upon a time"),
        ("by-digest", "and they lived happily"),
    ] {
        let log = node.wait_for_logs(name, "story");
        assert!(log.contains(story), "{name}: {log}");
        assert!(log.contains("passwd") && !log.contains("group"), "{name}: {log}");
    }
    let missing = format!("{}/stories/none:latest", Registry::ADDRESS);
    node.set(&json!({"containers": {"missing": {"image": missing}}}));
    let container =
        node.wait_for_container("missing", "it has an error", |container| container.error.is_some());
    let error = container.error.unwrap_or_default();
    assert!(error.contains(&missing), "{error}");

    // What was pulled is there without the registry.
    drop(registry);
    node.reboot();
    for name in ["by-tag", "the-same", "by-digest"] {
        node.wait_for_container(name, "it runs", |container| container.state == ContainerState::Running);
    }
    node.power_off();
}

/// No connection lasts as long as the image needs.
#[test]
fn an_image_comes_over_a_line_that_breaks() {
    const SIZE: usize = 5 << 20;
    let registry = Registry::start();
    let image = registry.publish_large("stories/large", "latest", "piece by piece", SIZE);
    let mut config = Config::direct().registry(&registry);
    config.guest_forward = Some(registry.breaking());
    let node = Node::boot_healthy(config);
    let mut watch = node
        .client_command(&["watch", "--json", "--events", "pull,container"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let events = BufReader::new(watch.stdout.take().unwrap());
    let events = std::thread::spawn(move || {
        let lines = events.lines().map_while(Result::ok);
        lines.filter_map(|line| serde_json::from_str(&line).ok()).collect::<Vec<Value>>()
    });
    // It looks once a second.
    std::thread::sleep(Duration::from_secs(3));
    node.set(&json!({"containers": {"large": {
        "image": image.by_tag, "command": ["sh", "-c", "wc -c < /etc/large; cat /etc/story; exec sleep 3600"],
    }}}));
    let far = node.wait_for("its layers come", Duration::from_secs(60), |node| {
        node.container("large").pull.filter(|pull| pull.bytes > 0)
    });
    assert!(
        far.total_layers == 2 && far.total_bytes > SIZE as u64 && far.bytes <= far.total_bytes,
        "{far:?}"
    );
    let (_, list) = node.client(&["container", "list"]);
    assert!(list.contains(" of 2 layers") || list.contains("unpacking 2 layers"), "{list}");
    let log = node.wait_for_logs("large", "piece by piece");
    assert!(log.contains(&SIZE.to_string()), "{log}");
    assert_eq!(node.container("large").pull, None);
    std::thread::sleep(Duration::from_secs(3));
    watch.kill().unwrap();
    watch.wait().unwrap();
    let events = events.join().unwrap();
    let of_pull: Vec<&Value> =
        events.iter().filter(|event| event["event"] == "pull").map(|event| &event["data"]).collect();
    let bytes: Vec<u64> = of_pull.iter().filter_map(|pull| pull["bytes"].as_u64()).collect();
    assert!(!bytes.is_empty() && bytes.is_sorted() && of_pull.len() <= 14, "{events:?}");
    assert!(of_pull.iter().all(|pull| pull["reference"] == image.by_tag), "{events:?}");
    assert_eq!(of_pull.last().unwrap()["phase"], Value::Null, "{events:?}");
    // By hand, told to a log.
    let ahead = registry.publish_large("stories/ahead", "1", "in pieces", SIZE);
    let (code, said) = node.client(&["image", "pull", &ahead.by_tag]);
    let told: Vec<&str> = said.lines().filter(|line| line.contains(" layers")).collect();
    assert!(code == 0 && (1..=6).contains(&told.len()), "{said}");
    assert!(told[0].starts_with(&format!("{}: ", ahead.by_tag)) && !said.contains('\r'), "{said}");
}
