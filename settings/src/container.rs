//! `settings.containers`: what runs on the node.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;

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

/// The base64 of a file, with padding: at most 65536 bytes. It may hold secrets, and is in no error and no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct UserDataFile {
    text: String,
    content: Vec<u8>,
}

impl UserDataFile {
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

impl TryFrom<String> for UserDataFile {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > 65_536 {
            return Err(format!("{} bytes are more than the 65536 of a container's user data", text.len()));
        }
        let content = BASE64_STANDARD.decode(&text);
        let content = content.map_err(|_| "this is not base64: base64 --wrap=0 FILE makes it")?;
        Ok(Self { text, content })
    }
}

impl From<UserDataFile> for String {
    fn from(file: UserDataFile) -> Self {
        file.text
    }
}

impl fmt::Debug for UserDataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_base64_and_not_shown() {
        let file = UserDataFile::try_from("aHVudGVyMg==".to_owned()).unwrap();
        assert_eq!(file.content(), b"hunter2");
        assert!(!format!("{file:?}").contains("aHVu"));
        assert_eq!(String::from(file), "aHVudGVyMg==");
        for wrong in ["hunter2", "aHVudGVyMg", "aHVu dGVy", &"A".repeat(65_540)] {
            let error = UserDataFile::try_from(wrong.to_owned()).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(UserDataFile::try_from(String::new()).unwrap().content().is_empty());
    }
}
