//! What an attacker gets to do who has taken over the API server: a process that confines itself as the server does, and then
//! tries. Every attempt is also made without the sandbox, where it has to work, or it would show nothing.

#![allow(unsafe_code)]

use apiserver::sandbox;
use apiserver::state::Paths;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// What the child is to try, and where; with [`FREE`] it does not confine itself.
const ATTEMPT: &str = "CAISSON_ATTEMPT";
const FOLDER: &str = "CAISSON_ATTEMPT_FOLDER";
const FREE: &str = "CAISSON_ATTEMPT_FREE";

/// How the child says what became of its attempt; libtest's own codes are others.
const DONE: i32 = 42;
const REFUSED: i32 = 43;

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Done,
    /// By landlock: the call returned an error.
    Refused,
    /// By seccomp: the process was killed.
    Killed,
}

/// Who can do it without the sandbox.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Anybody,
    /// Root, of a machine and not of a container: if it is refused elsewhere, it was at least tried.
    Root,
}

type Attempt = (&'static str, End, Who, fn(&Path) -> io::Result<()>);

const ATTEMPTS: &[Attempt] = &[
    // What it is there for.
    ("write in the store", End::Done, Who::Anybody, |dir| {
        let (new, place) = (dir.join("settings/.new-x"), dir.join("settings/x"));
        File::create(&new)?.write_all(b"x")?;
        fs::rename(&new, &place)?;
        File::open(&place)?.sync_all()?;
        fs::remove_file(&place)
    }),
    ("read the defaults", End::Done, Who::Anybody, |dir| fs::read(dir.join("defaults.toml")).map(drop)),
    ("connect to the agent", End::Done, Who::Anybody, |dir| {
        UnixStream::connect(dir.join("agent.sock")).map(drop)
    }),
    // Files.
    ("read a secret", End::Refused, Who::Anybody, |dir| fs::read(dir.join("secret")).map(drop)),
    ("read a secret by a way round", End::Refused, Who::Anybody, |dir| {
        fs::read(dir.join("settings/../secret")).map(drop)
    }),
    ("read a process's memory map", End::Refused, Who::Anybody, |_| fs::read("/proc/self/maps").map(drop)),
    ("list a folder", End::Refused, Who::Anybody, |dir| fs::read_dir(dir).map(drop)),
    ("write beside the store", End::Refused, Who::Anybody, |dir| fs::write(dir.join("new"), "x")),
    ("change the defaults", End::Refused, Who::Anybody, |dir| fs::write(dir.join("defaults.toml"), "x")),
    ("move a file out of the store", End::Refused, Who::Anybody, |dir| {
        fs::write(dir.join("settings/out"), "x")?;
        fs::rename(dir.join("settings/out"), dir.join("out"))
    }),
    ("make a link", End::Killed, Who::Anybody, |dir| {
        std::os::unix::fs::symlink(dir.join("secret"), dir.join("settings/link"))
    }),
    ("make a hard link", End::Killed, Who::Anybody, |dir| {
        fs::hard_link(dir.join("secret"), dir.join("settings/hard-link"))
    }),
    ("change a mode", End::Killed, Who::Anybody, |dir| {
        fs::set_permissions(dir.join("settings"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
    }),
    ("change a root", End::Killed, Who::Root, |dir| std::os::unix::fs::chroot(dir)),
    ("open by handle", End::Killed, Who::Root, |dir| {
        // What it opens is no matter: without CAP_DAC_READ_SEARCH it is refused before it is looked at.
        let mut handle = [0u32; 34];
        handle[0] = 128;
        let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes())?;
        let mut mount = 0;
        // SAFETY: the handle has the 128 bytes that it says it has, and everything outlives the calls.
        let named = unsafe {
            libc::name_to_handle_at(
                libc::AT_FDCWD,
                path.as_ptr(),
                handle.as_mut_ptr().cast(),
                &raw mut mount,
                0,
            )
        };
        zero(i64::from(named))?;
        // SAFETY: as above.
        let opened =
            unsafe { libc::open_by_handle_at(libc::AT_FDCWD, handle.as_mut_ptr().cast(), libc::O_PATH) };
        zero(i64::from(opened.min(0)))
    }),
    // The network.
    ("open IPv4", End::Killed, Who::Anybody, |_| socket(libc::AF_INET, libc::SOCK_STREAM)),
    ("open IPv4 for datagrams", End::Killed, Who::Anybody, |_| socket(libc::AF_INET, libc::SOCK_DGRAM)),
    ("open IPv6", End::Killed, Who::Anybody, |_| socket(libc::AF_INET6, libc::SOCK_STREAM)),
    ("open netlink", End::Killed, Who::Anybody, |_| socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    ("open packets", End::Killed, Who::Root, |_| socket(libc::AF_PACKET, libc::SOCK_RAW)),
    ("open the kernel's cryptography", End::Killed, Who::Root, |_| {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET)
    }),
    ("open vsock", End::Killed, Who::Root, |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    ("listen", End::Killed, Who::Anybody, |dir| UnixListener::bind(dir.join("settings/listen")).map(drop)),
    ("connect to somebody's abstract socket", End::Refused, Who::Anybody, |dir| {
        UnixStream::connect_addr(&abstract_name(dir)?).map(drop)
    }),
    // Other programs and processes.
    ("run a program", End::Killed, Who::Anybody, |_| {
        Err(Command::new("/bin/sh").arg("-c").arg("exit 42").exec())
    }),
    ("fork", End::Killed, Who::Anybody, |_| Command::new("/bin/true").status().map(drop)),
    // Not PTRACE_TRACEME: a thread that is traced by its parent is never seen to end.
    ("trace its parent", End::Killed, Who::Root, |_| {
        let seize = i64::from(libc::PTRACE_SEIZE);
        call(libc::SYS_ptrace, [seize, i64::from(std::os::unix::process::parent_id()), 0, 0, 0])
    }),
    ("read another's memory", End::Killed, Who::Root, |_| {
        call(libc::SYS_process_vm_readv, [i64::from(std::os::unix::process::parent_id()), 0, 0, 0, 0])
    }),
    ("send a signal", End::Killed, Who::Anybody, |_| {
        call(libc::SYS_kill, [i64::from(std::os::unix::process::parent_id()), 0, 0, 0, 0])
    }),
    ("make code", End::Killed, Who::Anybody, |_| {
        let (prot, flags) = (libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a mapping that nothing uses, where the kernel likes.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    // Privilege, and the kernel's larger surfaces.
    ("gain a capability", End::Killed, Who::Root, |_| {
        let mut header: [u32; 2] = [0x2008_0522, 0];
        let mut all = [u32::MAX; 6];
        all[2] = 0;
        all[5] = 0;
        call(libc::SYS_capset, [header.as_mut_ptr() as i64, all.as_mut_ptr() as i64, 0, 0, 0])
    }),
    ("become root", End::Killed, Who::Root, |_| call(libc::SYS_setuid, [0, 0, 0, 0, 0])),
    ("make a namespace", End::Killed, Who::Root, |_| {
        call(libc::SYS_unshare, [i64::from(libc::CLONE_NEWUSER), 0, 0, 0, 0])
    }),
    ("mount", End::Killed, Who::Root, |dir| {
        // In a namespace of its own, or the machine would keep it.
        call(libc::SYS_unshare, [i64::from(libc::CLONE_NEWNS), 0, 0, 0, 0])?;
        mount(dir)
    }),
    ("mount where it is", End::Killed, Who::Root, |_| mount(Path::new("/nonexistent"))),
    ("load bpf", End::Killed, Who::Root, |_| {
        // BPF_MAP_CREATE: an array of one.
        let mut attributes = [2u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let size = size_of_val(&attributes) as i64;
        call(libc::SYS_bpf, [0, attributes.as_mut_ptr() as i64, size, 0, 0])
    }),
    ("use io_uring", End::Killed, Who::Root, |_| {
        let mut parameters = [0u8; 120];
        call(libc::SYS_io_uring_setup, [1, parameters.as_mut_ptr() as i64, 0, 0, 0])
    }),
    ("ask a keyring", End::Killed, Who::Root, |_| call(libc::SYS_keyctl, [0, -3, 1, 0, 0])),
    ("load a module", End::Killed, Who::Root, |_| call(libc::SYS_finit_module, [-1, 0, 0, 0, 0])),
    ("make a userfaultfd", End::Killed, Who::Root, |_| call(libc::SYS_userfaultfd, [0, 0, 0, 0, 0])),
];

fn socket(family: i32, kind: i32) -> io::Result<()> {
    call(libc::SYS_socket, [i64::from(family), i64::from(kind), 0, 0, 0])
}

fn mount(dir: &Path) -> io::Result<()> {
    let dir = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes())?;
    let tmpfs = c"tmpfs".as_ptr() as i64;
    call(libc::SYS_mount, [tmpfs, dir.as_ptr() as i64, tmpfs, 0, 0])
}

/// Its descriptors are left open: the process ends after it.
fn call(number: i64, [a, b, c, d, e]: [i64; 5]) -> io::Result<()> {
    // SAFETY: what is passed as a pointer is one to memory of the size that the call expects, and outlives it.
    zero(unsafe { libc::syscall(number, a, b, c, d, e) }.min(0))
}

fn zero(returned: i64) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn abstract_name(dir: &Path) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(dir.as_os_str().as_encoded_bytes())
}

/// The child: not a test by itself.
#[test]
#[ignore = "the process that the tests of this file start"]
fn child() {
    let (Ok(name), Some(dir)) = (std::env::var(ATTEMPT), std::env::var_os(FOLDER)) else { return };
    let dir = PathBuf::from(dir);
    let (_, _, _, attempt) = ATTEMPTS.iter().find(|(known, ..)| *known == name).unwrap();
    if std::env::var_os(FREE).is_none() {
        let at = |name: &str| dir.join(name);
        let (settings, defaults) = (at("settings"), at("defaults.toml"));
        let paths = Paths { settings, defaults, os_release: at("os-release"), agent: at("agent.sock") };
        let problems = sandbox::confine(&paths);
        assert!(problems.is_empty(), "{problems:?}");
    }
    let said = attempt(&dir);
    if let Err(error) = &said {
        eprintln!("{name}: {error}");
    }
    std::process::exit(if said.is_ok() { DONE } else { REFUSED });
}

fn attempt(name: &str, free: bool) -> (ExitStatus, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("settings")).unwrap();
    for file in ["defaults.toml", "os-release", "secret"] {
        fs::write(dir.path().join(file), "").unwrap();
    }
    let _agent = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
    let _abstract = UnixListener::bind_addr(&abstract_name(dir.path()).unwrap()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["taken_over::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env(ATTEMPT, name).env(FOLDER, dir.path()).stdout(Stdio::null());
    if free {
        child.env(FREE, "");
    }
    let output = child.output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn end(name: &str, free: bool) -> End {
    let (status, said) = attempt(name, free);
    match (status.code(), status.signal()) {
        (Some(DONE), _) => End::Done,
        (Some(REFUSED), _) => End::Refused,
        (_, Some(libc::SIGSYS)) => End::Killed,
        _ => panic!("{name}, free: {free}: {status}: {said}"),
    }
}

#[test]
fn a_taken_over_server_gets_nowhere() {
    for (name, expected, ..) in ATTEMPTS {
        assert_eq!(end(name, false), *expected, "{name}");
    }
}

#[test]
fn without_the_sandbox_it_gets_there() {
    for (name, _, who, _) in ATTEMPTS {
        let end = end(name, true);
        let allowed: &[End] = if *who == Who::Anybody { &[End::Done] } else { &[End::Done, End::Refused] };
        assert!(allowed.contains(&end), "{name}: {end:?}");
    }
}
