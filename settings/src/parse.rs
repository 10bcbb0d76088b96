//! From outside to [`Settings`]: JSON and `key=value`. Every mistake names its key and says what to do.

use serde::de::IntoDeserializer;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;
use std::fmt;

use crate::Settings;
use crate::interfaces::with_whole_forms;
use crate::keys::{join, split_key};
use crate::registry::with_older_forms;
use crate::scalar::shortened;
use crate::shape::{SETTINGS, Shape, check_shape, fitting};
use crate::text::JsonReader;

/// Mistakes that are told at once: an input of thousands must not make an answer of megabytes.
pub(crate) const MOST_MISTAKES: usize = 16;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Dotted name: `settings.network.hostname`; empty when it is about the whole.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// In user data, counted from 1.
    pub line: Option<usize>,
    /// What stands between the reason and the hint in a text.
    pub(crate) between: &'static str,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)?;
        self.hint.iter().try_for_each(|hint| write!(f, "{}{hint}", self.between))
    }
}

/// Everything that is wrong with an input; at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    pub(crate) fn one(key: &str, reason: impl Into<String>) -> Self {
        Self(vec![Mistake::new(key, reason)])
    }
}

impl Mistake {
    /// Of a text that says what is wrong and then, behind "; " or ": ", what to do: the types of values have one text for both.
    pub(crate) fn new(key: &str, text: impl Into<String>) -> Self {
        let mut reason = text.into();
        let (mut hint, mut between) = (None, "; ");
        if let Some((at, separator)) = end_of_reason(&reason) {
            hint = reason.get(at + separator.len()..).map(str::to_owned);
            reason.truncate(at);
            between = separator;
        }
        Self { key: key.to_owned(), reason, hint, line: None, between }
    }

    /// Of a text that does not say what to do: a parser's own words.
    pub(crate) fn without_hint(key: &str, reason: impl Into<String>) -> Self {
        Self { key: key.to_owned(), reason: reason.into(), hint: None, line: None, between: "; " }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Where the hint begins, and what stands before it.
fn end_of_reason(text: &str) -> Option<(usize, &'static str)> {
    let from = begin_of_words(text);
    let rest = text.get(from..)?;
    let found =
        ["; ", ": "].into_iter().filter_map(|separator| Some((from + rest.find(separator)?, separator)));
    found.min()
}

/// Behind what a text may begin with: `item 1: `, and what it shows of the input, which may hold anything.
fn begin_of_words(text: &str) -> usize {
    let item = text.starts_with("item ").then(|| text.find(": ").map(|at| at + 2)).flatten().unwrap_or(0);
    let Some(shown) = text.get(item..).and_then(|rest| rest.strip_prefix('"')) else { return item };
    let mut escaped = false;
    let end = shown.find(|letter| {
        let is_end = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        is_end
    });
    end.map_or(item, |end| item + 1 + end + 1)
}

/// The name of what is `name` below `key`. A name that is longer than any setting's is cut: it may be megabytes.
pub(crate) fn below(key: &str, name: &str) -> String {
    join(key, &shortened(name))
}

fn key_of(path: &serde_path_to_error::Path) -> String {
    path.iter().fold("settings".to_owned(), |key, segment| match segment {
        Segment::Map { key: name } => below(&key, name),
        Segment::Seq { index } => format!("{key}[{index}]"),
        Segment::Enum { .. } | Segment::Unknown => key,
    })
}

/// Reads a settings object, without the outer `settings` layer.
pub fn from_json(value: &Value) -> Result<Settings, Mistakes> {
    let value = with_whole_forms(with_older_forms(value));
    let value = value.as_ref();
    let mut mistakes = Vec::new();
    check_shape("settings", value, &SETTINGS, &mut mistakes);
    if mistakes.len() > MOST_MISTAKES {
        mistakes.truncate(MOST_MISTAKES);
        mistakes.push(Mistake::new("", format!("there are more than these {MOST_MISTAKES} mistakes")));
        return Err(Mistakes(mistakes));
    }
    // What has the wrong kind is told, and then left out: what else is wrong is told too.
    let fits = if mistakes.is_empty() { Some(value.clone()) } else { fitting(value, &SETTINGS) };
    let Some(mut value) = fits else { return Err(Mistakes(mistakes)) };
    loop {
        let error = match serde_path_to_error::deserialize::<_, Settings>((&value).into_deserializer()) {
            Ok(settings) => {
                if mistakes.is_empty() {
                    mistakes.extend(settings.part_mistakes());
                }
                return if mistakes.is_empty() { Ok(settings) } else { Err(Mistakes(mistakes)) };
            }
            Err(error) => error,
        };
        mistakes.push(Mistake::new(&key_of(error.path()), error.inner().to_string()));
        // Without that value the next mistake shows: a person wants to mend all of them at once.
        if mistakes.len() > MOST_MISTAKES || !remove(&mut value, error.path()) {
            return Err(Mistakes(mistakes));
        }
    }
}

/// Reads a settings object that was taken once, perhaps by another version, without the outer `settings` layer: what is wrong is
/// told (at most 16 mistakes) and left out, with the table that it is in when it cannot be told apart. The rest is used.
pub fn from_json_in_part(value: &Value) -> (Settings, Vec<Mistake>) {
    let (mut value, mut told) = (value.clone(), Vec::new());
    // Each turn takes at least one value out, so it ends.
    loop {
        let mistakes = match from_json(&value) {
            Ok(settings) => break (settings, told),
            Err(Mistakes(mistakes)) => mistakes,
        };
        let removed =
            mistakes.iter().fold(false, |removed, mistake| remove_near(&mut value, &mistake.key) | removed);
        let room = MOST_MISTAKES.saturating_sub(told.len());
        told.extend(mistakes.into_iter().filter(|mistake| !mistake.key.is_empty()).take(room));
        if !removed {
            break (Settings::default(), told);
        }
    }
}

/// Takes out the value of a dotted name (a list for what is in it), or else the innermost table around it, but never all.
fn remove_near(value: &mut Value, key: &str) -> bool {
    let mut key = key.split_once('[').map_or(key, |(list, _)| list);
    loop {
        if crate::keys::remove(value, key) {
            return true;
        }
        let Some((outer, _)) = key.rsplit_once('.') else { return false };
        key = outer;
    }
}

/// Takes out the value at a path, or the list that it is an item of. False when there is none.
fn remove(value: &mut Value, path: &serde_path_to_error::Path) -> bool {
    let mut names = Vec::new();
    for segment in path.iter() {
        match segment {
            Segment::Map { key } => names.push(key.as_str()),
            _ => break,
        }
    }
    let Some((last, tables)) = names.split_last() else { return false };
    let table = tables.iter().try_fold(value, |value, name| value.get_mut(*name));
    table.and_then(Value::as_object_mut).is_some_and(|table| table.remove(*last).is_some())
}

/// Reads `key=value` pairs. What the key holds decides how the value is read, so `motd=42` is a text.
pub fn from_key_values<'a>(pairs: impl IntoIterator<Item = &'a str>) -> Result<Settings, Mistakes> {
    let mut tree = Value::Object(Map::new());
    let json = JsonReader::default();
    for (number, pair) in (1..).zip(pairs) {
        let Some((key, text)) = pair.split_once('=') else {
            // It may be the value that belongs to the item before, and a secret.
            return Err(Mistakes::one("", format!("item {number} is not KEY=VALUE, such as motd=hello")));
        };
        let key = key.trim();
        let parts = split_key(key).map_err(|reason| Mistakes::one("", format!("item {number}: {reason}")))?;
        // The outer layer may be left out.
        let parts = parts.strip_prefix(&["settings"]).unwrap_or(&parts);
        let (mut shape, mut at) = (&SETTINGS, &mut tree);
        let mut name = "settings".to_owned();
        for &part in parts {
            name = below(&name, part);
            shape = shape.below(&name, part).map_err(|mistake| Mistakes(vec![mistake]))?;
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            at = match at {
                Value::Object(table) => table.entry(part).or_insert(Value::Null),
                _ => return Err(Mistakes::one(&name, "the same key is given a value and a table")),
            };
        }
        let read = |expected: &str| {
            json.read(text.as_bytes()).map_err(|error| not_read(&name, expected, text, &error))
        };
        *at = match shape {
            Shape::Text | Shape::Choice(_) => Value::String(text.to_owned()),
            Shape::Limit => json.read(text.as_bytes()).unwrap_or_else(|_| Value::from(text)),
            Shape::Number
            | Shape::Switch
            | Shape::Switched(_)
            | Shape::Texts
            | Shape::List(..)
            | Shape::Pair(_) => read(&shape.expected())?,
            Shape::Table(fields) => {
                let known: Vec<&str> = fields.iter().map(|(known, _)| *known).collect();
                read(&format!("a key below it ({}), or a table as JSON", known.join(", ")))?
            }
            Shape::Map(inner) => {
                let field = match inner {
                    Shape::Table([(field, _), ..]) => format!(".{field}"),
                    _ => String::new(),
                };
                read(&format!("a name below it, such as {name}.NAME{field}=..., or a table as JSON"))?
            }
        };
    }
    from_json(&tree)
}

/// Where JSON goes wrong helps only who wrote JSON: not who wrote `pids=five`.
fn not_read(name: &str, expected: &str, text: &str, error: &str) -> Mistakes {
    let detail = if text.trim_start().starts_with(['[', '{']) { format!(": {error}") } else { String::new() };
    Mistakes::one(name, format!("expected {expected}{detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn mistake(value: Value) -> String {
        from_json(&value).unwrap_err().to_string()
    }

    #[test]
    fn all_wrong_values_are_told_at_once() {
        let tree = json!({
            "motd": 1,
            "motto": "unknown",
            "network": {"hostname": "a_b"},
            "containers": {"web": {"image": "", "memory": "lots"}},
        });
        let keys: Vec<String> =
            from_json(&tree).unwrap_err().0.into_iter().map(|mistake| mistake.key).collect();
        for key in ["motd", "motto", "network.hostname", "containers.web.image", "containers.web.memory"] {
            assert!(keys.contains(&format!("settings.{key}")), "{key} is not among {keys:?}");
        }
        assert_eq!(keys.len(), 5);
    }

    #[test]
    fn what_another_version_took_is_used_as_far_as_it_can_be() {
        let tree = json!({
            "motd": "m",
            "quic": true,
            "network": {"hostname": "a_b", "no-proxy": ["a", "b c"]},
            "kernel": {"sysctl": {"vm.swappiness": "1", "vm..x": "1"}},
            "containers": {"web": {"image": "a", "restart": "on-tuesdays"}, "Bad Name": {"image": "b"}},
        });
        let (settings, mistakes) = from_json_in_part(&tree);
        let rest = json!({
            "motd": "m", "network": {}, "kernel": {"sysctl": {"vm.swappiness": "1"}}, "containers": {"web": {"image": "a"}},
        });
        assert_eq!(crate::flatten(&settings), crate::flatten(&from_json(&rest).unwrap()), "{mistakes:?}");
        assert_eq!(mistakes.len(), 6, "{mistakes:?}");
        assert_eq!(from_json_in_part(&rest), (from_json(&rest).unwrap(), vec![]));
        // What has no name that could be told goes with the table that it is in.
        let (settings, _) = from_json_in_part(&json!({"motd": "m", "pki": {("x".repeat(400)): {"data": 1}}}));
        assert_eq!(crate::flatten(&settings).into_keys().collect::<Vec<_>>(), ["settings.motd"]);
        // Nothing can be made of it.
        let (nothing, mistakes) = from_json_in_part(&json!([1]));
        assert_eq!((nothing, mistakes.len()), (Settings::default(), 1));
        let many: Map<String, Value> = (0..500).map(|n| (format!("k{n}"), Value::Null)).collect();
        assert_eq!(from_json_in_part(&Value::Object(many)).1.len(), MOST_MISTAKES);
    }

    /// Else the host agent could not read at the next boot what was committed before.
    #[test]
    fn changes_that_are_too_much_together_are_refused_together() {
        let half = |from: usize| {
            let names = (from..from + 200).map(|n| (format!("net.ipv4.conf.x{n}.forwarding"), json!("1")));
            from_json(&json!({"kernel": {"sysctl": names.collect::<Map<String, Value>>()}})).unwrap()
        };
        let both = half(0).with(&half(200));
        assert!(half(0).check().is_ok());
        let error = both.check().unwrap_err().to_string();
        assert!(error.contains("settings.kernel.sysctl: 400 entries are more than the 256"), "{error}");
    }

    #[test]
    fn the_shape_has_every_key_of_the_types_and_no_other() {
        let containers = json!({"web": {
            "image": "i", "command": ["c"], "env": {"A": "b"}, "restart": "on-failure", "memory": "64MiB", "pids": 10, "essential": true,
            "args": ["a"], "working-directory": "/w", "user": "u", "hostname": "h", "stop-signal": "SIGINT", "stop-timeout": 1,
            "health-check": {
                "command": ["c"], "http": "http://localhost", "tcp": 1, "interval": 1, "timeout": 1, "retries": 1, "start-period": 1,
            },
            "after": ["web"], "memory-high": "32MiB", "io-read": "1MiB", "io-write": "1MiB", "cpus": "1", "capabilities": {"kill": false},
            "resource-limits": {"max-nice-priority": {"soft-limit": 1, "hard-limit": 1}}, "read-only": true,
            "volumes": {"v": {
                "path": "/v", "kind": "host", "name": "n", "source": "/sys", "size": "1MiB", "read-only": true,
                "label": "l",
            }},
            "networks": ["front"], "ports": ["8080:80"], "env-files": ["/data/mnt/a/b"], "env-secrets": {"P": "s"}, "secrets": ["s"],
            "schedule": "0 3 * * *", "replicas": 2, "update": "start-first", "devices": ["/dev/fuse:r"],
            "sysctls": {"net.core.somaxconn": "1"}, "user-namespace": true,
        }});
        let full = json!({
            "motd": "m",
            "network": {
                "hostname": "n", "hosts": [["10.0.0.1", ["a"]]], "https-proxy": "p:1", "no-proxy": ["*"],
                "interfaces": {"bond0": {
                    "kind": "bond", "dhcp4": {"enabled": true, "optional": true, "route-metric": 5}, "dhcp6": {"enabled": false},
                    "static4": {"addresses": ["10.0.0.5/24"]}, "static6": {"addresses": ["fd00::5/64"]},
                    "route": [{"to": "default", "from": "10.0.0.5", "via": "10.0.0.1", "route-metric": 7}],
                    "primary": true, "mtu": 1500, "accept-ra": true, "interfaces": ["a"], "mode": "802.3ad", "min-links": 1,
                    "monitoring": {
                        "miimon-frequency-ms": 1, "miimon-updelay-ms": 2, "miimon-downdelay-ms": 3,
                        "arpmon-interval-ms": 4, "arpmon-validate": "all", "arpmon-targets": ["10.0.0.1"],
                    },
                    "lacp-rate": "fast", "xmit-hash-policy": "layer3+4", "device": "b", "id": 7, "stp": true,
                }},
            },
            "dns": {"name-servers": ["10.0.0.1"], "search-list": ["a"]},
            "ntp": {"time-servers": ["a"], "options": ["iburst"]},
            "updates": {
                "metadata-base-url": "http://a/", "targets-base-url": "http://b/", "seed": 1, "version-lock": "latest",
                "ignore-waves": false, "healthy-for": 1, "healthy-within": 2,
            },
            "kernel": {"sysctl": {"vm.swappiness": "1"}, "lockdown": "none"},
            "pki": {"ours": {"data": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=", "trusted": true}},
            "container-registry": {
                "mirrors": [{"registry": "*", "endpoint": ["a"]}],
                "credentials": [
                    {"registry": "a", "username": "u", "password": "p"}, {"registry": "b", "auth": "dTpw"},
                ],
            },
            "oci-defaults": {
                "capabilities": {"kill": false},
                "resource-limits": {"max-processes": {"hard-limit": -1, "soft-limit": 5}},
            },
            "metrics": {"address": "0.0.0.0:9100"},
            "api": {"vsock": true},
            "containers": containers,
            "secrets": {"s": "x"},
            "host-containers": {"admin": {
                "source": "i", "enabled": true, "superpowered": false, "user-data": "YQ==", "command": ["c"],
            }},
            "bootstrap-containers": {"setup": {
                "source": "i", "mode": "once", "user-data": "YQ==", "essential": true, "command": ["c"], "after": ["a"],
                "superpowered": true,
            }},
            "container-networks": {"front": {"subnet4": "10.0.0.0/24", "subnet6": "fd00::/64", "internal": false}},
            "bootstrap-commands": {"greet": {
                "commands": [["apiclient", "status"]], "mode": "always", "essential": false,
            }},
        });
        let settings = from_json(&full).unwrap();
        // Fails to compile when a field is added, and then the shape and `full` need it too.
        let Settings {
            motd: Some(_),
            pki: Some(pki),
            container_registry:
                Some(crate::ContainerRegistry { mirrors: Some(_), credentials: Some(credentials) }),
            oci_defaults:
                Some(crate::OciDefaults { capabilities: Some(_), resource_limits: Some(resource_limits) }),
            kernel: Some(crate::Kernel { sysctl: Some(_), lockdown: Some(_) }),
            dns: Some(crate::Dns { name_servers: Some(_), search_list: Some(_) }),
            ntp: Some(crate::Ntp { time_servers: Some(_), options: Some(_) }),
            updates:
                Some(crate::Updates {
                    metadata_base_url: Some(_),
                    targets_base_url: Some(_),
                    seed: Some(_),
                    version_lock: Some(_),
                    ignore_waves: Some(_),
                    healthy_for: Some(_),
                    healthy_within: Some(_),
                }),
            network:
                Some(crate::Network {
                    hostname: Some(_),
                    hosts: Some(_),
                    https_proxy: Some(_),
                    no_proxy: Some(_),
                    interfaces: Some(interfaces),
                }),
            metrics: Some(crate::Metrics { address: Some(_) }),
            api: Some(crate::Api { vsock: Some(_) }),
            containers: Some(containers),
            secrets: Some(_),
            container_networks: Some(container_networks),
            host_containers: Some(host_containers),
            bootstrap_containers: Some(bootstrap_containers),
            bootstrap_commands: Some(bootstrap_commands),
        } = &settings
        else {
            panic!()
        };
        let crate::HostContainer {
            source: Some(_),
            enabled: Some(_),
            superpowered: Some(_),
            user_data: Some(_),
            command: Some(_),
        } = &host_containers.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::BootstrapContainer {
            source: Some(_),
            mode: Some(_),
            user_data: Some(_),
            essential: Some(_),
            command: Some(_),
            after: Some(_),
            superpowered: Some(_),
        } = &bootstrap_containers.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::BootstrapCommands { commands: Some(_), mode: Some(_), essential: Some(_) } =
            &bootstrap_commands.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::Container {
            image: Some(_),
            command: Some(_),
            env: Some(_),
            env_files: Some(_),
            env_secrets: Some(_),
            secrets: Some(_),
            schedule: Some(_),
            replicas: Some(_),
            update: Some(_),
            restart: Some(_),
            memory: Some(_),
            pids: Some(_),
            essential: Some(_),
            args: Some(_),
            working_directory: Some(_),
            user: Some(_),
            hostname: Some(_),
            stop_signal: Some(_),
            stop_timeout: Some(_),
            health_check:
                Some(crate::HealthCheck {
                    command: Some(_),
                    http: Some(_),
                    tcp: Some(_),
                    interval: Some(_),
                    timeout: Some(_),
                    retries: Some(_),
                    start_period: Some(_),
                }),
            after: Some(_),
            memory_high: Some(_),
            io_read: Some(_),
            io_write: Some(_),
            cpus: Some(_),
            capabilities: Some(_),
            resource_limits: Some(_),
            read_only: Some(_),
            volumes: Some(volumes),
            networks: Some(_),
            ports: Some(_),
            devices: Some(_),
            sysctls: Some(_),
            user_namespace: Some(_),
        } = &containers.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::ContainerNetwork { subnet4: Some(_), subnet6: Some(_), internal: Some(_) } =
            &container_networks.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::Volume {
            path: Some(_),
            kind: Some(_),
            name: Some(_),
            source: Some(_),
            label: Some(_),
            size: Some(_),
            read_only: Some(_),
        } = &volumes.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::Interface {
            kind: Some(_),
            dhcp4: Some(crate::Dhcp { enabled: Some(_), optional: Some(_), route_metric: Some(_) }),
            dhcp6: Some(_),
            static4: Some(crate::Static4 { addresses: Some(_) }),
            static6: Some(crate::Static6 { addresses: Some(_) }),
            route: Some(route),
            primary: Some(_),
            mtu: Some(_),
            accept_ra: Some(_),
            interfaces: Some(_),
            mode: Some(_),
            min_links: Some(_),
            monitoring:
                Some(crate::Monitoring {
                    miimon_frequency_ms: Some(_),
                    miimon_updelay_ms: Some(_),
                    miimon_downdelay_ms: Some(_),
                    arpmon_interval_ms: Some(_),
                    arpmon_validate: Some(_),
                    arpmon_targets: Some(_),
                }),
            lacp_rate: Some(_),
            xmit_hash_policy: Some(_),
            device: Some(_),
            id: Some(_),
            stp: Some(_),
        } = interfaces.first_key_value().unwrap().1
        else {
            panic!()
        };
        let crate::Route { to: Some(_), from: Some(_), via: Some(_), route_metric: Some(_) } = &route[0]
        else {
            panic!()
        };
        assert!(credentials.len() == 2);
        let crate::Pki { data: Some(_), trusted: Some(_) } = pki.first_key_value().unwrap().1 else {
            panic!()
        };
        let crate::ResourceLimit { hard_limit: Some(_), soft_limit: Some(_) } =
            resource_limits.first_key_value().unwrap().1
        else {
            panic!()
        };
        assert_eq!(settings.to_json(), full);
        // The store writes TOML.
        let stored = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<Settings>(&stored).unwrap(), settings);
        let error = mistake(json!({"containers": {"web": {"zzzzzzzz": 1}}}));
        assert!(
            error.contains("known here: image, command, args, ")
                && error.ends_with(", ports, devices, sysctls, user-namespace, essential"),
            "{error}"
        );
    }

    #[test]
    fn mistakes_name_the_key_and_help() {
        for (value, expected) in [
            (
                json!({"network": {"hostnme": "a"}}),
                "settings.network.hostnme: unknown key; did you mean \"hostname\"? known here: hostname, hosts",
            ),
            (
                json!({"network": {"hostname": "a_b"}}),
                "settings.network.hostname: \"a_b\" is not a host name",
            ),
            (
                json!({"containers": {"web": {"pids": "many"}}}),
                "settings.containers.web.pids: expected a number, found a string",
            ),
            (json!({"containers": {"web": {"pids": 0}}}), "settings.containers.web.pids: 0 is not between"),
            (json!({"containers": {"Web": {}}}), "is not a name for a container"),
            (
                json!({"containers": {"web": {"command": "sleep 1"}}}),
                "settings.containers.web.command: expected a list of strings",
            ),
            (
                json!({"containers": {"web": {"restart": "sometimes"}}}),
                "settings.containers.web.restart: \"sometimes\" is not one of always, on-failure, no",
            ),
            (json!([1]), "settings: expected a table, found a list"),
            (json!({"motd": null}), "settings.motd: expected a string, found null"),
        ] {
            let error = mistake(value);
            assert!(error.contains(expected), "{error}");
        }
        let two = mistake(json!({"motdd": 1, "network": 5}));
        assert_eq!(two.lines().count(), 2, "{two}");
    }

    #[test]
    fn a_hint_is_what_follows_what_is_wrong() {
        for (text, expected) in [
            ("expected a string, found a number", ("expected a string, found a number", None)),
            ("unknown key; did you mean \"motd\"?", ("unknown key", Some("did you mean \"motd\"?"))),
            (
                "\"a: b; \\\"c\" is not a size: try \"1MiB\"",
                ("\"a: b; \\\"c\" is not a size", Some("try \"1MiB\"")),
            ),
            (
                "item 2: \"a..b\" is not a key: a part is empty",
                ("item 2: \"a..b\" is not a key", Some("a part is empty")),
            ),
            (
                "item 1 is not KEY=VALUE, such as motd=hello",
                ("item 1 is not KEY=VALUE, such as motd=hello", None),
            ),
            ("\"", ("\"", None)),
        ] {
            let mistake = Mistake::new("", text);
            assert_eq!((mistake.reason.as_str(), mistake.hint.as_deref()), expected, "{text}");
            assert_eq!(mistake.to_string(), text);
        }
    }

    #[test]
    fn who_leaves_the_outer_layer_in_is_told_to_leave_it_out() {
        let error = from_json(&json!({"settings": {"motd": "x"}})).unwrap_err();
        let mistake = &error.0[0];
        assert_eq!((mistake.key.as_str(), mistake.reason.as_str()), ("settings.settings", "unknown key"));
        assert!(
            mistake.hint.as_ref().unwrap().contains("without a layer \"settings\" around it"),
            "{mistake}"
        );
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_told() {
        let error = mistake(json!({"containers": {"web": {"env": {"TOKEN": 123_456}}}}));
        assert!(error.contains("env.TOKEN") && !error.contains("123456"), "{error}");
    }

    #[test]
    fn pairs_are_read_by_what_their_key_holds() {
        let pairs = [
            "motd=42",
            "settings.containers.web.pids=5",
            "containers.web.command=[\"a\"]",
            "containers.web.env.A=x=y",
        ];
        let settings = from_key_values(pairs).unwrap();
        let expected =
            json!({"motd": "42", "containers": {"web": {"pids": 5, "command": ["a"], "env": {"A": "x=y"}}}});
        assert_eq!(settings.to_json(), expected);
        for (pair, expected) in [
            ("secret", "item 1 is not KEY=VALUE"),
            ("mot=x", "did you mean \"motd\""),
            ("motd.x=1", "nothing below"),
            (
                "hostname=n",
                "settings.hostname: unknown key; did you mean settings.network.hostname? known here",
            ),
            ("image=a", "did you mean settings.containers.NAME.image?"),
            ("MOTD=x", "did you mean \"motd\"?"),
            ("message=x", "settings.message: unknown key; known here: motd, "),
            ("network.host=n", "did you mean \"hosts\"?"),
            ("containers.web.cmd=a", "did you mean \"command\"?"),
            ("containers.web.environment=a", "did you mean \"env\"?"),
            ("network=n", "settings.network: expected a key below it (hostname, hosts"),
            ("containers.web=a", "settings.containers.web: expected a key below it (image, command"),
            ("containers=a", "such as settings.containers.NAME.image=..., or a table as JSON"),
            ("containers.web.env=A", "such as settings.containers.web.env.NAME=..., or a table as JSON"),
            ("containers.web.command=[sleep]", "such as [\"sleep\", \"60\"]: expected value"),
            ("containers.web.command=[\"sleep\", 6]", "found a number in it: put it in quotes"),
            ("settings=x", "settings: expected a key below it"),
            ("containers..image=x", "item 1: \"containers..image\" is not a key"),
            ("=x", "item 1: \"\" is not a key"),
            ("containers.web.pids=five", "settings.containers.web.pids: expected a number"),
        ] {
            let error = from_key_values([pair]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn values_of_pairs_are_bounded_together_and_their_keys_are_not_doubled() {
        let list = format!("containers.web.command=[{}\"a\"]", "\"a\",".repeat(8000));
        // One is refused for its length, which is told; of three only the bound on all is left to tell.
        let one = from_key_values([list.as_str()]).unwrap_err().to_string();
        assert!(one.contains("1 to 256 items"), "{one}");
        let three = from_key_values([list.as_str(); 3]).unwrap_err().to_string();
        assert!(three.contains("more than 20000 values"), "{three}");
        let twice = from_key_values([r#"containers={"web": {"image": "a", "image": "b"}}"#]).unwrap_err();
        assert!(twice.to_string().contains("\"image\" is there twice"), "{twice}");
    }

    #[test]
    fn an_input_of_many_mistakes_has_a_short_answer() {
        let many: Map<String, Value> = (0..5000).map(|n| (format!("k{n}"), Value::Null)).collect();
        let long = "x".repeat(1 << 20);
        for value in [
            Value::Object(many.clone()),
            json!({"containers": {"web": many}}),
            json!({(&long): 1}),
            json!({"containers": {(&long): {}}}),
            json!({"containers": {(&long): {"a": 1, "b": 2}}}),
            json!({"containers": {"web": {"restart": long, "env": {(&long): "x"}}}}),
            json!({"containers": {"web": {"env": {(&long): "x"}}}}),
            json!({"containers": {"web": {"image": long}}}),
        ] {
            let said = mistake(value);
            assert!(said.len() < 8192, "{} bytes", said.len());
        }
        assert!(from_key_values([long.as_str()]).unwrap_err().to_string().len() < 8192);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            "motd",
            "network",
            "hostname",
            "containers",
            "web",
            "image",
            "command",
            "env",
            "pids",
            "[a-z.]{0,6}"
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(name.clone(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_valid_or_a_mistake(value in any_json()) {
            if let Ok(settings) = from_json(&value) {
                prop_assert_eq!(from_json(&settings.to_json()).unwrap(), settings);
            }
        }

        #[test]
        fn whatever_comes_something_can_be_used(value in any_json()) {
            let (settings, mistakes) = from_json_in_part(&value);
            prop_assert_eq!(mistakes.is_empty(), from_json(&value).is_ok());
            prop_assert!(from_json(&settings.to_json()).is_ok());
        }

        #[test]
        fn text_never_panics(text in "\\PC{0,200}") {
            let _ = from_key_values([text.as_str()]);
        }
    }
}
