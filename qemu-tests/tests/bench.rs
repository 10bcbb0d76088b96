//! What `cargo caisson bench` measures is there, and the image is as small as it is said to be. Times are not judged here: they
//! are for benches, on a machine that does nothing else.

use build::bench::{boot, size};
use qemu_tests::bench;

#[test]
fn every_kind_of_boot_is_measured() {
    let bench = bench();
    let options = boot::Options { variant: "default".to_owned(), runs: 1, cpus: 1, memory: 256 };
    let boots = boot::measure(&bench.project, &bench.artifacts, &options).unwrap();
    assert_eq!(boots.bare.keys().copied().collect::<Vec<_>>(), ["direct", "microvm"]);
    assert_eq!(boots.nodes.keys().copied().collect::<Vec<_>>(), ["direct", "microvm", "uefi"]);
    for (name, node) in &boots.nodes {
        let (init, api) = (node.kernel_to_init_ms.median, node.kernel_to_api_ms.median);
        assert!(0 < init && init < api && api < node.kernel_to_container_ms.median, "{name}: {node:?}");
        assert!(
            node.memory_used_kib.median > boots.bare["direct"].memory_used_kib.median,
            "{name}: {node:?}"
        );
    }
    let memory = boots.goals.iter().find(|goal| goal.name.contains("memory")).unwrap();
    assert!(memory.reached, "{memory:?}");
}

#[test]
fn the_image_is_small() {
    let sizes = size::measure(&bench().artifacts, "default").unwrap();
    for goal in &sizes.goals {
        assert!(goal.reached, "{goal:?}: the largest files are {:?}", sizes.root);
    }
    assert!(sizes.root.iter().any(|(path, _)| path == "/usr/bin/youki"), "{:?}", sizes.root);
}
