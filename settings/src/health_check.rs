//! `settings.containers.NAME.health-check`: how it is found out whether a container does its work.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::scalar::{Argument, Port, Seconds, checked_string, shown};

/// A question that is asked again and again. One of `command`, `http` and `tcp` says which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HealthCheck {
    /// A command that is run in the container, as its user. It succeeds with exit status 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["pg_isready", "-q"]))]
    pub command: Option<Vec<Argument>>,
    /// What is asked for by HTTP, in the container's network. It succeeds with a status of 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"http://localhost:8080/health")]
    pub http: Option<HealthUrl>,
    /// A port that takes connections, in the container's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 5432)]
    pub tcp: Option<Port>,
    /// Seconds from one answer to the next question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 5, extend("x-default" = "10"))]
    pub interval: Option<Seconds>,
    /// Seconds after which no answer is a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 2, extend("x-default" = "5"))]
    pub timeout: Option<Seconds>,
    /// How many failures in a row make it unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 5, extend("x-default" = "3"))]
    pub retries: Option<Retries>,
    /// Seconds from its start in which failures do not count, until it has succeeded once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 60, extend("x-default" = "none"))]
    pub start_period: Option<Seconds>,
}

impl HealthCheck {
    /// What must hold of the whole.
    pub(crate) fn mistake(&self) -> Option<String> {
        let questions = [self.command.is_some(), self.http.is_some(), self.tcp.is_some()];
        match questions.into_iter().filter(|is_there| *is_there).count() {
            0 => Some("it asks nothing: set one of `command`, `http` and `tcp`".to_owned()),
            1 => None,
            _ => Some("it asks more than one thing: set one of `command`, `http` and `tcp`".to_owned()),
        }
    }
}

/// How often something may fail, 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 100))]
pub struct Retries(u32);

impl Retries {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Retries {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let times = u32::try_from(number).ok().filter(|times| (1..=100).contains(times));
        times.map(Self).ok_or_else(|| format!("{number} is not between 1 and 100"))
    }
}

checked_string!(
    /// `http://localhost`, a port where it is not 80, and a path with a query if it needs one; at most 1024 characters.
    HealthUrl,
    |text| {
        if text.len() <= 1024 && parts(text).is_some() {
            return Ok(());
        }
        Err(format!("{} is not what a health check can ask for, such as http://localhost:8080/health", shown(text)))
    }
);

impl HealthUrl {
    pub fn port(&self) -> u16 {
        parts(self).map_or(80, |(port, _)| port)
    }

    /// With the query.
    pub fn path(&self) -> &str {
        parts(self).map_or("/", |(_, path)| path)
    }
}

fn parts(text: &str) -> Option<(u16, &str)> {
    let rest = text.strip_prefix("http://localhost")?;
    let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
        None if port.is_empty() => 80,
        None => return None,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/?".contains(&byte);
    path.bytes().all(plain).then_some((port, if path.is_empty() { "/" } else { path }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    #[test]
    fn what_is_asked_for_has_a_port_and_a_path() {
        for (text, port, path) in [
            ("http://localhost", 80, "/"),
            ("http://localhost:8080", 8080, "/"),
            ("http://localhost:8080/health?full=1", 8080, "/health?full=1"),
        ] {
            let url: HealthUrl = text.parse().unwrap();
            assert_eq!((url.port(), url.path()), (port, path));
        }
        for wrong in [
            "",
            "http://localhosts/",
            "https://localhost/",
            "http://10.0.0.1/",
            "http://localhost:0/",
            "http://localhost:8080/a b",
            "http://localhost/\r\nX: y",
        ] {
            assert!(wrong.parse::<HealthUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_thing_is_asked() {
        let check = |check| {
            let tree = json!({"containers": {"web": {"image": "a", "health-check": check}}});
            from_json(&tree).unwrap().check().map_err(|mistakes| mistakes.to_string())
        };
        check(json!({"tcp": 80})).unwrap();
        for (wrong, expected) in [
            (json!({"interval": 5}), "asks nothing"),
            (json!({"tcp": 80, "command": ["true"]}), "more than one"),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(
                error.starts_with("settings.containers.web.health-check: ") && error.contains(expected),
                "{error}"
            );
        }
    }
}
