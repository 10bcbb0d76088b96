//! The rollback matrix: what can be wrong with a new version, on its first try and on a later one; which slot runs in the end, and
//! which reason is told. A version whose kernel panics and one that does not become healthy are in `update.rs`.

use build::variant::Variant;
use qemu_tests::updated::{done, node_with, outcome, runs, version};
use qemu_tests::{Config, Lan, Node, Updates, wipe};
use serde_json::json;
use std::fs;
use std::time::Duration;

const OLD: &str = "0.1.0";
const NEW: &str = "0.2.0";

/// A network with a repository that has a new version, and a node of the old one.
struct World {
    node: Node,
    lan: Lan,
    _updates: Updates,
}

impl World {
    fn new(config: Config, change: impl Fn(&mut Variant)) -> Self {
        Self::of(config, |_, variant| change(variant))
    }

    /// The new version runs a script as soon as its agent is ready.
    fn with_script(config: Config, script: &str) -> Self {
        Self::of(config, |updates, variant| updates.add_script(variant, script))
    }

    fn of(config: Config, change: impl Fn(&Updates, &mut Variant)) -> Self {
        let mut lan = Lan::new();
        let updates = Updates::new();
        let first = updates.build(OLD, |_| {});
        let second = updates.build(NEW, |variant| change(&updates, variant));
        updates.publish_built(&second);
        let cmdline = fs::read_to_string(first.cmdline()).expect("a command line");
        let config = Config { cmdline: Some(cmdline.trim().to_owned()), ..config };
        let node = node_with(&mut lan, &updates, &first, config);
        node.set(&json!({"motd": "kept", "updates": {"healthy-within": 15}}));
        done(&node, &["update", "apply", "--check"]);
        Self { node, lan, _updates: updates }
    }

    fn restart(&self) {
        done(&self.node, &["reboot"]);
    }

    /// The old version runs again, with the settings there were, and tells why.
    #[track_caller]
    fn comes_back(&self) -> String {
        let end = outcome(&self.node, 1);
        assert_eq!((&end["version"], &end["result"]), (&json!(NEW), &json!("rolled-back")), "{end}");
        assert_eq!(version(&self.node).as_deref(), Some(OLD));
        assert_eq!(self.node.setting("motd"), "kept");
        end["reason"].as_str().unwrap_or_default().to_owned()
    }
}

/// The kernel is loaded by the runner, by the rule of the loader: faster than firmware.
fn direct() -> Config {
    Config { choose_slot: true, keep_memory: true, ..Config::direct() }
}

/// With a watchdog that a hypervisor offers.
fn with_watchdog(mut config: Config) -> Config {
    config.extra.extend(["-device", "i6300esb"].map(str::to_owned));
    config
}

/// PID 1 takes no signal that stops it; the freezer of its control group does (kernel: admin-guide/cgroup-v2.rst).
const FREEZE_PID_1: &str =
    "cd /sys/fs/cgroup && mkdir frozen && echo 1 > frozen/cgroup.procs && echo 1 > frozen/cgroup.freeze";

/// The loader lists no file that is no kernel image.
#[test]
fn a_kernel_image_whose_head_is_damaged() {
    let mut world = World::new(Config::uefi(), |_| {});
    world.node.power_off();
    world.node.replace_entry(NEW, |image| image[..64].fill(0));
    world.node.start();
    let reason = world.comes_back();
    assert!(reason.contains("passed it over"), "{reason}");
}

/// The loader takes a try and gives up. Firmware looks for minutes what else there is to boot, and then its shell starts again; that is
/// waited for once, and the other tries are ended by hand.
#[test]
fn a_kernel_image_whose_kernel_is_damaged() {
    const FAILED: &str = "Failed to execute Caisson 0.2.0";
    let mut world = World::new(Config::uefi(), |_| {});
    world.node.power_off();
    world.node.replace_entry(NEW, |image| {
        let middle = image.len() / 2;
        image[middle..middle + (1 << 20)].fill(0);
    });
    world.node.start();
    world.node.wait_for("a second try", Duration::from_secs(300), |node| {
        (node.console().matches(FAILED).count() == 2).then_some(())
    });
    world.node.cut_power();
    world.node.start();
    world.node.wait_for_console(FAILED);
    world.node.cut_power();
    world.node.start();
    let reason = world.comes_back();
    assert!(reason.contains("its kernel image does not start"), "{reason}");
}

/// A root that changed after it was read back: the kernel finds out at the first block that it reads.
#[test]
fn a_root_that_does_not_verify() {
    let mut world = World::new(direct(), |_| {});
    world.node.power_off();
    let root = world.node.disk().partition("root-b").expect("a second slot").start;
    wipe(&world.node.disk_path(), root, 1 << 20);
    world.node.start();
    let reason = world.comes_back();
    assert!(reason.contains("device-mapper: verity") && reason.contains("corrupted"), "{reason}");
}

#[test]
fn a_pid_1_that_ends() {
    let world = World::new(Config { keep_memory: true, ..Config::uefi() }, |variant| {
        variant.kernel_parameters.retain(|word| !word.starts_with("panic="));
        variant.kernel_parameters.extend(["panic=1".to_owned(), "init=/usr/bin/apiclient".to_owned()]);
    });
    world.restart();
    let reason = world.comes_back();
    assert!(reason.contains("Attempted to kill init"), "{reason}");
}

/// Nobody is there who could give the version up.
#[test]
fn a_host_agent_that_never_runs() {
    let world = World::new(direct(), |variant| variant.services.retain(|service| service != "host-agent"));
    world.restart();
    let reason = world.comes_back();
    assert!(reason.contains("PID 1 restarted it: it has no host agent"), "{reason}");
}

/// It was ready, and then says nothing more: PID 1 restarts the node when the agent should have decided.
#[test]
fn a_host_agent_that_hangs() {
    let world = World::with_script(direct(), "kill -STOP $(pidof host-agent)");
    world.restart();
    world.node.wait_for_console("story: ended");
    let reason = world.comes_back();
    assert!(
        reason.contains("PID 1 restarted it: the host agent neither blessed it nor gave it up"),
        "{reason}"
    );
}

/// The agent gives the version up and nobody restarts the node, but its watchdog.
#[test]
fn a_pid_1_that_hangs() {
    let world = World::with_script(with_watchdog(direct()), FREEZE_PID_1);
    world.restart();
    let reason = world.comes_back();
    assert!(reason.contains("not healthy within 15 s: PID 1 does not answer"), "{reason}");
}

/// Nobody is left who could give the version up: three tries, each ended by the watchdog, which tells the next start so. It tells only
/// where a reset leaves it on, so QEMU goes on, and the host's way to the API is lost with the first.
#[test]
fn a_machine_that_hangs() {
    let mut config = with_watchdog(Config::uefi());
    config.extra.extend(["-action", "reboot=reset"].map(str::to_owned));
    let script = format!("sleep 1; kill -STOP $(pidof host-agent); {FREEZE_PID_1}");
    let mut world = World::with_script(config, &script);
    world.restart();
    world.node.wait_for("the old version runs again", Duration::from_secs(420), |node| {
        node.console().contains("0.2.0 did not stay, 0.1.0 runs again").then_some(())
    });
    world.node.power_off();
    world.node.start();
    let reason = world.comes_back();
    assert!(
        reason.starts_with("it was tried 3 times and hung: its watchdog restarted the machine"),
        "{reason}"
    );
}

/// What is set and what the new version's kernel can do do not go together.
#[test]
fn settings_that_the_new_version_cannot_act_on() {
    const KEY: &str = "net.ipv6.conf.all.accept_redirects";
    let world = World::new(direct(), |variant| variant.kernel_parameters.push("ipv6.disable=1".to_owned()));
    world.node.set(&json!({"kernel": {"sysctl": {KEY: "0"}}}));
    world.restart();
    let reason = world.comes_back();
    assert!(reason.contains("not healthy within 15 s") && reason.contains(KEY), "{reason}");
    // The old version acts on them as before.
    world.node.wait_until_healthy();
    assert_eq!(world.node.get("/settings")["kernel"]["sysctl"][KEY], "0");
}

/// The newest generation is no use to the new version, which has the one before it; so has the old one.
#[test]
fn settings_that_the_new_version_cannot_read() {
    let mut world = World::new(direct(), |_| {});
    world.node.power_off();
    world.node.write_to_state("/settings/generation-000099.toml", "format = 2\nnumber = 99\n");
    world.node.start();
    let reason = world.comes_back();
    assert!(reason.contains("generation 99 of the settings cannot be used (it is cut short)"), "{reason}");
    world.node.wait_until_healthy();
}

#[test]
fn a_network_that_does_not_come() {
    let mut world = World::new(direct(), |_| {});
    world.lan.silence();
    world.restart();
    world.node.wait_for_console("is given up");
    let reason = world.comes_back();
    assert!(reason.contains("not healthy within 15 s") && reason.contains("eth0"), "{reason}");
}

/// The container runs, and finds something of the new version that it cannot work with.
#[test]
fn a_container_whose_health_check_fails() {
    let world = World::new(direct(), |variant| variant.kernel_parameters.push("story.breaks=web".to_owned()));
    let check = "! grep story.breaks=web /proc/cmdline";
    world.node.set(&json!({"containers": {"web": {
        "image": "localhost/busybox",
        "command": ["sleep", "99999"],
        "essential": true,
        "health-check": {"command": ["sh", "-c", check], "interval": 1, "retries": 2},
    }}, "updates": {"healthy-within": 40}}));
    world.node.wait_until_healthy();
    world.restart();
    let reason = world.comes_back();
    let expected = ["not healthy within 40 s: ", "web", "health check failed", "story.breaks=web"];
    assert!(expected.iter().all(|expected| reason.contains(expected)), "{reason}");
    world.node.wait_until_healthy();
}

/// The power is cut in the first try; the second one is given up like a first.
#[test]
fn a_container_that_fails_on_a_later_try() {
    let mut world = World::new(direct(), |_| {});
    let lost = json!({"lost": {"image": "registry.invalid/lost:1", "essential": true}});
    world.node.set(&json!({"containers": lost}));
    cut_in_the_first_try(&mut world.node);
    let reason = world.comes_back();
    assert!(reason.contains("not healthy within 15 s") && reason.contains("lost"), "{reason}");
}

#[test]
fn a_power_cut_in_the_first_try_does_no_harm() {
    let mut world = World::new(direct(), |_| {});
    cut_in_the_first_try(&mut world.node);
    let end = outcome(&world.node, 1);
    assert_eq!((&end["version"], &end["result"]), (&json!(NEW), &json!("good")), "{end}");
    runs(&world.node, NEW);
    assert_eq!(world.node.setting("motd"), "kept");
}

/// A power cut may bring back what was removed just before it; PID 1 is not to restart a version for ever that was blessed.
#[test]
fn a_version_that_is_not_on_trial_is_not_restarted() {
    const UNTIL: u64 = 8;
    let mut node = Node::boot_healthy(Config::direct());
    node.power_off();
    let trial = json!({"version": env!("CARGO_PKG_VERSION"), "until": UNTIL});
    node.write_to_state("/agent/updates/on-trial.json", &trial.to_string());
    node.start();
    node.wait_until_healthy();
    std::thread::sleep(Duration::from_secs(UNTIL + 4));
    assert!(!node.console().contains("PID 1 restarted it"), "{}", node.console());
    node.power_off();
    let left = node.disk().files("state").expect("the state partition");
    assert!(left.iter().all(|file| !file.path.ends_with("on-trial.json")), "{left:?}");
}

fn cut_in_the_first_try(node: &mut Node) {
    node.power_off();
    node.start();
    node.wait_for_console("is on trial");
    node.cut_power();
    node.start();
}
