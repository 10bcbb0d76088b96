//! From settings, leases and what is there to what is wanted. Pure.

use settings::{Dhcp, Interface, InterfaceId, Interfaces};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::plan::{Cidr, Kind, Link, Made, Origin, Route, State, Wanted, WantedLink, is_a_blank};

/// Of what is made. What is on a network card has the card's.
const ETHERNET_MTU: u32 = 1500;
/// Of the routes of the first interface; those of others have more.
const FIRST_METRIC: u32 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

/// What a DHCP server gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Cidr,
    /// Where to, and the router.
    pub routes: Vec<(Cidr, Option<IpAddr>)>,
    /// In bytes.
    pub mtu: Option<u32>,
    pub name_servers: Vec<IpAddr>,
    pub search: Vec<String>,
    /// Addresses or names.
    pub ntp_servers: Vec<String>,
}

/// What is known of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leased {
    /// Since this agent was started no server has answered: what the one before it was given still holds.
    NotYet,
    Held(Lease),
    Over,
}

pub(super) type Leases = BTreeMap<(String, Family), Leased>;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Want {
    pub links: Wanted,
    /// The interfaces, the primary one first.
    pub order: Vec<String>,
    /// Where DHCP servers are asked, and whether it is no matter when none answers.
    pub asks: BTreeMap<(String, Family), bool>,
    /// What cannot be done: the interface and why.
    pub missing: Vec<(String, String)>,
}

impl Want {
    /// The numbers of interfaces that are up and take what routers advertise.
    pub(super) fn accept_ra(&self, state: &State) -> BTreeSet<u32> {
        let accepts = self.links.iter().filter(|(_, wanted)| wanted.accept_ra.is_some());
        let links = accepts.filter_map(|(name, _)| state.get(name));
        links.filter(|link| link.up && link.accept_ra.is_some()).map(|link| link.index).collect()
    }
}

pub(super) fn want(settings: Option<&Interfaces>, state: &State, leases: &Leases) -> Want {
    let mut want = Want::default();
    let settings = match settings.filter(|settings| !settings.is_empty()) {
        Some(settings) => with_names(settings, state, &mut want.missing),
        None => without_settings(state),
    };
    let mut members = members(&settings, state, &mut want.missing);
    let links = present(settings, &members, state, &mut want.missing);
    members.retain(|_, owner| links.contains_key(owner));
    let mut order: Vec<&String> = links.keys().collect();
    order.sort_by_key(|name| links[*name].primary != Some(true));
    for (place, name) in (0..).zip(&order) {
        let (interface, master) = (&links[*name], members.get(*name));
        let metric = FIRST_METRIC.saturating_add(place);
        let link = link(name, interface, master, metric, leases);
        want.links.insert((*name).clone(), link);
        for (family, dhcp) in [(Family::V4, &interface.dhcp4), (Family::V6, &interface.dhcp6)] {
            if let Some(dhcp) = dhcp.as_ref().filter(|dhcp| dhcp.is_enabled() && master.is_none()) {
                want.asks.insert(((*name).clone(), family), dhcp.is_optional());
            }
        }
    }
    let mtus = Mtus { links: &links, members: &members, state, leases };
    for name in &order {
        let mtu = mtus.of(name);
        if let Some(link) = want.links.get_mut(*name) {
            link.mtu = mtu;
        }
    }
    want.order = order.into_iter().cloned().collect();
    want
}

/// Every network card asks by DHCPv4, takes what routers advertise, and asks by DHCPv6 when they say so.
fn without_settings(state: &State) -> BTreeMap<String, Interface> {
    let cards = state.iter().filter(|(_, link)| link.kind == Kind::Card);
    let interface = |link: &Link| Interface {
        dhcp4: Some(Dhcp::default()),
        dhcp6: link.managed.then(|| Dhcp { optional: Some(true), ..Dhcp::default() }),
        accept_ra: Some(true),
        ..Interface::default()
    };
    cards.map(|(name, link)| (name.clone(), interface(link))).collect()
}

/// Settings by the names of interfaces. Of a card that is not there only its address is known.
fn with_names(
    settings: &Interfaces,
    state: &State,
    missing: &mut Vec<(String, String)>,
) -> BTreeMap<String, Interface> {
    let mut named: BTreeMap<String, Interface> = BTreeMap::new();
    let (cards, names): (Vec<_>, Vec<_>) = settings.iter().partition(|(id, _)| id.mac().is_some());
    named.extend(names.into_iter().map(|(id, interface)| (id.as_str().to_owned(), interface.clone())));
    for (id, interface) in cards {
        let card = state.iter().find(|(_, link)| link.kind == Kind::Card && link.mac == InterfaceId::mac(id));
        match card {
            Some((name, _)) if named.contains_key(name) => {
                let reason =
                    format!("the card {} is {name}, which is set by its name too: that holds", id.as_str());
                missing.push((name.clone(), reason));
            }
            Some((name, _)) => _ = named.insert(name.clone(), interface.clone()),
            None if interface.is_optional() => {}
            None => missing
                .push((id.as_str().to_owned(), "there is no network card with this address".to_owned())),
        }
    }
    named
}

/// Members with the bond or bridge that they are of, where they can be had.
fn members(
    settings: &BTreeMap<String, Interface>,
    state: &State,
    missing: &mut Vec<(String, String)>,
) -> BTreeMap<String, String> {
    let mut members = BTreeMap::new();
    for (owner, interface) in settings.iter().filter(|(_, interface)| interface.kind.is_some()) {
        for member in interface.interfaces.iter().flatten() {
            let is_set = settings.contains_key(member.as_str());
            if is_set || state.get(member.as_str()).is_some_and(|link| link.kind == Kind::Card) {
                members.insert(member.as_str().to_owned(), owner.clone());
            } else if !interface.is_optional() {
                missing.push((
                    owner.clone(),
                    format!("there is no network card {member}, which is to be a member of it"),
                ));
            }
        }
    }
    members
}

/// Interfaces that are there or can be made, and what they are on.
fn present(
    mut settings: BTreeMap<String, Interface>,
    members: &BTreeMap<String, String>,
    state: &State,
    missing: &mut Vec<(String, String)>,
) -> BTreeMap<String, Interface> {
    let devices: Vec<String> = settings
        .values()
        .filter_map(|interface| interface.device.as_ref())
        .map(|name| name.as_str().to_owned())
        .collect();
    let is_card = |name: &String| state.get(name).is_some_and(|link| link.kind == Kind::Card);
    for name in members.keys().chain(&devices).filter(|name| is_card(name)) {
        settings.entry(name.clone()).or_default();
    }
    // What stands on something that is not there is not there either, and so on.
    loop {
        let absent = settings
            .iter()
            .find_map(|(name, interface)| Some((name.clone(), absence(name, interface, &settings, state)?)));
        let Some((name, reason)) = absent else { return settings };
        let removed = settings.remove(&name);
        if !removed.is_some_and(|interface| interface.is_optional()) {
            missing.push((name, reason));
        }
    }
}

/// Why an interface cannot be had.
fn absence(
    name: &str,
    interface: &Interface,
    settings: &BTreeMap<String, Interface>,
    state: &State,
) -> Option<String> {
    let there = state.get(name);
    let Some(kind) = interface.kind else {
        return match there {
            Some(link) if link.kind == Kind::Card => None,
            Some(_) => Some(
                "this is not a network card, and not made by these settings: it is left alone".to_owned(),
            ),
            None => Some("there is no such network card".to_owned()),
        };
    };
    if there
        .is_some_and(|link| link.kind == Kind::Card || link.mark.is_none() && !is_a_blank(link, state, name))
    {
        return Some(format!(
            "there is an interface of this name that is not the node's {}: choose another name",
            kind.name()
        ));
    }
    let device = interface.device.as_ref()?;
    (kind == settings::Kind::Vlan && !settings.contains_key(device.as_str()))
        .then(|| format!("there is no interface {device}, which it is to be on"))
}

fn link(
    name: &str,
    interface: &Interface,
    master: Option<&String>,
    metric: u32,
    leases: &Leases,
) -> WantedLink {
    let mut link = WantedLink { made: made(interface), master: master.cloned(), ..WantedLink::default() };
    if master.is_some() {
        return link;
    }
    let metric_of = |dhcp: &Option<Dhcp>| {
        dhcp.as_ref().and_then(|dhcp| dhcp.route_metric).map_or(metric, settings::RouteMetric::get)
    };
    link.accept_ra = interface.accepts_ra().then(|| metric_of(&interface.dhcp6));
    for (family, dhcp, origin) in
        [(Family::V4, &interface.dhcp4, Origin::Dhcp4), (Family::V6, &interface.dhcp6, Origin::Dhcp6)]
    {
        if !dhcp.as_ref().is_some_and(Dhcp::is_enabled) {
            continue;
        }
        match leases.get(&(name.to_owned(), family)) {
            None | Some(Leased::NotYet) => _ = link.keep.insert(origin),
            Some(Leased::Held(lease)) => {
                link.addresses.insert(lease.address, origin);
                let route = |(to, via): &(Cidr, Option<IpAddr>)| Route {
                    to: *to,
                    via: *via,
                    from: None,
                    metric: metric_of(dhcp),
                };
                link.routes.extend(lease.routes.iter().map(|leased| (route(leased), origin)));
            }
            Some(Leased::Over) => {}
        }
    }
    let four = interface.static4.iter().flat_map(|fixed| fixed.addresses.iter().flatten());
    let six = interface.static6.iter().flat_map(|fixed| fixed.addresses.iter().flatten());
    let four = four.map(|cidr| Cidr { address: cidr.address.into(), prefix: cidr.prefix });
    let six = six.map(|cidr| Cidr { address: cidr.address.into(), prefix: cidr.prefix });
    link.addresses.extend(four.chain(six).map(|cidr| (cidr, Origin::Setting)));
    let routes = interface
        .route
        .iter()
        .flatten()
        .filter_map(|route| Some((fixed_route(route, metric)?, Origin::Setting)));
    link.routes.extend(routes);
    link
}

fn fixed_route(route: &settings::Route, metric: u32) -> Option<Route> {
    let (via, from) = (route.via.map(settings::Address::get), route.from.map(settings::Address::get));
    let everything = match via.or(from) {
        Some(IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let (address, prefix) = route.to.as_ref()?.network().unwrap_or((everything, 0));
    let metric = route.route_metric.map_or(metric, settings::RouteMetric::get);
    Some(Route { to: Cidr { address, prefix }, via, from, metric })
}

fn made(interface: &Interface) -> Option<Made> {
    Some(match interface.kind? {
        settings::Kind::Bond => Made::Bond {
            mode: interface.mode?,
            min_links: interface.min_links,
            monitoring: interface.monitoring.clone(),
            lacp_rate: interface.lacp_rate,
            xmit_hash_policy: interface.xmit_hash_policy,
        },
        settings::Kind::Vlan => {
            Made::Vlan { device: interface.device.as_ref()?.as_str().to_owned(), id: interface.id?.get() }
        }
        settings::Kind::Bridge => Made::Bridge { stp: interface.stp.unwrap_or(false) },
    })
}

/// Where MTUs come from.
struct Mtus<'a> {
    links: &'a BTreeMap<String, Interface>,
    members: &'a BTreeMap<String, String>,
    state: &'a State,
    leases: &'a Leases,
}

impl Mtus<'_> {
    fn master(&self, name: &str) -> Option<(&String, &Interface)> {
        let master = self.members.get(name)?;
        Some((master, self.links.get(master)?))
    }

    /// None of a member of a bond, which the kernel gives the bond's.
    fn of(&self, name: &str) -> Option<u32> {
        let is_bonded =
            self.master(name).is_some_and(|(_, master)| master.kind == Some(settings::Kind::Bond));
        if is_bonded { None } else { self.find(name, self.links.len()) }
    }

    /// What settings say, then DHCP, then what was there before. None when interfaces stand on each other without end.
    fn find(&self, name: &str, depth: usize) -> Option<u32> {
        let (depth, interface) = (depth.checked_sub(1)?, self.links.get(name)?);
        let master = self.master(name);
        if let Some((master, _)) = master.filter(|(_, master)| master.kind == Some(settings::Kind::Bond)) {
            return self.find(master, depth);
        }
        let set = interface.mtu.or_else(|| master?.1.mtu).map(settings::Mtu::get);
        if set.is_some() {
            return set;
        }
        let there = self.state.get(name);
        let own = match (interface.kind, &interface.device) {
            (None, _) => {
                let before = there?.mark.as_ref().and_then(|mark| mark.parse().ok());
                before.unwrap_or(there?.mtu)
            }
            (Some(settings::Kind::Vlan), Some(device)) => self.find(device.as_str(), depth)?,
            _ => ETHERNET_MTU,
        };
        let asks = master.is_none() && interface.dhcp4.as_ref().is_some_and(Dhcp::is_enabled);
        match self.leases.get(&(name.to_owned(), Family::V4)).filter(|_| asks) {
            // More than the card takes would only be refused.
            Some(Leased::Held(Lease { mtu: Some(leased), .. })) => Some(own.min(*leased)),
            Some(Leased::Held(_) | Leased::Over) => Some(own),
            // An agent before this one may have had one from DHCP.
            Some(Leased::NotYet) | None => there.filter(|_| asks).map(|link| link.mtu.min(own)).or(Some(own)),
        }
    }
}
