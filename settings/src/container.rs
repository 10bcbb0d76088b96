//! `settings.containers`: what runs on the node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

use crate::scalar::{Argument, EnvName, EnvValue, ImageReference, Memory, Pids};

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Container {
    /// What it is made of: a preloaded image (`localhost/busybox`), or one that is pulled. A container needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"registry.example.com/team/app:1.2")]
    pub image: Option<ImageReference>,
    /// What it runs, instead of the image's entrypoint and command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["httpd", "-f"]), extend("x-default" = "the image's"))]
    pub command: Option<Vec<Argument>>,
    /// Variables of its environment, over the image's. The API shows them to who may read settings; differences between
    /// generations do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"LOG_LEVEL": "debug"}))]
    pub env: Option<BTreeMap<EnvName, EnvValue>>,
    /// Whether it is started again when it ends: always, only after a failure, or never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"on-failure", extend("x-default" = "`always`"))]
    pub restart: Option<Restart>,
    /// What it may have of the memory, swap included. Above that the kernel ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"64MiB", extend("x-default" = "no limit"))]
    pub memory: Option<Memory>,
    /// How many processes and threads it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 200, extend("x-default" = "1024"))]
    pub pids: Option<Pids>,
    /// Whether the node is healthy only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub essential: Option<bool>,
}

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    Always,
    OnFailure,
    No,
}
