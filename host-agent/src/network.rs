//! The network: every Ethernet interface is brought up and asks by DHCPv4 for as long as the node runs.

use futures_util::TryStreamExt;
use init_control::Problem;
use mozim::{DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::node::Node;
use crate::resolver::LeasedDns;

/// After so long without an answer people are told; it is asked on.
const TELL_AFTER: Duration = Duration::from_secs(15);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How often new interfaces are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// What a lease asks of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    address: Ipv4Addr,
    prefix: u8,
    /// Destination, its prefix, and the way there.
    routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    mtu: Option<u16>,
    dns: LeasedDns,
    ntp: Vec<Ipv4Addr>,
}

impl Wanted {
    fn from_lease(lease: &DhcpV4Lease) -> Self {
        // With classless routes the router option does not count (RFC 3442).
        let classless: Vec<(Ipv4Addr, u8, Ipv4Addr)> = lease
            .classless_routes
            .iter()
            .flatten()
            .map(|route| (route.destination, route.prefix_length, route.router))
            .collect();
        let routers =
            lease.gateways.iter().flatten().take(1).map(|gateway| (Ipv4Addr::UNSPECIFIED, 0, *gateway));
        Self {
            address: lease.yiaddr,
            prefix: lease.prefix_length(),
            routes: if classless.is_empty() { routers.collect() } else { classless },
            // Below the smallest that IPv4 allows it is a mistake or an attack (RFC 791).
            mtu: lease.mtu.filter(|mtu| *mtu >= 576),
            dns: LeasedDns {
                servers: lease.dns_srvs.clone().unwrap_or_default(),
                search: lease
                    .domain_search
                    .clone()
                    .unwrap_or_else(|| lease.domain_name.iter().cloned().collect()),
            },
            ntp: lease.ntp_srvs.clone().unwrap_or_default(),
        }
    }
}

/// By interface, with the time at which the lease is over; none for one that never is.
type Leases = Rc<RefCell<BTreeMap<String, (Wanted, Option<Instant>)>>>;

/// For how long an address may be used (RFC 2131, 3.3: all ones are for ever).
fn lease_time(seconds: u32) -> Option<Duration> {
    (seconds != u32::MAX).then(|| Duration::from_secs(seconds.into()))
}

/// One interface and what is needed to keep it.
struct Interface {
    name: String,
    handle: Handle,
    node: Rc<RefCell<Node>>,
    leases: Leases,
}

/// Configures interfaces for ever. Within a `LocalSet`.
pub async fn run(node: Rc<RefCell<Node>>) {
    let (connection, handle, _) = match rtnetlink::new_connection() {
        Ok(connection) => connection,
        Err(error) => {
            node.borrow_mut().set_problems(
                "network",
                vec![problem("netlink", format!("cannot talk to the kernel: {error}"))],
            );
            return;
        }
    };
    tokio::task::spawn_local(connection);
    let leases = Leases::default();
    let mut known = BTreeSet::new();
    loop {
        for name in ethernet_interfaces() {
            if known.insert(name.clone()) {
                let (handle, node, leases) = (handle.clone(), node.clone(), leases.clone());
                tokio::task::spawn_local(Interface { name, handle, node, leases }.keep());
            }
        }
        if known.is_empty() {
            node.borrow_mut().phase("network");
        }
        sleep(LOOK).await;
    }
}

fn problem(subject: &str, message: String) -> Problem {
    Problem {
        source: "network".to_owned(),
        subject: subject.to_owned(),
        message,
        hint: "it is asked on in the background; check the network that the machine is attached to"
            .to_owned(),
    }
}

/// Interfaces with a device behind them, of type Ethernet: neither loopback nor what containers made.
fn ethernet_interfaces() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let physical = entries.filter(|entry| {
        let kind = fs::read_to_string(entry.path().join("type")).unwrap_or_default();
        entry.path().join("device").exists() && kind.trim() == "1"
    });
    let mut names: Vec<String> = physical.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

impl Interface {
    fn tell(&self, message: String) {
        let problem = problem(&self.name, message);
        self.node.borrow_mut().set_problem("network", &self.name, Some(problem));
    }

    async fn keep(self) {
        let mut delay = Duration::from_secs(1);
        loop {
            let error = match bring_up(&self.handle, &self.name).await {
                Ok(index) => match self.lease_forever(index).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
                Err(error) => format!("cannot bring it up: {error}"),
            };
            self.tell(error);
            sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    async fn lease_forever(&self, index: u32) -> Result<std::convert::Infallible, String> {
        let failed = |error: mozim::DhcpError| format!("no address by DHCP: {}", error.msg());
        let mut config = DhcpV4Config::new(&self.name);
        let hostname =
            nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        config.set_host_name(&hostname).use_mac_as_client_id();
        let mut client = DhcpV4Client::init(config, None).await.map_err(failed)?;
        let mut told = false;
        loop {
            let lease = self.leases.borrow().get(&self.name).map(|(_, until)| *until);
            let state = match lease {
                Some(Some(until)) => match timeout_at(until, client.run()).await {
                    Ok(state) => state.map_err(failed)?,
                    Err(_) => {
                        self.give_up_lease(index).await;
                        told = true;
                        continue;
                    }
                },
                None if !told => match timeout(TELL_AFTER, client.run()).await {
                    Ok(state) => state.map_err(failed)?,
                    Err(_) => {
                        told = true;
                        self.tell(format!("no answer by DHCP after {} s", TELL_AFTER.as_secs()));
                        continue;
                    }
                },
                _ => client.run().await.map_err(failed)?,
            };
            if let DhcpV4State::Done(lease) = state {
                self.take(index, &lease).await?;
            }
        }
    }

    async fn take(&self, index: u32, lease: &DhcpV4Lease) -> Result<(), String> {
        let wanted = Wanted::from_lease(lease);
        let until = lease_time(lease.lease_time_sec).map(|time| Instant::now() + time);
        let before = self.leases.borrow().get(&self.name).map(|(wanted, _)| wanted.clone());
        if before.as_ref() != Some(&wanted) {
            configure(&self.handle, index, before.as_ref(), &wanted)
                .await
                .map_err(|error| format!("cannot use the address {}: {error}", wanted.address))?;
            eprintln!("<6>{}: {}/{} by DHCP", self.name, wanted.address, wanted.prefix);
        }
        let address = format!("{}/{}", wanted.address, wanted.prefix);
        self.leases.borrow_mut().insert(self.name.clone(), (wanted.clone(), until));
        if before.as_ref() != Some(&wanted) {
            self.node.borrow_mut().resolver.set_lease(&self.name, Some(wanted.dns.clone()))?;
            let ntp = wanted.ntp.iter().copied().map(Into::into).collect();
            self.node.borrow_mut().set_ntp_servers(&self.name, ntp)?;
        }
        let mut node = self.node.borrow_mut();
        node.addresses.insert(self.name.clone(), vec![address]);
        node.set_problem("network", &self.name, None);
        node.phase("network");
        Ok(())
    }

    /// Another machine may have the address by now (RFC 2131, 4.4.5). The kernel takes the routes away with the last address.
    async fn give_up_lease(&self, index: u32) {
        let Some((wanted, _)) = self.leases.borrow_mut().remove(&self.name) else { return };
        let address = wanted.address;
        let removed = remove_address(&self.handle, index, address).await;
        self.node.borrow_mut().addresses.remove(&self.name);
        let written = self.node.borrow_mut().resolver.set_lease(&self.name, None);
        let written = written.and(self.node.borrow_mut().set_ntp_servers(&self.name, Vec::new()));
        let more = removed.err().map(|error| error.to_string()).or(written.err());
        let more = more.map(|error| format!("; {error}")).unwrap_or_default();
        self.tell(format!("the lease of {address} is over, and no DHCP server has renewed it{more}"));
    }
}

async fn bring_up(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
    let index = link.header.index;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(index)
}

async fn configure(
    handle: &Handle,
    index: u32,
    before: Option<&Wanted>,
    wanted: &Wanted,
) -> Result<(), rtnetlink::Error> {
    if let Some(mtu) = wanted.mtu {
        let set =
            handle.link().set(LinkUnspec::new_with_index(index).mtu(mtu.into()).build()).execute().await;
        // An address with the device's own MTU is better than none.
        if let Err(error) = set {
            eprintln!("<4>interface {index} does not take the MTU {mtu} that DHCP gave: {error}");
        }
    }
    handle.address().add(index, wanted.address.into(), wanted.prefix).replace().execute().await?;
    if let Some(before) = before
        && before.address != wanted.address
    {
        remove_address(handle, index, before.address).await?;
    }
    for (destination, prefix, router) in &wanted.routes {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(*destination, *prefix)
            .output_interface(index);
        if !router.is_unspecified() {
            route = route.gateway(*router);
        }
        handle.route().add(route.build()).replace().execute().await?;
    }
    Ok(())
}

async fn remove_address(handle: &Handle, index: u32, address: Ipv4Addr) -> Result<(), rtnetlink::Error> {
    let found =
        handle.address().get().set_link_index_filter(index).set_address_filter(address.into()).execute();
    tokio::pin!(found);
    match found.try_next().await? {
        Some(address) => handle.address().del(address).execute().await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_over_unless_it_is_for_ever() {
        assert_eq!(lease_time(3600), Some(Duration::from_secs(3600)));
        assert_eq!(lease_time(u32::MAX), None);
    }
}
