//! Every way to boot, and every way to end.

use hyper::Method;
use qemu_tests::{Board, Config, Node};
use serde_json::json;

/// Boots, is used, restarts, and powers off when its button is pressed.
fn lives(config: Config) {
    let mut node = Node::boot_healthy(config);
    assert_eq!(node.get("/os")["variant_id"], "default");
    node.set(&json!({"motd": "before"}));
    node.reboot();
    assert_eq!(node.setting("motd"), "before");
    node.wait_until_healthy();
    node.power_off();
    assert!(node.console().contains("powering off"), "the end was not orderly");
}

#[test]
fn from_its_disk_by_uefi() {
    lives(Config::uefi());
}

#[test]
fn directly_on_q35() {
    lives(Config::direct());
}

#[test]
fn directly_on_microvm() {
    lives(Config::microvm());
}

#[test]
fn from_its_disk_by_uefi_on_the_older_board() {
    lives(Config { board: Board::Pc, ..Config::uefi() });
}

/// Who asks for a restart is told that it begins.
#[test]
fn a_reboot_is_acknowledged() {
    let node = Node::boot_healthy(Config::direct());
    let answer = node.request(Method::POST, "/actions/reboot", "");
    assert_eq!((answer.status, answer.text().as_str()), (204, ""));
}
