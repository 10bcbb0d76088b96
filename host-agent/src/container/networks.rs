//! Networks of containers: their addresses, and what netavark is told of a container that is in some. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use settings::{Container, ContainerNetwork, NetworkName, PublishedPort, Settings};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where subnets come from that no setting names: 16384 of 256 addresses.
const POOL4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const POOL4_SIZE: u32 = 1 << 14;
const POOL4_PREFIX: u8 = 24;
/// A part of what is nobody's beyond a site (RFC 4193).
const POOL6: Ipv6Addr = Ipv6Addr::new(0xfdca, 0x1550, 0, 0, 0, 0, 0, 0);

/// How the bridges of networks begin that nothing leaves, and nothing enters from outside.
pub const INTERNAL: &str = "ci-";

/// A network whose addresses are settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Network {
    pub name: NetworkName,
    subnet4: (Ipv4Addr, u8),
    subnet6: (Ipv6Addr, u8),
    internal: bool,
}

impl Network {
    /// The addresses of what has this number in the network; the node has 1.
    fn addresses(&self, number: u32) -> [IpAddr; 2] {
        let address4 = u32::from(self.subnet4.0) + number;
        let address6 = u128::from(self.subnet6.0) + u128::from(number);
        [Ipv4Addr::from(address4).into(), Ipv6Addr::from(address6).into()]
    }

    /// The highest number of a container: below the broadcast address, and within 16 bits.
    fn last(&self) -> u32 {
        let bits = u32::from(32 - self.subnet4.1).min(u32::from(128 - self.subnet6.1)).min(16);
        (1 << bits) - 2
    }

    /// Addresses of a container that is to begin: the same again while nobody else has them. None when others have all.
    fn free(&self, container: &str, taken: &BTreeSet<IpAddr>) -> Option<[IpAddr; 2]> {
        let count = self.last() - 1;
        let first = hash(container) % count;
        let all = (0..count).map(|step| self.addresses(2 + (first + step) % count));
        all.into_iter().find(|addresses| !addresses.iter().any(|address| taken.contains(address)))
    }

    /// What the kernel and netavark know it by, the same only while all of it is the same: of a bridge whose subnet is another than
    /// it was netavark would say nothing, and use it. The kernel takes 15 bytes.
    fn identity(&self) -> String {
        let text = format!("{} {:?} {:?} {}", self.name, self.subnet4, self.subnet6, self.internal);
        let prefix = if self.internal { INTERNAL } else { "cn-" };
        format!("{prefix}{}", &hex(&text)[..12])
    }
}

/// The networks of a container, in their order. `None`: it is in the node's.
pub fn of_container(container: &Container, all: &BTreeMap<NetworkName, Network>) -> Option<Vec<Network>> {
    let networks = container.networks.as_deref().filter(|networks| !networks.is_empty())?;
    Some(networks.iter().filter_map(|name| all.get(name).cloned()).collect())
}

/// All networks: a container that names one is enough. One that no setting gives addresses has them by its name, and the next ones if
/// they are another's.
pub fn settle(settings: &Settings) -> BTreeMap<NetworkName, Network> {
    let named =
        settings.containers.iter().flatten().flat_map(|(_, container)| container.networks.iter().flatten());
    let mut networks: BTreeMap<&NetworkName, ContainerNetwork> =
        named.filter(|name| !name.is_none()).map(|name| (name, ContainerNetwork::default())).collect();
    networks.extend(settings.container_networks.iter().flatten().map(|(name, of)| (name, of.clone())));
    let given4 = |of: &ContainerNetwork| of.subnet4.map(|subnet| (subnet.address, subnet.prefix));
    let given6 = |of: &ContainerNetwork| of.subnet6.map(|subnet| (subnet.address, subnet.prefix));
    let mut taken4: Vec<(Ipv4Addr, u8)> = networks.values().filter_map(given4).collect();
    let mut taken6: Vec<(Ipv6Addr, u8)> = networks.values().filter_map(given6).collect();
    let mut all = BTreeMap::new();
    for (name, of) in &networks {
        let first = hash(name);
        let subnet4 = given4(of).or_else(|| {
            let at = |step: u32| (first.wrapping_add(step) % POOL4_SIZE) << (32 - POOL4_PREFIX);
            let mut candidates =
                (0..POOL4_SIZE).map(|step| (Ipv4Addr::from(u32::from(POOL4) + at(step)), POOL4_PREFIX));
            candidates.find(|candidate| !taken4.iter().any(|taken| overlap4(*taken, *candidate)))
        });
        let subnet6 = given6(of).or_else(|| {
            let at = |step: u32| u128::from(first.wrapping_add(step)) << 64;
            let mut candidates =
                (0..POOL4_SIZE).map(|step| (Ipv6Addr::from(u128::from(POOL6) + at(step)), 64));
            candidates.find(|candidate| !taken6.iter().any(|taken| overlap6(*taken, *candidate)))
        });
        // There always is one: 32 networks of the largest size that settings can give leave most of each pool.
        let (Some(subnet4), Some(subnet6)) = (subnet4, subnet6) else { continue };
        taken4.push(subnet4);
        taken6.push(subnet6);
        let network =
            Network { name: (*name).clone(), subnet4, subnet6, internal: of.internal == Some(true) };
        all.insert((*name).clone(), network);
    }
    all
}

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(name: &str) -> u32 {
    let digest = Sha256::digest(name);
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

fn overlap4(a: (Ipv4Addr, u8), b: (Ipv4Addr, u8)) -> bool {
    let differing = u32::from(a.0) ^ u32::from(b.0);
    differing.leading_zeros() >= u32::from(a.1.min(b.1))
}

fn overlap6(a: (Ipv6Addr, u8), b: (Ipv6Addr, u8)) -> bool {
    let differing = u128::from(a.0) ^ u128::from(b.0);
    differing.leading_zeros() >= u32::from(a.1.min(b.1))
}

/// A container's part in its networks.
#[derive(Debug)]
pub struct Plan {
    /// What `netavark setup` and `netavark teardown` read: `network::types::NetworkOptions` of netavark 2.
    pub options: Value,
    pub resolv_conf: String,
    pub hosts: String,
}

/// What others call a container.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    pub container: &'a str,
    /// A name of each of several.
    pub group: Option<&'a str>,
    pub hostname: &'a str,
}

/// What a container that is to begin gets, beside the addresses that others have. Networks are kept apart (`isolate`); the first is the
/// way out. `container` is its place, which tells it from one with the same names.
pub fn plan(
    container: &str,
    names: Names,
    networks: &[Network],
    ports: &[PublishedPort],
    taken: &BTreeSet<IpAddr>,
) -> Result<Plan, String> {
    let mut places = Vec::new();
    let mut info = serde_json::Map::new();
    let mut resolv_conf = String::new();
    let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for (at, network) in networks.iter().enumerate() {
        let addresses = network.free(container, taken).ok_or_else(|| {
            format!(
                "containers have all addresses of the network {0}: give it more with settings.container-networks.{0}.subnet4",
                network.name
            )
        })?;
        let gateways = network.addresses(1);
        for gateway in gateways {
            resolv_conf.push_str(&format!("nameserver {gateway}\n"));
        }
        for address in addresses {
            hosts.push_str(&format!("{address} {}\n", names.hostname));
        }
        let identity = network.identity();
        places.push(json!({
            "name": identity,
            "interface_name": format!("eth{at}"),
            "static_ips": addresses,
            "aliases": names.group.into_iter().collect::<Vec<_>>(),
        }));
        let subnets = [
            json!({"subnet": format!("{}/{}", network.subnet4.0, network.subnet4.1), "gateway": gateways[0]}),
            json!({"subnet": format!("{}/{}", network.subnet6.0, network.subnet6.1), "gateway": gateways[1]}),
        ];
        let network = json!({
            "name": identity,
            "id": hex(&identity),
            "driver": "bridge",
            "network_interface": identity,
            "subnets": subnets,
            "ipv6_enabled": true,
            "internal": network.internal,
            "dns_enabled": true,
            "ipam_options": {"driver": "host-local"},
            "options": {"isolate": "strict", "metric": (100 + at).to_string()},
        });
        info.insert(identity, network);
    }
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            json!({
                "container_port": port.to,
                "host_port": port.port,
                "host_ip": port.address.map(|address| address.to_string()).unwrap_or_default(),
                "protocol": port.protocol.name(),
                "range": 1,
            })
        })
        .collect();
    let options = json!({
        // netavark finds a container's line for aardvark-dns by whether its id is anywhere in it: no name may be in another.
        "container_id": hex(container),
        "container_name": names.container,
        "networks": places,
        "network_info": info,
        "port_mappings": ports,
    });
    Ok(Plan { options, resolv_conf, hosts })
}

/// Whether one of the networks of a plan's options is internal.
pub fn has_internal(options: &Value) -> bool {
    let mut networks = options["networks"].as_array().into_iter().flatten();
    networks.any(|network| network["name"].as_str().is_some_and(|name| name.starts_with(INTERNAL)))
}

/// Whether ports of the node lead to who has these options.
pub fn has_ports(options: &Value) -> bool {
    options["port_mappings"].as_array().is_some_and(|ports| !ports.is_empty())
}

/// The options of a plan, of one whose ports stay another's.
pub fn without_ports(mut options: Value) -> Value {
    options["port_mappings"] = json!([]);
    options
}

/// Of what `nft -j list` says of netavark's table: the rules that lead to one of these addresses, by chain and handle.
pub fn rules_to(listing: &Value, addresses: &[IpAddr]) -> Vec<(String, u64)> {
    let rules = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["rule"]);
    let leads_there = |rule: &&Value| {
        let mut statements = rule["expr"].as_array().into_iter().flatten();
        statements.any(|statement| {
            let address = statement["dnat"]["addr"].as_str().and_then(|address| address.parse().ok());
            address.is_some_and(|address: IpAddr| addresses.contains(&address))
        })
    };
    let named = |rule: &Value| Some((rule["chain"].as_str()?.to_owned(), rule["handle"].as_u64()?));
    rules.filter(leads_there).filter_map(named).collect()
}

/// The addresses that the options of a plan give, those of the first network first.
pub fn addresses(options: &Value) -> Vec<IpAddr> {
    let networks = options["networks"].as_array().into_iter().flatten();
    let addresses = networks.flat_map(|network| network["static_ips"].as_array().into_iter().flatten());
    addresses.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.1 lists what netavark 2.1 has made for two containers with the same port.
    #[test]
    fn of_two_with_the_same_port_each_has_a_rule_of_its_own() {
        let port = json!({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}});
        let rule = |handle: u64, chain: &str, then: Value| json!({"rule": {"family": "inet", "table": "netavark", "chain": chain, "handle": handle, "expr": [port, then]}});
        let to = |address: &str| json!({"dnat": {"family": "ip", "addr": address, "port": 80}});
        let listing = json!({"nftables": [
            {"metainfo": {"json_schema_version": 1}},
            {"chain": {"family": "inet", "table": "netavark", "name": "nv_1_10_9_8_0_nm24_dnat", "handle": 5}},
            rule(20, "NETAVARK-HOSTPORT-DNAT", json!({"jump": {"target": "nv_1_10_9_8_0_nm24_dnat"}})),
            rule(21, "nv_1_10_9_8_0_nm24_dnat", to("10.9.8.2")),
            rule(30, "NETAVARK-HOSTPORT-DNAT", json!({"jump": {"target": "nv_1_10_9_8_0_nm24_dnat"}})),
            rule(31, "nv_1_10_9_8_0_nm24_dnat", to("10.9.8.20")),
        ]});
        let found = rules_to(&listing, &["10.9.8.2".parse().unwrap()]);
        assert_eq!(found, [("nv_1_10_9_8_0_nm24_dnat".to_owned(), 21)]);
        assert!(rules_to(&json!({}), &["10.9.8.2".parse().unwrap()]).is_empty());
    }

    fn networks(tree: Value) -> BTreeMap<NetworkName, Network> {
        let settings = settings::from_json(&json!({"container-networks": tree})).unwrap();
        settings.check().unwrap();
        settle(&settings)
    }

    fn names(container: &str) -> Names<'_> {
        Names { container, group: None, hostname: container }
    }

    fn network(tree: Value) -> Network {
        networks(json!({ "front": tree })).into_values().next().unwrap()
    }

    #[test]
    fn addresses_come_from_settings_or_the_name() {
        let all = networks(json!({
            "back": {"subnet4": "10.1.2.0/28", "subnet6": "fd00:89::/120", "internal": true}, "front": {},
        }));
        let name = |text: &str| NetworkName::try_from(text.to_owned()).unwrap();
        let (back, front) = (&all[&name("back")], &all[&name("front")]);
        assert_eq!(back.subnet4, ("10.1.2.0".parse().unwrap(), 28));
        assert_eq!(back.addresses(2).map(|address| address.to_string()), ["10.1.2.2", "fd00:89::2"]);
        assert!(back.internal && !front.internal);
        assert!(overlap4(front.subnet4, (POOL4, 10)) && front.subnet4.1 == 24);
        assert!(overlap6(front.subnet6, (POOL6, 32)) && front.subnet6.1 == 64);
        // The same whatever else there is, unless somebody has it.
        assert_eq!(network(json!({})), *front);
        let here = format!("{}/24", front.subnet4.0);
        let moved = networks(json!({"front": {}, "other": {"subnet4": here}}));
        assert!(!overlap4(moved[&name("front")].subnet4, front.subnet4), "{moved:?}");
    }

    #[test]
    fn each_container_has_addresses_of_its_own_until_there_are_none() {
        let small = network(json!({"subnet4": "10.0.0.0/29"}));
        let mut taken = BTreeSet::new();
        for container in ["a", "b", "c", "d", "e"] {
            let addresses = small.free(container, &taken).unwrap();
            assert_eq!(small.free(container, &taken), Some(addresses));
            taken.extend(addresses);
        }
        let all: Vec<String> =
            taken.iter().filter(|address| address.is_ipv4()).map(ToString::to_string).collect();
        assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let error = plan("f", names("f"), &[small], &[], &taken).unwrap_err();
        assert!(error.contains("container-networks.front.subnet4"), "{error}");
    }

    #[test]
    fn a_network_with_other_addresses_is_another_one() {
        let identity = |tree| network(tree).identity();
        assert_eq!(identity(json!({})), identity(json!({})));
        assert_ne!(identity(json!({})), identity(json!({"subnet4": "10.0.0.0/24"})));
        assert_ne!(identity(json!({})), identity(json!({"internal": true})));
        assert_eq!(identity(json!({})).len(), 15);
        assert!(identity(json!({"internal": true})).starts_with(INTERNAL));
    }

    #[test]
    fn a_container_is_in_the_nodes_network_unless_it_names_others() {
        let of = |container: Value| {
            let tree = json!({"containers": {"web": container}});
            let settings = settings::from_json(&tree).unwrap();
            settings.check().unwrap();
            let all = settle(&settings);
            of_container(settings.containers.unwrap().values().next().unwrap(), &all)
                .map(|networks| networks.len())
        };
        assert_eq!(of(json!({"image": "a"})), None);
        assert_eq!(of(json!({"image": "a", "networks": ["front"]})), Some(1));
        assert_eq!(of(json!({"image": "a", "networks": ["none"]})), Some(0));
    }

    #[test]
    fn netavark_is_told_of_networks_and_ports() {
        let front = network(json!({"subnet4": "10.0.0.0/24", "subnet6": "fd00::/64"}));
        let port = |text: &str| PublishedPort::try_from(text.to_owned()).unwrap();
        let ports = [port("8080:80"), port("[::1]:53:5353/udp")];
        let plan = plan(
            "web",
            Names { hostname: "shop", ..names("web") },
            std::slice::from_ref(&front),
            &ports,
            &BTreeSet::new(),
        )
        .unwrap();
        let told = &plan.options;
        let identity = front.identity();
        assert_eq!(told["networks"][0]["name"], identity);
        assert_eq!(told["networks"][0]["interface_name"], "eth0");
        let own = addresses(told);
        assert_eq!(plan.hosts.lines().last().unwrap(), format!("{} shop", own[1]));
        assert_eq!(plan.resolv_conf, "nameserver 10.0.0.1\nnameserver fd00::1\n");
        let info = &told["network_info"][&identity];
        assert_eq!(info["network_interface"], identity);
        assert_eq!(info["subnets"][0], json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.1"}));
        assert_eq!(info["subnets"][1], json!({"subnet": "fd00::/64", "gateway": "fd00::1"}));
        let mapping = |host: &str, from: u16, to: u16, protocol: &str| json!({"host_ip": host, "host_port": from, "container_port": to, "protocol": protocol, "range": 1});
        assert_eq!(
            told["port_mappings"],
            json!([mapping("", 8080, 80, "tcp"), mapping("::1", 53, 5353, "udp")])
        );
    }
}
