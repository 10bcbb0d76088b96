//! Nodes in a network with a real DHCP and DNS server.

use qemu_tests::{Config, Health, Lan, Node, script};
use serde_json::json;
use std::time::Duration;

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";

/// What the server says is what the node does: address, way out, names, MTU; and it tells its own name.
#[test]
fn a_lease_is_used_in_full() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[
        RANGE,
        "--dhcp-option=option:mtu,1400",
        "--address=/service.lan.test/192.0.2.77",
        "--dhcp-option=option:domain-search,lan.test",
    ]);
    let config = Config::direct().user_data("[settings.network]\nhostname = \"web-1\"\n");
    let node = Node::boot_healthy(lan.attach(config));
    node.wait_for("an address", Duration::from_secs(30), |node| {
        let addresses = node.status().addresses;
        addresses.get("eth0").filter(|all| all.iter().any(|one| one.starts_with("192.0.2."))).cloned()
    });
    let asks = "ip address show eth0; ip route; cat /etc/resolv.conf; nslookup service.lan.test; echo done; \
        exec httpd -f -p 80 -h /etc";
    node.set(&json!({"containers": {"asks": script(asks)}}));
    let log = node.wait_for_logs("asks", "done");
    for wanted in
        ["mtu 1400", "default via 192.0.2.1", "search lan.test", "nameserver 192.0.2.1", "192.0.2.77"]
    {
        assert!(log.contains(wanted), "{wanted:?} is not in:\n{log}");
    }
    // The other way: who is in the network reaches the container.
    let address = node.status().addresses["eth0"][0].split('/').next().unwrap_or_default().to_owned();
    let page = lan.run("busybox", &["wget", "-q", "-O", "-", &format!("http://{address}/hosts")]);
    assert!(page.contains("web-1"), "{page}");
}

/// Nobody answers at first: the node says so, works, and takes an address when there is one.
#[test]
fn a_server_that_comes_late() {
    let mut lan = Lan::new();
    let node = Node::boot(lan.attach(Config::direct()));
    let problems = node.wait_for("a problem", Duration::from_secs(60), |node| {
        Some(node.problems()).filter(|problems| problems.contains("eth0"))
    });
    assert!(problems.contains("DHCP"), "{problems}");
    assert_eq!(node.status().health, Health::Degraded);
    node.set(&json!({"motd": "set without a network"}));
    lan.dnsmasq(&[RANGE]);
    node.wait_for("an address", Duration::from_secs(120), |node| {
        node.status().addresses.get("eth0").cloned()
    });
    node.wait_until_healthy();
}

/// Half of two minutes later the lease is renewed; without a server it is over after another two, and the address is given up.
#[test]
fn a_lease_is_renewed_and_one_that_is_over_is_given_up() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE]);
    let node = Node::boot_healthy(lan.attach(Config::direct()));
    let acknowledged = |lan: &Lan| lan.dnsmasq_log().matches("DHCPACK").count();
    node.wait_for("an address", Duration::from_secs(30), |_| (acknowledged(&lan) >= 1).then_some(()));
    node.wait_for("a renewal", Duration::from_secs(100), |_| (acknowledged(&lan) >= 2).then_some(()));
    assert_eq!(node.status().health, Health::Healthy);
    lan.silence();
    let problems = node.wait_for("the end of the lease", Duration::from_secs(180), |node| {
        Some(node.problems()).filter(|problems| problems.contains("is over"))
    });
    assert!(problems.contains("eth0"), "{problems}");
    assert!(node.status().addresses.is_empty(), "{:?}", node.status().addresses);
    lan.dnsmasq(&[RANGE]);
    node.wait_for("an address again", Duration::from_secs(120), |node| {
        node.status().addresses.get("eth0").cloned()
    });
    node.wait_until_healthy();
}
