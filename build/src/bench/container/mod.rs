//! `cargo caisson bench container`: Caisson beside other container runtimes, in one guest and one run.
//!
//! The guest is a node. In a superpowered host container of it runs a driver (`build/container-bench`), and beside that Debian's
//! containerd with runc, podman with crun, and bare crun and youki. All start the same image with the node's network, a seccomp profile
//! and the node's data partition below, turn by turn; a start is over when the container's own program has told the time.

mod disk;

use anyhow::{Context, Result, bail, ensure};
use apiserver::client::{Answer, Endpoint, request_blocking};
use hyper::Method;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use super::{Goal, goals_table};
use crate::artifacts::{Artifacts, copy_sparse};
use crate::command::tail;
use crate::guest::{self, CONTAINER_BENCH, Rust};
use crate::project::Project;
use crate::toolbox::{LockPolicy, Set, Toolbox};
use crate::vm::config::{Accelerator, Board, Config, Drive, Firmware, Format};
use crate::vm::kvm;
use crate::vm::machine::{Machine, Signals};

const DISK: u64 = 8 << 30;
const PATIENCE: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_secs(5);
const REGISTRY: &str = "127.0.0.1:5000";

/// The container that the driver runs in. The second disk is not mounted by the node.
const SCRIPT: &str = "\
mknod /dev/rivals b $(sed 's/:/ /' /sys/class/block/vdb/dev) && mkdir -p /mnt/rivals && \
mount -t ext4 /dev/rivals /mnt/rivals && exec /mnt/rivals/bench/container-bench --tree /mnt/rivals";

/// What issue 5 asks for. The first is of `start` and `new`, beside bare youki; the second of every row, beside containerd and podman.
const BARE_LIMIT: f64 = 1.3;
const RIVAL_LIMIT: f64 = 1.0;
/// MiB, of agent and shims beside 20 containers.
const RESIDENT_LIMIT: f64 = 24.0;
/// KiB, of one container beyond its own process.
const EACH_LIMIT: f64 = 1536.0;

const ENGINES: [&str; 5] = ["caisson", "containerd", "podman", "crun", "youki"];

/// Rows of the table, in its order: key, title, and what the figures are in.
const ROWS: [(&str, &str); 7] = [
    ("cold", "pull and start, ms"),
    ("new", "new container, ms"),
    ("start", "start of a stopped one, ms"),
    ("stop", "stop, ms"),
    ("many", "all at once, ms"),
    ("memory-of-programs", "memory of programs, each, KiB"),
    ("memory-of-node", "memory of the node, each, KiB"),
];

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long, default_value = "default")]
    pub variant: String,
    /// How often each is done
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub rounds: u32,
    /// Containers that are started at once
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub many: u32,
    /// How often they are
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub rounds_of_many: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// MiB of memory
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1024..=65536))]
    pub memory: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Figures {
    pub bench: &'static str,
    pub accelerator: &'static str,
    pub rounds: u32,
    pub many: u32,
    pub rounds_of_many: u32,
    pub cpus: u32,
    pub memory_mib: u32,
    /// By row, then by runtime. In milliseconds and KiB.
    pub rows: BTreeMap<String, BTreeMap<String, Spread>>,
    pub goals: Vec<Goal>,
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no values. Of an even number the median is the higher of the two in the middle.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Self { median: values[values.len() / 2], min, max })
    }
}

/// A line of the driver.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Line {
    Figure { row: String, who: String, value: f64 },
    Progress { progress: String },
    Error { error: String },
    Done { done: bool },
}

pub fn measure(project: &Project, artifacts: &Artifacts, options: &Options) -> Result<Figures> {
    let toolbox = Toolbox::open(project, LockPolicy::Newest)?;
    let rivals = Toolbox::open_set(project, Set::Runtimes, LockPolicy::Newest)?;
    let rust = Rust::find(project)?;
    let driver = guest::build(project, &toolbox, &rust, &CONTAINER_BENCH)?;
    let vsock = guest::vhost_device_vsock(project, &toolbox, &rust)?.path.join("vhost-device-vsock");
    let second = disk::build(project, &toolbox, &rivals, &driver, options.rounds)?;

    let folder = tempfile::Builder::new().prefix("caisson-bench-").tempdir_in("/tmp")?;
    let path = |name: &str| folder.path().join(name);
    copy_sparse(&artifacts.disk(), &path("disk.img"))?;
    File::options().write(true).open(path("disk.img"))?.set_len(DISK)?;
    copy_sparse(&second.path.join("disk.ext4"), &path("rivals.img"))?;
    fs::write(path("user-data"), user_data(options))?;
    fs::write(path("insecure"), REGISTRY)?;
    let accelerator = kvm::probe().map_or(Accelerator::Tcg, |()| Accelerator::Kvm);
    let config = Config {
        name: "bench".to_owned(),
        firmware: Firmware::Direct,
        board: Board::Q35,
        accelerator,
        cpus: options.cpus,
        memory_mib: options.memory,
        disk: path("disk.img"),
        format: Format::Raw,
        drives: vec![Drive { path: path("rivals.img"), read_only: false }],
        kernel: artifacts.vmlinux(),
        cmdline: fs::read_to_string(artifacts.cmdline())?.trim().to_owned(),
        ports: Vec::new(),
        guest_forward: None,
        online: false,
        tap: None,
        fw_cfg: vec![
            ("opt/caisson/user-data".to_owned(), path("user-data")),
            ("opt/caisson/insecure-registries".to_owned(), path("insecure")),
        ],
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
    let share = toolbox.with_share(&artifacts.dir).with_share(folder.path());
    let machine = Machine::start(&share, &vsock, &config, folder.path().to_owned(), Signals::Shared)?;
    let figures = follow(&machine)
        .with_context(|| format!("the end of its console:\n{}", tail(&machine.places.serial_log(), 20)))?;
    let rows = rows(figures);
    let accelerator = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let goals = goals(&rows);
    let Options { rounds, many, rounds_of_many, cpus, memory: memory_mib, .. } = *options;
    Ok(Figures {
        bench: "container",
        accelerator,
        rounds,
        many,
        rounds_of_many,
        cpus,
        memory_mib,
        rows,
        goals,
    })
}

fn user_data(options: &Options) -> String {
    let Options { rounds, many, rounds_of_many, .. } = options;
    let script = format!("{SCRIPT} --rounds {rounds} --many {many} --rounds-of-many {rounds_of_many}");
    format!(
        "[settings.host-containers.bench]\nsource = \"localhost/busybox\"\nenabled = true\nsuperpowered = true\n\
         command = [\"sh\", \"-c\", \"\"\"{script}\"\"\"]\n"
    )
}

/// All figures of the driver, as its log has them.
fn follow(machine: &Machine) -> Result<Vec<(String, String, f64)>> {
    let endpoint = Endpoint::Unix(machine.places.api());
    let begun = Instant::now();
    let mut told = 0;
    loop {
        std::thread::sleep(LOOK);
        ensure!(machine.try_wait().is_none(), "the machine ended by itself");
        ensure!(begun.elapsed() < PATIENCE, "the bench did not end within {} s", PATIENCE.as_secs());
        let uri = "/containers/host-containers.bench/logs";
        let answer = request_blocking(&endpoint, Method::GET, uri, Vec::new(), LOOK);
        // There may be no such container yet.
        let Some(answer) = answer.ok().filter(Answer::is_success) else { continue };
        let mut figures = Vec::new();
        for (number, line) in answer.text().lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(Line::Figure { row, who, value }) => figures.push((row, who, value)),
                Ok(Line::Progress { progress }) if number >= told => {
                    eprintln!("  {progress} ({} s)", begun.elapsed().as_secs());
                    told = number + 1;
                }
                Ok(Line::Progress { .. }) => {}
                Ok(Line::Error { error }) => bail!("the driver in the guest: {error}"),
                Ok(Line::Done { .. }) => return Ok(figures),
                Err(_) => bail!("the driver in the guest said {line:?}"),
            }
        }
    }
}

fn rows(figures: Vec<(String, String, f64)>) -> BTreeMap<String, BTreeMap<String, Spread>> {
    let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for (row, who, value) in figures {
        values.entry((row, who)).or_default().push(value);
    }
    let mut rows: BTreeMap<String, BTreeMap<String, Spread>> = BTreeMap::new();
    for ((row, who), values) in values {
        if let Some(spread) = Spread::of(values) {
            rows.entry(row).or_default().insert(who, spread);
        }
    }
    rows
}

fn goals(rows: &BTreeMap<String, BTreeMap<String, Spread>>) -> Vec<Goal> {
    let median = |row: &str, who: &str| Some(rows.get(row)?.get(who)?.median);
    // What was not measured is not reached.
    let ratio = |row: &str, who: &str| match (median(row, "caisson"), median(row, who)) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => ours / theirs,
        _ => f64::INFINITY,
    };
    let mut goals =
        vec![Goal::new("start of a stopped one / bare youki's", ratio("start", "youki"), BARE_LIMIT)];
    for (row, title) in ROWS {
        let title = title.split(',').next().unwrap_or(title);
        for rival in ["containerd", "podman"] {
            goals.push(Goal::new(format!("{title} / {rival}'s"), ratio(row, rival), RIVAL_LIMIT));
        }
    }
    let ours = |row: &str| median(row, "caisson").unwrap_or(f64::INFINITY);
    let resident = (ours("agent-pss") + ours("shims-pss")) / 1024.0;
    goals.push(Goal::new("agent and shims beside 20 containers, MiB", resident, RESIDENT_LIMIT));
    goals.push(Goal::new(
        "memory of the node for an idle container, KiB",
        ours("memory-of-node"),
        EACH_LIMIT,
    ));
    goals
}

pub fn table(figures: &Figures) -> String {
    let Figures { rounds, many, rounds_of_many, cpus, memory_mib, accelerator, .. } = figures;
    let mut text = format!(
        "{rounds} rounds, {many} at once in {rounds_of_many}; {cpus} CPUs, {memory_mib} MiB, {accelerator}; medians (smallest to largest)\n\n{:<30}",
        ""
    );
    for engine in ENGINES {
        let _ = write!(text, " {:>22}", engine.to_uppercase());
    }
    text.push('\n');
    for (row, title) in ROWS {
        let _ = write!(text, "{title:<30}");
        for engine in ENGINES {
            let spread = figures.rows.get(row).and_then(|row| row.get(engine));
            let cell = spread.map_or("n/a".to_owned(), |Spread { median, min, max }| {
                format!("{median:.0} ({min:.0}-{max:.0})")
            });
            let _ = write!(text, " {cell:>22}");
        }
        text.push('\n');
    }
    for (row, title) in [
        ("agent-pss", "agent beside 20 containers, KiB (PSS)"),
        ("shims-pss", "their shims, KiB (PSS)"),
        ("agent-rss", "agent, KiB (RSS)"),
        ("shims-rss", "shims, KiB (RSS, pages of all counted for each)"),
    ] {
        if let Some(spread) = figures.rows.get(row).and_then(|row| row.get("caisson")) {
            let _ = writeln!(text, "{title:<50} {:>8.0}", spread.median);
        }
    }
    text.push_str(
        "\nA start is from the command or the API's call until the container's program tells the time; a stop until the command\n\
         has ended, or the API says so. Bare runtimes pull nothing, have their bundles and mounts made before, and no log.\n\n",
    );
    text + &goals_table(&figures.goals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(row: &str, who: &str, value: f64) -> (String, String, f64) {
        (row.to_owned(), who.to_owned(), value)
    }

    #[test]
    fn lines_of_the_driver_are_known() {
        let line = |text: &str| serde_json::from_str::<Line>(text).unwrap();
        let expected = Line::Figure { row: "new".to_owned(), who: "crun".to_owned(), value: 1.5 };
        assert_eq!(line(r#"{"row": "new", "who": "crun", "value": 1.5}"#), expected);
        assert_eq!(line(r#"{"error": "no"}"#), Line::Error { error: "no".to_owned() });
        assert_eq!(line(r#"{"done": true}"#), Line::Done { done: true });
        assert!(serde_json::from_str::<Line>("sh: not found").is_err());
    }

    /// Whoever is slower, or was not measured, has missed the goal.
    #[test]
    fn goals_are_ratios_of_medians() {
        let mut all = Vec::new();
        for (row, _) in ROWS {
            all.extend([
                figure(row, "caisson", 9.0),
                figure(row, "caisson", 10.0),
                figure(row, "caisson", 11.0),
            ]);
            all.extend([figure(row, "containerd", 20.0), figure(row, "podman", 9.0)]);
        }
        all.extend([figure("start", "youki", 8.0), figure("agent-pss", "caisson", 1024.0)]);
        let goals = goals(&rows(all));
        let of = |name: &str| goals.iter().find(|goal| goal.name.contains(name)).unwrap();
        assert_eq!((of("bare youki").value, of("bare youki").reached), (1.25, true));
        assert!(of("stop / containerd").reached && !of("stop / podman").reached);
        assert!(!of("agent and shims").reached, "the shims were not measured");
        assert!(of("idle container").reached);
    }

    #[test]
    fn user_data_is_settings() {
        let options = Options {
            variant: "default".to_owned(),
            rounds: 5,
            many: 50,
            rounds_of_many: 2,
            cpus: 2,
            memory: 4096,
        };
        let value: toml::Value = toml::from_str(&user_data(&options)).unwrap();
        let command = value["settings"]["host-containers"]["bench"]["command"][2].as_str().unwrap();
        assert!(command.ends_with("--rounds 5 --many 50 --rounds-of-many 2"), "{command}");
    }
}
