//! `settings.oci-defaults`: what containers may do unless something else is said.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

use crate::parse::Mistake;
use crate::scalar::{checked_string, shown};

/// Linux' capabilities (`capabilities(7)`), as Bottlerocket writes them.
const CAPABILITIES: [&str; 41] = [
    "audit-control",
    "audit-read",
    "audit-write",
    "block-suspend",
    "bpf",
    "checkpoint-restore",
    "chown",
    "dac-override",
    "dac-read-search",
    "fowner",
    "fsetid",
    "ipc-lock",
    "ipc-owner",
    "kill",
    "lease",
    "linux-immutable",
    "mac-admin",
    "mac-override",
    "mknod",
    "net-admin",
    "net-bind-service",
    "net-broadcast",
    "net-raw",
    "perfmon",
    "setfcap",
    "setgid",
    "setpcap",
    "setuid",
    "sys-admin",
    "sys-boot",
    "sys-chroot",
    "sys-module",
    "sys-nice",
    "sys-pacct",
    "sys-ptrace",
    "sys-rawio",
    "sys-resource",
    "sys-time",
    "sys-tty-config",
    "syslog",
    "wake-alarm",
];

/// Bottlerocket's names of limits, and setrlimit(2)'s.
const LIMITS: [(&str, &str); 16] = [
    ("max-address-space", "RLIMIT_AS"),
    ("max-core-file-size", "RLIMIT_CORE"),
    ("max-cpu-time", "RLIMIT_CPU"),
    ("max-data-size", "RLIMIT_DATA"),
    ("max-file-locks", "RLIMIT_LOCKS"),
    ("max-file-size", "RLIMIT_FSIZE"),
    ("max-locked-memory", "RLIMIT_MEMLOCK"),
    ("max-msgqueue-size", "RLIMIT_MSGQUEUE"),
    ("max-nice-priority", "RLIMIT_NICE"),
    ("max-open-files", "RLIMIT_NOFILE"),
    ("max-pending-signals", "RLIMIT_SIGPENDING"),
    ("max-processes", "RLIMIT_NPROC"),
    ("max-realtime-priority", "RLIMIT_RTPRIO"),
    ("max-realtime-timeout", "RLIMIT_RTTIME"),
    ("max-resident-set", "RLIMIT_RSS"),
    ("max-stack-size", "RLIMIT_STACK"),
];

/// The kernel's `fs.nr_open`: with more, no container could be started.
const MOST_OPEN_FILES: u64 = 1 << 20;

/// What containers may do that are started from then on; those that run keep what they have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OciDefaults {
    /// Capabilities that containers have (true) or lack (false), by the kernel's names without `CAP_`, such as `net-raw`. What
    /// the seccomp profile of all containers denies stays denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = json!({"net-raw": true, "mknod": false}),
        extend("x-default" = "audit-write, chown, dac-override, fowner, fsetid, kill, mknod, net-bind-service, setfcap, setgid, setpcap, setuid, sys-chroot")
    )]
    pub capabilities: Option<BTreeMap<Capability, bool>>,
    /// Limits of each process in a container (`setrlimit(2)`), by their names: `max-address-space`, `max-core-file-size`,
    /// `max-cpu-time`, `max-data-size`, `max-file-locks`, `max-file-size`, `max-locked-memory`, `max-msgqueue-size`,
    /// `max-nice-priority`, `max-open-files`, `max-pending-signals`, `max-processes`, `max-realtime-priority`,
    /// `max-realtime-timeout`, `max-resident-set`, `max-stack-size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = json!({"max-open-files": {"soft-limit": 1024, "hard-limit": 65536}}),
        extend("x-default" = "max-open-files: 65536, both")
    )]
    pub resource_limits: Option<BTreeMap<LimitName, ResourceLimit>>,
}

/// A limit of processes. Both are needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResourceLimit {
    /// Up to which a process may raise its own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 65536)]
    pub hard_limit: Option<Limit>,
    /// The limit that a process begins with, at most the hard one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 1024)]
    pub soft_limit: Option<Limit>,
}

checked_string!(
    /// A capability of Linux, in lower case with `-`, without `CAP_`.
    Capability,
    |text| {
        if CAPABILITIES.contains(&text) {
            return Ok(());
        }
        Err(format!("{} is not a capability of Linux, such as net-raw for CAP_NET_RAW", shown(text)))
    }
);

impl Capability {
    /// Every capability of Linux.
    pub fn all() -> impl Iterator<Item = Self> {
        CAPABILITIES.into_iter().map(|name| Self(name.to_owned()))
    }

    /// The kernel's name, `CAP_NET_RAW`.
    pub fn kernel_name(&self) -> String {
        format!("CAP_{}", self.to_uppercase().replace('-', "_"))
    }
}

checked_string!(
    /// What is limited.
    LimitName,
    |text| {
        if LIMITS.iter().any(|(name, _)| *name == text) {
            return Ok(());
        }
        let known: Vec<&str> = LIMITS.iter().map(|(name, _)| *name).collect();
        Err(format!("{} is not a limit of processes: there are {}", shown(text), known.join(", ")))
    }
);

impl LimitName {
    /// The kernel's name, `RLIMIT_NOFILE`.
    pub fn kernel_name(&self) -> &'static str {
        LIMITS.iter().find(|(name, _)| *name == self.as_str()).map_or("", |(_, kernel)| kernel)
    }
}

/// A whole number from 0 on, or `"unlimited"`, which is also -1 and shown as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Written", into = "i64")]
#[schemars(extend("anyOf" = [{"type": "integer", "minimum": -1}, {"const": "unlimited"}]))]
pub struct Limit(Option<u64>);

/// As people may write a limit.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Text(String),
}

impl Limit {
    /// None is no limit.
    pub fn get(self) -> Option<u64> {
        self.0
    }
}

impl TryFrom<Written> for Limit {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(-1) => Ok(Self(None)),
            Written::Text(text) if text == "unlimited" => Ok(Self(None)),
            Written::Number(number) => u64::try_from(number)
                .map(|number| Self(Some(number)))
                .map_err(|_| format!("{number} is not a limit: write a number from 0 on, or \"unlimited\"")),
            Written::Text(text) => {
                Err(format!("{} is not a limit: write a number from 0 on, or \"unlimited\"", shown(&text)))
            }
        }
    }
}

impl From<Limit> for i64 {
    fn from(limit: Limit) -> Self {
        // Only what was an i64 is ever a limit.
        limit.0.and_then(|number| Self::try_from(number).ok()).unwrap_or(-1)
    }
}

impl OciDefaults {
    /// What must hold of the whole: a change may bring one of two limits.
    pub(crate) fn mistakes_of_whole(&self) -> impl Iterator<Item = Mistake> {
        limit_mistakes("settings.oci-defaults.resource-limits", self.resource_limits.as_ref())
    }
}

/// What is wrong with limits that stand at `key`.
pub(crate) fn limit_mistakes(
    key: &str,
    limits: Option<&BTreeMap<LimitName, ResourceLimit>>,
) -> impl Iterator<Item = Mistake> {
    limits.into_iter().flatten().filter_map(move |(name, limit)| {
        let key = format!("{key}.{name}");
        match (limit.soft_limit, limit.hard_limit) {
            (Some(Limit(soft)), Some(Limit(hard))) => {
                let (soft, hard) = (soft.unwrap_or(u64::MAX), hard.unwrap_or(u64::MAX));
                let reason = if soft > hard {
                    "the soft limit is higher than the hard one".to_owned()
                } else if name.as_str() == "max-open-files" && hard > MOST_OPEN_FILES {
                    format!("the kernel takes at most {MOST_OPEN_FILES} open files")
                } else {
                    return None;
                };
                Some(Mistake::new(&key, reason))
            }
            (soft, _) => {
                let missing = if soft.is_none() { "soft-limit" } else { "hard-limit" };
                Some(Mistake::new(&format!("{key}.{missing}"), "missing: a limit needs both"))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    #[test]
    fn names_are_bottlerockets_and_become_the_kernels() {
        let capability: Capability = "net-bind-service".parse().unwrap();
        assert_eq!(capability.kernel_name(), "CAP_NET_BIND_SERVICE");
        assert_eq!("max-open-files".parse::<LimitName>().unwrap().kernel_name(), "RLIMIT_NOFILE");
        for (tree, expected) in [
            (
                json!({"capabilities": {"CAP_KILL": true}}),
                "\"CAP_KILL\" is not a capability of Linux, such as",
            ),
            (
                json!({"capabilities": {"kill": "yes"}}),
                "settings.oci-defaults.capabilities.kill: expected true or",
            ),
            (
                json!({"resource-limits": {"nofile": {}}}),
                "is not a limit of processes: there are max-address",
            ),
            (
                json!({"resource-limits": {"max-open-files": {"hard-limit": "many"}}}),
                "settings.oci-defaults.resource-limits.max-open-files.hard-limit: \"many\" is not a limit",
            ),
            (json!({"resource-limits": {"max-open-files": {"hard-limit": -2}}}), "-2 is not a limit"),
            (json!({"resource-limits": {"max-open-files": {"hard-limit": 1.5}}}), "expected a whole number"),
        ] {
            let error = from_json(&json!({"oci-defaults": tree})).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn limits_are_numbers_or_none() {
        let tree = |hard: serde_json::Value| json!({"oci-defaults": {"resource-limits": {"max-core-file-size": {"soft-limit": 0, "hard-limit": hard}}}});
        let unlimited = from_json(&tree(json!("unlimited"))).unwrap();
        assert_eq!(unlimited.to_json(), tree(json!(-1)));
        assert_eq!(from_json(&unlimited.to_json()).unwrap(), unlimited);
        let pair = "oci-defaults.resource-limits.max-core-file-size.hard-limit=unlimited";
        assert!(crate::from_key_values([pair]).is_ok());
        assert!(crate::from_key_values([pair.replace("unlimited", "7").as_str()]).is_ok());
    }

    #[test]
    fn limits_that_no_process_could_have_are_not_committed() {
        for (limit, expected) in [
            (json!({"soft-limit": 5}), "max-open-files.hard-limit: missing"),
            (json!({"hard-limit": 5}), "max-open-files.soft-limit: missing"),
            (json!({"soft-limit": 6, "hard-limit": 5}), "soft limit is higher"),
            (json!({"soft-limit": -1, "hard-limit": 5}), "soft limit is higher"),
            (json!({"soft-limit": 5, "hard-limit": "unlimited"}), "at most 1048576 open files"),
        ] {
            let tree = json!({"oci-defaults": {"resource-limits": {"max-open-files": limit}}});
            let error = from_json(&tree).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
