//! Nodes in a network with a real DHCP and DNS server.

use qemu_tests::{Config, Health, Lan, Node, install_in_slot_b, script};
use serde_json::json;
use std::time::Duration;

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";
const SOON: Duration = Duration::from_secs(60);

/// What a script prints that runs in a container of this name.
#[track_caller]
fn asked(node: &Node, container: &str, asks: &str) -> String {
    node.set(&json!({"containers": {container: script(&format!("{asks}; echo done; exec sleep 3600"))}}));
    node.wait_for_logs(container, "done")
}

/// A web server that shows `/etc/hosts`.
#[track_caller]
fn serve(node: &Node) {
    node.set(&json!({"containers": {"web": script("exec httpd -f -p 80 -h /etc")}}));
}

#[track_caller]
fn wait_for_address(node: &Node, interface: &str, start: &str) -> String {
    node.wait_for(format!("an address {start}... of {interface}"), SOON, |node| {
        let addresses = node.status().addresses.remove(interface)?;
        let address = addresses.into_iter().find(|address| address.starts_with(start))?;
        address.split('/').next().map(str::to_owned)
    })
}

#[track_caller]
fn assert_has(text: &str, all: &[&str]) {
    for wanted in all {
        assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
    }
}

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

/// Addresses, routes, names and MTU as settings say, without a word to the DHCP server that is there; and others at run time.
#[test]
fn fixed_addresses_hold_and_are_changed_at_run_time() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE, "--address=/service.lan.test/192.0.2.77"]);
    let user_data = r#"
        [settings.network.interfaces.eth0]
        mtu = 1400
        static4 = {addresses = ["192.0.2.10/24"]}
        static6 = {addresses = ["fd00:2::10/64"]}
        route = [{to = "default", via = "192.0.2.1"}, {to = "198.51.100.0/24", from = "192.0.2.10", via = "192.0.2.1", route-metric = 7}]
        [settings.dns]
        name-servers = ["192.0.2.1"]
        search-list = ["lan.test"]
    "#;
    let node = Node::boot_healthy(lan.attach(Config::direct().user_data(user_data)));
    serve(&node);
    node.wait_for("the node answers", SOON, |_| lan.reaches("192.0.2.10").then_some(()));
    assert!(lan.reaches("[fd00:2::10]"), "not by IPv6");
    let before = asked(&node, "before", "ip address show eth0; ip route; nslookup service.lan.test");
    assert_has(
        &before,
        &[
            "mtu 1400",
            "192.0.2.10/24",
            "fd00:2::10/64",
            "default via 192.0.2.1",
            "198.51.100.0/24 via 192.0.2.1",
            "src 192.0.2.10",
            "metric 7",
            "192.0.2.77",
        ],
    );
    node.set(&json!({"network": {"interfaces": {"eth0": {"static4": {"addresses": ["192.0.2.11/24"]}, "mtu": 1300, "route": [{"to": "default", "via": "192.0.2.1"}]}}}}));
    assert!(lan.reaches("192.0.2.11"), "not at its new address");
    assert!(!lan.reaches("192.0.2.10"), "still at its old address");
    let after = asked(&node, "after", "ip address show eth0; ip route");
    assert_has(&after, &["mtu 1300", "192.0.2.11/24", "default via 192.0.2.1"]);
    assert!(!after.contains("198.51.100.0"), "{after}");
    assert!(!lan.dnsmasq_log().contains("DHCPDISCOVER"), "{}", lan.dnsmasq_log());
    // What the kernel does not take is told with its words.
    let refused =
        json!({"network": {"interfaces": {"eth0": {"route": [{"to": "default", "via": "203.0.113.1"}]}}}});
    let error = node.try_set(&refused).err().unwrap_or_else(|| node.get("/generations")[0].to_string());
    assert_has(&error, &["eth0 cannot have the route to everything via 203.0.113.1", "gateway"]);
    // And without settings it is as it is without settings.
    node.granted(hyper::Method::DELETE, "/settings?keys=settings.network.interfaces&tx=default", "");
    node.granted(hyper::Method::POST, "/tx/commit_and_apply", "");
    wait_for_address(&node, "eth0", "192.0.2.5");
    node.wait_until_healthy();
}

/// "Done when" 5 of issue 3.
#[test]
fn a_trial_that_cuts_the_node_off_comes_back_by_itself() {
    let mut lan = Lan::new();
    let user_data = "[settings.network.interfaces.eth0]\nstatic4 = {addresses = [\"192.0.2.10/24\"]}\n";
    let node = Node::boot_healthy(lan.attach(Config::direct().user_data(user_data)));
    serve(&node);
    node.wait_for("the node answers", SOON, |_| lan.reaches("192.0.2.10").then_some(()));
    let wrong = r#"{"network": {"interfaces": {"eth0": {"static4": {"addresses": ["203.0.113.10/24"]}}}}}"#;
    node.granted(hyper::Method::PATCH, "/settings?tx=trial", wrong);
    node.granted(hyper::Method::POST, "/tx/commit_and_apply?tx=trial&try=20", "");
    assert!(!lan.reaches("192.0.2.10"), "the node can be reached, as if nothing were wrong");
    node.wait_for("the node answers again", Duration::from_secs(90), |_| {
        lan.reaches("192.0.2.10").then_some(())
    });
    let addresses = node.setting("network.interfaces.eth0.static4.addresses");
    assert_eq!(addresses, json!(["192.0.2.10/24"]));
}

/// An address by DHCPv6, the network and the router by advertisements, names by both.
#[test]
fn dhcpv6_and_router_advertisements() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[
        "--enable-ra",
        "--dhcp-range=fd00:2::100,fd00:2::1ff,64,2m",
        "--dhcp-option=option6:dns-server,[fd00:2::1]",
        "--address=/service.lan.test/fd00:2::77",
    ]);
    let user_data = "[settings.network.interfaces.eth0]\ndhcp6 = {route-metric = 512}\n";
    let node = Node::boot_healthy(lan.attach(Config::direct().user_data(user_data)));
    let address = wait_for_address(&node, "eth0", "fd00:2::1");
    node.wait_until_healthy();
    let log = asked(
        &node,
        "asks",
        "ip -6 address show eth0; ip -6 route; cat /etc/resolv.conf; nslookup service.lan.test",
    );
    assert_has(&log, &[&address, "default via fe80::", "metric 512", "nameserver fd00:2::1", "fd00:2::77"]);
    serve(&node);
    node.wait_for("the node answers", SOON, |_| lan.reaches(&format!("[{address}]")).then_some(()));
    // Without it, what routers have given goes too.
    node.set(&json!({"network": {"interfaces": {"eth0": {"dhcp6": false, "dhcp4": {"optional": true}}}}}));
    node.wait_for("no address", SOON, |node| (!node.status().addresses.contains_key("eth0")).then_some(()));
    let log = asked(&node, "again", "ip -6 route");
    assert!(!log.contains("default"), "{log}");
}

/// Advertisements with who is to be asked for names.
const ADVERTISED: &[&str] = &[
    "--enable-ra",
    "--dhcp-range=fd00:2::,ra-only,64,2m",
    "--dhcp-option=option6:dns-server,[fd00:2::1],[fe80::]",
    "--dhcp-option=option6:domain-search,lan.test",
    "--address=/service.lan.test/fd00:2::77",
];
const NO_DHCP: &str = "[settings.network.interfaces.eth0]\naccept-ra = true\n";

/// No DHCP of any version: address, router and names come by advertisements, and names go when no router stands for them any more.
#[test]
fn router_advertisements_name_servers_as_long_as_they_hold() {
    let mut lan = Lan::new();
    // What is said every ten minutes, dnsmasq lets hold for half an hour; this for two minutes.
    lan.dnsmasq(&[ADVERTISED, &["--ra-param=lan,10,60"]].concat());
    let node = Node::boot_healthy(lan.attach(Config::direct().user_data(NO_DHCP)));
    wait_for_address(&node, "eth0", "fd00:2::");
    let asks = "until grep nameserver /etc/resolv.conf; do sleep 1; done; cat /etc/resolv.conf; nslookup service.lan.test";
    let log = asked(&node, "asks", asks);
    assert_has(&log, &["search lan.test", "nameserver fd00:2::1\nnameserver fe80::", "%eth0", "fd00:2::77"]);
    lan.silence();
    let over = "while grep -q . /etc/resolv.conf; do sleep 1; done; echo over; exec sleep 3600";
    node.set(&json!({"containers": {"over": script(over)}}));
    node.wait_for("the end of the names", Duration::from_secs(240), |node| {
        node.logs("over").contains("over").then_some(())
    });
}

/// What was advertised before an agent began is asked for: the router says it by itself only every ten minutes.
#[test]
fn an_agent_that_starts_again_asks_routers_for_names() {
    let mut lan = Lan::new();
    lan.dnsmasq(ADVERTISED);
    let mut node = Node::new(lan.attach(Config::direct().user_data(NO_DHCP)));
    // dnsmasq advertises more often in its first minute.
    let kill = "
        b=/usr/bin/busybox
        until $b grep nameserver /run/etc/resolv.conf; do $b sleep 1; done
        $b sleep 80
        : > /run/etc/resolv.conf
        $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
        until $b grep nameserver /run/etc/resolv.conf; do $b sleep 1; done
        echo \"<5>the names are back\"
        ";
    install_in_slot_b(&mut node, "chaos", kill);
    node.start();
    node.wait_for("the names are back", Duration::from_secs(200), |node| {
        node.console().contains("the names are back").then_some(())
    });
}

/// Nothing is set, and a router says that there is DHCPv6.
#[test]
fn without_settings_a_node_does_what_routers_say() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE, "--enable-ra", "--dhcp-range=fd00:2::100,fd00:2::1ff,64,2m"]);
    let node = Node::boot_healthy(lan.attach(Config::direct()));
    wait_for_address(&node, "eth0", "192.0.2.");
    wait_for_address(&node, "eth0", "fd00:2::1");
    node.wait_until_healthy();
}

/// Bond and bridge ask by DHCP; the bond gets another mode at run time.
#[test]
fn a_vlan_a_bond_and_a_bridge_have_addresses() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE]);
    let net_toml = r#"version = 3
        [bond0]
        kind = "bond"
        mode = "active-backup"
        interfaces = ["eth1", "eth2"]
        dhcp4 = true
        [bond0.monitoring]
        miimon-frequency-ms = 100
        [vlan42]
        kind = "vlan"
        device = "eth0"
        id = 42
        static4 = {addresses = ["198.51.100.10/24"]}
    "#;
    let bridge =
        "[settings.network.interfaces.br0]\nkind = \"bridge\"\ninterfaces = [\"eth3\"]\ndhcp4 = true\n";
    let mut config = lan.attach_cards(Config::direct().user_data(bridge), 4);
    config.fw_cfg.push(("opt/caisson/net.toml".to_owned(), net_toml.to_owned()));
    let node = Node::boot_healthy(config);
    wait_for_address(&node, "bond0", "192.0.2.");
    wait_for_address(&node, "vlan42", "198.51.100.");
    wait_for_address(&node, "br0", "192.0.2.");
    node.wait_until_healthy();
    let bonds = "cat /proc/net/bonding/bond0; cat /sys/class/net/eth3/master/uevent; ip address show eth1";
    let log = asked(&node, "asks", bonds);
    assert_has(
        &log,
        &[
            "fault-tolerance (active-backup)",
            "Slave Interface: eth1",
            "Slave Interface: eth2",
            "INTERFACE=br0",
        ],
    );
    node.set(&json!({"network": {"interfaces": {"bond0": {"mode": "balance-rr"}}}}));
    let log = asked(&node, "again", bonds);
    assert_has(&log, &["load balancing (round-robin)", "Slave Interface: eth1", "Slave Interface: eth2"]);
    wait_for_address(&node, "bond0", "192.0.2.");
    // All of it goes, and the cards are as they were.
    node.granted(hyper::Method::DELETE, "/settings?keys=settings.network.interfaces&tx=default", "");
    node.granted(hyper::Method::POST, "/tx/commit_and_apply", "");
    wait_for_address(&node, "eth2", "192.0.2.");
    let left = asked(&node, "left", "ip link");
    assert!(["bond0", "vlan42", "br0"].iter().all(|name| !left.contains(name)), "{left}");
}

/// What is set and not there is told, but not when it is optional; a later name of the node is told to the DHCP server.
#[test]
fn what_is_not_there_is_told_and_names_are_told_again() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE]);
    let interfaces =
        json!({"eth0": {"dhcp4": true}, "eth7": {"dhcp4": true}, "eth8": {"dhcp4": {"optional": true}}});
    let node = Node::boot_healthy(lan.attach(Config::direct()));
    node.set(&json!({"network": {"interfaces": interfaces}}));
    let problems = node.problems();
    assert!(problems.contains("eth7") && !problems.contains("eth8"), "{problems}");
    assert_eq!(node.status().health, Health::Degraded);
    node.granted(hyper::Method::DELETE, "/settings?keys=settings.network.interfaces.eth7&tx=default", "");
    node.granted(hyper::Method::POST, "/tx/commit_and_apply", "");
    node.wait_until_healthy();
    node.set(&json!({"network": {"hostname": "second"}}));
    node.wait_for("its new name", SOON, |_| {
        let log = lan.dnsmasq_log();
        log.lines().any(|line| line.contains("DHCPACK") && line.ends_with("second")).then_some(())
    });
}

/// The machine that tests run on may know no VLANs: two nodes do.
#[test]
fn a_vlan_carries_packets_between_two_nodes() {
    let mut lan = Lan::new();
    let node = |lan: &mut Lan, host: u8| {
        let user_data = format!(
            "[settings.network.interfaces.vlan42]\nkind = \"vlan\"\ndevice = \"eth0\"\nid = 42\nstatic4 = {{addresses = [\"198.51.100.{host}/24\"]}}\n"
        );
        let mut config = lan.attach(Config::direct().user_data(user_data));
        // QEMU gives the card of each machine the same address.
        let card = format!("virtio-net-pci.mac=52:54:00:00:00:{host}");
        config.extra.extend(["-global".to_owned(), card]);
        Node::boot_healthy(config)
    };
    let (server, client) = (node(&mut lan, 10), node(&mut lan, 11));
    server.set(&json!({"network": {"hostname": "over-there"}}));
    serve(&server);
    let ask =
        "until wget -q -T 2 -O - http://198.51.100.10/hosts; do sleep 1; done; cat /proc/net/vlan/config";
    let log = asked(&client, "asks", ask);
    assert_has(&log, &["over-there", "vlan42", "| 42"]);
    // Another VLAN is another network.
    client.set(&json!({"network": {"interfaces": {"vlan42": {"id": 43}}}}));
    let log = asked(&client, "again", "wget -q -T 2 -O - http://198.51.100.10/hosts || echo nobody");
    assert_has(&log, &["nobody"]);
}
