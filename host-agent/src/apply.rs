//! Making the node match its settings: which steps a change needs (pure), and doing them.

use apiserver::agent::{ApplyOutcome, ApplyStep};
use settings::Settings;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use crate::container::access::Access;
use crate::container::spec::lasting;
use crate::node::Node;
use crate::{bootstrap, files, hosts};

const ETC: &str = "/run/etc";

/// In the order in which they are done: containers come last, and begin with all that the others have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Motd,
    Hostname,
    Hosts,
    Dns,
    Sysctl,
    Lockdown,
    Registries,
    OciDefaults,
    Bootstrap,
    Containers,
}

type Differ = fn(&Settings, &Settings) -> bool;

/// Each step, what it is called in an outcome, and whether it has to be done when settings change.
const STEPS: [(Step, &str, Differ); 10] = [
    (Step::Motd, "motd", |old, new| old.motd != new.motd),
    (Step::Hostname, "hostname", |old, new| hostname(old) != hostname(new)),
    (Step::Hosts, "hosts", |old, new| hostname(old) != hostname(new) || hosts(old) != hosts(new)),
    (Step::Dns, "dns", |old, new| old.dns != new.dns),
    (Step::Sysctl, "sysctl", |old, new| sysctl(old) != sysctl(new)),
    (Step::Lockdown, "lockdown", |old, new| lockdown(old) != lockdown(new)),
    (Step::Registries, "registries", |old, new| Access::of(old) != Access::of(new)),
    (Step::OciDefaults, "oci-defaults", |old, new| old.oci_defaults != new.oci_defaults),
    (Step::Bootstrap, "bootstrap", |old, new| bootstrap::items(old) != bootstrap::items(new)),
    (Step::Containers, "containers", |old, new| lasting(old) != lasting(new)),
];

fn hostname(settings: &Settings) -> Option<&str> {
    settings.network.as_ref()?.hostname.as_deref()
}

fn hosts(settings: &Settings) -> Option<&[settings::HostEntry]> {
    settings.network.as_ref()?.hosts.as_deref()
}

fn sysctl(settings: &Settings) -> Option<&BTreeMap<settings::SysctlKey, settings::SysctlValue>> {
    settings.kernel.as_ref()?.sysctl.as_ref()
}

fn lockdown(settings: &Settings) -> Option<settings::Lockdown> {
    settings.kernel.as_ref()?.lockdown
}

/// What differs, and what failed before; everything when nothing was applied yet.
fn plan(old: Option<&Settings>, failed: &[Step], new: &Settings) -> Vec<(Step, &'static str)> {
    let needed =
        |step: &Step, differs: Differ| failed.contains(step) || old.is_none_or(|old| differs(old, new));
    STEPS
        .iter()
        .filter(|(step, _, differs)| needed(step, *differs))
        .map(|(step, name, _)| (*step, *name))
        .collect()
}

/// What was applied last.
#[derive(Default)]
pub struct Applier {
    applied: Option<Settings>,
    failed: Vec<Step>,
}

impl Applier {
    #[cfg(test)]
    pub(crate) fn note_applied(&mut self, settings: &Settings) {
        self.applied = Some(settings.clone());
    }

    /// Does what a change needs. A step that fails is told, does not stop the others, and is tried again with the next apply.
    pub fn apply(&mut self, node: &RefCell<Node>, generation: u64, new: &Settings) -> ApplyOutcome {
        let planned = plan(self.applied.as_ref(), &self.failed, new);
        self.failed.clear();
        let mut steps = Vec::new();
        for (step, name) in planned {
            let error = take(step, &mut node.borrow_mut(), new).err();
            if error.is_some() {
                self.failed.push(step);
            }
            steps.push(ApplyStep { name: name.to_owned(), error });
        }
        self.applied = Some(new.clone());
        ApplyOutcome { generation, steps }
    }
}

fn take(step: Step, node: &mut Node, new: &Settings) -> Result<(), String> {
    match step {
        Step::Motd => write_motd(new),
        Step::Hostname => hosts::set_hostname(new),
        Step::Hosts => hosts::write_hosts(new),
        Step::Dns => node.resolver.set_settings(new.dns.as_ref()),
        Step::Sysctl => crate::sysctl::apply(new),
        Step::Lockdown => crate::lockdown::apply(new),
        Step::Registries => {
            let access = Access::of(new);
            let checked = access.check();
            node.containers.set_access(access);
            checked
        }
        Step::OciDefaults => {
            node.containers.set_defaults(new.oci_defaults.clone().unwrap_or_default());
            Ok(())
        }
        Step::Bootstrap => {
            let items = bootstrap::items(new);
            node.containers.keep_images(bootstrap::images(&items));
            node.bootstrap.set(items);
            Ok(())
        }
        Step::Containers => {
            node.containers.apply(lasting(new));
            Ok(())
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
    use serde_json::json;

    fn planned(old: Option<&serde_json::Value>, failed: &[Step], new: &serde_json::Value) -> Vec<Step> {
        let settings = |tree: &serde_json::Value| settings::from_json(tree).unwrap();
        let steps = plan(old.map(settings).as_ref(), failed, &settings(new));
        steps.into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn only_what_changed_and_what_failed_is_done() {
        let base = json!({"motd": "a", "network": {"hostname": "n"}});
        assert_eq!(planned(None, &[], &base), STEPS.map(|(step, ..)| step));
        assert_eq!(planned(Some(&base), &[], &base), []);
        assert_eq!(planned(Some(&base), &[Step::Dns], &base), [Step::Dns]);
        for (change, steps) in [
            (json!({"motd": "b"}), &[Step::Motd][..]),
            (json!({"network": {"hostname": "m"}}), &[Step::Hostname, Step::Hosts]),
            (json!({"network": {"hosts": [["10.0.0.1", ["a"]]]}}), &[Step::Hosts]),
            (json!({"dns": {"name-servers": ["10.0.0.1"]}}), &[Step::Dns]),
            (json!({"kernel": {"sysctl": {"vm.swappiness": "1"}}}), &[Step::Sysctl]),
            (json!({"kernel": {"lockdown": "integrity"}}), &[Step::Lockdown]),
            (json!({"network": {"https-proxy": "p:1"}}), &[Step::Registries]),
            (json!({"network": {"no-proxy": ["a"]}}), &[Step::Registries]),
            (json!({"container-registry": {"mirrors": {"*": ["a"]}}}), &[Step::Registries]),
            (json!({"oci-defaults": {"capabilities": {"kill": false}}}), &[Step::OciDefaults]),
            (json!({"containers": {"web": {"image": "a"}}}), &[Step::Containers]),
            (json!({"host-containers": {"admin": {"source": "a", "enabled": true}}}), &[Step::Containers]),
            (json!({"host-containers": {"admin": {"source": "a", "enabled": false}}}), &[]),
            (json!({"bootstrap-containers": {"setup": {"source": "a", "mode": "once"}}}), &[Step::Bootstrap]),
            (json!({"bootstrap-containers": {"setup": {"source": "a"}}}), &[]),
        ] {
            let base = settings::from_json(&base).unwrap();
            let new = base.with(&settings::from_json(&change).unwrap());
            assert_eq!(planned(Some(&base.to_json()), &[], &new.to_json()), steps, "{change}");
        }
    }
}
