//! What runs before all containers, once at each boot: bootstrap commands, then bootstrap containers, one after another.

mod commands;
mod plan;

use apiserver::agent::{ContainerState, ContainerStatus};
use init_control::{Problem, Request as InitRequest};
use settings::{Settings, from_json};
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub use plan::{Item, images, items};

use crate::commit::{Failure, How, commit};
use crate::container::spec::Spec;
use crate::node::Node;
use crate::{files, init};
use plan::{Next, Ran, Record, Work};

/// In memory: a boot begins anew, an agent that is started again goes on.
const RECORD: &str = "/run/agent/bootstrap.json";
/// How often a container that runs is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Between tries to commit that one has run.
const RETRY: Duration = Duration::from_secs(10);

/// What settings want, and what waits for commands that run.
#[derive(Default)]
pub struct Bootstrap {
    items: watch::Sender<Vec<Item>>,
    runs_commands: bool,
    end: Option<InitRequest>,
}

impl Bootstrap {
    pub fn set(&mut self, items: Vec<Item>) {
        self.items.send_replace(items);
    }

    /// Whether the node's restart, or its end, waits for commands that run now. One of them may have asked for it: cut off, it would be
    /// run again at the next boot, and ask again.
    pub fn puts_off(&mut self, end: &InitRequest) -> bool {
        if self.runs_commands {
            self.end = Some(end.clone());
        }
        self.runs_commands
    }
}

impl Record {
    fn read(path: &Path) -> Self {
        fs::read(path).ok().and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or_default()
    }

    fn keep(&self, path: &Path) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let kept = fs::create_dir_all(folder)
            .and_then(|()| files::replace(path, &serde_json::to_vec(self).unwrap_or_default()));
        if let Err(error) = kept {
            eprintln!(
                "<3>cannot write {}: {error}; if the agent is started again, bootstrap runs again",
                path.display()
            );
        }
    }
}

/// Runs what is to run before all containers, then lets them begin. An essential one that fails keeps them from it, until settings
/// change. It goes on for as long as the agent, with what it could not commit; it returns when the node restarts or ends.
pub async fn run(node: Rc<RefCell<Node>>) {
    let record_path = Path::new(RECORD);
    let mut record = Record::read(record_path);
    let mut watched = node.borrow().bootstrap.items.subscribe();
    for (name, ran) in &record.ran {
        if let Work::Container(spec) = &ran.work {
            node.borrow_mut().containers.start_bootstrap(name, spec);
        }
    }
    loop {
        let items = watched.borrow_and_update().clone();
        tell(&node, plan::problems(&items, &record));
        let item = match plan::next(&items, &record) {
            Next::Over => break,
            Next::Blocked => {
                // The sender lives as long as the node.
                let _ = watched.changed().await;
                continue;
            }
            Next::Run(item) => item,
        };
        eprintln!("<5>{} runs", item.name);
        let is_container = matches!(item.work, Work::Container(_));
        node.borrow_mut().bootstrap.runs_commands = !is_container;
        let Some(failure) = perform(&node, &item, &watched).await else {
            eprintln!("<5>{} is ended: its settings have changed", item.name);
            continue;
        };
        if failure.is_none() {
            eprintln!("<5>{} has succeeded", item.name);
        }
        record.ran.insert(item.name.clone(), Ran { work: item.work.clone(), failure });
        record.keep(record_path);
        // Cut off before this is committed, it runs again at the next boot.
        let _ = switch_off(&item, &record, &watched).await;
        let end = {
            let mut node = node.borrow_mut();
            node.bootstrap.runs_commands = false;
            node.bootstrap.end.take()
        };
        if let Some(end) = end {
            eprintln!("<5>{} is over: the node restarts or ends, as was asked for while it ran", item.name);
            match init::ask(&end).await {
                // Nothing more is begun.
                Ok(_) => return,
                Err(error) => eprintln!("<3>PID 1 does not answer: {error}"),
            }
        }
    }
    if !record.over {
        record.over = true;
        record.keep(record_path);
    }
    {
        let mut node = node.borrow_mut();
        node.containers.release();
        node.containers.stop_strangers();
        node.applied = true;
        node.phase("bootstrap");
    }
    loop {
        let items = watched.borrow_and_update().clone();
        let mut problems = plan::problems(&items, &record);
        for item in plan::finished(&items, &record) {
            problems.extend(switch_off(item, &record, &watched).await.err());
        }
        let all_told = problems.is_empty();
        tell(&node, problems);
        if all_told {
            let _ = watched.changed().await;
        } else {
            let _ = timeout(RETRY, watched.changed()).await;
        }
    }
}

fn tell(node: &RefCell<Node>, problems: Vec<Problem>) {
    node.borrow_mut().set_problems("bootstrap", problems);
}

/// Runs it to its end: why it failed, none when it succeeded. Nothing at all when it was switched off meanwhile, or changed before it
/// began.
async fn perform(
    node: &RefCell<Node>,
    item: &Item,
    watched: &watch::Receiver<Vec<Item>>,
) -> Option<Option<String>> {
    match &item.work {
        Work::Commands(all) => Some(commands::run(&item.name, all).await.err()),
        Work::Container(spec) => run_container(node, item, spec, watched).await,
    }
}

async fn run_container(
    node: &RefCell<Node>,
    item: &Item,
    spec: &Spec,
    watched: &watch::Receiver<Vec<Item>>,
) -> Option<Option<String>> {
    let name = item.name.as_str();
    node.borrow_mut().containers.start_bootstrap(name, spec);
    loop {
        let status = node.borrow().containers.status(name);
        if let Some(ended) = status.as_ref().and_then(failure) {
            return Some(ended);
        }
        // One that has begun runs to its end, whatever its settings become; an image that cannot be had is not waited for.
        let has_begun = status.is_some_and(|status| status.state != ContainerState::Pulling);
        let is_wanted = |now: &Item| now.name == name && (has_begun || now.work == item.work);
        if !watched.borrow().iter().any(is_wanted) {
            node.borrow_mut().containers.stop_bootstrap(name);
            while node.borrow().containers.status(name).is_some() {
                sleep(LOOK).await;
            }
            return None;
        }
        sleep(LOOK).await;
    }
}

/// Why it failed, once it has ended: none when it succeeded.
fn failure(status: &ContainerStatus) -> Option<Option<String>> {
    match (status.state, status.exit_code) {
        (ContainerState::Exited, Some(0)) => Some(None),
        (ContainerState::Exited | ContainerState::Failed, code) => {
            let code = code.map(|code| format!("it ended with exit code {code}"));
            let why: Vec<String> = code.into_iter().chain(status.error.clone()).collect();
            Some(Some(if why.is_empty() { "how it ended is not known".to_owned() } else { why.join(": ") }))
        }
        _ => None,
    }
}

/// Sets the mode of one that was to run once to `off`, when it has succeeded. The error is why that could not be done.
async fn switch_off(
    item: &Item,
    record: &Record,
    watched: &watch::Receiver<Vec<Item>>,
) -> Result<(), Problem> {
    let now = watched.borrow().clone();
    if !plan::finished(&now, record).any(|finished| finished.name == item.name) {
        return Ok(());
    }
    let Some(change) = off(&item.name) else { return Ok(()) };
    let transaction = item.name.replace('.', "-");
    commit(&transaction, &change, How::CommitAndApply).await.map_err(|failure| {
        let (Failure::Refused(reason) | Failure::Passing(reason)) = failure;
        Problem {
            source: "bootstrap".to_owned(),
            subject: format!("settings.{}.mode", item.name),
            message: format!("it has run, but the API did not take off for its mode: {reason}"),
            hint: "the agent tries on; until then it would run again at the next boot".to_owned(),
        }
    })
}

fn off(name: &str) -> Option<Settings> {
    let (group, name) = name.split_once('.')?;
    from_json(&serde_json::json!({group: {name: {"mode": "off"}}})).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver::agent::ContainerKind;

    #[test]
    fn how_a_container_ended_is_known_only_when_it_has() {
        let status = |state, exit_code, error: Option<&str>| ContainerStatus {
            name: "bootstrap-containers.a".to_owned(),
            kind: ContainerKind::BootstrapContainer,
            superpowered: false,
            image: "a".to_owned(),
            state,
            pid: None,
            exit_code,
            restarts: 0,
            delay_ms: None,
            delays_ms: Vec::new(),
            error: error.map(str::to_owned),
            essential: false,
            started_at_ms: None,
            health: None,
            waits_for: None,
            next_run_at: None,
            update: None,
            replica_of: None,
            runs_once: false,
            addresses: Vec::new(),
            pull: None,
            user_namespace: None,
        };
        use ContainerState::{Exited, Failed, Pulling, Running, Starting, Stopping};
        for state in [Pulling, Starting, Running, Stopping] {
            assert_eq!(failure(&status(state, None, Some("no answer"))), None);
        }
        assert_eq!(failure(&status(Exited, Some(0), None)), Some(None));
        for (state, code, error, expected) in [
            (Exited, Some(3), None, "it ended with exit code 3"),
            (Exited, Some(137), Some("no memory"), "it ended with exit code 137: no memory"),
            (Failed, None, Some("there is no such image"), "there is no such image"),
            (Failed, None, None, "how it ended is not known"),
        ] {
            assert_eq!(failure(&status(state, code, error)), Some(Some(expected.to_owned())));
        }
    }

    #[test]
    fn a_change_switches_off_one_and_nothing_else() {
        for name in ["bootstrap-containers.A-1", "bootstrap-commands.b"] {
            let keys: Vec<String> = settings::flatten(&off(name).unwrap()).into_keys().collect();
            assert_eq!(keys, [format!("settings.{name}.mode")]);
        }
    }

    #[test]
    fn a_restart_waits_for_commands_that_may_have_asked_for_it() {
        let mut bootstrap = Bootstrap::default();
        assert!(!bootstrap.puts_off(&InitRequest::Reboot));
        bootstrap.runs_commands = true;
        assert!(bootstrap.puts_off(&InitRequest::Reboot));
        assert_eq!(bootstrap.end, Some(InitRequest::Reboot));
    }
}
