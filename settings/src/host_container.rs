//! `settings.host-containers`: containers that look after the node itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::container::UserDataFile;
use crate::parse::Mistake;
use crate::scalar::{Argument, Identifier, ImageReference};

/// A container that looks after the node: it has the node's API and a folder of its own that stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HostContainer {
    /// The image, as of `settings.containers`. One that is enabled needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"registry.example.com/team/admin:1.2")]
    pub source: Option<ImageReference>,
    /// Whether it runs. It is started again whenever it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub enabled: Option<bool>,
    /// Whether it may do everything that the node may: all capabilities, no seccomp, the node's processes and devices, and the
    /// node's files in `/.bottlerocket/rootfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub superpowered: Option<bool>,
    /// What the file `/.bottlerocket/host-containers/current/user-data` in it holds. Differences between generations do not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"eyJ1c2VyIjoiYWRtaW4ifQ==")]
    pub user_data: Option<UserDataFile>,
    /// What it runs, instead of the image's entrypoint and command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["/usr/sbin/sshd", "-D"]), extend("x-default" = "the image's"))]
    pub command: Option<Vec<Argument>>,
}

impl HostContainer {
    /// What must hold of the whole.
    pub(crate) fn mistake_of_whole(&self, name: &Identifier) -> Option<Mistake> {
        let key = format!("settings.host-containers.{name}.source");
        (self.enabled == Some(true) && self.source.is_none()).then(|| {
            Mistake::new(
                &key,
                "missing: a host container that is enabled needs an image, and there is none by default",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    #[test]
    fn one_that_is_enabled_needs_an_image() {
        let check = |tree| from_json(&json!({"host-containers": {"admin": tree}})).unwrap().check();
        let error = check(json!({"enabled": true})).unwrap_err().to_string();
        assert!(error.starts_with("settings.host-containers.admin.source: missing"), "{error}");
        check(json!({"enabled": true, "source": "a"})).unwrap();
        check(json!({"superpowered": true})).unwrap();
    }
}
