//! What must hold for several values of interfaces at once: checked before a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    ArpTarget, BondMode, Cidr4, Cidr6, Interface, InterfaceId, InterfaceName, Interfaces, Kind, Monitoring,
};
use crate::keys::join;
use crate::parse::Mistake;

const KEY: &str = "settings.network.interfaces";

pub(crate) const MOST_INTERFACES: usize = 64;
/// Of one interface and one version of IP.
const MOST_ADDRESSES: usize = 64;
/// Of one interface.
const MOST_ROUTES: usize = 128;
/// The kernel's (BOND_MAX_ARP_TARGETS).
const MOST_TARGETS: usize = 16;
/// Without it the kernel has no IPv6 on an interface (RFC 8200, section 5).
const LEAST_MTU_OF_IPV6: u32 = 1280;

pub(crate) fn mistakes_of_whole(interfaces: &Interfaces) -> Vec<Mistake> {
    let mut found = Rules { interfaces, mistakes: Vec::new() };
    if interfaces.len() > MOST_INTERFACES {
        let count = interfaces.len();
        let reason = format!("{count} interfaces are more than the {MOST_INTERFACES} that can be set");
        return vec![Mistake::new(KEY, reason)];
    }
    for (id, interface) in interfaces {
        // A table without values is no setting: nobody could see it or remove it.
        if *interface == Interface::default() {
            found.wrong(
                id,
                "",
                "nothing is set for it: set dhcp4 = false for an interface that is only to be up",
            );
        }
        found.kinds(id, interface);
        found.addresses(id, interface);
        found.routes(id, interface);
    }
    found.primaries();
    found.members();
    found.cards();
    found.vlans();
    found.cycles();
    found.twice();
    found.mistakes
}

struct Rules<'a> {
    interfaces: &'a Interfaces,
    mistakes: Vec<Mistake>,
}

impl<'a> Rules<'a> {
    fn wrong(&mut self, id: &str, name: &str, reason: impl Into<String>) {
        let key = join(KEY, id);
        let key = if name.is_empty() { key } else { format!("{key}.{name}") };
        self.mistakes.push(Mistake::new(&key, reason));
    }

    /// Keys that belong to one kind, and those that it needs.
    fn kinds(&mut self, id: &InterfaceId, interface: &Interface) {
        let kinds =
            |of: &'static [Kind]| move |kind: Option<Kind>| kind.is_some_and(|kind| of.contains(&kind));
        let (bond, vlan, bridge) = (kinds(&[Kind::Bond]), kinds(&[Kind::Vlan]), kinds(&[Kind::Bridge]));
        let kind = interface.kind;
        for (name, is_set, belongs, to) in [
            ("interfaces", interface.interfaces.is_some(), bond(kind) || bridge(kind), "bond\" or \"bridge"),
            ("mode", interface.mode.is_some(), bond(kind), "bond"),
            ("min-links", interface.min_links.is_some(), bond(kind), "bond"),
            ("monitoring", interface.monitoring.is_some(), bond(kind), "bond"),
            ("lacp-rate", interface.lacp_rate.is_some(), bond(kind), "bond"),
            ("xmit-hash-policy", interface.xmit_hash_policy.is_some(), bond(kind), "bond"),
            ("device", interface.device.is_some(), vlan(kind), "vlan"),
            ("id", interface.id.is_some(), vlan(kind), "vlan"),
            ("stp", interface.stp.is_some(), bridge(kind), "bridge"),
        ] {
            if is_set && !belongs {
                self.wrong(id, name, format!("only an interface with kind = \"{to}\" has this"));
            }
        }
        for (name, is_missing, example) in [
            ("mode", bond(kind) && interface.mode.is_none(), "a mode, such as mode = \"active-backup\""),
            (
                "interfaces",
                bond(kind) && interface.interfaces.is_none(),
                "members, such as interfaces = [\"eth0\", \"eth1\"]",
            ),
            ("device", vlan(kind) && interface.device.is_none(), "what it is on, such as device = \"eth0\""),
            ("id", vlan(kind) && interface.id.is_none(), "its number, such as id = 42"),
        ] {
            if is_missing {
                let kind = kind.map_or("", Kind::name);
                self.wrong(id, name, format!("missing: a {kind} needs {example}"));
            }
        }
        if kind.is_some() && id.mac().is_some() {
            self.wrong(
                id,
                "kind",
                "what is made has a name, not a MAC address: give it one of 1 to 15 characters",
            );
        }
        if kind == Some(Kind::Bond) {
            self.bond(id, interface);
        }
    }

    fn bond(&mut self, id: &InterfaceId, bond: &Interface) {
        let Some(mode) = bond.mode else { return };
        if bond.lacp_rate.is_some() && mode != BondMode::Ieee8023ad {
            self.wrong(id, "lacp-rate", "only a bond with mode = \"802.3ad\" has a partner that sends");
        }
        let hashes = matches!(mode, BondMode::BalanceXor | BondMode::Ieee8023ad | BondMode::BalanceTlb);
        if bond.xmit_hash_policy.is_some() && !hashes {
            self.wrong(
                id,
                "xmit-hash-policy",
                "only the modes balance-xor, 802.3ad and balance-tlb choose by it",
            );
        }
        let count = bond.interfaces.as_ref().map_or(0, Vec::len);
        if let Some(least) = bond.min_links.filter(|least| least.get() as usize > count) {
            self.wrong(
                id,
                "min-links",
                format!("{} are more than its {count} members: it would never be up", least.get()),
            );
        }
        let Some(monitoring) = &bond.monitoring else { return };
        let Monitoring {
            miimon_frequency_ms,
            miimon_updelay_ms,
            miimon_downdelay_ms,
            arpmon_interval_ms,
            arpmon_validate,
            arpmon_targets,
        } = monitoring;
        let by_link =
            miimon_frequency_ms.is_some() || miimon_updelay_ms.is_some() || miimon_downdelay_ms.is_some();
        let by_arp = arpmon_interval_ms.is_some() || arpmon_validate.is_some() || arpmon_targets.is_some();
        match (by_link, by_arp) {
            (true, true) => self.wrong(
                id,
                "monitoring",
                "either miimon-* or arpmon-*, not both: the kernel does one of them",
            ),
            (false, false) => self.wrong(
                id,
                "monitoring",
                "it says nothing: set miimon-frequency-ms, or arpmon-interval-ms and arpmon-targets",
            ),
            (true, false) if miimon_frequency_ms.is_none_or(|time| time.get() == 0) => {
                self.wrong(
                    id,
                    "monitoring.miimon-frequency-ms",
                    "missing, or 0: how often are links looked at, such as 100?",
                );
            }
            (true, false) => {}
            (false, true) => {
                if matches!(mode, BondMode::Ieee8023ad | BondMode::BalanceTlb | BondMode::BalanceAlb) {
                    self.wrong(id, "monitoring", "the modes 802.3ad, balance-tlb and balance-alb look at links: use miimon-frequency-ms");
                }
                if arpmon_interval_ms.is_none_or(|time| time.get() == 0) {
                    self.wrong(
                        id,
                        "monitoring.arpmon-interval-ms",
                        "missing, or 0: how often is asked, such as 1000?",
                    );
                }
                let count = arpmon_targets.as_ref().map_or(0, |targets: &Vec<ArpTarget>| targets.len());
                if !(1..=MOST_TARGETS).contains(&count) {
                    self.wrong(
                        id,
                        "monitoring.arpmon-targets",
                        format!("{count} addresses: 1 to {MOST_TARGETS} are asked"),
                    );
                }
            }
        }
    }

    fn addresses(&mut self, id: &InterfaceId, interface: &Interface) {
        let four = interface.static4.as_ref().map(|fixed| fixed.addresses.as_ref().map_or(0, Vec::len));
        let six = interface.static6.as_ref().map(|fixed| fixed.addresses.as_ref().map_or(0, Vec::len));
        for (name, count, example) in [("static4", four, "10.0.0.5/24"), ("static6", six, "fd00::5/64")] {
            match count {
                Some(0) => {
                    self.wrong(id, &format!("{name}.addresses"), format!("missing: such as [\"{example}\"]"))
                }
                Some(count) if count > MOST_ADDRESSES => {
                    self.wrong(
                        id,
                        &format!("{name}.addresses"),
                        format!("{count} are more than {MOST_ADDRESSES}"),
                    );
                }
                _ => {}
            }
        }
        let has_ipv6 = interface.static6.is_some()
            || interface.dhcp6.as_ref().is_some_and(super::Dhcp::is_enabled)
            || interface.accepts_ra();
        if let Some(mtu) = interface.mtu.filter(|mtu| has_ipv6 && mtu.get() < LEAST_MTU_OF_IPV6) {
            self.wrong(
                id,
                "mtu",
                format!("{} is less than the {LEAST_MTU_OF_IPV6} that IPv6 needs", mtu.get()),
            );
        }
    }

    fn routes(&mut self, id: &InterfaceId, interface: &Interface) {
        let routes = interface.route.as_deref().unwrap_or_default();
        if routes.len() > MOST_ROUTES {
            self.wrong(id, "route", format!("{} are more than {MOST_ROUTES}", routes.len()));
        }
        let mut seen = BTreeSet::new();
        for (number, route) in routes.iter().enumerate() {
            let key = |name: &str| format!("route[{number}]{name}");
            let Some(to) = &route.to else {
                self.wrong(id, &key(".to"), "missing: where does it lead, such as to = \"default\"?");
                continue;
            };
            let families = [
                to.network().map(|(address, _)| address),
                route.from.map(|from| from.get()),
                route.via.map(|via| via.get()),
            ];
            let mut families = families.into_iter().flatten().map(|address: IpAddr| address.is_ipv4());
            let first = families.next();
            if families.any(|other| Some(other) != first) {
                self.wrong(
                    id,
                    &key(""),
                    "to, from and via are of IPv4 and of IPv6: a route is of one of them",
                );
            }
            if to.network().is_none() && route.via.is_none() {
                self.wrong(
                    id,
                    &key(".via"),
                    "missing: a default route needs a router, such as via = \"10.0.0.1\"",
                );
            }
            if !seen.insert((to.as_str(), first, route.route_metric)) {
                self.wrong(
                    id,
                    &key(""),
                    format!("{} is there twice with one route-metric: give one of them another", to.as_str()),
                );
            }
        }
    }

    fn primaries(&mut self) {
        let primaries = self.interfaces.iter().filter(|(_, interface)| interface.primary == Some(true));
        let primaries: Vec<&InterfaceId> = primaries.map(|(id, _)| id).collect();
        for id in primaries.iter().skip(1) {
            self.wrong(
                id,
                "primary",
                format!("{} is the primary interface already: there is one", primaries[0].as_str()),
            );
        }
    }

    /// Members of bonds and bridges belong to one of them, and have nothing to say.
    fn members(&mut self) {
        let mut owners: BTreeMap<&InterfaceName, &InterfaceId> = BTreeMap::new();
        for (owner, member) in self.pairs() {
            if let Some(other) = owners.insert(member, owner) {
                let reason = if other == owner {
                    format!("{member} is there twice")
                } else {
                    format!("{member} is a member of {} already", other.as_str())
                };
                self.wrong(owner, "interfaces", reason);
            }
        }
        for (member, owner) in owners {
            let Some((id, interface)) = self.named(member) else { continue };
            let is_set = [
                ("dhcp4", interface.dhcp4.is_some()),
                ("dhcp6", interface.dhcp6.is_some()),
                ("static4", interface.static4.is_some()),
                ("static6", interface.static6.is_some()),
                ("route", interface.route.is_some()),
                ("accept-ra", interface.accept_ra.is_some()),
                ("primary", interface.primary.is_some()),
            ];
            for (name, _) in is_set.into_iter().filter(|(_, is_set)| *is_set) {
                self.wrong(
                    id,
                    name,
                    format!(
                        "it is a member of {0}, and has no addresses of its own: set this for {0}",
                        owner.as_str()
                    ),
                );
            }
            let is_bond = self.interfaces.get(owner).is_some_and(|owner| owner.kind == Some(Kind::Bond));
            if is_bond && interface.mtu.is_some() {
                self.wrong(id, "mtu", format!("it has that of its bond: set this for {}", owner.as_str()));
            }
        }
    }

    /// One card by two spellings of its address.
    fn cards(&mut self) {
        let mut seen = BTreeMap::new();
        for id in self.interfaces.keys() {
            let Some(mac) = id.mac() else { continue };
            if let Some(other) = seen.insert(mac, id) {
                self.wrong(id, "", format!("it is the card {} written in another way", other.as_str()));
            }
        }
    }

    fn vlans(&mut self) {
        let pairs = self.pairs();
        let is_bond =
            |id: &InterfaceId| self.interfaces.get(id).is_some_and(|owner| owner.kind == Some(Kind::Bond));
        let bonded: BTreeMap<_, _> = pairs
            .into_iter()
            .filter(|(owner, _)| is_bond(owner))
            .map(|(owner, member)| (member, owner))
            .collect();
        let mut seen = BTreeMap::new();
        for (id, interface) in self.interfaces {
            let (Some(Kind::Vlan), Some(device), Some(number)) =
                (interface.kind, &interface.device, interface.id)
            else {
                continue;
            };
            if let Some(bond) = bonded.get(device) {
                self.wrong(
                    id,
                    "device",
                    format!("{device} is a member of {0}: put the VLAN on {0}", bond.as_str()),
                );
            }
            if let Some(other) = seen.insert((device, number), id) {
                self.wrong(
                    id,
                    "id",
                    format!("{} is VLAN {} of {device} already", InterfaceId::as_str(other), number.get()),
                );
            }
        }
    }

    /// What is below itself.
    fn cycles(&mut self) {
        for (id, interface) in self.interfaces {
            let (mut seen, mut next) = (BTreeSet::new(), self.below(interface));
            while let Some(name) = next.pop() {
                if name.as_str() == id.as_str() {
                    let name = if interface.kind == Some(Kind::Vlan) { "device" } else { "interfaces" };
                    self.wrong(id, name, format!("{} would be below itself", id.as_str()));
                    break;
                }
                if seen.insert(name)
                    && let Some((_, interface)) = self.named(name)
                {
                    next.extend(self.below(interface));
                }
            }
        }
    }

    /// An address that two interfaces have, or one has twice.
    fn twice(&mut self) {
        let mut owners: BTreeMap<IpAddr, &InterfaceId> = BTreeMap::new();
        for (id, interface) in self.interfaces {
            let four = interface.static4.iter().flat_map(|fixed| fixed.addresses.iter().flatten());
            let four = four.map(|Cidr4 { address, .. }| ("static4", IpAddr::V4(*address)));
            let six = interface.static6.iter().flat_map(|fixed| fixed.addresses.iter().flatten());
            let six = six.map(|Cidr6 { address, .. }| ("static6", IpAddr::V6(*address)));
            for (name, address) in four.chain(six).collect::<Vec<_>>() {
                if let Some(other) = owners.insert(address, id) {
                    self.wrong(
                        id,
                        &format!("{name}.addresses"),
                        format!("{address} is an address of {} already", other.as_str()),
                    );
                }
            }
        }
    }

    /// Bonds and bridges with each of their members.
    fn pairs(&self) -> Vec<(&'a InterfaceId, &'a InterfaceName)> {
        let all = self.interfaces.iter();
        let owners = all.filter(|(_, interface)| matches!(interface.kind, Some(Kind::Bond | Kind::Bridge)));
        owners
            .flat_map(|(id, interface)| interface.interfaces.iter().flatten().map(move |member| (id, member)))
            .collect()
    }

    fn named(&self, name: &InterfaceName) -> Option<(&'a InterfaceId, &'a Interface)> {
        self.interfaces.get_key_value(&InterfaceId::from_name(name))
    }

    fn below(&self, interface: &'a Interface) -> Vec<&'a InterfaceName> {
        match interface.kind {
            Some(Kind::Vlan) => interface.device.iter().collect(),
            Some(Kind::Bond | Kind::Bridge) => interface.interfaces.iter().flatten().collect(),
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::from_json;
    use serde_json::{Value, json};

    fn mistakes(interfaces: Value) -> Vec<String> {
        let settings = from_json(&json!({"network": {"interfaces": interfaces}})).unwrap();
        let error = settings.check().err();
        error.map(|error| error.to_string().lines().map(str::to_owned).collect()).unwrap_or_default()
    }

    #[test]
    fn each_mistake_over_several_values_names_its_key() {
        let bond = |more: Value| {
            let mut bond = json!({"kind": "bond", "mode": "active-backup", "interfaces": ["a", "b"]});
            bond.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"bond0": bond})
        };
        for (interfaces, expected) in [
            (json!({"a": {}}), "a: nothing is set for it"),
            (json!({"a": {"mode": "802.3ad"}}), "a.mode: only an interface with kind = \"bond\""),
            (
                json!({"a": {"interfaces": ["b"]}}),
                "a.interfaces: only an interface with kind = \"bond\" or \"bridge\"",
            ),
            (json!({"a": {"id": 5}}), "a.id: only an interface with kind = \"vlan\""),
            (json!({"a": {"kind": "vlan", "device": "b"}}), "a.id: missing: a vlan needs its number"),
            (json!({"a": {"kind": "vlan", "id": 1}}), "a.device: missing: a vlan needs what it is on"),
            (json!({"a": {"kind": "bond", "interfaces": ["b"]}}), "a.mode: missing: a bond needs a mode"),
            (
                json!({"a": {"kind": "bond", "mode": "broadcast"}}),
                "a.interfaces: missing: a bond needs members",
            ),
            (
                json!({"02:00:00:00:00:01": {"kind": "bridge"}}),
                "\"02:00:00:00:00:01\".kind: what is made has a name",
            ),
            (bond(json!({"lacp-rate": "fast"})), "bond0.lacp-rate: only a bond with mode = \"802.3ad\""),
            (bond(json!({"xmit-hash-policy": "layer2"})), "bond0.xmit-hash-policy: only the modes"),
            (bond(json!({"min-links": 3})), "bond0.min-links: 3 are more than its 2 members"),
            (bond(json!({"monitoring": {}})), "bond0.monitoring: it says nothing"),
            (
                bond(json!({"monitoring": {"miimon-frequency-ms": 1, "arpmon-interval-ms": 1}})),
                "bond0.monitoring: either",
            ),
            (
                bond(json!({"monitoring": {"miimon-updelay-ms": 1}})),
                "bond0.monitoring.miimon-frequency-ms: missing",
            ),
            (
                bond(json!({"monitoring": {"arpmon-targets": ["10.0.0.1"]}})),
                "bond0.monitoring.arpmon-interval-ms: missing",
            ),
            (
                bond(json!({"monitoring": {"arpmon-interval-ms": 5}})),
                "bond0.monitoring.arpmon-targets: 0 addresses",
            ),
            (
                bond(
                    json!({"mode": "balance-alb", "monitoring": {"arpmon-interval-ms": 5, "arpmon-targets": ["10.0.0.1"]}}),
                ),
                "bond0.monitoring: the modes",
            ),
            (bond(json!({"interfaces": ["a", "a"]})), "bond0.interfaces: a is there twice"),
            (json!({"a": {"static4": {}}}), "a.static4.addresses: missing"),
            (json!({"a": {"mtu": 1000, "dhcp6": true}}), "a.mtu: 1000 is less than the 1280"),
            (json!({"a": {"route": [{"via": "10.0.0.1"}]}}), "a.route[0].to: missing"),
            (json!({"a": {"route": [{"to": "default"}]}}), "a.route[0].via: missing"),
            (
                json!({"a": {"route": [{"to": "10.0.0.0/8", "via": "fd00::1"}]}}),
                "a.route[0]: to, from and via",
            ),
            (
                json!({"a": {"route": [{"to": "10.0.0.0/8"}, {"to": "10.0.0.0/8", "via": "10.0.0.1"}]}}),
                "a.route[1]: 10.0.0.0/8 is there twice",
            ),
            (
                json!({"a": {"primary": true}, "b": {"primary": true}}),
                "b.primary: a is the primary interface already",
            ),
            (
                json!({"02:00:00:00:00:0a": {"mtu": 1500}, "02:00:00:00:00:0A": {"mtu": 1500}}),
                "\"02:00:00:00:00:0a\": it is the card",
            ),
            (
                json!({"a": {"kind": "vlan", "device": "e", "id": 5}, "b": {"kind": "vlan", "device": "e", "id": 5}}),
                "b.id: a is VLAN 5 of e already",
            ),
            (json!({"a": {"kind": "vlan", "device": "a", "id": 5}}), "a.device: a would be below itself"),
            (
                json!({"a": {"static4": {"addresses": ["10.0.0.1/8"]}}, "b": {"static4": {"addresses": ["10.0.0.1/24"]}}}),
                "b.static4.addresses: 10.0.0.1 is an address of a already",
            ),
        ] {
            let found = mistakes(interfaces);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].starts_with(&format!("settings.network.interfaces.{expected}")),
                "{found:?} is not {expected}"
            );
        }
    }

    #[test]
    fn members_have_nothing_of_their_own() {
        let found = mistakes(json!({
            "bond0": {"kind": "bond", "mode": "balance-rr", "interfaces": ["a", "b"]},
            "br0": {"kind": "bridge", "interfaces": ["b", "c"]},
            "a": {"dhcp4": true, "mtu": 9000},
            "c": {"static6": {"addresses": ["fd00::1/64"]}, "mtu": 9000},
        }));
        let expected = [
            "br0.interfaces: b is a member of bond0",
            "a.dhcp4: it is a member of bond0",
            "a.mtu: it has",
            "c.static6: it is a member of br0",
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(&format!("settings.network.interfaces.{expected}")), "{found}");
        }
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn a_vlan_is_on_a_bond_and_not_on_its_members() {
        let found = mistakes(json!({
            "bond0": {"kind": "bond", "mode": "balance-rr", "interfaces": ["a"]},
            "vlan1": {"kind": "vlan", "device": "a", "id": 1},
        }));
        assert_eq!(
            found,
            ["settings.network.interfaces.vlan1.device: a is a member of bond0: put the VLAN on bond0"]
        );
    }

    #[test]
    fn what_is_below_itself_is_refused_and_what_is_not_is_fine() {
        let vlan = |device: &str, id: u32| json!({"kind": "vlan", "device": device, "id": id});
        let found = mistakes(json!({
            "a": vlan("b", 1), "b": {"kind": "bridge", "interfaces": ["c"]}, "c": {"kind": "bond", "mode": "broadcast", "interfaces": ["a"]},
            "d": vlan("b", 2),
        }));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|line| line.contains("would be below itself")), "{found:?}");
        let fine = json!({
            "bond0": {"kind": "bond", "mode": "802.3ad", "interfaces": ["eth0", "eth1"], "lacp-rate": "fast", "xmit-hash-policy": "encap2+3"},
            "bond0.7": {"kind": "vlan", "device": "bond0", "id": 7},
            "br0": {"kind": "bridge", "interfaces": ["bond0.7", "eth2"], "dhcp4": {"optional": true}, "stp": true},
            "eth2": {"mtu": 9000},
            "empty": {"kind": "bridge"},
            "02:00:00:00:00:01": {"dhcp6": true, "accept-ra": false},
        });
        assert_eq!(mistakes(fine), [""; 0]);
    }

    #[test]
    fn counts_are_bounded() {
        let many: serde_json::Map<String, Value> =
            (0..65).map(|n| (format!("e{n}"), json!({"mtu": 1500}))).collect();
        assert!(mistakes(Value::Object(many))[0].contains("65 interfaces are more than the 64"));
        let addresses: Vec<String> = (1..=65).map(|n| format!("10.0.0.{n}/24")).collect();
        assert!(
            mistakes(json!({"a": {"static4": {"addresses": addresses}}}))[0].contains("65 are more than 64")
        );
        let routes: Vec<Value> = (0..129).map(|n| json!({"to": format!("10.{n}.0.0/16")})).collect();
        assert!(mistakes(json!({"a": {"route": routes}}))[0].contains("129 are more than 128"));
    }
}
