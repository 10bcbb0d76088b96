//! What IPv6 routers advertise of names (RFC 8106): reading it, and what of it holds. Pure.
//!
//! The kernel takes an advertisement, and hands on what it does not use itself as RTM_NEWNDUSEROPT (`linux/rtnetlink.h`). What is
//! in it is whatever somebody on the link sends.

use rtnetlink::packet_core::NetlinkBuffer;
use settings::DomainName;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::dhcp::lease_time;
use crate::resolver::{LeasedDns, NameServer};

/// Servers, and domains, of one interface that are kept.
const MOST: usize = 8;
/// Of one message of the kernel, which has one.
const MOST_OPTIONS: usize = 16;

const RTM_NEWNDUSEROPT: u16 = 68;
const AF_INET6: u8 = 10;
const ROUTER_ADVERTISEMENT: [u8; 2] = [134, 0];

/// One option of an advertisement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// Of the interface that it came by.
    pub index: u32,
    /// In seconds: with 0 it is taken back, and all ones are for ever.
    pub lifetime: u32,
    pub names: Names,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// RDNSS.
    Servers(Vec<Ipv6Addr>),
    /// DNSSL.
    Search(Vec<String>),
}

/// What is of use in messages of the kernel; the rest is left out without a word.
pub fn read(messages: &[u8]) -> Vec<Advertised> {
    let (mut all, mut rest) = (Vec::new(), messages);
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        if message.message_type() == RTM_NEWNDUSEROPT {
            all.extend(options(message.payload()).into_iter().flatten());
        }
        // At least the 16 of the header.
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        rest = rest.get(length.saturating_add(3) & !3..).unwrap_or_default();
    }
    all
}

/// After a `struct nduseroptmsg` of 16 bytes.
fn options(payload: &[u8]) -> Option<Vec<Advertised>> {
    let (head, body) = payload.split_at_checked(16)?;
    let &[family, _, a, b, i, j, k, l, kind, code, ..] = head else { return None };
    if family != AF_INET6 || [kind, code] != ROUTER_ADVERTISEMENT {
        return None;
    }
    let index = u32::from_ne_bytes([i, j, k, l]);
    let mut rest = body.get(..u16::from_ne_bytes([a, b]).into())?;
    let mut all = Vec::new();
    while let [kind, units, ..] = rest
        && all.len() < MOST_OPTIONS
    {
        // Its length is in units of 8 bytes; one without any length has no end (RFC 4861, 4.6).
        let Some((option, next)) = rest.split_at_checked(usize::from(*units) * 8).filter(|_| *units > 0)
        else {
            break;
        };
        rest = next;
        let Some((&[_, _, _, _, a, b, c, d], value)) = option.split_first_chunk::<8>() else { continue };
        let names = match kind {
            25 => servers(value).map(Names::Servers),
            31 => Some(Names::Search(domains(value))),
            _ => None,
        };
        let lifetime = u32::from_be_bytes([a, b, c, d]);
        all.extend(names.map(|names| Advertised { index, lifetime, names }));
    }
    Some(all)
}

/// None when it is not addresses only (RFC 8106, 5.3.1).
fn servers(value: &[u8]) -> Option<Vec<Ipv6Addr>> {
    let (addresses, rest) = value.as_chunks::<16>();
    let addresses = addresses.iter().map(|bytes| Ipv6Addr::from(*bytes));
    let is_of_use =
        |address: &Ipv6Addr| !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
    rest.is_empty().then(|| addresses.filter(is_of_use).take(MOST).collect())
}

/// Names as in the DNS (RFC 1035, 3.1) without compression, and zeros up to the end. Nothing is taken from where a length is wrong on.
fn domains(value: &[u8]) -> Vec<String> {
    let (mut domains, mut labels, mut rest) = (Vec::new(), Vec::new(), value);
    while let Some((length, after)) = rest.split_first()
        && domains.len() < MOST
    {
        if *length == 0 {
            domains.extend(domain(&labels));
            labels.clear();
            rest = after;
            continue;
        }
        let Some((label, next)) = after.split_at_checked((*length).into()).filter(|_| *length < 64) else {
            break;
        };
        labels.push(label);
        rest = next;
    }
    domains
}

fn domain(labels: &[&[u8]]) -> Option<String> {
    if labels.iter().any(|label| label.contains(&b'.')) {
        return None;
    }
    let name = String::from_utf8(labels.join(&b'.')).ok()?.to_ascii_lowercase();
    name.parse::<DomainName>().ok().map(|_| name)
}

/// What holds of what was advertised on one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    servers: Vec<(Ipv6Addr, Option<Instant>)>,
    search: Vec<(String, Option<Instant>)>,
}

impl Held {
    /// Whether there is something else now, and not only for longer.
    pub(super) fn note(&mut self, lifetime: u32, names: Names, now: Instant) -> bool {
        match names {
            Names::Servers(servers) => note(&mut self.servers, servers, lifetime, now),
            Names::Search(search) => note(&mut self.search, search, lifetime, now),
        }
    }

    /// Forgets what is over.
    pub(super) fn expire(&mut self, now: Instant) {
        let holds = |until: Option<Instant>| until.is_none_or(|until| until > now);
        self.servers.retain(|(_, until)| holds(*until));
        self.search.retain(|(_, until)| holds(*until));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.search.is_empty()
    }

    pub(super) fn dns(&self, interface: &str) -> LeasedDns {
        let servers = self.servers.iter().map(|(server, _)| NameServer::on(interface, (*server).into()));
        LeasedDns {
            servers: servers.collect(),
            search: self.search.iter().map(|(domain, _)| domain.clone()).collect(),
        }
    }
}

/// In the order in which they were heard of first, whatever is said again and in which order.
fn note<T: PartialEq>(
    held: &mut Vec<(T, Option<Instant>)>,
    news: Vec<T>,
    lifetime: u32,
    now: Instant,
) -> bool {
    let until = lease_time(lifetime).map(|time| now + time);
    let mut changed = false;
    for new in news {
        let place = held.iter().position(|(one, _)| *one == new);
        match place.and_then(|place| held.get_mut(place)) {
            Some(known) if lifetime > 0 => known.1 = until,
            None if lifetime > 0 => {
                make_room(held, now);
                held.push((new, until));
                changed = true;
            }
            Some(_) => {
                held.retain(|(one, _)| *one != new);
                changed = true;
            }
            None => {}
        }
    }
    changed
}

/// What would be over first goes (RFC 8106, 6.1).
fn make_room<T>(held: &mut Vec<(T, Option<Instant>)>, now: Instant) {
    if held.len() < MOST {
        return;
    }
    let left = |until: Option<Instant>| until.map_or(Duration::MAX, |until| until.duration_since(now));
    let first = held.iter().enumerate().min_by_key(|(_, (_, until))| left(*until));
    if let Some(place) = first.map(|(place, _)| place) {
        held.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    const HOUR: u32 = 3600;

    fn option(kind: u8, lifetime: u32, value: &[u8]) -> Vec<u8> {
        let units = u8::try_from((8 + value.len()).div_ceil(8)).unwrap();
        let mut option = [&[kind, units, 0, 0][..], &lifetime.to_be_bytes(), value].concat();
        option.resize(usize::from(units) * 8, 0);
        option
    }

    /// As the kernel sends it, with the router's address behind.
    fn message(options: &[u8]) -> Vec<u8> {
        let length = u16::try_from(options.len()).unwrap();
        let source = [&[20, 0, 1, 0][..], &address("fe80::1").octets()].concat();
        let head =
            [&[AF_INET6, 0][..], &length.to_ne_bytes(), &7u32.to_ne_bytes(), &[134, 0, 0, 0, 0, 0, 0, 0]];
        let payload = [&head.concat(), options, &source].concat();
        let length = u32::try_from(payload.len() + 16).unwrap();
        let header = [&length.to_ne_bytes()[..], &RTM_NEWNDUSEROPT.to_ne_bytes(), &[0; 10]].concat();
        [header, payload].concat()
    }

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn search(value: &[u8]) -> Vec<String> {
        match read(&message(&option(31, HOUR, value))).remove(0).names {
            Names::Search(search) => search,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn servers_and_domains_are_read_in_their_order() {
        let servers = [address("2001:db8::53"), address("fe80::53")];
        let rdnss = option(25, HOUR, &servers.map(|server| server.octets()).concat());
        let dnssl = option(31, u32::MAX, b"\x03lan\x07EXAMPLE\0\x05other\0");
        let servers = Advertised { index: 7, lifetime: HOUR, names: Names::Servers(servers.to_vec()) };
        let domains = vec!["lan.example".to_owned(), "other".to_owned()];
        let search = Advertised { index: 7, lifetime: u32::MAX, names: Names::Search(domains) };
        let wanted = [servers, search];
        assert_eq!(read(&[message(&rdnss), message(&dnssl)].concat()), wanted);
        // Another option between them, of 8 bytes.
        assert_eq!(read(&message(&[rdnss, vec![5, 1, 0, 0, 0, 0, 5, 220], dnssl].concat())), wanted);
    }

    #[test]
    fn what_is_damaged_or_of_no_use_is_left_out() {
        let server = address("2001:db8::53").octets();
        let good = message(&option(25, HOUR, &server));
        assert_eq!(read(&good).len(), 1);
        for at in 0..good.len() {
            assert_eq!(read(&good[..at]), [], "cut at {at}");
        }
        // Of IPv4, of another message of ICMPv6, another message of netlink, an option without a length, one that is longer than
        // what there is.
        for (at, byte) in [(16, 2), (24, 137), (4, 16), (33, 0), (33, 4)] {
            let mut damaged = good.clone();
            damaged[at] = byte;
            assert_eq!(read(&damaged), [], "{at} is {byte}");
        }
        let half = option(25, HOUR, &server[..8]);
        assert_eq!(read(&message(&half)), []);
        let useless = ["::", "::1", "ff02::fb"].map(|server| address(server).octets()).concat();
        assert_eq!(read(&message(&option(25, HOUR, &useless)))[0].names, Names::Servers(Vec::new()));
    }

    #[test]
    fn a_hostile_domain_is_left_out_and_nothing_is_read_after_a_wrong_length() {
        assert_eq!(search(b"\x04evil\x01\n\0\x04good\0"), ["good"]);
        assert_eq!(search(b"\x06a.evil\0\x05e vil\0\x02\xc3\xa4\0\x04good\0"), ["good"]);
        // Compression, a label that is too long, one that goes on after the end, a name without one.
        for hostile in [
            &b"\x04good\0\xc0\x08\0"[..],
            b"\x04good\0\x40aaa\0",
            b"\x04good\0\x3faaa",
            b"\x04good\0\x09evil-evil",
        ] {
            assert_eq!(search(hostile), ["good"], "{hostile:?}");
        }
        let long = [&[63u8][..], &[b'a'; 63]].concat();
        assert_eq!(search(&[long.repeat(4), vec![0], b"\x04good\0".to_vec()].concat()), ["good"]);
        assert_eq!(search(&b"\x01a\0".repeat(100)).len(), MOST);
    }

    #[test]
    fn what_was_advertised_holds_until_it_is_over_or_taken_back() {
        let (now, mut held) = (Instant::now(), Held::default());
        let at = |seconds| now + Duration::from_secs(seconds);
        let servers = |all: &[&str]| Names::Servers(all.iter().map(|one| address(one)).collect());
        let text = |held: &Held| {
            let dns = held.dns("eth0");
            dns.servers.iter().map(ToString::to_string).chain(dns.search).collect::<Vec<_>>()
        };
        assert!(held.note(10, servers(&["fd00::1", "fe80::1"]), now));
        assert!(held.note(u32::MAX, Names::Search(vec!["lan.test".to_owned()]), now));
        assert_eq!(text(&held), ["fd00::1", "fe80::1%eth0", "lan.test"]);
        // For longer, in another order: nothing new.
        assert!(!held.note(20, servers(&["fe80::1"]), at(5)));
        held.expire(at(10));
        assert_eq!(text(&held), ["fe80::1%eth0", "lan.test"]);
        assert!(held.note(0, servers(&["fe80::1", "fd00::9"]), at(11)));
        held.expire(at(1 << 33));
        assert_eq!(text(&held), ["lan.test"]);
        assert!(held.note(0, Names::Search(vec!["lan.test".to_owned()]), at(12)) && held.is_empty());
    }

    #[test]
    fn what_is_over_first_makes_room() {
        let (now, mut held) = (Instant::now(), Held::default());
        let server = |number: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number);
        for number in 0..20 {
            let lifetime = if number == 3 { 5 } else { HOUR };
            held.note(lifetime, Names::Servers(vec![server(number)]), now);
            assert!(held.servers.len() <= MOST);
        }
        assert!(held.servers.iter().all(|(one, _)| *one != server(3)));
        assert!(held.servers.iter().any(|(one, _)| *one == server(19)));
    }

    proptest! {
        #[test]
        fn whatever_is_sent_what_is_read_is_bounded_and_plain(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kind in select(vec![25u8, 31]),
            options in any::<bool>(),
        ) {
            let _ = read(&bytes);
            let sent = if options { bytes } else { option(kind, HOUR, &bytes) };
            let all = read(&message(&sent));
            prop_assert!(all.len() <= MOST_OPTIONS);
            for advertised in all {
                match advertised.names {
                    Names::Servers(servers) => prop_assert!(servers.len() <= MOST),
                    Names::Search(search) => {
                        prop_assert!(search.len() <= MOST);
                        prop_assert!(search.iter().all(|name| name.parse::<DomainName>().is_ok()));
                    }
                }
            }
        }

        /// With few enough of them that none has to make room, the last word on each holds.
        #[test]
        fn the_last_word_on_a_server_holds(
            said in proptest::collection::vec((0..100u64, proptest::collection::vec(0..8u16, 0..4), 0..60u32), 0..20),
        ) {
            let server = |number: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number);
            let (begun, mut time) = (Instant::now(), 0);
            let (mut held, mut last) = (Held::default(), std::collections::BTreeMap::new());
            for (pause, numbers, lifetime) in said {
                time += pause;
                let now = begun + Duration::from_secs(time);
                held.expire(now);
                let before = held.clone();
                let changed = held.note(lifetime, Names::Servers(numbers.iter().map(|one| server(*one)).collect()), now);
                last.extend(numbers.into_iter().map(|number| (server(number), time + u64::from(lifetime))));
                let keys = |held: &Held| held.servers.iter().map(|(one, _)| *one).collect::<Vec<_>>();
                prop_assert_eq!(changed, keys(&before) != keys(&held));
                let mut there = keys(&held);
                there.sort_unstable();
                let wanted: Vec<_> = last.iter().filter(|(_, until)| **until > time).map(|(one, _)| *one).collect();
                prop_assert_eq!(there, wanted);
            }
        }
    }
}
