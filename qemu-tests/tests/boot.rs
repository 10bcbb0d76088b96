//! Every way to boot, and every way to end.

use qemu_tests::{Board, Config, Node};
use serde_json::json;

/// Boots, is used, and powers off when its button is pressed.
fn lives(config: Config) -> Node {
    let mut node = Node::boot(config);
    assert_eq!(node.get("/os")["variant_id"], "default");
    node.power_off();
    assert!(node.console().contains("powering off"), "the end was not orderly");
    node
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

#[test]
fn a_reboot_by_the_api_keeps_what_was_set() {
    let mut node = Node::boot_healthy(Config::direct());
    node.set(&json!({"motd": "before"}));
    node.reboot();
    assert_eq!(node.setting("motd"), "before");
    node.power_off();
}
