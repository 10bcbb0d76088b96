//! `/etc/resolv.conf`: who is asked for names. What settings say goes before what the leases give.

use settings::Dns;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

const RESOLV_CONF: &str = "/run/etc/resolv.conf";
/// The resolver reads no more (resolv.conf(5)).
const MOST_SERVERS: usize = 3;
const MOST_SEARCHED: usize = 6;

/// Who is asked for names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameServer {
    address: IpAddr,
    /// The interface, of an address that is only for its link (RFC 4007, 11).
    zone: Option<String>,
}

impl NameServer {
    /// One that was named on an interface.
    pub fn on(interface: &str, address: IpAddr) -> Self {
        let is_of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        Self { address, zone: is_of_link.then(|| interface.to_owned()) }
    }
}

impl From<IpAddr> for NameServer {
    fn from(address: IpAddr) -> Self {
        Self { address, zone: None }
    }
}

impl std::fmt::Display for NameServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)?;
        self.zone.as_ref().map_or(Ok(()), |zone| write!(f, "%{zone}"))
    }
}

/// What one lease, or a router's advertisement, says of names. Its domains come from the network, and may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeasedDns {
    pub servers: Vec<NameServer>,
    pub search: Vec<String>,
}

#[derive(Default)]
pub struct Resolver {
    /// Those that count most come first.
    leases: Vec<LeasedDns>,
    settings: Dns,
}

impl Resolver {
    /// Notes what all leases say, those that count most first. An agent that has just started knows none: the file of the one before
    /// it is better than nothing, and stays until there is one.
    pub fn set_leases(&mut self, leases: Vec<LeasedDns>) -> Result<(), String> {
        if self.leases == leases {
            return Ok(());
        }
        self.leases = leases;
        self.write()
    }

    pub fn set_settings(&mut self, settings: Option<&Dns>) -> Result<(), String> {
        let settings = settings.cloned().unwrap_or_default();
        let nothing_known = self.leases.is_empty() && settings == Dns::default();
        let nothing_new = self.settings == settings;
        self.settings = settings;
        // An agent that has just started knows no lease: the file of the one before it is better than none.
        if nothing_known && nothing_new { Ok(()) } else { self.write() }
    }

    fn servers(&self) -> Vec<NameServer> {
        if let Some(servers) = &self.settings.name_servers {
            return servers.iter().map(|server| server.get().into()).collect();
        }
        let mut seen = BTreeSet::new();
        let leased = self.leases.iter().flat_map(|lease| &lease.servers);
        leased.filter(|server| seen.insert(*server)).take(MOST_SERVERS).cloned().collect()
    }

    fn search(&self) -> Vec<&str> {
        if let Some(search) = &self.settings.search_list {
            return search.iter().map(|domain| domain.as_str()).collect();
        }
        let plain = |name: &&str| {
            (1..=253).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        };
        let mut seen = BTreeSet::new();
        let leased = self.leases.iter().flat_map(|lease| lease.search.iter().map(String::as_str));
        leased.filter(plain).filter(|name| seen.insert(*name)).take(MOST_SEARCHED).collect()
    }

    fn text(&self) -> String {
        let search = Some(self.search().join(" ")).filter(|search| !search.is_empty());
        let search = search.map(|search| format!("search {search}\n"));
        let servers = self.servers().into_iter().map(|server| format!("nameserver {server}\n"));
        search.into_iter().chain(servers).collect()
    }

    fn write(&self) -> Result<(), String> {
        // In place: containers have this file mounted.
        fs::write(RESOLV_CONF, self.text()).map_err(|error| format!("cannot write {RESOLV_CONF}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::Ipv4Addr;

    fn resolver(leases: &[(&[IpAddr], &[&str])], dns: serde_json::Value) -> Resolver {
        let lease = |(servers, search): &(&[IpAddr], &[&str])| {
            let search = search.iter().map(|name| (*name).to_owned()).collect();
            LeasedDns {
                servers: servers.iter().map(|server| NameServer::on("eth0", *server)).collect(),
                search,
            }
        };
        let settings = settings::from_json(&json!({"dns": dns})).unwrap().dns.unwrap();
        Resolver { leases: leases.iter().map(lease).collect(), settings }
    }

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(2, 2, 2, 2));

    #[test]
    fn a_hostile_domain_adds_no_line() {
        let lease = resolver(&[(&[A], &["example.com", "evil\nnameserver 6.6.6.6", ""])], json!({}));
        assert_eq!(lease.text(), "search example.com\nnameserver 10.0.2.3\n");
    }

    #[test]
    fn servers_of_two_leases_are_named_once() {
        let leases = resolver(&[(&[A, B], &["z", "a"]), (&[B], &["a"])], json!({}));
        assert_eq!(leases.text(), "search z a\nnameserver 10.0.2.3\nnameserver 2.2.2.2\n");
    }

    #[test]
    fn a_server_that_is_only_on_a_link_is_named_with_its_interface() {
        let [on_link, elsewhere]: [IpAddr; 2] = ["fe80::1", "fd00::1"].map(|text| text.parse().unwrap());
        let lease = resolver(&[(&[on_link, elsewhere], &[])], json!({}));
        assert_eq!(lease.text(), "nameserver fe80::1%eth0\nnameserver fd00::1\n");
    }

    #[test]
    fn settings_go_before_leases_each_by_itself() {
        let leases: &[(&[IpAddr], &[&str])] = &[(&[A], &["leased.example"])];
        let servers = resolver(leases, json!({"name-servers": ["fd00::53"]}));
        assert_eq!(servers.text(), "search leased.example\nnameserver fd00::53\n");
        let search = resolver(leases, json!({"search-list": ["b.example", "a.example"]}));
        assert_eq!(search.text(), "search b.example a.example\nnameserver 10.0.2.3\n");
        assert_eq!(resolver(leases, json!({})).text(), "search leased.example\nnameserver 10.0.2.3\n");
        assert_eq!(resolver(&[], json!({})).text(), "");
    }
}
