//! DHCP: one client for each interface and each version of IP, by mozim. A client tells what it was given, and sets nothing.

use mozim::{
    DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State, DhcpV6Client, DhcpV6Config, DhcpV6Lease,
    DhcpV6Mode, DhcpV6State,
};
use settings::DomainName;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::plan::Cidr;
use super::want::{Family, Lease, Leased, Leases};

/// After so long without an answer people are told; it is asked on.
const TELL_AFTER: Duration = Duration::from_secs(15);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// NTP servers of one lease that are kept.
const MOST_NTP_SERVERS: usize = 8;

type Key = (String, Family);

/// What a client has found out.
struct Known {
    leased: Leased,
    /// When the lease is over; none for one that never is.
    until: Option<Instant>,
    /// As it came, to ask for the same again.
    lease: Option<DhcpV4Lease>,
    /// What people are to know.
    trouble: Option<String>,
}

impl Default for Known {
    fn default() -> Self {
        Self { leased: Leased::NotYet, until: None, lease: None, trouble: None }
    }
}

#[derive(Default)]
struct Shared {
    known: RefCell<BTreeMap<Key, Known>>,
    changed: Notify,
}

impl Shared {
    fn note(&self, key: &Key, note: impl FnOnce(&mut Known)) {
        // A client that was stopped has nothing to tell.
        if let Some(known) = self.known.borrow_mut().get_mut(key) {
            note(known);
        }
        self.changed.notify_one();
    }

    fn tell(&self, key: &Key, trouble: String) {
        self.note(key, |known| known.trouble = Some(trouble));
    }
}

/// One that runs, and for what: with anything else it is started again, and asks for what it had.
struct Client {
    index: u32,
    hostname: String,
    task: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All clients of the node.
#[derive(Default)]
pub(super) struct Clients {
    shared: Rc<Shared>,
    running: BTreeMap<Key, Client>,
}

impl Clients {
    /// When something has changed since this was asked last.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    pub(super) fn leases(&self) -> Leases {
        self.shared.known.borrow().iter().map(|(key, known)| (key.clone(), known.leased.clone())).collect()
    }

    pub(super) fn troubles(&self) -> BTreeMap<Key, String> {
        let known = self.shared.known.borrow();
        known.iter().filter_map(|(key, known)| Some((key.clone(), known.trouble.clone()?))).collect()
    }

    /// Stops those that are not wanted, and forgets their leases.
    pub(super) fn keep_only(&mut self, wanted: impl Fn(&Key) -> bool) {
        self.running.retain(|key, _| wanted(key));
        self.shared.known.borrow_mut().retain(|key, _| wanted(key));
    }

    /// Starts a client unless it runs with this very name of the node, on the interface with this number. Within a `LocalSet`.
    pub(super) fn start(&mut self, key: &Key, index: u32, hostname: &str) {
        // Only servers of IPv4 are told a name.
        let hostname = if key.1 == Family::V4 { hostname } else { "" };
        if self.running.get(key).is_some_and(|client| client.index == index && client.hostname == hostname) {
            return;
        }
        if self.running.get(key).is_some_and(|client| client.index != index) {
            self.shared.known.borrow_mut().remove(key);
        }
        self.shared.known.borrow_mut().entry(key.clone()).or_default();
        let task = keep(self.shared.clone(), key.clone(), hostname.to_owned());
        let task = tokio::task::spawn_local(task).abort_handle();
        self.running.insert(key.clone(), Client { index, hostname: hostname.to_owned(), task });
    }
}

async fn keep(shared: Rc<Shared>, key: Key, hostname: String) {
    let begun = Instant::now();
    let mut delay = Duration::from_secs(1);
    loop {
        let error = match lease_forever(&shared, &key, &hostname).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // An interface that has just come up has no address of its own for the link yet, which DHCPv6 needs.
        if key.1 == Family::V6 && begun.elapsed() < TELL_AFTER {
            sleep(Duration::from_secs(1)).await;
            continue;
        }
        shared.tell(&key, error);
        sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "DHCP",
        Family::V6 => "DHCPv6",
    }
}

async fn lease_forever(
    shared: &Shared,
    key: &Key,
    hostname: &str,
) -> Result<std::convert::Infallible, String> {
    let (name, family) = key;
    let failed = |error: String| format!("no address by {}: {error}", protocol(*family));
    let known = |shared: &Shared| {
        shared.known.borrow().get(key).map(|known| (known.leased.clone(), known.until, known.lease.clone()))
    };
    let before = known(shared).and_then(|(_, _, lease)| lease);
    let mut asker =
        Asker::new(name, *family, hostname, before).await.map_err(|error| failed(error.msg().to_owned()))?;
    let mut told = false;
    loop {
        let lease = match known(shared) {
            Some((Leased::Held(lease), Some(until), _)) => match timeout_at(until, asker.next()).await {
                Ok(answer) => answer.map_err(&failed)?,
                Err(_) => {
                    told = true;
                    give_up(shared, key, &lease);
                    continue;
                }
            },
            Some((Leased::NotYet | Leased::Over, ..)) if !told => {
                match timeout(TELL_AFTER, asker.next()).await {
                    Ok(answer) => answer.map_err(&failed)?,
                    Err(_) => {
                        told = true;
                        shared.tell(
                            key,
                            format!("no answer by {} after {} s", protocol(*family), TELL_AFTER.as_secs()),
                        );
                        continue;
                    }
                }
            }
            _ => asker.next().await.map_err(&failed)?,
        };
        if let Some((lease, seconds, raw)) = lease {
            told = false;
            take(shared, key, lease, seconds, raw);
        }
    }
}

fn take(shared: &Shared, key: &Key, lease: Lease, seconds: u32, raw: Option<DhcpV4Lease>) {
    let leased = Leased::Held(lease);
    shared.note(key, |known| {
        if let Leased::Held(lease) = &leased
            && known.leased != leased
        {
            eprintln!("<6>{}: {} by {}", key.0, lease.address, protocol(key.1));
        }
        let until = lease_time(seconds).map(|time| Instant::now() + time);
        *known = Known { leased, until, lease: raw, trouble: None };
    });
}

/// Another machine may have the address by now (RFC 2131, 4.4.5).
fn give_up(shared: &Shared, key: &Key, lease: &Lease) {
    let protocol = protocol(key.1);
    let trouble =
        format!("the lease of {} is over, and no {protocol} server has renewed it", lease.address.address);
    shared.note(key, |known| {
        *known = Known { leased: Leased::Over, until: None, lease: None, trouble: Some(trouble) }
    });
}

/// For how long an address may be used (RFC 2131, 3.3 and RFC 8415, 7.7: all ones are for ever).
pub(super) fn lease_time(seconds: u32) -> Option<Duration> {
    (seconds != u32::MAX).then(|| Duration::from_secs(seconds.into()))
}

enum Asker {
    V4(Box<DhcpV4Client>),
    V6(Box<DhcpV6Client>),
}

impl Asker {
    async fn new(
        name: &str,
        family: Family,
        hostname: &str,
        before: Option<DhcpV4Lease>,
    ) -> Result<Self, mozim::DhcpError> {
        match family {
            Family::V4 => {
                // NTP servers (option 42) are among what mozim asks for.
                let mut config = DhcpV4Config::new(name);
                config.set_host_name(hostname).use_mac_as_client_id();
                Ok(Self::V4(Box::new(DhcpV4Client::init(config, before).await?)))
            }
            Family::V6 => {
                let config = DhcpV6Config::new(name, DhcpV6Mode::NonTemporaryAddresses);
                Ok(Self::V6(Box::new(DhcpV6Client::init(config, None).await?)))
            }
        }
    }

    /// What was given, for how many seconds, and as it came; none when only another question was asked.
    async fn next(&mut self) -> Result<Option<(Lease, u32, Option<DhcpV4Lease>)>, String> {
        let failed = |error: mozim::DhcpError| error.msg().to_owned();
        Ok(match self {
            Self::V4(client) => match client.run().await.map_err(failed)? {
                DhcpV4State::Done(lease) => Some((of_v4(&lease)?, lease.lease_time_sec, Some(*lease))),
                _ => None,
            },
            Self::V6(client) => match client.run().await.map_err(failed)? {
                DhcpV6State::Done(lease) => Some((of_v6(&lease), lease.valid_time_sec, None)),
                _ => None,
            },
        })
    }
}

/// What a lease is worth. The error says what of it no interface can have: it comes from the network, and may be anything.
pub fn of_v4(lease: &DhcpV4Lease) -> Result<Lease, String> {
    let address = lease.yiaddr;
    if address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224 {
        return Err(format!("the server gave the address {address}, which no machine can have"));
    }
    let via = |router: Ipv4Addr| (!router.is_unspecified()).then_some(IpAddr::V4(router));
    let network = |address: Ipv4Addr, prefix: u8| {
        let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0);
        Cidr { address: Ipv4Addr::from(u32::from(address) & mask).into(), prefix: prefix.min(32) }
    };
    // With classless routes the router option does not count (RFC 3442).
    let classless = lease.classless_routes.iter().flatten();
    let classless: Vec<_> =
        classless.map(|route| (network(route.destination, route.prefix_length), via(route.router))).collect();
    let routers = lease.gateways.iter().flatten().take(1);
    let routers = routers.map(|router| (network(Ipv4Addr::UNSPECIFIED, 0), via(*router)));
    Ok(Lease {
        address: Cidr { address: address.into(), prefix: prefix(address, lease.subnet_mask)? },
        routes: if classless.is_empty() { routers.collect() } else { classless },
        // Below the smallest that IPv4 allows it is a mistake or an attack (RFC 791).
        mtu: lease.mtu.filter(|mtu| *mtu >= 576).map(u32::from),
        name_servers: lease.dns_srvs.iter().flatten().map(|server| (*server).into()).collect(),
        search: lease.domain_search.clone().unwrap_or_else(|| lease.domain_name.iter().cloned().collect()),
        ntp_servers: lease
            .ntp_srvs
            .iter()
            .flatten()
            .take(MOST_NTP_SERVERS)
            .map(ToString::to_string)
            .collect(),
    })
}

/// How many ones a subnet mask begins with. A server that sends none means the mask of the address's class: with a prefix of 0
/// every address there is would be sought on the link.
fn prefix(address: Ipv4Addr, mask: Ipv4Addr) -> Result<u8, String> {
    if mask.is_unspecified() {
        // RFC 791, 3.2.
        return Ok(match address.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            _ => 24,
        });
    }
    let bits = mask.to_bits();
    match (bits.leading_ones(), bits.count_ones()) {
        (leading, ones) if leading == ones => Ok(u8::try_from(ones).unwrap_or(32)),
        _ => Err(format!("the server gave the subnet mask {mask}, whose ones are not all before its zeros")),
    }
}

/// The network and the routers are told by router advertisements, not by DHCPv6.
fn of_v6(lease: &DhcpV6Lease) -> Lease {
    let is_server = |text: &&String| text.parse::<IpAddr>().is_ok() || text.parse::<DomainName>().is_ok();
    Lease {
        address: Cidr { address: lease.address.into(), prefix: 128 },
        routes: Vec::new(),
        mtu: None,
        name_servers: lease.dns_srvs.iter().map(|server| (*server).into()).collect(),
        search: lease.domain_list.clone(),
        ntp_servers: lease.ntp_srvs.iter().filter(is_server).take(MOST_NTP_SERVERS).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: [u8; 4], mask: [u8; 4]) -> DhcpV4Lease {
        let mut lease = DhcpV4Lease::default();
        lease.yiaddr = address.into();
        lease.subnet_mask = mask.into();
        lease
    }

    #[test]
    fn a_lease_without_a_mask_has_its_class_and_a_mask_with_holes_is_refused() {
        for (address, mask, prefix) in [
            ([10, 0, 2, 15], [255, 255, 255, 0], 24),
            ([10, 0, 2, 15], [255; 4], 32),
            ([10, 0, 2, 15], [0; 4], 8),
            ([172, 16, 0, 2], [0; 4], 16),
            ([192, 168, 0, 2], [0; 4], 24),
        ] {
            assert_eq!(of_v4(&lease(address, mask)).unwrap().address.prefix, prefix);
        }
        let error = of_v4(&lease([10, 0, 2, 15], [255, 0, 255, 0])).unwrap_err();
        assert!(error.contains("the subnet mask 255.0.255.0"), "{error}");
    }

    #[test]
    fn an_address_that_no_machine_can_have_is_refused() {
        for address in [[0; 4], [0, 0, 0, 5], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            let error = of_v4(&lease(address, [255, 255, 255, 0])).unwrap_err();
            assert!(error.contains("no machine can have"), "{error}");
        }
    }

    #[test]
    fn a_lease_is_over_unless_it_is_for_ever() {
        assert_eq!(lease_time(3600), Some(Duration::from_secs(3600)));
        assert_eq!(lease_time(u32::MAX), None);
    }

    #[test]
    fn a_client_that_was_stopped_tells_nothing() {
        let key = ("eth0".to_owned(), Family::V4);
        let shared = Shared::default();
        shared.tell(&key, "no answer".to_owned());
        assert!(shared.known.borrow().is_empty());
    }
}
