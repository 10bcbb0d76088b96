//! What a container cannot do, also one whose image is made to get out: what was found in other runtimes, tried here; and what it may
//! have of the node by its settings.

use qemu_tests::{
    ADMIN, Config, ContainerState, ContainerStatus, Node, Registry, UserNamespace, bench, script,
};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// Of each of two containers.
const STARTS_BESIDE_SWAPS: usize = 8;

/// A node with a container that sees it all.
fn boot(registry: &Registry) -> Node {
    let node = Node::boot_healthy(Config::direct().registry(registry).user_data(ADMIN));
    running(&node, "host-containers.admin");
    node
}

fn running(node: &Node, name: &str) -> ContainerStatus {
    node.wait_for_container(name, "it runs", |container| {
        container.state == ContainerState::Running && container.pid.is_some()
    })
}

/// Runs something in a container: what it ended with, and said.
fn exec(node: &Node, name: &str, words: &[&str]) -> (Option<i32>, String) {
    let mut client = node.client_command(&[&["exec", name], words].concat());
    let output = client.stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn shell(node: &Node, name: &str, script: &str) -> String {
    exec(node, name, &["sh", "-c", script]).1
}

fn with(text: &str, more: &Value) -> Value {
    let mut container = script(text);
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// An image that runs, with links wherever a runtime might follow one.
fn hostile(tree: &Path) {
    let link = |target: &str, name: &str| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    };
    // As of Debian and Ubuntu, where that is a program's, which is not there.
    link("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf");
    link("/proc/1/environ", "etc/hosts");
    for name in ["null", "console", "pts", "shm", "mqueue", "ptmx", "stdout"] {
        link("/etc/passwd", &format!("dev/{name}"));
    }
    link("../../../../../etc", "up");
    link("/", "whole");
    link("/proc/self/exe", "evil-link");
    write(&tree.join("evil"), "#!/proc/self/exe\n", 0o755);
    write(&tree.join("secret"), "of root\n", 0o600);
    fs::create_dir(tree.join("work")).unwrap();
    // It is for root only when it is not set-user-ID.
    let su = tree.join("suid/su");
    fs::create_dir(tree.join("suid")).unwrap();
    fs::copy(bench().toolbox.root.join("usr/bin/busybox"), &su).unwrap();
    fs::set_permissions(&su, Permissions::from_mode(0o4755)).unwrap();
}

/// What no container can do, whatever its user. Each line is one that held or one that did not.
const PROBES: &str = "
try() { name=$1; shift; if \"$@\" > /tmp/out 2>&1; then echo \"BAD $name: $(head -c 300 /tmp/out)\"; else echo \"held $name\"; fi; }
try tune sh -c 'echo 1 > /proc/sys/kernel/panic'
try core sh -c 'echo /x > /proc/sys/kernel/core_pattern'
try forward sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'
try sysrq sh -c 'echo h > /proc/sysrq-trigger'
try uevent sh -c 'echo /x > /sys/kernel/uevent_helper'
try group mkdir /sys/fs/cgroup/mine
try limit sh -c 'echo max > /sys/fs/cgroup/pids.max'
try release sh -c 'echo /x > /sys/fs/cgroup/release_agent'
try move sh -c 'echo 1 > /sys/fs/cgroup/cgroup.procs'
try remount mount -o remount,rw /sys/fs/cgroup
try unmask umount /proc/sys
try kcore head -c 1 /proc/kcore
try keys grep . /proc/keys
try firmware ls /sys/firmware/dmi
for kind in U m n p i u C; do try unshare-$kind unshare -$kind true; done
try enter nsenter -t 1 -m true
try chroot-out sh -c 'cd /; ls ../../../state ../../../run/init.sock'
try others sh -c '[ $(ls -d /proc/[0-9]* | wc -l) -gt 12 ]'
mknod /tmp/disk b 254 0; mknod /dev/disk b 254 0; mknod /tmp/memory c 1 1
try disk dd if=/tmp/disk of=/dev/null bs=512 count=1
try disk-of-dev dd if=/dev/disk of=/dev/null bs=512 count=1
try memory dd if=/tmp/memory of=/dev/null bs=512 count=1
[ -c /dev/null ] && [ -c /dev/zero ] && [ -d /dev/pts ] && echo held devices
echo x > /dev/null && [ ! -s /dev/null ] && echo held null
echo the end of probes
";

/// Those of [`PROBES`] that hold: all of them.
const HELD: usize = 29;

fn all_hold(log: &str) {
    assert!(!log.contains("BAD"), "{log}");
    assert_eq!(log.matches("held ").count(), HELD, "{log}");
}

/// The links of `/proc/PID/fd` as `ls -l` shows them: pipes of its own, and nothing that leads to the node.
fn has_no_more_than_its_three(list: &str, of_ls: bool) {
    let links: Vec<(&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(" -> ").or_else(|| Some((line.strip_suffix(" 3")?, "gone"))))
        .map(|(name, target)| (name.rsplit(' ').next().unwrap_or_default(), target))
        .collect();
    // That of the folder that `ls` reads may be gone by the time that it asks where it leads.
    let links: Vec<(&str, &str)> =
        links.into_iter().filter(|(_, target)| !of_ls || *target != "gone").collect();
    assert!(links.len() == 3 || (of_ls && links.len() == 4), "{list}");
    for (name, target) in links {
        let is_plain = target.starts_with("pipe:[") || target == "/dev/null" || target == "/tmp/descriptors";
        let of_ls = name == "3" && target.starts_with("/proc/") && target.ends_with("/fd");
        assert!(is_plain || of_ls, "{name} leads to {target}:\n{list}");
    }
}

/// CVE-2024-21626 (descriptors that lead out), CVE-2019-5736 (the runtime's own program), CVE-2025-31133, CVE-2025-52565 and
/// CVE-2025-52881 (links in place of what is masked or written), CVE-2021-30465 (links where volumes go), and their like.
#[test]
fn a_hostile_image_gets_nowhere() {
    let registry = Registry::start();
    let image = registry.publish_files("hostile/links", 0, hostile).by_tag;
    let place = |name: &str, target: &str| {
        let (file, target) = (name.to_owned(), target.to_owned());
        registry
            .publish_files(&format!("hostile/{name}"), 0, |tree| symlink(target, tree.join(file)).unwrap())
    };
    let places = [("dev", "/run/youki"), ("proc", "/tmp"), ("sys", "../../../../run")]
        .map(|(name, target)| (name, place(name, target).by_tag));
    let node = boot(&registry);
    let mounts_before = shell(&node, "admin", "grep -c . /proc/1/mountinfo");

    let first =
        format!("ls -l /proc/1/fd; cat /etc/resolv.conf /etc/hosts; ls -d /mnt-b /etc/mnt-a; {PROBES}");
    let net = "try sockets sh -c '[ $(wc -l < /proc/net/unix) -gt 1 ]'; ";
    let relink = "for n in 3 4 5 6 7 8 9 10; do rm -rf /work; ln -s /proc/self/fd/$n /work; sleep 1; done; rm /work; mkdir /work; \
                  touch /work/inside; exec sleep 3600";
    let mut containers = json!({
        "own": with(&format!("{first}{net}{relink}"), &json!({
            "image": image, "networks": ["front"], "working-directory": "/work",
            "volumes": {"a": {"path": "/up/mnt-a"}, "b": {"path": "/whole/mnt-b"}},
            "health-check": {"command": ["sh", "-c", "ls -l /proc/self/fd > /tmp/descriptors"], "interval": 1, "timeout": 30},
        })),
        "of-node": with(&format!("ls -l /proc/1/fd; {PROBES} exec sleep 3600"), &json!({"image": image})),
        "user": with(
            "cat /secret; /suid/su -c 'echo BAD'; /suid/su; echo hi > /dev/stdout; grep ^Uid /proc/self/status; echo done; exec sleep 3600",
            &json!({"image": image, "user": "1000:1000"}),
        ),
        "evil": {"image": image, "command": ["/evil"], "restart": "no"},
        "evil-link": {"image": image, "command": ["/evil-link"], "restart": "no"},
    });
    for (name, image) in &places {
        containers[format!("place-{name}")] =
            with("echo BAD; exec sleep 3600", &json!({"image": image, "restart": "no"}));
    }
    for number in [3, 5, 7, 9] {
        let folder = format!("/proc/self/fd/{number}");
        let container = json!({"restart": "no", "working-directory": folder});
        containers[format!("folder-{number}")] = with("pwd -P; ls; echo BAD; exec sleep 3600", &container);
    }
    node.set(&json!({ "containers": containers }));

    for name in ["own", "of-node"] {
        let log = node.wait_for_logs(name, "the end of probes");
        all_hold(&log.replace("held sockets\n", ""));
    }
    // What a network writes is there, where the image has links; volumes are where links lead to inside.
    let log = node.wait_for_logs("own", "held sockets");
    assert!(log.contains("nameserver 10.") && log.contains(" own\n"), "{log}");
    assert!(log.contains("/mnt-b\n") && log.contains("/etc/mnt-a\n"), "{log}");
    has_no_more_than_its_three(&log, false);
    has_no_more_than_its_three(&node.logs("of-node"), false);
    // A folder that is no folder, and descriptors as working folder: told, with the reason.
    for (name, _) in &places {
        let container = node.wait_for_container(&format!("place-{name}"), "it has an error", |container| {
            container.error.is_some()
        });
        let error = container.error.unwrap_or_default();
        assert!(error.contains(&format!("its /{name} is not a folder")), "{error}");
    }
    for number in [3, 5, 7, 9] {
        let name = format!("folder-{number}");
        node.wait_for_container(&name, "it has an error", |container| container.error.is_some());
        assert!(!node.logs(&name).contains("BAD"), "{}", node.logs(&name));
    }
    // Programs that may gain rights gain none.
    let log = node.wait_for_logs("user", "done");
    assert!(
        log.contains("must be suid to work properly") && log.contains("Uid:\t1000\t1000\t1000\t1000"),
        "{log}"
    );
    assert!(!log.contains("of root") && !log.contains("BAD") && log.contains("hi\n"), "{log}");
    // The runtime's program runs as anybody's would, and has nothing to do.
    for name in ["evil", "evil-link"] {
        node.wait_for_container(name, "it has ended", |container| {
            matches!(container.state, ContainerState::Exited | ContainerState::Failed)
        });
    }

    // Waits for a program that is not busybox, keeps it open, and writes to it when nobody runs it any more. The last one, as it is never
    // at rest. `exec` by itself ends a shell that cannot open what is gone by then.
    let overwrite = with(
        "while :; do for exe in /proc/[0-9]*/exe; do
            case $(readlink $exe) in */busybox | '') continue ;; esac
            command exec 4< $exe || continue
            echo \"has $(readlink $exe)\"
            for try in 1 2 3 4 5; do
                if (: >> /proc/self/fd/4) 2> /tmp/error; then echo BAD wrote; else cat /tmp/error; fi; sleep 0.2
            done
        done; done",
        &json!({"image": image, "networks": ["none"]}),
    );
    containers["overwrite"] = overwrite.clone();
    node.set(&json!({"containers": {"overwrite": overwrite}}));

    // Commands that are run in a container: their descriptors, those of health checks, and the folder that they begin in.
    running(&node, "own");
    node.wait_for_container("own", "it is healthy", ContainerStatus::is_up);
    let inside = node.wait_for("a folder to begin in", SOON, |node| {
        let (code, said) = exec(node, "own", &["ls", "-a"]);
        (code == Some(0)).then_some(said)
    });
    assert_eq!(inside, ".\n..\ninside\n");
    // The folder comes and goes.
    let said = |script: &str| {
        node.wait_for("the folder is there again", SOON, |node| {
            let (code, said) = exec(node, "own", &["sh", "-c", script]);
            (code == Some(0)).then_some(said)
        })
    };
    has_no_more_than_its_three(&said("ls -l /proc/self/fd 2> /dev/null || true"), true);
    has_no_more_than_its_three(&said("cat /tmp/descriptors"), true);
    running(&node, "overwrite");
    // What the container has put in a program's place. It has met one when it says so.
    let log = node.wait_for("a program in the container's hands", SOON, |node| {
        for program in ["/evil", "/evil-link"] {
            let (code, said) = exec(node, "overwrite", &[program, "x"]);
            assert!(code != Some(0), "{program}: {said}");
        }
        Some(node.logs("overwrite")).filter(|log| log.contains("has "))
    });
    assert!(!log.contains("BAD"), "{log}");
    assert_eq!(exec(&node, "overwrite", &["echo", "as before"]), (Some(0), "as before\n".to_owned()));
    // The node is as it was.
    let strange = "ls -d /.bottlerocket/rootfs/run/youki/fd /.bottlerocket/rootfs/run/youki/ptmx /.bottlerocket/rootfs/run/fd \
                   /.bottlerocket/rootfs/etc/mnt-a /.bottlerocket/rootfs/mnt-b 2>/dev/null; ls -l /.bottlerocket/rootfs/dev/ptmx";
    let found = shell(&node, "admin", strange);
    assert!(found.starts_with('c') && found.lines().count() == 1, "{found}");
    let names: Vec<String> = containers.as_object().unwrap().keys().cloned().collect();
    for name in names {
        assert_eq!(node.client(&["container", "stop", &name]).0, 0);
    }
    assert_eq!(
        shell(&node, "admin", "grep -c . /proc/1/mountinfo"),
        mounts_before,
        "mounts are left on the node"
    );
    // All control groups have the options of whoever mounted them last in the node's cgroup namespace: no container did.
    let groups = shell(&node, "admin", "grep ' /sys/fs/cgroup cgroup2 ' /proc/1/mounts");
    for option in ["nsdelegate", "memory_recursiveprot", "favordynmods"] {
        assert!(groups.contains(option), "{option}: {groups}");
    }
}

/// The ids of a container's users on the node: that of its user 0.
fn first_id(container: &ContainerStatus) -> u32 {
    match &container.user_namespace {
        Some(UserNamespace::First(first)) => *first,
        other => panic!("{} has no users of its own: {other:?}", container.name),
    }
}

/// Its root is nobody on the node and in other containers, and works as root all the same: with its files, in volumes that it shares, with
/// devices, parameters and limits of its own.
#[test]
fn users_of_a_container_are_nobody_on_the_node() {
    let registry = Registry::start();
    let high = registry
        .publish_files("users/high", 70_000, |tree| write(&tree.join("of-somebody"), "x", 0o644))
        .by_tag;
    let node = boot(&registry);
    let own = "
        cat /proc/self/uid_map /proc/self/gid_map
        echo \"files: $(stat -c %u:%g /bin/busybox /etc/passwd /data | tr '\\n' ' ')\"
        echo kept > /file && chown 33:34 /file && chmod 4755 /file && rm /etc/group && mv /etc/passwd /etc/users && mkdir /etc/group \
            && echo \"wrote $(stat -c %u:%g /file)\"
        echo of web > /shared/file && chown 7:8 /shared/file && echo shared it
        touch /fast/file /dev/shm/file && echo wrote to memory
        echo out > /dev/stdout; echo errors > /dev/stderr
        ip link add name dummy type bridge && echo made a bridge || echo made no bridge
        (exec 3<> /dev/net/tun) && echo opened tun
        (exec 3< /dev/other) && echo read fuse
        (exec 3> /dev/other) || echo did not write fuse
        ls /dev/fuse 2>/dev/null || echo no other name
        echo \"parameters: $(cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max | tr '\\n' ' ')\"
        echo \"files: $(ulimit -Hn)\"
        echo of its own > /proc/sys/kernel/hostname || echo the name stays
        echo done; exec sleep 3600";
    node.set(&json!({"containers": {
        "web": with(own, &json!({
            "networks": ["front"], "capabilities": {"net-admin": true},
            "volumes": {"data": {"path": "/data"}, "shared": {"path": "/shared", "name": "shared"}, "fast": {"path": "/fast", "kind": "tmpfs"}},
            "devices": ["/dev/net/tun", "/dev/fuse:/dev/other:r"],
            "sysctls": {"net.core.somaxconn": "321", "kernel.shmmax": "1048576", "fs.mqueue.msg_max": "7"},
            "resource-limits": {"max-open-files": {"soft-limit": 1000, "hard-limit": 900_000}},
            "health-check": {"command": ["test", "-e", "/fast/file"], "interval": 1, "timeout": 30},
        })),
        "user": with(
            "echo mine > /data/file; echo out > /dev/stdout; busybox httpd -f -p 80 -h /data & sleep 1; wget -q -O - http://127.0.0.1/file; \
             echo done; exec sleep 3600",
            &json!({"networks": ["none"], "user": "1000:1001", "read-only": true, "volumes": {"data": {"path": "/data"}}}),
        ),
        "shares": with(
            "while ! grep . /shared/file; do sleep 1; done; stat -c %u:%g /shared/file; chown 9:9 /shared/file && echo took it; echo done; \
             exec sleep 3600",
            &json!({"networks": ["front"], "after": ["web"], "volumes": {"s": {"path": "/shared", "name": "shared"}}}),
        ),
        "of-node": with("cat /proc/self/uid_map; exec sleep 3600", &json!({})),
        "off": with("cat /proc/self/uid_map; exec sleep 3600", &json!({"networks": ["none"], "user-namespace": false})),
        "high": with("stat -c %u /of-somebody; exec sleep 3600", &json!({"image": high, "networks": ["none"]})),
        "too-high": with("true", &json!({"image": high, "networks": ["none"], "user-namespace": true})),
    }}));
    let log = node.wait_for_logs("web", "done");
    let web = running(&node, "web");
    let first = first_id(&web);
    let map = format!("0{first:>11}{:>11}", 65_536);
    let map: Vec<&str> = map.split_whitespace().collect();
    for line in log.lines().take(2) {
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), map, "{log}");
    }
    for wanted in [
        "files: 0:0 0:0 0:0",
        "wrote 33:34",
        "shared it",
        "wrote to memory",
        "out\n",
        "errors\n",
        "made a bridge",
        "opened tun",
        "read fuse",
        "did not write fuse",
        "no other name",
        "parameters: 321 1048576 7",
        "files: 900000",
        "the name stays",
    ] {
        assert!(log.contains(wanted), "{wanted:?} is not in:\n{log}");
    }
    let user = node.wait_for_logs("user", "done");
    assert!(user.contains("out\n") && user.contains("mine\n"), "{user}");
    // Another container's users are others; what it sees in a volume has the ids that it knows.
    let shares = node.wait_for_logs("shares", "done");
    assert!(shares.contains("of web\n7:8\ntook it"), "{shares}");
    let ids = ["user", "shares"].map(|name| first_id(&node.container(name)));
    assert!(ids[0] != ids[1] && !ids.contains(&first), "{first} {ids:?}");
    // Who is in the node's network has the node's users, and so has who asks for it or whose image needs more.
    for (name, expected) in
        [("of-node", "network of the node"), ("off", "settings say so"), ("high", "the user or group 70000")]
    {
        let container = running(&node, name);
        assert!(
            matches!(&container.user_namespace, Some(UserNamespace::Off(why)) if why.contains(expected)),
            "{name}: {:?}",
            container.user_namespace
        );
    }
    assert!(
        node.wait_for_logs("off", "\n").contains("4294967295")
            && node.wait_for_logs("high", "\n").contains("70000")
    );
    let too_high =
        node.wait_for_container("too-high", "it has an error", |container| container.error.is_some());
    let error = too_high.error.unwrap_or_default();
    assert!(
        error.contains("settings.containers.too-high: `user-namespace` cannot be true")
            && error.contains("70000"),
        "{error}"
    );
    // As the node sees it, which keeps what is on its disk by plain ids.
    let on_node = format!(
        "stat -c %u /proc/{}; stat -c %u:%g /.bottlerocket/rootfs/data/volumes/web.data /.bottlerocket/rootfs/data/volumes/shared/file \
         /.bottlerocket/rootfs/data/containers/web/upper/file; ls /.bottlerocket/rootfs/run/container-mounts | wc -l",
        web.pid.unwrap_or_default()
    );
    assert_eq!(shell(&node, "admin", &on_node), format!("{first}\n0:0\n9:9\n33:34\n0\n"));

    // Commands in it are of its users; health checks too.
    node.wait_for_container("web", "it is healthy", ContainerStatus::is_up);
    let said = shell(
        &node,
        "web",
        "id -u; cat /proc/self/uid_map; echo errors > /dev/stderr; touch /by-hand && rm /by-hand && unshare -U true",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "0", "{said}");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), map, "{said}");
    assert!(said.contains("errors\n") && said.contains("unshare: "), "{said}");
    let own = "grep -E '^(Seccomp|NoNewPrivs|Cap|Uid|Gid)' /proc/1/status | grep -v filters";
    assert_eq!(shell(&node, "web", &own.replace("/1/", "/self/")), shell(&node, "web", own));
    // Started again, it has the same ids, and its files.
    assert_eq!(node.client(&["container", "restart", "web"]).0, 0);
    let again = node.wait_for_container("web", "it runs again", |container| {
        container.state == ContainerState::Running && container.pid.is_some() && container.pid != web.pid
    });
    assert_eq!(first_id(&again), first);
    node.wait_for("its file", SOON, |node| {
        (shell(node, "web", "stat -c %u:%g /file") == "33:34\n").then_some(())
    });

    // What the kernel keeps for the whole node, and what would open it, is refused.
    for (container, expected) in [
        (json!({"sysctls": {"vm.swappiness": "1"}}), "it is the whole node's"),
        (json!({"sysctls": {"net.core.somaxconn": "1"}}), "it would be the node's"),
        (json!({"devices": ["/dev/vda"]}), "is not a device that containers may have"),
        (json!({"user-namespace": true}), "it needs `networks` of its own"),
    ] {
        let refusal = node.try_set(&json!({"containers": {"of-node": container}})).unwrap_err();
        assert!(refusal.contains("settings.containers.of-node.") && refusal.contains(expected), "{refusal}");
    }
    node.set(&json!({"containers": {"of-node": {"devices": ["/dev/kvm"]}}}));
    let error = node
        .wait_for_container("of-node", "it has an error", |container| container.error.is_some())
        .error
        .unwrap_or_default();
    assert!(error.contains("settings.containers.of-node.devices: the node has no /dev/kvm"), "{error}");
}

/// CVE-2021-30465: somebody swaps a folder of a shared volume for a link, over and over, while another container has a volume mounted there. Were
/// that followed on the node, it would lie over the node's own `/data`, and the next volume would be what is prepared in it: the node's root.
#[test]
fn links_that_are_swapped_in_a_shared_volume_lead_nowhere() {
    let registry = Registry::start();
    let node = boot(&registry);
    let mounts_before = shell(&node, "admin", "grep -c . /proc/1/mountinfo");
    let volume = |name: &str, path: &str| json!({"name": name, "path": path});
    let swaps = "mkdir -p /inner/volumes; for name in shared inner third; do ln -sfn / /inner/volumes/$name; done; touch /third/right
        up=../../../../../../../../../../../../data
        cd /shared; mkdir -p folder; ln -s $up link; ln -s /proc/self/fd/3 other; echo ready
        while :; do for with in link other; do
            mv -T folder inner; mv -T inner folder; mv -T $with inner; mv -T inner $with
        done; done";
    let sees = "echo \"it begins: $(ls /third | tr '\\n' ' ')\"; [ -e /third/usr ] && echo BAD root
        grep -E ' /(third|shared|data)[/ ]' /proc/self/mountinfo | grep -v ' /volumes/' && echo BAD mount
        echo \"inner is at $(grep ' /volumes/inner ' /proc/self/mountinfo | cut -d ' ' -f 5)\"; exec sleep 3600";
    let shared = json!({"shared": volume("shared", "/shared"), "inner": volume("inner", "/inner"), "third": volume("third", "/third")});
    node.set(
        &json!({"containers": {"swaps": with(swaps, &json!({"networks": ["none"], "volumes": shared}))}}),
    );
    node.wait_for_logs("swaps", "ready");
    let volumes = json!({"a": volume("shared", "/shared"), "b": volume("inner", "/shared/inner"), "c": volume("third", "/third")});
    let victims = [("own", json!({"networks": ["front"]})), ("of-node", json!({}))];
    for (name, more) in &victims {
        let mut victim = with(sees, more);
        victim["volumes"] = volumes.clone();
        victim["restart"] = json!("no");
        victim["stop-signal"] = json!("SIGKILL");
        node.set(&json!({"containers": {*name: victim}}));
    }
    let (mut starts, mut refusals) = (0, 0);
    for _ in 0..STARTS_BESIDE_SWAPS {
        for (name, _) in &victims {
            // It may be refused, as what is there is no folder; then it says so.
            let container = node.wait_for_container(name, "it runs or is refused", |container| {
                container.state == ContainerState::Running || container.error.is_some()
            });
            let runs = container.state == ContainerState::Running;
            starts += usize::from(runs);
            refusals += usize::from(!runs);
            node.client(&["container", "restart", name]);
        }
    }
    let logs: String = victims.iter().map(|(name, _)| node.logs(name)).collect();
    assert!(!logs.contains("BAD"), "{logs}");
    let right = logs.matches("it begins: right ").count();
    assert!(
        starts > 0 && right > 0 && right == logs.matches("it begins: ").count(),
        "{starts} starts: {logs}"
    );
    let elsewhere =
        logs.lines().filter(|line| line.contains("inner is at") && !line.ends_with(" /shared/inner"));
    let inside = elsewhere.count();
    eprintln!("{starts} starts, {refusals} refusals; a link was followed inside by {inside}");
    assert!(refusals + inside > 0, "none of {starts} starts met a link: {logs}");
    for name in ["swaps", "own", "of-node"] {
        assert_eq!(node.client(&["container", "stop", name]).0, 0);
    }
    assert_eq!(
        shell(&node, "admin", "grep -c . /proc/1/mountinfo"),
        mounts_before,
        "mounts are left on the node"
    );
    assert_eq!(shell(&node, "admin", "ls /.bottlerocket/rootfs/data/volumes"), "inner\nshared\nthird\n");
}
