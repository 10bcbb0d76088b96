//! Settings have their effect, and lose it when they are removed. What is not there says so.

use hyper::Method;
use qemu_tests::{Config, ContainerState, Lan, Node, Registry, script};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A node with a container that shows files of the node over and over.
fn watched(config: Config, files: &str) -> Node {
    let node = Node::boot_healthy(config);
    let show = format!("while :; do echo BEGIN; cat {files}; echo END; sleep 1; done");
    node.set(&json!({"containers": {"eye": script(&show)}}));
    node.wait_for_logs("eye", "END");
    node
}

/// What the container has shown last, as a whole.
fn seen(node: &Node) -> String {
    let log = node.logs("eye");
    let last = log.rsplit("BEGIN\n").find(|part| part.contains("END"));
    last.and_then(|part| part.split("END").next()).unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_to_see(node: &Node, what: &str, wanted: impl Fn(&str) -> bool) {
    node.wait_for(what, PATIENCE, |node| wanted(&seen(node)).then_some(()));
}

#[track_caller]
fn remove(node: &Node, key: &str) {
    let key = key.replace('"', "%22");
    node.granted(Method::DELETE, &format!("/settings?keys={key}&tx=story"), "");
    node.granted(Method::POST, "/tx/commit_and_apply?tx=story", "");
}

/// Containers see it at once, without a restart: the files stay the ones that they have mounted.
#[test]
fn names_come_from_the_settings_and_then_from_dhcp_again() {
    let mut lan = Lan::new();
    lan.dnsmasq(&["--dhcp-range=192.0.2.100,192.0.2.199,255.255.255.0,10m"]);
    let node = watched(lan.attach(Config::direct()), "/etc/hosts /etc/resolv.conf");
    wait_to_see(&node, "DHCP's name server", |text| text.contains("nameserver 192.0.2.1\n"));
    node.set(&json!({
        "network": {"hostname": "named", "hosts": [["10.9.9.9", ["db.example.com", "db"]], ["10.9.9.9", ["more"]]]},
        "dns": {"name-servers": ["192.0.2.53", "2001:db8::53"], "search-list": ["example.com", "example.net"]},
    }));
    wait_to_see(&node, "names of the settings", |text| {
        text.contains("127.0.0.1 localhost named\n")
            && text.contains("10.9.9.9 db.example.com db more\n")
            && text
                .contains("search example.com example.net\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n")
            && !text.contains("nameserver 192.0.2.1\n")
    });
    remove(&node, "settings.dns");
    remove(&node, "settings.network.hosts");
    wait_to_see(&node, "DHCP's again", |text| {
        text.contains("nameserver 192.0.2.1\n") && !text.contains("192.0.2.53") && !text.contains("10.9.9.9")
    });
    remove(&node, "settings.network.hostname");
    wait_to_see(&node, "the identity's name", |text| text.contains("127.0.0.1 localhost caisson-"));
}

#[test]
fn parameters_of_the_kernel_get_back_what_they_were() {
    let files = "/proc/sys/kernel/random/boot_id /proc/sys/vm/swappiness /proc/sys/net/core/somaxconn";
    let mut node = watched(Config::direct(), files);
    let before = seen(&node);
    let boot = before.lines().next().unwrap_or_default().to_owned();
    let wanted = json!({"kernel": {"sysctl": {"vm.swappiness": "7", "net.core.somaxconn": "4321"}}});
    node.set(&wanted);
    wait_to_see(&node, "the parameters of the settings", |text| text.ends_with("\n7\n4321\n"));
    remove(&node, "settings.kernel.sysctl.\"net.core.somaxconn\"");
    wait_to_see(&node, "one from before", |text| text.contains("\n7\n") && !text.contains("4321"));
    remove(&node, "settings.kernel.sysctl");
    wait_to_see(&node, "both from before", |text| text == before);
    node.set(&wanted);
    node.reboot();
    node.wait_for_container("eye", "it runs", |container| container.state == ContainerState::Running);
    wait_to_see(&node, "the parameters after a restart", |text| {
        text.ends_with("\n7\n4321\n") && !text.starts_with(&boot)
    });

    for (key, value, expected) in [
        ("kernel.core_pattern", "|/bin/sh", "as root"),
        ("../../tmp/x", "1", "is not a parameter of the kernel"),
        ("vm/swappiness", "1", "is not a parameter of the kernel"),
    ] {
        let refusal = node.try_set(&json!({"kernel": {"sysctl": {key: value}}}));
        assert!(refusal.as_ref().is_err_and(|refusal| refusal.contains(expected)), "{key}: {refusal:?}");
    }
    let modules = node.try_set(&json!({"kernel": {"modules": {"sctp": {"allowed": true}}}}));
    assert!(modules.is_err_and(|refusal| refusal.contains("this kernel has no modules")));
    node.power_off();
}

/// What the kernel does not take is told with its name, and the others are set.
#[test]
fn a_parameter_that_the_kernel_refuses_is_told() {
    let node = watched(Config::direct(), "/proc/sys/vm/swappiness");
    let parameters = json!({"vm.swappiness": "7", "vm.nothing": "1", "vm.overcommit_ratio": "much"});
    let told = node.try_set(&json!({"kernel": {"sysctl": parameters}}));
    let told = format!("{told:?} {}", node.problems());
    assert!(told.contains("vm.nothing") && told.contains("vm.overcommit_ratio"), "{told}");
    wait_to_see(&node, "the one that it takes", |text| text == "7\n");
}

#[test]
fn the_kernel_is_locked_down_and_not_opened_again() {
    let mut node = Node::boot_healthy(Config::direct());
    // What the image's command line says already is nothing to do; more is.
    node.set(&json!({"kernel": {"lockdown": "integrity"}}));
    node.set(&json!({"kernel": {"lockdown": "confidentiality"}}));
    let told = node.try_set(&json!({"kernel": {"lockdown": "integrity"}}));
    let told = format!("{told:?} {}", node.problems());
    assert!(told.contains("reboot the node"), "{told}");
    // The next boot begins with the command line's level.
    node.reboot();
    node.wait_until_healthy();
    node.power_off();
}

#[test]
fn containers_are_started_with_the_defaults_of_the_settings() {
    let node = Node::boot_healthy(Config::direct());
    node.set(&json!({"oci-defaults": {
        "capabilities": {"net-raw": true, "mknod": false},
        "resource-limits": {
            "max-open-files": {"soft-limit": 100, "hard-limit": 200},
            "max-core-file-size": {"soft-limit": 0, "hard-limit": "unlimited"},
        },
    }}));
    let probe = "ulimit -Sn; ulimit -Hn; grep CapEff /proc/self/status; grep core /proc/self/limits; echo END; exec sleep 3600";
    node.set(&json!({"containers": {"probe": script(probe)}}));
    let log = node.wait_for_logs("probe", "END");
    assert!(log.starts_with("100\n200\n"), "{log}");
    // Docker's set has bits 0, 1, 3 to 7, 8, 10, 13, 18, 27, 29 and 31: without mknod (27), with net_raw (13).
    assert!(log.contains("00000000a00425fb"), "{log}");
    let core = log.lines().find(|line| line.contains("core file size")).unwrap_or_default();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "unlimited"], "{log}");
}

/// A server on the host's loopback that answers each connection with this, and tells the first line of each request.
fn server(answer: &'static str) -> ((String, String), Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&mut stream).read_line(&mut line);
            let _ = stream.write_all(answer.as_bytes());
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    (("10.0.2.100:3128".to_owned(), format!("busybox nc 127.0.0.1 {port}")), told)
}

#[test]
fn pulls_go_through_the_proxy_and_containers_do_not_know_of_it() {
    let (forward, told) = server("HTTP/1.1 502 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let node = Node::boot_healthy(Config { guest_forward: Some(forward), ..Config::direct() });
    node.set(&json!({"network": {"https-proxy": "10.0.2.100:3128", "no-proxy": ["10.0.2.0/24"]}}));
    node.set(&json!({"containers": {
        "pulled": {"image": "registry.invalid/app:1"},
        "told": script("env; echo END; exec sleep 3600"),
    }}));
    let asked = told.recv_timeout(PATIENCE).expect("a request of the proxy");
    assert!(asked.starts_with("CONNECT registry.invalid:443"), "{asked}");
    let env = node.wait_for_logs("told", "END");
    assert!(!env.to_lowercase().contains("proxy"), "{env}");
}

/// The registry that the image names does not exist. Its mirrors, in both of Bottlerocket's forms, do; the first has nothing.
#[test]
fn an_image_comes_from_the_mirror_that_has_it() {
    let registry = Registry::start();
    registry.publish("stories/mirrored", "1", "told by another");
    let mirror = format!("http://{}", Registry::ADDRESS);
    let config = Config { guest_forward: Some(registry.forward()), ..Config::direct() };
    let node = Node::boot_healthy(config);
    let image = "registry.invalid/stories/mirrored:1";
    node.set(&json!({"containers": {"mirrored": {"image": image}}}));
    node.wait_for_container("mirrored", "it cannot be pulled", |container| container.error.is_some());
    // Nobody waits for the next try: the settings wake it.
    node.set(
        &json!({"container-registry": {"mirrors": {"registry.invalid": ["http://127.0.0.1:1", mirror]}}}),
    );
    let log = node.wait_for_logs("mirrored", "told by another");
    assert!(log.contains("told by another"), "{log}");
    let shown = node.get("/settings?keys=settings.container-registry.mirrors");
    let list = &shown["container-registry"]["mirrors"];
    assert_eq!(list, &json!([{"registry": "registry.invalid", "endpoint": ["http://127.0.0.1:1", mirror]}]));
}

#[test]
fn what_there_is_not_is_refused_with_the_reason_why() {
    let node = Node::boot(Config::direct());
    for (absent, why) in [
        (json!({"measurement": {}}), "not yet in this version"),
        (json!({"boot": {"kernel-parameters": {"quiet": [""]}}}), "part of the signed kernel image"),
    ] {
        let refusal = node.try_set(&absent).unwrap_err();
        assert!(refusal.contains(why), "{refusal}");
    }
}
