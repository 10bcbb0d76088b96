//! Which servers are asked, and the configuration of ntpd-rs (ntp.toml(5)) that says so. Pure.

use settings::{Ntp, NtpChoice};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

const PORT: u16 = 123;
/// As many as settings may name. What DHCP gives has no limit.
const MOST: usize = 8;
/// ntpd-rs's own limits: 16 s and 1024 s, as powers of two.
const SHORTEST: u8 = 4;
const LONGEST: u8 = 10;
/// chrony's `iburst`: 2 s.
const FAST: u8 = 1;

/// One server: an address, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Address(IpAddr),
    Name(String),
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Those of the settings, or those that the leases give, each once.
pub(super) fn wanted(settings: Option<&Ntp>, leased: &BTreeMap<String, Vec<IpAddr>>) -> Vec<Server> {
    let server = |text: &str| match text.parse() {
        Ok(address) => Server::Address(address),
        Err(_) => Server::Name(text.to_owned()),
    };
    let set = settings.and_then(|settings| settings.time_servers.as_ref());
    let all: Vec<Server> = match set {
        Some(set) => set.iter().map(|text| server(text)).collect(),
        None => leased.values().flatten().filter(|a| is_host(**a)).copied().map(Server::Address).collect(),
    };
    let mut servers: Vec<Server> = Vec::new();
    for server in all {
        if servers.len() < MOST && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// Whether a machine in a network can have it. A lease may hold anything.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

/// The shortest interval at the start, the shortest that is aimed at later, and the longest.
fn intervals(choices: &[NtpChoice]) -> (u8, u8, u8) {
    let (mut fast, mut shortest, mut longest) = (false, None, None);
    for choice in choices {
        match choice {
            NtpChoice::FastStart => fast = true,
            NtpChoice::ShortestInterval(interval) => shortest = Some(*interval),
            NtpChoice::LongestInterval(interval) => longest = Some(*interval),
        }
    }
    let shortest = shortest.unwrap_or(SHORTEST.min(longest.unwrap_or(SHORTEST)));
    let longest = longest.unwrap_or(LONGEST).max(shortest);
    (if fast { FAST.min(shortest) } else { shortest }, shortest, longest)
}

/// `ntp.toml`; `None` without a server.
pub(super) fn configuration(settings: Option<&Ntp>, servers: &[Server]) -> Option<String> {
    if servers.is_empty() {
        return None;
    }
    let choices = settings.and_then(Ntp::choices).unwrap_or_else(|| vec![NtpChoice::FastStart]);
    let (first, shortest, longest) = intervals(&choices);
    // More than half of those that answer have to agree in any case. At its start the clock may be off by years; the daemon ends
    // when it is to jump by more than 1000 s later, and is started again.
    let mut text = format!(
        "[synchronization]\n\
         minimum-agreeing-sources = 1\n\
         startup-step-panic-threshold = \"inf\"\n\
         warn-on-jump = false\n\n\
         [source-defaults]\n\
         poll-interval-limits = {{ min = {first}, max = {longest} }}\n\
         initial-poll-interval = {shortest}\n"
    );
    for server in servers {
        let address = match server {
            Server::Address(address) => SocketAddr::new(*address, PORT).to_string(),
            Server::Name(name) => format!("{name}:{PORT}"),
        };
        let _ = write!(text, "\n[[source]]\nmode = \"server\"\naddress = \"{address}\"\n");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn ntp(ntp: serde_json::Value) -> Ntp {
        settings::from_json(&json!({"ntp": ntp})).unwrap().ntp.unwrap()
    }

    fn leased(leases: &[(&str, &[&str])]) -> BTreeMap<String, Vec<IpAddr>> {
        let addresses = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
        leases.iter().map(|(name, list)| ((*name).to_owned(), addresses(list))).collect()
    }

    fn names(servers: &[Server]) -> Vec<String> {
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn settings_go_before_leases_and_each_server_is_asked_once() {
        let leases = leased(&[("eth0", &["10.0.0.1", "10.0.0.2"]), ("eth1", &["10.0.0.2", "fd00::3"])]);
        assert_eq!(names(&wanted(None, &leases)), ["10.0.0.1", "10.0.0.2", "fd00::3"]);
        let set = ntp(json!({"time-servers": ["a.example", "fd00::1", "a.example"]}));
        assert_eq!(names(&wanted(Some(&set), &leases)), ["a.example", "fd00::1"]);
        let only_options = ntp(json!({"options": ["iburst"]}));
        assert_eq!(wanted(Some(&only_options), &leases).len(), 3);
        assert!(wanted(None, &BTreeMap::new()).is_empty());
    }

    #[test]
    fn what_a_hostile_lease_names_is_bounded() {
        let odd = ["0.0.0.0", "255.255.255.255", "224.0.1.1", "127.0.0.1", "::", "10.0.0.9"];
        let many: Vec<String> = (0..100).map(|n| format!("10.1.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(names(&wanted(None, &leased(&[("eth0", &odd)]))), ["10.0.0.9"]);
        assert_eq!(wanted(None, &leased(&[("eth0", &many)])).len(), MOST);
    }

    #[test]
    fn the_daemon_is_told_whom_to_ask_and_how_often() {
        let servers = [
            Server::Address("10.0.0.1".parse().unwrap()),
            Server::Address("fd00::1".parse().unwrap()),
            Server::Name("a.example".to_owned()),
        ];
        let text = configuration(None, &servers).unwrap();
        assert!(text.contains("{ min = 1, max = 10 }\ninitial-poll-interval = 4\n"), "{text}");
        for address in ["10.0.0.1:123", "[fd00::1]:123", "a.example:123"] {
            let source = format!("[[source]]\nmode = \"server\"\naddress = \"{address}\"\n");
            assert!(text.contains(&source), "{text}");
        }
        assert_eq!(configuration(None, &[]), None);
    }

    #[test]
    fn options_change_how_often() {
        for (options, expected) in [
            (json!(["iburst"]), (1, 4, 10)),
            (json!(["maxpoll 6"]), (4, 4, 6)),
            (json!(["maxpoll 2"]), (2, 2, 2)),
            (json!(["minpoll 10"]), (10, 10, 10)),
            (json!(["iburst", "minpoll 3", "maxpoll 5"]), (1, 3, 5)),
        ] {
            assert_eq!(
                intervals(&ntp(json!({"options": options})).choices().unwrap()),
                expected,
                "{options}"
            );
        }
    }

    proptest! {
        #[test]
        fn intervals_are_in_order(fast: bool, shortest in proptest::option::of(1..=10u8), longest in proptest::option::of(1..=10u8)) {
            let mut choices = Vec::new();
            choices.extend(fast.then_some(NtpChoice::FastStart));
            choices.extend(shortest.map(NtpChoice::ShortestInterval));
            choices.extend(longest.filter(|longest| shortest.is_none_or(|shortest| shortest <= *longest)).map(NtpChoice::LongestInterval));
            let (first, then, last) = intervals(&choices);
            prop_assert!(1 <= first && first <= then && then <= last && last <= 10);
        }
    }
}
