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
pub struct Cidr {
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
        match self.to.prefix {
            0 => f.write_str("everything")?,
            _ => write!(f, "{}", self.to)?,
        }
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

#[cfg(test)]
mod tests {
    use super::super::want::{Family, Lease, Leased, Leases, want};
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::{Value, json};
    use settings::Interfaces;

    /// The kernel, as far as it takes steps: it refuses what Linux refuses, and takes away what Linux takes away. It knows nothing
    /// of how plans are made.
    struct Kernel(State);

    impl Kernel {
        fn take(&mut self, name: &str, step: &Step) {
            if let Step::Create(made) = step {
                assert!(!self.0.contains_key(name), "{name}: File exists");
                let device = match made {
                    Made::Vlan { device, .. } => Some(device.clone()),
                    _ => None,
                };
                let mtu =
                    device.as_ref().map_or(1500, |device| self.0.get(device).expect("no such device").mtu);
                let mut link = link(made.kind());
                (link.index, link.device, link.mtu, link.accept_ra) = (99, device, mtu, Some((1, 1024)));
                self.0.insert(name.to_owned(), link);
                return;
            }
            assert!(self.0.contains_key(name), "{name}: No such device for {step:?}");
            match step {
                Step::Create(_) => {}
                Step::Delete => self.delete(name),
                Step::Mark(mark) => self.at(name).mark = Some(mark.clone()),
                Step::Unmark => self.at(name).mark = None,
                Step::Down => self.down(name),
                Step::Up => {
                    if let Some(device) = self.at(name).device.clone() {
                        assert!(self.at(&device).up, "{name}: Network is down");
                    }
                    self.at(name).up = true;
                }
                Step::Leave => {
                    let master = self.at(name).master.take().expect("a master to leave");
                    self.released(name, self.0.get(&master).is_some_and(|master| master.kind == Kind::Bond));
                }
                Step::Join(master) => {
                    let (to_bond, mtu) = (self.at(master).kind == Kind::Bond, self.at(master).mtu);
                    let member = self.at(name);
                    assert!(member.master.is_none(), "{name}: Device or resource busy");
                    assert!(!(to_bond && member.up), "{name}: Device can not be enslaved while up");
                    member.master = Some(master.clone());
                    if to_bond {
                        (member.up, member.mtu) = (true, mtu);
                    }
                }
                Step::Mtu(mtu) => self.set_mtu(name, *mtu),
                Step::AcceptRa(metric) => {
                    let link = self.at(name);
                    if let Some((is, old)) = &mut link.accept_ra {
                        (*is, *old) = metric.map_or((0, *old), |metric| (2, metric));
                        if metric.is_some() && link.up {
                            link.addresses.retain(|cidr, _| cidr.address.is_ipv4());
                            link.routes.retain(|route, _| route.to.address.is_ipv4());
                        }
                    }
                }
                Step::AddAddress(cidr, origin) => _ = self.at(name).addresses.insert(*cidr, *origin),
                Step::RemoveAddress(cidr) => {
                    let link = self.at(name);
                    link.addresses.remove(cidr);
                    if cidr.address.is_ipv4() {
                        // Others of its network are secondary ones, and go with it.
                        link.addresses
                            .retain(|other, _| other.prefix != cidr.prefix || !cidr.covers(other.address));
                        if !link.addresses.keys().any(|cidr| cidr.address.is_ipv4()) {
                            link.routes.retain(|route, _| route.to.address.is_ipv6());
                        }
                    }
                    link.routes.retain(|route, _| route.from != Some(cidr.address));
                }
                Step::AddRoute(route, origin, taken_to_be_there) => {
                    let link = self.at(name);
                    assert!(link.up, "{name}: Network is down");
                    if let Some(from) = route.from {
                        assert!(
                            link.addresses.keys().any(|cidr| cidr.address == from),
                            "{name}: Invalid prefsrc address"
                        );
                    }
                    if let Some(via) = route.via.filter(|via| via.is_ipv4() && !taken_to_be_there) {
                        assert!(
                            link.addresses.keys().any(|cidr| cidr.covers(via)),
                            "{name}: Nexthop has invalid gateway"
                        );
                    }
                    link.routes.insert(*route, *origin);
                }
                Step::RemoveRoute(route, _) => _ = self.at(name).routes.remove(route),
            }
        }

        fn at(&mut self, name: &str) -> &mut Link {
            self.0.get_mut(name).expect(name)
        }

        fn names(&self, which: impl Fn(&Link) -> bool) -> Vec<String> {
            self.0.iter().filter(|(_, link)| which(link)).map(|(name, _)| name.clone()).collect()
        }

        fn delete(&mut self, name: &str) {
            for vlan in self.names(|link| link.device.as_deref() == Some(name)) {
                self.delete(&vlan);
            }
            let kind = self.0.remove(name).expect(name).kind;
            assert!(kind != Kind::Card, "a card cannot be removed");
            for member in self.names(|link| link.master.as_deref() == Some(name)) {
                self.at(&member).master = None;
                self.released(&member, kind == Kind::Bond);
            }
        }

        fn released(&mut self, name: &str, of_bond: bool) {
            if of_bond {
                self.down(name);
                self.at(name).mtu = 1500;
            }
        }

        fn down(&mut self, name: &str) {
            let link = self.at(name);
            if !link.up {
                return;
            }
            link.up = false;
            link.routes.clear();
            link.addresses.retain(|cidr, _| cidr.address.is_ipv4());
            for vlan in self.names(|link| link.device.as_deref() == Some(name)) {
                self.down(&vlan);
            }
        }

        fn set_mtu(&mut self, name: &str, mtu: u32) {
            if let Some(device) = self.at(name).device.clone() {
                assert!(self.at(&device).mtu >= mtu, "{name}: Numerical result out of range");
            }
            let kind = self.at(name).kind;
            self.at(name).mtu = mtu;
            if kind == Kind::Bond {
                self.names(|link| link.master.as_deref() == Some(name))
                    .iter()
                    .for_each(|member| self.set_mtu(member, mtu));
            }
            for vlan in self.names(|link| link.device.as_deref() == Some(name) && link.mtu > mtu) {
                self.set_mtu(&vlan, mtu);
            }
        }
    }

    fn link(kind: Kind) -> Link {
        Link {
            index: 1,
            kind,
            mark: None,
            mac: None,
            up: false,
            mtu: 1500,
            master: None,
            device: None,
            addresses: BTreeMap::new(),
            routes: BTreeMap::new(),
            accept_ra: Some((1, 1024)),
            managed: false,
            shown: Vec::new(),
        }
    }

    /// Three cards, and what containers and others have.
    fn machine() -> State {
        let mut state = State::new();
        for name in ["eth0", "eth1", "eth2"] {
            state.insert(name.to_owned(), link(Kind::Card));
        }
        for name in ["lo", "veth0"] {
            state.insert(name.to_owned(), Link { up: true, ..link(Kind::Other) });
        }
        let theirs = Link { up: true, ..link(Kind::Bridge) };
        state.insert("docker0".to_owned(), theirs);
        state.get_mut("veth0").unwrap().master = Some("docker0".to_owned());
        // The kernel makes this of itself.
        state.insert("bond0".to_owned(), link(Kind::Bond));
        state
    }

    fn interfaces(value: Value) -> Interfaces {
        let settings = settings::from_json(&json!({"network": {"interfaces": value}})).unwrap();
        settings.check().unwrap();
        settings.network.unwrap().interfaces.unwrap()
    }

    #[track_caller]
    fn carry_out(
        state: State,
        interfaces: Option<&Interfaces>,
        leases: &Leases,
    ) -> (State, Vec<(String, Step)>) {
        let wanted = want(interfaces, &state, leases).links;
        let steps = plan(&state, &wanted);
        let mut kernel = Kernel(state);
        steps.iter().for_each(|(name, step)| kernel.take(name, step));
        (kernel.0, steps)
    }

    #[test]
    fn a_bond_with_a_vlan_is_made_in_an_order_that_the_kernel_takes() {
        let settings = interfaces(json!({
            "bond0": {"kind": "bond", "mode": "active-backup", "interfaces": ["eth0", "eth1"], "mtu": 9000},
            "vlan7": {"kind": "vlan", "device": "bond0", "id": 7, "static4": {"addresses": ["10.0.0.5/24"]}, "route": [{"to": "default", "via": "10.0.0.1"}]},
        }));
        let (state, steps) = carry_out(machine(), Some(&settings), &Leases::new());
        // The kernel's own bond0 made way for ours.
        assert_eq!(steps[0], ("bond0".to_owned(), Step::Delete));
        assert_eq!(state["eth1"].master.as_deref(), Some("bond0"));
        assert_eq!((state["vlan7"].mtu, state["vlan7"].up, state["eth0"].mtu), (9000, true, 9000));
        assert_eq!(state["vlan7"].routes.len(), 1);
        assert!(!state["eth2"].up && state["eth2"].mark.is_none(), "eth2 is left alone");
        // And everything is as it was before when nothing of it is wanted.
        let only = interfaces(json!({"eth2": {"dhcp4": true}}));
        let (state, _) = carry_out(state, Some(&only), &Leases::new());
        assert!(!state.contains_key("bond0") && !state.contains_key("vlan7"));
        assert_eq!(state["eth0"], Link { accept_ra: Some((0, 1024)), ..link(Kind::Card) });
    }

    #[test]
    fn an_address_of_the_same_network_takes_the_place_of_another() {
        let old = interfaces(
            json!({"eth0": {"static4": {"addresses": ["10.0.0.5/24", "10.0.0.6/24"]}, "route": [{"to": "default", "via": "10.0.0.1"}]}}),
        );
        let new = interfaces(
            json!({"eth0": {"static4": {"addresses": ["10.0.0.6/24", "10.0.0.7/24"]}, "route": [{"to": "default", "via": "10.0.0.1"}]}}),
        );
        let (state, _) = carry_out(machine(), Some(&old), &Leases::new());
        let (state, _) = carry_out(state, Some(&new), &Leases::new());
        let addresses: Vec<String> = state["eth0"].addresses.keys().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.6/24", "10.0.0.7/24"]);
        assert_eq!(state["eth0"].routes.len(), 1);
    }

    #[test]
    fn what_others_have_is_not_touched() {
        let before = machine();
        let settings = interfaces(json!({
            "docker0": {"kind": "bridge", "interfaces": ["eth0"]},
            "veth0": {"static4": {"addresses": ["10.0.0.5/24"]}},
            "eth1": {"static4": {"addresses": ["10.0.0.6/24"]}},
        }));
        let want = want(Some(&settings), &before, &Leases::new());
        assert_eq!(want.missing.len(), 2, "{:?}", want.missing);
        let steps = plan(&before, &want.links);
        assert!(steps.iter().all(|(name, _)| name == "eth0" || name == "eth1"), "{steps:?}");
        assert!(plan(&before, &Wanted::new()).is_empty());
    }

    #[test]
    fn a_lease_that_is_not_known_yet_is_kept_and_one_that_is_over_is_not() {
        let settings = interfaces(json!({"eth0": {"dhcp4": true}}));
        let key = ("eth0".to_owned(), Family::V4);
        let held = Leases::from([(key.clone(), Leased::Held(lease("10.0.0.5", "10.0.0.1")))]);
        let (state, _) = carry_out(machine(), Some(&settings), &held);
        assert_eq!((state["eth0"].addresses.len(), state["eth0"].routes.len()), (1, 1));
        // A new agent.
        let (state, steps) = carry_out(state, Some(&settings), &Leases::new());
        assert!(steps.is_empty(), "{steps:?}");
        let over = Leases::from([(key, Leased::Over)]);
        let (state, _) = carry_out(state, Some(&settings), &over);
        assert!(state["eth0"].addresses.is_empty() && state["eth0"].routes.is_empty());
    }

    #[test]
    fn only_what_is_up_and_accepts_advertisements_is_heard() {
        let settings = interfaces(json!({
            "eth0": {"dhcp6": true},
            "eth1": {"dhcp6": true, "accept-ra": false},
            "eth2": {"accept-ra": true, "dhcp4": true},
            "vlan7": {"kind": "vlan", "device": "eth0", "id": 7, "dhcp4": true},
        }));
        let want = want(Some(&settings), &machine(), &Leases::new());
        assert!(want.accept_ra(&machine()).is_empty(), "an interface that is down is heard");
        let (mut state, _) = carry_out(machine(), Some(&settings), &Leases::new());
        for (index, link) in (10..).zip(state.values_mut()) {
            link.index = index;
        }
        let wanted = ["eth0", "eth2"].map(|name| state[name].index);
        assert_eq!(want.accept_ra(&state), BTreeSet::from(wanted));
        state.get_mut("eth2").unwrap().accept_ra = None;
        assert_eq!(want.accept_ra(&state), BTreeSet::from([wanted[0]]), "without IPv6");
    }

    fn lease(address: &str, router: &str) -> Lease {
        let everything = Cidr { address: "0.0.0.0".parse().unwrap(), prefix: 0 };
        Lease {
            address: Cidr { address: address.parse().unwrap(), prefix: 24 },
            routes: vec![(everything, Some(router.parse().unwrap()))],
            mtu: Some(1400),
            name_servers: Vec::new(),
            search: Vec::new(),
            ntp_servers: Vec::new(),
        }
    }

    /// Settings that can be committed, of few names, so that they meet.
    fn any_interfaces() -> impl Strategy<Value = Option<Interfaces>> {
        let address = select(vec!["10.0.0.5/24", "10.0.0.6/24", "10.0.1.5/24", "fd00::5/64"]);
        let plain = (
            proptest::collection::btree_set(address, 0..3),
            any::<[bool; 4]>(),
            select(vec![0, 1400, 1500, 9000]),
        );
        let plain = plain.prop_map(|(addresses, [dhcp4, dhcp6, route, ra], mtu)| {
            let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.contains(':'));
            let mut all = json!({"dhcp4": dhcp4, "dhcp6": dhcp6, "accept-ra": ra});
            if !six.is_empty() {
                all["static6"] = json!({"addresses": six});
            }
            if four.iter().any(|address| address.starts_with("10.0.0.")) && route {
                let from = four[0].split('/').next();
                all["route"] = json!([{"to": "default", "via": "10.0.0.1"}, {"to": "10.9.0.0/16", "via": "10.0.0.1", "from": from}]);
            }
            if !four.is_empty() {
                all["static4"] = json!({"addresses": four});
            }
            if mtu > 0 {
                all["mtu"] = json!(mtu);
            }
            all
        });
        let names = ["eth0", "eth1", "eth2", "bond0", "vlan1", "vlan2", "br0"];
        let made = (
            proptest::sample::subsequence(names.to_vec(), 0..5),
            proptest::collection::vec(plain, 7),
            select(vec!["active-backup", "802.3ad", "balance-rr"]),
            proptest::collection::btree_set(
                select(vec!["eth0", "eth1", "eth2", "vlan1", "bond0", "vlan2"]),
                1..3,
            ),
            proptest::collection::btree_set(select(vec!["eth1", "eth2", "bond0", "vlan2"]), 0..3),
            select(vec!["eth0", "bond0", "vlan2", "br0"]),
            select(vec!["eth1", "bond0", "br0"]),
        );
        made.prop_map(move |(chosen, plain, mode, members, ports, device, other)| {
            let mut all = serde_json::Map::new();
            for (name, mut interface) in
                names.into_iter().zip(plain).filter(|(name, _)| chosen.contains(name))
            {
                let kind = match name {
                    "bond0" => json!({"kind": "bond", "mode": mode, "interfaces": members}),
                    "vlan1" => json!({"kind": "vlan", "device": device, "id": 1}),
                    "vlan2" => json!({"kind": "vlan", "device": other, "id": 2}),
                    "br0" if ports.is_empty() => json!({"kind": "bridge"}),
                    "br0" => json!({"kind": "bridge", "interfaces": ports}),
                    _ => json!({}),
                };
                interface.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
                let is_member = members.contains(name) && chosen.contains(&"bond0")
                    || ports.contains(name) && chosen.contains(&"br0");
                if is_member {
                    for key in ["dhcp4", "dhcp6", "accept-ra", "static4", "static6", "route", "mtu"] {
                        interface.as_object_mut().unwrap().remove(key);
                    }
                }
                if interface != json!({}) {
                    all.insert(name.to_owned(), interface);
                }
            }
            // A VLAN cannot have more than what it is on; that is the kernel's to say, with its own words.
            let bridges = ports.contains("vlan2").then_some("br0");
            for name in ["vlan1", "vlan2"].into_iter().chain(bridges) {
                if let Some(vlan) = all.get_mut(name).and_then(Value::as_object_mut) {
                    vlan.remove("mtu");
                }
            }
            all
        })
        .prop_filter_map("settings that cannot be committed", |all| {
            let settings = settings::from_json(&json!({"network": {"interfaces": all}})).ok()?;
            settings.check().ok()?;
            Some(settings.network?.interfaces.filter(|interfaces| !interfaces.is_empty()))
        })
    }

    fn any_leases() -> impl Strategy<Value = Leases> {
        let leased = select(vec![
            Leased::NotYet,
            Leased::Over,
            Leased::Held(lease("10.0.0.9", "10.0.0.1")),
            Leased::Held(lease("10.0.3.9", "10.7.7.7")),
        ]);
        let name = select(vec!["eth0", "eth1", "bond0", "vlan1", "br0"])
            .prop_map(|name| (name.to_owned(), Family::V4));
        proptest::collection::btree_map(name, leased, 0..4)
    }

    /// That the state is what was wanted, as far as anybody can tell.
    fn assert_is(state: &State, wanted: &Wanted) {
        for (name, wanted) in wanted {
            let link = &state[name];
            assert!(link.up, "{name} is down");
            assert_eq!(link.master, wanted.master, "{name}");
            assert_eq!(wanted.made.as_ref().map(Made::kind).unwrap_or(Kind::Card), link.kind, "{name}");
            assert!(
                wanted.mtu.is_none_or(|mtu| mtu == link.mtu),
                "{name} has the MTU {} and not {:?}",
                link.mtu,
                wanted.mtu
            );
            assert_eq!(
                link.accept_ra.map(|(is, _)| is),
                Some(if wanted.accept_ra.is_some() { 2 } else { 0 }),
                "{name}"
            );
            let is_kept = |origin: &Origin| wanted.keep.contains(origin);
            for (cidr, origin) in &wanted.addresses {
                assert_eq!(link.addresses.get(cidr), Some(origin), "{name}: {cidr}");
            }
            assert!(
                link.addresses
                    .iter()
                    .all(|(cidr, origin)| wanted.addresses.contains_key(cidr) || is_kept(origin)),
                "{name}: {:?}",
                link.addresses
            );
            for (route, origin) in &wanted.routes {
                assert_eq!(link.routes.get(route), Some(origin), "{name}: {route}");
            }
            assert!(
                link.routes
                    .iter()
                    .all(|(route, origin)| wanted.routes.contains_key(route) || is_kept(origin)),
                "{name}: {:?}",
                link.routes
            );
        }
        for (name, link) in state.iter().filter(|(name, _)| !wanted.contains_key(*name)) {
            assert!(
                link.mark.is_none() && link.addresses.is_empty() && link.routes.is_empty(),
                "{name} is left over: {link:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// From whatever state, the steps lead to what is wanted, the kernel refuses none of them, and nothing is left to be done.
        #[test]
        fn steps_lead_from_any_state_to_what_is_wanted(
            history in proptest::collection::vec((any_interfaces(), any_leases()), 1..4),
            cut in 0usize..40,
        ) {
            let mut state = machine();
            for (number, (settings, leases)) in history.iter().enumerate() {
                let wanted = want(settings.as_ref(), &state, leases).links;
                let steps = plan(&state, &wanted);
                let mut kernel = Kernel(state);
                // All but the last may be cut off: the agent was ended.
                let is_last = number + 1 == history.len();
                let taken = if is_last { steps.len() } else { cut.min(steps.len()) };
                steps[..taken].iter().for_each(|(name, step)| kernel.take(name, step));
                state = kernel.0;
                if is_last {
                    assert_is(&state, &wanted);
                }
            }
            let (settings, leases) = history.last().unwrap();
            let (_, again) = carry_out(state.clone(), settings.as_ref(), leases);
            prop_assert!(again.is_empty(), "{again:?}");
            prop_assert_eq!(&state["docker0"], &machine()["docker0"]);
            prop_assert_eq!(&state["veth0"], &machine()["veth0"]);
            prop_assert_eq!(&state["lo"], &machine()["lo"]);
        }
    }
}
