//! A client of the API: HTTP/1.1 over a Unix socket, or over the hybrid vsock socket of a VMM.

use std::path::PathBuf;

/// The vsock port that the API listens on.
pub const VSOCK_PORT: u32 = 1024;

/// How to reach an API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket that speaks HTTP: `/run/api.sock` in the guest, `api.sock` of a VM on the host.
    Unix(PathBuf),
    /// A VMM's Unix socket for vsock (Firecracker's convention): send `CONNECT 1024\n`, read `OK …\n`, then HTTP.
    HybridVsock(PathBuf),
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}
