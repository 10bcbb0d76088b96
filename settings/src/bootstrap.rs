//! `settings.bootstrap-commands` and `settings.bootstrap-containers`: what prepares a node before its containers start.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

use crate::container::UserDataFile;
use crate::order::circle;
use crate::parse::Mistake;
use crate::scalar::{Argument, Identifier, ImageReference, shown};

/// When it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BootstrapMode {
    #[default]
    Off,
    Once,
    Always,
}

/// A container that runs to its end at a boot, before all other containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BootstrapContainer {
    /// The image, as of `settings.containers`. One that is not off needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"registry.example.com/team/setup:1.2")]
    pub source: Option<ImageReference>,
    /// Whether it runs never, at each boot until it has succeeded once (the mode becomes `off` then), or at every boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"once", extend("x-default" = "`off`"))]
    pub mode: Option<BootstrapMode>,
    /// What the file `/.bottlerocket/bootstrap-containers/current/user-data` in it holds. Differences between generations do not
    /// show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"ZWNobyBoaQ==")]
    pub user_data: Option<UserDataFile>,
    /// Whether no other container starts unless it succeeds. The node answers all the same, and goes on when its settings change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub essential: Option<bool>,
    /// What it runs, instead of the image's entrypoint and command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["/setup", "--all"]), extend("x-default" = "the image's"))]
    pub command: Option<Vec<Argument>>,
    /// Bootstrap containers that run before it, whether they succeed or not. Else names decide: they run one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["disks"]))]
    pub after: Option<Vec<Identifier>>,
    /// Whether it may do everything that the node may, as of `settings.host-containers`. Any bootstrap container has the node's
    /// processes, devices and files, CAP_SYS_ADMIN and CAP_NET_ADMIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub superpowered: Option<bool>,
}

/// Commands that run at a boot, before bootstrap containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BootstrapCommands {
    /// Command lines of `apiclient`, one after another up to the first that fails; together they have 10 minutes. Sets of them
    /// run in the order of their names. Needed unless they are off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!([["apiclient", "set", "motd=Prepared"]]))]
    pub commands: Option<Vec<ApiclientCommand>>,
    /// Whether they run never, at each boot until they have succeeded once (the mode becomes `off` then), or at every boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"always", extend("x-default" = "`off`"))]
    pub mode: Option<BootstrapMode>,
    /// Whether no container starts unless they succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub essential: Option<bool>,
}

/// A command line whose first item is `apiclient`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<Argument>", into = "Vec<Argument>")]
pub struct ApiclientCommand(Vec<Argument>);

impl ApiclientCommand {
    /// What follows `apiclient`.
    pub fn arguments(&self) -> &[Argument] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl TryFrom<Vec<Argument>> for ApiclientCommand {
    type Error = String;

    fn try_from(items: Vec<Argument>) -> Result<Self, String> {
        match items.first() {
            Some(first) if first.as_str() == "apiclient" => Ok(Self(items)),
            first => Err(format!(
                "{} is not \"apiclient\", which every bootstrap command begins with, as in [\"apiclient\", \"set\", \"motd=hello\"]",
                shown(first.map_or("", Argument::as_str))
            )),
        }
    }
}

impl From<ApiclientCommand> for Vec<Argument> {
    fn from(command: ApiclientCommand) -> Self {
        command.0
    }
}

impl BootstrapContainer {
    pub fn mode(&self) -> BootstrapMode {
        self.mode.unwrap_or_default()
    }
}

impl BootstrapCommands {
    pub fn mode(&self) -> BootstrapMode {
        self.mode.unwrap_or_default()
    }

    /// What must hold of the whole.
    pub(crate) fn mistake_of_whole(&self, name: &Identifier) -> Option<Mistake> {
        let key = format!("settings.bootstrap-commands.{name}.commands");
        (self.mode() != BootstrapMode::Off && self.commands.is_none())
            .then(|| Mistake::new(&key, "missing: there is nothing to run"))
    }
}

type Containers = BTreeMap<Identifier, BootstrapContainer>;

/// What must hold of all bootstrap containers together.
pub(crate) fn mistakes_of_containers(all: &Containers) -> Vec<Mistake> {
    let key = |name: &Identifier, of: &str| format!("settings.bootstrap-containers.{name}.{of}");
    let mut mistakes = Vec::new();
    for (name, container) in all {
        if container.mode() != BootstrapMode::Off && container.source.is_none() {
            mistakes.push(Mistake::new(
                &key(name, "source"),
                "missing: a bootstrap container needs an image unless its mode is off",
            ));
        }
        for unknown in container.after.iter().flatten().filter(|after| !all.contains_key(*after)) {
            let reason = format!("there is no bootstrap container {}", shown(unknown));
            mistakes.push(Mistake::new(&key(name, "after"), reason));
        }
    }
    let after = |name: &Identifier| all.get(name).and_then(|container| container.after.as_deref());
    mistakes.extend(circle(all.keys(), after).map(|circle| circle.mistake("settings.bootstrap-containers")));
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    fn check(containers: serde_json::Value) -> Result<(), String> {
        let settings = from_json(&json!({"bootstrap-containers": containers})).unwrap();
        settings.check().map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn an_order_that_cannot_be_kept_is_refused() {
        check(json!({"a": {"after": ["b", "c"]}, "b": {"after": ["c"]}, "c": {}})).unwrap();
        for (containers, expected) in [
            (
                json!({"a": {"after": ["x"]}}),
                "settings.bootstrap-containers.a.after: there is no bootstrap container \"x\"",
            ),
            (
                json!({"a": {"after": ["a"]}}),
                "settings.bootstrap-containers.a.after: a circle, in which none could be the first: a after a",
            ),
            (
                json!({"a": {"after": ["b"]}, "b": {"after": ["d", "c"]}, "c": {"after": ["b"]}, "d": {}}),
                "settings.bootstrap-containers.b.after: a circle, in which none could be the first: b after c after b",
            ),
        ] {
            assert_eq!(check(containers).unwrap_err(), expected);
        }
    }

    #[test]
    fn what_runs_needs_something_to_run() {
        check(json!({"a": {"mode": "off"}})).unwrap();
        let error = check(json!({"a": {"mode": "once"}})).unwrap_err();
        assert!(error.starts_with("settings.bootstrap-containers.a.source: missing"), "{error}");
        let commands = from_json(&json!({"bootstrap-commands": {"a": {"mode": "always"}}})).unwrap();
        let error = commands.check().unwrap_err().to_string();
        assert!(error.starts_with("settings.bootstrap-commands.a.commands: missing"), "{error}");
    }

    #[test]
    fn commands_are_of_apiclient_and_no_other_program() {
        let commands = |list| from_json(&json!({"bootstrap-commands": {"a": {"commands": list}}}));
        let settings = commands(json!([["apiclient", "set", "motd=a"], ["apiclient"]])).unwrap();
        let all = settings.bootstrap_commands.unwrap();
        let first = &all.first_key_value().unwrap().1.commands.as_ref().unwrap()[0];
        let arguments: Vec<&str> = first.arguments().iter().map(|item| item.as_str()).collect();
        assert_eq!(arguments, ["set", "motd=a"]);
        for wrong in [
            json!([["sh", "-c", "true"]]),
            json!([["/usr/bin/apiclient"]]),
            json!([["apiclient"], ["Apiclient"]]),
        ] {
            let error = commands(wrong).unwrap_err().to_string();
            assert!(error.contains("is not \"apiclient\""), "{error}");
        }
        for wrong in [json!(["apiclient"]), json!([[]]), json!([]), json!([["apiclient", 1]])] {
            assert!(commands(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
