//! Power cuts in updates.

use build::artifacts::{Artifacts, copy_sparse};
use qemu_tests::{Config, Format, Lan, Node, Updates};
use serde_json::{Value, json};
use std::time::Duration;

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";
const PATIENCE: Duration = Duration::from_secs(240);

fn node_of(lan: &mut Lan, updates: &Updates, first: &Artifacts, config: Config) -> Node {
    lan.dnsmasq(&[RANGE, &format!("--address=/updates.lan.test/{}", Lan::ADDRESS)]);
    lan.nginx(updates.folder());
    let config = lan.attach(config).user_data(
        "[settings]\nmotd = \"kept\"\n[settings.updates]\nmetadata-base-url = \"http://updates.lan.test:8080/metadata/\"\nhealthy-for = 3\n",
    );
    let node = Node::new(config);
    copy_sparse(&first.disk(), &node.disk_path()).expect("the disk of the first version");
    node.resize(1 << 30);
    node
}

fn is_ready(node: &Node) {
    node.wait_until_healthy();
    node.wait_for("an address", PATIENCE, |node| node.status().addresses.get("eth0").cloned());
}

fn get(node: &Node, uri: &str) -> Option<Value> {
    let answer = node.request_within(Duration::from_secs(5), hyper::Method::GET, uri, "").ok()?;
    answer.is_success().then(|| serde_json::from_slice(&answer.body).ok()).flatten()
}

fn done(node: &Node, arguments: &[&str]) {
    let (code, said) = node.client(arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
}

/// Waits until a version runs that is not on trial.
fn stays(node: &Node, version: &str, outcomes: usize) {
    node.wait_for(format!("{version} runs and stays"), PATIENCE, |node| {
        let runs = get(node, "/os")?["version_id"] == json!(version);
        (runs && get(node, "/updates/history")?.as_array()?.len() == outcomes).then_some(())
    });
    is_ready(node);
}

#[test]
fn after_any_power_cut_a_version_boots_whose_root_verifies() {
    let mut lan = Lan::new();
    let updates = Updates::new();
    let built: Vec<Artifacts> = ["0.1.0", "0.2.0", "0.3.0", "0.4.0"]
        .into_iter()
        .map(|version| {
            updates.build(version, |variant| {
                // Another content of nearly all blocks.
                if version == "0.3.0" {
                    variant.preload.clear();
                }
            })
        })
        .collect();
    let mut node =
        node_of(&mut lan, &updates, &built[0], Config { format: Format::Recorded, ..Config::uefi() });
    let before = node.path("before.img");
    copy_sparse(&node.disk_path(), &before).expect("a copy of the disk");
    updates.publish_built(&built[0]);
    updates.publish_built(&built[1]);
    node.start();
    is_ready(&node);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.2.0", 1);
    done(&node, &["update", "rollback", "--reboot"]);
    stays(&node, "0.1.0", 2);
    updates.publish_built(&built[2]);
    done(&node, &["update", "apply", "--check"]);
    done(&node, &["update", "cancel"]);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.3.0", 3);
    updates.publish_built(&built[3]);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.4.0", 4);
    node.power_off();
    let out = std::path::Path::new("/root/sweep-rec");
    std::fs::create_dir_all(out).unwrap();
    for (from, to) in [(before, "before.img"), (node.record(), "writes"), (node.disk_path(), "after.img")] {
        copy_sparse(&from, &out.join(to)).unwrap();
    }
    for b in &built {
        for f in [b.root(), b.verity(), b.uki()] {
            let v = b.dir.file_name().unwrap().to_str().unwrap().to_owned();
            std::fs::copy(&f, out.join(format!("{v}-{}", f.file_name().unwrap().to_str().unwrap()))).unwrap();
        }
    }
}
