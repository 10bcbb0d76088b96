//! A node and a repository in one network.

use qemu_tests::{Config, Lan, Node, Updates, install_with_update_root};
use serde_json::{Value, json};
use std::time::Duration;

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";

/// The same image again under higher versions: the node sees the newest, over a restart too, and is told what is wrong.
#[test]
fn a_node_sees_the_version_that_is_published() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE, &format!("--address=/updates.lan.test/{}", Lan::ADDRESS)]);
    let updates = Updates::new();
    updates.publish("90.1.0");
    lan.nginx(updates.folder());
    let mut node = Node::new(lan.attach(Config::direct()));
    install_with_update_root(&mut node, &updates.root());
    node.start();
    node.wait_until_healthy();
    let check = |node: &Node| node.client(&["update", "check"]);

    let (code, said) = check(&node);
    assert!(code == 1 && said.contains("no repository is set"), "{said}");
    node.set(&json!({"updates": {"metadata-base-url": "http://updates.lan.test:8080/metadata/"}}));
    node.wait_for("an address", Duration::from_secs(30), |node| node.status().addresses.get("eth0").cloned());
    let (code, said) = check(&node);
    assert_eq!(code, 0, "{said}");
    let status: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(status["update_state"], "Available");
    assert_eq!(status["available_updates"], json!(["90.1.0"]));
    assert_eq!(status["chosen_update"]["version"], "90.1.0");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        status["active_partition"]["image"],
        json!({"arch": "x86_64", "variant": "default", "version": version})
    );

    node.reboot();
    node.wait_until_healthy();
    assert_eq!(node.get("/updates/status"), status);
    updates.publish("90.2.0");
    node.wait_for("the newer version", Duration::from_secs(60), |node| {
        let (_, said) = check(node);
        said.contains("\"version\": \"90.2.0\"").then_some(())
    });
    // Somebody puts the older copy back.
    updates.roll_back();
    let (code, said) = check(&node);
    assert!(code == 1 && said.contains("was rolled back"), "{said}");
}
