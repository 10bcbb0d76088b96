//! What services of the node offer when settings say so: its figures in the network, its API for the host.

use hyper::Method;
use qemu_tests::{Config, ContainerState, Node, script};
use serde_json::json;
use std::time::Duration;

/// A container is in the node's network, and asks as another machine would.
#[test]
fn figures_are_in_the_network_where_a_setting_says_so_and_nothing_else_is() {
    let node = Node::boot_healthy(Config::direct());
    let asks = "
        get() { wget -q -O - http://127.0.0.1:9100/$1; }
        get metrics; get settings || echo no settings
        while get metrics > /dev/null; do sleep 1; done
        echo closed; exec sleep 3600";
    let settings = json!({"metrics": {"address": "127.0.0.1:9100"}, "containers": {"asks": script(asks)}});
    node.set(&settings);
    let log = node.wait_for_logs("asks", "no settings");
    for wanted in [
        "caisson_host_agent_up 1",
        "caisson_node_health{caisson_node_health=\"healthy\"} 1",
        "caisson_service_state{service=\"apiserver\",caisson_service_state=\"ready\"} 1",
        "caisson_service_memory_bytes{service=\"host-agent\"}",
        "caisson_container_restarts_total{container=\"asks\"} 0",
        "caisson_container_cpu_seconds_total{container=\"asks\"}",
        "caisson_node_stalled_seconds_total{resource=\"memory\",share=\"full\"}",
        "# EOF",
    ] {
        assert!(log.contains(wanted), "{wanted:?} is not in:\n{log}");
    }
    // The same over the API's own socket.
    assert!(node.granted(Method::GET, "/metrics", "").text().contains("caisson_settings_generation 1"));
    node.granted(Method::DELETE, "/settings?keys=metrics.address&tx=story", "");
    node.granted(Method::POST, "/tx/commit_and_apply?tx=story", "");
    node.wait_for_logs("asks", "closed");
}

/// Without a word of the VMM the API is closed to the host; a setting opens it and closes it again, while the node runs.
#[test]
fn a_setting_opens_the_api_to_the_host_and_closes_it() {
    let opened = "[settings.api]\nvsock = true\n[settings.containers.steady]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"3600\"]\n";
    let config = Config { api: false, ..Config::direct() };
    let node = Node::boot_healthy(config.user_data(opened));
    node.wait_for_container("steady", "it runs", |container| container.state == ContainerState::Running);
    // The last request is answered, though its way ends with it.
    node.set(&json!({"api": {"vsock": false}}));
    node.wait_for("the API to be closed", Duration::from_secs(30), |node| {
        let asked = node.request_within(Duration::from_secs(5), Method::GET, "/settings", "");
        asked.is_err().then_some(())
    });
}

/// Who starts the machine decides: settings do not lock him out.
#[test]
fn what_the_vmm_opened_no_setting_closes() {
    let node = Node::boot_healthy(Config::direct());
    for vsock in [true, false] {
        node.set(&json!({"api": {"vsock": vsock}}));
        assert_eq!(node.setting("api.vsock"), json!(vsock));
    }
}
