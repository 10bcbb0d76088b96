//! A node and a repository in one network.

use qemu_tests::updated::{done, node_with, outcome, runs, version};
use qemu_tests::{Change, Config, Lan, Node, Updates, install_with_update_root, newer_loader};
use serde_json::{Value, json};
use std::time::Duration;
use update::choose::Way;

const ANSWER: Duration = Duration::from_secs(5);
const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";

/// The same image again under higher versions: the node sees the newest, over a restart too, and is told what is wrong.
#[test]
fn a_node_sees_the_version_that_is_published() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE, &format!("--address=/updates.lan.test/{}", Lan::ADDRESS)]);
    let updates = Updates::new();
    updates.publish("90.1.0");
    lan.nginx(updates.folder());
    let mut node = Node::new(lan.attach(Config::direct()));
    install_with_update_root(&mut node, &updates.root());
    node.start();
    node.wait_until_healthy();
    let check = |node: &Node| node.client(&["update", "check"]);

    let (code, said) = check(&node);
    assert!(code == 1 && said.contains("no repository is set"), "{said}");
    node.set(&json!({"updates": {"metadata-base-url": "http://updates.lan.test:8080/metadata/"}}));
    node.wait_for("an address", Duration::from_secs(30), |node| node.status().addresses.get("eth0").cloned());
    let (code, said) = check(&node);
    assert_eq!(code, 0, "{said}");
    let status: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(status["update_state"], "Available");
    assert_eq!(status["available_updates"], json!(["90.1.0"]));
    assert_eq!(status["chosen_update"]["version"], "90.1.0");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        status["active_partition"]["image"],
        json!({"arch": "x86_64", "variant": "default", "version": version})
    );

    node.reboot();
    node.wait_until_healthy();
    assert_eq!(node.get("/updates/status"), status);
    updates.publish("90.2.0");
    node.wait_for("the newer version", Duration::from_secs(60), |node| {
        let (_, said) = check(node);
        said.contains("\"version\": \"90.2.0\"").then_some(())
    });
    // Somebody puts the older copy back.
    updates.roll_back();
    let (code, said) = check(&node);
    assert!(code == 1 && said.contains("was rolled back"), "{said}");
}

/// Forward by a patch, back when somebody asks, and back by itself when the new one does not become healthy. Settings stay.
#[test]
fn an_update_stays_when_it_is_healthy_and_goes_when_it_is_not() {
    let mut lan = Lan::new();
    let updates = Updates::new();
    let first = updates.build("0.1.0", |_| {});
    let second = updates.build("0.2.0", |_| {});
    let third = updates.build("0.3.0", |_| {});
    updates.publish_built(&first);
    updates.publish_built(&second);
    let node = node_with(&mut lan, &updates, &first, Config::uefi());
    node.set(&json!({"motd": "kept", "containers": {"web": {"image": "localhost/busybox", "command": ["sleep", "9999"], "essential": true}}}));
    node.wait_until_healthy();
    assert_eq!(version(&node).as_deref(), Some("0.1.0"));

    let said = done(&node, &["update", "apply", "--check"]);
    assert!(said.contains("0.2.0 boots next"), "{said}");
    assert_eq!(node.get("/updates/status")["update_state"], "Ready");
    done(&node, &["reboot"]);
    runs(&node, "0.2.0");
    let good = outcome(&node, 1);
    assert_eq!((&good["version"], &good["result"]), (&json!("0.2.0"), &json!("good")), "{good}");
    assert_eq!(node.setting("motd"), "kept");
    node.wait_until_healthy();

    done(&node, &["update", "rollback", "--reboot"]);
    runs(&node, "0.1.0");
    assert_eq!(outcome(&node, 2)["result"], "reverted");
    assert_eq!(node.setting("motd"), "kept");

    updates.publish_built(&third);
    node.set(&json!({
        "updates": {"healthy-within": 25},
        "containers": {"lost": {"image": "registry.invalid/lost:1", "essential": true}},
    }));
    let said = done(&node, &["update", "apply", "--check", "--reboot"]);
    assert!(said.contains("Rebooting"), "{said}");
    node.wait_for_console("is given up");
    runs(&node, "0.1.0");
    let back = outcome(&node, 3);
    assert_eq!((&back["version"], &back["result"]), (&json!("0.3.0"), &json!("rolled-back")), "{back}");
    let reason = back["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("not healthy within 25 s") && reason.contains("lost"), "{reason}");
    // It is not tried again by itself.
    node.wait_for("an address", Duration::from_secs(60), |node| node.status().addresses.get("eth0").cloned());
    let (code, said) = node.client(&["update", "apply", "--check"]);
    assert!(code == 1 && said.contains("did not stay"), "{said}");
}

/// 1 -> 2 -> 3 -> 4, each by another way, and back to 3.
#[test]
fn updates_by_each_way_and_back() {
    updates_and_back(&[Way::Patch, Way::Blocks, Way::Full]);
}

#[test]
#[ignore = "six minutes: `cargo nextest run -p caisson-qemu-tests --test update --run-ignored only`"]
fn two_updates_by_patches_and_back() {
    updates_and_back(&[Way::Patch; 2]);
}

#[test]
#[ignore = "as above"]
fn two_updates_by_blocks_and_back() {
    updates_and_back(&[Way::Blocks; 2]);
}

#[test]
#[ignore = "as above"]
fn two_updates_by_whole_roots_and_back() {
    updates_and_back(&[Way::Full; 2]);
}

/// Settings, a container and its volume are as they were after each update, and back at the version before the last.
fn updates_and_back(ways: &[Way]) {
    const VERSIONS: [&str; 4] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0"];
    let mut lan = Lan::new();
    let updates = Updates::new();
    let first = updates.build("0.1.0", |_| {});
    updates.publish_by(ways[0], &first);
    let node = node_with(&mut lan, &updates, &first, Config::uefi());
    // Each start of the container leaves a line in its volume.
    let script = "echo start >> /data/starts; echo \"start $(wc -l < /data/starts)\"; exec sleep 99999";
    node.set(&json!({"motd": "kept", "containers": {"web": {
        "image": "localhost/busybox",
        "command": ["sh", "-c", script],
        "essential": true,
        "volumes": {"data": {"path": "/data"}},
        "health-check": {"command": ["test", "-s", "/data/starts"], "interval": 1},
    }}}));
    node.wait_until_healthy();
    let holds = |starts: usize| {
        node.wait_for_logs("web", &format!("start {starts}"));
        assert_eq!(node.setting("motd"), "kept");
    };
    holds(1);
    for (number, (way, pair)) in (1..).zip(ways.iter().zip(VERSIONS.windows(2))) {
        let (before, version) = (pair[0], pair[1]);
        let name = match way {
            Way::Patch => "patch",
            Way::Blocks => "blocks",
            Way::Full => "full",
        };
        updates.publish_by(*way, &updates.build(version, |_| {}));
        let told = done(&node, &["update", "apply", "--check", "--dry-run"]);
        assert!(told.starts_with(&format!("{version} would come by {name}: ")), "{told}");
        assert_eq!(node.get("/updates/status")["update_state"], "Available");
        let said = done(&node, &["update", "apply"]);
        assert_eq!(
            said.split(". ").next(),
            told.split(". ").next().map(|told| told.replace("would come", "came")).as_deref()
        );
        done(&node, &["reboot"]);
        runs(&node, version);
        let good = outcome(&node, number);
        assert_eq!(
            (&good["version"], &good["from"], &good["way"], &good["result"]),
            (&json!(version), &json!(before), &json!(name), &json!("good")),
            "{good}"
        );
        node.wait_until_healthy();
        holds(number + 1);
        let slots = done(&node, &["update", "verify"]);
        let whole =
            |version: &str| slots.lines().any(|line| line.contains(version) && line.ends_with("whole"));
        assert!(whole(version) && whole(before), "{slots}");
    }
    done(&node, &["update", "rollback", "--reboot"]);
    runs(&node, VERSIONS[ways.len() - 1]);
    assert_eq!(outcome(&node, ways.len() + 1)["result"], "reverted");
    node.wait_until_healthy();
    holds(ways.len() + 2);
}

/// Whatever a server does, the slot that runs is as it was, the reason is told, and the next attempt goes on.
#[test]
fn a_server_that_misbehaves() {
    const URL: &str = "http://updates.lan.test:8080";
    let mut lan = Lan::new();
    let updates = Updates::new();
    let first = updates.build("0.1.0", |_| {});
    let node = node_with(&mut lan, &updates, &first, Config::uefi());
    updates.publish_by(Way::Blocks, &updates.build("0.2.0", |_| {}));
    let from = |folder: &str| node.set(&json!({"updates": {"targets-base-url": format!("{URL}/{folder}/")}}));
    for (ending, change) in [
        ("root.leaves", Change::Altered),
        ("root.zst", Change::Altered),
        ("root.zst", Change::Short),
        ("efi", Change::Altered),
        ("efi", Change::Short),
        ("efi", Change::Missing),
    ] {
        updates.spoil(&format!("{ending}-{change:?}"), ending, change);
    }
    for (folder, expected) in [
        ("root.leaves-Altered", "does not hold the hashes of the signed root's blocks"),
        ("root.zst-Altered", "root.zst"),
        ("root.zst-Short", "root.zst"),
        ("efi-Altered", "efi"),
        ("efi-Short", "efi"),
        ("efi-Missing", "the server answered 404"),
        ("broken", "the server answered 500 Internal Server Error; it was tried 6 times"),
        ("loop", "more than 5 redirects"),
    ] {
        from(folder);
        let (code, said) = node.client(&["update", "apply", "--check"]);
        eprintln!("{folder}: {said}");
        assert!(code == 1 && said.contains(expected), "{folder}: {said}");
        let status = node.get("/updates/status");
        assert_eq!(status["update_state"], "Available", "{folder}: {status}");
        let slots = done(&node, &["update", "verify"]);
        assert!(slots.starts_with("slot a: 0.1.0, runs: whole"), "{folder}: {slots}");
    }
    // One that knows no ranges will do.
    from("whole");
    let said = done(&node, &["update", "apply", "--check"]);
    assert!(said.contains("0.2.0 came by blocks"), "{said}");

    // One that is slow, and gone for a moment.
    done(&node, &["update", "cancel"]);
    updates.publish_by(Way::Full, &updates.build("0.3.0", |_| {}));
    from("slow");
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| node.client(&["update", "apply", "--check"]));
        node.wait_for("a part of the root", Duration::from_secs(60), |node| {
            let progress = node.request_within(ANSWER, hyper::Method::GET, "/updates/progress", "").ok()?;
            let progress: Value = serde_json::from_slice(&progress.body).ok()?;
            (progress["received"].as_u64()? > 1 << 20).then_some(())
        });
        lan.restart_nginx(updates.folder());
        let (code, said) = apply.join().expect("the client");
        assert!(code == 0 && said.contains("0.3.0 boots next"), "{said}");
    });
    done(&node, &["reboot"]);
    runs(&node, "0.3.0");
    assert_eq!(outcome(&node, 1)["result"], "good");
}

/// A version that stays brings a newer boot loader along; that stays too, and boots the version before.
#[test]
fn a_newer_boot_loader_comes_with_a_version_that_stays() {
    const NEWER: &str = "999";
    let mut lan = Lan::new();
    let updates = Updates::new();
    let first = updates.build("0.1.0", |_| {});
    let second = updates.build("0.2.0", |variant| updates.add_loader(variant, NEWER));
    updates.publish_built(&second);
    let mut node = node_with(&mut lan, &updates, &first, Config::uefi());
    let loader = |node: &Node| node.disk().read("esp", "/EFI/BOOT/BOOTX64.EFI").expect("a loader");
    done(&node, &["update", "apply", "--check"]);
    node.power_off();
    assert!(loader(&node) != newer_loader(NEWER), "it came before its version was tried");

    node.start();
    node.wait_for_console("the boot loader is systemd-boot 999.");
    assert_eq!(outcome(&node, 1)["result"], "good");
    node.power_off();
    assert!(loader(&node) == newer_loader(NEWER), "the loader is another one");
    let files = node.disk().files("esp").expect("the ESP");
    assert!(!files.iter().any(|file| file.path.contains("loader-")), "{files:?}");

    node.start();
    runs(&node, "0.2.0");
    node.wait_until_healthy();
    done(&node, &["update", "rollback", "--reboot"]);
    runs(&node, "0.1.0");
    node.wait_until_healthy();
    node.power_off();
    assert!(loader(&node) == newer_loader(NEWER), "the version before took it back");
}

/// A kernel that finds no PID 1 panics: three tries, then the version before runs again, and knows it.
#[test]
fn a_version_that_panics_is_tried_three_times() {
    let mut lan = Lan::new();
    let updates = Updates::new();
    let first = updates.build("0.1.0", |_| {});
    let broken = updates.build("0.2.0", |variant| {
        variant.kernel_parameters.retain(|word| !word.starts_with("panic="));
        variant.kernel_parameters.extend(["panic=1".to_owned(), "init=/nonexistent".to_owned()]);
    });
    updates.publish_built(&broken);
    let config = Config { keep_memory: true, ..Config::uefi() };
    let node = node_with(&mut lan, &updates, &first, config);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    let back = outcome(&node, 1);
    assert_eq!((&back["version"], &back["result"]), (&json!("0.2.0"), &json!("rolled-back")), "{back}");
    let reason = back["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("its kernel panicked: Kernel panic - not syncing: "), "{back}");
    assert_eq!(version(&node).as_deref(), Some("0.1.0"));
    // The kernel's own lines; the agent's has the words too.
    assert_eq!(node.console().matches("] Kernel panic").count(), 3);
    node.wait_until_healthy();
}

/// Without firmware: the VMM, here the runner, takes the kernel of the slot that the names on the ESP choose.
#[test]
fn a_vmm_that_loads_the_kernel_itself_boots_the_slot_that_is_chosen() {
    let mut lan = Lan::new();
    let updates = Updates::new();
    let first = updates.build("0.1.0", |_| {});
    let second = updates.build("0.2.0", |_| {});
    updates.publish_built(&second);
    let cmdline = std::fs::read_to_string(first.cmdline()).expect("a command line");
    let config = Config { choose_slot: true, cmdline: Some(cmdline.trim().to_owned()), ..Config::direct() };
    let node = node_with(&mut lan, &updates, &first, config);
    done(&node, &["update", "apply", "--check", "--reboot"]);
    runs(&node, "0.2.0");
    assert_eq!(outcome(&node, 1)["result"], "good");
    node.reboot();
    runs(&node, "0.2.0");
}
