//! What an operator does with containers that run.

use hyper::Method;
use qemu_tests::{ADMIN, Config, ContainerState, Health, Node, install_in_slot_b};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
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

/// What the client ended with, and said on both outputs.
fn copy(node: &Node, from: &str, to: &str) -> (Option<i32>, String) {
    let output = node.client_command(&["container", "cp", from, to]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn shell(node: &Node, name: &str, script: &str) -> String {
    let output = node.client_command(&["exec", name, "sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is in the container is hostile: nothing of it leads out of its root, keeps the node waiting, or runs.
#[test]
fn files_are_copied_out_and_in() {
    let node = Node::boot_healthy(
        Config::direct().user_data(
            r#"
        [settings.containers.web]
        image = "localhost/busybox"
        command = ["sleep", "1000000"]
        user = "1000:1001"
        [settings.containers.fixed]
        image = "localhost/busybox"
        command = ["sleep", "1000000"]
        read-only = true
        "#
            .to_owned()
                + ADMIN,
        ),
    );
    for name in ["web", "fixed", "host-containers.admin"] {
        node.wait_for_container(name, "it runs", |container| {
            container.state == ContainerState::Running && container.pid.is_some()
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let here = |path: &str| dir.path().join(path).display().to_string();
    let made = shell(
        &node,
        "web",
        r#"cd /tmp; mkdir -p d/sub; head -c 3000000 /dev/urandom > d/sub/big; echo hello > d/a; chmod 640 d/a; ln -s /../../../../usr/lib/os-release d/out
        mkfifo "d/$(printf 'pipe\033[31m')"; mkdir secret; echo secret > secret/file; chmod 000 secret/file secret
        ln -s /../../../../usr/lib/os-release out; ln -s /tmp/d/a in; (while :; do echo more; done > grows) & echo $! > pid; sleep 1; md5sum < d/sub/big"#,
    );
    // Its processes, one of which was given words that are none.
    shell(&node, "web", r#"sh -c 'sleep 300; :' "$(printf '\033[2Jx\n1 1 0')" >/dev/null 2>&1 & sleep 1"#);
    let (code, top) = node.client(&["container", "top", "web"]);
    assert!(code == 0 && top.contains(r"sh -c sleep 300; : \u{1b}[2Jx\n1 1 0"), "{top}");
    let pid = node.container("web").pid.unwrap().to_string();
    let first: Vec<&str> = top.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(first[..4], ["1", &pid, "1000", "S"], "{top}");
    assert!(top.lines().nth(1).unwrap().ends_with("  sleep 1000000"), "{top}");
    // How it was started. What a variable holds may be secret.
    let (code, inspected) = node.client(&["container", "inspect", "web"]);
    assert_eq!(code, 0, "{inspected}");
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["state"], "running");
    let runtime = &inspected["runtime"];
    assert_eq!(runtime["process"]["user"]["uid"], 1000, "{inspected:#}");
    assert_eq!(runtime["linux"]["cgroupsPath"], "/containers/web/payload", "{inspected:#}");
    let variables = runtime["process"]["env"].as_array().unwrap();
    assert!(variables.iter().any(|name| name == "PATH"), "{inspected:#}");
    assert!(variables.iter().all(|name| !name.as_str().unwrap().contains('=')), "{inspected:#}");
    // Out: the tree as it is, and a link as a link.
    let (code, said) = copy(&node, "web:/tmp/d", &here("d"));
    assert!(code == Some(0) && said.contains("copied 3 files, 2.9 MiB"), "{said}");
    assert!(said.contains(r#"left out "d/pipe\u{1b}[31m": it is a pipe"#), "{said}");
    let sum = Command::new("md5sum").stdin(File::open(here("d/sub/big")).unwrap()).output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&sum), made);
    assert_eq!(fs::metadata(here("d/a")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_link(here("d/out")).unwrap().as_os_str(), "/../../../../usr/lib/os-release");
    // A link that is named is followed, in the container. A file that nobody in the container may read can be, as the node may; one
    // that grows for ever ends.
    for (from, to) in [("/tmp/in", "a"), ("/tmp/d/a", "b"), ("tmp/secret/file", "c"), ("/tmp/grows", "e")] {
        let (code, said) = copy(&node, &format!("web:{from}"), &here(to));
        assert_eq!(code, Some(0), "{from}: {said}");
    }
    assert_eq!(
        fs::read_to_string(here("b")).unwrap() + &fs::read_to_string(here("c")).unwrap(),
        "hello\nsecret\n"
    );
    shell(&node, "web", "kill $(cat /tmp/pid)");
    for (from, expected) in [
        ("web:/tmp/out", r#""/tmp/out": No such file"#),
        ("web:/proc/self/environ", "No such file"),
        ("web:/proc/1/root/usr/lib/os-release", r#""/proc/1/root/usr/lib/os-release": "#),
        ("web:/dev/zero", "it is a device"),
        ("web:/tmp/d/pipe\u{1b}[31m", "it is a pipe"),
        ("wbe:/tmp", "there are fixed, host-containers.admin, web"),
        ("web", "one of the two is in a container"),
    ] {
        let (code, said) = copy(&node, from, &here("never"));
        assert!(code != Some(0) && said.contains(expected) && !said.contains('\u{1b}'), "{from}: {said}");
        assert!(!dir.path().join("never").exists(), "{from}");
    }
    // In: of the container's user, also where that may not write.
    let (code, said) = copy(&node, &here("d"), "web:/tmp/site");
    assert!(code == Some(0) && said.contains("copied 3 files"), "{said}");
    let (code, said) = copy(&node, &here("a"), "web:/etc/new");
    assert_eq!(code, Some(0), "{said}");
    let found =
        shell(&node, "web", "stat -c '%u %g %a' /tmp/site /tmp/site/a /etc/new; md5sum < /tmp/site/sub/big");
    assert_eq!(found, format!("1000 1001 755\n1000 1001 640\n1000 1001 640\n{made}"));
    // A link of the container's is not taken for the folder that it leads to.
    shell(&node, "web", "mkdir -p /tmp/trap /tmp/other; ln -s /tmp/other /tmp/trap/sub");
    let (code, said) = copy(&node, &here("d/."), "web:/tmp/trap");
    assert!(
        code == Some(1) && said.contains(r#""sub": there is something by that name which is no folder"#),
        "{said}"
    );
    assert_eq!(shell(&node, "web", "ls /tmp/other"), "");
    // A root that cannot be written.
    let (code, said) = copy(&node, &here("a"), "fixed:/etc/new");
    assert!(code == Some(1) && said.contains("Read-only file system"), "{said}");
    assert_eq!(copy(&node, "fixed:/bin/busybox", &here("busybox")).0, Some(0));
    assert!(fs::metadata(here("busybox")).unwrap().len() > 500_000);
    // As tar archives.
    let archive = node.client_command(&["container", "cp", "web:/tmp/site/.", "-"]).output().unwrap().stdout;
    fs::write(here("archive"), archive).unwrap();
    let listed = Command::new("tar").args(["-tf", &here("archive")]).output().unwrap();
    let mut names: Vec<&str> =
        std::str::from_utf8(&listed.stdout).unwrap().lines().map(|name| name.trim_end_matches('/')).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "out", "sub", "sub/big"]);
    let mut into = node.client_command(&["container", "cp", "-", "web:/tmp/again"]);
    let into = into.stdin(File::open(here("archive")).unwrap()).output().unwrap();
    assert!(into.status.success(), "{}", String::from_utf8_lossy(&into.stderr));
    assert_eq!(shell(&node, "web", "md5sum < /tmp/again/sub/big"), made);
    // Who is killed leaves nothing that runs. On the node, whose kernel tells of its end at once.
    let group = "cat /.bottlerocket/rootfs/sys/fs/cgroup/containers/web/shim/cgroup.procs | wc -l";
    let client = "/.bottlerocket/rootfs/usr/bin/apiclient --socket /.bottlerocket/rootfs/run/api.sock";
    let script = format!(
        "cd /tmp; mkfifo unread; sleep 1000 < unread & {client} container cp web:/tmp/site - > unread & sleep 4; {group}; kill -9 $!"
    );
    assert_eq!(shell(&node, "admin", &script).trim(), "3");
    node.wait_for("nothing is left", Duration::from_secs(20), |node| {
        (shell(node, "admin", group).trim() == "1").then_some(())
    });
    assert!(
        node.console().contains(r#"container web: uid 0 copies out of it "/tmp/site""#),
        "{}",
        node.console()
    );
    // It has to run.
    stop_quietly(&node, "web");
    let (code, said) = copy(&node, "web:/tmp/d", &here("never"));
    assert!(
        code == Some(1) && said.contains("apiclient: web does not run: apiclient container start"),
        "{said}"
    );
}

fn stop_quietly(node: &Node, name: &str) {
    let (code, said) = node.client(&["container", "stop", name]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn one_that_is_paused_does_nothing_until_it_goes_on() {
    let mut node = Node::new(Config::direct());
    let kill = "
        b=/usr/bin/busybox
        until $b test -e /run/chaos; do $b sleep 0.5; done
        $b kill -9 $($b cat /sys/fs/cgroup/system/host-agent/cgroup.procs)
        echo \"<5>killed the agent\"
        ";
    install_in_slot_b(&mut node, "chaos", &kill.replace("/run/chaos", "/data/containers/web/upper/tmp/kill"));
    node.config = node.config.clone().user_data(
        r#"
        [settings.containers.web]
        image = "localhost/busybox"
        essential = true
        command = ["sh", "-c", "trap 'echo ended in order; exit 7' TERM; echo started; while :; do date +%s%N > /tmp/now; sleep 0.2; done"]
        [settings.containers.web.health-check]
        command = ["true"]
        interval = 1
        timeout = 4
        retries = 2
        "#,
    );
    node.start();
    node.wait_until_healthy();
    let now = |node: &Node| {
        let output = node.client_command(&["container", "cp", "web:/tmp/now", "-"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let acts = |node: &Node, action: &str| {
        let (code, said) = node.client(&["container", action, "web"]);
        assert_eq!(code, 0, "{said}");
    };
    let pid = node.container("web").pid;
    acts(&node, "pause");
    acts(&node, "pause");
    // Also of one that is paused files can be had: they say that it stands still.
    let before = now(&node);
    let (_, list) = node.client(&["container", "list"]);
    assert!(list.contains("paused"), "{list}");
    assert_eq!(node.status().health, Health::Degraded);
    assert!(node.problems().contains("apiclient container unpause web lets it go on"), "{}", node.problems());
    let refused = node.client_command(&["exec", "web", "true"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(255) && said.contains("apiclient container unpause web"), "{said}");
    // Its health check would have failed twice by now, and the container would have been started again. Another agent leaves it so, too.
    fs::write(node.path("kill"), "").unwrap();
    assert_eq!(copy(&node, &node.path("kill").display().to_string(), "web:/tmp/kill").0, Some(0));
    node.wait_for_console("killed the agent");
    node.wait_for("the agent is back", Duration::from_secs(60), |node| {
        (node.try_status()?.machine_id.len() == 32
            && node.get("/services")["host-agent"]["restarts"].as_u64() >= Some(1)
            && node.containers().iter().any(|container| container.name == "web" && container.pid.is_some()))
        .then_some(())
    });
    std::thread::sleep(Duration::from_secs(4));
    let web = node.container("web");
    assert_eq!((web.state, web.pid, web.restarts), (ContainerState::Paused, pid, 0));
    assert_eq!(now(&node), before);
    acts(&node, "unpause");
    node.wait_until_healthy();
    assert_eq!(node.container("web").pid, pid);
    assert_ne!(now(&node), before);
    // A stop reaches one that is paused.
    acts(&node, "pause");
    stop(&node);
    assert!(node.logs("web").ends_with("ended in order\n"), "{}", node.logs("web"));
    let (code, said) = node.client(&["container", "pause", "web"]);
    assert!(code == 1 && said.contains("web does not run"), "{said}");
    acts(&node, "start");
    let next = runs(&node, pid);
    acts(&node, "pause");
    acts(&node, "restart");
    runs(&node, next);
}
