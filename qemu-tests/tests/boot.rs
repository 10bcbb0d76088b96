//! Every way to boot, and every way to end.

use hyper::Method;
use qemu_tests::{Board, Config, Node, bench};
use serde_json::json;
use std::fs;

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

/// The kernel as firmware and clouds load it, by a VMM that takes it from the unified kernel image.
#[test]
fn directly_as_a_bzimage_on_the_older_board() {
    let uki = fs::read(bench().artifacts.uki()).unwrap();
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let kernel = folder.path().join("bzImage");
    fs::write(&kernel, build::uki::section(&uki, ".linux").unwrap()).unwrap();
    lives(Config { board: Board::Pc, kernel: Some(kernel), ..Config::direct() });
}

/// In order, without a button.
#[test]
fn it_is_switched_off_through_the_api() {
    let mut node = Node::boot_healthy(Config::direct());
    let answer = node.request(Method::POST, "/actions/power-off", "");
    assert_eq!((answer.status, answer.text().as_str()), (204, ""));
    node.wait_for_end();
    assert!(node.console().contains("powering off"), "{}", node.console());
    // PID 1's own words are kept too.
    assert!(node.file("data", "/log/init.log").contains("asked through the API"));
}

/// Who asks for a restart is told that it begins.
#[test]
fn a_reboot_is_acknowledged() {
    let node = Node::boot_healthy(Config::direct());
    let answer = node.request(Method::POST, "/actions/reboot", "");
    assert_eq!((answer.status, answer.text().as_str()), (204, ""));
}
