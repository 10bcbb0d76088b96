//! What stories of updates do again and again.

use build::artifacts::{Artifacts, copy_sparse};
use serde_json::Value;
use std::time::Duration;

use crate::config::Config;
use crate::lan::Lan;
use crate::node::Node;
use crate::updates::Updates;

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";
const PATIENCE: Duration = Duration::from_secs(300);
const ANSWER: Duration = Duration::from_secs(5);

/// A node of a version that was built for a story, in a network with the repository.
#[track_caller]
pub fn node_with(lan: &mut Lan, updates: &Updates, first: &Artifacts, config: Config) -> Node {
    lan.dnsmasq(&[RANGE, &format!("--address=/updates.lan.test/{}", Lan::ADDRESS)]);
    lan.nginx(updates.folder());
    let config = lan.attach(config).user_data(
        "[settings.updates]\nmetadata-base-url = \"http://updates.lan.test:8080/metadata/\"\nhealthy-for = 3\n",
    );
    let mut node = Node::new(config);
    copy_sparse(&first.disk(), &node.disk_path()).expect("the disk of the first version");
    node.resize(1 << 30);
    node.start();
    node.wait_until_healthy();
    node.wait_for("an address", PATIENCE, |node| node.status().addresses.get("eth0").cloned());
    node
}

/// Which version answers, if one does.
pub fn version(node: &Node) -> Option<String> {
    let os = node.request_within(ANSWER, hyper::Method::GET, "/os", "").ok()?;
    let os: Value = serde_json::from_slice(&os.body).ok()?;
    os["version_id"].as_str().map(str::to_owned)
}

#[track_caller]
pub fn runs(node: &Node, wanted: &str) {
    node.wait_for(format!("version {wanted}"), PATIENCE, |node| (version(node)? == wanted).then_some(()));
}

/// What the client says to a command that succeeds.
#[track_caller]
pub fn done(node: &Node, arguments: &[&str]) -> String {
    let (code, said) = node.client(arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
    said
}

/// The newest outcome, once there are `count`.
#[track_caller]
pub fn outcome(node: &Node, count: usize) -> Value {
    node.wait_for(format!("outcome {count}"), PATIENCE, |node| {
        let answer = node.request_within(ANSWER, hyper::Method::GET, "/updates/history", "");
        let all: Vec<Value> = serde_json::from_slice(&answer.ok()?.body).ok()?;
        (all.len() == count).then(|| all.last().cloned()).flatten()
    })
}
