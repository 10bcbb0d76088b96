//! What was acknowledged is there after a power cut.

use hyper::Method;
use qemu_tests::{Config, Format, Node};
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const CUTS: u32 = 30;

/// Sets a value over and over; at a random moment the power goes. The disk loses what was not flushed.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut node = Node::new(Config { format: Format::Qcow2, ..Config::direct() });
    let (mut acknowledged, mut asked) = (Value::Null, Value::Null);
    for cut in 0..CUTS {
        node.start();
        node.wait_for_api();
        let found = node.setting("motd");
        // What was on its way when the power went may be there or not; never anything else.
        assert!(
            cut == 0 || found == acknowledged || found == asked,
            "after cut {cut}: {found} instead of {acknowledged}"
        );
        acknowledged = json!(format!("cut {cut}"));
        node.set(&json!({"motd": acknowledged}));
        node.cut_power_after(Duration::from_millis(RandomState::new().hash_one(cut) % 300));
        for change in 0u32.. {
            asked = json!(format!("cut {cut}, change {change}"));
            if !quick_set(&node, &asked) {
                break;
            }
            acknowledged = asked.clone();
        }
        node.wait_for_end();
    }
    // The store on the disk says the same as the API.
    node.start();
    node.wait_for_api();
    let found = node.setting("motd");
    assert!(found == acknowledged || found == asked, "{found} instead of {acknowledged}");
    node.power_off();
    let files = node.disk().files("state").unwrap();
    let last =
        files.iter().rfind(|file| file.path.contains("/generation-")).expect("a generation on the disk");
    let text = node.file("state", &last.path);
    assert!(text.contains(&found.to_string()), "{}: {text}", last.path);
}

/// False when the power went before the answer came.
fn quick_set(node: &Node, motd: &Value) -> bool {
    let body = json!({"motd": motd}).to_string();
    [(Method::PATCH, "/settings?tx=cut", body.as_str()), (Method::POST, "/tx/commit_and_apply?tx=cut", "")]
        .into_iter()
        .all(|(method, uri, body)| {
            let answer = node.request_within(Duration::from_secs(30), method, uri, body);
            answer.is_ok_and(|answer| {
                assert!(answer.is_success(), "{motd} was refused with {}: {}", answer.status, answer.text());
                true
            })
        })
}
