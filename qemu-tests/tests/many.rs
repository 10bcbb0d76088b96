//! Many containers on one small node.

use hyper::Method;
use qemu_tests::{Config, ContainerState, ContainerStatus, Node, install_in_slot_b, script, times};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Where `CAISSON_CONTAINERS` does not say.
const CONTAINERS: u32 = 100;
const KILLS: u32 = 100;
/// Beside a container's own process: its shim, its namespaces, its control group, its mounts; and what the agent keeps.
const LARGEST: u64 = 1536;

fn name(number: u32) -> String {
    format!("idle-{number}")
}

/// All run, they cost little, and the agent's death is not theirs, however often it dies. That takes two minutes.
#[test]
fn many_containers_on_one_gibibyte() {
    let containers = times("CAISSON_CONTAINERS", CONTAINERS);
    let mut node = Node::new(Config { memory_mib: 1024, skip_idle_time: true, ..Config::direct() });
    // Once all run: what shims take in all, and then the agent is killed again and again.
    let chaos = format!(
        "
        b=/usr/bin/busybox
        # Beside it is the shim of the next container.
        agent() {{ for pid in $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs); do
            $b grep -qx host-agent /proc/$pid/comm && echo $pid; done; }}
        until [ $($b ls /run/containers/idle-*/pid 2>/dev/null | $b wc -l) -eq {containers} ]; do $b sleep 1; done
        $b sleep 10
        echo \"<5>shims: $($b cat $($b pidof container-shim | $b sed 's#[0-9]*#/proc/&/smaps_rollup#g') | $b awk '/^Pss:/ {{ s += $2 }} END {{ print s }}') KiB\"
        echo \"<5>agent: $($b awk '/^Pss:/ {{ print $2 }}' /proc/$(agent)/smaps_rollup) KiB\"
        until $b grep -q chaos /run/etc/motd; do $b sleep 1; done
        i=0
        while [ $i -lt {KILLS} ]; do
            until pid=$(agent); [ -n \"$pid\" ]; do $b sleep 0.5; done
            $b kill -9 $pid
            while $b grep -q $pid /sys/fs/cgroup/system/host-agent/cgroup.procs; do $b sleep 0.5; done
            i=$((i+1))
        done
        echo \"<5>killed the agent $i times\"
        "
    );
    install_in_slot_b(&mut node, "chaos", &chaos);
    node.start();
    node.wait_until_healthy();
    let first = |count: u32| -> Map<String, Value> {
        (0..count).map(|number| (name(number), script("exec sleep 100000000"))).collect()
    };
    // What the first one takes is there once: the runtime and the image in memory, the agent at work.
    node.set(&json!({"containers": first(1)}));
    node.wait_for("the first container", Duration::from_secs(60), |node| running(node, 1));
    std::thread::sleep(Duration::from_secs(3));
    let before = node.status().memory_available_kib;
    let begun = Instant::now();
    node.set(&json!({"containers": first(containers)}));
    let started = node.wait_for(format!("{containers} containers"), Duration::from_secs(600), |node| {
        running(node, containers)
    });
    eprintln!("{containers} containers run after {:.0} s", begun.elapsed().as_secs_f64());
    node.wait_for_console("chaos: agent: ");
    let after = node.status().memory_available_kib;
    let each = before.saturating_sub(after) / u64::from(containers - 1);
    let figures: Vec<String> =
        node.console().lines().filter(|line| line.contains(" KiB")).map(str::to_owned).collect();
    eprintln!("{each} KiB of memory for each container; {}", figures.join("; "));
    assert!(each <= LARGEST, "{each} KiB of memory for each container");

    node.set(&json!({"motd": "chaos"}));
    node.wait_for(format!("{KILLS} kills"), Duration::from_secs(600), |node| {
        node.console().contains(&format!("killed the agent {KILLS} times")).then_some(())
    });
    let still = node.wait_for("the agent answers", Duration::from_secs(60), |node| running(node, containers));
    assert_eq!(still, started, "a container is not the one that was started");
    assert!(node.containers().iter().all(|container| container.restarts == 0));
}

/// The process of each container, once all run.
fn running(node: &Node, containers: u32) -> Option<BTreeMap<String, u32>> {
    let answer = node.request_within(Duration::from_secs(10), Method::GET, "/containers", "").ok()?;
    let all: Vec<ContainerStatus> = serde_json::from_slice(&answer.body).ok()?;
    let runs = all.into_iter().filter(|container| container.state == ContainerState::Running);
    let processes: BTreeMap<String, u32> =
        runs.filter_map(|container| Some((container.name, container.pid?))).collect();
    (processes.len() == containers as usize).then_some(processes)
}
