//! What a DHCP server sends: the frame through mozim's parser, and the lease that comes out of it into what is done to an
//! interface.

use host_agent::network::{Lease, of_v4};
use mozim::{DhcpV4ClasslessRoute, DhcpV4Lease};
use std::net::{IpAddr, Ipv4Addr};

/// Bytes of a message before its options (RFC 2131, 2), and what they begin with.
const HEAD: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// The first byte says what the rest is: a frame, a message, or the address and the options of a message; or options of DHCPv6.
pub(crate) fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let frame = match kind % 4 {
        0 => rest.to_vec(),
        1 => frame(rest),
        2 => frame(&message(rest)),
        _ => {
            assert!(mozim_inside::options_v6(rest) <= rest.len() / 4);
            return;
        }
    };
    let Some(lease) = mozim_inside::lease_v4(&frame) else { return };
    match of_v4(&same(&lease)) {
        Ok(wanted) => can_be_done(&wanted),
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 200, "{reason}"),
    }
}

fn can_be_done(wanted: &Lease) {
    let IpAddr::V4(address) = wanted.address.address else { panic!("{:?}", wanted.address) };
    let of_one_machine = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_broadcast();
    assert!(of_one_machine, "{address}");
    assert!((1..=32).contains(&wanted.address.prefix), "{:?}", wanted.address);
    assert!(wanted.mtu.is_none_or(|mtu| mtu >= 576));
    assert!(wanted.routes.iter().all(|(to, _)| to.prefix <= 32), "{:?}", wanted.routes);
}

/// The same lease, of the type that the host agent has.
fn same(lease: &mozim_inside::DhcpV4Lease) -> DhcpV4Lease {
    let route = |route: &mozim_inside::DhcpV4ClasslessRoute| DhcpV4ClasslessRoute {
        destination: route.destination,
        prefix_length: route.prefix_length,
        router: route.router,
    };
    let mut same = DhcpV4Lease::default();
    same.siaddr = lease.siaddr;
    same.yiaddr = lease.yiaddr;
    same.t1_sec = lease.t1_sec;
    same.t2_sec = lease.t2_sec;
    same.lease_time_sec = lease.lease_time_sec;
    same.srv_id = lease.srv_id;
    same.subnet_mask = lease.subnet_mask;
    same.broadcast_addr = lease.broadcast_addr;
    same.dns_srvs.clone_from(&lease.dns_srvs);
    same.gateways.clone_from(&lease.gateways);
    same.ntp_srvs.clone_from(&lease.ntp_srvs);
    same.mtu = lease.mtu;
    same.host_name.clone_from(&lease.host_name);
    same.domain_name.clone_from(&lease.domain_name);
    same.domain_search.clone_from(&lease.domain_search);
    same.classless_routes = lease.classless_routes.as_ref().map(|routes| routes.iter().map(route).collect());
    same
}

/// An answer with an address and options.
fn message(rest: &[u8]) -> Vec<u8> {
    let (address, options) = rest.split_at(rest.len().min(4));
    let mut head = vec![0; HEAD];
    // BOOTREPLY, Ethernet, six bytes of address.
    head[..3].copy_from_slice(&[2, 1, 6]);
    head[16..16 + address.len()].copy_from_slice(address);
    [&head, COOKIE.as_slice(), options].concat()
}

/// Ethernet, IPv4 and UDP around a message.
fn frame(message: &[u8]) -> Vec<u8> {
    let bytes = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame.extend([0x45, 0]);
    frame.extend(bytes(message.len() + 28));
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(Ipv4Addr::new(10, 0, 2, 2).octets());
    frame.extend(Ipv4Addr::BROADCAST.octets());
    frame.extend([0, 67, 0, 68]);
    frame.extend(bytes(message.len() + 8));
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// Options as servers send them (RFC 2132).
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let option = |code: u8, data: &[u8]| [&[code, u8::try_from(data.len()).unwrap_or(0)], data].concat();
    let (server, mask) = ([10, 0, 2, 2], [255, 255, 255, 0]);
    let plain = [
        option(53, &[5]),
        option(54, &server),
        option(51, &3600u32.to_be_bytes()),
        option(1, &mask),
        option(3, &server),
        option(6, &[10, 0, 2, 3, 10, 0, 2, 4]),
    ]
    .concat();
    let more = [
        option(15, b"example.com"),
        option(119, b"\x03sub\x07example\x03com\0\x05other\xc0\x04"),
        option(12, b"node-1"),
        option(26, &1400u16.to_be_bytes()),
        option(42, &[10, 0, 2, 5]),
        option(28, &[10, 0, 2, 255]),
        option(58, &1800u32.to_be_bytes()),
        option(59, &3000u32.to_be_bytes()),
        // 10.1.0.0/16 and 0.0.0.0/0 (RFC 3442), and the same as Windows has it.
        option(121, &[16, 10, 1, 10, 0, 2, 9, 0, 10, 0, 2, 2]),
        option(249, &[16, 10, 1, 10, 0, 2, 9]),
        option(52, &[3]),
        option(51, &u32::MAX.to_be_bytes()),
    ];
    let answer = |options: &[u8]| [&[10, 0, 2, 15], plain.as_slice(), options, &[255]].concat();
    let mut answers: Vec<Vec<u8>> = more.iter().map(|option| answer(option)).collect();
    answers.push(answer(&[]));
    answers.push(answer(&more.concat()));
    let short = answers.iter().map(|answer| [&[2], answer.as_slice()].concat());
    let whole = answers.iter().take(2).map(|answer| [&[1], message(answer).as_slice()].concat());
    let frames = answers.iter().take(2).map(|answer| [&[0], frame(&message(answer)).as_slice()].concat());
    let v6 = [&[3], v6_options().as_slice()].concat();
    short.chain(whole).chain(frames).chain([v6]).collect()
}

/// An answer of DHCPv6 (RFC 8415, 21): who it is for and from, an address, a prefix, a status, DNS servers, domains, time servers.
fn v6_options() -> Vec<u8> {
    let option = |code: u16, data: &[u8]| {
        let length = u16::try_from(data.len()).unwrap_or(0);
        [&code.to_be_bytes(), &length.to_be_bytes(), data].concat()
    };
    let duid = [0, 3, 0, 1, 2, 0, 0, 0, 0, 1];
    let address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    let times = [0, 0, 0x0e, 0x10, 0, 0, 0x1c, 0x20];
    let status = option(13, b"\0\0fine");
    let one = option(5, &[&address[..], &times, &status].concat());
    let prefix = option(26, &[&times[..], &[56], &address].concat());
    [
        option(1, &duid),
        option(2, &duid),
        option(3, &[&[0, 0, 0, 1], &times[..], &one].concat()),
        option(25, &[&[0, 0, 0, 1], &times[..], &prefix].concat()),
        option(23, &address),
        option(24, b"\x07example\x03com\0"),
        option(56, &[option(1, &address), option(3, b"\x04time\x07example\0")].concat()),
        option(12, &address),
        option(14, &[]),
        status,
    ]
    .concat()
}
