//! Networks of containers, on a node in a network with a real DHCP and DNS server.

use hyper::Method;
use qemu_tests::{Config, ContainerState, Lan, Node, install_in_slot_b, script};
use serde_json::json;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);

const USER_DATA: &str = r#"
[settings.container-networks.back]
internal = true
subnet4 = "10.9.8.0/24"

[settings.containers.db]
image = "localhost/busybox"
networks = ["back"]
command = ["sh", "-c", "echo all tables > /tmp/tables; exec httpd -f -p 5432 -h /tmp"]
health-check = {http = "http://localhost:5432/tables"}

[settings.containers.web]
image = "localhost/busybox"
networks = ["front", "back"]
ports = ["8080:80"]
command = ["sh", "-c", "until wget -q -O - http://db:5432/tables; do sleep 1; done; exec httpd -f -p 80 -h /etc"]
health-check = {tcp = 80}

[settings.containers.client]
image = "localhost/busybox"
networks = ["front"]
after = ["db", "web"]
command = ["sh", "-c", """
ip -o address; ip route
wget -q -T 5 -O - http://web/hosts || echo no web
nslookup service.lan.test
wget -q -T 3 -O - http://db:5432/tables || echo no database by name
wget -q -T 3 -O - http://DATABASE:5432/tables || echo no database by address
echo done
while :; do if nslookup web > /dev/null 2>&1; then echo knows; else echo asks; fi; sleep 1; done
"""]

[settings.containers.alone]
image = "localhost/busybox"
networks = ["none"]
command = ["sh", "-c", "ip -o link; wget -q -T 2 -O - http://192.0.2.1 || echo no network; echo done; exec sleep 3600"]
"#;

/// As the script of the node does: what no setting can do to it.
const CHAOS: &str = "
    b=/usr/bin/busybox
    until [ -d /run/containers/kill ]; do $b sleep 0.5; done
    $b kill -9 $($b cat /run/netavark/aardvark-dns/aardvark.pid)
    $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
    echo '<5>killed agent and names'
    ";

fn wait_for_address(node: &Node, start: &str) -> String {
    node.wait_for(format!("an address {start}..."), SOON, |node| {
        let addresses = node.status().addresses.remove("eth0")?;
        let address = addresses.into_iter().find(|address| address.starts_with(start))?;
        address.split('/').next().map(str::to_owned)
    })
}

#[track_caller]
fn page(lan: &Lan, host: &str) -> String {
    lan.run("busybox", &["wget", "-q", "-T", "5", "-O", "-", &format!("http://{host}/hosts")])
}

/// By name and through published ports, IPv4 and IPv6; whom they share none with, they do not reach. Names and ports outlive the agent,
/// and the server of names comes back. What nobody needs any more goes.
#[test]
fn containers_reach_those_whose_network_they_share() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[
        "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m",
        "--enable-ra",
        "--dhcp-range=fd00:2::,ra-only,64,2m",
        "--address=/service.lan.test/192.0.2.77",
    ]);
    let mut node = Node::new(lan.attach(Config::direct()));
    install_in_slot_b(&mut node, "chaos", CHAOS);
    // The address that its name gives it, as is asserted below.
    node.config = node.config.clone().user_data(USER_DATA.replace("DATABASE", "10.9.8.57"));
    node.start();
    node.wait_until_healthy();
    let (ipv4, ipv6) = (wait_for_address(&node, "192.0.2."), wait_for_address(&node, "fd00:2::"));

    let asked = node.wait_for_logs("client", "done");
    let web = node.container("web");
    let db = node.container("db");
    assert_eq!((web.addresses.len(), db.addresses.len()), (4, 2), "{web:?} {db:?}");
    assert_eq!(db.addresses[0].to_string(), "10.9.8.57", "what the client asks for by address");
    assert!(node.logs("web").contains("all tables"), "{}", node.logs("web"));
    for wanted in [
        &format!("{} web", web.addresses[0]),
        "192.0.2.77",
        "no database by name",
        "no database by address",
        "default via 10.",
    ] {
        assert!(asked.contains(wanted), "{wanted:?} is not in:\n{asked}");
    }
    let alone = node.wait_for_logs("alone", "done");
    assert!(alone.contains("no network") && !alone.contains("eth0"), "{alone}");
    // From outside, by both families, and from the node itself.
    for host in [format!("{ipv4}:8080"), format!("[{ipv6}]:8080")] {
        assert!(page(&lan, &host).contains(" web"), "{host}");
    }
    node.set(&json!({"containers": {"node": script(
        "wget -q -T 5 -O - http://127.0.0.1:8080/hosts || echo no web; echo done; exec sleep 3600"
    )}}));
    let of_node = node.wait_for_logs("node", "done");
    assert!(of_node.contains(" web"), "{of_node}");

    // The agent and the server of names are killed.
    let before = node.container("web").pid;
    node.set(&json!({"containers": {"kill": script("exec sleep 3600")}}));
    node.wait_for_console("killed agent and names");
    node.wait_for("the agent is back", SOON, |node| {
        (node.try_status()?.machine_id.len() == 32
            && node.get("/services")["host-agent"]["restarts"].as_u64() >= Some(1))
        .then_some(())
    });
    // Nothing else has begun that would have it started again.
    node.wait_for("names are back", SOON, |node| {
        // The agent may not know it yet.
        let answer = node.request(Method::GET, "/containers/client/logs", "");
        let log = (answer.status == 200).then(|| answer.text())?;
        log.rsplit_once("asks\n").is_some_and(|(_, after)| after.contains("knows")).then_some(())
    });
    let again = "until nslookup web; do sleep 1; done; wget -q -T 5 -O - http://web/hosts; echo done; exec sleep 3600";
    let mut later = script(again);
    later["networks"] = json!(["front"]);
    node.set(&json!({"containers": {"later": later}}));
    let later = node.wait_for_logs("later", "done");
    assert!(later.contains(" web"), "{later}");
    node.wait_for_container("web", "it runs", |container| container.state == ContainerState::Running);
    assert_eq!(node.container("web").pid, before, "nobody touched it");
    assert!(page(&lan, &format!("{ipv4}:8080")).contains(" web"));

    // Other addresses: those in the network start again, and are reached as before.
    node.set(&json!({"container-networks": {"front": {"subnet4": "10.7.7.0/24"}}}));
    node.wait_for_container("web", "it has other addresses", |container| {
        container.addresses.first().is_some_and(|address| address.to_string().starts_with("10.7.7."))
    });
    node.wait_for("its page", SOON, |_| lan.reaches(&format!("{ipv4}:8080")).then_some(()));
    // One bridge for each network, none of before; and none at all when nobody is in any.
    let bridges = "ip -o link | grep -c '^[0-9]*: c[ni]-'";
    let count = script(&format!("until [ $({bridges}) = 2 ]; do sleep 1; done; echo done; exec sleep 3600"));
    node.set(&json!({"containers": {"count": count}}));
    node.wait_for_logs("count", "done");
    let (code, said) = node.client(&["delete", "containers"]);
    assert_eq!(code, 0, "{said}");
    let none = script(&format!("until [ $({bridges}) = 0 ]; do sleep 1; done; echo done; exec sleep 3600"));
    node.set(&json!({"containers": {"none": none}}));
    node.wait_for_logs("none", "done");
    assert!(!lan.reaches(&format!("{ipv4}:8080")));
}
