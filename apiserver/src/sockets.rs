//! Sockets that PID 1 passes (sd_listen_fds(3)), and telling it that the service is ready (sd_notify(3)).

#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

const FIRST: RawFd = 3;

/// The sockets that were passed, with their names. Called once, at the start: the descriptors become the caller's, and are not
/// passed on to the programs that it runs.
pub fn passed() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = usize::try_from(number("LISTEN_FDS").unwrap_or(0)).unwrap_or(0).min(64);
    let named = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new())).take(count);
    // SAFETY of `own`: PID 1 passed these numbers to this process for this purpose, and this runs once.
    named.zip(FIRST..).map(|(name, fd)| (name, keep(own(fd)))).collect()
}

/// Closes a descriptor in the programs that this one runs: a container must never get the agent's socket.
fn keep(fd: OwnedFd) -> OwnedFd {
    if let Err(error) = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        eprintln!("<3>descriptor {} would be passed on: {error}", fd.as_raw_fd());
    }
    fd
}

/// Takes a raw descriptor that nobody owns yet.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that a system call has just returned, or that PID 1 passed to this process.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub fn is_vsock(fd: &impl AsRawFd) -> bool {
    getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Vsock))
}

/// Tells PID 1 that the service is ready; nothing when nobody wants to know.
pub fn notify_ready() -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    UnixDatagram::unbound()?.send_to(b"READY=1", path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_passed_is_not_passed_on() {
        let flags = |fd: &OwnedFd| FdFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFD).unwrap());
        // As PID 1 passes it: open over execve(2).
        let passed = nix::unistd::dup(std::io::stderr()).unwrap();
        assert!(!flags(&passed).contains(FdFlag::FD_CLOEXEC));
        assert!(flags(&keep(passed)).contains(FdFlag::FD_CLOEXEC));
    }
}
