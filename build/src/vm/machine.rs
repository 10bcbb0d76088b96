//! One running QEMU with its vsock device.

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::config::{Config, Firmware, OVMF_VARS, Places, arguments};
use super::proxy;
use super::qmp::Qmp;
use crate::command::tail;
use crate::toolbox::Toolbox;

/// The guest's vsock address. Each machine has a device process of its own, so all can have the same.
const GUEST_CID: &str = "3";
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Machine {
    pub places: Places,
    qemu: Child,
    vsock: Child,
}

/// How the processes of a machine are tied to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signals {
    /// Ctrl-C at the terminal does not reach them: we ask the guest to power off instead.
    Apart,
    /// They end with us.
    Shared,
}

impl Machine {
    /// Starts a machine in a folder of its own.
    pub fn start(
        toolbox: &Toolbox,
        vhost_device_vsock: &std::path::Path,
        config: &Config,
        folder: PathBuf,
        signals: Signals,
    ) -> Result<Self> {
        let places = Places { folder };
        for socket in [places.qmp(), places.vhost(), places.vsock(), places.api()] {
            let _ = fs::remove_file(&socket);
            // sockaddr_un has 108 bytes.
            if socket.as_os_str().len() > 100 {
                bail!(
                    "{} is too long for a socket: take a shorter name, or a shorter folder by XDG_STATE_HOME",
                    socket.display()
                );
            }
        }
        if config.firmware == Firmware::Uefi && !places.firmware_variables().exists() {
            fs::copy(toolbox.root.join(OVMF_VARS), places.firmware_variables())
                .context("the toolbox has no OVMF")?;
        }
        let log = |name: &str| {
            File::create(places.folder.join(name))
                .with_context(|| format!("cannot write {name} in {}", places.folder.display()))
        };
        let tie = |command: &mut Command| {
            if signals == Signals::Apart {
                command.process_group(0);
            }
        };
        let toolbox = toolbox.clone().with_share(&places.folder);
        // Their end is tied to ours also where nothing of ours runs any more to end them: after a SIGKILL. The kernel watches
        // the thread that starts them, so a machine lives at most as long as the thread that called this.
        let tied = |program: &std::ffi::OsStr| {
            let mut command = toolbox.command("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        };
        let vsock_log = log("vsock.log")?;
        let mut command = tied(vhost_device_vsock.as_os_str());
        command
            .args(["--guest-cid", GUEST_CID, "--socket"])
            .arg(places.vhost())
            .arg("--uds-path")
            .arg(places.vsock());
        command.stdin(Stdio::null()).stdout(vsock_log.try_clone()?).stderr(vsock_log);
        tie(&mut command);
        let vsock =
            command.spawn().with_context(|| format!("cannot start {}", vhost_device_vsock.display()))?;
        let mut machine = Self { places, qemu: vsock, vsock: Command::new("true").spawn()? };
        // Until QEMU runs, the field holds the vsock device: whatever fails below, both are ended by drop.
        machine.wait_for_socket(&machine.places.vhost())?;

        let mut command = tied("qemu-system-x86_64".as_ref());
        command.args(arguments(config, &machine.places)).stdin(Stdio::null());
        command.stdout(if config.console_on_stdout { Stdio::inherit() } else { Stdio::null() });
        command.stderr(File::create(machine.places.folder.join("qemu.log"))?);
        tie(&mut command);
        let qemu = command.spawn().context("cannot start QEMU")?;
        machine.vsock = std::mem::replace(&mut machine.qemu, qemu);
        machine.wait_for_socket(&machine.places.qmp())?;
        proxy::serve(&machine.places.api(), machine.places.vsock())?;
        Ok(machine)
    }

    fn wait_for_socket(&mut self, socket: &std::path::Path) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !socket.exists() {
            if let Some(status) = self.qemu.try_wait()? {
                let log = |name: &str| tail(&self.places.folder.join(name), 10);
                bail!(
                    "a process of the virtual machine ended at once ({status}):\n{}{}",
                    log("qemu.log"),
                    log("vsock.log")
                );
            }
            if Instant::now() > deadline {
                bail!("{} did not appear within {} s", socket.display(), START_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.places.qmp())
    }

    /// Presses the power button.
    pub fn press_power_button(&self) -> Result<()> {
        self.qmp()?.execute("system_powerdown", &json!({})).map(drop)
    }

    /// The machine's end, if it came.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.qemu.try_wait()?)
    }

    /// Waits for the machine's end; `None` when it does not come in time.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.qemu.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A power cut: QEMU is gone between two instructions.
    pub fn kill(&mut self) -> Result<()> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in [&mut self.qemu, &mut self.vsock] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
