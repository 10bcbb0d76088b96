//! Power cuts while images come and go, on a record of what a node writes to its data partition.

use build::artifacts::copy_sparse;
use qemu_tests::sweep::{StoreJudge, read_record, sweep};
use qemu_tests::{Config, Format, Node, Registry};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

const SEED: u64 = 20_261_125;
/// Of a file that nothing packs.
const SIZE: usize = 1 << 20;

/// An image is pulled, another one takes its place, and the first one is removed. After any power cut, what has the name of a whole image
/// is whole.
#[test]
fn an_image_that_is_believed_whole_is_whole() {
    let registry = Registry::start();
    let one = registry.publish_large("stories/one", "latest", "the first", SIZE);
    let two = registry.publish_large("stories/two", "latest", "the second", SIZE);
    let mut node = Node::boot_healthy(Config { cpus: 1, ..Config::direct().registry(&registry) });
    node.power_off();
    let copy = |node: &Node, name: &str| -> PathBuf {
        let path = node.path(name);
        copy_sparse(&node.disk_path(), &path).expect("a copy of the disk");
        path
    };
    let before = copy(&node, "before.img");
    let known = |disk: &Path| {
        let judge = StoreJudge::new(disk, BTreeMap::new()).expect("a disk with data");
        judge.images().expect("images")
    };
    node.config.format = Format::Recorded;
    node.start();
    node.wait_until_healthy();
    node.set(&json!({"containers": {"web": {"image": one.by_tag}}}));
    node.wait_for_logs("web", "the first");
    node.power_off();
    let mut images = known(&copy(&node, "first.img"));
    assert_eq!(images.len(), 1, "{images:?}");
    node.start();
    node.wait_until_healthy();
    node.set(&json!({"containers": {"web": {"image": two.by_tag}}}));
    node.wait_for_logs("web", "the second");
    let (code, said) = node.client(&["image", "prune"]);
    assert!(code == 0 && said.contains(&one.by_tag), "{said}");
    node.power_off();
    let second = known(&node.disk_path());
    assert_eq!(second.len(), 1, "{:?}", second.keys());
    images.extend(second);
    assert_eq!(images.len(), 2);

    let record = std::fs::read(node.record()).expect("a record");
    let events = read_record(&record).expect("a record of writes");
    let mut judge = StoreJudge::new(&before, images).expect("a disk with data");
    let begun = Instant::now();
    let report = sweep(&mut judge, &record, &events, SEED);
    for (kind, points) in &report.points {
        eprintln!("{points:>9} cut points: {kind}");
    }
    for (state, points) in &report.states {
        eprintln!("{points:>9} have {} images", state.len());
    }
    eprintln!(
        "{} cut points in {:.1} s, {} failed; {} have neither what was there before nor what is there after",
        report.total(),
        begun.elapsed().as_secs_f64(),
        report.failed,
        report.elsewhere
    );
    assert_eq!(report.failed, 0, "{:#?}", report.failures);
    assert!(report.total() >= 100_000, "{} cut points", report.total());
    let story: Vec<usize> =
        report.story.iter().map(|state| state.as_ref().map_or(usize::MAX, Vec::len)).collect();
    assert!(story.first() == Some(&0) && story.last() == Some(&1), "{story:?}");
}
