//! What an operator does with containers that run.

use hyper::Method;
use qemu_tests::{Config, ContainerState, Health, Node, install_in_slot_b};
use serde_json::json;
use std::time::Duration;

fn runs(node: &Node, pid_before: Option<u32>) -> Option<u32> {
    let runs = |pid: Option<u32>| pid.is_some() && pid != pid_before;
    let wanted = |state, pid| state == ContainerState::Running && runs(pid);
    node.wait_for_container("web", "it runs", |container| wanted(container.state, container.pid)).pid
}

fn stop(node: &Node) {
    // Before it has set its trap it would not end in order.
    node.wait_for("it has begun", Duration::from_secs(30), |node| {
        node.logs("web").ends_with("started\n").then_some(())
    });
    let (code, said) = node.client(&["container", "stop", "web"]);
    assert_eq!((code, said.trim()), (0, "stopped web"));
    let web = node.container("web");
    assert_eq!(
        (web.state, web.pid, web.exit_code, web.restarts),
        (ContainerState::Stopped, None, Some(7), 0)
    );
}

/// Until a person starts it, its settings change, or the node restarts.
#[test]
fn one_that_is_stopped_by_hand_stays_stopped() {
    let mut node = Node::new(Config::direct());
    let kill = "
        b=/usr/bin/busybox
        until $b grep -q halted /run/containers/web/kept.json; do $b sleep 0.5; done
        $b sleep 15
        $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
        echo \"<5>killed the agent\"
        ";
    install_in_slot_b(&mut node, "chaos", kill);
    node.config = node.config.clone().user_data(
        "[settings.containers.web]\nimage = \"localhost/busybox\"\nessential = true\n\
        command = [\"sh\", \"-c\", \"trap 'echo ended in order; exit 7' TERM; echo started; while :; do sleep 1; done\"]\n",
    );
    node.start();
    node.wait_until_healthy();
    stop(&node);
    assert!(node.logs("web").ends_with("ended in order\n"), "{}", node.logs("web"));
    // The node says why it is not well.
    assert_eq!(node.status().health, Health::Degraded);
    let problem = "settings.containers.web: it is essential, and was stopped by hand (apiclient container start web starts it)";
    assert!(node.problems().contains(problem), "{}", node.problems());
    // Another agent leaves it so.
    node.wait_for_console("killed the agent");
    node.wait_for("the agent is back", Duration::from_secs(60), |node| {
        (node.try_status()?.machine_id.len() == 32
            && node.get("/services")["host-agent"]["restarts"].as_u64() >= Some(1))
        .then_some(())
    });
    node.set(&json!({"motd": "set meanwhile"}));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.container("web").state, ContainerState::Stopped);
    assert_eq!(node.container("web").exit_code, Some(7));
    assert_eq!(node.logs("web").matches("started").count(), 1, "{}", node.logs("web"));
    let (_, list) = node.client(&["container", "list"]);
    assert!(list.contains("stopped"), "{list}");
    // By hand.
    assert_eq!(node.client(&["container", "start", "web"]).0, 0);
    let first = runs(&node, None);
    assert_eq!(node.client(&["container", "start", "web"]).0, 0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(runs(&node, None), first, "a start of one that runs disturbed it");
    assert_eq!(node.client(&["container", "restart", "web"]).0, 0);
    let second = runs(&node, first);
    assert_eq!(node.logs("web").matches("started").count(), 3, "{}", node.logs("web"));
    assert_eq!(node.container("web").restarts, 0);
    node.wait_until_healthy();
    for (name, said) in [("wbe", "there are web"), ("wbe/x", "there are web")] {
        let (code, refused) = node.client(&["container", "stop", name]);
        assert!(code == 1 && refused.contains(said), "{refused}");
    }
    let refused = node.request(Method::POST, "/containers/wbe/restart", "");
    assert_eq!(refused.status, 404, "{}", refused.text());
    // Other settings, and another boot.
    stop(&node);
    node.set(&json!({"containers": {"web": {"env": {"A": "b"}}}}));
    runs(&node, second);
    stop(&node);
    node.reboot();
    runs(&node, None);
}
