//! The API server: owns the settings and answers `/run/api.sock`.

use apiserver::access::Access;
use apiserver::sandbox;
use apiserver::server::Server;
use apiserver::sockets;
use apiserver::state::{Paths, State};
use apiserver::vsock::VsockListener;
use clap::Parser;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, LocalSet};

/// Answers Caisson's API on the sockets that PID 1 passes.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Where generations of settings are kept
    #[arg(long, default_value = "/state/settings")]
    settings_dir: PathBuf,
    /// The settings that hold where nobody set any
    #[arg(long, default_value = "/usr/lib/caisson/defaults.toml")]
    defaults: PathBuf,
    #[arg(long, default_value = "/usr/lib/os-release")]
    os_release: PathBuf,
    #[arg(long, default_value = apiserver::agent::SOCKET)]
    agent_socket: PathBuf,
    /// Listen here, instead of on the sockets that PID 1 passes
    #[arg(long)]
    listen: Option<PathBuf>,
    /// Likewise, for those who only read
    #[arg(long)]
    listen_read: Option<PathBuf>,
    /// Likewise, for the host agent, which is told secrets
    #[arg(long)]
    listen_agent: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    // Before anything else opens a descriptor.
    let passed = sockets::passed();
    match run(options, passed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options, passed: Vec<(String, OwnedFd)>) -> Result<(), String> {
    let paths = Paths {
        settings: options.settings_dir,
        defaults: options.defaults,
        os_release: options.os_release,
        agent: options.agent_socket,
    };
    // While files may still be made: a socket is one.
    let mut own = Vec::new();
    let paths_of_own =
        [("api", &options.listen), ("api-read", &options.listen_read), ("api-agent", &options.listen_agent)];
    for (name, path) in paths_of_own {
        if let Some(path) = path {
            own.push((name.to_owned(), bind(path)?));
        }
    }
    let unconfined = sandbox::confine(&paths);
    let mut state = State::open(&paths)?;
    state.problems.extend(unconfined);
    for problem in &state.problems {
        eprintln!("<3>{}; {}", problem.message, problem.hint);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    LocalSet::new().block_on(&runtime, async {
        let server = Server::new(state);
        let mut listeners = Vec::new();
        for (name, fd) in own.into_iter().chain(passed) {
            let listener = listen(&server, &name, fd)
                .map_err(|error| format!("cannot use the socket {name:?} that was passed: {error}"))?;
            listeners.push(listener);
        }
        if listeners.is_empty() {
            return Err("no socket was passed (LISTEN_FDS), and none asked for (--listen)".to_owned());
        }
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
        sockets::notify_ready()
            .map_err(|error| format!("cannot tell PID 1 that the API is ready: {error}"))?;
        terminate.recv().await;
        listeners.iter().for_each(JoinHandle::abort);
        server.stop().await;
        Ok(())
    })
}

fn bind(path: &Path) -> Result<OwnedFd, String> {
    let listener = std::os::unix::net::UnixListener::bind(path)
        .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
    Ok(listener.into())
}

fn listen(server: &Server, name: &str, fd: OwnedFd) -> std::io::Result<JoinHandle<()>> {
    let access = Access::of_socket(name).map_err(std::io::Error::other)?;
    // A listener that waits would stop the whole server.
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    let server = server.clone();
    if sockets::is_vsock(&listener) {
        let listener = VsockListener::new(listener.into())?;
        return Ok(tokio::task::spawn_local(server.serve_vsock(listener)));
    }
    let listener = UnixListener::from_std(listener)?;
    Ok(tokio::task::spawn_local(server.serve_unix(listener, access)))
}
