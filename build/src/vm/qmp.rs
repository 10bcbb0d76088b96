//! QEMU's control socket (QEMU Machine Protocol: line-delimited JSON).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(20);
const SETTLING: Duration = Duration::from_millis(50);

pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// QEMU said that it ends because the guest restarts.
    reset: bool,
}

impl Qmp {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to QEMU at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut qmp = Self { stream: BufReader::new(stream), reset: false };
        qmp.read()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its result; events that come in between are passed over.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        for _ in 0..1000 {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
        bail!("QEMU did not answer {command}")
    }

    /// Follows QEMU to its end: says when the guest's vsock driver is up, and why QEMU ended.
    pub(super) fn follow(mut self, vsock: &'static str, up: Arc<AtomicBool>) -> Result<Follower> {
        self.stream.get_ref().set_read_timeout(None)?;
        Ok(Follower(std::thread::spawn(move || {
            let wanted = json!({"path": vsock});
            while let Ok(status) = self.execute("x-query-virtio-status", &wanted) {
                if status["vhost-started"] == true {
                    // Its device takes what QEMU told it a moment later.
                    std::thread::sleep(SETTLING);
                    up.store(true, Ordering::Release);
                    break;
                }
                std::thread::sleep(POLL);
            }
            while self.read().is_ok() {}
            up.store(false, Ordering::Release);
            self.reset
        })))
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("QEMU closed its control socket")?;
        let value: Value =
            serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}, which is not JSON"))?;
        self.reset |= value["event"] == "SHUTDOWN" && value["data"]["reason"] == "guest-reset";
        Ok(value)
    }
}

pub(super) struct Follower(JoinHandle<bool>);

impl Follower {
    /// Whether QEMU ended because the guest restarts. To be asked when it has ended.
    pub(super) fn saw_a_reset(self) -> bool {
        self.0.join().unwrap_or(false)
    }
}
