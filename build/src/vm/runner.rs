//! `cargo caisson run`, `stop` and the way to the API of a machine by its name.

use anyhow::{Context, Result, anyhow, bail};
use apiserver::client::{Endpoint, request_blocking};
use nix::sys::signal::{SigSet, Signal};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::config::{Accelerator, Board, Config, Drive, Firmware, Format};
use super::folder::Folder;
use super::kvm;
use super::machine::{Machine, Signals};
use super::qmp::Qmp;
use crate::artifacts::Artifacts;
use crate::command::tail;
use crate::guest::{self, Rust};
use crate::image;
use crate::kernel;
use crate::project::Project;
use crate::secure_boot::Keys;
use crate::toolbox::{LockPolicy, Toolbox};

const DEFAULT_NAME: &str = "default";

#[derive(Debug, Clone, clap::Args)]
pub struct RunOptions {
    /// A variant: the name of a file in images/
    #[arg(long, default_value = "default")]
    pub variant: String,
    #[arg(long, value_enum, default_value = "direct")]
    pub firmware: Firmware,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Memory, such as 256M or 1G
    #[arg(long, default_value = "256M", value_parser = size)]
    pub memory: u64,
    /// The disk grows to this size, such as 4G
    #[arg(long, default_value = "1G", value_parser = size)]
    pub disk: u64,
    /// Settings in TOML, applied once, at the first boot
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// A further disk that persists, such as scratch=1G
    #[arg(long, value_name = "NAME=SIZE", value_parser = volume)]
    pub volume: Vec<(String, u64)>,
    /// A port of this machine's loopback that leads into the guest
    #[arg(long, value_name = "HOST:GUEST", value_parser = port)]
    pub port: Vec<(u16, u16)>,
    /// Machines are told apart, and persist, by name
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Start anew: settings and data of a machine with this name are lost
    #[arg(long)]
    pub fresh: bool,
    /// Return as soon as the API answers; the machine runs on
    #[arg(long)]
    pub detach: bool,
    /// The guest cannot reach the network
    #[arg(long)]
    pub offline: bool,
    /// The console shows the kernel's messages too (not with --firmware uefi: there the command line is part of the image)
    #[arg(long)]
    pub kernel_messages: bool,
    /// Stop before the first instruction, and wait for gdb
    #[arg(long, conflicts_with = "detach")]
    pub gdb: bool,
}

fn size(text: &str) -> Result<u64, String> {
    let units = [("G", 1u64 << 30), ("M", 1 << 20)];
    let parsed = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*factor));
    parsed
        .filter(|bytes| (64 << 20..=1 << 44).contains(bytes))
        .ok_or_else(|| format!("{text:?} is not a size from 64M up: write 256M or 1G"))
}

fn volume(text: &str) -> Result<(String, u64), String> {
    let (name, bytes) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=SIZE"))?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("{name:?} is not a name for a volume: a-z, 0-9 and '-'"));
    }
    Ok((name.to_owned(), size(bytes)?))
}

fn port(text: &str) -> Result<(u16, u16), String> {
    let parsed =
        text.split_once(':').and_then(|(host, guest)| Some((host.parse().ok()?, guest.parse().ok()?)));
    parsed
        .filter(|(host, guest)| *host > 0 && *guest > 0)
        .ok_or_else(|| format!("{text:?} is not HOST:GUEST, such as 8080:80"))
}

/// Builds what is missing, boots, and stays until the machine ends (or, detached, until it answers).
pub fn run(project: &Project, options: &RunOptions) -> Result<ExitCode> {
    let folder = Folder::of(&options.name)?;
    folder.make()?;
    let Some(running) = folder.lock()? else {
        let client = client_words(&options.name);
        bail!(
            "a machine named {:?} runs already: talk to it with `{client} status`, stop it with `cargo caisson stop {}`, or give this one another --name",
            options.name,
            options.name
        );
    };
    let artifacts = image::build(project, &options.variant, LockPolicy::Newest)?;
    let toolbox = Toolbox::open(project, LockPolicy::Newest)?;
    let vsock =
        guest::vhost_device_vsock(project, &toolbox, &Rust::find(project)?)?.path.join("vhost-device-vsock");
    if options.detach {
        drop(running);
        return detach(&folder, options);
    }
    // Before any other thread exists: one that does not block a signal would take it and end the process.
    let asked = Arc::new(AtomicU32::new(0));
    count_interrupts(asked.clone())?;
    let config = configure(project, &folder, &artifacts, options)?;
    if options.gdb {
        let symbols = kernel::build(project, &toolbox)?.path.join("vmlinux.symbols");
        let socket = folder.path.join("gdb.sock");
        eprintln!(
            "\n  The machine waits for gdb:\n    gdb -ex 'target remote {}' {}",
            socket.display(),
            symbols.display()
        );
    }
    let mut machine = Machine::start(&toolbox, &vsock, &config, folder.path.clone(), Signals::Apart)?;
    let client = client_words(&options.name);
    eprintln!(
        "\n  Booting. From another terminal:\n    {client} status\n    {client} set motd=hello\n    {client} container list\n  Ctrl-C asks it to power off.\n"
    );
    wait_for_end(&mut machine, &asked)?;
    drop(running);
    Ok(ExitCode::SUCCESS)
}

fn client_words(name: &str) -> String {
    if name == DEFAULT_NAME {
        "cargo caisson client".to_owned()
    } else {
        format!("cargo caisson client --name {name}")
    }
}

fn configure(
    project: &Project,
    folder: &Folder,
    artifacts: &Artifacts,
    options: &RunOptions,
) -> Result<Config> {
    if folder.prepare(artifacts, options.fresh, options.disk)? {
        eprintln!(
            "  the image is newer than the disk of {:?}, which boots what it was made from: --fresh starts anew (and loses its data)",
            folder.name
        );
    }
    let accelerator = match kvm::probe() {
        Ok(()) => {
            eprintln!("  KVM runs guests here");
            Accelerator::Kvm
        }
        Err(why) => {
            eprintln!("  software emulation, which is slower: KVM cannot be used, {why}");
            Accelerator::Tcg
        }
    };
    let mut fw_cfg = Vec::new();
    if let Some(user_data) = &options.user_data {
        let text = fs::read(user_data)
            .with_context(|| format!("cannot read the user data {}", user_data.display()))?;
        let copy = folder.path.join("user-data");
        fs::write(&copy, text)?;
        fw_cfg.push(("opt/caisson/user-data".to_owned(), copy));
    }
    let volumes = options
        .volume
        .iter()
        .map(|(name, size)| Ok(Drive { path: folder.volume(name, *size)?, read_only: false }));
    let volumes = volumes.collect::<Result<Vec<_>>>()?;
    let mut cmdline = fs::read_to_string(folder.path.join("cmdline"))?;
    if options.kernel_messages {
        if options.firmware == Firmware::Uefi {
            bail!(
                "--kernel-messages: with --firmware uefi the command line is part of the image; take --firmware direct"
            );
        }
        cmdline = cmdline.split_whitespace().filter(|word| *word != "quiet").collect::<Vec<_>>().join(" ");
    }
    Ok(Config {
        name: folder.name.clone(),
        firmware: options.firmware,
        board: Board::Q35,
        accelerator,
        cpus: options.cpus,
        memory_mib: u32::try_from(options.memory >> 20)?,
        disk: folder.disk(),
        format: Format::Raw,
        drives: volumes,
        kernel: folder.path.join("vmlinux"),
        cmdline: cmdline.trim().to_owned(),
        ports: options.port.clone(),
        guest_forward: None,
        online: !options.offline,
        tap: None,
        fw_cfg,
        console_on_stdout: true,
        keep_memory: false,
        choose_slot: true,
        // Firmware that refuses nothing shows nothing of what is signed.
        secure_boot: options.firmware == Firmware::Uefi && Keys::find(project)?.is_some(),
        no_reboot: false,
        gdb: options.gdb,
        skip_idle_time: false,
        api: true,
        extra: Vec::new(),
    })
}

/// Counts Ctrl-C and SIGTERM instead of dying of them.
fn count_interrupts(count: Arc<AtomicU32>) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(5);

fn wait_for_end(machine: &mut Machine, asked: &AtomicU32) -> Result<()> {
    let (mut deadline, mut pressed_at) = (None, None::<Instant>);
    loop {
        if machine.wait(Duration::from_millis(200)).is_some() {
            return machine
                .failure()
                .map_or(Ok(()), |failure| Err(anyhow!("the machine cannot restart: {failure}")));
        }
        let times = asked.load(Ordering::Relaxed);
        if times == 0 {
            continue;
        }
        let deadline = *deadline.get_or_insert_with(|| {
            eprintln!("\n  asking the guest to power off (Ctrl-C once more switches it off at once)");
            Instant::now() + POWER_OFF_TIMEOUT
        });
        if times > 1 || Instant::now() > deadline {
            eprintln!("\n  switching it off");
            machine.kill();
            return Ok(());
        }
        if pressed_at.is_none_or(|at| at.elapsed() > ASK_AGAIN) && machine.press_power_button().is_ok() {
            pressed_at = Some(Instant::now());
        }
    }
}

const DETACH_TIMEOUT: Duration = Duration::from_secs(180);

/// Starts the same command in the background and waits until its machine answers.
fn detach(folder: &Folder, options: &RunOptions) -> Result<ExitCode> {
    let log_path = folder.path.join("runner.log");
    let log = File::create(&log_path)?;
    let _ = fs::remove_file(folder.path.join("serial.log"));
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    // A session of its own: the end of this terminal is not its end.
    let mut background = Command::new("setsid")
        .arg(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start in the background with setsid (of util-linux)")?;
    let endpoint = Endpoint::Unix(folder.path.join("api.sock"));
    let begun = Instant::now();
    loop {
        if request_blocking(&endpoint, hyper::Method::GET, "/os", Vec::new(), Duration::from_secs(5))
            .is_ok_and(|answer| answer.is_success())
        {
            break;
        }
        if let Some(status) = background.try_wait()? {
            bail!("the machine ended ({status}):\n{}", tail(&log_path, 30));
        }
        if begun.elapsed() > DETACH_TIMEOUT {
            bail!(
                "the API did not answer within {} s; the machine still runs. The end of its console:\n{}",
                DETACH_TIMEOUT.as_secs(),
                tail(&folder.path.join("serial.log"), 30)
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let client = client_words(&options.name);
    eprintln!(
        "  the API answers after {:.1} s\n    {client} status\n    cargo caisson stop {}",
        begun.elapsed().as_secs_f64(),
        options.name
    );
    Ok(ExitCode::SUCCESS)
}

/// Powers a machine off in order; after a time-out without.
pub fn stop(name: &str) -> Result<()> {
    let folder = existing(name)?;
    if !folder.is_running() {
        bail!("the machine {name:?} does not run");
    }
    let socket = folder.path.join("qmp.sock");
    let deadline = Instant::now() + POWER_OFF_TIMEOUT;
    let mut asked_at = Instant::now();
    let mut asked = press_power_button(&socket);
    while folder.is_running() {
        if Instant::now() > deadline {
            eprintln!("  it did not power off within {} s: switching it off", POWER_OFF_TIMEOUT.as_secs());
            let _ = Qmp::connect(&socket)?.execute("quit", &serde_json::json!({}));
            break;
        }
        // A machine that restarts has no QEMU for a moment, and a guest that boots does not see the button yet.
        if asked.is_err() || asked_at.elapsed() > ASK_AGAIN {
            (asked, asked_at) = (press_power_button(&socket), Instant::now());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("  {name} is off");
    Ok(())
}

fn press_power_button(socket: &Path) -> Result<()> {
    Qmp::connect(socket)?.execute("system_powerdown", &serde_json::json!({})).map(drop)
}

/// How to reach the API of a machine.
pub fn endpoint(name: &str) -> Result<Endpoint> {
    let folder = existing(name)?;
    if !folder.is_running() {
        bail!("the machine {name:?} does not run: start it with `cargo caisson run --name {name}`");
    }
    Ok(Endpoint::Unix(folder.path.join("api.sock")))
}

fn existing(name: &str) -> Result<Folder> {
    let folder = Folder::of(name)?;
    if !folder.path.is_dir() {
        let all = Folder::all();
        let known = if all.is_empty() {
            "there is none yet: `cargo caisson run` makes one".to_owned()
        } else {
            format!("there are {}", all.join(", "))
        };
        bail!("there is no machine named {name:?}; {known}");
    }
    Ok(folder)
}
