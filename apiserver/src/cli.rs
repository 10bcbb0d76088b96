//! `apiclient`: the API from a command line. In the guest it talks to `/run/api.sock`; `cargo caisson client` uses it for a VM.

use clap::{Args, CommandFactory, Parser, Subcommand};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::agent::{ContainerAction, ContainerStatus, Status};
use crate::cli_colour::Colour;
use crate::cli_container;
use crate::cli_copy::{self, Copy};
use crate::cli_diff;
use crate::cli_edit;
use crate::cli_exec::{self, Exec};
use crate::cli_explain;
use crate::cli_image::{self, Image};
use crate::cli_progress::Progress;
use crate::cli_trial;
pub(crate) use crate::cli_trial::How;
use crate::cli_update::{self, Update};
use crate::cli_watch::{self, Watch};
use crate::client::{Answer, ClientError, Endpoint, request_with_json_errors};
use crate::store::Listed;
use crate::tables::{PartialStatus, describe, describe_notes, describe_partial, history, list};

/// Talks to the API of a Caisson node.
#[derive(Parser)]
#[command(
    name = "apiclient",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  apiclient get settings.motd\n  apiclient set motd=\"Hello\" network.hostname=node-1\n  \
    apiclient set containers.web.image=localhost/busybox 'containers.web.command=[\"sleep\", \"60\"]'\n  \
    apiclient set -j '{\"motd\": \"Hello\"}'\n  apiclient apply settings.toml\n  apiclient delete containers.web\n  apiclient container logs web\n  apiclient exec web sh\n  \
    apiclient history\n  apiclient diff 3\n  apiclient restore 3\n  \
    apiclient set --dry-run motd=Hello\n  apiclient apply --try 5m network.toml && apiclient confirm\n  \
    apiclient explain network.hostname\n  apiclient edit network\n  apiclient watch network.hostname\n\n\
    On the host `cargo caisson client completion bash|zsh|fish` prints completion for a shell, and `cargo caisson client man` the \
    manual.\n\nExit codes: 0 done, 1 the node refused or cannot be reached, 2 wrong usage; of exec that of the command, or 255."
)]
struct Cli {
    /// The API's Unix socket
    #[arg(short, long, visible_alias = "socket-path", global = true)]
    socket: Option<PathBuf>,
    /// Also say what is asked and answered
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Seconds to wait for an answer
    #[arg(long, global = true, default_value_t = 130)]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send one request and print the body of its answer
    Raw(Raw),
    /// Show settings and facts by prefix (settings.motd, os, status), or the answer of one /path
    Get {
        /// Nothing means settings and os
        prefixes: Vec<String>,
    },
    /// Change settings, durably, and apply them
    Set {
        #[command(flatten)]
        what: Set,
        #[command(flatten)]
        how: How,
    },
    /// Apply files of settings in TOML or JSON, with everything under `settings`; - is the standard input
    Apply {
        #[arg(default_value = "-")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        how: How,
    },
    /// Restart the node
    Reboot,
    /// Switch the node off, in order
    PowerOff,
    /// Health of the node and what is wrong with it
    Status,
    /// Containers, what they wrote, their files, and stopping and starting them
    #[command(subcommand, alias = "containers")]
    Container(Container),
    /// Images that containers have, or are to have
    #[command(subcommand, alias = "images")]
    Image(Image),
    /// Run a command in a container that runs; its exit code is that of the command, or 255 when it could not run
    Exec(Exec),
    /// New versions of the system
    #[command(subcommand)]
    Update(Update),
    /// Remove settings, durably, and apply that; a default of the image holds again
    Delete {
        /// Values (motd) or tables with all in them (containers.web)
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// The commits that are kept, and what became of applying them
    #[command(visible_alias = "generations")]
    History,
    /// What differs between two generations; with one: between it and the newest
    Diff { from: u64, to: Option<u64> },
    /// Commit the settings of an older generation again, and apply them
    Restore {
        generation: u64,
        /// Take it back after so long (30s, 5m, 1h) unless `apiclient confirm` says that it works
        #[arg(long = "try", value_name = "TIME", value_parser = cli_trial::seconds)]
        trial: Option<u32>,
    },
    /// Keep what was committed with --try
    Confirm {
        /// Only if this is the one that is on trial; else whichever is
        #[arg(short, long)]
        generation: Option<u64>,
    },
    /// What a key is for, what it takes, its default, an example; what it is now and since when. Of a table: the keys in it
    Explain {
        /// Nothing means all
        key: Option<String>,
    },
    /// Change settings in the editor that VISUAL or EDITOR names, with comments on what may be set
    Edit {
        /// Only this key, or what is below it
        key: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// What happens on the node, a line each, until it is interrupted
    Watch(Watch),
    /// What was committed with --try and is not confirmed yet
    Trial {
        /// Take it back now
        #[arg(long)]
        revert: bool,
    },
}

#[derive(Args)]
struct Raw {
    /// Such as /settings?prefix=motd
    #[arg(short, long)]
    uri: String,
    #[arg(short, long, visible_short_alias = 'X', default_value = "GET")]
    method: String,
    /// Body
    #[arg(short, long)]
    data: Option<String>,
}

#[derive(Args)]
#[group(id = "what", required = true, multiple = false)]
struct Set {
    /// KEY=VALUE, such as motd=hello; or one KEY VALUE
    #[arg(value_name = "KEY=VALUE")]
    pairs: Vec<String>,
    /// A JSON object instead
    #[arg(short, long)]
    json: Option<String>,
}

#[derive(Subcommand)]
enum Container {
    /// State, restarts and exit codes
    List,
    /// What a container wrote
    Logs {
        name: String,
        /// Only so many of the last lines
        #[arg(short = 'n', long, visible_alias = "tail")]
        lines: Option<u32>,
        /// Only from a time on: before now by the node's clock (90s, 5m, 2h, 1d), or of RFC 3339 (2026-01-31T12:00:00Z)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Go on with what it writes, until the container is gone or this is interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// Processors, memory, processes and block devices that containers use; two looks, a second apart
    Stats {
        /// Nothing means all that run
        name: Option<String>,
        /// What the node counts, as JSON; one look
        #[arg(long)]
        json: bool,
    },
    /// Processes of a container that runs: as it and as the node number them, user, state, time of processors, memory, command
    Top {
        name: String,
        /// As the node tells them, as JSON
        #[arg(long)]
        json: bool,
    },
    /// One container as JSON: its state, and what the runtime was told (of variables the names only)
    Inspect { name: String },
    /// Copy files and folders out of a container that runs, or into it
    #[command(visible_alias = "copy")]
    Cp(Copy),
    /// End a container; it stays stopped until it is started, its settings change, or the node restarts
    Stop { name: String },
    /// Start a container that was stopped, has ended, or waits for its next start
    Start { name: String },
    /// End a container, if it runs, and start it
    Restart { name: String },
    /// Let all processes of a container do nothing, until it is unpaused, ends, or is stopped
    Pause { name: String },
    /// Let a paused container go on
    Unpause { name: String },
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    Usage(String),
    Failed(String),
    /// By the node, which says why.
    Refused {
        status: u16,
        method: Method,
        uri: String,
        reason: String,
        /// What is wrong with settings, one by one.
        mistakes: Vec<Mistake>,
    },
}

/// One thing that is wrong with settings, as the node tells it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Mistake {
    pub(crate) key: String,
    reason: String,
    #[serde(default)]
    hint: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [Some(&self.key).filter(|key| !key.is_empty()), Some(&self.reason), self.hint.as_ref()];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        f.write_str(&parts.join(": "))
    }
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Told {
    error: String,
    #[serde(default)]
    mistakes: Vec<Mistake>,
}

impl Failure {
    /// What a person reads who gave no path of a request.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Usage(text) | Self::Failed(text) => text.clone(),
            Self::Refused { reason, .. } if !reason.is_empty() => reason.clone(),
            Self::Refused { status, method, uri, reason, .. } => {
                format!("Status {status} when {method}ing {uri}: {reason}")
            }
        }
    }

    /// Whoever gave the path of a request is told it again, as Bottlerocket's client does.
    fn told(&self, command: &Command) -> String {
        match self {
            Self::Refused { status, method, uri, reason, .. } if !command.names_settings() => {
                format!("Status {status} when {method}ing {uri}: {reason}")
            }
            failure => failure.text(),
        }
    }
}

impl Command {
    /// Whether it is about settings, not about one request: their mistakes are told with their keys.
    fn names_settings(&self) -> bool {
        matches!(
            self,
            Self::Set { .. }
                | Self::Apply { .. }
                | Self::Delete { .. }
                | Self::Diff { .. }
                | Self::Restore { .. }
                | Self::Confirm { .. }
                | Self::Trial { .. }
                | Self::Explain { .. }
                | Self::Edit { .. }
                | Self::Watch(_)
        )
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The whole command line, for manuals and for shells.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs a command line (its first item is the program's name) against the socket it names, or else `default`.
pub fn run(arguments: impl IntoIterator<Item = OsString>, default: &Endpoint) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let api = Api {
        endpoint: cli.socket.clone().map_or_else(|| default.clone(), Endpoint::Unix),
        timeout: Duration::from_secs(cli.timeout.clamp(1, 3600)),
        verbose: cli.verbose,
    };
    if let Command::Exec(exec) = &cli.command {
        return cli_exec::exec(&api, exec);
    }
    match execute(&api, &cli.command) {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("apiclient: {}", failure.told(&cli.command));
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// A reader that went away (`apiclient get | head -1`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let _ = write!(std::io::stdout(), "{text}{newline}");
}

pub(crate) struct Api {
    pub(crate) endpoint: Endpoint,
    pub(crate) timeout: Duration,
    verbose: bool,
}

impl Api {
    pub(crate) fn send(&self, method: Method, uri: &str, body: Option<String>) -> Result<Answer, Failure> {
        if self.verbose {
            eprintln!("> {method} {uri}");
        }
        let answer = request_with_json_errors(
            &self.endpoint,
            method.clone(),
            uri,
            body.unwrap_or_default().into_bytes(),
            self.timeout,
        )?;
        if self.verbose {
            eprintln!("< {}", answer.status);
        }
        if answer.is_success() {
            return Ok(answer);
        }
        Err(refused(&answer, method, uri))
    }

    pub(crate) fn get(&self, uri: &str) -> Result<Value, Failure> {
        let answer = self.send(Method::GET, uri, None)?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Failed(format!("the answer to {uri} is not JSON: {error}")))
    }

    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self, value: Value) -> Result<T, Failure> {
        serde_json::from_value(value)
            .map_err(|error| Failure::Failed(format!("the node speaks another version of the API: {error}")))
    }

    /// Stages changes and commits them in one transaction of our own.
    pub(crate) fn commit(
        &self,
        kind: &str,
        changes: &[(Method, &str, Option<Value>)],
        how: &How,
    ) -> Result<String, Failure> {
        let transaction = format!("apiclient-{kind}-{}-{}", std::process::id(), nanos());
        for (method, uri, body) in changes {
            let and = if uri.contains('?') { '&' } else { '?' };
            let uri = format!("{uri}{and}tx={transaction}");
            let staged = self.send(method.clone(), &uri, body.as_ref().map(Value::to_string));
            if staged.is_err() {
                // Nothing of a refused change stays behind.
                let _ = self.send(Method::DELETE, &format!("/tx?tx={transaction}"), None);
            }
            staged?;
        }
        let trial = how.trial.map(|seconds| format!("&try={seconds}")).unwrap_or_default();
        let dry = if how.dry_run { "&dry-run=true" } else { "" };
        let after = how.after.map(|generation| format!("&generation={generation}")).unwrap_or_default();
        let uri = format!("/tx/commit_and_apply?tx={transaction}{trial}{dry}{after}");
        let progress = Progress::begin(&self.endpoint, "applying");
        let committed = self.send(Method::POST, &uri, None);
        drop(progress);
        if committed.is_err() || how.dry_run {
            let _ = self.send(Method::DELETE, &format!("/tx?tx={transaction}"), None);
        }
        let answer = committed?;
        if how.dry_run {
            let differences: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            return Ok(cli_diff::show(&self.read(differences)?));
        }
        how.trial.map_or(Ok(String::new()), |_| cli_trial::begun(self))
    }
}

/// What a node that did not grant a request says.
pub(crate) fn refused(answer: &Answer, method: Method, uri: &str) -> Failure {
    let plain = || Told { error: answer.text(), mistakes: Vec::new() };
    let Told { error, mistakes } = serde_json::from_slice(&answer.body).unwrap_or_else(|_| plain());
    Failure::Refused { status: answer.status, method, uri: uri.to_owned(), reason: error, mistakes }
}

pub(crate) fn nanos() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

fn execute(api: &Api, command: &Command) -> Result<String, Failure> {
    match command {
        Command::Raw(raw) => {
            let method = Method::from_bytes(raw.method.to_uppercase().as_bytes())
                .map_err(|_| Failure::Usage(format!("{:?} is not a method of HTTP", raw.method)))?;
            Ok(api.send(method, &raw.uri, raw.data.clone())?.text())
        }
        Command::Get { prefixes } => get(api, prefixes),
        Command::Set { what, how } => match &what.json {
            Some(text) => {
                let value: Value = serde_json::from_str(text)
                    .map_err(|error| Failure::Usage(format!("--json: this is not JSON: {error}")))?;
                let settings =
                    inner_settings(value).map_err(|reason| Failure::Usage(format!("--json: {reason}")))?;
                api.commit("set", &[(Method::PATCH, "/settings", Some(settings))], how)
            }
            None => {
                let pairs = key_values(&what.pairs)?;
                let body = json!({"request_payload": pairs});
                api.commit("set", &[(Method::PATCH, "/settings/keypair", Some(body))], how)
            }
        },
        Command::Apply { files, how } => {
            let changes = files
                .iter()
                .map(|file| Ok((Method::PATCH, "/settings", Some(read_settings(file)?))))
                .collect::<Result<Vec<_>, Failure>>()?;
            api.commit("apply", &changes, how)
        }
        Command::PowerOff => {
            api.send(Method::POST, "/actions/power-off", None)?;
            Ok("Powering off.".to_owned())
        }
        Command::Reboot => {
            api.send(Method::POST, "/actions/reboot", None)?;
            Ok("Rebooting.".to_owned())
        }
        Command::Status => {
            let value = api.get("/?prefix=status")?;
            let told = match api.read::<Status>(value["status"].clone()) {
                Ok(status) => describe(&status, Colour::of_stdout()),
                // The agent is not there: the server says what it knows.
                Err(_) => {
                    let part: PartialStatus = api.read(value["status"].clone())?;
                    describe_partial(&part, Colour::of_stdout())
                }
            };
            Ok(told + &describe_notes(&api.read(value["status"].clone())?, Colour::of_stdout()))
        }
        Command::Container(Container::List) => {
            let containers = api.get("/containers")?;
            Ok(list(&api.read::<Vec<ContainerStatus>>(containers)?))
        }
        Command::Container(Container::Logs { name, lines, since, follow }) => {
            cli_container::logs(api, name, *lines, since.as_deref(), *follow)
        }
        Command::Image(image) => cli_image::execute(api, image),
        Command::Container(Container::Stats { name, json }) => {
            cli_container::stats(api, name.as_deref(), *json)
        }
        Command::Container(Container::Top { name, json }) => cli_container::top(api, name, *json),
        Command::Container(Container::Inspect { name }) => {
            Ok(pretty(&api.get(&format!("/containers/{}/inspect", encode(name)))?))
        }
        Command::Container(Container::Cp(copy)) => cli_copy::copy(api, copy),
        Command::Container(Container::Stop { name }) => cli_container::stop(api, name),
        Command::Container(Container::Start { name }) => {
            cli_container::act(api, name, ContainerAction::Start).map(|()| format!("starting {name}"))
        }
        Command::Container(Container::Restart { name }) => {
            cli_container::act(api, name, ContainerAction::Restart).map(|()| format!("restarting {name}"))
        }
        Command::Container(Container::Pause { name }) => {
            cli_container::act(api, name, ContainerAction::Pause).map(|()| format!("paused {name}"))
        }
        Command::Container(Container::Unpause { name }) => {
            cli_container::act(api, name, ContainerAction::Unpause).map(|()| format!("{name} goes on"))
        }
        Command::Exec(_) => unreachable!(),
        Command::Update(command) => cli_update::run(api, command),
        Command::Delete { keys, how } => {
            let keys: Vec<String> = keys.iter().map(|key| encode(key)).collect();
            let uri = format!("/settings?keys={}", keys.join(","));
            api.commit("delete", &[(Method::DELETE, &uri, None)], how)
        }
        Command::Diff { from, to } => {
            let to = to.map(|to| format!("&to={to}")).unwrap_or_default();
            let differences = api.get(&format!("/generations/diff?from={from}{to}"))?;
            Ok(cli_diff::show(&api.read(differences)?))
        }
        Command::Restore { generation, trial } => restore(api, *generation, *trial),
        Command::Confirm { generation } => cli_trial::confirm(api, *generation),
        Command::Trial { revert: false } => cli_trial::show(api),
        Command::Trial { revert: true } => cli_trial::revert(api),
        Command::Explain { key } => cli_explain::explain(api, key.as_deref()),
        Command::Edit { key, how } => cli_edit::edit(api, key.as_deref(), how),
        Command::Watch(watch) => cli_watch::watch(api, watch),
        Command::History => {
            let generations = api.get("/generations")?;
            Ok(history(&api.read::<Vec<Listed>>(generations)?, Colour::of_stdout()))
        }
    }
}

fn restore(api: &Api, generation: u64, trial: Option<u32>) -> Result<String, Failure> {
    let query = trial.map(|seconds| format!("?try={seconds}")).unwrap_or_default();
    let progress = Progress::begin(&api.endpoint, "applying");
    let restored = api.send(Method::POST, &format!("/generations/{generation}/restore{query}"), None)?;
    drop(progress);
    let keys: Vec<String> = api.read(serde_json::from_slice(&restored.body).unwrap_or_default())?;
    if keys.is_empty() {
        return Ok(format!("the settings are those of generation {generation} already"));
    }
    let begun = trial.map(|_| cli_trial::begun(api)).transpose()?.map(|begun| format!("\n{begun}"));
    Ok(format!("restored from generation {generation}: {}{}", keys.join(", "), begun.unwrap_or_default()))
}

/// What stands for `KEY=VALUE`: just that, or one key and its value as two arguments.
fn key_values(arguments: &[String]) -> Result<Vec<String>, Failure> {
    if let [key, value] = arguments
        && !key.contains('=')
    {
        return Ok(vec![format!("{key}={value}")]);
    }
    match arguments.iter().position(|pair| !pair.contains('=')) {
        // Not shown: it may be a value that was meant to be secret.
        Some(at) => Err(Failure::Usage(format!(
            "argument {} is not KEY=VALUE, such as motd=hello; a value with spaces is put in quotes: motd='hello world'",
            at + 1
        ))),
        None => Ok(arguments.to_vec()),
    }
}

fn get(api: &Api, prefixes: &[String]) -> Result<String, Failure> {
    if let [uri] = prefixes
        && uri.starts_with('/')
    {
        return Ok(pretty(&api.get(uri)?));
    }
    if prefixes.iter().any(|prefix| prefix.starts_with('/')) {
        return Err(Failure::Usage("either one /path or prefixes, not both".to_owned()));
    }
    let standard = ["os".to_owned(), "settings".to_owned()];
    let prefixes = if prefixes.is_empty() { &standard } else { prefixes };
    let mut merged = json!({});
    for prefix in prefixes {
        let part = api.get(&format!("/?prefix={}", encode(prefix)))?;
        // Bottlerocket's client shows {} and nothing else; a program that reads it still gets that.
        if part == json!({}) {
            eprintln!("apiclient: nothing is there with a name that begins with {prefix:?}");
        }
        merge(&mut merged, part);
    }
    Ok(pretty(&merged))
}

fn merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, more) => *base = more,
    }
}

pub(crate) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// JSON for a terminal too: what would steer it, or turn text around, is written as the escape that JSON has for it.
pub(crate) fn pretty(value: &Value) -> String {
    let steers = |character: char| {
        let turns =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || character.is_control() && character != '\n'
    };
    let mut shown = String::new();
    for character in serde_json::to_string_pretty(value).unwrap_or_default().chars() {
        match steers(character) {
            true => shown.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => shown.push(character),
        }
    }
    shown
}

/// What is under `settings` when there is such a layer, and then nothing beside it that would be lost.
fn inner_settings(mut value: Value) -> Result<Value, String> {
    let Value::Object(table) = &mut value else { return Ok(value) };
    let Some(settings) = table.remove("settings") else { return Ok(value) };
    match table.keys().next() {
        Some(other) => {
            Err(format!("there is {other:?} beside \"settings\": everything belongs under \"settings\""))
        }
        None => Ok(settings),
    }
}

/// The content of `settings` in a file of TOML or JSON.
fn read_settings(file: &Path) -> Result<Value, Failure> {
    let failed = |reason: String| Failure::Failed(format!("{}: {reason}", file.display()));
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(2 << 20).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(2 << 20).read_to_string(&mut text))
    };
    read.map_err(|error| failed(error.to_string()))?;
    if text.trim_start().starts_with('{') {
        let value: Value =
            serde_json::from_str(&text).map_err(|error| failed(format!("this is not JSON: {error}")))?;
        if value.get("settings").is_none() {
            return Err(failed(
                "there is no key \"settings\" at the top: put everything under it".to_owned(),
            ));
        }
        return inner_settings(value).map_err(failed);
    }
    let settings = settings::from_user_data(&text).map_err(|mistakes| failed(mistakes.to_string()))?;
    Ok(settings.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What containers and images call themselves comes from outside.
    #[test]
    fn json_steers_no_terminal_and_is_the_same_json() {
        let hostile = json!({"cmd": ["a\u{1b}[2J", "\u{9b}2J", "\u{7f}", "abc\u{202e}cba", "schön\n"]});
        let shown = pretty(&hostile);
        assert!(shown.chars().all(|character| character == '\n' || !character.is_control()), "{shown:?}");
        assert!(shown.contains(r#""abc\u202ecba""#) && shown.contains("schön"), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), hostile);
    }
}
