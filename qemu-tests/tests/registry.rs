//! Images from a real registry.

use qemu_tests::{Config, ContainerState, Node, Registry};
use serde_json::json;

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
    node.set(&json!({"containers": {"large": {
        "image": image.by_tag, "command": ["sh", "-c", "wc -c < /etc/large; cat /etc/story; exec sleep 3600"],
    }}}));
    let log = node.wait_for_logs("large", "piece by piece");
    assert!(log.contains(&SIZE.to_string()), "{log}");
}
