//! Reading what the kernel has, by rtnetlink and `/proc/sys`, and doing the steps of a plan.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BondArpValidate, BondLacpRate, BondMode, BondXmitHashPolicy, BridgeStpState,
    Inet6IfaceFlags, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan,
    RouteMessageBuilder,
};
use settings::{ArpValidate, LacpRate, Monitoring, XmitHashPolicy};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;

use super::plan::{Cidr, Kind, Link, Made, Origin, Route, State, Step};

/// Before the mark of an interface, in its alias.
const MARK: &str = "caisson:";
/// How often links of a bond are looked at when settings say nothing.
const MIIMON_MS: u32 = 100;
/// An address of IPv6 is no sender before nobody has objected to it, which takes a second.
const SENDER_TRIES: u32 = 30;
const SENDER_PAUSE: Duration = Duration::from_millis(100);

/// As the kernel keeps it with addresses (IFA_PROTO) and routes; nobody else uses these numbers (iproute2's rt_protos).
fn number(origin: Origin) -> u8 {
    match origin {
        Origin::Setting => 201,
        Origin::Dhcp4 => 202,
        Origin::Dhcp6 => 203,
        Origin::Router => 2,
    }
}

fn origin(number: u8) -> Option<Origin> {
    [Origin::Setting, Origin::Dhcp4, Origin::Dhcp6].into_iter().find(|origin| self::number(*origin) == number)
}

/// A connection to the kernel, whose errors have its own words. Within a `LocalSet`.
pub(super) fn connect() -> std::io::Result<Handle> {
    let (mut connection, handle, _) = rtnetlink::new_connection()?;
    let socket = connection.socket_mut().socket_mut();
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    tokio::task::spawn_local(connection);
    Ok(handle)
}

/// What the kernel says, in its own words where it has some (NLMSGERR_ATTR_MSG).
fn words(error: &rtnetlink::Error) -> String {
    let rtnetlink::Error::NetlinkError(message) = error else { return error.to_string() };
    let number = message.to_io();
    match said(&message.header) {
        Some(said) => format!("{said}: {number}"),
        None => number.to_string(),
    }
}

/// The text among the attributes after the header of the request (16 bytes, as it is capped).
fn said(payload: &[u8]) -> Option<String> {
    let mut rest = payload.get(16..)?;
    while let [a, b, c, d, ..] = rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
        let value = rest.get(4..length)?;
        if kind & 0x3fff == 1 {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Everything that a plan looks at.
pub(super) async fn read(handle: &Handle) -> Result<State, String> {
    let failed = |error: rtnetlink::Error| format!("cannot read the interfaces: {}", words(&error));
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed)?;
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.map_err(failed)?;
    let four = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let mut routes: Vec<RouteMessage> = four.try_collect().await.map_err(failed)?;
    let six = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    // A kernel without IPv6 has no such routes.
    routes.extend(six.try_collect::<Vec<_>>().await.unwrap_or_default());
    let names = links.iter().filter_map(|link| Some((link.header.index, name_of(link)?)));
    let names: HashMap<u32, String> = names.collect();
    let mut state = State::new();
    for link in &links {
        if let Some(name) = names.get(&link.header.index) {
            state.insert(name.clone(), link_of(name, link, &names));
        }
    }
    for address in &addresses {
        if let Some(link) = names.get(&address.header.index).and_then(|name| state.get_mut(name)) {
            note_address(link, address);
        }
    }
    for route in &routes {
        note_route(&mut state, &names, route);
    }
    Ok(state)
}

fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn link_of(name: &str, message: &LinkMessage, names: &HashMap<u32, String>) -> Link {
    let mut link = Link {
        index: message.header.index,
        kind: Kind::Other,
        mark: None,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        master: None,
        device: None,
        addresses: BTreeMap::new(),
        routes: BTreeMap::new(),
        accept_ra: accept_ra(name),
        managed: false,
        shown: Vec::new(),
    };
    let (mut kind, mut current, mut parent) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.mark = alias.strip_prefix(MARK).map(str::to_owned),
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::Link(index) => parent = names.get(index).cloned(),
            LinkAttribute::Address(mac) => current = mac.as_slice().try_into().ok(),
            // A bond gives its members the address of the first.
            LinkAttribute::PermAddress(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            LinkAttribute::AfSpecUnspec(families) => link.managed = families.iter().any(is_managed),
            _ => {}
        }
    }
    link.mac = link.mac.or(current);
    link.kind = match kind {
        Some(InfoKind::Bond) => Kind::Bond,
        Some(InfoKind::Vlan) => Kind::Vlan,
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(_) => Kind::Other,
        None if is_card(name) => Kind::Card,
        None => Kind::Other,
    };
    if link.kind == Kind::Vlan {
        link.device = parent;
    }
    link
}

fn is_managed(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet6(all) = family else { return false };
    all.iter()
        .any(|one| matches!(one, AfSpecInet6::Flags(flags) if flags.contains(Inet6IfaceFlags::RaManaged)))
}

/// Interfaces with a device behind them, of type Ethernet: neither loopback nor what containers made.
fn is_card(name: &str) -> bool {
    let folder = Path::new("/sys/class/net").join(name);
    folder.join("device").exists()
        && fs::read_to_string(folder.join("type")).is_ok_and(|kind| kind.trim() == "1")
}

fn setting(name: &str, key: &str) -> std::path::PathBuf {
    Path::new("/proc/sys/net/ipv6/conf").join(name).join(key)
}

fn accept_ra(name: &str) -> Option<(u32, u32)> {
    let read = |key| fs::read_to_string(setting(name, key)).ok()?.trim().parse().ok();
    Some((read("accept_ra")?, read("ra_defrtr_metric")?))
}

fn note_address(link: &mut Link, message: &AddressMessage) {
    let (mut address, mut local, mut from) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // Where there are both, the other is the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Protocol(AddressProtocol::RouterAnnouncement) => from = Some(Origin::Router),
            AddressAttribute::Protocol(AddressProtocol::Other(number)) => from = origin(*number),
            _ => {}
        }
    }
    let Some(address) = local.or(address) else { return };
    let cidr = Cidr { address, prefix: message.header.prefix_len };
    if let Some(from) = from {
        link.addresses.insert(cidr, from);
    }
    if matches!(message.header.scope, AddressScope::Universe | AddressScope::Site) {
        link.shown.push(cidr.to_string());
    }
}

fn note_route(state: &mut State, names: &HashMap<u32, String>, message: &RouteMessage) {
    let header = &message.header;
    let from = match header.protocol {
        RouteProtocol::Other(number) => origin(number),
        RouteProtocol::Ra => Some(Origin::Router),
        _ => None,
    };
    let (Some(from), RouteHeader::RT_TABLE_MAIN) = (from, header.table) else { return };
    let everything: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut route = Route {
        to: Cidr { address: everything, prefix: header.destination_prefix_length },
        via: None,
        from: None,
        metric: 0,
    };
    let mut name = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.to.address = ip(to).unwrap_or(everything),
            RouteAttribute::Gateway(via) => route.via = ip(via),
            RouteAttribute::PrefSource(from) => route.from = ip(from),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => name = names.get(index),
            _ => {}
        }
    }
    if let Some(link) = name.and_then(|name| state.get_mut(name)) {
        link.routes.insert(route, from);
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Does one step for the interface of this name.
pub(super) async fn take(handle: &Handle, name: &str, step: &Step) -> Result<(), String> {
    let what = match step {
        Step::Delete => "cannot be removed".to_owned(),
        Step::Create(_) => "cannot be made".to_owned(),
        Step::Mark(_) | Step::Unmark => "cannot be marked as the node's".to_owned(),
        Step::Down => "cannot be taken down".to_owned(),
        Step::Up => "cannot be brought up".to_owned(),
        Step::Leave => "cannot leave its bond or bridge".to_owned(),
        Step::Join(master) => format!("cannot become a member of {master}"),
        Step::Mtu(mtu) => format!("does not take the MTU {mtu}"),
        Step::AcceptRa(_) => "cannot be told what to do with router advertisements".to_owned(),
        Step::RemoveAddress(cidr) => format!("cannot lose the address {cidr}"),
        Step::AddAddress(cidr, _) => format!("cannot have the address {cidr}"),
        Step::RemoveRoute(route, _) => format!("cannot lose the route to {route}"),
        Step::AddRoute(route, ..) => format!("cannot have the route to {route}"),
    };
    try_to(handle, name, step).await.map_err(|reason| format!("{what}: {reason}"))
}

async fn try_to(handle: &Handle, name: &str, step: &Step) -> Result<(), String> {
    let change = || index(name).map(LinkUnspec::new_with_index);
    let change = match step {
        Step::Create(made) => return create(handle, name, made).await,
        Step::Delete => {
            return handle.link().del(index(name)?).execute().await.map_err(|error| words(&error));
        }
        Step::AcceptRa(metric) => return set_accept_ra(name, *metric).map_err(|error| error.to_string()),
        Step::AddAddress(cidr, origin) => {
            let mut request = handle.address().add(index(name)?, cidr.address, cidr.prefix).replace();
            let protocol = AddressProtocol::Other(number(*origin));
            request.message_mut().attributes.push(AddressAttribute::Protocol(protocol));
            return request.execute().await.map_err(|error| words(&error));
        }
        Step::RemoveAddress(cidr) => {
            let request = handle.address().del(address_message(index(name)?, *cidr));
            return unless_gone(request.execute().await);
        }
        Step::AddRoute(route, origin, taken_to_be_there) => {
            let message = route_message(index(name)?, route, *origin, *taken_to_be_there);
            return add_route(handle, &message, route).await;
        }
        Step::RemoveRoute(route, origin) => {
            let request = handle.route().del(route_message(index(name)?, route, *origin, false));
            return unless_gone(request.execute().await);
        }
        Step::Mark(mark) => change()?.alias(format!("{MARK}{mark}")),
        Step::Unmark => change()?.alias(""),
        Step::Down => change()?.down(),
        Step::Up => change()?.up(),
        Step::Leave => change()?.nocontroller(),
        Step::Join(master) => change()?.controller(index(master)?),
        Step::Mtu(mtu) => change()?.mtu(*mtu),
    };
    handle.link().set(change.build()).execute().await.map_err(|error| words(&error))
}

/// Fresh, as steps before this one may have made it.
fn index(name: &str) -> Result<u32, String> {
    nix::net::if_::if_nametoindex(name).map_err(|error| error.desc().to_owned())
}

/// With one address or route the kernel may have taken others away.
fn unless_gone(result: Result<(), rtnetlink::Error>) -> Result<(), String> {
    let Err(error) = result else { return Ok(()) };
    let gone = [nix::libc::EADDRNOTAVAIL, nix::libc::ESRCH];
    match &error {
        rtnetlink::Error::NetlinkError(message) if gone.contains(&message.raw_code().abs()) => Ok(()),
        error => Err(words(error)),
    }
}

async fn create(handle: &Handle, name: &str, made: &Made) -> Result<(), String> {
    let message = match made {
        Made::Bond { mode, min_links, monitoring, lacp_rate, xmit_hash_policy } => {
            let mut bond = LinkBond::new(name).mode(bond_mode(*mode));
            if let Some(least) = min_links {
                bond = bond.min_links(least.get());
            }
            if let Some(rate) = lacp_rate {
                bond = bond.ad_lacp_rate(match rate {
                    LacpRate::Slow => BondLacpRate::Slow,
                    LacpRate::Fast => BondLacpRate::Fast,
                });
            }
            if let Some(policy) = xmit_hash_policy {
                bond = bond.xmit_hash_policy(hash_policy(*policy));
            }
            monitored(bond, monitoring.as_ref()).build()
        }
        Made::Vlan { device, id } => LinkVlan::new(name, index(device)?, *id).build(),
        Made::Bridge { stp } => {
            let stp = if *stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
            LinkMessageBuilder::<LinkBridge>::new(name).stp_state(stp).build()
        }
    };
    handle.link().add(message).execute().await.map_err(|error| words(&error))
}

fn monitored(
    bond: LinkMessageBuilder<LinkBond>,
    monitoring: Option<&Monitoring>,
) -> LinkMessageBuilder<LinkBond> {
    let by_link = Monitoring::default();
    let monitoring = monitoring.unwrap_or(&by_link);
    if let Some(interval) = monitoring.arpmon_interval_ms {
        let targets = monitoring.arpmon_targets.iter().flatten().map(|target| target.get()).collect();
        let bond = bond.arp_interval(interval.get()).arp_ip_target(targets);
        return match monitoring.arpmon_validate {
            None => bond,
            Some(validate) => bond.arp_validate(match validate {
                ArpValidate::None => BondArpValidate::None,
                ArpValidate::Active => BondArpValidate::Active,
                ArpValidate::Backup => BondArpValidate::Backup,
                ArpValidate::All => BondArpValidate::All,
            }),
        };
    }
    let mut bond = bond.miimon(monitoring.miimon_frequency_ms.map_or(MIIMON_MS, |time| time.get()));
    if let Some(delay) = monitoring.miimon_updelay_ms {
        bond = bond.updelay(delay.get());
    }
    if let Some(delay) = monitoring.miimon_downdelay_ms {
        bond = bond.downdelay(delay.get());
    }
    bond
}

fn bond_mode(mode: settings::BondMode) -> BondMode {
    match mode {
        settings::BondMode::BalanceRr => BondMode::BalanceRr,
        settings::BondMode::ActiveBackup => BondMode::ActiveBackup,
        settings::BondMode::BalanceXor => BondMode::BalanceXor,
        settings::BondMode::Broadcast => BondMode::Broadcast,
        settings::BondMode::Ieee8023ad => BondMode::Ieee8023Ad,
        settings::BondMode::BalanceTlb => BondMode::BalanceTlb,
        settings::BondMode::BalanceAlb => BondMode::BalanceAlb,
    }
}

fn hash_policy(policy: XmitHashPolicy) -> BondXmitHashPolicy {
    match policy {
        XmitHashPolicy::Layer2 => BondXmitHashPolicy::Layer2,
        XmitHashPolicy::Layer23 => BondXmitHashPolicy::Layer23,
        XmitHashPolicy::Layer34 => BondXmitHashPolicy::Layer34,
        XmitHashPolicy::Encap23 => BondXmitHashPolicy::Encap23,
        XmitHashPolicy::Encap34 => BondXmitHashPolicy::Encap34,
        XmitHashPolicy::VlanSrcmac => BondXmitHashPolicy::VlanSrcMac,
    }
}

/// 2 is to take them also from a kernel that forwards, as it does for containers.
fn set_accept_ra(name: &str, metric: Option<u32>) -> std::io::Result<()> {
    if !setting(name, "accept_ra").exists() {
        return Ok(());
    }
    if let Some(metric) = metric {
        fs::write(setting(name, "ra_defrtr_metric"), metric.to_string())?;
    }
    fs::write(setting(name, "accept_ra"), if metric.is_some() { "2" } else { "0" })?;
    let is_up = fs::read_to_string(Path::new("/sys/class/net").join(name).join("flags")).is_ok_and(|flags| {
        u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).is_ok_and(|flags| flags & 1 == 1)
    });
    if metric.is_some() && is_up {
        fs::write(setting(name, "disable_ipv6"), "1")?;
        fs::write(setting(name, "disable_ipv6"), "0")?;
    }
    Ok(())
}

fn address_message(index: u32, cidr: Cidr) -> AddressMessage {
    match cidr.address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, cidr.prefix).build()
        }
        IpAddr::V6(address) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(address, cidr.prefix).build()
        }
    }
}

fn route_message(index: u32, route: &Route, origin: Origin, taken_to_be_there: bool) -> RouteMessage {
    let protocol = match origin {
        Origin::Router => RouteProtocol::Ra,
        origin => RouteProtocol::Other(number(origin)),
    };
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .protocol(protocol)
        .output_interface(index)
        .priority(route.metric);
    // The kernel takes only an address without bits after the prefix.
    let to = RouteAttribute::Destination(route.to.address.into());
    let six = route.to.address.is_ipv6();
    let header = message.get_mut();
    header.header.address_family = if six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.header.destination_prefix_length = route.to.prefix;
    header.attributes.push(to);
    if let Some(from) = route.from {
        header.attributes.push(RouteAttribute::PrefSource(from.into()));
    }
    match route.via {
        Some(via) => header.attributes.push(RouteAttribute::Gateway(via.into())),
        None if !six => header.header.scope = RouteScope::Link,
        None => {}
    }
    let message = if taken_to_be_there { message.onlink() } else { message };
    message.build()
}

async fn add_route(handle: &Handle, message: &RouteMessage, route: &Route) -> Result<(), String> {
    let mut tries = if route.from.is_some_and(|from| from.is_ipv6()) { SENDER_TRIES } else { 1 };
    loop {
        let added = handle.route().add(message.clone()).replace().execute().await;
        tries -= 1;
        match added {
            Err(_) if tries > 0 => sleep(SENDER_PAUSE).await,
            added => return added.map_err(|error| words(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_found_after_the_header() {
        let attribute = |kind: u16, text: &[u8]| {
            let length = u16::try_from(text.len() + 4).unwrap();
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(text);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let message = [vec![0; 16], attribute(2, &[1, 2, 3, 4]), attribute(1, b"Invalid MTU\0")].concat();
        assert_eq!(said(&message).as_deref(), Some("Invalid MTU"));
        for hostile in [&message[..10], &message[..16], &message[..20], &[0; 40], &[0xff; 40], &message[..28]]
        {
            assert_eq!(said(hostile), None);
        }
    }
}
