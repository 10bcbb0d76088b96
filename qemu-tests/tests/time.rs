//! Nodes whose clock is wrong at first, and a real NTP server.

use apiserver::agent::ClockSource;
use hyper::Method;
use qemu_tests::{Config, Lan, Node, install_in_slot_b, script};
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m";
const REQUEST: Duration = Duration::from_secs(60);
/// Tells what the kernel knows of the client's process on the console.
const LOOK: &str = r#"
    b=/usr/bin/busybox
    while ! read pid < /sys/fs/cgroup/system/ntp/cgroup.procs; do $b sleep 0.1; done 2> /dev/null
    $b sleep 5
    echo "<5>process:" $($b grep -E '^(Uid|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|VmRSS|RssAnon|Threads):' /proc/$pid/status)
    echo "<5>looked"
"#;
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

fn state(node: &Node) -> String {
    node.get("/services")["ntp"]["state"].as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_for_state(node: &Node, wanted: &str) {
    node.wait_for(format!("the client {wanted}"), REQUEST, |node| (state(node) == wanted).then_some(()));
}

#[track_caller]
fn remove_servers(node: &Node) {
    node.granted(Method::DELETE, "/settings?keys=settings.ntp&tx=story", "");
    node.granted(Method::POST, "/tx/commit_and_apply?tx=story", "");
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
    assert_eq!(state(&node), "done", "nobody is to be asked unasked");

    node.set(&json!({"ntp": {"time-servers": [NOBODY]}}));
    wait_for_state(&node, "ready");
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

    remove_servers(&node);
    wait_for_state(&node, "done");
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
    let mut node = Node::new(with_clock(lan.attach(Config::direct()), "2040-01-01"));
    install_in_slot_b(&mut node, "look", LOOK);
    node.start();
    node.wait_until_healthy();
    wait_until_synchronised(&node);
    assert_eq!(node.status().time.servers, [Lan::ADDRESS]);
    node.wait_for_console("look: looked");
    let console = node.console();
    let process = console.lines().find(|line| line.contains("look: process:")).unwrap_or_default();
    let only_time = "0000000002000000";
    for expected in [
        "Uid: 275 275 275 275".to_owned(),
        "NoNewPrivs: 1".to_owned(),
        format!(
            "CapInh: {only_time} CapPrm: {only_time} CapEff: {only_time} CapBnd: {only_time} CapAmb: {only_time}"
        ),
    ] {
        assert!(process.contains(&expected), "{expected} is not in {process}");
    }
    let off = off_by(&node, "right");
    assert!(off < 3.0, "off by {off} s");
    // Settings go before DHCP, and DHCP's hold again without them.
    node.set(&json!({"ntp": {"time-servers": [NOBODY]}}));
    assert_eq!(node.status().time.servers, [NOBODY]);
    remove_servers(&node);
    assert_eq!(node.status().time.servers, [Lan::ADDRESS]);
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
