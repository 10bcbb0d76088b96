//! `settings.dns`: who is asked for names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::parse::Mistake;
use crate::scalar::{Address, DomainName};

/// resolv.conf(5): a resolver asks no more than three servers.
const MOST_SERVERS: usize = 3;
/// Those of older C libraries, and musl's, read no more of a search list.
const MOST_SEARCHED: usize = 6;

/// The resolver of the node and of its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dns {
    /// DNS servers, at most 3, instead of those that DHCP and IPv6 routers give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["10.0.0.53", "fd00::53"]), extend("x-default" = "DHCP's"))]
    pub name_servers: Option<Vec<Address>>,
    /// Domains in which short names are looked for, at most 6, instead of those that DHCP and IPv6 routers give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["example.com"]), extend("x-default" = "DHCP's"))]
    pub search_list: Option<Vec<DomainName>>,
}

impl Dns {
    /// More than a resolver reads would have no effect.
    pub(crate) fn mistakes(&self) -> impl Iterator<Item = Mistake> {
        let counts = [
            ("name-servers", self.name_servers.as_ref().map(Vec::len), MOST_SERVERS),
            ("search-list", self.search_list.as_ref().map(Vec::len), MOST_SEARCHED),
        ];
        counts.into_iter().filter_map(|(name, count, most)| {
            let count = count.filter(|count| *count > most)?;
            let reason = format!("{count} are more than the {most} that a resolver reads");
            Some(Mistake::new(&format!("settings.dns.{name}"), reason))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    #[test]
    fn what_a_resolver_does_not_read_is_refused() {
        let servers = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::4"];
        assert!(from_json(&json!({"dns": {"name-servers": servers[..3]}})).is_ok());
        for (dns, expected) in [
            (json!({"name-servers": servers}), "settings.dns.name-servers: 4 are more than the 3"),
            (json!({"name-servers": []}), "settings.dns.name-servers: expected 1 to 256 items"),
            (json!({"name-servers": ["ns"]}), "settings.dns.name-servers[0]: \"ns\" is not an IP address"),
            (json!({"search-list": ["a_b"]}), "settings.dns.search-list[0]: \"a_b\" is not a name of a host"),
            (json!({"search-list": vec!["a"; 7]}), "settings.dns.search-list: 7 are more than the 6"),
        ] {
            let error = from_json(&json!({"dns": dns})).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
