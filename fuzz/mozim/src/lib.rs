//! mozim keeps its parsers to itself, and a packet that makes one of them panic would end the host agent. So its sources are
//! compiled once more, with a door; without mozim's own tests, which need a network.

#![allow(warnings, clippy::all)]

#[cfg(not(test))]
include!(env!("MOZIM"));

/// A lease from a frame as the raw socket gives it, if there is one in it. Of what a client does with the answer of a server
/// nothing is left out: the messages that ask for the lease and for more of it are made too.
#[cfg(not(test))]
pub fn lease_v4(frame: &[u8]) -> Option<DhcpV4Lease> {
    let lease = dhcpv4::DhcpV4Message::parse_eth_packet(frame).ok()?.lease()?;
    let config = DhcpV4Config::new("eth0");
    let request = dhcpv4::DhcpV4Message::new_request(1, &config, &lease);
    request.to_eth_packet_broadcast().expect("a request that can be sent");
    let renewal = dhcpv4::DhcpV4Message::new_renew(1, &config, &lease);
    renewal.to_dhcp_packet().expect("a renewal that can be sent");
    Some(lease)
}

/// How many options a message of DHCPv6 has, behind its type and transaction. As mozim does, what cannot be read is passed over.
#[cfg(not(test))]
pub fn options_v6(options: &[u8]) -> usize {
    let mut buffer = Buffer::new(options);
    let mut read = 0;
    while !buffer.is_empty() {
        let left = buffer.remain_len();
        match DhcpV6Option::parse(&mut buffer) {
            Ok(option) => {
                // What a client sends back of it.
                option.emit(&mut BufferMut::new());
                read += 1;
            }
            Err(_) if buffer.remain_len() == left => break,
            Err(_) => {}
        }
    }
    read
}
