//! A vsock listener for tokio (vsock(7)). Only the host, CID 2, may connect: other guests and the guest itself may not.

#![allow(unsafe_code)]

use nix::libc::VMADDR_CID_HOST;
use nix::sys::socket::{SockFlag, VsockAddr, accept4, getpeername};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::sockets::own;

pub struct VsockListener(AsyncFd<OwnedFd>);

impl VsockListener {
    /// Takes a listening, non-blocking socket. Within a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and the AsyncFd owns it.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// The next connection; `None` when it was not the host's.
    ///
    /// The stream is one of a Unix socket by type only: reading, writing and closing are the same for every stream socket.
    pub async fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            let mut guard = self.0.readable().await?;
            let accepted = guard.try_io(|listener| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                Ok(own(accept4(listener.get_ref().as_raw_fd(), flags)?))
            });
            let Ok(fd) = accepted else { continue };
            let fd = fd?;
            let peer = getpeername::<VsockAddr>(fd.as_raw_fd())?;
            if peer.cid() != VMADDR_CID_HOST {
                return Ok(None);
            }
            return UnixStream::from_std(std::os::unix::net::UnixStream::from(fd)).map(Some);
        }
    }
}
