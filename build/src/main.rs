//! `cargo caisson`: the one entry for people.

use anyhow::{Context, Result, ensure};
use apiserver::client::Endpoint;
use build::project::Project;
use build::secure_boot::Keys;
use build::toolbox::{LockPolicy, Toolbox};
use build::vm::runner::{self, RunOptions};
use build::{bench, checks, fuzz, image, inspect, manual, repo, report};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds Caisson and runs it.
#[derive(Parser)]
#[command(bin_name = "cargo caisson", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build what is missing of an image
    Image(ImageOptions),
    /// Build what is missing, boot it, and show its console
    Run(RunOptions),
    /// Talk to the API of a running machine, as `apiclient` does inside
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Client {
        /// Which machine
        #[arg(long, default_value = "default")]
        name: String,
        /// `--help` lists the commands
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Power a running machine off
    Stop {
        #[arg(default_value = "default")]
        name: String,
    },
    /// Run everything that CI runs, or only the tests that are named
    Test {
        /// Only tests whose name contains one of these; with --fuzz, only these targets
        filters: Vec<String>,
        /// Boot no virtual machine
        #[arg(long)]
        no_vm: bool,
        /// Only look for inputs with which something does not hold, for so many seconds with each fuzz target
        #[arg(long, value_name = "SECONDS", conflicts_with = "no_vm")]
        fuzz: Option<u32>,
        /// Only run the fuzz target that is named with this input
        #[arg(long, value_name = "FILE", conflicts_with_all = ["no_vm", "fuzz"], requires = "filters")]
        fuzz_input: Option<PathBuf>,
    },
    /// Measure the image: a table to read, and JSON on the standard output
    #[command(subcommand)]
    Bench(Bench),
    /// Publish built variants for nodes to update themselves from
    #[command(subcommand)]
    Repo(repo::Repo),
    /// Show what is on a powered-off disk: partitions, versions, root hashes, files
    Inspect(InspectOptions),
    /// Make keys for Secure Boot: from then on, images are signed with them
    Keys {
        /// Not there yet; without it `CAISSON_KEYS`, else `keys` in the sources, which git ignores
        folder: Option<PathBuf>,
    },
    /// Run a tool of the toolbox, such as `qemu-img info disk.qcow2`
    #[command(trailing_var_arg = true)]
    Toolbox {
        /// Of the tree that holds what only tests, benches and signing want
        #[arg(long)]
        tests: bool,
        #[arg(required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

const KEYS_WORDS: &str = "\
Keep *.key secret and safe: who has db.key signs what your machines run, and without PK.key their keys can never be changed.
Images that are built from now on are signed, and carry the lists that firmware takes. A virtual machine whose firmware has no
keys yet takes them at its first boot: cargo caisson run --firmware uefi --fresh";

/// What `cargo caisson client` does beside the commands of `apiclient`, without a machine.
#[derive(Parser)]
enum Offline {
    /// Print completion of `apiclient` for a shell
    Completion { shell: Shell },
    /// Print the manual page of `apiclient`, for `man -l -`
    Man,
}

impl Offline {
    fn is_asked_for(arguments: &[OsString]) -> bool {
        arguments.first().is_some_and(|command| command == "completion" || command == "man")
    }
}

#[derive(Subcommand)]
enum Bench {
    /// Requests per second, and how long a durable commit takes, on the host and beside hyper alone
    Api(bench::api::Options),
    /// Time from the kernel's start to init, to the API, to a running container; memory when idle
    Boot(bench::boot::Options),
    /// Starts, stops and memory of containers, beside containerd, podman, crun and youki in the same guest; fails when a goal is missed
    #[command(
        after_help = "It takes about a quarter of an hour without KVM, and is best alone on its machine."
    )]
    Container(bench::container::Options),
    /// Bytes of what is shipped, and of what is in the root
    Size {
        #[arg(long, default_value = "default")]
        variant: String,
    },
    /// Bytes, seconds and memory of updates between real images, beside rauc and casync; fails when a goal is missed
    #[command(
        after_help = "The first time it compiles the guest's programs three times and two kernels, for half an hour and more."
    )]
    Update(bench::update::Options),
}

#[derive(Args)]
struct ImageOptions {
    /// A variant: the name of a file in images/
    #[arg(long, default_value = "default")]
    variant: String,
    /// Fail when the Debian mirror no longer has what os/toolbox.lock names
    #[arg(long, conflicts_with = "update_lock")]
    locked: bool,
    /// Take the mirror's newest packages and write them to os/toolbox.lock
    #[arg(long)]
    update_lock: bool,
}

#[derive(Args)]
struct InspectOptions {
    /// A raw disk image, such as target/caisson/default/disk.img
    disk: PathBuf,
    /// Print one file instead, such as `state:/settings/generation-000001.toml`
    #[arg(value_name = "PARTITION:PATH")]
    file: Option<String>,
    /// Leave no file out
    #[arg(long)]
    all: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cargo caisson: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Image(options) => {
            let lock = match (options.locked, options.update_lock) {
                (true, _) => LockPolicy::Strict,
                (_, true) => LockPolicy::Update,
                _ => LockPolicy::Newest,
            };
            let artifacts = image::build(&Project::open()?, &options.variant, lock)?;
            println!("{}", artifacts.dir.display());
        }
        Command::Keys { folder } => {
            let project = Project::open()?;
            let folder = folder.unwrap_or_else(|| Keys::folder(&project));
            Keys::generate(&project, &folder)?;
            println!("{}", folder.display());
            eprintln!("{}", KEYS_WORDS);
        }
        Command::Inspect(options) => inspect(&options)?,
        Command::Repo(what) => repo::run(&Project::open()?, &what)?,
        Command::Bench(what) => measure(&what)?,
        Command::Run(options) => return runner::run(&Project::open()?, &options),
        Command::Client { arguments, .. } if Offline::is_asked_for(&arguments) => {
            let name = OsString::from("cargo caisson client");
            match Offline::parse_from(std::iter::once(name).chain(arguments)) {
                Offline::Completion { shell } => print!("{}", manual::completion(shell)?),
                Offline::Man => print!("{}", manual::page()?),
            }
        }
        Command::Client { name, arguments } => {
            let program = OsString::from("apiclient");
            // Help needs no machine.
            let endpoint = runner::endpoint(&name).or_else(|error| {
                let wants_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
                if wants_help { Ok(Endpoint::Unix(PathBuf::from("/run/api.sock"))) } else { Err(error) }
            })?;
            return Ok(apiserver::cli::run(std::iter::once(program).chain(arguments), &endpoint));
        }
        Command::Stop { name } => runner::stop(&name)?,
        Command::Test { filters, fuzz_input: Some(input), .. } => {
            fuzz::again(&Project::open()?, &filters[0], &input)?
        }
        Command::Test { filters, fuzz: Some(seconds), .. } => {
            fuzz::run(&Project::open()?, seconds, &filters)?
        }
        Command::Test { filters, no_vm, .. } => {
            checks::run(&Project::open()?, &checks::Options { filters, no_vm })?
        }
        Command::Toolbox { tests, command } => {
            let project = Project::open()?;
            let toolbox = if tests {
                Toolbox::for_tests(&project)
            } else {
                Toolbox::open(&project, LockPolicy::Newest)
            }?;
            let here = std::env::current_dir()?;
            let (program, arguments) = command.split_first().context("name a program of the toolbox")?;
            let mut command = toolbox.with_share(&here).command("env");
            let status = command.arg("-C").arg(&here).arg(program).args(arguments).status()?;
            return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(what: &Bench) -> Result<()> {
    let project = Project::open()?;
    let mut missed = 0;
    let (table, document) = match what {
        Bench::Api(options) => {
            let figures = bench::api::measure(&project, options)?;
            (bench::api::table(&figures), serde_json::to_string_pretty(&figures)?)
        }
        Bench::Boot(options) => {
            let artifacts = image::build(&project, &options.variant, LockPolicy::Newest)?;
            let boots = bench::boot::measure(&project, &artifacts, options)?;
            (bench::boot::table(&boots), serde_json::to_string_pretty(&boots)?)
        }
        Bench::Container(options) => {
            let artifacts = image::build(&project, &options.variant, LockPolicy::Newest)?;
            let figures = bench::container::measure(&project, &artifacts, options)?;
            missed = figures.goals.iter().filter(|goal| !goal.reached).count();
            (bench::container::table(&figures), serde_json::to_string_pretty(&figures)?)
        }
        Bench::Size { variant } => {
            let artifacts = image::build(&project, variant, LockPolicy::Newest)?;
            let sizes = bench::size::measure(&artifacts, variant)?;
            (bench::size::table(&sizes), serde_json::to_string_pretty(&sizes)?)
        }
        Bench::Update(options) => {
            let figures = bench::update::measure(&project, options)?;
            missed = figures.goals.iter().filter(|goal| !goal.reached).count();
            (bench::update::table(&figures), serde_json::to_string_pretty(&figures)?)
        }
    };
    eprintln!("\n{table}");
    println!("{document}");
    ensure!(missed == 0, "{missed} goals are missed");
    Ok(())
}

fn inspect(options: &InspectOptions) -> Result<()> {
    let disk = inspect::Disk::open(&options.disk)?;
    let Some(file) = &options.file else {
        print!("{}", report::describe(&disk, options.all)?);
        return Ok(());
    };
    let (partition, path) = file
        .split_once(':')
        .with_context(|| format!("{file:?} is not PARTITION:PATH, such as state:/machine-id"))?;
    let data = disk.read(partition, path)?;
    std::io::Write::write_all(&mut std::io::stdout(), &data).context("cannot write to the standard output")
}
