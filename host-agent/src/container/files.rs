//! `container-shim --files REQUEST`: carries files between a container and its standard input or output, as a tar stream
//! ([`apiserver::files`]).
//!
//! It enters the container's mount namespace, so that every path means what it means to the container, whatever links are there and
//! whoever changes them meanwhile; nothing of the node can be reached from there. It stays in the node's other namespaces, where no
//! process of the container sees it. Before it looks at the first name it gives up what this does not need: it may read and write all
//! files, as a person may who asks for that, but makes files as the container's user, and has no other capability of the container or of
//! the node. It runs no program and loads no code, whatever the container has: the kernel would not let it.

use apiserver::agent::{Copy, Files};
use apiserver::files::pack::{Source, pack};
use apiserver::files::unpack::{Place, unpack};
use apiserver::files::{Descriptors, Sum};
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{Gid, Uid, chdir, setfsgid, setfsuid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use crate::container::profile;
use crate::container::record::Places;

pub const WORD: &str = "--files";
/// Bytes that are written at once.
const PIECE: usize = 64 << 10;
/// Names that are told of what is left out.
const MOST_TOLD: u64 = 10;
/// Bytes of what tells of a process's groups.
const LARGEST_GROUPS: u64 = 4 << 10;

/// Does it, and says on its standard error what it left out, or why it could not.
pub fn run(request: &str) -> ExitCode {
    let mut told = 0;
    let mut tell = |text: String| {
        told += 1;
        if told <= MOST_TOLD {
            eprintln!("{text}");
        }
    };
    let carried = carry(request, &mut tell);
    if told > MOST_TOLD {
        eprintln!("and {} more", told - MOST_TOLD);
    }
    match carried {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn carry(request: &str, tell: &mut dyn FnMut(String)) -> io::Result<Sum> {
    let Copy { name, files, .. } = serde_json::from_str(request)?;
    let places = Places::of(&name);
    let config: Value = serde_json::from_slice(&fs::read(places.bundle().join("config.json"))?)?;
    let mut programs = vec![no_code().map_err(io::Error::other)?];
    // What the container has none of, this one needs none of either.
    if let profile @ Value::Object(_) = &config["linux"]["seccomp"] {
        programs.extend(profile::programs(profile).map_err(io::Error::other)?);
    }
    // By the node's /proc.
    let descriptors = Descriptors::open()?;
    let failed =
        |error: io::Error| io::Error::other(format!("cannot enter {name}, which may have ended: {error}"));
    enter(&places).map_err(failed)?;
    become_user(&config["process"]["user"])?;
    for program in &programs {
        apply_filter(program).map_err(io::Error::other)?;
    }
    match files {
        Files::From { path } => {
            let output = BufWriter::with_capacity(PIECE, io::stdout().lock());
            pack(Source::open(Path::new(&path))?, &descriptors, output, tell)
        }
        Files::Into { path, is_contents } => {
            let mut input = io::stdin().lock();
            let sum = unpack(&mut input, &Place::find(Path::new(&path), is_contents)?, tell)?;
            // Who sends is to come to its end.
            io::copy(&mut input, &mut io::sink())?;
            Ok(sum)
        }
    }
}

/// Changes into the root of the container that runs, and into its user namespace, if it has one.
fn enter(places: &Places) -> io::Result<()> {
    let pid = fs::read_to_string(places.pid())?;
    let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // All that is looked at here is of one process, also when its number is another's by now.
    let process = open(&Path::new("/proc").join(pid.trim()), folder, Mode::empty())?;
    let of_process = |name: &str| -> io::Result<OwnedFd> {
        Ok(openat(&process, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    };
    let (mount, user) = (of_process("ns/mnt")?, of_process("ns/user")?);
    let mut group = String::new();
    File::from(of_process("cgroup")?).take(LARGEST_GROUPS).read_to_string(&mut group)?;
    let own = Path::new("/").join(places.group.strip_prefix("/sys/fs/cgroup").unwrap_or(&places.group));
    if !is_of(&group, &own.join("payload")) {
        return Err(io::Error::other("its first process is another one by now"));
    }
    if !is_same(&user, &File::open("/proc/self/ns/user")?)? {
        setns(&user, CloneFlags::CLONE_NEWUSER)?;
    }
    // With it come its root, and that as the folder.
    setns(&mount, CloneFlags::CLONE_NEWNS)?;
    Ok(chdir("/")?)
}

/// Whether `/proc/PID/cgroup` says that a process is of a group, or of one below it.
pub(super) fn is_of(groups: &str, group: &Path) -> bool {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    path.is_some_and(|path| Path::new(path).starts_with(group))
}

fn is_same(one: &impl AsFd, other: &impl AsFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Files that it makes are the container's user's. Of all that it may do, this stays: to pass over modes of files.
fn become_user(user: &Value) -> io::Result<()> {
    let id = |name: &str| user[name].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    umask(Mode::empty());
    setgid(Gid::from_raw(0))?;
    // A user namespace may refuse it.
    let _ = setgroups(&[]);
    setuid(Uid::from_raw(0))?;
    setfsgid(Gid::from_raw(id("gid")));
    setfsuid(Uid::from_raw(id("uid")));
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    // Both are lost with a change of the user.
    prctl::set_dumpable(false)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}

/// Refuses to run programs, and to load code.
fn no_code() -> Result<BpfProgram, seccompiler::BackendError> {
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    let loads = || {
        let condition =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable.clone(), libc::PROT_EXEC as u64)?;
        SeccompRule::new(vec![condition])
    };
    let rules = BTreeMap::from([
        (libc::SYS_execve, Vec::new()),
        (libc::SYS_execveat, Vec::new()),
        (libc::SYS_mmap, vec![loads()?]),
        (libc::SYS_mprotect, vec![loads()?]),
    ]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_of_the_container_shows_its_root() {
        let web = Path::new("/containers/web/payload");
        for (groups, expected) in [
            ("0::/containers/web/payload\n", true),
            ("0::/containers/web/payload/of-its-own\n", true),
            ("0::/containers/web/shim\n", false),
            ("0::/containers/web2/payload\n", false),
            ("0::/containers/web/payload2\n", false),
            ("0::/\n", false),
            ("", false),
        ] {
            assert_eq!(is_of(groups, web), expected, "{groups}");
        }
    }

    #[test]
    fn code_is_refused_and_files_are_not() {
        let in_child = || {
            apply_filter(&no_code().unwrap()).unwrap();
            let run = std::process::Command::new("true").status();
            let read = fs::read("/proc/self/status");
            run.is_err() && read.is_ok()
        };
        // A filter is a thread's.
        assert!(std::thread::spawn(in_child).join().unwrap());
    }
}
