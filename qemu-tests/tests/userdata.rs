//! Settings that come with the machine, good and bad. The node answers in every case.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use qemu_tests::{Answers, Config, Health, Imds, Node, UserData, nocloud_iso, nocloud_vfat};
use std::io::Write;
use std::time::Duration;

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

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The word that the command line and SMBIOS have for user data.
fn word(content: impl AsRef<[u8]>) -> String {
    format!("caisson.user-data={}", BASE64_STANDARD.encode(content))
}

#[test]
fn of_the_kernel_command_line() {
    is_applied_once(&mut Node::boot(Config::direct().kernel_parameter(&word(GOOD))));
}

#[test]
fn compressed_of_fw_cfg() {
    is_applied_once(&mut Node::boot(Config::direct().user_data(gzip(GOOD))));
}

/// More than the kernel's command line would take.
#[test]
fn of_smbios() {
    let text = format!(
        "{GOOD}[settings.containers.web]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"1000\"]\nenv.LONG = \"{}\"\n",
        "9".repeat(3000)
    );
    let mut node = Node::boot(Config::direct().oem_string("not for us").oem_string(&word(text)));
    node.wait_for("the settings", Duration::from_secs(30), |node| {
        (node.setting("motd") == "from outside").then_some(())
    });
    assert_eq!(node.setting("network.hostname"), "told");
    node.cut_power();
}

#[test]
fn of_smbios_behind_uefi() {
    is_applied_once(&mut Node::boot(Config::uefi().oem_string(&word(gzip(GOOD)))));
}

#[test]
fn of_the_metadata_service() {
    let imds = Imds::start(Answers::UserData(gzip(GOOD)));
    let config = Config::direct().imds(&imds).kernel_parameter("caisson.metadata=ec2");
    let mut node = Node::boot(config);
    is_applied_once(&mut node);
    let asked = imds.asked();
    assert!(asked.contains(&("GET /latest/user-data".to_owned(), true)), "{asked:?}");
    assert!(asked.iter().all(|(_, right)| *right), "{asked:?}");
    // Not asked again at the second boot, which needs nothing of it.
    let tokens = asked.iter().filter(|(request, _)| request.starts_with("PUT")).count();
    assert_eq!(tokens, 1, "{asked:?}");
    for log in ["/log/host-agent.log", "/log/init.log"] {
        assert!(!node.file("data", log).contains(Imds::TOKEN));
    }
}

/// A node sends nothing to link-local addresses that nobody asked for.
#[test]
fn of_a_metadata_service_that_nobody_asked_for() {
    let imds = Imds::start(Answers::UserData(GOOD.into()));
    let mut node = Node::boot_healthy(Config::direct().imds(&imds));
    assert_ne!(node.setting("motd"), "from outside");
    assert_eq!(imds.asked(), []);
    node.cut_power();
}

/// It is told where it points to, and not followed; the node is there all the same.
#[test]
fn of_a_metadata_service_that_points_elsewhere() {
    let imds = Imds::start(Answers::Redirect);
    let mut config = Config::direct().imds(&imds).user_data("[settings]\nmotd = \"of fw_cfg\"\n");
    config.fw_cfg.push(("opt/caisson/metadata".to_owned(), "ec2".to_owned()));
    let mut node = Node::boot(config);
    let problems = problems_of_user_data(&node);
    assert!(problems.contains("the metadata service") && problems.contains("302"), "{problems}");
    assert_ne!(node.setting("motd"), "of fw_cfg");
    node.set(&serde_json::json!({"motd": "it takes settings"}));
    node.cut_power();
}

/// The machine was made without user data; that is no mistake.
#[test]
fn of_a_metadata_service_that_has_none() {
    let imds = Imds::start(Answers::Nothing);
    let config = Config::direct().imds(&imds).oem_string("caisson.metadata=ec2");
    let mut node = Node::boot_healthy(config);
    assert!(imds.asked().iter().any(|(request, _)| request == "GET /latest/user-data"));
    node.power_off();
}

/// What the VMM says is over what the disks say, key by key.
#[test]
fn of_several_sources() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let drive = |path| build::vm::config::Drive { path, read_only: true };
    let mut config = Config::direct().user_data("{\"settings\": {\"motd\": \"of fw_cfg\"}}");
    config.drives = vec![
        drive(nocloud_iso(first.path(), GOOD.as_bytes())),
        drive(nocloud_iso(
            second.path(),
            b"[settings]\nmotd = \"second\"\n[settings.network]\nhostname = \"second\"\n[settings.containers.web]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"1000\"]\n",
        )),
    ];
    let mut node = Node::boot_healthy(config);
    assert_eq!(node.setting("motd"), "of fw_cfg");
    assert_eq!(node.setting("network.hostname"), "told");
    assert_eq!(node.setting("containers.web.image"), "localhost/busybox");
    node.wait_for_console("user data from fw_cfg, the NoCloud disk vdb and the NoCloud disk vdc applied");
    node.power_off();
    assert_eq!(node.file("state", "/agent/user-data.json").matches("sha256").count(), 3);
}

/// Nothing of the good one is applied, and both mistakes of the bad one are told, as well as what only the whole shows.
#[test]
fn of_several_sources_of_which_one_is_bad() {
    let bad = "[settings]\nmotd = 1\n[settings.network]\nhostname = \"a_b\"\n";
    let config =
        Config::direct().kernel_parameter(&word(gzip(bad))).user_data("[settings]\nmotd = \"fine\"\n");
    let mut node = Node::boot(config);
    let problems = problems_of_user_data(&node);
    for named in ["the kernel command line", "line 2: settings.motd", "line 4: settings.network.hostname"] {
        assert!(problems.contains(named), "{named}: {problems}");
    }
    node.wait_for_console("line 2: settings.motd");
    node.wait_for_console("line 4: settings.network.hostname");
    assert_ne!(node.setting("motd"), "fine");
    assert_eq!(node.status().health, Health::Degraded);
    node.cut_power();
    // Corrected, it is applied at the next start.
    node.config = Config::direct().user_data("[settings]\nmotd = \"fine\"\n");
    node.start();
    node.wait_until_healthy();
    assert_eq!(node.setting("motd"), "fine");
    node.cut_power();
}

/// What only the API can know is told with the source and its line too.
#[test]
fn with_a_mistake_of_the_whole() {
    let mut node =
        Node::boot(Config::direct().user_data("[settings]\n[settings.containers.web]\npids = 5\n"));
    let problems = problems_of_user_data(&node);
    assert!(problems.contains("line 2: settings.containers.web.image: missing"), "{problems}");
    node.cut_power();
}

#[track_caller]
fn problems_of_user_data(node: &Node) -> String {
    node.wait_for("a problem with user data", Duration::from_secs(60), |node| {
        Some(node.problems()).filter(|problems| problems.contains("user data"))
    })
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
        ("#!/bin/sh\necho hello\n", "a script"),
        ("Content-Type: multipart/mixed; boundary=\"==\"\nMIME-Version: 1.0\n", "MIME"),
        ("{\"settings\": {\n\"motto\": \"x\"}}", "line 2: settings.motto"),
    ] {
        let start = &user_data[..user_data.len().min(60)];
        let mut node = Node::boot(Config::direct().user_data(user_data));
        let problems =
            node.wait_for(format!("the problem with {start:?}"), Duration::from_secs(30), |node| {
                Some(node.problems()).filter(|problems| problems.contains("user data"))
            });
        assert!(problems.contains(named), "{start:?}: the problem does not name {named}: {problems}");
        node.wait_for_console(named);
        assert_eq!(node.status().health, Health::Degraded);
        // Nothing of it is applied.
        assert_ne!(node.setting("motd"), "fine");
        node.set(&serde_json::json!({"motd": "it takes settings"}));
        node.cut_power();
    }
}
