//! Disks that are larger, smaller, damaged or full.

use build::command::run_quiet;
use qemu_tests::{Config, ContainerState, Node, bench, flip, script, wipe};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;

const GIB: u64 = 1 << 30;

#[test]
fn data_grows_with_the_disk_at_every_boot() {
    let mut node = Node::boot(Config { disk_size: Some(3 * GIB), ..Config::direct() });
    node.wait_for_console("grow-data: the data partition has grown");
    node.power_off();
    for size in [3 * GIB, 5 * GIB] {
        let partition = node.disk().partition("data").unwrap().clone();
        let end = partition.start + partition.size;
        assert!(size - end < 4 << 20, "data ends {} bytes before the end of the disk", size - end);
        let unused = partition.size - ext4_bytes(&node, "data");
        assert!(unused < 4 << 20, "the file system leaves {unused} bytes of its partition unused");
        check_ext4(&node, "data");
        check_ext4(&node, "state");
        if size == 3 * GIB {
            node.resize(5 * GIB);
            node.start();
            node.wait_for_console("grow-data: the data partition has grown");
            node.wait_for_api();
            node.power_off();
        }
    }
    // Nothing is left to grow, and nothing is said.
    node.start();
    node.wait_for_api();
    node.wait_until_healthy();
    node.power_off();
    assert!(!node.console().contains("has grown"), "it says that it has grown, but it did not");
}

/// The power was cut in the middle of a superblock: its two sectors do not fit together.
#[test]
fn torn_superblocks_are_mended_and_nothing_is_lost() {
    let mut node = Node::boot_healthy(Config::direct());
    node.set(&json!({"motd": "kept", "containers": {"web": script("echo kept; exec sleep 3600")}}));
    node.wait_for_logs("web", "kept");
    node.power_off();
    for name in ["state", "data"] {
        let start = node.disk().partition(name).unwrap().start;
        // In the checksum, which is all of the second sector that changes.
        flip(&node.disk_path(), start + 1024 + 0x3fc);
    }
    node.start();
    node.wait_until_healthy();
    assert_eq!(node.console().matches("had torn the superblock of").count(), 2, "{}", node.console());
    assert_eq!((node.status().state, node.status().data), ("ext4".to_owned(), "ext4".to_owned()));
    assert_eq!(node.setting("motd"), "kept");
    node.wait_for_logs("web", "kept\nkept");
    node.power_off();
    check_ext4(&node, "state");
    check_ext4(&node, "data");
}

/// Where the image has the file system of data, which its table does not list.
fn start_of_data(node: &Node) -> u64 {
    let state = node.disk().partition("state").unwrap().clone();
    state.start + state.size
}

#[test]
fn a_table_that_lost_its_data_partition_is_mended() {
    let mut node = Node::boot_healthy(Config::direct());
    node.set(&json!({"containers": {"web": script("echo kept; exec sleep 3600")}}));
    node.wait_for_logs("web", "kept");
    node.power_off();
    let mut file = File::options().read(true).write(true).open(node.disk_path()).unwrap();
    let mut table = gptman::GPT::find_from(&mut file).unwrap();
    let data = table.iter().find(|(_, entry)| entry.partition_name.as_str() == "data").unwrap().0;
    table.remove(data).unwrap();
    table.write_into(&mut file).unwrap();
    node.start();
    node.wait_for_api();
    node.wait_until_healthy();
    assert_eq!(node.status().data, "ext4");
    node.power_off();
    assert!(node.file("data", "/log/containers/web.log").contains("kept"));
    check_ext4(&node, "data");
}

#[test]
fn a_data_partition_without_a_file_system() {
    let mut node = Node::boot_healthy(Config::direct());
    node.power_off();
    wipe(&node.disk_path(), start_of_data(&node), 1 << 20);
    runs_on_memory(&mut node);
}

#[test]
fn a_disk_without_a_data_partition() {
    let mut node = Node::new(Config::direct());
    wipe(&node.disk_path(), start_of_data(&node), 1 << 20);
    runs_on_memory(&mut node);
}

/// The image's last part is cut off: the node runs from the rest, and says how large a disk it wants.
#[test]
fn a_disk_smaller_than_the_image() {
    let mut node = Node::new(Config { disk_size: None, ..Config::direct() });
    node.resize(start_of_data(&node) + (10 << 20));
    runs_on_memory(&mut node);
    assert!(node.console().contains("the image needs"), "the boot log does not name the size");
}

/// The node says what is wrong with its data partition, and runs a container all the same.
fn runs_on_memory(node: &mut Node) {
    node.start();
    node.wait_for_api();
    assert_eq!(node.status().data, "tmpfs");
    let problems = node.problems();
    assert!(problems.contains("/data") && problems.contains("memory"), "{problems}");
    assert!(node.console().contains("/data"), "the boot log does not name /data");
    node.set(&json!({"containers": {"web": script("echo on memory; exec sleep 3600")}}));
    node.wait_for_logs("web", "on memory");
    // What was acknowledged is on the state partition, which is there.
    node.set(&json!({"motd": "kept"}));
    node.reboot();
    assert_eq!(node.setting("motd"), "kept");
    node.power_off();
}

#[test]
fn a_state_partition_without_a_file_system() {
    let mut node = Node::new(Config::direct());
    let partition = node.disk().partition("state").unwrap().clone();
    wipe(&node.disk_path(), partition.start, 1 << 20);
    node.start();
    node.wait_for_api();
    let problems = node.problems();
    assert!(problems.contains("/state") && problems.contains("lost"), "{problems}");
}

#[test]
fn a_full_data_partition() {
    let mut node = Node::boot_healthy(Config { disk_size: None, ..Config::direct() });
    // What it says cannot be kept, as logs are on the same partition; that it ends can be seen.
    let fill = json!({"image": "localhost/busybox", "restart": "no", "command": ["dd", "if=/dev/zero", "of=/fill", "bs=64k"]});
    node.set(&json!({"containers": {"fill": fill}}));
    node.wait_for_container("fill", "it filled the disk", |container| container.exit_code == Some(1));
    // Settings have a partition of their own: they can still be changed.
    node.set(&json!({"motd": "set on a full disk"}));
    assert_eq!(node.setting("motd"), "set on a full disk");
    // One container more runs, or the node says why not.
    node.set(&json!({"containers": {"late": script("echo late; exec sleep 3600")}}));
    let late = node.wait_for_container("late", "it runs or has an error", |container| {
        container.state == ContainerState::Running || container.error.is_some()
    });
    if let Some(error) = late.error {
        assert!(error.contains("space"), "{error}");
    }
    node.reboot();
    assert_eq!(node.setting("motd"), "set on a full disk");
    node.power_off();
    check_ext4(&node, "state");
    check_ext4(&node, "data");
}

/// The size of an ext4 by its own superblock, at byte 1024: the low half of the number of blocks at 4, the high half at 0x150.
#[track_caller]
fn ext4_bytes(node: &Node, partition: &str) -> u64 {
    let start = node.disk().partition(partition).unwrap().start;
    let disk = File::open(node.disk_path()).unwrap();
    let half = |at: u64| {
        let mut bytes = [0; 4];
        disk.read_exact_at(&mut bytes, start + 1024 + at).unwrap();
        u64::from(u32::from_le_bytes(bytes))
    };
    (half(4) | half(0x150) << 32) * 4096
}

/// e2fsck finds nothing to repair.
#[track_caller]
fn check_ext4(node: &Node, partition: &str) {
    let start = node.disk().partition(partition).unwrap().start;
    let mut command = bench().toolbox.command("e2fsck");
    command.args(["-f", "-n"]).arg(format!("{}?offset={start}", node.disk_path().display()));
    run_quiet(&mut command, "e2fsck").unwrap_or_else(|error| panic!("{partition}: {error:#}"));
}
