//! The last step before a further process of a container begins: this program runs as that process (`container-shim --inside`), in the
//! container, as its user and with its capabilities, is put under the container's seccomp profile, and becomes the command.
//!
//! It has two descriptors that no container may have: itself, and one end of a socket. On that the shim sends it what to do, which is
//! when the process is the shim's child, and learns from its closing that the command has begun, or from a text why not.

#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use seccompiler::{BpfProgram, apply_filter, sock_filter};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// This program, as a file that the container need not have.
pub const PROGRAM: RawFd = 3;
/// The socket.
pub const CONTROL: RawFd = 4;
/// How the program is named to the runtime.
pub const PATH: &str = "/proc/self/fd/3";
pub const WORD: &str = "--inside";
/// Longer than any program that the kernel takes (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;
const MOST_PROGRAMS: usize = 16;

/// What the shim sends.
pub fn encode(programs: &[BpfProgram]) -> Vec<u8> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
    let mut wire = number(programs.len()).to_vec();
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

fn decode(from: &mut impl Read) -> io::Result<Vec<BpfProgram>> {
    fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    let count = |from: &mut _, most| match u32::from_be_bytes(bytes(from)?) as usize {
        count if count <= most => Ok(count),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    };
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
    Ok(all)
}

/// Becomes the command. Returns only when that cannot be.
pub fn run(mut command: impl Iterator<Item = OsString>) -> ExitCode {
    // Until it is the command, which is as others are again, nobody in the container gets at it, but who may trace all (CAP_SYS_PTRACE):
    // it is under no profile yet.
    let hidden = prctl::set_dumpable(false);
    // SAFETY: the shim has these two passed to this process for this purpose, and nothing else is open.
    let (program, control) = unsafe { (OwnedFd::from_raw_fd(PROGRAM), OwnedFd::from_raw_fd(CONTROL)) };
    drop(program);
    let closes = fcntl(&control, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    let mut control = UnixStream::from(control);
    let program = command.next().unwrap_or_default();
    let begun = hidden.and(closes).map_err(io::Error::from).and_then(|_| confine(&mut control));
    let error = match begun {
        // It finds the program by this process's PATH, and lets it die of a broken pipe again (SIGPIPE).
        Ok(()) => Command::new(&program).args(command).exec(),
        Err(error) => error,
    };
    let _ = control.write_all(reason(&program.to_string_lossy(), &error).as_bytes());
    ExitCode::from(127)
}

fn confine(control: &mut UnixStream) -> io::Result<()> {
    let programs = decode(control)?;
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
        let wire = encode(&programs);
        assert_eq!(decode(&mut wire.as_slice()).unwrap(), programs);
        assert!(decode(&mut &wire[..wire.len() - 1]).is_err());
        assert!(decode(&mut &[0, 0, 0, 17][..]).is_err());
        assert!(decode(&mut &[0, 0, 0, 1, 0xff, 0, 0, 0][..]).is_err());
    }

    #[test]
    fn a_command_that_is_not_there_is_told_in_plain_words() {
        let not_found = io::Error::from(io::ErrorKind::NotFound);
        assert!(reason("bash", &not_found).contains("no such command in the folders of its PATH"));
        assert!(reason("/bin/bash", &not_found).contains("no such file in the container"));
    }
}
