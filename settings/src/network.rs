//! `settings.network`: the node's name, names it knows without a DNS, and the proxy on the way out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::IpAddr;

use crate::interfaces::Interfaces;
use crate::scalar::{Address, DomainName, Hostname, Origin, checked_string, is_domain, shown};

/// The network of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// The node's name: the kernel's host name, `/etc/hostname`, and a name of the loopback addresses in `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"node-1.example.com", extend("x-default" = "`caisson-` and 8 digits of the machine's identity"))]
    pub hostname: Option<Hostname>,
    /// Further lines of `/etc/hosts`, of the node and of its containers. Entries of one address are put together, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!([["10.0.0.5", ["db.example.com", "db"]]]))]
    pub hosts: Option<Vec<HostEntry>>,
    /// The proxy through which images are pulled, and updates looked for, from servers that speak HTTPS. Containers are not told
    /// of it: give it to those that need it by their `env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"http://proxy.example.com:3128")]
    pub https_proxy: Option<Origin>,
    /// What is reached without the proxy, beside `localhost` and `127.0.0.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["registry.example.com", "10.0.0.0/8"]))]
    pub no_proxy: Option<Vec<NoProxy>>,
    /// Interfaces by name, or by the MAC address of a network card: at most 64. When this is set, what it does not name is left
    /// alone; a change is carried out at once. See [network.md](network.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = json!({"eth0": {"static4": {"addresses": ["10.0.0.5/24"]}}}),
        extend("x-default" = "every network card asks by DHCP and takes what IPv6 routers advertise")
    )]
    pub interfaces: Option<Interfaces>,
}

/// An address and its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEntry(pub Address, pub Vec<DomainName>);

checked_string!(
    /// A host or domain (with all below it), an IP address, a network such as `10.0.0.0/8`, or `*` for everything.
    NoProxy,
    |text| {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let longest = address.parse().map(|address: IpAddr| if address.is_ipv4() { 32 } else { 128 });
        let is_address = longest.is_ok_and(|longest| {
            length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= longest))
        });
        if text == "*" || is_address || is_domain(text.strip_prefix('.').unwrap_or(text)) {
            return Ok(());
        }
        Err(format!(
            "{} is not what a proxy can be left out for: write a host, a domain, an address, a network such as 10.0.0.0/8, or *; without a port",
            shown(text)
        ))
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_hosts_name_their_place() {
        for (hosts, expected) in [
            (json!({"a": "b"}), "settings.network.hosts: expected a list, such as [[\"10.0.0.1\""),
            (json!([["10.0.0.1"]]), "settings.network.hosts[0]: expected a list of two"),
            (json!([["db", ["a"]]]), "settings.network.hosts[0][0]: \"db\" is not an IP address"),
            (
                json!([["::1", ["a"]], ["::2", ["b", "c d"]]]),
                "settings.network.hosts[1][1][1]: \"c d\" is not",
            ),
            (json!([["::1", "a"]]), "settings.network.hosts[0][1]: expected a list of strings"),
        ] {
            let error = crate::from_json(&json!({"network": {"hosts": hosts}})).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_not_yet_there_says_so() {
        let error = crate::from_json(&json!({"network": {"disable-ipv6": true}, "measurement": {}}))
            .unwrap_err()
            .to_string();
        assert_eq!(error.matches("not yet in this version").count(), 2, "{error}");
    }

    #[test]
    fn what_a_proxy_is_left_out_for() {
        for fine in
            ["*", "a", ".example.com", "registry.example.com", "10.0.0.0/8", "10.0.0.1", "fd00::/8", "::1"]
        {
            assert!(fine.parse::<NoProxy>().is_ok(), "{fine}");
        }
        for wrong in
            ["", ".", "a,b", "a b", "a:80", "10.0.0.0/33", "10.0.0.0/", "*.a", "http://a", "fd00::/129"]
        {
            assert!(wrong.parse::<NoProxy>().is_err(), "{wrong}");
        }
    }
}
