//! What the API server knows: defaults, the store, pending transactions; and how it asks the host agent.

use hyper::StatusCode;
use serde_json::{Value, json};
use settings::Settings;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

use crate::agent::init_status::Problem;
use crate::agent::{self, ErrorKind, Request, Response};
use crate::apply::Applies;
use crate::budget::Budget;
use crate::events::Events;
use crate::exec::Sessions;
use crate::metrics::Counts;
use crate::reply::Refusal;
use crate::store::{Content, Generation, Origin, Peer, Store, StoreError, Trial};
use crate::transactions::Transactions;
use crate::trial::{Action, Event, Moment, decide};
use crate::trials::{self, Reverted, Trials};
use crate::whole::WholeSettings;

/// Where things are; tests put them elsewhere.
#[derive(Debug, Clone)]
pub struct Paths {
    pub settings: PathBuf,
    pub defaults: PathBuf,
    pub os_release: PathBuf,
    pub agent: PathBuf,
}

#[derive(Debug)]
pub struct State {
    pub(crate) transactions: Transactions,
    /// What the bodies that are being read may take.
    pub(crate) bodies: Budget,
    /// What the answers that are not sent yet may take.
    pub(crate) answers: Budget,
    /// Held while a log is on its way from the host agent: it takes the most of all answers.
    pub(crate) log: Rc<Mutex<()>>,
    pub(crate) applies: Applies,
    pub(crate) trials: Trials,
    pub(crate) events: Events,
    pub(crate) sessions: Sessions,
    pub(crate) counts: Counts,
    pub(crate) whole: WholeSettings,
    pub store: Store,
    /// What was wrong with the store when it was opened.
    pub problems: Vec<Problem>,
    /// Whether the host agent ever answered this process.
    pub(crate) agent_has_answered: bool,
    pub(crate) started: Instant,
    defaults: Settings,
    os: Value,
    agent: PathBuf,
}

const QUICK: Duration = Duration::from_secs(10);
/// Applying stops and starts containers.
const SLOW: Duration = Duration::from_secs(120);

impl State {
    pub fn open(paths: &Paths) -> Result<Self, String> {
        let (store, problems) = Store::open(&paths.settings);
        let hint = match store.usable() {
            Ok(()) => "look at the settings (apiclient get settings) and set again what is missing",
            Err(_) => {
                "restart the node (apiclient reboot); if it stays so, its state partition is damaged: replace the disk"
            }
        };
        let problems = problems.into_iter().map(|message| problem("settings", message, hint)).collect();
        let text = fs::read_to_string(&paths.defaults)
            .map_err(|error| format!("cannot read the defaults {}: {error}", paths.defaults.display()))?;
        // The file is the content of [settings]; user data has the table around it.
        let table: toml::Table = toml::from_str(&text)
            .map_err(|error| format!("{}: {}", paths.defaults.display(), error.message()))?;
        let value = serde_json::to_value(table).unwrap_or_default();
        let defaults = settings::from_json(&value)
            .map_err(|mistakes| format!("{}: {mistakes}", paths.defaults.display()))?;
        let os = os(&paths.os_release)?;
        Ok(Self {
            transactions: Transactions::default(),
            bodies: Budget::default(),
            answers: Budget::default(),
            log: Rc::default(),
            applies: Applies::default(),
            trials: Trials::default(),
            events: Events::default(),
            sessions: Sessions::default(),
            counts: Counts::default(),
            whole: WholeSettings::default(),
            store,
            problems,
            agent_has_answered: false,
            started: Instant::now(),
            defaults,
            os,
            agent: paths.agent.clone(),
        })
    }

    /// Defaults with the current generation over them.
    pub fn effective(&self) -> Settings {
        self.defaults.with(&self.store.settings())
    }

    pub fn os(&self) -> &Value {
        &self.os
    }

    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// Commits a transaction, for so many seconds on trial. Acknowledged means durable; a refused one stays pending. Returns the keys
    /// that it set, as Bottlerocket does also those of a value that was the same before, and that it removed.
    pub(crate) fn commit(
        &mut self,
        transaction: &str,
        peer: Peer,
        trial: Option<u32>,
    ) -> Result<Vec<String>, Refusal> {
        let (content, keys) = self.prepare(transaction)?;
        self.commit_content(content, transaction, peer, trial)?;
        self.transactions.take(transaction);
        Ok(keys)
    }

    /// What a commit of a transaction would make the settings, or why it would be refused.
    pub(crate) fn dry_run(&self, transaction: &str) -> Result<Settings, Refusal> {
        let (content, _) = self.prepare(transaction)?;
        self.may_commit(&content)?;
        Ok(content.settings)
    }

    /// What a transaction makes of what is committed, and the keys that it sets or removes.
    fn prepare(&self, transaction: &str) -> Result<(Content, Vec<String>), Refusal> {
        let change = self.transactions.pending(transaction);
        let base = self.store.content();
        let mut keys = change.keys(&base.settings);
        let next = base.followed_by(change.over(&base.settings), change.removed());
        if next.foreign != base.foreign {
            keys.extend(
                change.removed().map(str::to_owned).filter(|key| !keys.contains(key)).collect::<Vec<_>>(),
            );
        }
        if keys.is_empty() {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Tried to commit with no pending changes",
            ));
        }
        Ok((next, keys))
    }

    /// Makes the settings of a generation that is kept the newest ones. Returns the keys that differ.
    pub(crate) fn restore(
        &mut self,
        number: u64,
        peer: Peer,
        trial: Option<u32>,
    ) -> Result<Vec<String>, Refusal> {
        let content = self.generation(number)?.content;
        let keys = settings::changed(&self.store.settings(), &content.settings);
        self.commit_content(content, &format!("restore-{number}"), peer, trial)?;
        Ok(keys)
    }

    fn may_commit(&self, content: &Content) -> Result<(), Refusal> {
        if let Action::Refuse(reason) = decide(self.store.on_trial(), &Event::Commit, &self.now()) {
            return Err(Refusal::new(StatusCode::CONFLICT, reason));
        }
        let mistakes = self.defaults.with(&content.settings).check();
        mistakes.map_err(Refusal::mistakes)
    }

    fn commit_content(
        &mut self,
        next: Content,
        transaction: &str,
        peer: Peer,
        trial: Option<u32>,
    ) -> Result<(), Refusal> {
        self.may_commit(&next)?;
        // The same again is no new generation, but it is acknowledged all the same.
        let keys = settings::changed(&self.store.settings(), &next.settings);
        if self.store.usable().is_ok() && self.store.content() == next {
            return Ok(());
        }
        let origin = Origin { transaction: transaction.to_owned(), peer, os_version: self.os_version() };
        let terms = trial.map(|seconds| Trial::new(seconds, &self.now()));
        let number = self.store.commit(next, origin, terms).map_err(|error| {
            Refusal::internal(format!("the settings were not committed: {error}; nothing was changed"))
        })?;
        let on_trial = trial.map(|seconds| format!(", on trial for {seconds} s")).unwrap_or_default();
        self.events.committed(number, transaction, &keys);
        self.counts.commits += 1;
        eprintln!("<6>generation {number} committed from {transaction}{on_trial}");
        self.trials.changed();
        Ok(())
    }

    /// Takes back what is on trial, if [`decide`] says so of an event.
    pub(crate) fn revert(&mut self, event: &Event, peer: Peer) -> Result<Option<Reverted>, StoreError> {
        if decide(self.store.on_trial(), event, &self.now()) != Action::Revert {
            return Ok(None);
        }
        let (before, on_trial) = (self.store.settings(), self.store.number());
        let number = self.store.revert(peer, self.os_version())?;
        let keys = settings::changed(&before, &self.store.settings());
        self.events.committed(number, &format!("revert-{on_trial}"), &keys);
        self.counts.commits += 1;
        eprintln!("<5>generation {number} takes back what was on trial");
        self.trials.changed();
        Ok(Some(Reverted { generation: number, keys }))
    }

    pub(crate) fn now(&self) -> Moment {
        self.trials.now()
    }

    fn os_version(&self) -> String {
        self.os["version_id"].as_str().unwrap_or_default().to_owned()
    }

    /// Everything that is wrong as far as this server knows, and whether the node is worse for it.
    pub(crate) fn all_problems(&self) -> (Vec<Problem>, bool) {
        let mut problems = self.problems.clone();
        problems.extend(self.trials.problem());
        let degraded = !problems.is_empty();
        problems.extend(trials::pending_problem(self));
        (problems, degraded)
    }

    /// What a person may want to know, though nothing is wrong.
    pub(crate) fn notes(&self) -> Vec<String> {
        let keys = self.store.foreign_keys();
        if keys.is_empty() {
            return Vec::new();
        }
        let shown: Vec<String> = keys.iter().take(16).cloned().collect();
        let more = if keys.len() > shown.len() {
            format!(" and {} more", keys.len() - shown.len())
        } else {
            String::new()
        };
        vec![format!(
            "a newer version of Caisson set what this one does not know, and does not use; it is kept for the newer one: {}{more}",
            shown.join(", ")
        )]
    }

    /// A generation that is kept.
    pub(crate) fn generation(&self, number: u64) -> Result<Generation, Refusal> {
        let generation =
            self.store.generation(number).map_err(|error| Refusal::internal(error.to_string()))?;
        generation.ok_or_else(|| {
            let reason =
                format!("there is no generation {number}: GET /generations lists those that are kept");
            Refusal::new(StatusCode::NOT_FOUND, reason)
        })
    }

    /// Stages the removal of keys that are set, with or without the outer `settings`.
    pub(crate) fn remove(&mut self, transaction: &str, keys: &[String]) -> Result<(), Refusal> {
        let pending = self.transactions.pending(transaction);
        let content = self.store.content();
        let set = settings::flatten(&pending.over(&content.settings));
        let foreign = self.store.foreign_keys().into_iter().map(|key| (key, Value::Null)).collect();
        let defaults = settings::flatten(&self.defaults);
        let keys: Vec<String> = keys.iter().map(|key| full_key(key)).collect();
        for key in &keys {
            if key == "settings" {
                return Err(Refusal::bad_request("settings is everything: name the keys to delete"));
            }
            if !has(&set, key) && !has(&foreign, key) {
                let why = if has(&defaults, key) {
                    ": its value is a default of the image, which stays"
                } else {
                    ""
                };
                return Err(Refusal::new(StatusCode::NOT_FOUND, format!("{key} is not set{why}")));
            }
        }
        self.transactions.remove(transaction, &keys).map_err(Refusal::bad_request)
    }

    /// The request that makes the node match what is committed.
    pub(crate) fn apply_request(&self, keys: Vec<String>) -> Request {
        Request::Apply { generation: self.store.number(), keys, settings: Box::new(self.effective()) }
    }
}

fn full_key(key: &str) -> String {
    match key.strip_prefix("settings") {
        Some("") => key.to_owned(),
        Some(rest) if rest.starts_with('.') => key.to_owned(),
        _ => format!("settings.{key}"),
    }
}

/// Whether the key is a value's, or a table's with values in it.
fn has(flat: &BTreeMap<String, Value>, key: &str) -> bool {
    let below = format!("{key}.");
    flat.contains_key(key)
        || flat.range(below.clone()..).next().is_some_and(|(name, _)| name.starts_with(&below))
}

/// A problem that the API server itself tells.
pub(crate) fn problem(subject: &str, message: String, hint: &str) -> Problem {
    Problem { source: "apiserver".to_owned(), subject: subject.to_owned(), message, hint: hint.to_owned() }
}

/// Asks the host agent; its errors become the API's.
async fn ask(agent: &Path, request: &Request) -> Result<Response, Refusal> {
    // An image may have half a million files to be measured or removed.
    let is_slow = matches!(request, Request::Apply { .. } | Request::Images { .. });
    let patience = if is_slow { SLOW } else { QUICK };
    match agent::call(agent, request, patience).await {
        Ok(Response::Error { kind: ErrorKind::NotFound, message }) => {
            Err(Refusal::new(StatusCode::NOT_FOUND, message))
        }
        Ok(Response::Error { kind: ErrorKind::Conflict, message }) => {
            Err(Refusal::new(StatusCode::CONFLICT, message))
        }
        Ok(Response::Error { kind: ErrorKind::Busy, message }) => {
            Err(Refusal::new(StatusCode::LOCKED, message))
        }
        Ok(Response::Error { kind: ErrorKind::Failed, message }) => {
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        }
        Ok(response) => Ok(response),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Refusal::internal(format!(
            "the host agent's answer cannot be used: {error}; if it is a log, ask for less of it (?lines=100)"
        ))),
        Err(error) => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "the host agent does not answer ({error}): if it is starting, try again in a moment; `apiclient status` (GET /) says how the node is"
            ),
        )),
    }
}

/// As [`ask`], of a server whose state others use meanwhile.
pub(crate) async fn ask_agent(state: &RefCell<State>, request: &Request) -> Result<Response, Refusal> {
    let agent = state.borrow().agent().to_owned();
    let answer = ask(&agent, request).await;
    if answer.is_ok() {
        state.borrow_mut().agent_has_answered = true;
    }
    answer
}

pub(crate) fn unexpected() -> Refusal {
    Refusal::internal("the host agent gave an answer of another kind than was asked for")
}

/// What `GET /os` shows, from os-release(5), in Bottlerocket's names.
fn os(path: &Path) -> Result<Value, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('"').to_owned()
    };
    Ok(json!({
        "pretty_name": field("PRETTY_NAME"),
        "variant_id": field("VARIANT_ID"),
        "version_id": field("VERSION_ID"),
        "build_id": field("BUILD_ID"),
        "arch": std::env::consts::ARCH,
    }))
}
