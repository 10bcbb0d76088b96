//! `cargo caisson test`: everything that CI runs, in the order in which a person wants to hear of failures.

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::cache::Key;
use crate::command::run_logged;
use crate::project::Project;
use crate::toolbox::LockPolicy;
use crate::{fuzz, guest, image, toolbox};

/// What to leave out, and what to pick.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only tests whose name contains one of these; nothing else is checked.
    pub filters: Vec<String>,
    /// No virtual machine is booted.
    pub no_vm: bool,
}

/// Runs the checks; the test runner's summary is the last output. Fails at the first check that fails.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let begun = Instant::now();
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(arguments).current_dir(&project.sources);
        command
    };
    if options.filters.is_empty() {
        phase("format", &mut cargo(&["fmt", "--all", "--check"]))?;
        phase(
            "lints",
            &mut cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--features",
                "caisson-host-agent/bench",
                "--locked",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
        )?;
    }
    // Of the image, much is done by one processor at a time, and what is compiled beside it has the other one.
    let others = || -> Result<PathBuf> {
        if options.filters.is_empty() {
            licences(project)?;
            eprintln!("== fuzz");
            fuzz::run(project, fuzz::SHORT, &[])?;
        }
        let nextest = tool(project, "cargo-nextest", "0.9.143")?;
        let mut compile = tests(project, &nextest, options);
        phase("compiling tests", compile.arg("--no-run"))?;
        Ok(nextest)
    };
    let nextest = std::thread::scope(|scope| {
        let image = (!options.no_vm).then(|| scope.spawn(|| guests(project)));
        let nextest = others();
        if let (Err(error), true) = (&nextest, image.is_some()) {
            eprintln!("   {error:#}; waiting for what is built beside it");
        }
        // A panic has been told by its thread.
        match image.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(Err(error))) => nextest.and(Err(error)),
            Some(Err(_)) => nextest.and(Err(anyhow!("image: the builder panicked"))),
            Some(Ok(Ok(()))) | None => nextest,
        }
    })?;
    let mut tests = tests(project, &nextest, options);
    tests.arg("--no-fail-fast");
    eprintln!("== tests, {:.0} s after the start", begun.elapsed().as_secs_f64());
    // Nothing follows: the last lines are the runner's summary.
    let status = tests.status().context("cannot start cargo nextest")?;
    ensure!(status.success(), "tests: failed ({status})");
    Ok(())
}

/// Licences, bans and sources of all crates.
fn licences(project: &Project) -> Result<()> {
    let deny = tool(project, "cargo-deny", "0.20.2")?;
    // The advisory database is fetched from the network; where there is none, that one check is left to those who have it.
    let mut licences = Command::new(deny);
    licences
        .args([
            "--log-level",
            "error",
            "--offline",
            "check",
            "--hide-inclusion-graph",
            "licenses",
            "bans",
            "sources",
        ])
        .current_dir(&project.sources);
    phase("licences", &mut licences)
}

/// What virtual machines of tests are made from.
fn guests(project: &Project) -> Result<()> {
    eprintln!("== image");
    image::build(project, "default", LockPolicy::Newest)?;
    // The tests need it too; built here, its progress is shown.
    let toolbox = toolbox::Toolbox::open(project, LockPolicy::Newest)?;
    toolbox::Toolbox::for_tests(project)?;
    toolbox::Toolbox::open_set(project, toolbox::Set::Workload, LockPolicy::Newest)?;
    guest::vhost_device_vsock(project, &toolbox, &guest::Rust::find(project)?)?;
    Ok(())
}

/// The test runner, for what was asked for.
fn tests(project: &Project, nextest: &Path, options: &Options) -> Command {
    let mut tests = Command::new(nextest);
    tests.args(["nextest", "run", "--workspace", "--locked"]).current_dir(&project.sources);
    if options.no_vm {
        tests.args(["-E", "not package(caisson-qemu-tests) and not test(a_build_elsewhere)"]);
    }
    tests.args(&options.filters);
    tests
}

fn phase(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("== {name}");
    let begun = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{name}: cannot start {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{name}: failed ({status})");
    }
    eprintln!("   {name}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// A cargo tool: the one that is installed, or one that is installed into the cache.
fn tool(project: &Project, name: &'static str, version: &str) -> Result<PathBuf> {
    let installed = Command::new(name).arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok(PathBuf::from(name));
    }
    let key = Key::new("tool 1").text(name).text(version);
    let entry = project.cache.step(
        name,
        &format!("{name} {version}, which is not installed, about 3 minutes"),
        key,
        |out| {
            let mut install = Command::new("cargo");
            // To make it fast takes longer than all that it does here.
            install
                .args(["install", "--quiet", "--locked", "--debug", name, "--version", version, "--root"])
                .arg(out);
            run_logged(&mut install, &format!("{name}: installing"), &project.log(name), None)
        },
    )?;
    Ok(entry.path.join("bin").join(name))
}
