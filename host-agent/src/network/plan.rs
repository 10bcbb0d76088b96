//! From what the kernel has to what is wanted: which steps, and in which order. Pure.
//!
//! The node touches only its own. What it made and what it configures bears its mark; addresses and routes bear the [`Origin`] for
//! which they were set. Interfaces, addresses and routes of others are not looked at.

use settings::{BondMode, LacpRate, MinLinks, Monitoring, XmitHashPolicy};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An address and its network, or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cidr {
    pub address: IpAddr,
    /// In bits.
    pub prefix: u8,
}

impl Cidr {
    fn covers(&self, other: IpAddr) -> bool {
        let shift = |bits: u32| bits.saturating_sub(u32::from(self.prefix));
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (u128::from(own) ^ u128::from(other)).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// For what an address or a route is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    Setting,
    Dhcp4,
    Dhcp6,
    /// Set by the kernel, for what a router has advertised.
    Router,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    /// A default route leads to everything.
    pub to: Cidr,
    pub via: Option<IpAddr>,
    pub from: Option<IpAddr>,
    pub metric: u32,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.to)?;
        self.via.map_or(Ok(()), |via| write!(f, " via {via}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ethernet, with a device behind it.
    Card,
    Bond,
    Vlan,
    Bridge,
    /// Loopback, what containers have, and so on.
    Other,
}

/// One interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub kind: Kind,
    /// The node's, if it is one of its own: of a card the MTU that it had before, of what is made a digest of what it is made of.
    pub mark: Option<String>,
    pub mac: Option<[u8; 6]>,
    pub up: bool,
    /// In bytes; 0 when the kernel is about to choose.
    pub mtu: u32,
    /// The bond or bridge that it is a member of.
    pub master: Option<String>,
    /// What a VLAN is on.
    pub device: Option<String>,
    /// Those of the node.
    pub addresses: BTreeMap<Cidr, Origin>,
    /// Those of the node.
    pub routes: BTreeMap<Route, Origin>,
    /// The kernel's `accept_ra` and `ra_defrtr_metric`; none without IPv6.
    pub accept_ra: Option<(u32, u32)>,
    /// Whether routers say that addresses come by DHCPv6.
    pub managed: bool,
    /// Every address that is not only for the link, also of others.
    pub shown: Vec<String>,
}

pub(super) type State = BTreeMap<String, Link>;

/// What an interface is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Made {
    Bond {
        mode: BondMode,
        min_links: Option<MinLinks>,
        monitoring: Option<Monitoring>,
        lacp_rate: Option<LacpRate>,
        xmit_hash_policy: Option<XmitHashPolicy>,
    },
    Vlan {
        device: String,
        id: u16,
    },
    Bridge {
        stp: bool,
    },
}

impl Made {
    fn kind(&self) -> Kind {
        match self {
            Self::Bond { .. } => Kind::Bond,
            Self::Vlan { .. } => Kind::Vlan,
            Self::Bridge { .. } => Kind::Bridge,
        }
    }

    /// The same for the same: what differs is made anew. What the kernel says of a bond is not compared, as it rounds.
    pub(super) fn mark(&self) -> String {
        let digest = Sha256::digest(format!("{self:?}"));
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// One interface as it is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WantedLink {
    /// None of a card.
    pub made: Option<Made>,
    pub master: Option<String>,
    /// None of what has that of its bond.
    pub mtu: Option<u32>,
    pub addresses: BTreeMap<Cidr, Origin>,
    pub routes: BTreeMap<Route, Origin>,
    /// Origins whose addresses and routes are left as they are.
    pub keep: BTreeSet<Origin>,
    /// The metric of routes that routers advertise, if that is taken.
    pub accept_ra: Option<u32>,
}

/// What is made is wanted with all that it is made of, and cards are there.
pub(super) type Wanted = BTreeMap<String, WantedLink>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Delete,
    Create(Made),
    Mark(String),
    Unmark,
    Down,
    Up,
    Leave,
    Join(String),
    Mtu(u32),
    /// With the metric of the routes. Of an interface that is up, IPv6 begins anew: without that no router is asked.
    AcceptRa(Option<u32>),
    RemoveAddress(Cidr),
    AddAddress(Cidr, Origin),
    RemoveRoute(Route, Origin),
    /// With whether the router is taken to be there, although it is in no network of the interface.
    AddRoute(Route, Origin, bool),
}

/// Whether something that the node did not mark is what an agent had made when it was ended, or what the kernel made of itself, as
/// it does with `bond0`.
pub(super) fn is_a_blank(link: &Link, state: &State, name: &str) -> bool {
    let has_members = state.values().any(|other| other.master.as_deref() == Some(name));
    let has_vlans = state.values().any(|other| other.device.as_deref() == Some(name));
    matches!(link.kind, Kind::Bond | Kind::Vlan | Kind::Bridge)
        && link.mark.is_none()
        && link.master.is_none()
        && !link.up
        && !has_members
        && !has_vlans
}

/// The steps, each with the interface that it is for.
pub(super) fn plan(state: &State, wanted: &Wanted) -> Vec<(String, Step)> {
    let mut plan = Plan { at: state.clone(), wanted, steps: Vec::new() };
    plan.delete();
    plan.release_cards();
    plan.create();
    plan.leave();
    for name in wanted.keys() {
        plan.remove(name);
    }
    for name in plan.lowest_first() {
        plan.set_mtu(&name);
    }
    for name in wanted.keys() {
        plan.accept_ra(name);
    }
    for name in wanted.keys() {
        plan.join(name);
    }
    for name in plan.lowest_first() {
        plan.bring_up(&name);
    }
    for name in wanted.keys() {
        plan.add(name);
    }
    plan.steps
}

struct Plan<'a> {
    /// What will be there after the steps so far.
    at: State,
    wanted: &'a Wanted,
    steps: Vec<(String, Step)>,
}

impl Plan<'_> {
    fn step(&mut self, name: &str, step: Step) {
        self.steps.push((name.to_owned(), step));
    }

    /// What was made, and is wanted no longer or otherwise.
    fn delete(&mut self) {
        let is_doomed = |(name, link): &(&String, &Link)| {
            let made = matches!(link.kind, Kind::Bond | Kind::Vlan | Kind::Bridge);
            let wanted = self.wanted.get(*name).and_then(|wanted| wanted.made.as_ref());
            match &link.mark {
                Some(mark) => {
                    made && wanted.is_none_or(|wanted| wanted.mark() != *mark || wanted.kind() != link.kind)
                }
                None => wanted.is_some() && is_a_blank(link, &self.at, name),
            }
        };
        let doomed: BTreeSet<String> =
            self.at.iter().filter(is_doomed).map(|(name, _)| name.clone()).collect();
        // The kernel takes VLANs away with what they are on.
        let stands_on_doomed = |link: &Link| {
            let mut below = link.device.as_deref();
            for _ in 0..self.at.len() {
                let Some(name) = below else { break };
                if doomed.contains(name) {
                    return true;
                }
                below = self.at.get(name).and_then(|link| link.device.as_deref());
            }
            false
        };
        let gone = self
            .at
            .iter()
            .filter(|(name, link)| doomed.contains(*name) || link.mark.is_some() && stands_on_doomed(link));
        let mut gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        gone.sort_by_key(|name| std::cmp::Reverse(self.depth_of_existing(name)));
        for name in gone {
            self.step(&name, Step::Delete);
            let was_bond = self.at.remove(&name).is_some_and(|link| link.kind == Kind::Bond);
            let members: Vec<String> = self.members(&name);
            for member in members {
                self.released(&member, was_bond);
            }
        }
    }

    fn members(&self, master: &str) -> Vec<String> {
        let members = self.at.iter().filter(|(_, link)| link.master.as_deref() == Some(master));
        members.map(|(name, _)| name.clone()).collect()
    }

    fn depth_of_existing(&self, name: &str) -> usize {
        let (mut depth, mut below) = (0, self.at.get(name).and_then(|link| link.device.as_ref()));
        while let Some(name) = below.filter(|_| depth < self.at.len()) {
            depth += 1;
            below = self.at.get(name).and_then(|link| link.device.as_ref());
        }
        depth
    }

    /// What a link is after it was a member: bonds close theirs, and give them back the MTU that they had.
    fn released(&mut self, name: &str, of_bond: bool) {
        if let Some(link) = self.at.get_mut(name) {
            link.master = None;
            if of_bond {
                link.mtu = 0;
                self.goes_down(name);
            }
        }
    }

    /// With an interface, its VLANs go down. The kernel forgets routes, and all of IPv6.
    fn goes_down(&mut self, name: &str) {
        let Some(link) = self.at.get_mut(name).filter(|link| link.up) else { return };
        link.up = false;
        link.routes.clear();
        link.addresses.retain(|cidr, _| cidr.address.is_ipv4());
        let vlans = self.at.iter().filter(|(_, link)| link.device.as_deref() == Some(name));
        let vlans: Vec<String> = vlans.map(|(name, _)| name.clone()).collect();
        for vlan in vlans {
            self.goes_down(&vlan);
        }
    }

    /// Cards that were configured, and are to be left alone: as they were before.
    fn release_cards(&mut self) {
        let is_released = |(name, link): &(&String, &Link)| {
            link.kind == Kind::Card && link.mark.is_some() && !self.wanted.contains_key(*name)
        };
        let released: Vec<String> =
            self.at.iter().filter(is_released).map(|(name, _)| name.clone()).collect();
        for name in released {
            self.leave_master(&name);
            self.remove(&name);
            let Some(link) = self.at.get(&name) else { continue };
            let before =
                link.mark.as_ref().and_then(|mark| mark.parse().ok()).filter(|before| *before != link.mtu);
            let is_up = link.up;
            if let Some(before) = before {
                self.step(&name, Step::Mtu(before));
            }
            if is_up {
                self.step(&name, Step::Down);
                self.goes_down(&name);
            }
            self.step(&name, Step::Unmark);
        }
    }

    fn create(&mut self) {
        for name in self.lowest_first() {
            let Some(wanted) = self.wanted.get(&name) else { continue };
            let mark = match (&wanted.made, self.at.get(&name)) {
                (None, Some(link)) if link.mark.is_none() => link.mtu.to_string(),
                (Some(made), None) => {
                    self.step(&name, Step::Create(made.clone()));
                    let device = match made {
                        Made::Vlan { device, .. } => Some(device.clone()),
                        _ => None,
                    };
                    let link = Link {
                        index: 0,
                        kind: made.kind(),
                        mark: Some(made.mark()),
                        mac: None,
                        up: false,
                        mtu: 0,
                        master: None,
                        device,
                        addresses: BTreeMap::new(),
                        routes: BTreeMap::new(),
                        // The kernel's; without IPv6 the step does nothing.
                        accept_ra: Some((1, 0)),
                        managed: false,
                        shown: Vec::new(),
                    };
                    self.at.insert(name.clone(), link);
                    made.mark()
                }
                _ => continue,
            };
            if let Some(link) = self.at.get_mut(&name) {
                link.mark = Some(mark.clone());
            }
            self.step(&name, Step::Mark(mark));
        }
    }

    fn leave(&mut self) {
        for (name, wanted) in self.wanted {
            let master = self.at.get(name).and_then(|link| link.master.clone());
            if master.is_some() && master != wanted.master {
                self.leave_master(name);
            }
        }
    }

    /// Of a master that is the node's own, or to make way for one.
    fn leave_master(&mut self, name: &str) {
        let Some(master) = self.at.get(name).and_then(|link| link.master.clone()) else { return };
        let is_ours = self.at.get(&master).is_some_and(|master| master.mark.is_some());
        let makes_way = self.wanted.get(name).is_some_and(|wanted| wanted.master.is_some());
        if is_ours || makes_way {
            let of_bond = self.at.get(&master).is_some_and(|master| master.kind == Kind::Bond);
            self.step(name, Step::Leave);
            self.released(name, of_bond);
        }
    }

    /// Addresses and routes that are not wanted.
    fn remove(&mut self, name: &str) {
        let nothing = WantedLink::default();
        let wanted = self.wanted.get(name).unwrap_or(&nothing);
        let Some(link) = self.at.get_mut(name) else { return };
        let (addresses, routes) = (link.addresses.clone(), link.routes.clone());
        let is_kept = |origin: Origin| {
            wanted.keep.contains(&origin) || origin == Origin::Router && wanted.accept_ra.is_some()
        };
        let goes = |cidr: &Cidr, origin: Origin| !wanted.addresses.contains_key(cidr) && !is_kept(origin);
        let gone: Vec<Cidr> =
            addresses.iter().filter(|(cidr, origin)| goes(cidr, **origin)).map(|(cidr, _)| *cidr).collect();
        // With an address of IPv4 the kernel takes others of its network away, and with the last one all routes.
        let all_of_ipv4 = gone.iter().any(|cidr| cidr.address.is_ipv4());
        let is_sender = |from: IpAddr| gone.iter().any(|cidr| cidr.address == from);
        for (route, origin) in routes {
            let unwanted = wanted.routes.get(&route) != Some(&origin) && !is_kept(origin);
            let shaken = all_of_ipv4 && route.to.address.is_ipv4() || route.from.is_some_and(is_sender);
            if unwanted || shaken {
                link.routes.remove(&route);
                self.steps.push((name.to_owned(), Step::RemoveRoute(route, origin)));
            }
        }
        for cidr in gone {
            link.addresses.remove(&cidr);
            self.steps.push((name.to_owned(), Step::RemoveAddress(cidr)));
        }
        if all_of_ipv4 {
            link.addresses.retain(|cidr, origin| {
                cidr.address.is_ipv6() || is_kept(*origin) && !wanted.addresses.contains_key(cidr)
            });
        }
    }

    fn set_mtu(&mut self, name: &str) {
        let Some(mtu) = self.wanted.get(name).and_then(|wanted| wanted.mtu) else { return };
        if let Some(link) = self.at.get_mut(name).filter(|link| link.mtu != mtu) {
            link.mtu = mtu;
            self.step(name, Step::Mtu(mtu));
        }
    }

    fn accept_ra(&mut self, name: &str) {
        let (Some(wanted), Some(link)) = (self.wanted.get(name), self.at.get_mut(name)) else { return };
        let Some((is, metric)) = link.accept_ra else { return };
        let fits = match wanted.accept_ra {
            Some(wanted) => (is, metric) == (2, wanted),
            None => is == 0,
        };
        if fits {
            return;
        }
        if wanted.accept_ra.is_some() && link.up {
            link.addresses.retain(|cidr, _| cidr.address.is_ipv4());
            link.routes.retain(|route, _| route.to.address.is_ipv4());
        }
        self.step(name, Step::AcceptRa(wanted.accept_ra));
    }

    fn join(&mut self, name: &str) {
        let Some(master) = self.wanted.get(name).and_then(|wanted| wanted.master.clone()) else { return };
        let Some(link) = self.at.get(name).filter(|link| link.master.as_ref() != Some(&master)) else {
            return;
        };
        let (is_up, to_bond) =
            (link.up, self.at.get(&master).is_some_and(|master| master.kind == Kind::Bond));
        if to_bond && is_up {
            self.step(name, Step::Down);
            self.goes_down(name);
        }
        if let Some(link) = self.at.get_mut(name) {
            link.master = Some(master.clone());
            link.up |= to_bond;
        }
        self.step(name, Step::Join(master));
    }

    fn bring_up(&mut self, name: &str) {
        if let Some(link) = self.at.get_mut(name).filter(|link| !link.up) {
            link.up = true;
            self.step(name, Step::Up);
        }
    }

    fn add(&mut self, name: &str) {
        let (Some(wanted), Some(link)) = (self.wanted.get(name), self.at.get(name)) else { return };
        let addresses =
            wanted.addresses.iter().filter(|(cidr, origin)| link.addresses.get(cidr) != Some(*origin));
        let mut steps: Vec<Step> = addresses.map(|(cidr, origin)| Step::AddAddress(*cidr, *origin)).collect();
        let reached = |via: IpAddr| via.is_ipv6() || wanted.addresses.keys().any(|cidr| cidr.covers(via));
        let routes = wanted.routes.iter().filter(|(route, origin)| link.routes.get(route) != Some(*origin));
        steps.extend(routes.map(|(route, origin)| {
            // Clouds give an address without a network, and a router. A setting says what it means.
            let taken_to_be_there = *origin != Origin::Setting && route.via.is_some_and(|via| !reached(via));
            Step::AddRoute(*route, *origin, taken_to_be_there)
        }));
        for step in steps {
            self.step(name, step);
        }
    }

    /// Wanted interfaces, VLANs after what they are on.
    fn lowest_first(&self) -> Vec<String> {
        let depth = |name: &String| {
            let mut depth = 0;
            let mut at = self.wanted.get(name);
            while let Some(Made::Vlan { device, .. }) = at.and_then(|wanted| wanted.made.as_ref())
                && depth < self.wanted.len()
            {
                depth += 1;
                at = self.wanted.get(device);
            }
            depth
        };
        let mut names: Vec<String> = self.wanted.keys().cloned().collect();
        names.sort_by_key(depth);
        names
    }
}
