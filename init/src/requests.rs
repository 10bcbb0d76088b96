//! The control socket, `/run/init.sock`: root only, one request and one answer for each connection.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, socket, sockopt,
};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use init::control::{Request, Response, SOCKET};

use init::sys;

/// Nobody but root can connect, and root's programs are ours: a short wait is fine.
const PATIENCE: Duration = Duration::from_millis(500);
const LONGEST_REQUEST: u64 = 64 << 10;

pub(crate) fn listen_for_requests() -> Result<OwnedFd, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot listen on {SOCKET}: {error}");
    let fd =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
            .map_err(|error| failed(&error))?;
    let _ = fs::remove_file(SOCKET);
    bind(fd.as_raw_fd(), &UnixAddr::new(SOCKET).map_err(|error| failed(&error))?)
        .map_err(|error| failed(&error))?;
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600)).map_err(|error| failed(&error))?;
    listen(&fd, Backlog::new(16).map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    Ok(fd)
}

/// Answers one waiting connection; false when none waits.
pub(crate) fn answer_one(listener: &OwnedFd, answer: impl FnOnce(Request) -> Response) -> bool {
    let Ok(raw) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else { return false };
    let mut stream = UnixStream::from(sys::own(raw));
    let peer_is_root = getsockopt(&stream, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
    if !peer_is_root
        || stream.set_read_timeout(Some(PATIENCE)).is_err()
        || stream.set_write_timeout(Some(PATIENCE)).is_err()
    {
        return true;
    }
    let mut line = String::new();
    let read = BufReader::new((&stream).take(LONGEST_REQUEST)).read_line(&mut line);
    let response = match read.map(|_| serde_json::from_str(&line)) {
        Ok(Ok(request)) => answer(request),
        Ok(Err(error)) => Response::Error { message: format!("this is not a request: {error}") },
        Err(_) => return true,
    };
    let _ =
        stream.write_all(format!("{}\n", serde_json::to_string(&response).unwrap_or_default()).as_bytes());
    true
}
