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
use tokio::time::{sleep, timeout};

use crate::node::Node;

const RESOLV_CONF: &str = "/run/etc/resolv.conf";
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
    nameservers: Vec<Ipv4Addr>,
    search: Vec<String>,
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
            nameservers: lease.dns_srvs.clone().unwrap_or_default(),
            search: lease
                .domain_search
                .clone()
                .unwrap_or_else(|| lease.domain_name.iter().cloned().collect()),
        }
    }
}

/// resolv.conf(5) for all leases. Names come from the network: only what a domain may hold is taken.
fn resolv_conf<'a>(leases: impl Iterator<Item = &'a Wanted> + Clone) -> String {
    let plain = |name: &&String| {
        name.len() <= 253
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    let search: BTreeSet<&String> = leases.clone().flat_map(|lease| &lease.search).filter(plain).collect();
    let mut text = String::new();
    if !search.is_empty() {
        let names: Vec<&str> = search.into_iter().map(String::as_str).take(6).collect();
        text.push_str(&format!("search {}\n", names.join(" ")));
    }
    let mut seen = BTreeSet::new();
    // The resolver reads no more than three.
    for server in leases.flat_map(|lease| &lease.nameservers).filter(|server| seen.insert(**server)).take(3) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

type Leases = Rc<RefCell<BTreeMap<String, Wanted>>>;

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
                tokio::task::spawn_local(keep_interface(name, handle.clone(), node.clone(), leases.clone()));
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

async fn keep_interface(name: String, handle: Handle, node: Rc<RefCell<Node>>, leases: Leases) {
    let index = match bring_up(&handle, &name).await {
        Ok(index) => index,
        Err(error) => {
            node.borrow_mut()
                .set_problems("network", vec![problem(&name, format!("cannot bring it up: {error}"))]);
            return;
        }
    };
    let mut delay = Duration::from_secs(1);
    loop {
        let error = match lease_forever(&name, index, &handle, &node, &leases).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        node.borrow_mut().set_problems("network", vec![problem(&name, error)]);
        sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

async fn lease_forever(
    name: &str,
    index: u32,
    handle: &Handle,
    node: &Rc<RefCell<Node>>,
    leases: &Leases,
) -> Result<std::convert::Infallible, String> {
    let failed = |error: mozim::DhcpError| format!("no address by DHCP: {}", error.msg());
    let mut config = DhcpV4Config::new(name);
    let hostname =
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    config.set_host_name(&hostname).use_mac_as_client_id();
    let mut client = DhcpV4Client::init(config, None).await.map_err(failed)?;
    let mut told = false;
    loop {
        let state = if leases.borrow().contains_key(name) || told {
            client.run().await.map_err(failed)?
        } else {
            match timeout(TELL_AFTER, client.run()).await {
                Ok(state) => state.map_err(failed)?,
                Err(_) => {
                    told = true;
                    node.borrow_mut().set_problems(
                        "network",
                        vec![problem(name, format!("no answer by DHCP after {} s", TELL_AFTER.as_secs()))],
                    );
                    continue;
                }
            }
        };
        if let DhcpV4State::Done(lease) = state {
            let wanted = Wanted::from_lease(&lease);
            let before = leases.borrow().get(name).cloned();
            if before.as_ref() != Some(&wanted) {
                configure(handle, index, before.as_ref(), &wanted)
                    .await
                    .map_err(|error| format!("cannot use the address {}: {error}", wanted.address))?;
                eprintln!("<6>{name}: {}/{} by DHCP", wanted.address, wanted.prefix);
                leases.borrow_mut().insert(name.to_owned(), wanted.clone());
                let text = resolv_conf(leases.borrow().values());
                // In place: containers have this file mounted.
                if let Err(error) = fs::write(RESOLV_CONF, text) {
                    return Err(format!("cannot write {RESOLV_CONF}: {error}"));
                }
            }
            let mut node = node.borrow_mut();
            node.addresses.insert(name.to_owned(), vec![format!("{}/{}", wanted.address, wanted.prefix)]);
            node.set_problems("network", Vec::new());
            node.phase("network");
        }
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
        handle.link().set(LinkUnspec::new_with_index(index).mtu(mtu.into()).build()).execute().await?;
    }
    handle.address().add(index, wanted.address.into(), wanted.prefix).replace().execute().await?;
    if let Some(before) = before
        && before.address != wanted.address
    {
        let mut addresses = handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(before.address.into())
            .execute();
        if let Some(address) = addresses.try_next().await? {
            handle.address().del(address).execute().await?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(nameservers: &[Ipv4Addr], search: &[&str]) -> Wanted {
        Wanted {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            routes: vec![],
            mtu: None,
            nameservers: nameservers.to_vec(),
            search: search.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_hostile_domain_adds_no_line() {
        let lease = wanted(&[Ipv4Addr::new(10, 0, 2, 3)], &["example.com", "evil\nnameserver 6.6.6.6", ""]);
        assert_eq!(resolv_conf([&lease].into_iter()), "search example.com\nnameserver 10.0.2.3\n");
    }

    #[test]
    fn servers_of_two_leases_are_named_once() {
        let (a, b) = (Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(2, 2, 2, 2));
        let leases = [wanted(&[a, b], &[]), wanted(&[b], &[])];
        assert_eq!(resolv_conf(leases.iter()), "nameserver 1.1.1.1\nnameserver 2.2.2.2\n");
    }
}
