//! What runs before all containers, in which order, and what becomes of the boot when it fails. Pure.

use init_control::Problem;
use serde::{Deserialize, Serialize};
use settings::{ApiclientCommand, BootstrapMode, Settings};
use std::collections::BTreeMap;

use crate::container::spec::{Spec, bootstrap_name};

/// One set of commands, or one container, that the settings want to run at a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// `bootstrap-commands.NAME` or `bootstrap-containers.NAME`: its settings, and its name among all containers.
    pub name: String,
    pub work: Work,
    /// Never off.
    pub mode: BootstrapMode,
    pub essential: bool,
}

/// What is done. Other work is done anew, where that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    Commands(Vec<ApiclientCommand>),
    Container(Box<Spec>),
}

/// What ran at this boot, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Record {
    pub ran: BTreeMap<String, Ran>,
    /// The other containers have begun: nothing more runs before the next boot.
    pub over: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Ran {
    pub work: Work,
    /// None when it succeeded.
    pub failure: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Run(Item),
    /// Until settings change.
    Blocked,
    Over,
}

/// Everything that is not off, in its order: commands by name, then containers, each after those that it names, else by name.
pub fn items(settings: &Settings) -> Vec<Item> {
    let commands = settings.bootstrap_commands.iter().flatten().map(|(name, commands)| Item {
        name: format!("bootstrap-commands.{name}"),
        work: Work::Commands(commands.commands.clone().unwrap_or_default()),
        mode: commands.mode(),
        essential: commands.essential.unwrap_or(false),
    });
    let mut items: Vec<Item> = commands.filter(|item| item.mode != BootstrapMode::Off).collect();
    let all = settings.bootstrap_containers.iter().flatten();
    let mut left: BTreeMap<_, _> = all.filter(|(_, one)| one.mode() != BootstrapMode::Off).collect();
    loop {
        // A commit with a circle is refused; here it would only mean that names decide.
        let mut free =
            left.iter().filter(|(_, one)| !one.after.iter().flatten().any(|it| left.contains_key(it)));
        let Some((&name, &one)) = free.next().or_else(|| left.first_key_value()) else { return items };
        left.remove(name);
        items.push(Item {
            name: bootstrap_name(name),
            work: Work::Container(Box::new(Spec::of_bootstrap(one))),
            mode: one.mode(),
            essential: one.essential.unwrap_or(false),
        });
    }
}

/// The images that are needed, by the names of those that need them.
pub fn images(items: &[Item]) -> BTreeMap<String, String> {
    let image = |item: &Item| match &item.work {
        Work::Container(spec) => Some((item.name.clone(), spec.reference())),
        Work::Commands(_) => None,
    };
    items.iter().filter_map(image).collect()
}

pub(super) fn next(items: &[Item], record: &Record) -> Next {
    for item in items {
        match record.ran.get(&item.name) {
            _ if record.over => return Next::Over,
            None => return Next::Run(item.clone()),
            Some(Ran { failure: Some(_), work }) if item.essential => {
                return if *work == item.work { Next::Blocked } else { Next::Run(item.clone()) };
            }
            Some(_) => {}
        }
    }
    Next::Over
}

/// Those that have succeeded and are not to run again: their mode becomes `off`.
pub(super) fn finished<'a>(items: &'a [Item], record: &Record) -> impl Iterator<Item = &'a Item> {
    let succeeded = |item: &Item| record.ran.get(&item.name).is_some_and(|ran| ran.failure.is_none());
    items.iter().filter(move |item| item.mode == BootstrapMode::Once && succeeded(item))
}

/// What went wrong with those that are still wanted.
pub(super) fn problems(items: &[Item], record: &Record) -> Vec<Problem> {
    let problem = |item: &Item| {
        let failure = record.ran.get(&item.name)?.failure.clone()?;
        let blocks = item.essential && !record.over;
        let consequence = match blocks {
            true => "; it is essential, so no container is started that is not one of bootstrap",
            false => "; it is not essential, so the boot went on",
        };
        let log = match item.work {
            Work::Container(_) => format!("apiclient container logs {} shows what it wrote", item.name),
            Work::Commands(_) => "/data/log/host-agent.log has what they wrote".to_owned(),
        };
        let remedy = match blocks {
            true => format!(
                "change its settings, and it runs again at once; or go on without it: apiclient set {}.mode=off",
                item.name
            ),
            false => "it runs again at the next boot".to_owned(),
        };
        Some(Problem {
            source: "bootstrap".to_owned(),
            subject: format!("settings.{}", item.name),
            message: format!("{failure}{consequence}"),
            hint: format!("{log}; {remedy}"),
        })
    };
    items.iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(tree: &Value) -> Vec<Item> {
        items(&settings::from_json(tree).unwrap())
    }

    fn names(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| item.name.as_str()).collect()
    }

    fn ran(record: &mut Record, item: &Item, failure: Option<&str>) {
        let ran = Ran { work: item.work.clone(), failure: failure.map(str::to_owned) };
        record.ran.insert(item.name.clone(), ran);
    }

    fn container(more: Value) -> Value {
        let mut container = json!({"source": "a", "mode": "once"});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        container
    }

    #[test]
    fn commands_come_first_and_containers_after_those_that_they_name() {
        let items = planned(&json!({
            "bootstrap-containers": {
                "a": container(json!({"after": ["c", "off"]})),
                "b": container(json!({})),
                "c": container(json!({"after": ["d"]})),
                "d": container(json!({"mode": "always"})),
                "off": {"source": "a"},
            },
            "bootstrap-commands": {
                "z": {"commands": [["apiclient", "status"]], "mode": "always"},
                "y": {"commands": [["apiclient", "status"]]},
            },
        }));
        let expected = ["bootstrap-commands.z", "b", "d", "c", "a"];
        assert_eq!(
            names(&items)
                .iter()
                .map(|name| name.trim_start_matches("bootstrap-containers."))
                .collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn a_failure_is_told_and_stops_the_boot_only_when_it_is_essential() {
        let mut items = planned(&json!({"bootstrap-containers": {
            "a": container(json!({})), "b": container(json!({"essential": true})), "c": container(json!({})),
        }}));
        let mut record = Record::default();
        assert_eq!(next(&items, &record), Next::Run(items[0].clone()));
        ran(&mut record, &items[0], Some("it ended with exit code 3"));
        assert_eq!(next(&items, &record), Next::Run(items[1].clone()));
        ran(&mut record, &items[1], Some("it ended with exit code 4"));
        assert_eq!(next(&items, &record), Next::Blocked);
        let told = problems(&items, &record);
        assert!(told[0].message.starts_with("it ended with exit code 3; it is not essential"), "{told:?}");
        assert!(told[1].message.starts_with("it ended with exit code 4; it is essential"), "{told:?}");
        assert!(told[1].hint.contains("apiclient set bootstrap-containers.b.mode=off"), "{told:?}");
        // Its settings changed: it runs again.
        let Work::Container(spec) = &mut items[1].work else { panic!() };
        spec.superpowered = true;
        assert_eq!(next(&items, &record), Next::Run(items[1].clone()));
        // Switched off: the boot goes on.
        items.remove(1);
        assert_eq!(next(&items, &record), Next::Run(items[1].clone()));
        ran(&mut record, &items[1].clone(), None);
        assert_eq!(next(&items, &record), Next::Over);
        assert_eq!(problems(&items, &record).len(), 1);
    }

    #[test]
    fn nothing_runs_once_the_containers_have_begun() {
        let record = Record { over: true, ..Record::default() };
        let items = planned(&json!({"bootstrap-containers": {"a": container(json!({"essential": true}))}}));
        assert_eq!(next(&items, &record), Next::Over);
        assert_eq!(next(&[], &Record::default()), Next::Over);
    }

    #[test]
    fn what_was_to_run_once_is_switched_off_after_it_succeeded() {
        let items = planned(&json!({"bootstrap-containers": {
            "a": container(json!({})), "b": container(json!({})), "c": container(json!({"mode": "always"})),
        }}));
        let mut record = Record::default();
        ran(&mut record, &items[0], None);
        ran(&mut record, &items[1], Some("no"));
        ran(&mut record, &items[2], None);
        assert_eq!(finished(&items, &record).map(|item| &item.name).collect::<Vec<_>>(), [&items[0].name]);
    }

    #[test]
    fn the_record_is_read_back_the_same() {
        let items = planned(&json!({
            "bootstrap-containers": {"a": container(json!({"user-data": "YQ==", "command": ["x"]}))},
            "bootstrap-commands": {"b": {"commands": [["apiclient", "status"]], "mode": "once"}},
        }));
        let mut record = Record { over: true, ..Record::default() };
        items.iter().for_each(|item| ran(&mut record, item, Some("no")));
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), record);
    }
}
