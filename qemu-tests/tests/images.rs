//! What an operator sees of containers and images: logs, stats, and images pulled ahead of their use.

use hyper::Method;
use qemu_tests::{ADMIN, Config, ContainerState, Health, Node, Registry, install_in_slot_b, script};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `apiclient`, which succeeds.
#[track_caller]
fn done(node: &Node, arguments: &[&str]) -> String {
    let (code, said) = node.client(arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
    said
}

/// Runs `apiclient`, which refuses; why.
#[track_caller]
fn refused(node: &Node, arguments: &[&str]) -> String {
    let (code, said) = node.client(arguments);
    assert_eq!(code, 1, "{arguments:?}: {said}");
    said
}

#[track_caller]
fn json_of(node: &Node, arguments: &[&str]) -> Value {
    let said = done(node, arguments);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?} is not JSON ({error}): {said}"))
}

/// What the list says of an image, or null.
#[track_caller]
fn listed(node: &Node, reference: &str) -> Value {
    let list = json_of(node, &["image", "list", "--json"]);
    let mut images = list.as_array().into_iter().flatten();
    images.find(|image| image["reference"] == reference).cloned().unwrap_or_default()
}

#[track_caller]
fn stats(node: &Node, name: &str) -> Value {
    json_of(node, &["container", "stats", name, "--json"])[0].clone()
}

/// The numbers of lines such as `line 7`.
fn numbers(log: &str) -> Vec<u32> {
    log.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
}

#[test]
fn logs_are_read_from_their_end_since_a_time_and_as_they_come() {
    let mut node = Node::new(Config { cpus: 2, ..Config::direct() });
    let kill = "
        b=/usr/bin/busybox
        until [ -d /run/containers/trigger ]; do $b sleep 0.5; done
        $b sleep 3
        $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
        echo \"<5>killed the agent\"
        ";
    install_in_slot_b(&mut node, "chaos", kill);
    node.start();
    node.wait_until_healthy();
    let count = "i=0; while :; do echo line $i; i=$((i + 1)); sleep 0.1; done";
    node.set(&json!({"containers": {"counting": script(count)}}));
    node.wait_for_logs("counting", "line 9\n");

    let (followed, killed) = std::thread::scope(|scope| {
        let follower =
            scope.spawn(|| node.client(&["container", "logs", "counting", "--follow", "--tail", "1"]));
        // Another agent goes on with it.
        node.set(&json!({"containers": {"trigger": script("exec sleep 3600")}}));
        node.wait_for_console("killed the agent");
        node.wait_for("the agent is back", PATIENCE, |node| {
            let is_back = node.try_status()?.health == Health::Healthy;
            let counts = is_back && node.request(Method::GET, "/containers/counting/logs", "").status == 200;
            (counts && node.get("/services")["host-agent"]["restarts"].as_u64() >= Some(1)).then_some(())
        });
        let before = *numbers(&node.logs("counting")).last().unwrap();
        done(&node, &["container", "restart", "counting"]);
        node.wait_for("it counts anew", PATIENCE, |node| {
            let all = numbers(&node.logs("counting"));
            let begun = all.iter().rposition(|number| *number == 0)?;
            (begun > 0 && all.len() - begun > 5).then_some(())
        });
        // With the container its log ends for who follows it.
        done(&node, &["delete", "containers.counting"]);
        (follower.join().unwrap(), before)
    });
    let (code, text) = followed;
    assert_eq!(code, 0, "{text}");
    let all = numbers(&text);
    let anew = all.iter().rposition(|number| *number == 0).expect("nothing of its second run");
    assert!(all[0] >= 9, "more than the last line was told: {all:?}");
    assert!(all[anew - 1] >= killed, "the end of its first run is missing: {all:?}");
    for run in [&all[..anew], &all[anew..]] {
        assert!(run.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are lost, or there twice: {all:?}");
    }

    let tell = "echo of old; sleep 9; echo of late; echo to stderr >&2; exec sleep 3600";
    node.set(&json!({"containers": {"telling": script(tell)}}));
    let log = node.wait_for_logs("telling", "to stderr");
    assert_eq!(log, "of old\nof late\nto stderr\n");
    assert_eq!(done(&node, &["container", "logs", "telling", "--tail", "2"]), "of late\nto stderr\n");
    assert_eq!(done(&node, &["container", "logs", "telling", "--since", "8s"]), "of late\nto stderr\n");
    assert_eq!(done(&node, &["container", "logs", "telling", "--since", "1h", "-n", "1"]), "to stderr\n");
    let said = refused(&node, &["container", "logs", "telling", "--since", "noon"]);
    assert!(said.contains("neither a time before now"), "{said}");
    let said = refused(&node, &["container", "logs", "counting", "--follow"]);
    assert!(said.contains("there is no container \"counting\": there are telling, trigger"), "{said}");
}

#[test]
fn stats_tell_what_a_container_uses_and_what_it_was_denied() {
    let node = Node::boot_healthy(Config { cpus: 2, ..Config::direct() });
    let mut hungry = script(
        "dd if=/dev/zero of=/file bs=64k count=64 conv=fsync 2>/dev/null; rm /file
        (x=0123456789abcdef; while true; do x=$x$x; done); echo it outlived its child; exec sleep 3600",
    );
    hungry["memory"] = json!("32MiB");
    hungry["pids"] = json!(40);
    node.set(&json!({"containers": {
        "hungry": hungry,
        "busy": script("while :; do :; done"),
        "done": {"image": "localhost/busybox", "command": ["true"], "restart": "no"},
    }}));
    node.wait_for_logs("hungry", "it outlived its child");
    let hungry = stats(&node, "hungry");
    let number = |name: &str| hungry[name].as_u64().unwrap_or_else(|| panic!("{name} of {hungry}"));
    assert_eq!((number("memory-limit-bytes"), number("pids-limit")), (32 << 20, 40));
    assert_eq!((number("oom-kills"), number("pids")), (1, 1));
    let peak = number("memory-peak-bytes");
    assert!((16 << 20..=33 << 20).contains(&peak) && number("memory-bytes") <= peak, "{hungry}");
    assert!(number("io-written-bytes") >= 4 << 20, "{hungry}");

    let first = stats(&node, "busy");
    std::thread::sleep(Duration::from_secs(2));
    let second = stats(&node, "busy");
    let grown = |name: &str| second[name].as_u64().unwrap() - first[name].as_u64().unwrap();
    assert!(grown("cpu-us") / 1000 > grown("at-ms") / 10, "{first} {second}");
    let table = done(&node, &["container", "stats"]);
    assert!(table.contains("32.0 MiB") && table.contains("\nbusy "), "{table}");
    assert!(!table.contains("\ndone "), "{table}");
    let said = refused(&node, &["container", "stats", "done"]);
    assert!(said.contains("done does not run"), "{said}");
}

#[test]
fn an_image_is_pulled_ahead_of_its_use_and_kept_until_it_is_removed() {
    let registry = Registry::start();
    let ahead = registry.publish("stories/ahead", "1", "of one who came early");
    let used = registry.publish("stories/used", "1", "of one who works");
    let node = Node::boot_healthy(Config { cpus: 2, ..Config::direct().registry(&registry) });
    let own = listed(&node, "localhost/busybox:latest");
    assert!(own["state"] == "preloaded" && own["bytes"].as_u64() > Some(100 << 10), "{own}");

    for image in [&ahead, &used] {
        let said = done(&node, &["image", "pull", &image.by_tag]);
        assert!(said.contains(&format!("pulled {}: sha256:", image.by_tag)), "{said}");
        let shown = listed(&node, &image.by_tag);
        let digest = image.by_digest.rsplit('@').next().unwrap();
        assert_eq!((&shown["digest"], &shown["pinned"]), (&json!(digest), &json!(true)), "{shown}");
        assert!(shown["state"] == "pulled" && shown["bytes"].as_u64() > Some(100 << 10), "{shown}");
        assert!(shown["pulled-at"].as_str().is_some_and(|time| time.starts_with("20")), "{shown}");
    }
    let inspected = json_of(&node, &["image", "inspect", &ahead.by_tag, "--json"]);
    assert_eq!(inspected["command"][2], "cat /etc/story; ls /etc; exec sleep 3600");
    assert_eq!(inspected["layers"].as_array().map(Vec::len), Some(2));
    for (reference, said) in [
        (format!("{}/stories/none:1", Registry::ADDRESS), "has no image"),
        ("Stories/X".to_owned(), "is not an image"),
    ] {
        let told = refused(&node, &["image", "pull", &reference]);
        assert!(told.contains(said), "{told}");
        assert_ne!(listed(&node, &reference)["pinned"], json!(true));
    }

    // One that is used, and the system's own, are not removed.
    node.set(&json!({"containers": {"works": {"image": used.by_tag}}}));
    node.wait_for_logs("works", "of one who works");
    assert_eq!(listed(&node, &used.by_tag)["used-by"], json!(["works"]));
    for (reference, said) in [
        (used.by_tag.as_str(), "is used by works"),
        ("localhost/busybox", "part of the system"),
        ("none", "there are "),
    ] {
        let told = refused(&node, &["image", "remove", reference]);
        assert!(told.contains(said), "{told}");
    }

    // It is there without the registry, after a restart, though no setting has named it.
    drop(registry);
    node.reboot();
    node.wait_for_container("works", "it runs", |container| container.state == ContainerState::Running);
    assert_eq!(listed(&node, &ahead.by_tag)["state"], "pulled");
    node.set(&json!({"containers": {"later": {"image": ahead.by_tag}}}));
    let log = node.wait_for_logs("later", "story");
    assert!(log.contains("of one who came early"), "{log}");
    let inspected = || json_of(&node, &["container", "inspect", "later"]);
    let told = inspected();
    assert!(ahead.by_digest.ends_with(told["image-digest"].as_str().unwrap()), "{told}");
    // While another image is waited for, nothing is told of the one before.
    let none = format!("{}/stories/none:2", Registry::ADDRESS);
    node.set(&json!({"containers": {"later": {"image": none}}}));
    node.wait_for_container("later", "it has no image", |container| container.error.is_some());
    let told = inspected();
    assert_eq!((&told["image"], &told["image-digest"]), (&json!(none), &Value::Null), "{told}");

    // Nor does it go with its container.
    done(&node, &["delete", "containers.later", "containers.works"]);
    node.wait_for("no container is left", PATIENCE, |node| node.containers().is_empty().then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    let said = done(&node, &["image", "prune"]);
    assert!(said.contains("0 B freed; 2 pulled by hand and used by no container are kept"), "{said}");
    let said = done(&node, &["image", "remove", &ahead.by_tag]);
    assert!(said.contains(&format!("{}: ", ahead.by_tag)) && said.contains("removed"), "{said}");
    assert_eq!(listed(&node, &ahead.by_tag), Value::Null);
    assert_eq!(listed(&node, &used.by_tag)["state"], "pulled");
    let said = done(&node, &["image", "prune", "--all"]);
    assert!(said.contains(&format!("{}: ", used.by_tag)) && said.contains("MiB freed"), "{said}");
    let (_, list) = node.client(&["image", "list"]);
    assert_eq!(list.lines().filter(|line| !line.contains("localhost/busybox")).count(), 1, "{list}");
}

/// Who goes back to an image needs no registry. It goes when space is needed, when a week is over, and when a person says so.
#[test]
fn what_nobody_wants_any_more_stays_for_a_while() {
    let registry = Registry::start();
    let [one, two] =
        ["one", "two"].map(|name| registry.publish(&format!("stories/{name}"), "1", name).by_digest);
    let node =
        Node::boot_healthy(Config { cpus: 2, ..Config::direct().registry(&registry) }.user_data(ADMIN));
    let run = |node: &Node, image: &str| {
        node.set(&json!({"containers": {"web": {"image": image}}}));
        node.wait_for_container("web", "it runs", |container| {
            container.image == image && container.state == ContainerState::Running && container.pid.is_some()
        });
    };
    let state = |node: &Node, image: &str| listed(node, image)["state"].clone();
    run(&node, &one);
    run(&node, &two);
    node.wait_for("the first is unused", PATIENCE, |node| (state(node, &one) == "unused").then_some(()));
    let table = done(&node, &["image", "list"]);
    assert!(table.lines().any(|line| line.contains(&one) && line.contains(" unused ")), "{table}");

    // What a container is made of stays below it, whatever its name means by now; this one's mounts name another folder.
    let first = registry.publish("stories/three", "1", "three at first").by_tag;
    node.set(&json!({"containers": {"apart": {"image": first, "networks": ["front"]}}}));
    node.wait_for_logs("apart", "three at first");
    registry.publish("stories/three", "1", "three again");
    done(&node, &["image", "pull", &first]);
    let table = done(&node, &["image", "list"]);
    assert!(!table.lines().any(|line| line.starts_with("sha256:")), "{table}");
    let said = done(&node, &["image", "prune"]);
    assert!(said.contains(&one) && !said.contains("three"), "{said}");
    assert_eq!(done(&node, &["exec", "apart", "cat", "/etc/story"]), "three at first\n");
    done(&node, &["container", "restart", "apart"]);
    node.wait_for_logs("apart", "three again");
    done(&node, &["delete", "containers.apart"]);

    // Back to a tag: its registry is asked what it is, and nothing is pulled anew.
    let four = registry.publish("stories/four", "1", "four").by_tag;
    run(&node, &four);
    let pulled = listed(&node, &four)["pulled-at"].clone();
    run(&node, &one);
    node.wait_for("the fourth is unused", PATIENCE, |node| (state(node, &four) == "unused").then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    run(&node, &four);
    let again = listed(&node, &four);
    assert_eq!((&again["state"], &again["pulled-at"]), (&json!("pulled"), &pulled), "{again}");
    run(&node, &two);
    node.wait_for("the fourth is unused", PATIENCE, |node| (state(node, &four) == "unused").then_some(()));
    let said = done(&node, &["image", "remove", &four]);
    assert!(said.contains(&format!("removed {four}")) && !said.contains("no files"), "{said}");
    assert_eq!((state(&node, &four), state(&node, &one)), (Value::Null, json!("unused")));

    // Back to a digest, and over a restart.
    drop(registry);
    run(&node, &one);
    node.wait_for("the second is unused", PATIENCE, |node| (state(node, &two) == "unused").then_some(()));
    assert_eq!(state(&node, &one), "pulled");
    node.reboot();
    node.wait_for_container("web", "it runs", |container| container.state == ContainerState::Running);
    assert_eq!((state(&node, &one), state(&node, &two)), (json!("pulled"), json!("unused")));
    assert_eq!(done(&node, &["exec", "web", "cat", "/etc/story"]), "one\n");

    // Space is needed: less than a fifth is free. What is used stays.
    let fill = "set $(df -k / | tail -n 1); dd if=/dev/zero of=/file bs=1M count=$((($4 - $2 / 10) / 1024)) 2>/dev/null";
    done(&node, &["exec", "web", "sh", "-c", fill]);
    node.wait_for("the second is gone", PATIENCE, |node| (state(node, &two) == Value::Null).then_some(()));
    assert_eq!(state(&node, &one), "pulled");
    done(&node, &["exec", "web", "rm", "/file"]);

    // Long unused: the clock goes on by eight days.
    done(&node, &["delete", "containers.web"]);
    node.wait_for("the first is unused", PATIENCE, |node| (state(node, &one) == "unused").then_some(()));
    done(&node, &["exec", "admin", "sh", "-c", "date -s @$(($(date +%s) + 8 * 24 * 3600))"]);
    node.wait_for("the first is gone", PATIENCE, |node| (state(node, &one) == Value::Null).then_some(()));
}
