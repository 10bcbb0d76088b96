//! Nodes whose clock is wrong at first, and a real NTP server.

use apiserver::agent::ClockSource;
use hyper::Method;
use qemu_tests::{Config, Lan, Node, script};
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";
/// An address that nobody has.
const NOBODY: &str = "192.0.2.200";

fn with_clock(config: Config, date: &str) -> Config {
    let mut config = config;
    config.extra.extend(["-rtc".to_owned(), format!("base={date}")]);
    config
}

fn hosts_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// By how many seconds a container's clock is off.
#[track_caller]
fn off_by(node: &Node, container: &str) -> f64 {
    node.set(&json!({"containers": {container: script("echo time $(date +%s); exec sleep 1000000")}}));
    let log = node.wait_for_logs(container, "time ");
    let read = hosts_time();
    let time: f64 = log.trim().trim_start_matches("time ").parse().unwrap_or_else(|_| panic!("{log:?}"));
    (time - read).abs()
}

#[track_caller]
fn wait_until_synchronised(node: &Node) {
    node.wait_for("the time", Duration::from_secs(90), |node| node.status().time.synchronised.then_some(()));
}

fn service(node: &Node) -> String {
    let services = node.get("/services");
    let list = services.to_string();
    let ntp = services
        .pointer("/ntp")
        .or_else(|| services.as_array()?.iter().find(|service| service["name"] == "ntp"));
    ntp.unwrap_or_else(|| panic!("no service ntp in {list}")).to_string()
}

/// The machine's clock says 2020. Settings bring the time, a change of them is followed at once, and the time is remembered.
#[test]
fn a_dead_clock_is_set_right_by_the_servers_of_the_settings() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE]);
    lan.chrony();
    let node = Node::boot_healthy(with_clock(lan.attach(Config::direct()), "2020-01-01"));
    let time = node.status().time;
    assert_eq!(time.source, Some(ClockSource::Image), "the image was not made before its clock");
    assert!(time.servers.is_empty() && !time.synchronised, "{time:?}");
    assert!(node.console().contains("the clock is set to when this image was made"), "{}", node.console());
    assert!(service(&node).contains("done"), "nobody is to be asked unasked: {}", service(&node));

    node.set(&json!({"ntp": {"time-servers": [NOBODY]}}));
    node.wait_for("the client", Duration::from_secs(20), |node| {
        service(node).contains("ready").then_some(())
    });
    let time = node.status().time;
    assert_eq!((time.servers.as_slice(), time.synchronised), (&[NOBODY.to_owned()][..], false));

    node.set(&json!({"ntp": {"time-servers": [Lan::ADDRESS]}}));
    wait_until_synchronised(&node);
    let time = node.status().time;
    assert_eq!(time.source, Some(ClockSource::Ntp));
    assert!(time.largest_error_us.is_some_and(|error| error < 2_000_000), "{time:?}");
    let off = off_by(&node, "right");
    assert!(off < 3.0, "off by {off} s");

    // The machine's clock says 2020 again; what was known before is nearer.
    node.reboot();
    node.wait_for_console("the clock is set to when it was last known");
    wait_until_synchronised(&node);

    node.granted(Method::DELETE, "/settings?keys=settings.ntp", "");
    node.wait_for("the client's end", Duration::from_secs(20), |node| {
        service(node).contains("done").then_some(())
    });
    let time = node.status().time;
    assert!(time.servers.is_empty() && !time.synchronised, "{time:?}");
    assert_eq!(time.source, Some(ClockSource::LastKnown));
}

/// The machine's clock says 2040: the way back is as long. The client runs as an ordinary user with one capability.
#[test]
fn a_clock_that_is_ahead_is_set_right_by_the_servers_of_dhcp() {
    let mut lan = Lan::new();
    lan.dnsmasq(&[RANGE, &format!("--dhcp-option=option:ntp-server,{}", Lan::ADDRESS)]);
    lan.chrony();
    let node = Node::boot_healthy(with_clock(lan.attach(Config::direct()), "2040-01-01"));
    wait_until_synchronised(&node);
    assert_eq!(node.status().time.servers, [Lan::ADDRESS]);
    let off = off_by(&node, "right");
    assert!(off < 3.0, "off by {off} s");
    // Settings go before DHCP, and DHCP's hold again without them.
    node.set(&json!({"ntp": {"time-servers": [NOBODY]}}));
    assert_eq!(node.status().time.servers, [NOBODY]);
    node.granted(Method::DELETE, "/settings?keys=settings.ntp", "");
    node.wait_for("DHCP's server", Duration::from_secs(20), |node| {
        (node.status().time.servers == [Lan::ADDRESS]).then_some(())
    });
    wait_until_synchronised(&node);
}

/// Five minutes without an answer are told; the node is otherwise well.
#[test]
fn servers_that_do_not_answer_are_told_of() {
    let text = format!("[settings.ntp]\ntime-servers = [\"{NOBODY}\"]\n");
    let config = Config { skip_idle_time: true, ..Config::direct() };
    let node = Node::boot(config.user_data(text));
    let problems = node.wait_for("a problem", Duration::from_secs(120), |node| {
        Some(node.problems()).filter(|problems| problems.contains("time: settings.ntp"))
    });
    assert!(problems.contains(&format!("no usable time from {NOBODY} for 5 minutes")), "{problems}");
    node.set(&json!({"motd": "set without the time"}));
}
