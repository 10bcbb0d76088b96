//! What a container may do, by its kind, as the OCI runtime is told. Pure.

use apiserver::agent::ContainerKind;
use serde_json::{Value, json};
use settings::{Capability, OciDefaults};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::container::spec::{self, Spec};

/// What containers may have: Docker's default set without CAP_NET_RAW, which would let them read and forge what the node or the other
/// containers of a network say.
const CAPABILITIES: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What bootstrap containers have beside that, as Bottlerocket's.
const BOOTSTRAP_CAPABILITIES: [&str; 4] =
    ["CAP_AUDIT_CONTROL", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_MODULE"];

/// System calls that the seccomp profile denies, and these capabilities are for.
const BOOTSTRAP_CALLS: [&str; 20] = [
    "bpf",
    "clone",
    "fanotify_init",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "quotactl",
    "setdomainname",
    "sethostname",
    "setns",
    "swapoff",
    "swapon",
    "umount",
    "umount2",
    "unshare",
];

const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
];
const FIRMWARE: &str = "/sys/firmware";

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// In the order from the narrowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    Ordinary,
    Host,
    Bootstrap,
    Superpowered,
}

fn trust(spec: &Spec) -> Trust {
    match spec.kind {
        _ if spec.superpowered => Trust::Superpowered,
        ContainerKind::Container => Trust::Ordinary,
        ContainerKind::HostContainer => Trust::Host,
        ContainerKind::BootstrapContainer => Trust::Bootstrap,
    }
}

/// What processes of it may do, by the kernel's names. `defaults` are for ordinary containers.
pub(super) fn capabilities(spec: &Spec, defaults: &OciDefaults) -> Vec<String> {
    let mut all: BTreeSet<String> = CAPABILITIES.map(str::to_owned).into();
    match trust(spec) {
        Trust::Ordinary => {
            for (capability, has) in
                defaults.capabilities.iter().chain(&spec.container.capabilities).flatten()
            {
                match has {
                    true => all.insert(capability.kernel_name()),
                    false => all.remove(&capability.kernel_name()),
                };
            }
        }
        Trust::Host => {}
        Trust::Bootstrap => all.extend(BOOTSTRAP_CAPABILITIES.map(str::to_owned)),
        Trust::Superpowered => all = Capability::all().map(|capability| capability.kernel_name()).collect(),
    }
    all.into_iter().collect()
}

/// Whether a program of it may gain what its process does not have.
pub(super) fn no_new_privileges(spec: &Spec) -> bool {
    trust(spec) < Trust::Superpowered
}

/// `user` is the user namespace that is there for it, if it has ids of its own: the others are made in it, and belong to it.
pub(super) fn namespaces(spec: &Spec, user: Option<&Path>) -> Value {
    let own = ["ipc", "uts", "mount", "cgroup"].into_iter();
    let pid = (trust(spec) < Trust::Bootstrap).then_some("pid");
    let network = spec.networks.is_some().then_some("network");
    let own = own.chain(pid).chain(network).map(|kind| json!({"type": kind}));
    own.chain(user.map(|path| json!({"type": "user", "path": path}))).collect()
}

/// Parameters of the kernel in its namespaces.
pub(super) fn sysctls(spec: &Spec, has_own_ids: bool) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if spec.networks.is_some() {
        // As Docker does: in a network of its own no port is worth more than another.
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    }
    if has_own_ids {
        // The seccomp profile lets it make none either. Holes of the kernel are often behind the rights that one has in those.
        all.insert("user.max_user_namespaces".to_owned(), "0".to_owned());
    }
    let own = spec.container.sysctls.iter().flatten();
    all.extend(own.map(|(name, value)| (name.to_string(), value.to_string())));
    all
}

/// `profile` is the one of all containers; none is none.
pub(super) fn seccomp(spec: &Spec, profile: &Value) -> Option<Value> {
    match trust(spec) {
        Trust::Ordinary | Trust::Host => Some(profile.clone()),
        Trust::Bootstrap => {
            let mut profile = profile.clone();
            let more = json!({"action": "SCMP_ACT_ALLOW", "names": BOOTSTRAP_CALLS});
            profile["syscalls"].as_array_mut()?.push(more);
            Some(profile)
        }
        Trust::Superpowered => None,
    }
}

/// Device rules, which the kernel enforces by a BPF program.
pub(super) fn devices(spec: &Spec) -> Vec<Value> {
    if trust(spec) >= Trust::Bootstrap {
        return vec![json!({"allow": true, "access": "rwm"})];
    }
    let allow = |major: u32, minor: Option<u32>| {
        let mut rule = json!({"allow": true, "type": "c", "access": "rwm", "major": major});
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    // null, zero, full, random, urandom; tty, console, ptmx; pseudo-terminals.
    let known = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
    let known = known.map(|(major, minor)| allow(major, Some(minor)));
    // Everything is denied but what follows.
    [json!({"allow": false, "access": "rwm"})].into_iter().chain(known).chain([allow(136, None)]).collect()
}

/// Paths that are hidden, and paths that are read-only.
pub(super) fn paths(spec: &Spec) -> (Vec<&'static str>, Vec<&'static str>) {
    match trust(spec) {
        Trust::Ordinary => (MASKED.into_iter().chain([FIRMWARE]).collect(), READ_ONLY.into()),
        Trust::Host | Trust::Bootstrap => (MASKED.into(), READ_ONLY.into()),
        Trust::Superpowered => (Vec::new(), Vec::new()),
    }
}

/// Options of `/sys` and of the control groups in it.
pub(super) fn sys_options(spec: &Spec) -> Vec<&'static str> {
    let all = ["nosuid", "noexec", "nodev"].into_iter();
    all.chain((trust(spec) < Trust::Superpowered).then_some("ro")).collect()
}

/// What one that looks after the node has of it, where Bottlerocket's has it.
pub(super) fn mounts(name: &str, spec: &Spec) -> Vec<Value> {
    let (Some((group, own)), Some(folder)) = (name.split_once('.'), spec::folder(name)) else {
        return Vec::new();
    };
    let bind = |from: &str, to: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": from, "options": options});
    let folder = folder.to_string_lossy();
    let files = ["rbind", "rw", "nosuid", "nodev"];
    let fixed = ["bind", "ro", "nosuid", "nodev"];
    let mut mounts = vec![
        bind(&folder, &format!("/.bottlerocket/{group}/{own}"), &files),
        bind(&folder, &format!("/.bottlerocket/{group}/current"), &files),
        bind("/run/api.sock", "/run/api.sock", &["bind", "rw"]),
        bind("/usr/bin/apiclient", "/usr/local/bin/apiclient", &fixed),
        bind("/usr/lib/os-release", "/etc/bottlerocket-release", &fixed),
    ];
    if trust(spec) >= Trust::Bootstrap {
        // Read-only is the node's root itself, not what is mounted below it.
        mounts.push(bind("/", "/.bottlerocket/rootfs", &["rbind", "ro", "rslave"]));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::lasting;

    fn spec(kind: &str, superpowered: bool) -> Spec {
        let tree = json!({
            "containers": {"a": {"image": "i"}},
            "host-containers": {"a": {"source": "i", "enabled": true, "superpowered": superpowered}},
            "bootstrap-containers": {"a": {"source": "i", "mode": "once", "superpowered": superpowered}},
        });
        let settings = settings::from_json(&tree).unwrap();
        match kind {
            "bootstrap-containers.a" => {
                Spec::of_bootstrap(settings.bootstrap_containers.unwrap().values().next().unwrap())
            }
            name => lasting(&settings).remove(name).unwrap(),
        }
    }

    #[test]
    fn defaults_of_the_settings_lie_over_ours_for_ordinary_containers_only() {
        let defaults = settings::from_json(
            &json!({"oci-defaults": {"capabilities": {"net-raw": true, "mknod": false}}}),
        );
        let defaults = defaults.unwrap().oci_defaults.unwrap();
        assert_eq!(capabilities(&spec("a", false), &OciDefaults::default()), CAPABILITIES);
        let changed = capabilities(&spec("a", false), &defaults);
        assert!(changed.contains(&"CAP_NET_RAW".to_owned()) && !changed.contains(&"CAP_MKNOD".to_owned()));
        assert_eq!(changed.len(), CAPABILITIES.len());
        assert_eq!(capabilities(&spec("host-containers.a", false), &defaults), CAPABILITIES);
    }

    /// Only superpowers take the seccomp profile off, and only who is trusted with the whole node has it.
    #[test]
    fn what_each_kind_has() {
        let profile = json!({"syscalls": [{"names": ["read"]}]});
        let has = |spec: &Spec, name: &str| {
            let mounts = mounts(name, spec);
            let destinations: Vec<&str> =
                mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
            let own_processes = namespaces(spec, None).to_string().contains("pid");
            let calls = seccomp(spec, &profile).map(|profile| profile["syscalls"].as_array().unwrap().len());
            (
                destinations.contains(&"/run/api.sock"),
                destinations.contains(&"/.bottlerocket/rootfs"),
                own_processes,
                calls,
                capabilities(spec, &OciDefaults::default()).len(),
                no_new_privileges(spec),
            )
        };
        for (name, superpowered, expected) in [
            ("a", false, (false, false, true, Some(1), 13, true)),
            ("host-containers.a", false, (true, false, true, Some(1), 13, true)),
            ("bootstrap-containers.a", false, (true, true, false, Some(2), 17, true)),
            ("host-containers.a", true, (true, true, false, None, 41, false)),
            ("bootstrap-containers.a", true, (true, true, false, None, 41, false)),
        ] {
            assert_eq!(has(&spec(name, superpowered), name), expected, "{name} {superpowered}");
        }
    }

    #[test]
    fn parameters_of_the_settings_lie_over_ours() {
        let sysctls_of = |container: Value, has_own_ids| {
            let settings = settings::from_json(&json!({"containers": {"a": container}})).unwrap();
            sysctls(&lasting(&settings)["a"], has_own_ids)
        };
        assert!(sysctls_of(json!({"image": "i"}), false).is_empty());
        let own = json!({"image": "i", "networks": ["f"], "sysctls": {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.sem": "1"}});
        let all = sysctls_of(own, true);
        assert_eq!(all["net.ipv4.ip_unprivileged_port_start"], "80");
        assert_eq!((all["user.max_user_namespaces"].as_str(), all["kernel.sem"].as_str()), ("0", "1"));
    }

    #[test]
    fn devices_are_denied_first_unless_all_are_allowed() {
        assert_eq!(devices(&spec("a", false))[0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(devices(&spec("host-containers.a", false)), devices(&spec("a", false)));
        assert_eq!(
            devices(&spec("bootstrap-containers.a", false)),
            [json!({"allow": true, "access": "rwm"})]
        );
    }
}
