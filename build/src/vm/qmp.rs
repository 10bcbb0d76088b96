//! QEMU's control socket (QEMU Machine Protocol: line-delimited JSON).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to QEMU at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
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

    /// Follows QEMU's events to its end, to tell why it ended.
    pub(super) fn follow_shutdown(mut self) -> Result<Shutdown> {
        self.stream.get_ref().set_read_timeout(None)?;
        Ok(Shutdown(std::thread::spawn(move || {
            let mut reset = false;
            while let Ok(event) = self.read() {
                if event["event"] == "SHUTDOWN" {
                    reset = event["data"]["reason"] == "guest-reset";
                }
            }
            reset
        })))
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("QEMU closed its control socket")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}, which is not JSON"))
    }
}

/// Why QEMU ended.
pub(super) struct Shutdown(JoinHandle<bool>);

impl Shutdown {
    /// Whether the guest restarted the machine. To be asked when QEMU has ended.
    pub(super) fn was_a_reset(self) -> bool {
        self.0.join().unwrap_or(false)
    }
}
