//! Starts the real API server and speaks to it.

use apiserver::client::{Answer, Endpoint, request_blocking};
use hyper::Method;
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// A server on a folder of its own, with nothing at the agent's socket.
pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) process: Child,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("settings")).unwrap();
        std::fs::write(dir.path().join("defaults.toml"), "motd = \"Welcome\"\n").unwrap();
        std::fs::write(
            dir.path().join("os-release"),
            "PRETTY_NAME=\"Caisson 0.1.0\"\nVERSION_ID=0.1.0\nVARIANT_ID=default\n",
        )
        .unwrap();
        let process = Self::spawn(&dir);
        Self { dir, process }
    }

    fn spawn(dir: &tempfile::TempDir) -> Child {
        let at = |name: &str| dir.path().join(name);
        for socket in ["api.sock", "api-read.sock", "api-agent.sock"] {
            let _ = std::fs::remove_file(at(socket));
        }
        let process = Command::new(env!("CARGO_BIN_EXE_apiserver"))
            .arg("--settings-dir")
            .arg(at("settings"))
            .arg("--defaults")
            .arg(at("defaults.toml"))
            .arg("--os-release")
            .arg(at("os-release"))
            .arg("--agent-socket")
            .arg(at("agent.sock"))
            .arg("--listen")
            .arg(at("api.sock"))
            .arg("--listen-read")
            .arg(at("api-read.sock"))
            .arg("--listen-agent")
            .arg(at("api-agent.sock"))
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(at("api.sock")).is_err() {
            assert!(Instant::now() < deadline, "the API server did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        process
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn send(&self, method: Method, uri: &str, body: &str) -> Answer {
        let endpoint = Endpoint::Unix(self.socket());
        request_blocking(&endpoint, method, uri, body.as_bytes().to_vec(), Duration::from_secs(20)).unwrap()
    }

    /// As a service of the node that only reads.
    pub(crate) fn send_as_reader(&self, method: Method, uri: &str, body: &str) -> Answer {
        let endpoint = Endpoint::Unix(self.read_socket());
        request_blocking(&endpoint, method, uri, body.as_bytes().to_vec(), Duration::from_secs(20)).unwrap()
    }

    /// All settings, as the host agent sees them.
    pub(crate) fn settings_for_the_agent(&self) -> Value {
        let endpoint = Endpoint::Unix(self.dir.path().join("api-agent.sock"));
        let answer =
            request_blocking(&endpoint, Method::GET, "/settings", Vec::new(), Duration::from_secs(20))
                .unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub(crate) fn read_socket(&self) -> PathBuf {
        self.dir.path().join("api-read.sock")
    }

    pub(crate) fn get(&self, uri: &str) -> Value {
        let answer = self.send(Method::GET, uri, "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub(crate) fn client(&self, arguments: &[&str]) -> Output {
        self.client_command(arguments).output().unwrap()
    }

    pub(crate) fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apiclient"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    pub(crate) fn peak_memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::spawn(&self.dir);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.process.try_wait().unwrap().and_then(|status| status.signal());
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Whatever else a test found: this is why.
        if ended == Some(libc::SIGSYS) {
            eprintln!(
                "the API server made a system call that its filter does not allow (src/sandbox/syscalls.rs): strace tells which"
            );
            // A test that is failing already must not abort the others.
            assert!(std::thread::panicking(), "SIGSYS");
        }
    }
}

pub(crate) fn signal(server: &Server, name: &str) {
    let pid = server.process.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
}
