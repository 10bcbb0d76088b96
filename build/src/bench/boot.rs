//! `cargo caisson bench boot`: how long a node takes from the kernel's start to a running container, and how much memory it
//! needs, beside the same kernel with an init that does nothing.
//!
//! All are booted in turn, run after run, so that a machine whose speed drifts slows all of them. Times "from the kernel" are of
//! the guest's CLOCK_BOOTTIME, which begins early in `start_kernel`; times "from power on" are of the host's clock, from the
//! moment QEMU and its vsock device are started.

use anyhow::{Context, Result, bail, ensure};
use apiserver::agent::{Health, Status};
use apiserver::client::{Endpoint, request_blocking};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use super::{Goal, Summary, goals_table};
use crate::artifacts::{Artifacts, copy_sparse};
use crate::cache::{Entry, Key};
use crate::command::tail;
use crate::guest::{self, GUEST_PACKAGES, Rust};
use crate::project::Project;
use crate::root;
use crate::toolbox::{LockPolicy, Toolbox};
use crate::vm::config::{Accelerator, Board, Config, Firmware, Format};
use crate::vm::kvm;
use crate::vm::machine::{Machine, Signals};

const POLL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a healthy node is left alone before its memory is looked at.
const IDLE: Duration = Duration::from_secs(3);

const USER_DATA: &str = "[settings.containers.bench]\nimage = \"localhost/busybox\"\ncommand = [\"sleep\", \"1000000\"]\nessential = true\n";

/// What issue 2 asks for: API ready, as a multiple of the bare kernel's time to an empty init, on q35 without firmware.
const READY_LIMIT: f64 = 2.5;
/// Memory in use beyond the bare kernel's, in MiB.
const MEMORY_LIMIT: f64 = 48.0;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long, default_value = "default")]
    pub variant: String,
    /// Boots of each kind
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// MiB of memory
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(96..=65536))]
    pub memory: u32,
}

/// Everything in milliseconds and KiB.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Boots {
    pub bench: &'static str,
    pub accelerator: &'static str,
    pub runs: u32,
    pub cpus: u32,
    pub memory_mib: u32,
    /// The same kernel with an empty init.
    pub bare: BTreeMap<&'static str, Bare>,
    pub nodes: BTreeMap<&'static str, Node>,
    pub goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bare {
    pub kernel_to_init_ms: Summary,
    pub power_to_init_ms: Summary,
    pub memory_used_kib: Summary,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    pub kernel_to_init_ms: Summary,
    pub kernel_to_api_ms: Summary,
    pub kernel_to_container_ms: Summary,
    /// Until PID 1 says on the console that the API is ready.
    pub power_to_api_ms: Summary,
    pub memory_used_kib: Summary,
}

struct Kind {
    name: &'static str,
    firmware: Firmware,
    bare: bool,
    samples: Vec<Sample>,
}

#[derive(Default, Clone, Copy)]
struct Sample {
    kernel_to_init: u64,
    kernel_to_api: u64,
    kernel_to_container: u64,
    power_to_api: u64,
    memory_used: u64,
}

/// What every boot needs.
struct Lab {
    toolbox: Toolbox,
    vhost_device_vsock: PathBuf,
    artifacts: Artifacts,
    empty_root: Entry,
    accelerator: Accelerator,
    cpus: u32,
    memory_mib: u32,
}

/// Boots everything `runs` times and tells progress.
pub fn measure(project: &Project, artifacts: &Artifacts, options: &Options) -> Result<Boots> {
    let toolbox = Toolbox::open(project, LockPolicy::Newest)?;
    let rust = Rust::find(project)?;
    let accelerator = kvm::probe().map_or(Accelerator::Tcg, |()| Accelerator::Kvm);
    let lab = Lab {
        vhost_device_vsock: guest::vhost_device_vsock(project, &toolbox, &rust)?
            .path
            .join("vhost-device-vsock"),
        empty_root: empty_root(project, &toolbox, &rust)?,
        toolbox: toolbox.with_share(&artifacts.dir),
        artifacts: artifacts.clone(),
        accelerator,
        cpus: options.cpus,
        memory_mib: options.memory,
    };
    let kind = |name, firmware, bare| Kind { name, firmware, bare, samples: Vec::new() };
    let mut kinds = [
        kind("direct", Firmware::Direct, true),
        kind("microvm", Firmware::Microvm, true),
        kind("direct", Firmware::Direct, false),
        kind("microvm", Firmware::Microvm, false),
        kind("uefi", Firmware::Uefi, false),
    ];
    for run in 1..=options.runs {
        for kind in &mut kinds {
            let folder = tempfile::Builder::new().prefix("caisson-bench-").tempdir_in("/tmp")?;
            let booted = if kind.bare {
                lab.boot_bare(kind.firmware, &folder)
            } else {
                lab.boot_node(kind.firmware, &folder)
            };
            let sample = booted.with_context(|| {
                let console = tail(&folder.path().join("serial.log"), 20);
                format!("boot {run} of {}: the end of its console:\n{console}", kind.name)
            })?;
            kind.samples.push(sample);
        }
        eprintln!("  run {run} of {}", options.runs);
    }
    let accelerator = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    summarise(&kinds, options, accelerator)
}

fn summarise(kinds: &[Kind], options: &Options, accelerator: &'static str) -> Result<Boots> {
    let (mut bare, mut nodes) = (BTreeMap::new(), BTreeMap::new());
    for kind in kinds {
        let of = |field: fn(&Sample) -> u64| {
            Summary::of(kind.samples.iter().map(field).collect()).context("nothing was measured")
        };
        let kernel_to_init_ms = of(|sample| sample.kernel_to_init)?;
        let power_to_api_ms = of(|sample| sample.power_to_api)?;
        let memory_used_kib = of(|sample| sample.memory_used)?;
        if kind.bare {
            let power_to_init_ms = power_to_api_ms;
            bare.insert(kind.name, Bare { kernel_to_init_ms, power_to_init_ms, memory_used_kib });
        } else {
            let node = Node {
                kernel_to_init_ms,
                kernel_to_api_ms: of(|sample| sample.kernel_to_api)?,
                kernel_to_container_ms: of(|sample| sample.kernel_to_container)?,
                power_to_api_ms,
                memory_used_kib,
            };
            nodes.insert(kind.name, node);
        }
    }
    let empty = bare.get("direct").context("nothing bare was measured")?;
    let direct = nodes.get("direct").context("no node was measured")?;
    let ratio = |a: Summary, b: Summary| a.median as f64 / b.median.max(1) as f64;
    let beyond = direct.memory_used_kib.median.saturating_sub(empty.memory_used_kib.median) as f64 / 1024.0;
    let goals = vec![
        Goal::new(
            "API ready / bare kernel's empty init, from the kernel",
            ratio(direct.kernel_to_api_ms, empty.kernel_to_init_ms),
            READY_LIMIT,
        ),
        Goal::new(
            "API ready / bare kernel's empty init, from power on",
            ratio(direct.power_to_api_ms, empty.power_to_init_ms),
            READY_LIMIT,
        ),
        Goal::new("idle memory beyond the bare kernel's, MiB", beyond, MEMORY_LIMIT),
    ];
    let Options { runs, cpus, memory: memory_mib, .. } = *options;
    Ok(Boots { bench: "boot", accelerator, runs, cpus, memory_mib, bare, nodes, goals })
}

impl Lab {
    fn machine(
        &self,
        firmware: Firmware,
        folder: &TempDir,
        disk: PathBuf,
        cmdline: String,
    ) -> Result<Machine> {
        let mut fw_cfg = Vec::new();
        let user_data = folder.path().join("user-data");
        fs::write(&user_data, USER_DATA)?;
        fw_cfg.push(("opt/caisson/user-data".to_owned(), user_data));
        let config = Config {
            name: "bench".to_owned(),
            firmware,
            board: Board::Q35,
            accelerator: self.accelerator,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            disk,
            format: Format::Raw,
            drives: Vec::new(),
            kernel: self.artifacts.vmlinux(),
            cmdline,
            ports: Vec::new(),
            guest_forward: None,
            online: false,
            tap: None,
            fw_cfg,
            console_on_stdout: false,
            keep_memory: false,
            choose_slot: false,
            secure_boot: false,
            no_reboot: true,
            gdb: false,
            skip_idle_time: false,
            api: true,
            extra: Vec::new(),
        };
        let folder = folder.path().to_owned();
        let toolbox = self.toolbox.clone().with_share(&folder);
        Machine::start(&toolbox, &self.vhost_device_vsock, &config, folder, Signals::Shared)
    }

    fn boot_node(&self, firmware: Firmware, folder: &TempDir) -> Result<Sample> {
        let disk = folder.path().join("disk.img");
        copy_sparse(&self.artifacts.disk(), &disk)?;
        let cmdline = fs::read_to_string(self.artifacts.cmdline())?.trim().to_owned();
        let begun = Instant::now();
        let machine = self.machine(firmware, folder, disk, cmdline)?;
        wait_for_line(&machine, "apiserver: ready")?;
        let power_to_api = millis(begun.elapsed());
        let healthy = wait_until_healthy(&machine)?;
        std::thread::sleep(IDLE);
        let idle = status(&machine).context("the node does not tell its status any more")?;
        let phase = |name: &str| {
            let found = healthy.boot_phases.iter().find(|(phase, _)| phase == name);
            found.map(|(_, at)| *at).with_context(|| format!("the node does not tell when {name:?} was over"))
        };
        Ok(Sample {
            kernel_to_init: phase("init")?,
            kernel_to_api: phase("service apiserver")?,
            kernel_to_container: phase("container bench")?,
            power_to_api,
            memory_used: idle.memory_total_kib.saturating_sub(idle.memory_available_kib),
        })
    }

    fn boot_bare(&self, firmware: Firmware, folder: &TempDir) -> Result<Sample> {
        let disk = folder.path().join("disk.img");
        fs::copy(self.empty_root.path.join("root.erofs"), &disk)?;
        let cmdline = "console=ttyS0 quiet panic=10 root=/dev/vda ro init=/init".to_owned();
        let begun = Instant::now();
        let machine = self.machine(firmware, folder, disk, cmdline)?;
        wait_for_line(&machine, "empty-init: started")?;
        let power_to_init = millis(begun.elapsed());
        let line = wait_for_line(&machine, "empty-init: idle")?;
        // "empty-init: idle started_ms=… total_kib=… available_kib=…"
        let field = |name: &str| -> Result<u64> {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).with_context(|| format!("{line:?} has no {name}"))
        };
        Ok(Sample {
            kernel_to_init: field("started_ms")?,
            power_to_api: power_to_init,
            memory_used: field("total_kib")?.saturating_sub(field("available_kib")?),
            ..Sample::default()
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The whole line of the console that holds `text`.
fn wait_for_line(machine: &Machine, text: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let console = fs::read(machine.places.serial_log()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        // A line that is whole: its end is there too.
        if let Some(line) =
            console.split_inclusive('\n').find(|line| line.contains(text) && line.ends_with('\n'))
        {
            return Ok(line.trim_end().to_owned());
        }
        ensure!(machine.try_wait().is_none(), "the machine ended before its console said {text:?}");
        ensure!(Instant::now() < deadline, "{text:?} is not on the console after {} s", PATIENCE.as_secs());
        std::thread::sleep(POLL);
    }
}

fn status(machine: &Machine) -> Option<Status> {
    let endpoint = Endpoint::Unix(machine.places.api());
    let patience = Duration::from_secs(5);
    let answer =
        request_blocking(&endpoint, hyper::Method::GET, "/?prefix=status", Vec::new(), patience).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    serde_json::from_value(value.get("status")?.clone()).ok()
}

fn wait_until_healthy(machine: &Machine) -> Result<Status> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match status(machine) {
            Some(status) if status.health == Health::Healthy => return Ok(status),
            // Asking often would be measured too.
            status => last = status.or(last),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("the node is not healthy after {} s; it said last: {last:?}", PATIENCE.as_secs())
}

/// A root file system with nothing but an init that does nothing.
fn empty_root(project: &Project, toolbox: &Toolbox, rust: &Rust) -> Result<Entry> {
    let package = GUEST_PACKAGES.iter().find(|package| package.package == "caisson-init");
    let init = guest::build(project, toolbox, rust, package.context("there is no package caisson-init")?)?;
    let key = Key::new("empty root 1").text(&toolbox.id).entry(&init);
    project.cache.step("empty-root", "a root with an init that does nothing", key, |out| {
        let tree = out.join("tree");
        for folder in ["dev", "proc"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        let program: &Path = &init.path.join("empty-init");
        fs::copy(program, tree.join("init")).with_context(|| format!("cannot read {}", program.display()))?;
        root::erofs(toolbox, &tree, &out.join("root.erofs"))
    })
}

pub fn table(boots: &Boots) -> String {
    let mut text = format!(
        "{} boots each, {} CPU, {} MiB, {}; medians (smallest to largest), in ms\n\n",
        boots.runs, boots.cpus, boots.memory_mib, boots.accelerator
    );
    let cell = |summary: &Summary| format!("{} ({}-{})", summary.median, summary.min, summary.max);
    text.push_str(&format!(
        "{:<15} {:>19} {:>19} {:>19} {:>20} {:>10}\n",
        "", "KERNEL TO INIT", "KERNEL TO API", "TO CONTAINER", "POWER ON TO API", "USED KiB"
    ));
    for (name, bare) in &boots.bare {
        text.push_str(&format!(
            "{:<15} {:>19} {:>19} {:>19} {:>20} {:>10}\n",
            format!("bare {name}"),
            cell(&bare.kernel_to_init_ms),
            "-",
            "-",
            cell(&bare.power_to_init_ms),
            bare.memory_used_kib.median
        ));
    }
    for (name, node) in &boots.nodes {
        text.push_str(&format!(
            "{name:<15} {:>19} {:>19} {:>19} {:>20} {:>10}\n",
            cell(&node.kernel_to_init_ms),
            cell(&node.kernel_to_api_ms),
            cell(&node.kernel_to_container_ms),
            cell(&node.power_to_api_ms),
            node.memory_used_kib.median
        ));
    }
    text.push_str("\n(bare: the same kernel with an empty init; its POWER ON TO API is to that init)\n\n");
    text + &goals_table(&boots.goals)
}
