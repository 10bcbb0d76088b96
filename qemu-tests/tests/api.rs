//! The API server as the image runs it: confined, with a socket for those who only read, and telling what happens.

use qemu_tests::{Config, Node, install_in_slot_b};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Tells what the kernel knows of the API server's process, and what its sockets do, on the console.
const LOOK: &str = r#"
    b=/usr/bin/busybox
    until $b test -S /run/api-read.sock; do $b sleep 0.1; done
    until /usr/bin/apiclient get os > /dev/null; do $b sleep 0.1; done
    while ! read pid < /sys/fs/cgroup/system/apiserver/cgroup.procs; do $b sleep 0.1; done
    echo "<5>process:" $($b grep -E '^(Uid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Threads):' /proc/$pid/status)
    echo "<5>modes:" $($b stat -c '%n %a' /run/api.sock /run/api-read.sock)
    echo "<5>read:" $(/usr/bin/apiclient --socket /run/api-read.sock raw -u /settings 2>&1)
    echo "<5>write:" $(/usr/bin/apiclient --socket /run/api-read.sock set motd=changed 2>&1)
    echo "<5>looked"
"#;

#[test]
fn the_api_server_is_confined_and_readers_only_read() {
    let mut node = Node::new(Config::direct());
    install_in_slot_b(&mut node, "look", LOOK);
    node.config = node.config.clone().user_data(
        "[settings]\nmotd = \"before\"\n[settings.containers.web]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"1000000\"]\nenv = { TOKEN = \"hunter2\" }\n",
    );
    node.start();
    node.wait_until_healthy();
    node.wait_for_console("look: looked");
    let console = node.console();
    let line = |name: &str| {
        let found = console.lines().find(|line| line.contains(&format!("look: {name}:")));
        found.unwrap_or_else(|| panic!("the console has no {name}:\n{console}")).to_owned()
    };
    let process = line("process");
    let none = "0000000000000000";
    for expected in [
        "Uid: 274 274 274 274".to_owned(),
        "Threads: 1".to_owned(),
        "NoNewPrivs: 1".to_owned(),
        "Seccomp: 2".to_owned(),
        format!("CapInh: {none} CapPrm: {none} CapEff: {none} CapBnd: {none} CapAmb: {none}"),
    ] {
        assert!(process.contains(&expected), "{expected} is not in {process}");
    }
    assert!(line("modes").contains("/run/api.sock 660 /run/api-read.sock 666"), "{}", line("modes"));
    let write = line("write");
    assert!(write.contains("only reads: use /run/api.sock"), "{write}");
    assert!(!console.contains("hunter2"), "a reader saw a secret");
    assert_eq!(node.setting("motd"), "before");
    // The kernel enforces all of it: nothing is told as missing.
    assert!(!node.problems().contains("sandbox"), "{}", node.problems());
    node.power_off();
    let log = node.file("data", "/log/apiserver.log");
    assert!(log.contains("landlock: all of it is enforced") && log.contains("seccomp: "), "{log}");
}

#[test]
fn an_event_stream_shows_a_commit_and_what_became_of_it() {
    let node = Node::boot_healthy(Config::direct());
    let mut stream = UnixStream::connect(node.path("api.sock")).expect("a connection to the API");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: node\r\n\r\n").expect("a request");
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    // The first comment comes once the listener has its place.
    lines.find(|line| line.starts_with(": ")).expect("a stream of events");
    node.set(&json!({"motd": "told"}));
    let mut data = |event: &str| -> serde_json::Value {
        lines.find(|line| line == &format!("event: {event}")).unwrap_or_else(|| panic!("no {event}"));
        let line = lines.next().unwrap_or_default();
        serde_json::from_str(line.strip_prefix("data: ").unwrap_or_default()).expect("data as JSON")
    };
    let commit = data("commit");
    assert_eq!((&commit["transaction"], &commit["keys"]), (&json!("story"), &json!(["settings.motd"])));
    let apply = data("apply");
    assert_eq!((&apply["generation"], &apply["error"]), (&commit["generation"], &json!(null)));
    // A container that comes is told without being asked for.
    node.set(&json!({"containers": {"web": {"image": "localhost/busybox", "command": ["sleep", "1000"]}}}));
    assert_eq!(data("container")["name"], "web");
}
