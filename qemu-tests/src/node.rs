//! One virtual machine, from its first boot to the look at its powered-off disk.

use anyhow::Context;
use apiserver::agent::Health;
use apiserver::client::Answer;
use build::artifacts::copy_sparse;
use build::command::{run_quiet, tail};
use build::inspect::Disk;
use build::vm::config::{self as vm, Accelerator, Drive, Format};
use build::vm::machine::{Machine, Signals};
use hyper::Method;
use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::bench::bench;
use crate::config::{Config, UserData};
use crate::sweep;

/// How long a boot may take: five seconds on an idle machine, and CI machines are not idle.
const BOOT: Duration = Duration::from_secs(90);
pub(crate) const REQUEST: Duration = Duration::from_secs(60);
const POWER_OFF: Duration = Duration::from_secs(60);

/// Between two looks at a node. Where its processor is emulated each takes time that it needs for what is waited for, so they get rarer.
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_millis(400);

/// Looks again and again, until patience is at its end.
pub(crate) struct Wait {
    begun: Instant,
    patience: Duration,
}

impl Wait {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { begun: Instant::now(), patience }
    }

    /// Sleeps until the next look; `false` when there is to be none.
    pub(crate) fn pause(&self) -> bool {
        let gone = self.begun.elapsed();
        std::thread::sleep((gone / 8).clamp(OFTEN, SELDOM));
        gone < self.patience
    }
}

/// A machine of its own, with its disk. Dropped, it is switched off and its disk is gone; dropped by a panic, it shows the end
/// of its console first.
pub struct Node {
    pub config: Config,
    folder: TempDir,
    machine: Option<Machine>,
}

impl Node {
    /// A machine with a new disk, switched off.
    #[track_caller]
    pub fn new(config: Config) -> Self {
        // In /tmp, whatever TMPDIR says: the path of a socket has at most 108 bytes.
        let folder = tempfile::Builder::new().prefix("caisson-").tempdir_in("/tmp");
        let node = Self { config, folder: folder.expect("a folder in /tmp"), machine: None };
        copy_sparse(&bench().artifacts.disk(), &node.disk_path()).expect("a copy of the disk");
        if let Some(size) = node.config.disk_size {
            node.resize(size);
        }
        node
    }

    /// A new machine whose API answers.
    #[track_caller]
    pub fn boot(config: Config) -> Self {
        let mut node = Self::new(config);
        node.start();
        node.wait_for_api();
        node
    }

    /// A new machine that says it is healthy.
    #[track_caller]
    pub fn boot_healthy(config: Config) -> Self {
        let node = Self::boot(config);
        node.wait_until_healthy();
        node
    }

    /// Switches the machine on, and waits for nothing.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.machine.is_none(), "the machine is on already");
        let bench = bench();
        let mut drives = self.config.drives.clone();
        let mut fw_cfg = Vec::new();
        match &self.config.user_data {
            Some(UserData::FwCfg(content)) => {
                let path = self.path("user-data");
                fs::write(&path, content).expect("the user data");
                fw_cfg.push(("opt/caisson/user-data".to_owned(), path));
            }
            Some(UserData::Disk(path)) => drives.push(Drive { path: path.clone(), read_only: true }),
            None => {}
        }
        for (number, (name, content)) in self.config.fw_cfg.iter().enumerate() {
            let path = self.path(&format!("fw-cfg-{number}"));
            fs::write(&path, content).expect("a file for fw_cfg");
            fw_cfg.push((name.clone(), path));
        }
        let mut disk = self.disk_path();
        if self.config.format == Format::Qcow2 {
            disk = self.overlay();
            qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b"], &[&self.disk_path(), &disk]);
        }
        if self.config.format == Format::Recorded && !self.record().exists() {
            fs::write(self.record(), sweep::EMPTY_RECORD).expect("a record of the disk's writes");
        }
        let machine = vm::Config {
            name: "test".to_owned(),
            firmware: self.config.firmware,
            board: self.config.board,
            accelerator: if self.config.skip_idle_time { Accelerator::Tcg } else { bench.accelerator },
            cpus: self.config.cpus,
            memory_mib: self.config.memory_mib,
            disk,
            format: self.config.format,
            drives,
            kernel: self.config.kernel.clone().unwrap_or_else(|| bench.artifacts.vmlinux()),
            cmdline: self.config.cmdline.clone().unwrap_or_else(|| bench.cmdline.clone()),
            ports: self.config.ports.clone(),
            guest_forward: self.config.guest_forward.clone(),
            online: false,
            tap: self.config.tap.clone(),
            fw_cfg,
            console_on_stdout: false,
            keep_memory: self.config.keep_memory,
            choose_slot: self.config.choose_slot,
            secure_boot: self.config.secure_boot,
            no_reboot: false,
            gdb: false,
            skip_idle_time: self.config.skip_idle_time,
            api: self.config.api,
            extra: self.config.extra.clone(),
        };
        let folder = self.folder.path().to_owned();
        let started = Machine::start(
            &bench.toolbox.clone().with_share(&folder),
            &bench.vhost_device_vsock,
            &machine,
            folder,
            Signals::Shared,
        );
        self.machine = Some(started.unwrap_or_else(|error| panic!("QEMU does not start: {error:#}")));
    }

    /// Polls until `look` finds what the story waits for.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: impl Display,
        patience: Duration,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        let wait = Wait::new(patience);
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(wait.pause(), "{what}: not within {} s", patience.as_secs());
        }
    }

    #[track_caller]
    pub fn wait_for_api(&self) {
        self.wait_for("the API answers", BOOT, |node| {
            let answer = node.request_within(Duration::from_secs(5), Method::GET, "/os", "");
            answer.ok().filter(Answer::is_success)
        });
    }

    #[track_caller]
    pub fn wait_until_healthy(&self) {
        let mut last = String::new();
        let healthy = |node: &Self| {
            let status = node.try_status();
            last = format!("{status:?}");
            status.filter(|status| status.health == Health::Healthy).map(drop)
        };
        let wait = Wait::new(BOOT);
        let mut look = healthy;
        while look(self).is_none() {
            assert!(wait.pause(), "the node is not healthy within {} s: {last}", BOOT.as_secs());
        }
    }

    #[track_caller]
    pub fn wait_for_console(&self, text: &str) {
        self.wait_for(format!("{text:?} on the console"), BOOT, |node| {
            node.console().contains(text).then_some(())
        });
    }

    /// An orderly reboot, asked for through the API, until the API answers again.
    #[track_caller]
    pub fn reboot(&self) {
        const SAID: &str = "Restarting system";
        let before = self.console().matches(SAID).count();
        self.granted(Method::POST, "/actions/reboot", "");
        self.wait_for("the kernel restarts", POWER_OFF, |node| {
            (node.console().matches(SAID).count() > before).then_some(())
        });
        self.wait_for_api();
    }

    /// Presses the power button and waits for the orderly end.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.machine().press_power_button().unwrap_or_else(|error| panic!("no power button: {error:#}"));
        self.wait_for_end();
    }

    /// Waits until the machine has switched itself off.
    #[track_caller]
    pub fn wait_for_end(&mut self) {
        let machine = self.machine.as_mut().expect("the machine is off");
        let ended = machine.wait(POWER_OFF);
        assert!(ended.is_some(), "the machine has not switched itself off within {} s", POWER_OFF.as_secs());
        self.settle();
    }

    /// Cuts the power: QEMU is killed. What that loses is up to the disk's [`Format`].
    #[track_caller]
    pub fn cut_power(&mut self) {
        self.machine.as_mut().expect("the machine is off").kill();
        self.settle();
    }

    /// Cuts the power of a machine whose disk is [`Format::Recorded`], as the strictest disk there may be: nothing is left of what
    /// was not flushed. `before` is the disk as it was when the record began.
    #[track_caller]
    pub fn cut_power_of_cache(&mut self, before: &Path) {
        self.cut_power();
        let rebuilt = sweep::rebuild(before, &self.record(), &self.disk_path());
        eprintln!(
            "the cut disk has {}",
            rebuilt.unwrap_or_else(|error| panic!("the disk after the cut: {error:#}"))
        );
    }

    /// Cuts the power later, whatever the story does then; [`Node::wait_for_end`] returns after it.
    #[track_caller]
    pub fn cut_power_after(&self, delay: Duration) {
        let switch = self.machine().power_switch();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            switch.off();
        });
    }

    fn settle(&mut self) {
        self.machine = None;
        if self.config.format == Format::Qcow2 {
            qemu_img(&["commit", "-q"], &[&self.overlay()]);
            fs::remove_file(self.overlay()).expect("an overlay to remove");
        }
    }

    #[track_caller]
    fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("the machine is off")
    }

    /// All that the serial console has shown since the machine was switched on.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("serial.log")).unwrap_or_default()).into_owned()
    }

    /// Changes the kernel image of a version on the ESP of a machine that is off, under the name that it has.
    #[track_caller]
    pub fn replace_entry(&self, version: &str, change: impl FnOnce(&mut [u8])) {
        let replace = || -> anyhow::Result<()> {
            let disk = self.disk();
            let entries = disk.boot_entries()?;
            let entry = entries.iter().find(|entry| entry.version == version).context("no such entry")?;
            let mut image = disk.read("esp", &entry.path)?;
            change(&mut image);
            let changed = self.path("changed.efi");
            fs::write(&changed, image)?;
            let esp = format!("{}@@{}", self.disk_path().display(), disk.partition("esp")?.start);
            let mut copy = bench().toolbox.clone().with_share(self.folder.path()).command("mcopy");
            copy.args(["-o", "-i", &esp]).arg(changed).arg(format!("::{}", entry.path));
            run_quiet(&mut copy, "changing an entry")?;
            Ok(())
        };
        replace().unwrap_or_else(|error| panic!("the entry of {version}: {error:#}"));
    }

    /// Writes a file of the state partition of a machine that is off.
    #[track_caller]
    pub fn write_to_state(&self, path: &str, content: &str) {
        let write = || -> anyhow::Result<()> {
            let (from, commands) = (self.path("content"), self.path("commands"));
            fs::write(&from, content)?;
            let folders = path.match_indices('/').skip(1).map(|(at, _)| format!("mkdir {}\n", &path[..at]));
            let text = folders.chain([format!("write {} {path}\n", from.display())]).collect::<String>();
            fs::write(&commands, text)?;
            let start = self.disk().partition("state")?.start;
            let mut debugfs = bench().toolbox.clone().with_share(self.folder.path()).command("debugfs");
            debugfs.args(["-w", "-f"]).arg(&commands);
            debugfs.arg(format!("{}?offset={start}", self.disk_path().display()));
            run_quiet(&mut debugfs, "writing to the state partition")?;
            Ok(())
        };
        write().unwrap_or_else(|error| panic!("{path} of the state partition: {error:#}"));
        assert_eq!(self.file("state", path), content);
    }

    /// A file in this node's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn disk_path(&self) -> PathBuf {
        self.path("disk.img")
    }

    /// What was written to the disk, where that is [`Format::Recorded`].
    pub fn record(&self) -> PathBuf {
        Format::record(&self.disk_path())
    }

    fn overlay(&self) -> PathBuf {
        self.path("disk.qcow2")
    }

    /// The disk of a machine that is off.
    #[track_caller]
    pub fn disk(&self) -> Disk {
        assert!(self.machine.is_none(), "the disk of a running machine is not to be looked at");
        Disk::open(&self.disk_path()).unwrap_or_else(|error| panic!("the disk: {error:#}"))
    }

    /// What a file on the disk of a machine that is off holds.
    #[track_caller]
    pub fn file(&self, partition: &str, path: &str) -> String {
        let content = self.disk().read(partition, path).unwrap_or_else(|error| panic!("{error:#}"));
        String::from_utf8_lossy(&content).into_owned()
    }

    /// Gives the disk of a machine that is off another size.
    #[track_caller]
    pub fn resize(&self, size: u64) {
        assert!(self.machine.is_none(), "the disk of a running machine keeps its size");
        let disk = File::options().write(true).open(self.disk_path()).expect("the disk");
        disk.set_len(size).expect("another size of the disk");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let end = |name: &str, lines| tail(&self.path(name), lines);
            eprintln!("---- the console's end\n{}", end("serial.log", 80));
            eprintln!("---- QEMU and its vsock device\n{}{}", end("qemu.log", 10), end("vsock.log", 10));
        }
    }
}

fn qemu_img(arguments: &[&str], files: &[&Path]) {
    let mut command = bench().toolbox.command("qemu-img");
    command.args(arguments).args(files);
    run_quiet(&mut command, "qemu-img").unwrap_or_else(|error| panic!("{error:#}"));
}
