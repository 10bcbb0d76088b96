//! What prepares a node before its containers start, and the containers that look after it.

use apiserver::agent::ContainerKind;
use qemu_tests::{Config, ContainerState, Health, Node};
use serde_json::{Value, json};
use std::time::Duration;

/// One of busybox that runs a script, as TOML.
fn container(group: &str, name: &str, script: &str, more: &str) -> String {
    format!(
        "[settings.{group}.{name}]\nsource = \"localhost/busybox\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n{more}\n"
    )
}

/// A folder of the node that bootstrap containers and superpowered ones write in.
const DATA: &str = "/.bottlerocket/rootfs/data";

#[test]
fn containers_prepare_the_node_in_order_and_those_that_are_to_run_once_do() {
    let note = |name: &str| format!("echo {name} >> {DATA}/order");
    let first = format!(
        "{}; mkdir /disk; mount -t tmpfs tmpfs /disk && echo mounted; cat /.bottlerocket/bootstrap-containers/current/user-data",
        note("first")
    );
    let mut node = Node::boot(
        Config::direct().user_data(
            [
                container(
                    "bootstrap-containers",
                    "after-it",
                    &format!("{}; /usr/local/bin/apiclient set motd=prepared", note("after-it")),
                    "mode = \"once\"\nessential = true\nafter = [\"first\"]",
                ),
                container(
                    "bootstrap-containers",
                    "failing",
                    &format!("{}; exit 3", note("failing")),
                    "mode = \"once\"",
                ),
                container(
                    "bootstrap-containers",
                    "first",
                    &first,
                    "mode = \"always\"\nuser-data = \"aGVsbG8=\"",
                ),
                container(
                    "host-containers",
                    "main",
                    &format!("{}; echo begun; exec sleep 3600", note("main")),
                    "enabled = true\nsuperpowered = true",
                ),
            ]
            .concat(),
        ),
    );
    node.wait_for_logs("host-containers.main", "begun");
    assert_eq!(node.setting("motd"), "prepared");
    assert_eq!(node.setting("bootstrap-containers.after-it.mode"), "off");
    assert_eq!(node.setting("bootstrap-containers.failing.mode"), "once");
    let log = node.logs("bootstrap-containers.first");
    assert!(log.contains("mounted") && log.contains("hello"), "{log}");
    // Not essential: the boot went on, and it is told.
    assert_eq!(node.container("bootstrap-containers.failing").exit_code, Some(3));
    let told = "settings.bootstrap-containers.failing: it ended with exit code 3; it is not essential";
    assert!(node.problems().contains(told), "{}", node.problems());

    node.reboot();
    // Its log has what it wrote before, too.
    node.wait_for("it has begun again", Duration::from_secs(60), |node| {
        let known = node.containers().iter().any(|container| container.name == "host-containers.main");
        (known && node.logs("host-containers.main").matches("begun").count() == 2).then_some(())
    });
    node.wait_for_container("bootstrap-containers.first", "it ran at this boot too", |container| {
        container.exit_code == Some(0)
    });
    node.power_off();
    let order = node.file("data", "/order");
    let expected = ["failing", "first", "after-it", "main", "failing", "first", "main"];
    assert_eq!(order.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn an_essential_one_that_fails_leaves_a_node_that_answers_says_why_and_can_go_on() {
    let node = Node::boot(Config::direct().user_data(format!(
        "{}[settings.containers.web]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"3600\"]\n",
        container(
            "bootstrap-containers",
            "disk",
            "echo there is no such disk; exit 7",
            "mode = \"always\"\nessential = true"
        )
    )));
    let has_failed = |node: &Node, code: i32| {
        let told = format!(
            "settings.bootstrap-containers.disk: it ended with exit code {code}; it is essential, so no container is started"
        );
        node.wait_for("the failure is told", Duration::from_secs(60), |node| {
            node.problems().contains(&told).then_some(())
        });
    };
    has_failed(&node, 7);
    assert_eq!(node.status().health, Health::Degraded);
    assert!(
        node.problems().contains("apiclient set bootstrap-containers.disk.mode=off"),
        "{}",
        node.problems()
    );
    assert!(node.logs("bootstrap-containers.disk").contains("there is no such disk"));
    let names: Vec<String> = node.containers().into_iter().map(|container| container.name).collect();
    assert_eq!(names, ["bootstrap-containers.disk"]);

    // Changed, it runs again at once, as the boot is not over.
    let command = json!(["/bin/sh", "-c", "echo tried again; exit 8"]);
    node.set(&json!({"bootstrap-containers": {"disk": {"command": command}}}));
    has_failed(&node, 8);
    node.set(&json!({"bootstrap-containers": {"disk": {"mode": "off"}}}));
    node.wait_for_container("web", "it runs", |container| container.state == ContainerState::Running);
    node.wait_until_healthy();
}

/// One asks for a restart, which waits until it is known that it ran: else the node would restart for ever.
#[test]
fn commands_change_settings_and_are_told_when_they_fail() {
    let node = Node::boot(Config::direct().user_data(
        r#"
        [settings.bootstrap-commands.greet]
        commands = [["apiclient", "set", "motd=prepared"], ["apiclient", "set", "network.hostname=told"]]
        mode = "once"
        essential = true
        [settings.bootstrap-commands.restart]
        commands = [["apiclient", "reboot"], ["apiclient", "set", "dns.search-list=[\"example.com\"]"]]
        mode = "once"
        [settings.bootstrap-commands.wrong]
        commands = [["apiclient", "set", "mot=x"], ["apiclient", "set", "motd=never"]]
        mode = "always"
        "#,
    ));
    let told = "settings.bootstrap-commands.wrong: command 1 (apiclient set) ended with exit code 1: apiclient: settings.mot: unknown key";
    node.wait_for("the failure is told", Duration::from_secs(120), |node| {
        let problems = node.try_status()?.problems;
        problems.iter().any(|it| format!("{}: {}", it.subject, it.message).starts_with(told)).then_some(())
    });
    assert_eq!(node.console().matches("Restarting system").count(), 1);
    assert_eq!(node.setting("motd"), "prepared");
    assert_eq!(node.setting("network.hostname"), "told");
    assert_eq!(node.setting("dns.search-list"), json!(["example.com"]));
    for (name, mode) in [("greet", "off"), ("restart", "off"), ("wrong", "always")] {
        assert_eq!(node.setting(&format!("bootstrap-commands.{name}.mode")), mode, "{name}");
    }
}

/// What a host container may and may not do.
fn probe(name: &str) -> Value {
    let script = format!(
        "
        echo \"user data: $(cat /.bottlerocket/host-containers/current/user-data)\"
        echo one more >> /.bottlerocket/host-containers/{name}/kept
        echo \"starts: $(wc -l < /.bottlerocket/host-containers/current/kept)\"
        /usr/local/bin/apiclient set motd=from-{name} && echo the API answers
        echo \"first process: $(cat /proc/1/comm)\"
        echo \"seccomp: $(grep Seccomp: /proc/self/status | tr -d '\\t')\"
        echo \"capabilities: $(grep CapEff /proc/self/status | tr -d '\\t')\"
        ls /.bottlerocket/rootfs/usr/bin/host-agent && echo the root of the node || echo no root of the node
        echo x > /.bottlerocket/rootfs/usr/x || echo the root cannot be written
        dd if=/.bottlerocket/rootfs/dev/vda of=/dev/null bs=512 count=1 2>/dev/null && echo the disk was read
        ls /state && echo escaped
        echo the end
        exec sleep 3600"
    );
    json!({"source": "localhost/busybox", "command": ["/bin/sh", "-c", script], "enabled": true, "user-data": "aGVsbG8="})
}

#[test]
fn host_containers_reach_the_node_and_only_superpowered_ones_all_of_it() {
    let node = Node::boot_healthy(Config::direct());
    let mut admin = probe("admin");
    admin["superpowered"] = json!(true);
    node.set(&json!({"host-containers": {"admin": admin, "control": probe("control")}}));
    let common = ["user data: hello", "starts: 1", "the API answers"];
    let strong = [
        "first process: init",
        "Seccomp:0",
        "CapEff:000001ffffffffff",
        "the root of the node",
        "the root cannot be written",
        "the disk was read",
    ];
    let weak = ["first process: sh", "Seccomp:2", "CapEff:00000000a80405fb", "no root of the node"];
    for (name, wanted) in [("host-containers.admin", &strong[..]), ("host-containers.control", &weak[..])] {
        let log = node.wait_for_logs(name, "the end");
        for line in common.iter().chain(wanted) {
            assert!(log.contains(line), "{name}: {line:?} is not in:\n{log}");
        }
        assert!(!log.contains("escaped"), "{log}");
        assert_eq!(log.contains("the disk was read"), name.ends_with("admin"), "{log}");
    }
    assert!(node.setting("motd").as_str().is_some_and(|motd| motd.starts_with("from-")));
    let admin = node.container("host-containers.admin");
    assert_eq!((admin.kind, admin.superpowered), (ContainerKind::HostContainer, true));

    // Its folder stays when it is made anew, and with it what it wrote there.
    node.set(
        &json!({"host-containers": {"admin": {"enabled": false}, "control": {"user-data": "YWdhaW4="}}}),
    );
    node.wait_for_logs("host-containers.control", "user data: again");
    node.wait_for_logs("host-containers.control", "starts: 2");
    node.wait_for("the other one is gone", Duration::from_secs(60), |node| {
        (!node.containers().iter().any(|container| container.name.ends_with("admin"))).then_some(())
    });
}
