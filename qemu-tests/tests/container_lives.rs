//! When containers run and what they are told: secrets, schedules, replicas, and new settings that start beside the old ones.

use build::vm::config::Drive;
use hyper::Method;
use qemu_tests::{Config, ContainerState, Lan, Node, ext4_disk, install_in_slot_b, script};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(120);

const USER_DATA: &str = r#"
[settings.secrets]
token = "hunter2"

[settings.bootstrap-containers.files]
source = "localhost/busybox"
mode = "always"
essential = true
command = ["sh", "-c", "d=/.bottlerocket/rootfs/data/mnt/config; mkdir -p $d; echo LEVEL=debug > $d/app.env"]

[settings.containers.job]
image = "localhost/busybox"
restart = "no"
command = ["sh", "-c", "sleep 3; echo migrated"]

[settings.containers.app]
image = "localhost/busybox"
after = ["job"]
networks = ["front"]
user = "1000:1000"
env-files = ["/data/mnt/config/app.env"]
env-secrets = {TOKEN = "token"}
secrets = ["token"]
command = ["sh", "-c", "echo $TOKEN $LEVEL $(cat /run/secrets/token) $(stat -c '%a %u' /run/secrets/token); echo told; exec sleep 3600"]

[settings.containers.tick]
image = "localhost/busybox"
schedule = "* * * * *"
command = ["sh", "-c", "echo ticked; exit 3"]

[settings.containers.keeps]
image = "localhost/busybox"
networks = ["front"]
io-write = "4MiB"
volumes.disk = {kind = "disk", label = "more", path = "/more"}
command = ["sh", "-c", "cat /more/kept; echo kept > /more/kept; sync; time dd if=/dev/zero of=/slow bs=1M count=12 conv=fsync; echo written; exec sleep 3600"]

[settings.containers.web]
image = "localhost/busybox"
networks = ["front"]
replicas = 2
command = ["httpd", "-f", "-p", "80", "-h", "/etc"]
"#;

/// What a container is told, nobody else is. Others wait for what runs once. A schedule is kept, and replicas are found by one name. A
/// further disk is found by its label.
#[test]
fn secrets_schedules_and_replicas() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::direct().user_data(USER_DATA);
    config.drives.push(Drive { path: ext4_disk(folder.path(), "more"), read_only: false });
    let node = Node::boot_healthy(config);
    let told = node.wait_for_logs("app", "told");
    assert!(told.contains("hunter2 debug hunter2 400 1000"), "{told}");
    let (job, app) = (node.container("job"), node.container("app"));
    assert_eq!((job.state, job.exit_code), (ContainerState::Exited, Some(0)));
    assert!(
        app.started_at_ms > job.started_at_ms.map(|at| at + 3000),
        "it waited for the job: {app:?} {job:?}"
    );

    // No answer has it, and what says so in its place is not taken for it.
    let (_, shown) = node.client(&["get", "settings"]);
    assert!(shown.contains("(not shown)"), "{shown}");
    for uri in [
        "/",
        "/settings",
        "/settings?keys=settings.secrets",
        "/generations/1",
        "/generations/diff?from=0",
        "/containers",
    ] {
        let answer = node.granted(Method::GET, uri, "").text();
        assert!(!answer.contains("hunter2"), "{uri} tells it:\n{answer}");
    }
    assert!(!node.console().contains("hunter2"));
    let refused = node.try_set(&json!({"secrets": {"token": "(not shown)"}})).unwrap_err();
    assert!(refused.contains("leave it out"), "{refused}");
    node.set(&json!({"secrets": {"token": "correct horse"}}));
    node.wait_for("the container has the new secret", SOON, |node| {
        node.logs("app").contains("correct horse debug correct horse 400 1000").then_some(())
    });
    assert_eq!(node.logs("job").matches("migrated").count(), 1, "it is no business of others");

    // Both replicas, and by one name.
    let containers = node.containers();
    let replicas: Vec<&str> = containers
        .iter()
        .filter(|container| container.replica_of.as_deref() == Some("web"))
        .map(|container| container.name.as_str())
        .collect();
    assert_eq!(replicas, ["web", "web-2"]);
    let addresses = ["web", "web-2"].map(|name| node.container(name).addresses[0].to_string());
    let (_, found) = node.client(&["exec", "app", "nslookup", "web"]);
    assert!(addresses.iter().all(|address| found.contains(address)), "{addresses:?} in:\n{found}");
    let first = node.container("web").pid;
    node.set(&json!({"containers": {"web": {"replicas": 3}}}));
    node.wait_for_container("web-3", "it runs", |web| web.state == ContainerState::Running);
    assert_eq!(node.container("web").pid, first, "a further one changes nothing for the others");
    let refused = node.try_set(&json!({"containers": {"web": {"ports": ["80:80"]}}})).unwrap_err();
    assert!(refused.contains("3 replicas cannot have the same port"), "{refused}");

    // What another disk holds outlives the container. Twelve mebibytes at four in a second take at least a part of that.
    let kept = node.wait_for_logs("keeps", "written");
    let seconds = kept.split("real").nth(1).and_then(|rest| rest.split('s').next()).unwrap_or_default();
    let seconds: f64 =
        seconds.rsplit(['m', ' ']).next().and_then(|text| text.trim().parse().ok()).unwrap_or(0.0);
    assert!(seconds > 1.5, "{kept}");
    node.set(&json!({"containers": {"keeps": {"stop-timeout": 1}}}));
    node.wait_for("it begins anew, and the disk has what was written", SOON, |node| {
        node.logs("keeps").lines().any(|line| line == "kept").then_some(())
    });
    let wrong = json!({"image": "localhost/busybox", "volumes": {"a": {"kind": "disk", "label": "none", "path": "/a"}}});
    node.set(&json!({"containers": {"wrong": wrong}}));
    node.wait_for_container("wrong", "it says what is missing", |wrong| {
        wrong.error.as_ref().is_some_and(|error| error.contains("an ext4 with that label: mkfs.ext4 -L"))
    });

    // By itself each minute, and by hand at once.
    node.wait_for("its minute has come", SOON, |node| node.logs("tick").contains("ticked").then_some(()));
    let tick = node.wait_for_container("tick", "it waits for its next time", |tick| {
        tick.state == ContainerState::Scheduled && tick.exit_code == Some(3)
    });
    assert!(tick.next_run_at.is_some_and(|at| at.ends_with(":00Z")));
    let runs = node.logs("tick").matches("ticked").count();
    let (code, said) = node.client(&["container", "start", "tick"]);
    assert_eq!(code, 0, "{said}");
    node.wait_for("it ran by hand", Duration::from_secs(20), |node| {
        (node.logs("tick").matches("ticked").count() > runs).then_some(())
    });
}

const CHAOS: &str = "
    b=/usr/bin/busybox
    until [ -d /run/containers/kill ]; do $b sleep 0.5; done
    $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
    echo '<5>killed the agent'
    ";

fn version(text: &str) -> Value {
    json!({"containers": {"web": {
        "image": "localhost/busybox",
        "networks": ["front"],
        "ports": ["8080:80"],
        "update": "start-first",
        "stop-timeout": 2,
        "health-check": {"http": "http://localhost/version", "interval": 1, "retries": 2, "start-period": 20},
        "command": ["sh", "-c", format!("mkdir /tmp/www; {text}; exec httpd -f -p 80 -h /tmp/www")],
    }}})
}

/// New settings start beside the old ones and take their place when they are healthy; else the old ones stay, over a restart of the agent
/// too. Who asks notices nothing but the new answer.
#[test]
fn new_settings_start_first() {
    let mut lan = Lan::new();
    lan.dnsmasq(&["--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m"]);
    let mut node = Node::new(lan.attach(Config::direct()));
    install_in_slot_b(&mut node, "chaos", CHAOS);
    node.start();
    node.wait_until_healthy();
    let ipv4 = node.wait_for("an address", SOON, |node| {
        let addresses = node.status().addresses.remove("eth0")?;
        let address = addresses.into_iter().find(|address| address.starts_with("192.0.2."))?;
        address.split('/').next().map(str::to_owned)
    });
    let page = || {
        let url = format!("http://{ipv4}:8080/version");
        lan.run("busybox", &["wget", "-q", "-T", "5", "-O", "-", &url]).trim().to_owned()
    };
    node.set(&version("echo one > /tmp/www/version"));
    node.wait_for_container("web", "it is healthy", |web| web.is_up());
    let first = node.container("web").pid;
    assert_eq!(page(), "one");

    // Each question is answered, by one of the two.
    node.set(&version("sleep 4; echo two > /tmp/www/version"));
    assert_eq!((page().as_str(), node.container("web").pid), ("one", first), "the old one answers meanwhile");
    node.wait_for("the new one has its place", SOON, |_| {
        let answer = page();
        assert!(answer == "one" || answer == "two", "{answer:?}");
        (answer == "two").then_some(())
    });
    let second = node.container("web").pid;
    assert_ne!(second, first);
    let listed = node.client(&["container", "list"]).1;
    assert!(!listed.contains("web+"), "{listed}");

    // What does not become healthy is taken away again, and why is told.
    node.set(&version("echo hunter2"));
    let refused = node.wait_for_container("web", "its new settings are refused", |web| {
        web.update.as_ref().is_some_and(|update| json!(update)["state"] == "refused")
    });
    assert_eq!((page().as_str(), refused.pid), ("two", second));
    let problems = node.problems();
    // What it wrote is not for everybody.
    assert!(problems.contains("health check failed") && !problems.contains("hunter2"), "{problems}");

    // Another agent keeps it so.
    node.set(&json!({"containers": {"kill": script("exec sleep 3600")}}));
    node.wait_for_console("killed the agent");
    node.wait_for_container("web", "the next agent has taken it over", |web| {
        web.state == ContainerState::Running && json!(web.update)["state"] == "refused"
    });
    assert_eq!((page().as_str(), node.container("web").pid), ("two", second), "nobody touched it");

    // Stopped by hand, it is not started by settings that were refused, whatever else is set.
    assert_eq!(node.client(&["container", "stop", "web"]).0, 0);
    node.set(&json!({"motd": "set meanwhile", "containers": {"kill": {"stop-timeout": 1}}}));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.container("web").state, ContainerState::Stopped);
    assert_eq!(node.client(&["container", "start", "web"]).0, 0);
    node.wait_for("the old one is there again", SOON, |node| {
        node.container("web").is_up().then(&page).filter(|answer| answer == "two").map(drop)
    });

    // Mended, it goes on; and what is there by the name is the new one.
    node.set(&version("echo three > /tmp/www/version"));
    node.wait_for("the mended one has its place", SOON, |_| (page() == "three").then_some(()));
    let (_, said) = node.client(&["exec", "web", "cat", "/tmp/www/version"]);
    assert_eq!(said.trim(), "three");
    node.wait_for("it is healthy again", SOON, |node| node.problems().is_empty().then_some(()));
}
