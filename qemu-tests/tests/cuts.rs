//! Power cuts in updates: by the million on a record of what an update writes, and real ones.

use build::artifacts::copy_sparse;
use qemu_tests::sweep::{Boots, Judge, Known, add_name, read_record, sweep};
use qemu_tests::updated::{done, node_with, outcome, runs, version};
use qemu_tests::{Chance, Config, Format, Lan, Node, Updates, newer_loader, times};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Of what a sweep takes at random.
const SEED: u64 = 20_261_125;
/// The version of a loader that is newer than any.
const LOADER: &str = "999";
/// Where `CAISSON_KILLS` does not say.
const KILLS: u32 = 3;
/// Where `CAISSON_RESETS` does not say.
const RESETS: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(240);

fn is_ready(node: &Node) {
    node.wait_until_healthy();
    node.wait_for("an address", PATIENCE, |node| node.status().addresses.get("eth0").cloned());
}

fn get(node: &Node, uri: &str) -> Option<Value> {
    let answer = node.request_within(Duration::from_secs(5), hyper::Method::GET, uri, "").ok()?;
    answer.is_success().then(|| serde_json::from_slice(&answer.body).ok()).flatten()
}

/// Waits until a version runs that is not on trial: it is what became of so many updates.
fn stays(node: &Node, version: &str, outcomes: usize) {
    runs(node, version);
    outcome(node, outcomes);
    is_ready(node);
}

/// What was written to a disk while its node went from version to version.
struct Recorded {
    /// The disk as it was before the first write.
    before: PathBuf,
    record: Vec<u8>,
    known: Vec<Known>,
    /// The one that took the place of the first.
    loader: Vec<u8>,
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
            match version {
                "0.2.0" => updates.add_loader(variant, LOADER),
                // Another content of nearly all blocks.
                "0.3.0" => variant.preload.clear(),
                _ => {}
            }
        })
    });
    updates.publish_built(&built[0]);
    updates.publish_built(&built[1]);
    let mut node =
        node_with(&mut lan, &updates, &built[0], Config { format: Format::Recorded, ..Config::uefi() });
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
    let loader = node.disk().read("esp", "/EFI/BOOT/BOOTX64.EFI").expect("the loader");
    assert!(loader == newer_loader(LOADER), "the loader was not renewed");
    // The node's disk as it was, before `node_with` switched it on.
    let before = node.path("before.img");
    copy_sparse(&built[0].disk(), &before).expect("a copy of the disk");
    let size = fs::metadata(node.disk_path()).expect("the disk").len();
    File::options().write(true).open(&before).and_then(|disk| disk.set_len(size)).expect("its size");
    let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let known = versions.iter().zip(&built).map(|(version, built)| Known {
        version: (*version).to_owned(),
        uki: read(built.uki()),
        root: read(built.root()),
        tree: read(built.verity()),
    });
    Recorded {
        before,
        record: read(node.record()),
        known: known.collect(),
        loader: newer_loader(LOADER),
        _node: node,
    }
}

impl Recorded {
    /// Of the disk as it was before.
    fn judge(&self) -> Judge {
        let disk = File::open(&self.before).expect("the disk before");
        let size = usize::try_from(disk.metadata().expect("its size").len()).expect("a size");
        let read = |from: usize, buffer: &mut [u8]| Ok(disk.read_exact_at(buffer, from as u64)?);
        let mut judge = Judge::new(size, self.known.clone(), read).expect("a disk with two slots");
        judge.add_loader(self.loader.clone());
        judge
    }
}

#[test]
fn after_any_power_cut_a_version_boots_whose_root_verifies() {
    let recorded = record();
    let events = read_record(&recorded.record).expect("a record");
    let mut judge = recorded.judge();
    let begun = Instant::now();
    let report = sweep(&mut judge, &recorded.record, &events, SEED);
    for (kind, points) in &report.points {
        eprintln!("{points:>9} cut points: {kind}");
    }
    let name = |Boots { version, is_on_trial }: &Boots| {
        format!("{}{}", judge.version(*version), if *is_on_trial { " on trial" } else { "" })
    };
    for (state, points) in &report.states {
        eprintln!("{points:>9} boot {}", name(state));
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
    let story: Vec<String> =
        report.story.iter().map(|verdict| verdict.as_ref().map_or_else(String::clone, name)).collect();
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

/// Kills QEMU at any time of an update or of a rollback, as often as `CAISSON_KILLS` says. What comes up is one of the two versions,
/// with all settings; what was cut is done by the next attempt.
#[test]
fn a_node_that_is_killed_in_updates_comes_up_and_goes_on() {
    let kills = times("CAISSON_KILLS", KILLS);
    let mut lan = Lan::new();
    let updates = Updates::new();
    let [first, second] = ["0.1.0", "0.2.0"].map(|version| updates.build(version, |_| {}));
    updates.publish_built(&first);
    updates.publish_built(&second);
    // What is not flushed is lost with QEMU.
    let config = Config { format: Format::Qcow2, ..Config::uefi() };
    let mut node = node_with(&mut lan, &updates, &first, config);
    // A version that was taken back is installed again only where settings name it.
    node.set(&json!({"updates": {"version-lock": "0.2.0"}}));
    let begun = Instant::now();
    go_to(&node, "0.2.0");
    go_to(&node, "0.1.0");
    let both = begun.elapsed();
    let mut chance = Chance::new();
    let (mut cut_in_update, mut came_up_new) = (0, 0);
    for kill in 0..kills {
        let motd = format!("before kill {kill}");
        node.set(&json!({ "motd": motd }));
        let goal = if version(&node).as_deref() == Some("0.1.0") { "0.2.0" } else { "0.1.0" };
        let delay = chance.below(both.mul_f64(0.6));
        let at = Instant::now() + delay;
        node.cut_power_after(delay);
        let went = begin(&node, goal);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        cut_in_update += u32::from(!went);
        node.wait_for_end();
        node.start();
        is_ready(&node);
        let new = version(&node).as_deref() == Some(goal);
        came_up_new += u32::from(new);
        eprintln!(
            "kill {kill} after {:.1} s on the way to {goal}: {} runs",
            delay.as_secs_f64(),
            if new { "it" } else { "the other" }
        );
        assert_eq!(node.setting("motd"), motd.as_str());
        go_to(&node, goal);
        assert_eq!(node.setting("motd"), motd.as_str());
    }
    eprintln!(
        "{kills} kills: {cut_in_update} before the restart was asked for; {came_up_new} came up with the version they were on the way to"
    );
}

/// Asks for the other version; whether that went well.
fn begin(node: &Node, goal: &str) -> bool {
    let arguments: &[&str] = match goal {
        "0.2.0" => &["update", "apply", "--check", "--reboot"],
        _ => &["update", "rollback", "--reboot"],
    };
    node.client(arguments).0 == 0
}

/// Asks until the other version runs and is not on trial. What boots next already is only waited for.
fn go_to(node: &Node, goal: &str) {
    node.wait_for(format!("{goal} runs and stays"), PATIENCE, |node| {
        if version(node)? == goal {
            let outcomes = get(node, "/updates/history")?;
            let newest = outcomes.as_array()?.last()?.clone();
            // Of a rollback there may be none: the power went before it was noted.
            let stays =
                goal == "0.1.0" || (newest["version"] == json!(goal) && newest["result"] == json!("good"));
            return stays.then_some(());
        }
        if get(node, "/updates/status").is_some_and(|status| status["update_state"] == "Ready") {
            node.client(&["reboot"]);
        } else {
            begin(node, goal);
        }
        std::thread::sleep(Duration::from_secs(2));
        None
    });
    is_ready(node);
}

/// Resets at any time of a boot and after, as often as `CAISSON_RESETS` says: no try is counted, and nothing is lost.
#[test]
fn hard_resets_of_a_blessed_system_change_nothing() {
    let resets = times("CAISSON_RESETS", RESETS);
    let mut lan = Lan::new();
    let updates = Updates::new();
    let [first, second] = ["0.1.0", "0.2.0"].map(|version| updates.build(version, |_| {}));
    updates.publish_built(&second);
    let config = Config { format: Format::Qcow2, ..Config::uefi() };
    let mut node = node_with(&mut lan, &updates, &first, config);
    node.set(&json!({"motd": "kept"}));
    done(&node, &["update", "apply", "--check", "--reboot"]);
    stays(&node, "0.2.0", 1);
    node.power_off();
    let entries = ["/EFI/Linux/caisson_0.1.0.efi", "/EFI/Linux/caisson_0.2.0.efi"];
    assert_eq!(entries_of(&node), entries);

    let begun = Instant::now();
    node.start();
    node.wait_until_healthy();
    let (boot, mut chance) = (begun.elapsed(), Chance::new());
    let begun = Instant::now();
    for reset in 0..resets {
        let delay = chance.below(boot.mul_f64(1.5));
        std::thread::sleep(delay);
        node.cut_power();
        eprintln!("reset {reset} after {:.1} s", delay.as_secs_f64());
        assert_eq!(entries_of(&node), entries);
        node.start();
    }
    eprintln!(
        "{resets} resets in {:.0} s; a boot takes {:.1} s",
        begun.elapsed().as_secs_f64(),
        boot.as_secs_f64()
    );
    stays(&node, "0.2.0", 1);
    assert_eq!(node.setting("motd"), "kept");
    node.power_off();
    assert_eq!(entries_of(&node), entries);
}

/// The names of the kernel images on the ESP of a node that is off.
fn entries_of(node: &Node) -> Vec<String> {
    let entries = node.disk().boot_entries().expect("the entries of the ESP");
    let mut paths: Vec<String> = entries.into_iter().map(|entry| entry.path).collect();
    paths.sort();
    paths
}

/// A cut in the rename that arms an update: the file has the old name and the new one. The old one is not removed while the version
/// is kept, which would free its clusters for the next kernel image.
#[test]
fn a_kernel_image_that_a_cut_left_with_two_names_is_not_overwritten() {
    let mut lan = Lan::new();
    let updates = Updates::new();
    let [first, second, third] = ["0.1.0", "0.2.0", "0.3.0"].map(|version| updates.build(version, |_| {}));
    updates.publish_built(&first);
    updates.publish_built(&second);
    let cmdline = fs::read_to_string(first.cmdline()).expect("a command line");
    let config = Config { choose_slot: true, cmdline: Some(cmdline.trim().to_owned()), ..Config::direct() };
    let mut node = node_with(&mut lan, &updates, &first, config);
    done(&node, &["update", "apply", "--check"]);
    node.power_off();

    let mut esp = node.disk().content("esp").expect("the ESP");
    let start = node.disk().partition("esp").expect("the ESP").start;
    add_name(&mut esp, "EFI/Linux", "caisson_0.2.0+3.efi", "caisson_0.2.0.efi.staged")
        .expect("a second name");
    let disk = File::options().write(true).open(node.disk_path()).expect("the disk");
    disk.write_all_at(&esp, start).expect("another ESP");

    updates.publish_built(&third);
    node.start();
    stays(&node, "0.2.0", 1);
    done(&node, &["update", "apply", "--check"]);
    node.power_off();
    let kept =
        node.disk().read("esp", "/EFI/Linux/caisson_0.2.0.efi").expect("the kernel image of what runs");
    assert!(kept == fs::read(second.uki()).expect("what was built"), "it was overwritten");
    let armed = node.disk().read("esp", "/EFI/Linux/caisson_0.3.0+3.efi").expect("the new kernel image");
    assert!(armed == fs::read(third.uki()).expect("what was built"), "the new one is not whole");
}
