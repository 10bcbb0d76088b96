//! `settings.container-networks`, and how containers take part in them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::container::Container;
use crate::interfaces::cidr;
use crate::parse::Mistake;
use crate::scalar::{ContainerName, checked_string, shown};

/// A network of containers, with a bridge of its own on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContainerNetwork {
    /// Its IPv4 addresses. The first is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10.89.0.0/24", extend("x-default" = "256 addresses of 10.64.0.0/10, by its name"))]
    pub subnet4: Option<Subnet4>,
    /// Its IPv6 addresses. The first is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"fd00:89::/64", extend("x-default" = "a /64 of fdca:1550::/32, by its name"))]
    pub subnet6: Option<Subnet6>,
    /// Whether its containers reach each other only, and nothing outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub internal: Option<bool>,
}

checked_string!(
    /// The name of a network of containers: at most 63 of a-z, 0-9 and `-`, not `-` at an end.
    NetworkName,
    |text| {
        if text.parse::<ContainerName>().is_ok() {
            return Ok(());
        }
        Err(format!("{} is not a name for a network: at most 63 of a-z, 0-9 and '-', not '-' at an end", shown(text)))
    }
);

impl NetworkName {
    /// Whether it stands for no network at all.
    pub fn is_none(&self) -> bool {
        self.as_str() == NONE
    }
}

cidr!(
    /// An IPv4 network with a prefix of 16 to 29 bits, such as `10.89.0.0/24`.
    Subnet4,
    Ipv4Addr,
    32,
    "an IPv4 network of containers, such as 10.89.0.0/24: a prefix of 16 to 29 bits, and no bit set after it",
    |address, prefix| (16..=29).contains(&prefix) && u32::from(address) << prefix == 0
);

cidr!(
    /// An IPv6 network with a prefix of 56 to 120 bits, such as `fd00:89::/64`.
    Subnet6,
    Ipv6Addr,
    128,
    "an IPv6 network of containers, such as fd00:89::/64: a prefix of 56 to 120 bits, and no bit set after it",
    |address, prefix| (56..=120).contains(&prefix) && u128::from(address) << prefix == 0
);

/// A port of the node that leads to one of a container: `8080:80`, `8080:80/udp`, `127.0.0.1:8080:80` or `[::1]:8080:80`. Without an
/// address it is that of all addresses of the node, IPv4 and IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct PublishedPort {
    /// The node's address. One that is unspecified stands for all of its family.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// The container's port.
    pub to: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl PublishedPort {
    fn read(text: &str) -> Option<Self> {
        let (rest, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return None,
        };
        let number = |text: &str| {
            let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|_| plain)
        };
        let (rest, to) = rest.rsplit_once(':')?;
        let (address, port) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, port)) => (Some(address), port),
        };
        let address = match address {
            None => None,
            Some(text) => Some(match text.strip_prefix('[') {
                Some(inner) => IpAddr::V6(inner.strip_suffix(']')?.parse().ok()?),
                None => IpAddr::V4(text.parse().ok()?),
            }),
        };
        Some(Self { address, port: number(port)?, to: number(to)?, protocol })
    }

    /// Whether no two containers can have both.
    fn meets(&self, other: &Self) -> bool {
        let same_place = match (self.address, other.address) {
            (Some(a), Some(b)) => {
                a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
            }
            _ => true,
        };
        same_place && self.port == other.port && self.protocol == other.protocol
    }
}

impl TryFrom<String> for PublishedPort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::read(&text).ok_or_else(|| {
            format!(
                "{} is not a port that can be published: write NODE:CONTAINER with ports of 1 to 65535, such as 8080:80, with \
                 /udp behind it if it is not TCP, and the node's address before it if it is not that of all, such as \
                 127.0.0.1:8080:80 or [::1]:8080:80",
                shown(&text)
            )
        })
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.port, self.to)?;
        if self.protocol == Protocol::Udp { f.write_str("/udp") } else { Ok(()) }
    }
}

impl From<PublishedPort> for String {
    fn from(port: PublishedPort) -> Self {
        port.to_string()
    }
}

/// Networks that a node can have, and a container can be in.
const MOST_NETWORKS: usize = 32;
const MOST_OF_ONE: usize = 8;
const MOST_PORTS: usize = 64;
/// Where the node answers containers' questions for names, on the bridges of their networks.
const DNS: u16 = 53;
/// What a container names that is in no network, not even in the node's.
const NONE: &str = "none";
/// For the node's own, if it ever has a name.
const HOST: &str = "host";

type Networks = BTreeMap<NetworkName, ContainerNetwork>;

/// What must hold of networks and of all containers together.
pub(crate) fn mistakes(
    networks: Option<&Networks>,
    containers: Option<&BTreeMap<ContainerName, Container>>,
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut wrong = |key: String, reason: String| mistakes.push(Mistake::new(&key, reason));
    let used =
        containers.into_iter().flatten().flat_map(|(_, container)| container.networks.iter().flatten());
    let used = used.filter(|name| !name.is_none());
    let all: BTreeSet<&NetworkName> = networks.into_iter().flat_map(BTreeMap::keys).chain(used).collect();
    if all.len() > MOST_NETWORKS {
        let reason = format!("{} networks are more than the {MOST_NETWORKS} that a node can have", all.len());
        wrong("settings.container-networks".to_owned(), reason);
    }
    if all.iter().any(|name| name.is_none() || name.as_str() == HOST) {
        let reason =
            "`none` and `host` are not names for networks: a container without `networks` has the node's";
        wrong("settings.container-networks".to_owned(), reason.to_owned());
    }
    let mut seen: Vec<(IpAddr, u8, &NetworkName)> = Vec::new();
    for (name, of) in networks.into_iter().flatten() {
        let subnets = [
            ("subnet4", of.subnet4.map(|subnet| (IpAddr::V4(subnet.address), subnet.prefix))),
            ("subnet6", of.subnet6.map(|subnet| (IpAddr::V6(subnet.address), subnet.prefix))),
        ];
        for (key, subnet) in subnets {
            let Some((address, prefix)) = subnet else { continue };
            if let Some((_, _, other)) = seen.iter().find(|seen| overlap((seen.0, seen.1), (address, prefix)))
            {
                let reason = format!("it has addresses that the network {} has too", shown(other));
                wrong(format!("settings.container-networks.{name}.{key}"), reason);
            }
            seen.push((address, prefix, name));
        }
    }
    let mut taken: Vec<(&ContainerName, &PublishedPort)> = Vec::new();
    for (name, container) in containers.into_iter().flatten() {
        let own = |key: &str| format!("settings.containers.{name}.{key}");
        let of: &[NetworkName] = container.networks.as_deref().unwrap_or_default();
        let ports: &[PublishedPort] = container.ports.as_deref().unwrap_or_default();
        let is_alone = of.iter().any(NetworkName::is_none);
        if is_alone && (of.len() > 1 || !ports.is_empty()) {
            let reason = "`none` is no network at all: other networks, and `ports`, contradict it";
            wrong(own("networks"), reason.to_owned());
            continue;
        }
        for (at, network) in of.iter().enumerate() {
            if of.iter().take(at).any(|before| before == network) {
                wrong(own("networks"), format!("{} is there twice", shown(network)));
            }
        }
        if of.len() > MOST_OF_ONE {
            let reason = format!("{} are more than the {MOST_OF_ONE} that a container can be in", of.len());
            wrong(own("networks"), reason);
        }
        if of.is_empty() && !ports.is_empty() {
            let reason = "only a container with `networks` publishes ports: without, it has the network of the node, and what it \
                          listens on is reached as it is";
            wrong(own("ports"), reason.to_owned());
        }
        if ports.len() > MOST_PORTS {
            let reason =
                format!("{} are more than the {MOST_PORTS} that a container can publish", ports.len());
            wrong(own("ports"), reason);
        }
        let is_internal = |network: &NetworkName| {
            networks.and_then(|networks| networks.get(network)).is_some_and(|of| of.internal == Some(true))
        };
        if !ports.is_empty() && !of.is_empty() && of.iter().all(is_internal) {
            let reason = "all its networks are internal, and nothing of outside reaches those: it needs one that is not";
            wrong(own("ports"), reason.to_owned());
        }
        for port in ports {
            if port.port == DNS && port.address.is_none_or(|address| address.is_unspecified()) {
                let reason = format!(
                    "{port} would take the questions that containers ask for names: put an address of the node before it"
                );
                wrong(own("ports"), reason);
            }
            if let Some((other, as_what)) = taken.iter().find(|(_, other)| other.meets(port)) {
                let whose = if *other == name { "it" } else { other.as_str() };
                wrong(own("ports"), format!("{port} cannot be published, as {whose} publishes {as_what}"));
            }
            taken.push((name, port));
        }
        let check = container.health_check.as_ref();
        if is_alone && check.is_some_and(|check| check.http.is_some() || check.tcp.is_some()) {
            let reason =
                "`http` and `tcp` ask by network, and one without any cannot be reached: use `command`";
            wrong(own("health-check"), reason.to_owned());
        }
    }
    mistakes
}

fn overlap(a: (IpAddr, u8), b: (IpAddr, u8)) -> bool {
    let equal_bits = match (a.0, b.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => return false,
    };
    equal_bits >= u32::from(a.1.min(b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;
    use serde_json::json;

    #[test]
    fn ports_are_written_as_compose_writes_them() {
        for (text, written) in [
            ("8080:80", "8080:80"),
            ("8080:80/tcp", "8080:80"),
            ("127.0.0.1:53:53/udp", "127.0.0.1:53:53/udp"),
            ("[::]:8080:80/tcp", "[::]:8080:80"),
            ("[::1]:1:65535", "[::1]:1:65535"),
        ] {
            assert_eq!(PublishedPort::try_from(text.to_owned()).unwrap().to_string(), written);
        }
        for wrong in [
            "80",
            "8080:",
            ":80",
            "0:80",
            "8080:0",
            "65536:80",
            "8080:80/sctp",
            "8080:80/",
            "::1:8080:80",
            "[::1:8080:80",
            "[127.0.0.1]:8080:80",
            "localhost:8080:80",
            "8080-8081:80",
            "08080:80",
            "+1:80",
            "8080:80/tcp/tcp",
            "",
        ] {
            let error = PublishedPort::try_from(wrong.to_owned()).unwrap_err();
            assert!(error.contains("such as 8080:80"), "{wrong}: {error}");
        }
    }

    #[test]
    fn networks_and_ports_are_whole() {
        let check = |networks, web: serde_json::Value, other: serde_json::Value| {
            let containers = |own: serde_json::Value| {
                let mut all = json!({"image": "a"});
                all.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
                all
            };
            let tree = json!({"container-networks": networks, "containers": {"other": containers(other), "web": containers(web)}});
            from_json(&tree).and_then(|settings| settings.check()).map_err(|mistakes| mistakes.to_string())
        };
        let front = json!({"front": {}, "back": {"subnet4": "10.1.0.0/24", "subnet6": "fd00::/64", "internal": true}});
        let on = |ports: &[&str]| json!({"networks": ["front"], "ports": ports});
        let none = json!({});
        check(front.clone(), json!({"networks": ["front", "back"], "ports": ["8080:80"]}), none.clone())
            .unwrap();
        check(front.clone(), on(&["127.0.0.1:80:80", "80:80/udp"]), on(&["127.0.0.2:80:80", "[::]:80:80"]))
            .unwrap();
        for (networks, web, other, expected) in [
            (
                &front,
                json!({"networks": ["front", "front"]}),
                &none,
                "web.networks: \"front\" is there twice",
            ),
            (&front, json!({"ports": ["80:80"]}), &none, "web.ports: only a container with `networks`"),
            (
                &front,
                on(&["80:80"]),
                &on(&["80:81"]),
                "web.ports: 80:80 cannot be published, as other publishes 80:81",
            ),
            (&front, on(&["127.0.0.1:80:80"]), &on(&["0.0.0.0:80:81"]), "as other publishes 0.0.0.0:80:81"),
            (&front, on(&["[::1]:80:80"]), &on(&["80:81"]), "as other publishes 80:81"),
            (&front, on(&["80:80", "80:81"]), &none, "80:81 cannot be published, as it publishes 80:80"),
            (
                &json!({"a": {"subnet4": "10.1.0.0/16"}, "b": {"subnet4": "10.1.7.0/24"}}),
                none.clone(),
                &none,
                "container-networks.b.subnet4: it has addresses that the network \"a\" has too",
            ),
            (&json!({"a": {"subnet4": "10.0.0.0/15"}}), none.clone(), &none, "such as 10.89.0.0/24"),
            (
                &front,
                json!({"networks": ["back"], "ports": ["80:80"]}),
                &none,
                "web.ports: all its networks are internal",
            ),
            (&front, on(&["53:53/udp"]), &none, "web.ports: 53:53/udp would take the questions"),
            (&front, on(&["0.0.0.0:53:53"]), &none, "web.ports: 0.0.0.0:53:53 would take the questions"),
            (&json!({"a": {"subnet4": "10.0.0.1/16"}}), none.clone(), &none, "such as 10.89.0.0/24"),
            (&json!({"a": {"subnet6": "fd00::/121"}}), none.clone(), &none, "such as fd00:89::/64"),
            (&json!({"-front": {}}), none.clone(), &none, "at most 63 of"),
            (&json!({"none": {}}), none.clone(), &none, "`none` and `host` are not names"),
            (
                &front,
                json!({"networks": ["none", "front"]}),
                &none,
                "web.networks: `none` is no network at all",
            ),
            (
                &front,
                json!({"networks": ["none"], "ports": ["80:80"]}),
                &none,
                "web.networks: `none` is no network at all",
            ),
            (
                &front,
                json!({"networks": ["none"], "health-check": {"tcp": 80}}),
                &none,
                "web.health-check: `http` and `tcp` ask by network",
            ),
        ] {
            let error = check(networks.clone(), web, other.clone()).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
