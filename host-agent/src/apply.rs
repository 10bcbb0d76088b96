//! Making the node match its settings: which steps a change needs (pure), and doing them.

use apiserver::agent::{ApplyOutcome, ApplyStep};
use init_control::Problem;
use settings::{ListenAddress, Settings, Step};
use std::cell::RefCell;
use std::path::Path;

use crate::container::access::Access;
use crate::container::spec::lasting;
use crate::node::Node;
use crate::{bootstrap, files, hosts, init};

const ETC: &str = "/run/etc";

/// A step that has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    step: Step,
    /// Nobody asks for it now: it failed before.
    again: bool,
}

/// The steps that depend on a key that was asked for (none: all are) or that has changed, and those that failed before.
fn plan(changed: &[String], asked: &[String], failed: &[Step]) -> Vec<Planned> {
    let is_wanted =
        |step: Step| asked.is_empty() || changed.iter().chain(asked).any(|key| step.depends_on(key));
    let planned = |&step: &Step| match (is_wanted(step), failed.contains(&step)) {
        (false, false) => None,
        (is_wanted, _) => Some(Planned { step, again: !is_wanted }),
    };
    Step::ALL.iter().filter_map(planned).collect()
}

/// What was applied last.
#[derive(Default)]
pub struct Applier {
    applied: Settings,
    is_applied: bool,
    failed: Vec<Step>,
}

impl Applier {
    /// The settings that hold; none before the first apply.
    pub fn applied(&self) -> Option<&Settings> {
        self.is_applied.then_some(&self.applied)
    }

    /// Does what a change needs, and what was asked for by dotted names; none: everything. A step that fails is told, does not
    /// stop the others, and is tried again with each apply until it is done.
    pub async fn apply(
        &mut self,
        node: &RefCell<Node>,
        generation: u64,
        asked: &[String],
        new: &Settings,
    ) -> ApplyOutcome {
        let planned = plan(&settings::changed(&self.applied, new), asked, &self.failed);
        self.failed.clear();
        let mut steps = Vec::new();
        for Planned { step, again } in planned {
            let error = take(step, node, new).await.err();
            if error.is_some() {
                self.failed.push(step);
            }
            steps.push(ApplyStep::new(step, error, again));
        }
        self.applied = new.clone();
        self.is_applied = true;
        node.borrow_mut().set_problems("apply", steps.iter().filter_map(problem).collect());
        ApplyOutcome { generation, steps }
    }
}

/// What is wrong with the node since a step failed.
fn problem(step: &ApplyStep) -> Option<Problem> {
    let message = step.error.clone()?;
    let hint = "mend what it says: it is tried again with each change of the settings".to_owned();
    Some(Problem { source: "apply".to_owned(), subject: step.name.clone(), message, hint })
}

async fn take(step: Step, node: &RefCell<Node>, new: &Settings) -> Result<(), String> {
    match step {
        Step::Motd => write_motd(new),
        Step::Hostname => hosts::set_hostname(new),
        Step::Hosts => hosts::write_hosts(new),
        Step::Dns => node.borrow_mut().resolver.set_settings(new.dns.as_ref()),
        Step::Network => {
            let done = node
                .borrow()
                .network
                .set(new.network.as_ref().and_then(|network| network.interfaces.clone()));
            done.await
        }
        Step::Ntp => {
            let mut node = node.borrow_mut();
            let leased = node.ntp_servers.clone();
            node.time.set_settings(new.ntp.as_ref(), &leased)
        }
        Step::Sysctl => crate::sysctl::apply(new),
        Step::Lockdown => crate::lockdown::apply(new),
        Step::Registries => {
            let access = Access::of(new);
            let checked = access.check();
            node.borrow_mut().containers.set_access(access);
            checked
        }
        Step::OciDefaults => {
            node.borrow_mut().containers.set_defaults(new.oci_defaults.clone().unwrap_or_default());
            Ok(())
        }
        // What looks for updates and keeps a version on trial reads them when it needs them.
        Step::Updates => Ok(()),
        Step::Metrics => {
            let address = new.metrics.as_ref().and_then(|metrics| metrics.address.as_ref());
            node.borrow_mut().exporter.listen(address.and_then(ListenAddress::get))
        }
        Step::Bootstrap => {
            let items = bootstrap::items(new);
            let mut node = node.borrow_mut();
            node.containers.keep_images(bootstrap::images(&items));
            node.bootstrap.set(items);
            Ok(())
        }
        Step::Containers => {
            node.borrow_mut().containers.apply(lasting(new));
            Ok(())
        }
        Step::Api => {
            let wanted = new.api.as_ref().and_then(|api| api.vsock).unwrap_or(false);
            init::switch("api-vsock", wanted).await
        }
    }
}

fn write_motd(settings: &Settings) -> Result<(), String> {
    let text = settings.motd.as_ref().map(|motd| format!("{motd}\n")).unwrap_or_default();
    let path = Path::new(ETC).join("motd");
    files::replace(&path, text.as_bytes())
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    fn planned(changed: &[&str], asked: &[&str], failed: &[Step]) -> Vec<(Step, bool)> {
        let steps = plan(&keys(changed), &keys(asked), failed);
        steps.into_iter().map(|planned| (planned.step, planned.again)).collect()
    }

    #[test]
    fn what_changed_what_was_asked_for_and_what_failed_is_done() {
        let (motd, dns) = ("settings.motd", "settings.dns.search-list");
        assert_eq!(planned(&[motd], &[motd], &[]), [(Step::Motd, false)]);
        assert_eq!(planned(&[dns], &[motd], &[]), [(Step::Motd, false), (Step::Dns, false)]);
        assert_eq!(
            planned(&[motd], &[motd], &[Step::Lockdown]),
            [(Step::Motd, false), (Step::Lockdown, true)]
        );
        assert_eq!(planned(&[], &["settings.kernel.lockdown"], &[Step::Lockdown]), [(Step::Lockdown, false)]);
        assert_eq!(planned(&[], &["settings.nonesuch"], &[]), []);
        let all: Vec<_> = Step::ALL.iter().map(|step| (*step, false)).collect();
        assert_eq!(planned(&[], &[], &[Step::Lockdown]), all);
    }
}
