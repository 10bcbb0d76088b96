//! The last step before a further process of a container begins: this program runs as that process (`container-shim --inside`), in the
//! container, as its user and with its capabilities, is put under the container's seccomp profile, and becomes the command.
//!
//! It has three descriptors that no container may have: itself, the container's user namespace, and one end of a socket. On that the shim
//! sends it what to do, which is when the process is the shim's child, and learns from its closing that the command has begun, or from a
//! text why not. youki joins all of a container's namespaces but that of its users: in a container with users of its own, this does.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{BpfProgram, apply_filter, sock_filter};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// This program, as a file that the container need not have.
pub const PROGRAM: RawFd = 3;
/// The container's user namespace, which may be the node's.
pub const NAMESPACE: RawFd = 4;
/// The socket.
pub const CONTROL: RawFd = 5;
/// How many these are.
pub const PASSED: &str = "3";
/// How the program is named to the runtime.
pub const PATH: &str = "/proc/self/fd/3";
pub const WORD: &str = "--inside";
/// Longer than any program that the kernel takes (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;
const MOST_PROGRAMS: usize = 16;

/// What the shim sends: the user and group to become in the container's user namespace, if that is its own, and the profile.
pub fn encode(user: Option<(u32, u32)>, programs: &[BpfProgram]) -> Vec<u8> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
    let (uid, gid) = user.unwrap_or_default();
    let mut wire = [u32::from(user.is_some()), uid, gid].map(u32::to_be_bytes).concat();
    wire.extend(number(programs.len()));
    for program in programs {
        wire.extend(number(program.len()));
        for step in program {
            wire.extend(step.code.to_be_bytes());
            wire.extend([step.jt, step.jf]);
            wire.extend(step.k.to_be_bytes());
        }
    }
    wire
}

type Orders = (Option<(u32, u32)>, Vec<BpfProgram>);

fn decode(from: &mut impl Read) -> io::Result<Orders> {
    fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    let count = |from: &mut _, most| match u32::from_be_bytes(bytes(from)?) as usize {
        count if count <= most => Ok(count),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    };
    let mut number = || Ok::<_, io::Error>(u32::from_be_bytes(bytes(from)?));
    let (has_own, uid, gid) = (number()?, number()?, number()?);
    let user = (has_own != 0).then_some((uid, gid));
    let programs = count(from, MOST_PROGRAMS)?;
    let mut all = Vec::new();
    for _ in 0..programs {
        let length = count(from, MOST_INSTRUCTIONS)?;
        let step = |_| {
            let [a, b, jt, jf, k @ ..] = bytes::<8>(from)?;
            Ok(sock_filter { code: u16::from_be_bytes([a, b]), jt, jf, k: u32::from_be_bytes(k) })
        };
        all.push((0..length).map(step).collect::<io::Result<_>>()?);
    }
    Ok((user, all))
}

/// Becomes the command. Returns only when that cannot be.
pub fn run(mut command: impl Iterator<Item = OsString>) -> ExitCode {
    // Until it is the command, which is as others are again, nobody in the container gets at it, but who may trace all (CAP_SYS_PTRACE):
    // it is under no profile yet.
    let hidden = prctl::set_dumpable(false);
    // SAFETY: the shim has these passed to this process for this purpose, and nothing else is open.
    let (program, namespace, control) = unsafe {
        (OwnedFd::from_raw_fd(PROGRAM), OwnedFd::from_raw_fd(NAMESPACE), OwnedFd::from_raw_fd(CONTROL))
    };
    drop(program);
    let closes = fcntl(&control, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    let mut control = UnixStream::from(control);
    let program = command.next().unwrap_or_default();
    let begun = hidden.and(closes).map_err(io::Error::from).and_then(|_| confine(&mut control, namespace));
    let error = match begun {
        // It finds the program by this process's PATH, and lets it die of a broken pipe again (SIGPIPE).
        Ok(()) => Command::new(&program).args(command).exec(),
        Err(error) => error,
    };
    let _ = control.write_all(reason(&program.to_string_lossy(), &error).as_bytes());
    ExitCode::from(127)
}

fn confine(control: &mut UnixStream, namespace: OwnedFd) -> io::Result<()> {
    let (user, programs) = decode(control)?;
    if let Some((uid, gid)) = user {
        // Before the next line: a change of users undoes that.
        become_user(namespace, Uid::from_raw(uid), Gid::from_raw(gid))?;
    } else {
        drop(namespace);
    }
    // The shim is its parent by now. If that is killed, nobody is left who could end this.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Was it killed before that?
    control.set_nonblocking(true)?;
    match control.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        _ => return Err(io::ErrorKind::ConnectionAborted.into()),
    }
    for program in &programs {
        apply_filter(program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Becomes a user of the namespace, with no more capabilities there than the runtime has left to this process. Root of the node may enter, as it
/// has made the namespace; who enters has all capabilities in it at first.
fn become_user(namespace: OwnedFd, uid: Uid, gid: Gid) -> io::Result<()> {
    let left: Vec<bool> = (0..64).map(|number| capability(libc::PR_CAPBSET_READ, number) == 1).collect();
    setns(&namespace, CloneFlags::CLONE_NEWUSER)?;
    drop(namespace);
    for number in (0..64).filter(|number| !left[*number as usize]) {
        // Those that the kernel does not know it refuses to drop, and nobody has them.
        capability(libc::PR_CAPBSET_DROP, number);
    }
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    if !uid.is_root() {
        // The kernel has taken all.
        return Ok(());
    }
    let word = |from: usize| (0..32).filter(|bit| left[from + bit]).fold(0_u32, |word, bit| word | 1 << bit);
    // capset(2): the version, this process; effective, permitted and inheritable ones, the lower 32 of each first.
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets: [u32; 6] = [word(0), word(0), 0, word(32), word(32), 0];
    // SAFETY: both are as long as this version has them, and the kernel only reads the sets.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    Errno::result(set)?;
    Ok(())
}

fn capability(what: libc::c_int, number: libc::c_ulong) -> libc::c_int {
    let none: libc::c_ulong = 0;
    // SAFETY: no pointers.
    unsafe { libc::prctl(what, number, none, none, none) }
}

/// In words that say what to do.
fn reason(program: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            format!(
                "cannot run {program:?}: there is no such file in the container, or its interpreter is not there"
            )
        }
        io::ErrorKind::NotFound => {
            format!("cannot run {program:?}: the container has no such command in the folders of its PATH")
        }
        io::ErrorKind::PermissionDenied => {
            format!("cannot run {program:?}: it is not a program that the container's user may execute")
        }
        _ => format!("cannot run {program:?}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_as_they_were_sent_and_others_are_refused() {
        let step = |code| sock_filter { code, jt: 1, jf: 2, k: 0xdead_beef };
        let programs = vec![vec![step(6)], vec![step(0x15), step(0x20)], vec![]];
        let wire = encode(Some((7, 8)), &programs);
        assert_eq!(decode(&mut wire.as_slice()).unwrap(), (Some((7, 8)), programs.clone()));
        assert_eq!(decode(&mut encode(None, &programs).as_slice()).unwrap(), (None, programs));
        assert!(decode(&mut &wire[..wire.len() - 1]).is_err());
        let after_user = |rest: &[u8]| decode(&mut [&[0; 12], rest].concat().as_slice());
        assert!(after_user(&[0, 0, 0, 17]).is_err());
        assert!(after_user(&[0, 0, 0, 1, 0xff, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_command_that_is_not_there_is_told_in_plain_words() {
        let not_found = io::Error::from(io::ErrorKind::NotFound);
        assert!(reason("bash", &not_found).contains("no such command in the folders of its PATH"));
        assert!(reason("/bin/bash", &not_found).contains("no such file in the container"));
    }
}
