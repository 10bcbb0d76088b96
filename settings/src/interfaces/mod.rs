//! `settings.network.interfaces`: what each interface of the node is made of, and which addresses and routes it has.

mod net_toml;
mod rules;
mod scalar;

pub use scalar::{
    Cidr4, Cidr6, Destination, InterfaceId, InterfaceName, Milliseconds, MinLinks, Mtu, RouteMetric, VlanId,
};

pub(crate) use net_toml::read as read_net_toml;
pub(crate) use rules::mistakes_of_whole;
pub(crate) use scalar::cidr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::scalar::{Address, shown};

/// By name, or by the MAC address of a network card.
pub type Interfaces = BTreeMap<InterfaceId, Interface>;

/// An interface: a network card, or with `kind` something that is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Interface {
    /// What is made: a bond, a VLAN or a bridge of this name. Without it the interface is a network card that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"bond", extend("x-default" = "a network card"))]
    pub kind: Option<Kind>,
    /// DHCP for IPv4. `true` and `false` are short for a table with `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"enabled": true}), extend("x-default" = "off"))]
    pub dhcp4: Option<Dhcp>,
    /// DHCP for IPv6, always, whatever routers say of it. `true` and `false` are short for a table with `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"enabled": true}), extend("x-default" = "off"))]
    pub dhcp6: Option<Dhcp>,
    /// Addresses of its own, IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"addresses": ["10.0.0.5/24"]}))]
    pub static4: Option<Static4>,
    /// Addresses of its own, IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"addresses": ["fd00::5/64"]}))]
    pub static6: Option<Static6>,
    /// Routes through this interface, at most 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!([{"to": "default", "via": "10.0.0.1"}]))]
    pub route: Option<Vec<Route>>,
    /// The interface whose routes go before those of others, and whose DNS servers are asked first. At most one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub primary: Option<bool>,
    /// The largest packet. A bridge's holds for its members too, and a bond's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = 9000,
        extend("x-default" = "DHCP's; else the card's own, 1500 for what is made, the device's for a VLAN")
    )]
    pub mtu: Option<Mtu>,
    /// Whether it takes addresses, routes and DNS that IPv6 routers advertise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "true with `dhcp6`, else false"))]
    pub accept_ra: Option<bool>,
    /// What a bond or a bridge is made of: network cards, or interfaces that are set here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["eth0", "eth1"]))]
    pub interfaces: Option<Vec<InterfaceName>>,
    /// How a bond spreads packets over its members. A bond needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"active-backup")]
    pub mode: Option<BondMode>,
    /// With fewer members that work a bond counts as down. The kernel heeds it in mode `802.3ad`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 1, extend("x-default" = "0"))]
    pub min_links: Option<MinLinks>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<Monitoring>,
    /// How often the partner of a bond in mode `802.3ad` is asked to send: every 30 s, or every second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"fast", extend("x-default" = "`slow`"))]
    pub lacp_rate: Option<LacpRate>,
    /// By which parts of a packet a member is chosen, in modes `balance-xor`, `802.3ad` and `balance-tlb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"layer3+4", extend("x-default" = "`layer2`"))]
    pub xmit_hash_policy: Option<XmitHashPolicy>,
    /// What a VLAN is on. A VLAN needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"eth0")]
    pub device: Option<InterfaceName>,
    /// The number of a VLAN. A VLAN needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 42)]
    pub id: Option<VlanId>,
    /// Whether a bridge looks for loops by the spanning tree protocol. It forwards nothing for its first 30 s then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub stp: Option<bool>,
}

impl Interface {
    /// Whether it accepts what routers advertise.
    pub fn accepts_ra(&self) -> bool {
        self.accept_ra.unwrap_or_else(|| enabled(self.dhcp6.as_ref()))
    }

    /// Whether the node is fine without it: it may have addresses only by DHCP that is optional.
    pub fn is_optional(&self) -> bool {
        let asks = [&self.dhcp4, &self.dhcp6].into_iter().flatten().filter(|dhcp| dhcp.is_enabled());
        let mut asks = asks.peekable();
        self.static4.is_none()
            && self.static6.is_none()
            && asks.peek().is_some()
            && asks.all(Dhcp::is_optional)
    }
}

fn enabled(dhcp: Option<&Dhcp>) -> bool {
    dhcp.is_some_and(Dhcp::is_enabled)
}

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Bond,
    Vlan,
    Bridge,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Bridge => "bridge",
        }
    }
}

/// DHCP on one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dhcp {
    /// Whether a server is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "true"))]
    pub enabled: Option<bool>,
    /// Whether nothing is wrong with the node when no server answers, or the interface is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub optional: Option<bool>,
    /// Of the routes that come with the lease; with `dhcp6`, of those that routers advertise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 100, extend("x-default" = "1024 for the primary interface, else 1024 and its number in the kernel"))]
    pub route_metric: Option<RouteMetric>,
}

impl Dhcp {
    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    pub fn is_optional(&self) -> bool {
        self.optional.unwrap_or(false)
    }
}

/// Fixed addresses, IPv4.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Static4 {
    /// The addresses, at most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["10.0.0.5/24"]))]
    pub addresses: Option<Vec<Cidr4>>,
}

/// Fixed addresses, IPv6.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Static6 {
    /// The addresses, at most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["fd00::5/64"]))]
    pub addresses: Option<Vec<Cidr6>>,
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Route {
    /// Where it leads. A route needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10.1.0.0/16")]
    pub to: Option<Destination>,
    /// The node's own address that packets have as their sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10.0.0.5", extend("x-default" = "the kernel chooses"))]
    pub from: Option<Address>,
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10.0.0.1", extend("x-default" = "whoever is there is reached directly"))]
    pub via: Option<Address>,
    /// Its weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 100, extend("x-default" = "as DHCP's"))]
    pub route_metric: Option<RouteMetric>,
}

/// Modes of a bond (Linux, `Documentation/networking/bonding.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    BalanceRr,
    ActiveBackup,
    BalanceXor,
    Broadcast,
    #[serde(rename = "802.3ad")]
    Ieee8023ad,
    BalanceTlb,
    BalanceAlb,
}

/// How a bond notices that a member has failed: by its link, or by asking others by ARP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Monitoring {
    /// How often the links of members are looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 100, extend("x-default" = "100, without ARP"))]
    pub miimon_frequency_ms: Option<Milliseconds>,
    /// How long a link has to be up before it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 200, extend("x-default" = "0"))]
    pub miimon_updelay_ms: Option<Milliseconds>,
    /// How long a link has to be down before it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 200, extend("x-default" = "0"))]
    pub miimon_downdelay_ms: Option<Milliseconds>,
    /// How often others are asked by ARP, instead of looking at links; not in modes `802.3ad`, `balance-tlb` and `balance-alb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 1000)]
    pub arpmon_interval_ms: Option<Milliseconds>,
    /// Whose ARP answers are looked at closely: those that come to the active member, to the others, or to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"all", extend("x-default" = "`none`"))]
    pub arpmon_validate: Option<ArpValidate>,
    /// Who is asked, 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["10.0.0.1"]))]
    pub arpmon_targets: Option<Vec<ArpTarget>>,
}

/// Whose ARP answers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArpValidate {
    None,
    Active,
    Backup,
    All,
}

/// An IPv4 address that is asked by ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ArpTarget(Ipv4Addr);

impl ArpTarget {
    pub fn get(self) -> Ipv4Addr {
        self.0
    }
}

impl TryFrom<String> for ArpTarget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text
            .parse()
            .ok()
            .filter(|address: &Ipv4Addr| !address.is_unspecified() && !address.is_broadcast());
        address.map(Self).ok_or_else(|| format!("{} is not an IPv4 address of a host", shown(&text)))
    }
}

impl From<ArpTarget> for String {
    fn from(target: ArpTarget) -> Self {
        target.0.to_string()
    }
}

/// How often the partner sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LacpRate {
    Slow,
    Fast,
}

/// By what a member of a bond is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum XmitHashPolicy {
    #[serde(rename = "layer2")]
    Layer2,
    #[serde(rename = "layer2+3")]
    Layer23,
    #[serde(rename = "layer3+4")]
    Layer34,
    #[serde(rename = "encap2+3")]
    Encap23,
    #[serde(rename = "encap3+4")]
    Encap34,
    #[serde(rename = "vlan+srcmac")]
    VlanSrcmac,
}

/// Reads `dhcp4 = true` as `dhcp4 = {enabled = true}`: a name is always a value or always a table, or merging would have no laws.
pub(crate) fn with_whole_forms(tree: Cow<'_, Value>) -> Cow<'_, Value> {
    let interfaces = tree["network"]["interfaces"].as_object();
    let is_short = |interface: &Value| interface["dhcp4"].is_boolean() || interface["dhcp6"].is_boolean();
    if !interfaces.is_some_and(|interfaces| interfaces.values().any(is_short)) {
        return tree;
    }
    let mut tree = tree.into_owned();
    for interface in
        tree["network"]["interfaces"].as_object_mut().into_iter().flat_map(|all| all.values_mut())
    {
        make_whole(interface);
    }
    Cow::Owned(tree)
}

fn make_whole(interface: &mut Value) {
    for name in ["dhcp4", "dhcp6"] {
        if let Some(value) = interface.get_mut(name)
            && value.is_boolean()
        {
            *value = json!({"enabled": value.take()});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, from_json, from_key_values};

    #[test]
    fn a_switch_is_short_for_a_table_everywhere() {
        let whole = json!({"network": {"interfaces": {"eth0": {"dhcp4": {"enabled": true}, "dhcp6": {"enabled": false}}}}});
        let short = json!({"network": {"interfaces": {"eth0": {"dhcp4": true, "dhcp6": false}}}});
        assert_eq!(from_json(&short).unwrap().to_json(), whole);
        let pairs = ["network.interfaces.eth0.dhcp4=true", "network.interfaces.eth0.dhcp6.enabled=false"];
        assert_eq!(from_key_values(pairs).unwrap().to_json(), whole);
        let base =
            from_json(&json!({"network": {"interfaces": {"eth0": {"dhcp4": {"route-metric": 5}}}}})).unwrap();
        let merged = base.with(&from_json(&short).unwrap()).to_json();
        assert_eq!(
            merged["network"]["interfaces"]["eth0"]["dhcp4"],
            json!({"enabled": true, "route-metric": 5})
        );
        for wrong in [json!("yes"), json!(1), json!({"on": true})] {
            let error =
                from_json(&json!({"network": {"interfaces": {"eth0": {"dhcp4": wrong}}}})).unwrap_err();
            assert!(error.to_string().starts_with("settings.network.interfaces.eth0.dhcp4"), "{error}");
        }
    }

    #[test]
    fn names_with_dots_and_addresses_of_cards_are_keys() {
        let interfaces = json!({"eth0.7": {"mtu": 1400}, "02:00:00:00:00:01": {"mtu": 1500}});
        let settings = from_json(&json!({"network": {"interfaces": interfaces}})).unwrap();
        let card = "settings.network.interfaces.\"02:00:00:00:00:01\".mtu";
        assert_eq!(crate::flatten(&settings)[card], 1500);
        assert_eq!(crate::split_key(card).unwrap()[3], "02:00:00:00:00:01");
        let pair = from_key_values([&*format!("{}=1500", card.strip_prefix("settings.").unwrap())]).unwrap();
        assert_eq!(pair, crate::from_json(&crate::select(&settings, |key| key == card)).unwrap());
        let mut change = Change::default();
        change.remove(&[card.to_owned()]);
        let left = json!({"network": {"interfaces": {"eth0.7": {"mtu": 1400}}}});
        assert_eq!(change.over(&settings).to_json(), left);
    }

    #[test]
    fn an_interface_is_optional_when_all_that_it_asks_is() {
        for (interface, expected) in [
            (json!({"dhcp4": {"optional": true}}), true),
            (json!({"dhcp4": {"optional": true}, "dhcp6": {"optional": true}}), true),
            (json!({"dhcp4": {"optional": true}, "dhcp6": true}), false),
            (json!({"dhcp4": {"optional": true}, "dhcp6": {"enabled": false}}), true),
            (json!({"dhcp4": {"optional": true, "enabled": false}}), false),
            (json!({"dhcp4": {"optional": true}, "static4": {"addresses": ["10.0.0.1/8"]}}), false),
            (json!({"mtu": 1500}), false),
        ] {
            let mut settings = from_json(&json!({"network": {"interfaces": {"a": interface}}})).unwrap();
            let interface = settings.network.take().unwrap().interfaces.unwrap().pop_first().unwrap().1;
            assert_eq!(interface.is_optional(), expected, "{interface:?}");
        }
    }
}
