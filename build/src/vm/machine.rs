//! One running machine: QEMU and its vsock device, and both anew when the guest restarts.

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::config::{Config, Firmware, OVMF_VARS, Places, arguments, vsock_path};
use super::proxy;
use super::qmp::{Follower, Qmp};
use super::slots;
use super::tsc;
use crate::command::tail;
use crate::toolbox::Toolbox;

/// The guest's vsock address. Each machine has a device process of its own, so all can have the same.
const GUEST_CID: &str = "3";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

pub struct Machine {
    pub places: Places,
    processes: Arc<Mutex<Processes>>,
    keeper: Option<JoinHandle<()>>,
}

/// What runs for a machine now.
#[derive(Default)]
struct Processes {
    qemu: Option<Child>,
    vsock: Option<Child>,
    /// Somebody wants the machine to be off.
    killed: bool,
    ended: Option<ExitStatus>,
    /// Why the processes could not be started again when the guest restarted.
    failure: Option<String>,
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
        vhost_device_vsock: &Path,
        config: &Config,
        folder: PathBuf,
        signals: Signals,
    ) -> Result<Self> {
        let places = Places { folder };
        for socket in places.sockets() {
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
        for log in [places.serial_log(), places.folder.join("qemu.log"), places.folder.join("vsock.log")] {
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        }
        let up = Arc::new(AtomicBool::new(false));
        let start = Start {
            up: up.clone(),
            toolbox: toolbox.clone().with_share(&places.folder),
            vhost_device_vsock: vhost_device_vsock.to_owned(),
            config: config.clone(),
            places: places.clone(),
            signals,
        };
        let processes = Arc::new(Mutex::new(Processes::default()));
        let (sender, started) = mpsc::channel();
        let of_keeper = processes.clone();
        let keeper = std::thread::spawn(move || keep(&start, &of_keeper, &sender));
        let machine = Self { places, processes, keeper: Some(keeper) };
        started.recv().context("the thread that keeps the machine ended")??;
        proxy::serve(&machine.places.api(), machine.places.vsock(), up)?;
        Ok(machine)
    }

    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.places.qmp())
    }

    /// Presses the power button.
    pub fn press_power_button(&self) -> Result<()> {
        self.qmp()?.execute("system_powerdown", &json!({})).map(drop)
    }

    /// The machine's end, if it came. A restart of the guest is none.
    pub fn try_wait(&self) -> Option<ExitStatus> {
        lock(&self.processes).ended
    }

    /// Why the machine ended, where it was not its own wish.
    pub fn failure(&self) -> Option<String> {
        lock(&self.processes).failure.clone()
    }

    /// Waits for the machine's end; `None` when it does not come in time.
    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.try_wait();
            if ended.is_some() || Instant::now() > deadline {
                return ended;
            }
            std::thread::sleep(POLL);
        }
    }

    /// A power cut: QEMU is gone between two instructions. Returns when it is.
    pub fn kill(&mut self) {
        self.power_switch().off();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }

    /// What cuts the power from another thread.
    pub fn power_switch(&self) -> PowerSwitch {
        PowerSwitch(self.processes.clone())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct PowerSwitch(Arc<Mutex<Processes>>);

impl PowerSwitch {
    pub fn off(&self) {
        let mut processes = lock(&self.0);
        processes.killed = true;
        if let Some(qemu) = &mut processes.qemu {
            let _ = qemu.kill();
        }
    }
}

fn lock(processes: &Mutex<Processes>) -> MutexGuard<'_, Processes> {
    processes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the processes until the machine ends. A guest that restarts gets new ones: the vsock device does not survive that its
/// queues go away and come back, and a machine that comes up from nothing is what a cloud gives too.
fn keep(start: &Start, processes: &Mutex<Processes>, started: &mpsc::Sender<Result<()>>) {
    loop {
        let run = start.run(&mut lock(processes));
        let follower = match run {
            Ok(follower) => {
                let _ = started.send(Ok(()));
                follower
            }
            Err(error) => {
                let mut processes = lock(processes);
                processes.end();
                processes.failure = Some(format!("{error:#}"));
                // As the exit status of a program that failed (wait(2)).
                processes.ended = Some(ExitStatus::from_raw(1 << 8));
                // Only the first start is waited for.
                let _ = started.send(Err(error));
                return;
            }
        };
        let status = loop {
            let ended = lock(processes).qemu.as_mut().and_then(|qemu| qemu.try_wait().ok().flatten());
            match ended {
                Some(status) => break status,
                None => std::thread::sleep(POLL),
            }
        };
        let restarts = follower.saw_a_reset() && !start.config.no_reboot;
        let mut processes = lock(processes);
        processes.end();
        if processes.killed || !restarts {
            processes.ended = Some(status);
            return;
        }
    }
}

impl Processes {
    fn end(&mut self) {
        for process in [self.qemu.take(), self.vsock.take()].iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What is needed to start the processes, any number of times.
struct Start {
    toolbox: Toolbox,
    vhost_device_vsock: PathBuf,
    config: Config,
    places: Places,
    signals: Signals,
    /// The guest can be connected to.
    up: Arc<AtomicBool>,
}

impl Start {
    fn run(&self, processes: &mut Processes) -> Result<Follower> {
        if processes.killed {
            bail!("the machine was switched off before it had started");
        }
        let places = &self.places;
        for socket in [places.qmp(), places.events(), places.vhost(), places.vsock(), places.gdb()] {
            let _ = fs::remove_file(socket);
        }
        let mut command = self.tied(self.vhost_device_vsock.as_os_str(), "vsock.log")?;
        command
            .args(["--guest-cid", GUEST_CID, "--socket"])
            .arg(places.vhost())
            .arg("--uds-path")
            .arg(places.vsock());
        let vsock = command.spawn().context("cannot start vhost-device-vsock")?;
        wait_for_socket(places, processes.vsock.insert(vsock), &places.vhost())?;
        let config = self.with_slot()?;
        let mut command = self.tied(OsStr::new("qemu-system-x86_64"), "qemu.log")?;
        command.args(arguments(&config, places, tsc::khz()));
        if self.config.console_on_stdout {
            command.stdout(Stdio::inherit());
        }
        let qemu = processes.qemu.insert(command.spawn().context("cannot start QEMU")?);
        wait_for_socket(places, qemu, &places.events())?;
        // The file is there a moment before somebody listens.
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match Qmp::connect(&places.events()) {
                Ok(events) => {
                    return events.follow(vsock_path(self.config.firmware), self.up.clone());
                }
                Err(_) if Instant::now() < deadline && qemu.try_wait()?.is_none() => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The configuration with the kernel of the slot that boots now. The first root that a machine had is booted by the kernel that
    /// it was given, which starts faster than the compressed one of its slot.
    fn with_slot(&self) -> Result<Config> {
        let mut config = self.config.clone();
        if !config.choose_slot || config.firmware == Firmware::Uefi {
            return Ok(config);
        }
        let Some(chosen) = slots::take(&self.toolbox, &config.disk)? else { return Ok(config) };
        let root = |cmdline: &str| {
            cmdline.split("sha256 ").nth(1).and_then(|rest| rest.split(' ').next().map(str::to_owned))
        };
        if root(&chosen.cmdline) != root(&config.cmdline) {
            config.kernel = self.places.kernel();
            fs::write(&config.kernel, &chosen.kernel)
                .with_context(|| format!("cannot write {}", config.kernel.display()))?;
            config.cmdline = chosen.cmdline;
        }
        Ok(config)
    }

    /// A program of the toolbox whose end is tied to ours also where nothing of ours runs any more to end it: after a SIGKILL.
    /// The kernel watches the thread that starts it, which is the one that keeps the machine.
    fn tied(&self, program: &OsStr, log: &str) -> Result<Command> {
        let log = File::options().append(true).open(self.places.folder.join(log))?;
        let mut command = match &self.config.tap {
            Some(tap) => {
                let mut command = self.toolbox.command("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", tap.process)).arg("setpriv");
                command
            }
            None => self.toolbox.command("setpriv"),
        };
        command.args(["--pdeathsig", "KILL"]).arg(program);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.signals == Signals::Apart {
            command.process_group(0);
        }
        Ok(command)
    }
}

fn wait_for_socket(places: &Places, process: &mut Child, socket: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !socket.exists() {
        if let Some(status) = process.try_wait()? {
            let log = |name: &str| tail(&places.folder.join(name), 10);
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
