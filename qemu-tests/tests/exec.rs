//! Processes that a person runs in containers, from the host: over vsock, the API server, the agent, and a shim to the OCI runtime.

use qemu_tests::{ADMIN, Config, ContainerState, Node};
use serde_json::json;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Runs the client with an input; what it says on each output.
fn run(node: &Node, arguments: &[&str], input: &[u8]) -> Output {
    let mut client = node
        .client_command(&[&["exec"], arguments].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (client.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = client.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What it ended with, and said.
fn said(node: &Node, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = run(node, arguments, b"");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

fn shell(node: &Node, script: &str) -> (Option<i32>, String, String) {
    said(node, &["web", "sh", "-c", script])
}

/// Of the container's processes, those that run this.
/// How many there are of it; `None` when that could not be asked.
fn count(node: &Node, command: &str) -> Option<usize> {
    let (code, processes, _) = said(node, &["web", "ps", "-o", "args"]);
    (code == Some(0)).then(|| processes.lines().filter(|line| line.trim() == command).count())
}

fn wait_until_gone(node: &Node, command: &str) {
    node.wait_for(format!("{command} is gone"), Duration::from_secs(30), |node| {
        (count(node, command) == Some(0)).then_some(())
    });
}

fn boot() -> Node {
    let node = Node::boot_healthy(
        Config::direct().user_data(
            r#"
        [settings.containers.web]
        image = "localhost/busybox"
        command = ["sleep", "1000000"]
        env = { GREETING = "hello" }
        "#
            .to_owned()
                + ADMIN,
        ),
    );
    for name in ["web", "host-containers.admin"] {
        node.wait_for_container(name, "it runs", |container| {
            container.state == ContainerState::Running && container.pid.is_some()
        });
    }
    node
}

/// It was not started again, and is the same as before.
fn is_untouched(node: &Node, pid: Option<u32>) {
    let web = node.container("web");
    assert_eq!((web.state, web.pid, web.restarts), (ContainerState::Running, pid, 0));
}

#[test]
fn a_command_runs_as_if_it_were_here() {
    let node = boot();
    let pid = node.container("web").pid;
    let told = shell(&node, "echo $GREETING; echo aside >&2; exit 9");
    assert_eq!(told, (Some(9), "hello\n".to_owned(), "aside\n".to_owned()));
    // Not the same as exit code 9.
    assert_eq!(shell(&node, "kill -9 $$").0, Some(137));
    assert_eq!(shell(&node, "kill -15 $$").0, Some(143));
    // A lot, there and back, with every byte that there is.
    let data: Vec<u8> = (0..1_u32 << 20).map(|number| (number / 5) as u8).collect();
    let echo = run(&node, &["web", "cat"], &data);
    assert!(echo.stdout == data && echo.status.success(), "{} bytes came back", echo.stdout.len());
    let more = run(&node, &["web", "head", "-c", "20000000", "/dev/zero"], b"");
    assert_eq!(more.stdout.len(), 20_000_000);
    // A host container, by both of its names; it sees the node.
    for name in ["admin", "host-containers.admin"] {
        let (code, release, _) = said(&node, &[name, "cat", "/etc/bottlerocket-release"]);
        assert!(code == Some(0) && release.contains("ID=caisson"), "{release}");
    }
    for (arguments, expected) in [
        (&["wbe", "ls"][..], "there are host-containers.admin, web"),
        (&["web", "bash"], "the container has no such command in the folders of its PATH"),
        (&["web", "/bin/nothing"], "there is no such file in the container"),
        (&["web", "/etc"], "it is not a program"),
    ] {
        let (code, _, told) = said(&node, arguments);
        assert!(code == Some(255) && told.contains(expected), "{arguments:?}: {told}");
    }
    assert_eq!(node.client(&["container", "stop", "web"]).0, 0);
    let (code, _, told) = said(&node, &["web", "ls"]);
    assert!(code == Some(255) && told.contains("web does not run: apiclient container start"), "{told}");
    assert_eq!(node.client(&["container", "start", "web"]).0, 0);
    node.wait_for_container("web", "it runs anew", |container| {
        container.state == ContainerState::Running && container.pid.is_some() && container.pid != pid
    });
    // Who runs what is told, and not with which arguments.
    assert!(node.console().contains("container web: the host runs \"sh\" in it"), "{}", node.console());
    assert!(!node.console().contains("GREETING"));
}

/// What `one_is_confined` of containers.rs finds of a container's first process.
#[test]
fn a_command_is_confined_as_the_container_is() {
    let node = boot();
    let own = "grep -E '^(Seccomp|NoNewPrivs|Cap|Uid|Gid)' /proc/1/status | grep -v filters";
    let (_, of_container, _) = shell(&node, own);
    let (_, of_command, _) = shell(&node, &own.replace("/proc/1/", "/proc/self/"));
    assert_eq!(of_command, of_container);
    assert!(of_command.contains("Seccomp:\t2") && of_command.contains("NoNewPrivs:\t1"), "{of_command}");
    let (_, told, refused) = shell(
        &node,
        "unshare -U true; mount -t tmpfs tmpfs /mnt; cat /proc/self/cgroup; echo $(ls /proc/self/fd); ls /dev/pts | wc -l",
    );
    assert!(refused.contains("unshare: ") && refused.contains("permission denied"), "{refused}");
    // The group of the container, which is the root that it sees; no descriptor but its own, and that of ls.
    assert!(told.starts_with("0::/\n0 1 2 3\n"), "{told}");
    let groups = "cat /.bottlerocket/rootfs/sys/fs/cgroup/containers/web/payload/cgroup.procs | wc -l";
    let before: usize = said(&node, &["admin", "sh", "-c", groups]).1.trim().parse().unwrap();
    let mut client = node.client_command(&["exec", "web", "sleep", "5000"]).spawn().unwrap();
    node.wait_for("it is of the group", Duration::from_secs(20), |node| {
        let now: usize = said(node, &["admin", "sh", "-c", groups]).1.trim().parse().ok()?;
        (now == before + 1).then_some(())
    });
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until_gone(&node, "sleep 5000");
}

#[test]
fn a_terminal_has_the_size_of_the_one_here() {
    let node = boot();
    let client = node.client_command(&[]);
    let words: Vec<String> = std::iter::once(client.get_program())
        .chain(client.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let inside = "stty size; tty; echo $TERM; while [ $(stty size | cut -d' ' -f2) != 141 ]; do sleep 1; done; stty size; exit 5";
    let commands = format!(
        "stty rows 31 cols 101; (sleep 4; stty rows 41 cols 141 </dev/tty) & {} exec -t web sh -c \"{}\"; echo code $?; stty -a",
        words.join(" "),
        inside.replace('$', "\\$"),
    );
    let told =
        Command::new("script").args(["-qec", &commands, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    for wanted in ["31 101", "/dev/pts/0", "xterm", "41 141", "code 5", " icanon"] {
        assert!(told.contains(wanted), "{wanted:?} is not in:\n{told}");
    }
}

#[test]
fn it_ends_with_who_asked_for_it_and_the_container_does_not_notice() {
    let node = boot();
    let pid = node.container("web").pid;
    // Also what it has begun, and what does not end when it is asked to.
    let script = "trap '' HUP TERM; sleep 4001 & echo begun; sleep 4002; sleep 4003";
    let begin = || {
        let mut client = node
            .client_command(&["exec", "web", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut begun = [0; 6];
        client.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"begun\n");
        client
    };
    let mut client = begin();
    assert_eq!(count(&node, "sleep 4001"), Some(1));
    client.kill().unwrap();
    client.wait().unwrap();
    ["sleep 4001", "sleep 4002", "sleep 4003"].iter().for_each(|command| wait_until_gone(&node, command));
    is_untouched(&node, pid);
    // The agent dies.
    let mut client = begin();
    let kill = "kill -9 $(cat /.bottlerocket/rootfs/sys/fs/cgroup/system/host-agent/cgroup.procs)";
    said(&node, &["admin", "sh", "-c", kill]);
    assert_eq!(client.wait().unwrap().code(), Some(255));
    node.wait_for("the agent is back", Duration::from_secs(60), |node| {
        let restarts = node.get("/services")["host-agent"]["restarts"].as_u64();
        (restarts >= Some(1) && shell(node, "true").0 == Some(0)).then_some(())
    });
    ["sleep 4001", "sleep 4002", "sleep 4003"].iter().for_each(|command| wait_until_gone(&node, command));
    is_untouched(&node, pid);
    // The container ends.
    let mut client = begin();
    node.set(&json!({"containers": {"web": {"env": {"GREETING": "bye"}}}}));
    assert_eq!(client.wait().unwrap().code(), Some(137));
}
