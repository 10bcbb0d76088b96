//! A root that was changed: the kernel does not run from it.

use qemu_tests::{Config, Node, bench, flip};
use std::fs;

const PANIC: &str = "Kernel panic - not syncing: dm-verity device corrupted";

#[test]
fn a_byte_changed_in_a_block_that_every_boot_reads() {
    let mut node = Node::new(Config::direct());
    // The superblock of erofs is at byte 1024.
    let root = node.disk().partition("root-a").unwrap().start;
    flip(&node.disk_path(), root + 1024);
    node.start();
    node.wait_for_console(PANIC);
    assert!(!node.console().contains("ready"), "something ran from a changed root");
}

/// No boot reads it; the node finds it all the same, before a container does.
#[test]
fn a_byte_changed_in_a_block_that_only_a_container_reads() {
    let mut node = Node::new(Config::direct());
    let root = node.disk().partition("root-a").unwrap().start;
    flip(&node.disk_path(), root + place_of_busybox());
    node.start();
    node.wait_for_console("apiserver: ready");
    node.wait_for_console(PANIC);
}

/// Where the second block of the preloaded busybox is in the root: a block that starting it reads, and nothing else does.
fn place_of_busybox() -> u64 {
    const BLOCK: usize = 4096;
    let bench = bench();
    let program = fs::read(bench.toolbox.root.join("usr/bin/busybox")).unwrap();
    let root = fs::read(bench.artifacts.root()).unwrap();
    let wanted = &program[BLOCK..2 * BLOCK];
    let place = root.chunks(BLOCK).position(|block| block == wanted);
    place.expect("the root holds busybox, uncompressed") as u64 * BLOCK as u64
}
