//! Starting a service: its control group, sockets, limits and privileges.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, VsockAddr, bind, listen, socket,
};
use nix::unistd::{Gid, Uid, chown, execve, setgroups, setresgid, setresuid, setsid};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use init::accounts::{Accounts, User};
use init::service::{Service, Socket};
use init::supervisor::End;
use init::switches::Switches;
use init::sys;

pub(crate) const NOTIFY: &str = "/run/notify.sock";
const GROUPS: &str = "/sys/fs/cgroup/system";
const PATH: &str = "/usr/bin";

/// The first descriptor that is passed (sd_listen_fds(3)).
const FIRST_FD: i32 = 3;

pub(crate) fn group_of(service: &str) -> PathBuf {
    Path::new(GROUPS).join(service)
}

/// The sockets of a service, in the order of its file, without those whose switch is off. What is there already is kept: others
/// may be connecting to it. What could not be made is told.
pub(crate) fn make_sockets(
    service: &Service,
    accounts: &Accounts,
    switches: &Switches,
    mut there: Vec<(String, OwnedFd)>,
) -> (Vec<(String, OwnedFd)>, Vec<String>) {
    let (mut sockets, mut failures) = (Vec::new(), Vec::new());
    for wanted in service.sockets.iter().filter(|socket| switches.want(socket)) {
        let made = match there.iter().position(|(name, _)| *name == wanted.name) {
            Some(at) => Ok(there.swap_remove(at)),
            None => make_socket(wanted, accounts).map(|fd| (wanted.name.clone(), fd)),
        };
        match made {
            Ok(socket) => sockets.push(socket),
            Err(failure) => failures.push(failure),
        }
    }
    (sockets, failures)
}

fn make_socket(wanted: &Socket, accounts: &Accounts) -> Result<OwnedFd, String> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let backlog = Backlog::new(1024).map_err(|error| error.to_string())?;
    if let Some(port) = wanted.vsock_port {
        let failed = |error: nix::Error| format!("cannot listen on vsock port {port}: {error}");
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None).map_err(failed)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(nix::libc::VMADDR_CID_ANY, port)).map_err(failed)?;
        listen(&fd, backlog).map_err(failed)?;
        return Ok(fd);
    }
    let path = wanted.path.as_deref().unwrap_or_default();
    let failed = |error: &dyn std::fmt::Display| format!("cannot listen on {path}: {error}");
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|error| failed(&error))?;
    let _ = fs::remove_file(path);
    bind(fd.as_raw_fd(), &UnixAddr::new(path).map_err(|error| failed(&error))?)
        .map_err(|error| failed(&error))?;
    let group = match &wanted.group {
        Some(name) => Some(accounts.group(name).ok_or_else(|| failed(&format!("there is no group {name}")))?),
        None => None,
    };
    chown(path, Some(Uid::from_raw(0)), group.map(Gid::from_raw)).map_err(|error| failed(&error))?;
    let mode = wanted.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o600);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| failed(&error))?;
    listen(&fd, backlog).map_err(|error| failed(&error))?;
    Ok(fd)
}

/// A started service.
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    /// What it writes to stdout and stderr.
    pub(crate) output: OwnedFd,
}

/// Starts a service. It runs its own program when this returns; a failure before that is returned in words.
pub(crate) fn spawn(
    service: &Service,
    accounts: &Accounts,
    sockets: &[(String, OwnedFd)],
) -> Result<Spawned, String> {
    let user = accounts
        .user(&service.user)
        .ok_or_else(|| format!("there is no user {} in /etc/passwd", service.user))?;
    let group = prepare_group(service)?;
    if let Some(name) = &service.state_directory {
        prepare_state(name, user)?;
    }
    let program =
        CString::new(service.exec.first().cloned().unwrap_or_default()).map_err(|error| error.to_string())?;
    let arguments: Vec<CString> = service
        .exec
        .iter()
        .map(|item| CString::new(item.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let pipe_failed = |error: nix::Error| format!("cannot make a pipe: {error}");
    let flags = nix::fcntl::OFlag::O_CLOEXEC;
    let (output, output_writer) = nix::unistd::pipe2(flags).map_err(pipe_failed)?;
    // Our end only: a service that writes faster than we read waits, and is not told an error that it does not expect.
    nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .map_err(pipe_failed)?;
    let (report, report_writer) = nix::unistd::pipe2(flags).map_err(pipe_failed)?;
    let pid = sys::fork(|| {
        let result = become_service(service, user, &group, sockets, &output_writer, &program, &arguments);
        let text = result.err().unwrap_or_default();
        let _ = File::from(report_writer.try_clone().ok().unwrap_or_else(|| sys::own(2)))
            .write_all(text.as_bytes());
        127
    })
    .map_err(|error| format!("cannot fork: {error}"))?;
    drop(report_writer);
    drop(output_writer);
    // Ends without a word when the child's exec closes the pipe.
    let mut failure = String::new();
    let _ = File::from(report).take(4096).read_to_string(&mut failure);
    if !failure.is_empty() {
        let _ = nix::sys::wait::waitpid(pid, None);
        return Err(failure);
    }
    Ok(Spawned { pid: u32::try_from(pid.as_raw()).unwrap_or(0), output })
}

/// Runs a program to its end, while nothing else runs yet, and returns what it wrote; an error when it fails or takes too long. What
/// it writes fits into a pipe.
pub(crate) fn run_helper(command: &[&str], patience: Duration) -> Result<String, String> {
    let name = command.first().copied().unwrap_or_default();
    let failed = |error: &dyn std::fmt::Display| format!("cannot run {name}: {error}");
    let arguments: Vec<CString> = command
        .iter()
        .map(|item| CString::new(*item))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))?;
    let program = arguments.first().ok_or("no command")?;
    let (output, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| failed(&error))?;
    let pid = sys::fork(|| {
        for fd in [1, 2] {
            let _ = sys::pass_fd(writer.as_raw_fd(), fd);
        }
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
        let _ = execve::<_, CString>(program, &arguments, &[]);
        127
    })
    .map_err(|error| failed(&error))?;
    drop(writer);
    let end = sys::wait_for(pid.as_raw(), patience);
    if end.is_none() {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        return Err(format!("{name} did not end within {} s", patience.as_secs()));
    }
    let mut text = String::new();
    let _ = File::from(output).take(64 << 10).read_to_string(&mut text);
    match end {
        Some(End::Code(0)) => Ok(text),
        Some(end) if text.trim().is_empty() => Err(format!("{name}: {}", end.words())),
        _ => Err(text.trim().to_owned()),
    }
}

fn prepare_group(service: &Service) -> Result<PathBuf, String> {
    let group = group_of(&service.name);
    if let Err(error) = fs::create_dir(&group)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(format!("cannot make {}: {error}", group.display()));
    }
    let set = |file: &str, value: String| {
        fs::write(group.join(file), &value)
            .map_err(|error| format!("cannot write {value} to {}/{file}: {error}", group.display()))
    };
    if let Some(memory) = service.limits.memory {
        set("memory.max", memory.0.to_string())?;
    }
    if let Some(pids) = service.limits.pids {
        set("pids.max", pids.to_string())?;
    }
    Ok(group)
}

fn prepare_state(name: &str, user: User) -> Result<(), String> {
    let folder = Path::new("/state").join(name);
    let failed = |error: &dyn std::fmt::Display| {
        format!("cannot make the state directory {}: {error}", folder.display())
    };
    if let Err(error) = fs::create_dir(&folder)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(failed(&error));
    }
    // Only what differs: on a file system that has become read-only a service can still be started.
    let found = fs::metadata(&folder).map_err(|error| failed(&error))?;
    if (found.uid(), found.gid()) != (user.uid, user.gid) {
        chown(&folder, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
            .map_err(|error| failed(&error))?;
    }
    if found.mode() & 0o7777 != 0o700 {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// In the child: never returns when all goes well.
fn become_service(
    service: &Service,
    user: User,
    group: &Path,
    sockets: &[(String, OwnedFd)],
    output: &OwnedFd,
    program: &CString,
    arguments: &[CString],
) -> Result<(), String> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |error: nix::Error| format!("cannot {what}: {error}")
    };
    fs::write(group.join("cgroup.procs"), "0")
        .map_err(|error| format!("cannot enter {}: {error}", group.display()))?;
    let _ = setsid();
    // The kernel's out-of-memory killer takes containers before the services that run them.
    let _ = fs::write("/proc/self/oom_score_adj", if service.required { "-900" } else { "0" });
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(step("reset signals"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if let Some(files) = service.limits.open_files {
        setrlimit(Resource::RLIMIT_NOFILE, files.into(), files.into()).map_err(step("limit open files"))?;
    }
    let nothing = OpenOptions::new()
        .read(true)
        .open("/dev/null")
        .map_err(|error| format!("cannot open /dev/null: {error}"))?;
    // First out of the way of the numbers that are about to be taken.
    let copies: Vec<OwnedFd> = sockets
        .iter()
        .map(|(_, fd)| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(64)).map(sys::own))
        .collect::<Result<_, _>>()
        .map_err(step("copy a socket"))?;
    sys::pass_fd(nothing.as_raw_fd(), 0).map_err(step("set stdin"))?;
    sys::pass_fd(output.as_raw_fd(), 1).map_err(step("set stdout"))?;
    sys::pass_fd(output.as_raw_fd(), 2).map_err(step("set stderr"))?;
    let mut environment = vec![format!("PATH={PATH}"), format!("NOTIFY_SOCKET={NOTIFY}")];
    if !sockets.is_empty() {
        for (fd, to) in copies.iter().zip(FIRST_FD..) {
            sys::pass_fd(fd.as_raw_fd(), to).map_err(step("pass a socket"))?;
        }
        let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        environment.push(format!("LISTEN_FDS={}", sockets.len()));
        environment.push(format!("LISTEN_FDNAMES={}", names.join(":")));
        environment.push(format!("LISTEN_PID={}", std::process::id()));
    }
    drop_privileges(service, user)?;
    let environment: Vec<CString> =
        environment.into_iter().filter_map(|item| CString::new(item).ok()).collect();
    match execve(program, arguments, &environment) {
        Ok(never) => match never {},
        Err(error) => Err(format!("cannot run {}: {error}", program.to_string_lossy())),
    }
}

/// Names of capabilities by number (`linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

fn drop_privileges(service: &Service, user: User) -> Result<(), String> {
    let mut passed = Vec::new();
    if let Some(kept) = &service.capabilities {
        if let Some(unknown) = kept.iter().find(|name| !CAPABILITIES.contains(&name.as_str())) {
            return Err(format!("capabilities: there is no {unknown}"));
        }
        for (number, name) in (0..).zip(CAPABILITIES) {
            if kept.iter().any(|kept| kept == name) {
                passed.push(number);
            } else {
                sys::drop_from_bounding_set(number)
                    .map_err(|error| format!("cannot drop {name}: {error}"))?;
            }
        }
    }
    if user.uid != 0 {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let failed = |error: nix::Error| format!("cannot become the user {}: {error}", service.user);
        if !passed.is_empty() {
            sys::keep_capabilities().map_err(failed)?;
        }
        setgroups(&[gid]).map_err(failed)?;
        setresgid(gid, gid, gid).map_err(failed)?;
        setresuid(uid, uid, uid).map_err(failed)?;
        if !passed.is_empty() {
            sys::pass_capabilities(&passed)
                .map_err(|error| format!("cannot give {} its capabilities: {error}", service.user))?;
        }
    }
    if service.no_new_privileges {
        sys::set_no_new_privileges().map_err(|error| format!("cannot set no-new-privileges: {error}"))?;
    }
    Ok(())
}
