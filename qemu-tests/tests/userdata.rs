//! Settings that come with the machine, good and bad. The node answers in every case.

use qemu_tests::{Config, Health, Node, UserData, nocloud_iso, nocloud_vfat};

const GOOD: &str = "[settings]\nmotd = \"from outside\"\n[settings.network]\nhostname = \"told\"\n";

/// Sets what the user data says, once: what is set later stays.
fn is_applied_once(node: &mut Node) {
    node.wait_until_healthy();
    assert_eq!(node.setting("motd"), "from outside");
    assert_eq!(node.setting("network.hostname"), "told");
    node.set(&serde_json::json!({"motd": "changed by hand"}));
    node.reboot();
    node.wait_until_healthy();
    assert_eq!(node.setting("motd"), "changed by hand");
    node.power_off();
}

#[test]
fn of_fw_cfg() {
    is_applied_once(&mut Node::boot(Config::direct().user_data(GOOD)));
}

#[test]
fn of_an_iso_9660_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = nocloud_iso(folder.path(), GOOD.as_bytes());
    is_applied_once(&mut Node::boot(Config { user_data: Some(UserData::Disk(disk)), ..Config::direct() }));
}

#[test]
fn of_a_vfat_disk() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let disk = nocloud_vfat(folder.path(), GOOD.as_bytes());
    is_applied_once(&mut Node::boot(Config { user_data: Some(UserData::Disk(disk)), ..Config::direct() }));
}

/// Each names what is wrong, in `GET /` and in the boot log.
#[test]
fn with_mistakes() {
    let large = format!("[settings]\nmotd = \"{}\"\n", "a".repeat(1 << 20));
    for (user_data, named) in [
        ("#cloud-config\nusers: [default]\n", "TOML"),
        ("[settings]\nmotto = \"x\"\n", "settings.motto"),
        ("[settings.network]\nhostname = 7\n", "settings.network.hostname"),
        (
            "[settings]\nmotd = \"fine\"\n[settings.network]\nhostname = \"a_b\"\n",
            "settings.network.hostname",
        ),
        (
            "[settings.containers.web]\nimage = \"localhost/busybox\"\nmemory = \"lots\"\n",
            "settings.containers.web.memory",
        ),
        (large.as_str(), "65536"),
        ("\u{1}\u{2}\u{3}", "TOML"),
    ] {
        let start = &user_data[..user_data.len().min(60)];
        let mut node = Node::boot(Config::direct().user_data(user_data));
        let problems = node.wait_for(
            format!("the problem with {start:?}"),
            std::time::Duration::from_secs(30),
            |node| Some(node.problems()).filter(|problems| problems.contains("user data")),
        );
        assert!(problems.contains(named), "{start:?}: the problem does not name {named}: {problems}");
        node.wait_for_console(named);
        assert_eq!(node.status().health, Health::Degraded);
        // Nothing of it is applied.
        assert_ne!(node.setting("motd"), "fine");
        node.set(&serde_json::json!({"motd": "it takes settings"}));
        node.cut_power();
    }
}
