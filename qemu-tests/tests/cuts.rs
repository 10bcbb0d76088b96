//! Power cuts in updates: by the million on a record of what an update writes, and real ones.

use build::artifacts::{Artifacts, copy_sparse};
use qemu_tests::sweep::{Event, Judge, Known, Verdict, read_record, sweep};
use qemu_tests::{Config, Format, Lan, Node, Updates};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";
const PATIENCE: Duration = Duration::from_secs(240);

fn node_of(lan: &mut Lan, updates: &Updates, first: &Artifacts, config: Config) -> Node {
    lan.dnsmasq(&[RANGE, &format!("--address=/updates.lan.test/{}", Lan::ADDRESS)]);
    lan.nginx(updates.folder());
    let config = lan.attach(config).user_data(
        "[settings]\nmotd = \"kept\"\n[settings.updates]\nmetadata-base-url = \"http://updates.lan.test:8080/metadata/\"\nhealthy-for = 3\n",
    );
    let node = Node::new(config);
    copy_sparse(&first.disk(), &node.disk_path()).expect("the disk of the first version");
    node.resize(1 << 30);
    node
}

fn is_ready(node: &Node) {
    node.wait_until_healthy();
    node.wait_for("an address", PATIENCE, |node| node.status().addresses.get("eth0").cloned());
}

fn get(node: &Node, uri: &str) -> Option<Value> {
    let answer = node.request_within(Duration::from_secs(5), hyper::Method::GET, uri, "").ok()?;
    answer.is_success().then(|| serde_json::from_slice(&answer.body).ok()).flatten()
}

fn done(node: &Node, arguments: &[&str]) {
    let (code, said) = node.client(arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
}

/// Waits until a version runs that is not on trial.
fn stays(node: &Node, version: &str, outcomes: usize) {
    node.wait_for(format!("{version} runs and stays"), PATIENCE, |node| {
        let runs = get(node, "/os")?["version_id"] == json!(version);
        (runs && get(node, "/updates/history")?.as_array()?.len() == outcomes).then_some(())
    });
    is_ready(node);
}

/// What was written to a disk while its node went from version to version.
struct Recorded {
    /// The disk as it was before the first write.
    before: PathBuf,
    record: Vec<u8>,
    known: Vec<Known>,
    /// Keeps the files.
    _node: Node,
}

/// Forward, back, over what was tried and taken back again, and over the slot that ran first.
fn record() -> Recorded {
    let mut lan = Lan::new();
    let updates = Updates::new();
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.4.0"];
    let built = versions.map(|version| {
        updates.build(version, |variant| {
            // Another content of nearly all blocks.
            if version == "0.3.0" {
                variant.preload.clear();
            }
        })
    });
    let config = Config { format: Format::Recorded, ..Config::uefi() };
    let mut node = node_of(&mut lan, &updates, &built[0], config);
    let before = node.path("before.img");
    copy_sparse(&node.disk_path(), &before).expect("a copy of the disk");
    updates.publish_built(&built[0]);
    updates.publish_built(&built[1]);
    node.start();
    is_ready(&node);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.2.0", 1);
    done(&node, &["update", "rollback", "--reboot"]);
    stays(&node, "0.1.0", 2);
    updates.publish_built(&built[2]);
    done(&node, &["update", "apply", "--check"]);
    done(&node, &["update", "cancel"]);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.3.0", 3);
    updates.publish_built(&built[3]);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.4.0", 4);
    node.power_off();
    let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let known = versions.iter().zip(&built).map(|(version, built)| Known {
        version: (*version).to_owned(),
        uki: read(built.uki()),
        root: read(built.root()),
        tree: read(built.verity()),
    });
    Recorded { before, record: read(node.record()), known: known.collect(), _node: node }
}

fn judge(recorded: Recorded) -> (Judge, Vec<u8>, Vec<Event>) {
    let Recorded { before, record, known, _node } = recorded;
    let disk = File::open(before).expect("the disk before");
    let size = usize::try_from(disk.metadata().expect("its size").len()).expect("a size");
    let judge = Judge::new(size, known, |from, buffer| Ok(disk.read_exact_at(buffer, from as u64)?));
    let events = read_record(&record).expect("a record");
    (judge.expect("a disk with two slots"), record, events)
}

#[test]
fn after_any_power_cut_a_version_boots_whose_root_verifies() {
    let (mut judge, record, events) = judge(record());
    let begun = Instant::now();
    let report = sweep(&mut judge, &record, &events, 20_261_125);
    for (kind, points) in &report.points {
        eprintln!("{points:>9} cut points: {kind}");
    }
    let name = |version: usize, is_on_trial: bool| {
        format!("{}{}", judge.version(version), if is_on_trial { " on trial" } else { "" })
    };
    for ((version, is_on_trial), points) in &report.boots {
        eprintln!("{points:>9} boot {}", name(*version, *is_on_trial));
    }
    eprintln!(
        "{} cut points in {:.1} s, {} failed; {} boot neither what was before nor what is after; {} have two names for one file",
        report.total(),
        begun.elapsed().as_secs_f64(),
        report.failed,
        report.elsewhere,
        report.shared
    );
    assert_eq!(report.failed, 0, "{:#?}", report.failures);
    assert!(report.total() >= 1_000_000, "{} cut points", report.total());
    let story: Vec<String> = report
        .story
        .iter()
        .map(|verdict| match verdict {
            Verdict::Boots { version, is_on_trial } => name(*version, *is_on_trial),
            Verdict::Fails(reason) => reason.clone(),
        })
        .collect();
    let told = [
        "0.1.0",
        "0.2.0 on trial",
        "0.2.0",
        "0.1.0",
        "0.3.0 on trial",
        "0.1.0",
        "0.3.0 on trial",
        "0.3.0",
        "0.4.0 on trial",
        "0.4.0",
    ];
    assert_eq!(story, told);
}
