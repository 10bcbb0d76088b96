//! The early mounts, control groups and kernel settings. What fails is told; the boot goes on.

use nix::mount::{MsFlags, mount};
use std::fs;
use std::path::Path;

const NOTHING: MsFlags = MsFlags::empty();

/// What is mounted where: type, target, flags, data.
fn early() -> [(&'static str, &'static str, MsFlags, Option<&'static str>); 9] {
    let (nosuid, nodev, noexec) = (MsFlags::MS_NOSUID, MsFlags::MS_NODEV, MsFlags::MS_NOEXEC);
    [
        ("proc", "/proc", nosuid | nodev | noexec, None),
        ("sysfs", "/sys", nosuid | nodev | noexec, None),
        ("devtmpfs", "/dev", nosuid | noexec, Some("mode=0755")),
        ("devpts", "/dev/pts", nosuid | noexec, Some("mode=0620,gid=5,ptmxmode=0666")),
        ("tmpfs", "/dev/shm", nosuid | nodev | noexec, Some("mode=1777,size=16m")),
        // Not noexec: a container's root is an overlay mounted below /run.
        ("tmpfs", "/run", nosuid | nodev, Some("mode=0755,size=32m")),
        ("tmpfs", "/tmp", nosuid | nodev | noexec, Some("mode=1777,size=16m")),
        // Moves of processes between groups do not wait for all processors, some 15 ms each (cgroup-v2.rst, `favordynmods`): a start of a
        // container has several.
        ("cgroup2", "/sys/fs/cgroup", nosuid | nodev | noexec, Some(CGROUP_OPTIONS)),
        ("securityfs", "/sys/kernel/security", nosuid | nodev | noexec, None),
    ]
}

const CGROUP_OPTIONS: &str = "nsdelegate,memory_recursiveprot,favordynmods";

/// What is there only where the firmware or the kernel has it: its variables, and the last words of a kernel that died.
const WHERE_THERE: [(&str, &str); 2] =
    [("efivarfs", "/sys/firmware/efi/efivars"), ("pstore", "/sys/fs/pstore")];

/// Mounts everything; returns what failed, in words.
pub(crate) fn mount_all() -> Vec<String> {
    let mut problems = Vec::new();
    let all = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let wanted = |(kind, target): (&'static str, &'static str)| {
        Path::new(target).is_dir().then_some((kind, target, all, None))
    };
    let further = WHERE_THERE.into_iter().filter_map(wanted);
    // Looked for one after the other: these are below /sys, which is mounted by then.
    for (kind, target, flags, data) in early().into_iter().chain(further) {
        let _ = fs::create_dir(target);
        if let Err(error) = mount(Some(kind), target, Some(kind), flags, data) {
            // The kernel has mounted /dev before it started init, with flags of its own.
            let again = (error == nix::errno::Errno::EBUSY)
                .then(|| mount(None::<&str>, target, None::<&str>, flags | MsFlags::MS_REMOUNT, data));
            if !matches!(again, Some(Ok(()))) {
                problems.push(format!("cannot mount {kind} on {target}: {error}"));
            }
        }
    }
    problems
}

/// The groups that everything runs in: `init` (PID 1 itself, as a group with children may hold no process), `system` and
/// `containers`.
pub(crate) fn make_groups() -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let mut problems = Vec::new();
    let mut put = |path: &Path, value: &str| {
        if let Err(error) = fs::write(path, value) {
            problems.push(format!("cannot write {value:?} to {}: {error}", path.display()));
        }
    };
    for group in ["init", "system", "containers"] {
        let _ = fs::create_dir(root.join(group));
    }
    put(&root.join("init/cgroup.procs"), "1");
    for group in [root.to_owned(), root.join("system"), root.join("containers")] {
        let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        put(&group.join("cgroup.subtree_control"), &all.join(" "));
    }
    problems
}

/// Kernel settings and why.
const SYSCTLS: &[(&str, &str)] = &[
    // A kernel that is not sound any more restarts after 10 s.
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    // What helps an attacker more than an operator.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/yama/ptrace_scope", "1"),
    ("net/core/bpf_jit_harden", "2"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    ("fs/suid_dumpable", "0"),
    // Containers that watch many files need more than the default 128.
    ("fs/inotify/max_user_instances", "8192"),
    // Many containers have many threads.
    ("kernel/pid_max", "4194304"),
];

pub(crate) fn set_sysctls() -> Vec<String> {
    let set = |(name, value): &(&str, &str)| {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value)
            .err()
            .map(|error| format!("cannot set {} to {value}: {error}", path.display()))
    };
    SYSCTLS.iter().filter_map(set).collect()
}

/// A bounded tmpfs in place of a partition that cannot be used.
pub(crate) fn mount_tmpfs(target: &str, data: &str, extra: MsFlags) -> nix::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | extra, Some(data))
}

pub(crate) fn mount_ext4(device: &Path, target: &str, extra: MsFlags) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME | extra;
    mount(Some(device), target, Some("ext4"), flags, Some("errors=remount-ro"))
}

/// Takes a file system off; where something still uses it, at least nothing more is written to it.
pub(crate) fn unmount(target: &str) -> Result<(), String> {
    let Err(error) = nix::mount::umount(target) else { return Ok(()) };
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    match mount(None::<&str>, target, None::<&str>, read_only, None::<&str>) {
        Ok(()) => Ok(()),
        Err(_) => {
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
            Err(format!("cannot unmount {target}: {error}"))
        }
    }
}

pub(crate) const NO_EXTRA: MsFlags = NOTHING;
pub(crate) const NOEXEC: MsFlags = MsFlags::MS_NOEXEC;
