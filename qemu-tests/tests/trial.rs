//! Commits on trial: what is not confirmed comes back by itself, whatever happens in between.

use hyper::Method;
use qemu_tests::{Config, Format, Node};
use serde_json::{Value, json};
use std::time::Duration;

/// For all that a story does before it waits, also on a busy machine.
const SHORT: u32 = 15;
const LONG: u32 = 120;
const COMES_BACK: Duration = Duration::from_secs(90);

/// Sets the host name for good, and then another on trial.
fn try_hostname(node: &Node, seconds: u32) {
    node.set(&json!({"network": {"hostname": "proven"}}));
    node.granted(Method::PATCH, "/settings?tx=trial", r#"{"network": {"hostname": "tried"}}"#);
    node.granted(Method::POST, &format!("/tx/commit_and_apply?tx=trial&try={seconds}"), "");
    assert_eq!(node.setting("network.hostname"), "tried");
}

#[track_caller]
fn wait_until_it_is_back(node: &Node) {
    node.wait_for("the host name comes back", COMES_BACK, |node| {
        (node.setting("network.hostname") == "proven").then_some(())
    });
    assert_eq!(node.get("/actions/trial"), Value::Null);
    // And the node has it, not only its settings.
    node.wait_for("what came back is applied", COMES_BACK, |node| {
        let newest = node.get("/generations")[0].clone();
        assert!(newest["transaction"].as_str().is_some_and(|name| name.starts_with("revert-")), "{newest}");
        let steps = newest["outcome"]["steps"].as_array()?.clone();
        steps.iter().all(|step| step["error"].is_null()).then_some(())
    });
}

#[test]
fn a_host_name_that_is_not_confirmed_comes_back_by_itself() {
    let node = Node::boot_healthy(Config::direct());
    try_hostname(&node, SHORT);
    assert!(node.problems().contains("is on trial"), "{}", node.problems());
    wait_until_it_is_back(&node);
    assert!(!node.problems().contains("trial"), "{}", node.problems());
}

/// The disk loses what was not flushed; the time that the node was off does not count.
#[test]
fn it_comes_back_also_over_a_power_cut() {
    let mut node = Node::boot_healthy(Config { format: Format::Qcow2, ..Config::direct() });
    try_hostname(&node, LONG);
    node.cut_power();
    node.start();
    node.wait_for_api();
    assert_eq!(node.setting("network.hostname"), "tried");
    let trial = node.get("/actions/trial");
    let left = trial["seconds-left"].as_u64().unwrap_or_default();
    // A start in another boot costs a tenth.
    assert!((1..=u64::from(LONG - LONG / 10)).contains(&left), "{trial}");
    node.wait_for("generation 1 comes back", Duration::from_secs(left + 30), |node| {
        (node.setting("network.hostname") == "proven").then_some(())
    });
    wait_until_it_is_back(&node);
}

/// A node that its settings make restart over and over.
#[test]
fn it_comes_back_when_the_power_goes_at_every_boot() {
    let mut node = Node::boot_healthy(Config { format: Format::Qcow2, ..Config::direct() });
    try_hostname(&node, LONG);
    let boots = (1..).find(|_| {
        node.cut_power();
        node.start();
        node.wait_for_api();
        node.setting("network.hostname") == "proven"
    });
    assert!(boots.is_some_and(|boots| boots <= 10), "it took {boots:?} boots");
    wait_until_it_is_back(&node);
}

#[test]
fn what_is_confirmed_stays() {
    let mut node = Node::boot_healthy(Config { format: Format::Qcow2, ..Config::direct() });
    try_hostname(&node, SHORT);
    node.granted(Method::POST, "/actions/confirm", "");
    node.cut_power();
    node.start();
    node.wait_for_api();
    std::thread::sleep(Duration::from_secs(u64::from(SHORT)));
    assert_eq!(node.setting("network.hostname"), "tried");
    assert_eq!(node.get("/actions/trial"), Value::Null);
}
