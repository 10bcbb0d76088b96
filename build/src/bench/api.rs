//! `cargo caisson bench api`: how many requests the API server answers, and how long a durable commit takes.
//!
//! On the host, without a machine: the server as the image has it (but dynamic), on a folder of its own, with an agent that has
//! applied everything at once. Beside it, in turn in every round, so that a machine whose speed drifts slows all of them: hyper
//! alone ("hello"), and one write, fsync and rename of the bytes of a generation in the same folder.

use anyhow::{Context, Result, ensure};
use apiserver::agent::{ApplyOutcome, Request, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{JoinSet, LocalSet};

use super::{Goal, Summary, goals_table};
use crate::command::run_logged;
use crate::project::{Project, target_dir};

/// How many clients ask at once.
const CLIENTS: [usize; 2] = [1, 64];

/// What issue 3 asks for.
const RATE_LIMIT: f64 = 2.0;
const COMMIT_LIMIT: f64 = 3.0;
const MEMORY_LIMIT: f64 = 6.0;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Milliseconds of each measurement of requests
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub millis: u64,
    /// Commits of each client in a round
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub commits: u32,
}

/// By the number of clients.
type ByClients<T> = BTreeMap<usize, T>;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Figures {
    pub bench: &'static str,
    pub rounds: u32,
    pub get_settings: ByClients<Rate>,
    pub hello: ByClients<Rate>,
    pub commit: ByClients<Latency>,
    pub commit_and_apply: ByClients<Latency>,
    pub write_fsync_rename: Latency,
    /// Of a generation: what is written by both.
    pub generation_bytes: usize,
    pub resident_kib: u64,
    pub goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rate {
    /// Of the rounds.
    pub per_second: Summary,
    pub latency: Latency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl Latency {
    /// `None` of no values.
    fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        let at = |percent: usize| {
            micros.get((micros.len() * percent / 100).min(micros.len().checked_sub(1)?)).copied()
        };
        Some(Self { p50_us: at(50)?, p99_us: at(99)?, max_us: *micros.last()? })
    }
}

/// What was measured of one kind of request by one number of clients.
#[derive(Default)]
struct Samples {
    rates: Vec<u64>,
    micros: Vec<u64>,
}

impl Samples {
    fn rate(self) -> Result<Rate> {
        let per_second = Summary::of(self.rates).context("nothing was measured")?;
        Ok(Rate { per_second, latency: Latency::of(self.micros).context("nothing was measured")? })
    }

    fn latency(self) -> Result<Latency> {
        Latency::of(self.micros).context("nothing was measured")
    }
}

/// Both servers, and what is between them.
struct Lab {
    /// Sockets: their paths have to be short.
    sockets: tempfile::TempDir,
    /// On the disk of `target`: /tmp may be memory, where a flush costs nothing.
    disk: tempfile::TempDir,
    server: Running,
    _hello: Running,
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn measure(project: &Project, options: &Options) -> Result<Figures> {
    let lab = Lab::start(project)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, lab.measure(options))
}

impl Lab {
    fn start(project: &Project) -> Result<Self> {
        let programs = build(project)?;
        let target = target_dir(&project.sources);
        let sockets = tempfile::Builder::new().prefix("caisson-bench-").tempdir_in("/tmp")?;
        let disk = tempfile::Builder::new().prefix("bench-api-").tempdir_in(target)?;
        fs::create_dir(disk.path().join("settings"))?;
        fs::write(disk.path().join("os-release"), "VERSION_ID=0\n")?;
        fs::copy(project.sources.join("os/defaults.toml"), disk.path().join("defaults.toml"))?;
        agent(&sockets.path().join("agent.sock"))?;
        let path = |folder: &tempfile::TempDir, name: &str| folder.path().join(name);
        let server = Command::new(programs.join("apiserver"))
            .arg("--settings-dir")
            .arg(path(&disk, "settings"))
            .arg("--defaults")
            .arg(path(&disk, "defaults.toml"))
            .arg("--os-release")
            .arg(path(&disk, "os-release"))
            .arg("--agent-socket")
            .arg(path(&sockets, "agent.sock"))
            .arg("--listen")
            .arg(path(&sockets, "api.sock"))
            // A line for each commit.
            .stderr(File::create(path(&disk, "log"))?)
            .spawn()
            .context("cannot start the API server")?;
        let server = Running(server);
        let hello = Command::new(programs.join("examples/hello"))
            .arg(path(&sockets, "hello.sock"))
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start hello")?;
        Ok(Self { sockets, disk, server, _hello: Running(hello) })
    }

    async fn measure(&self, options: &Options) -> Result<Figures> {
        let (api, hello) = (self.sockets.path().join("api.sock"), self.sockets.path().join("hello.sock"));
        let get = request("GET", "/settings", "");
        let duration = Duration::from_millis(options.millis);
        let mut gets: ByClients<Samples> = BTreeMap::new();
        let mut hellos: ByClients<Samples> = BTreeMap::new();
        let mut commits: ByClients<Samples> = BTreeMap::new();
        let mut applies: ByClients<Samples> = BTreeMap::new();
        let (mut writes, mut generation_bytes, mut resident_kib) = (Samples::default(), 0, 0);
        for round in 1..=options.rounds {
            for clients in CLIENTS {
                for (socket, samples) in [(&hello, &mut hellos), (&api, &mut gets)] {
                    let open = load(
                        connect(socket, clients).await?,
                        &get,
                        duration,
                        samples.entry(clients).or_default(),
                    )
                    .await?;
                    // While they are connected still.
                    if *socket == api && clients > 1 {
                        resident_kib = resident_kib.max(resident(self.server.0.id())?);
                    }
                    drop(open);
                }
                for (uri, samples) in [("/tx/commit", &mut commits), ("/tx/commit_and_apply", &mut applies)] {
                    let samples = samples.entry(clients).or_default();
                    for _ in 0..options.commits {
                        commit(connect(&api, clients).await?, uri, samples).await?;
                        if clients == 1 && uri == "/tx/commit" {
                            generation_bytes = self.write_fsync_rename(&mut writes)?;
                        }
                    }
                }
            }
            eprintln!("  round {round} of {}", options.rounds);
        }
        let rates = |samples: ByClients<Samples>| -> Result<ByClients<Rate>> {
            samples.into_iter().map(|(clients, samples)| Ok((clients, samples.rate()?))).collect()
        };
        let latencies = |samples: ByClients<Samples>| -> Result<ByClients<Latency>> {
            samples.into_iter().map(|(clients, samples)| Ok((clients, samples.latency()?))).collect()
        };
        let mut figures = Figures {
            bench: "api",
            rounds: options.rounds,
            get_settings: rates(gets)?,
            hello: rates(hellos)?,
            commit: latencies(commits)?,
            commit_and_apply: latencies(applies)?,
            write_fsync_rename: writes.latency()?,
            generation_bytes,
            resident_kib,
            goals: Vec::new(),
        };
        figures.goals = goals(&figures);
        Ok(figures)
    }

    /// Writes the newest generation again, as a file of its own. Returns its size.
    fn write_fsync_rename(&self, samples: &mut Samples) -> Result<usize> {
        let newest = fs::read_dir(self.disk.path().join("settings"))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .max()
            .context("there is no generation")?;
        let bytes = fs::read(newest)?;
        let (new, place) = (self.disk.path().join(".new-x"), self.disk.path().join("x"));
        let begun = Instant::now();
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &place)?;
        samples.micros.push(micros(begun.elapsed()));
        Ok(bytes.len())
    }
}

/// The server as it is in the image, except that it is dynamic; and hello, likewise.
fn build(project: &Project) -> Result<PathBuf> {
    let target = target_dir(&project.sources).join("bench");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--profile", "guest", "--package", "caisson-apiserver"]);
    cargo.args(["--bin", "apiserver", "--example", "hello", "--target-dir"]).arg(&target);
    cargo.current_dir(&project.sources);
    run_logged(&mut cargo, "compiling the API server", &project.log("bench-api"), None)?;
    Ok(target.join("guest"))
}

/// Says of everything that it is applied, until the process ends.
fn agent(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            let _ = stream.read_line(&mut line);
            let generation = match serde_json::from_str(&line) {
                Ok(Request::Apply { generation, .. }) => generation,
                _ => 0,
            };
            let outcome = Response::Apply(ApplyOutcome { generation, ..ApplyOutcome::default() });
            let _ = writeln!(stream.get_mut(), "{}", serde_json::to_string(&outcome).unwrap_or_default());
        }
    });
    Ok(())
}

fn request(method: &str, uri: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {uri} HTTP/1.1\r\nhost: bench\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

async fn connect(socket: &Path, clients: usize) -> Result<Vec<UnixStream>> {
    let deadline = Instant::now() + PATIENCE;
    let mut streams = Vec::new();
    while streams.len() < clients {
        match UnixStream::connect(socket).await {
            Ok(stream) => streams.push(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot connect to {}", socket.display()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    Ok(streams)
}

/// Sends the same request over every connection, again and again. Gives the connections back.
async fn load(
    streams: Vec<UnixStream>,
    request: &[u8],
    duration: Duration,
    samples: &mut Samples,
) -> Result<Vec<UnixStream>> {
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for mut stream in streams {
        let request = request.to_vec();
        clients.spawn_local(async move {
            let mut taken = Vec::new();
            while begun.elapsed() < duration {
                taken.push(exchange(&mut stream, &request).await?);
            }
            anyhow::Ok((stream, taken))
        });
    }
    let (mut streams, mut micros) = (Vec::new(), Vec::new());
    while let Some(client) = clients.join_next().await {
        let (stream, taken) = client??;
        streams.push(stream);
        micros.extend(taken);
    }
    samples.rates.push((micros.len() as f64 / begun.elapsed().as_secs_f64()) as u64);
    samples.micros.extend(micros);
    Ok(streams)
}

/// Each client stages a change of its own, and then all commit at once: that is what is measured.
async fn commit(streams: Vec<UnixStream>, uri: &'static str, samples: &mut Samples) -> Result<()> {
    let mut staged = Vec::new();
    for (number, mut stream) in streams.into_iter().enumerate() {
        // Never the same twice: that would be no commit.
        let body = serde_json::json!({"motd": format!("{:?}", Instant::now())}).to_string();
        exchange(&mut stream, &request("PATCH", &format!("/settings?tx=bench-{number}"), &body)).await?;
        staged.push((stream, request("POST", &format!("{uri}?tx=bench-{number}"), "")));
    }
    let mut clients = JoinSet::new();
    for (mut stream, request) in staged {
        clients.spawn_local(async move { exchange(&mut stream, &request).await });
    }
    while let Some(taken) = clients.join_next().await {
        samples.micros.push(taken??);
    }
    Ok(())
}

/// One request and its whole answer; the microseconds between.
async fn exchange(stream: &mut UnixStream, request: &[u8]) -> Result<u64> {
    let begun = Instant::now();
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(1024);
    let whole = loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
        if let Some(length) = whole_length(&answer) {
            break length;
        }
    };
    while answer.len() < whole {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
    }
    ensure!(answer.starts_with(b"HTTP/1.1 2"), "the server said {}", String::from_utf8_lossy(&answer));
    Ok(micros(begun.elapsed()))
}

/// Of an answer with its head complete: how long it will be.
fn whole_length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(answer.get(..head)?).ok()?;
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    Some(head + length.unwrap_or(0))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the server has ended")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn goals(figures: &Figures) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (clients, name) in [
        (1, "hello's rate / GET /settings' rate, 1 client"),
        (64, "hello's rate / GET /settings' rate, 64 clients"),
    ] {
        let rate = |of: &ByClients<Rate>| of.get(&clients).map_or(0.0, |rate| rate.per_second.median as f64);
        goals.push(Goal::new(name, rate(&figures.hello) / rate(&figures.get_settings).max(1.0), RATE_LIMIT));
    }
    let commit = figures.commit.get(&1).map_or(u64::MAX, |latency| latency.p50_us) as f64;
    let write = figures.write_fsync_rename.p50_us.max(1) as f64;
    goals.push(Goal::new("durable commit / write + fsync + rename, medians", commit / write, COMMIT_LIMIT));
    let resident = figures.resident_kib as f64 / 1024.0;
    goals.push(Goal::new("resident memory with 64 clients, MiB", resident, MEMORY_LIMIT));
    goals
}

pub fn table(figures: &Figures) -> String {
    let mut text = format!(
        "{} rounds; a generation has {} bytes; latencies in µs\n\n{:<24} {:>8} {:>12} {:>10} {:>10} {:>10}\n",
        figures.rounds, figures.generation_bytes, "", "CLIENTS", "PER SECOND", "P50", "P99", "MAX"
    );
    let mut row = |name: &str, clients: usize, rate: Option<u64>, latency: &Latency| {
        let rate = rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
        let Latency { p50_us, p99_us, max_us } = latency;
        let _ = writeln!(text, "{name:<24} {clients:>8} {rate:>12} {p50_us:>10} {p99_us:>10} {max_us:>10}");
    };
    for (name, rates) in [("hello (hyper alone)", &figures.hello), ("GET /settings", &figures.get_settings)] {
        for (clients, rate) in rates {
            row(name, *clients, Some(rate.per_second.median), &rate.latency);
        }
    }
    for (name, latencies) in [("commit", &figures.commit), ("commit and apply", &figures.commit_and_apply)] {
        for (clients, latency) in latencies {
            row(name, *clients, None, latency);
        }
    }
    row("write + fsync + rename", 1, None, &figures.write_fsync_rename);
    text + "\n" + &goals_table(&figures.goals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let latency = Latency::of((1..=200).rev().collect()).unwrap();
        assert_eq!(latency, Latency { p50_us: 101, p99_us: 199, max_us: 200 });
        assert_eq!(Latency::of(vec![7]), Some(Latency { p50_us: 7, p99_us: 7, max_us: 7 }));
        assert_eq!(Latency::of(Vec::new()), None);
    }

    #[test]
    fn an_answer_tells_its_length_once_its_head_is_there() {
        assert_eq!(whole_length(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"), None);
        assert_eq!(whole_length(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe"), Some(43));
        assert_eq!(whole_length(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(27));
    }
}
