//! `container-bench`: what `cargo caisson bench container` runs on a node, in a superpowered host container. It starts and stops the
//! same container by Caisson's API and by others, turn by turn, and puts out what that took: a line of JSON for each measurement.
//!
//! A start is over when the container's program says so (`bin/say.rs`), for all in the same way. What a call or command takes until
//! its own end counts in a stop only.

mod api;
mod bare;
mod caisson;
mod engine;
mod memory;
mod place;
mod rivals;
mod said;

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::json;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::bare::{Bare, Pattern};
use crate::caisson::Caisson;
use crate::engine::Engine;
use crate::rivals::{Containerd, Podman};
use crate::said::Said;

const REGISTRY: &str = "127.0.0.1:5000";
/// For a container to put something out; more for many.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_OF_MANY: Duration = Duration::from_secs(600);
/// After each measurement: what is still to be tidied is not to be in the next one's way.
const SETTLE: Duration = Duration::from_millis(700);
/// Before memory is looked at.
const IDLE: Duration = Duration::from_secs(5);
/// Containers that agent and shims are looked at beside.
const FEW: u32 = 20;

struct Options {
    /// Where Debian's tree is mounted.
    tree: PathBuf,
    rounds: u32,
    /// Containers that are started at once.
    many: u32,
    /// How often they are.
    rounds_of_many: u32,
}

impl Options {
    /// Of `--NAME VALUE` pairs, as `cargo caisson bench container` gives them.
    fn parse(words: &[String]) -> Result<Self> {
        let value = |name: &str| {
            let pair = words.chunks_exact(2).find(|pair| pair[0] == name);
            pair.map(|pair| pair[1].clone()).with_context(|| format!("{name} is missing"))
        };
        let number = |name: &str| -> Result<u32> { Ok(value(name)?.parse()?) };
        Ok(Self {
            tree: value("--tree")?.into(),
            rounds: number("--rounds")?,
            many: number("--many")?,
            rounds_of_many: number("--rounds-of-many")?,
        })
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match Options::parse(&words).and_then(|options| run(&options)) {
        Ok(()) => println!("{}", json!({"done": true})),
        Err(error) => println!("{}", json!({"error": format!("{error:#}")})),
    }
    // A host container that ends would be started again.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// A figure, for who reads the log.
fn tell(row: &str, who: &str, value: f64) {
    println!("{}", json!({"row": row, "who": who, "value": value}));
}

fn run(options: &Options) -> Result<()> {
    // What runtimes leave to others is ours.
    prctl::set_child_subreaper(true)?;
    place::enter(&options.tree)?;
    let said = Said::listen(Path::new(place::OUT))?;
    let mut registry = serve()?;
    let result = measure(options, &said);
    let _ = registry.kill();
    let _ = registry.wait();
    result
}

/// Debian's registry over what was put in place for it; all of it is in memory afterwards.
fn serve() -> Result<Child> {
    let mut command = engine::command("registry", "docker-registry", &["serve", "/bench/registry.json"]);
    let registry = command.spawn().context("cannot start the registry")?;
    read_all(Path::new("/bench/registry"))?;
    let begun = Instant::now();
    while std::net::TcpStream::connect(REGISTRY).is_err() {
        let said = engine::last_words("registry");
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the registry does not start: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(registry)
}

fn read_all(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path)?;
        } else {
            fs::File::open(&path)?.read_to_end(&mut Vec::new())?;
        }
    }
    Ok(())
}

fn settle(time: Duration) {
    std::thread::sleep(time);
    // What has ended and is nobody's. Whoever waits for a process of theirs does not do so now.
    while matches!(
        waitpid(None, Some(WaitPidFlag::WNOHANG)),
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
    ) {}
}

fn image(number: u32) -> String {
    format!("{REGISTRY}/bench:{number}")
}

fn measure(options: &Options, said: &Said) -> Result<()> {
    let mut caisson = Caisson::new();
    let warm = image(0);
    caisson.begin(&warm)?;
    // It stays, so that its image does, and the others are told to run what Caisson runs.
    let pattern = "pattern".to_owned();
    caisson.run(&pattern)?;
    said.wait(std::slice::from_ref(&pattern), PATIENCE)?;
    let bundle = Pattern::of(&pattern)?;
    caisson.stop(&pattern)?;
    let mut engines: Vec<Box<dyn Engine>> = vec![
        Box::new(caisson),
        Box::new(Containerd::new()),
        Box::new(Podman::new()),
        Box::new(Bare::new("crun", "crun", &bundle)),
        Box::new(Bare::new("youki", place::YOUKI, &bundle)),
    ];
    for engine in engines.iter_mut().skip(1) {
        engine.begin(&warm)?;
    }
    // Round 0 fills the node's caches.
    for round in 0..=options.rounds {
        let mut turn: Vec<&dyn Engine> = engines.iter().map(Box::as_ref).collect();
        let first = round as usize % turn.len();
        turn.rotate_left(first);
        for engine in turn {
            one(engine, said, round)?;
        }
        println!("{}", json!({"progress": format!("round {round} of {}", options.rounds)}));
    }
    for round in 0..options.rounds_of_many {
        for engine in &engines {
            many(engine.as_ref(), said, round, options.many)?;
            println!("{}", json!({"progress": format!("{} at once by {}", options.many, engine.name())}));
        }
    }
    few(engines[0].as_ref(), said)
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// From now until the container has put something out, in milliseconds.
fn until_said(
    said: &Said,
    names: &[String],
    patience: Duration,
    start: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    let begun = said::now()?;
    start()?;
    let last = said.wait(names, patience)?;
    Ok(millis(last.saturating_sub(begun)))
}

/// A container's life: pulled, stopped; started anew, stopped, started again, stopped. Of round 0 nothing is told.
fn one(engine: &dyn Engine, said: &Said, round: u32) -> Result<()> {
    let told = |row: &str, ms: f64| {
        if round > 0 {
            tell(row, engine.name(), ms);
        }
    };
    let stop = |name: &String| -> Result<()> {
        settle(SETTLE);
        let begun = said::now()?;
        engine.stop(name)?;
        told("stop", millis(said::now()? - begun));
        settle(SETTLE);
        Ok(())
    };
    if engine.pulls() && round > 0 {
        let name = format!("cold-{round}");
        let names = std::slice::from_ref(&name);
        told("cold", until_said(said, names, PATIENCE, || engine.pull_and_run(&name, &image(round)))?);
        settle(SETTLE);
        engine.remove(names)?;
        settle(SETTLE);
    }
    let name = format!("warm-{round}");
    let names = std::slice::from_ref(&name);
    engine.prepare(&name)?;
    told("new", until_said(said, names, PATIENCE, || engine.run(&name))?);
    stop(&name)?;
    told("start", until_said(said, names, PATIENCE, || engine.start(&name))?);
    stop(&name)?;
    engine.remove(names)?;
    settle(SETTLE);
    Ok(())
}

/// Many at once, and what each takes beside its own process once all are idle, in KiB.
fn many(engine: &dyn Engine, said: &Said, round: u32, count: u32) -> Result<()> {
    let names: Vec<String> = (0..count).map(|number| format!("many-{round}-{number}")).collect();
    names.iter().try_for_each(|name| engine.prepare(name))?;
    settle(IDLE);
    let (programs, available) = (memory::of_programs(engine.programs()), memory::available());
    let ms = until_said(said, &names, PATIENCE_OF_MANY, || engine.run_all(&names))?;
    tell("many", engine.name(), ms);
    settle(IDLE);
    let each = |before: u64, after: u64| (after as f64 - before as f64) / f64::from(count);
    let more = each(programs.pss, memory::of_programs(engine.programs()).pss);
    tell("memory-of-programs", engine.name(), more);
    let own = memory::of_programs(&["say"]).pss as f64 / f64::from(count);
    tell("memory-of-node", engine.name(), each(memory::available(), available) - own);
    engine.remove(&names)?;
    settle(IDLE);
    Ok(())
}

/// What Caisson itself takes beside a few containers, in KiB: its agent, all its shims (with the one of the container that this runs in).
fn few(caisson: &dyn Engine, said: &Said) -> Result<()> {
    let names: Vec<String> = (0..FEW).map(|number| format!("few-{number}")).collect();
    until_said(said, &names, PATIENCE_OF_MANY, || caisson.run_all(&names))?;
    settle(IDLE);
    let agent = memory::of_programs(&["host-agent"]);
    let shims = memory::of_programs(&["container-shim"]);
    tell("agent-pss", caisson.name(), agent.pss as f64);
    tell("shims-pss", caisson.name(), shims.pss as f64);
    tell("agent-rss", caisson.name(), agent.rss as f64);
    tell("shims-rss", caisson.name(), shims.rss as f64);
    caisson.remove(&names)
}
