//! What a connection may do: that depends on the socket it came over.

use hyper::{Method, StatusCode};
use serde_json::Value;
use settings::Settings;
use std::collections::BTreeMap;

use crate::reply::Refusal;
use crate::store::Peer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The host agent: as [`Access::Full`], and sees secrets, which are for containers.
    Agent,
    Full,
    /// Reads, and sees no secret: `/run/api-read.sock` is open to every service of the node.
    ReadOnly,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    pub(crate) access: Access,
    pub(crate) peer: Peer,
}

impl Access {
    /// Of a socket that PID 1 passes, by its name in `os/services/apiserver.toml`.
    pub fn of_socket(name: &str) -> Result<Self, String> {
        match name {
            "api" | "api-vsock" => Ok(Self::Full),
            "api-read" => Ok(Self::ReadOnly),
            "api-agent" => Ok(Self::Agent),
            _ => Err("it is none of api, api-vsock, api-read, api-agent".to_owned()),
        }
    }

    pub(crate) fn check(self, method: &Method, path: &[&str]) -> Result<(), Refusal> {
        let elsewhere = "use /run/api.sock (its group is api)";
        match (self, path) {
            (Self::Agent | Self::Full, _) => Ok(()),
            (Self::ReadOnly, _) if method != Method::GET => {
                let reason = format!("{method} is not for this socket, which only reads: {elsewhere}");
                Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason))
            }
            (Self::ReadOnly, ["exec"]) => {
                let reason = format!(
                    "running a process in a container, or copying its files, is not for this socket, which only reads: {elsewhere}"
                );
                Err(Refusal::new(StatusCode::FORBIDDEN, reason))
            }
            (Self::ReadOnly, ["containers", _, "logs"]) => {
                let reason = format!(
                    "a container's log may hold secrets, which this socket does not show: {elsewhere}"
                );
                Err(Refusal::new(StatusCode::FORBIDDEN, reason))
            }
            (Self::ReadOnly, ["containers", _, "top"]) => {
                let reason = format!(
                    "what processes were started with may be secret, which this socket does not show: {elsewhere}"
                );
                Err(Refusal::new(StatusCode::FORBIDDEN, reason))
            }
            (Self::ReadOnly, ["containers", _, "inspect"]) => {
                let reason = format!(
                    "what a container was started with may be secret, which this socket does not show: {elsewhere}"
                );
                Err(Refusal::new(StatusCode::FORBIDDEN, reason))
            }
            (Self::ReadOnly, ["images", "inspect"]) => {
                let reason = format!(
                    "what an image says of itself may hold secrets, which this socket does not show: {elsewhere}"
                );
                Err(Refusal::new(StatusCode::FORBIDDEN, reason))
            }
            (Self::ReadOnly, _) => Ok(()),
        }
    }

    /// The part of a tree of settings (without its outer layer) that may be shown. `all` are the settings that it is of.
    pub(crate) fn shown(self, mut tree: Value, all: &Settings) -> Value {
        match self {
            Self::Agent => return tree,
            Self::Full => {
                let secrets = tree.get_mut("secrets").and_then(Value::as_object_mut);
                secrets.into_iter().flatten().for_each(|(_, secret)| *secret = settings::NOT_SHOWN.into());
                return tree;
            }
            Self::ReadOnly => {}
        }
        // What a comparison does not show is a secret; it is settings' to know which.
        let shown = settings::diff(&Settings::default(), all);
        let shown = shown.into_iter().filter_map(|(key, (_, value))| Some((key, value?))).collect();
        hide("settings", tree, &shown)
    }
}

fn hide(key: &str, value: Value, shown: &BTreeMap<String, Value>) -> Value {
    let Value::Object(table) = value else {
        return shown.get(key).cloned().unwrap_or_else(|| settings::NOT_SHOWN.into());
    };
    let hidden = |(name, value): (String, Value)| {
        let value = hide(&format!("{key}.{name}"), value, shown);
        (name, value)
    };
    Value::Object(table.into_iter().map(hidden).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_socket_of_the_service_has_its_access() {
        let service: toml::Table = include_str!("../../os/services/apiserver.toml").parse().unwrap();
        let sockets = service["socket"].as_array().unwrap();
        let access = |socket: &toml::Value| Access::of_socket(socket["name"].as_str().unwrap()).unwrap();
        for socket in sockets {
            let mode = socket.get("mode").map(|mode| mode.as_str().unwrap());
            // What anybody may open only reads, and what tells secrets is root's.
            assert_eq!(
                access(socket) == Access::ReadOnly,
                mode.is_some_and(|mode| mode.ends_with('6')),
                "{socket}"
            );
            let is_roots =
                mode == Some("0600") && socket.get("group").is_none() && socket.get("user").is_none();
            assert_eq!(access(socket) == Access::Agent, is_roots, "{socket}");
        }
        assert!(sockets.len() == 4 && Access::of_socket("").is_err());
    }

    #[test]
    fn secrets_are_for_the_agent_alone() {
        let tree = json!({"motd": "m", "secrets": {"db": "hunter2"}});
        let all = settings::from_json(&tree).unwrap();
        let hidden = json!({"motd": "m", "secrets": {"db": settings::NOT_SHOWN}});
        assert_eq!(Access::Agent.shown(tree.clone(), &all), tree);
        assert_eq!(Access::Full.shown(tree.clone(), &all), hidden);
        assert_eq!(Access::ReadOnly.shown(tree, &all), hidden);
    }

    #[test]
    fn a_reader_sees_everything_but_secrets() {
        let tree = json!({"motd": "m", "containers": {"web": {"image": "a", "command": ["x"], "env": {"TOKEN": "hunter2"}}}});
        let all = settings::from_json(&tree).unwrap();
        assert_eq!(Access::Full.shown(tree.clone(), &all), tree);
        let mut hidden = tree.clone();
        hidden["containers"]["web"]["env"]["TOKEN"] = json!("(not shown)");
        assert_eq!(Access::ReadOnly.shown(tree.clone(), &all), hidden);
        // What is not known to be no secret is one.
        assert_eq!(
            Access::ReadOnly.shown(json!({"motd": "m"}), &Settings::default()),
            json!({"motd": "(not shown)"})
        );
    }
}
