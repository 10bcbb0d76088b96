//! Services that die.

use qemu_tests::{ADMIN, Config, ContainerState, Node, install_in_slot_b, script};
use serde_json::json;
use std::time::Duration;

const KILLS: u32 = 100;

/// Kills every process of each service's control group, `KILLS` times for each.
fn chaos() -> String {
    format!(
        "
        b=/usr/bin/busybox
        i=0
        while [ $i -lt {KILLS} ]; do
            for service in apiserver host-agent; do
                while ! read pid < /sys/fs/cgroup/system/$service/cgroup.procs; do $b sleep 0.5; done
                $b kill -9 $($b cat /sys/fs/cgroup/system/$service/cgroup.procs)
                while $b grep -q $pid /sys/fs/cgroup/system/$service/cgroup.procs; do $b sleep 0.5; done
            done
            i=$((i+1))
        done
        echo \"<5>killed each service $i times\"
        "
    )
}

/// Between two kills a service waits up to ten seconds to be started again; the guest's clock jumps over that.
#[test]
fn every_service_killed_a_hundred_times() {
    let mut node = Node::new(Config { skip_idle_time: true, ..Config::direct() });
    node.config = node.config.clone().user_data(
        "[settings]\nmotd = \"before\"\n[settings.containers.steady]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"1000000\"]\n",
    );
    install_in_slot_b(&mut node, "chaos", &chaos());
    node.start();
    node.wait_for(format!("each service was killed {KILLS} times"), Duration::from_secs(240), |node| {
        node.console().contains(&format!("killed each service {KILLS} times")).then_some(())
    });
    assert!(!node.console().contains("panic"), "something panicked");
    node.cut_power();
    // Without chaos: nothing is lost.
    node.config.cmdline = None;
    node.config.skip_idle_time = false;
    node.start();
    node.wait_for_api();
    node.wait_until_healthy();
    assert_eq!(node.setting("motd"), "before");
    node.wait_for_container("steady", "it runs", |container| container.state == ContainerState::Running);
    node.set(&json!({"containers": {"later": script("echo later; exec sleep 3600")}}));
    node.wait_for_logs("later", "later");
    node.power_off();
}

/// A container belongs to its shim: the agent's death is not its own.
#[test]
fn a_container_outlives_the_agent() {
    let mut node = Node::new(Config::direct());
    let kill = "
        b=/usr/bin/busybox
        until $b test -e /run/containers/steady/pid; do $b sleep 0.1; done
        $b sleep 2
        for i in 1 2 3; do
            $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
            $b sleep 2
        done
        echo \"<5>killed the agent\"
        ";
    install_in_slot_b(&mut node, "chaos", kill);
    node.config = node.config.clone().user_data(
        "[settings.containers.steady]\nimage = \"localhost/busybox\"\ncommand = [\"sh\", \"-c\", \"echo started; i=0; while :; do i=$((i+1)); echo tick $i; sleep 1; done\"]\n",
    );
    node.start();
    node.wait_for_console("killed the agent");
    node.wait_until_healthy();
    let steady =
        node.wait_for_container("steady", "it runs", |container| container.state == ContainerState::Running);
    assert_eq!(steady.restarts, 0);
    assert_eq!(node.logs("steady").matches("started").count(), 1, "{}", node.logs("steady"));
    assert!(node.get("/services")["host-agent"]["restarts"].as_u64() >= Some(3));
    // It is still in the agent's hands: it can be taken away.
    node.set(&json!({"containers": {"steady": {"command": ["sh", "-c", "echo another; exec sleep 3600"]}}}));
    node.wait_for_logs("steady", "another");
}

/// One shim is started ahead of the next container. Without it a start is a start all the same.
#[test]
fn a_shim_that_waits_for_a_container_may_be_killed() {
    let node = Node::boot_healthy(
        Config::direct().user_data(
            r#"
        [settings.containers.web]
        image = "localhost/busybox"
        command = ["sh", "-c", "echo started; exec sleep 1000000"]
        "#
            .to_owned()
                + ADMIN,
        ),
    );
    for name in ["web", "host-containers.admin"] {
        node.wait_for_container(name, "it runs", |container| container.state == ContainerState::Running);
    }
    let shell = |script: &str| {
        let (code, said) = node.client(&["exec", "admin", "sh", "-c", script]);
        assert_eq!(code, 0, "{script}: {said}");
        said
    };
    // By the control group: a shim that has a container is in that one's.
    let spare = "cd /.bottlerocket/rootfs/sys/fs/cgroup/system/host-agent; for pid in $(cat cgroup.procs); do \
                 grep -qx container-shim /proc/$pid/comm && echo $pid; done; true";
    let one = || {
        node.wait_for("a shim waits", Duration::from_secs(20), |_| {
            Some(shell(spare).trim().to_owned()).filter(|spare| !spare.is_empty() && !spare.contains('\n'))
        })
    };
    let first = one();
    let shim = shell("grep -x shim:web /proc/[0-9]*/comm");
    for kills in [true, false] {
        let waits = one();
        if kills {
            shell(&format!("kill -9 {waits}"));
        }
        let before = node.container("web").pid;
        assert_eq!(node.client(&["container", "restart", "web"]).0, 0);
        node.wait_for_container("web", "it runs again", |container| {
            container.state == ContainerState::Running && container.pid != before
        });
        let now = shell("grep -x shim:web /proc/[0-9]*/comm");
        assert!(now.lines().count() == 1 && now != shim, "{now}");
        // Whether it was the one that waited which took the container.
        assert_eq!(now.contains(&format!("/{waits}/")), !kills, "{waits}: {now}");
        assert_ne!(one(), first);
    }
    assert_eq!(node.container("web").restarts, 0);
    assert_eq!(node.logs("web").matches("started").count(), 3);
}
