//! A plain Unix socket that leads to the guest's API: each connection is handed on over vsock.

use anyhow::{Context, Result, ensure};
use apiserver::client::VSOCK_PORT;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Connections at once; each has two threads.
const MOST: usize = 2048;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens on `api` until the process ends. While the guest is not `up`, connections are closed, which tells the client: a
/// connection at the wrong moment of the guest's start would end the vsock device's worker for good.
pub fn serve(api: &Path, vsock: PathBuf, up: Arc<AtomicBool>) -> Result<()> {
    let _ = std::fs::remove_file(api);
    let listener = UnixListener::bind(api).with_context(|| format!("cannot listen on {}", api.display()))?;
    let active = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if !up.load(Ordering::Acquire) {
                continue;
            }
            if active.fetch_add(1, Ordering::Relaxed) >= MOST {
                active.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (vsock, active) = (vsock.clone(), active.clone());
            std::thread::spawn(move || {
                if let Ok(guest) = connect(&vsock) {
                    relay(client, guest);
                }
                active.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

fn connect(vsock: &Path) -> Result<UnixStream> {
    let mut guest = UnixStream::connect(vsock)?;
    guest.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    guest.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && line.len() < 64 {
        guest.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    ensure!(line.starts_with(b"OK"), "the guest refused");
    guest.set_read_timeout(None)?;
    Ok(guest)
}

fn relay(client: UnixStream, guest: UnixStream) {
    let (Ok(from_client), Ok(to_guest)) = (client.try_clone(), guest.try_clone()) else { return };
    let up = std::thread::spawn(move || copy(from_client, to_guest));
    copy(guest, client);
    let _ = up.join();
}

/// Copies until the end of one side. The guest's end ends both: its side has nothing more to say, and a client's end is passed on.
fn copy(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
