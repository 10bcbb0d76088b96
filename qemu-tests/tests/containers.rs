//! Containers of the preloaded busybox: what they print, how they end, and what they cannot do.

use qemu_tests::{Config, ContainerState, Health, Node, script};
use serde_json::{Value, json};
use std::time::Duration;

/// Containers by name, each with settings over those of [`script`].
fn settings(containers: &[(&str, &str, Value)]) -> Value {
    let mut all = json!({});
    for (name, text, more) in containers {
        all[name] = script(text);
        for (key, value) in more.as_object().into_iter().flatten() {
            all[name][key] = value.clone();
        }
    }
    json!({"containers": all})
}

#[test]
fn one_that_fails_is_started_again_after_growing_delays() {
    let node = Node::boot(Config::direct().user_data(
        r#"
        [settings.containers.failing]
        image = "localhost/busybox"
        command = ["sh", "-c", "echo a line; exit 7"]
        restart = "on-failure"
        [settings.containers.content]
        image = "localhost/busybox:latest"
        command = ["sh", "-c", "echo done; exit 0"]
        restart = "on-failure"
        "#,
    ));
    let failing = node.wait_for_container("failing", "three restarts", |container| container.restarts >= 3);
    assert_eq!(failing.exit_code, Some(7));
    assert!(failing.delays_ms.is_sorted_by(|a, b| a < b), "the delays do not grow: {:?}", failing.delays_ms);
    assert!(failing.delays_ms.len() >= 3, "{:?}", failing.delays_ms);
    let log = node.logs("failing");
    assert!(log.matches("a line").count() >= 3, "{log}");

    let content = node.container("content");
    assert_eq!((content.state, content.exit_code, content.restarts), (ContainerState::Exited, Some(0), 0));
    assert!(node.logs("content").contains("done"));
}

/// Each tells why, in `GET /containers` and in the node's problems, and the others run.
#[test]
fn those_that_cannot_run_say_why() {
    let mut broken = settings(&[
        ("fine", "echo fine; exec sleep 3600", json!({})),
        ("no-image", "true", json!({"image": "localhost/nothing:1"})),
        ("no-command", "true", json!({"command": ["/bin/nothing"]})),
        ("no-program", "true", json!({"command": ["/etc/passwd"]})),
    ]);
    broken["containers"]["no-image"]["restart"] = json!("no");
    let node = Node::boot_healthy(Config::direct());
    node.set(&broken);
    node.wait_for_logs("fine", "fine");
    for (name, named) in
        [("no-image", "localhost/nothing:1"), ("no-command", "/bin/nothing"), ("no-program", "/etc/passwd")]
    {
        let container =
            node.wait_for_container(name, "it has an error", |container| container.error.is_some());
        let error = container.error.unwrap_or_default();
        assert!(error.contains(named), "{name}: the error does not name {named}: {error}");
        assert!(node.problems().contains(&format!("settings.containers.{name}")), "{}", node.problems());
    }
    assert_eq!(node.status().health, Health::Degraded);
    // Taken away, all is well.
    node.set(&settings(&[("no-image", "exec sleep 3600", json!({}))]));
    let refusal = node.try_set(&json!({"containers": {"Bad Name": {"image": "localhost/busybox"}}}));
    assert!(refusal.is_err_and(|refusal| refusal.contains("Bad Name")));
    node.wait_for_container("no-image", "it runs", |container| container.state == ContainerState::Running);
}

/// What the runtime must not forget, and forgets in silence when it is built without it.
#[test]
fn one_is_confined() {
    let node = Node::boot_healthy(Config::direct());
    let probe = "
        echo \"seccomp: $(grep Seccomp: /proc/self/status | tr -d '\\t')\"
        echo \"blocked signals: $(grep SigBlk: /proc/self/status | tr -d '\\t')\"
        echo \"no new privileges: $(grep NoNewPrivs /proc/self/status | tr -d '\\t')\"
        echo \"capabilities: $(grep CapEff /proc/self/status | tr -d '\\t')\"
        for folder in / /dev /dev/shm; do
            mknod $folder/disk b 254 0; mknod $folder/memory c 1 1
            for device in $folder/disk $folder/memory; do
                if dd if=$device of=/tmp/copy bs=512 count=1 2>/tmp/error; then echo \"READ $device\"
                else echo \"no $device: $(cat /tmp/error)\"; fi
            done
        done
        dd if=/dev/zero of=/tmp/copy bs=512 count=1 2>/dev/null && echo zeros were read
        mount -t tmpfs tmpfs /mnt 2>/dev/null && echo mounted || echo not mounted
        echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo tuned || echo not tuned
        ls /state /run/init.sock 2>/dev/null && echo escaped || echo inside
        ls /proc | grep -c '^[0-9]*$' | sed 's/^/processes: /'
        env | grep -E '^(LISTEN_|NOTIFY_)' && echo told of the services || echo told of nothing
        echo \"descriptors: $(ls /proc/self/fd | tr '\\n' ' ')\"
        echo to stderr >&2
        echo through a pipe | cat
        head -c 150000 /dev/zero | tr '\\0' x | wc -c | sed 's/^/counted: /'
        echo the end
        exec sleep 3600";
    node.set(&settings(&[("probe", probe, json!({}))]));
    let log = node.wait_for_logs("probe", "the end");
    for wanted in [
        "seccomp: Seccomp:2",
        "blocked signals: SigBlk:0000000000000000",
        "no new privileges: NoNewPrivs:1",
        "zeros were read",
        "not mounted",
        "not tuned",
        "inside",
        "told of nothing",
        // None that the host agent got from PID 1; the last is of the folder that ls itself reads.
        "descriptors: 0 1 2 3 \n",
        "to stderr",
        "through a pipe",
        "counted: 150000",
    ] {
        assert!(log.contains(wanted), "{wanted:?} is not in:\n{log}");
    }
    // The disk of the node and the memory of the machine, made with CAP_MKNOD.
    assert!(!log.contains("READ"), "a denied device was read:\n{log}");
    assert_eq!(log.matches("no /").count(), 6, "{log}");
}

#[test]
fn one_with_limits_keeps_to_them() {
    let node = Node::boot_healthy(Config::direct());
    node.set(&settings(&[
        // Shell variables are memory.
        ("eater", "x=0123456789abcdef; while true; do x=$x$x; done", json!({"memory": "16MiB"})),
        ("bomb", "bomb() { bomb | bomb & }; bomb; exec sleep 3600", json!({"pids": 40})),
        ("neighbour", "exec sleep 3600", json!({"essential": true})),
    ]));
    // 128 + SIGKILL, from the kernel's memory killer; and it is started again.
    node.wait_for_container("eater", "it was killed and started again", |container| {
        container.exit_code == Some(137) && container.restarts >= 1
    });
    node.wait_for_container("bomb", "it runs", |container| container.started_at_ms.is_some());
    std::thread::sleep(Duration::from_secs(3));
    // The node answers while the bomb goes off, and PID 1 and its services are the ones that were.
    let begun = std::time::Instant::now();
    for name in ["apiserver", "host-agent"] {
        assert_eq!(node.get("/services")[name]["restarts"], 0, "{name} was started again");
    }
    assert_eq!(node.container("neighbour").restarts, 0);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    node.set(&json!({"motd": "set beside a fork bomb"}));
}

#[test]
fn one_runs_in_128_mib_with_one_processor() {
    let mut node = Node::boot_healthy(Config { memory_mib: 128, cpus: 1, ..Config::direct() });
    node.set(&settings(&[("small", "echo runs; exec sleep 3600", json!({"essential": true}))]));
    node.wait_for_logs("small", "runs");
    node.wait_until_healthy();
    let status = node.status();
    eprintln!("128 MiB: {} KiB of {} KiB are free", status.memory_available_kib, status.memory_total_kib);
    node.power_off();
}

/// They come back with their settings after a restart of the node, and go with them.
#[test]
fn they_come_and_go_with_the_settings() {
    let mut node = Node::boot_healthy(Config { cpus: 2, ..Config::direct() });
    node.set(&settings(&[(
        "web",
        "trap 'echo ended in order; exit 0' TERM; echo first; while :; do sleep 1; done",
        json!({}),
    )]));
    node.wait_for_logs("web", "first");
    // Another command: the same container, started anew.
    node.set(&settings(&[(
        "web",
        "trap 'echo ended in order; exit 0' TERM; echo second $WORD; while :; do sleep 1; done",
        json!({"env": {"WORD": "word"}}),
    )]));
    let log = node.wait_for_logs("web", "second word");
    assert!(log.contains("ended in order"), "{log}");
    node.reboot();
    node.wait_for_container("web", "it runs", |container| container.state == ContainerState::Running);
    let log = node.wait_for_logs("web", "second word");
    assert!(log.matches("ended in order").count() >= 2, "it was not ended in order by the reboot: {log}");
    node.power_off();
    let log = node.file("data", "/log/containers/web.log");
    assert!(log.contains("second word"), "{log}");
}
