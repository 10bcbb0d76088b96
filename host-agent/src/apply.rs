//! Making the node match its settings: which steps a change needs (pure), and doing them.

use apiserver::agent::{ApplyOutcome, ApplyStep};
use settings::{Container, Settings};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::files;
use crate::node::Node;

const ETC: &str = "/run/etc";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Motd,
    Hostname,
    Containers,
}

/// What differs; everything when nothing was applied yet.
fn plan(old: Option<&Settings>, new: &Settings) -> Vec<Step> {
    let hostname =
        |settings: &Settings| settings.network.as_ref().and_then(|network| network.hostname.clone());
    let mut steps = Vec::new();
    if old.is_none_or(|old| old.motd != new.motd) {
        steps.push(Step::Motd);
    }
    if old.is_none_or(|old| hostname(old) != hostname(new)) {
        steps.push(Step::Hostname);
    }
    if old.is_none_or(|old| old.containers != new.containers) {
        steps.push(Step::Containers);
    }
    steps
}

/// What was applied last.
#[derive(Default)]
pub struct Applier {
    applied: Option<Settings>,
}

impl Applier {
    #[cfg(test)]
    pub(crate) fn note_applied(&mut self, settings: &Settings) {
        self.applied = Some(settings.clone());
    }

    /// Does what a change needs. A step that fails is told, does not stop the others, and is tried again with the next apply.
    pub fn apply(&mut self, node: &RefCell<Node>, generation: u64, new: &Settings) -> ApplyOutcome {
        let mut steps = Vec::new();
        for step in plan(self.applied.as_ref(), new) {
            let (name, result) = match step {
                Step::Motd => ("motd", write_motd(new)),
                Step::Hostname => ("hostname", set_hostname(new)),
                Step::Containers => {
                    node.borrow_mut().containers.apply(&containers(new));
                    ("containers", Ok(()))
                }
            };
            steps.push(ApplyStep { name: name.to_owned(), error: result.err() });
        }
        let done = steps.iter().all(|step| step.error.is_none());
        self.applied = done.then(|| new.clone());
        ApplyOutcome { generation, steps }
    }
}

fn containers(settings: &Settings) -> BTreeMap<String, Container> {
    settings
        .containers
        .iter()
        .flatten()
        .map(|(name, container)| (name.as_str().to_owned(), container.clone()))
        .collect()
}

fn write_motd(settings: &Settings) -> Result<(), String> {
    let text = settings.motd.as_ref().map(|motd| format!("{motd}\n")).unwrap_or_default();
    let path = Path::new(ETC).join("motd");
    files::replace(&path, text.as_bytes())
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn set_hostname(settings: &Settings) -> Result<(), String> {
    let wanted = settings.network.as_ref().and_then(|network| network.hostname.as_ref());
    // Without a setting, PID 1's name from the machine's identity stays.
    let Some(hostname) = wanted.map(|hostname| hostname.as_str()) else { return Ok(()) };
    nix::unistd::sethostname(hostname)
        .map_err(|error| format!("cannot set the host name to {hostname}: {error}"))?;
    let write = |name: &str, text: String| {
        let path = Path::new(ETC).join(name);
        // In place: containers have these files mounted, and a new file would not be theirs.
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    write("hostname", format!("{hostname}\n"))?;
    write("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_changed_is_done() {
        let one = settings::from_json(&json!({"motd": "a", "network": {"hostname": "n"}})).unwrap();
        let two = settings::from_json(&json!({"motd": "b", "network": {"hostname": "n"}})).unwrap();
        assert_eq!(plan(None, &one), [Step::Motd, Step::Hostname, Step::Containers]);
        assert_eq!(plan(Some(&one), &two), [Step::Motd]);
        assert_eq!(plan(Some(&two), &two), []);
    }
}
