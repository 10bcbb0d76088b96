//! One type for each kind of value of an interface.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::scalar::{checked_string, shown};

/// Linux: 16 bytes with the zero at the end (IFNAMSIZ).
const LONGEST_NAME: usize = 15;

/// What is no interface of a node, or has a meaning of its own where interfaces are named.
const RESERVED: [&str; 4] = ["lo", "all", "default", "bonding_masters"];

fn check_name(text: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if RESERVED.contains(&text) {
        return Err(format!("{text} is not an interface that can be set"));
    }
    if first && text.len() <= LONGEST_NAME && text.bytes().all(plain) {
        return Ok(());
    }
    Err(format!(
        "{} is not a name for an interface: 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-', not '.' or '-' first",
        shown(text)
    ))
}

checked_string!(
    /// Name of an interface: 1 to 15 letters, digits, `.`, `_` and `-`, not `.` or `-` first, and not `lo`.
    InterfaceName,
    check_name
);

checked_string!(
    /// Name of an interface, or the MAC address of a network card, such as `02:00:00:00:00:01`.
    InterfaceId,
    |text| {
        if !text.contains(':') {
            return check_name(text);
        }
        match mac(text) {
            Some(mac) if mac != [0; 6] && mac[0] & 1 == 0 => Ok(()),
            _ => Err(format!("{} is not the MAC address of a network card, such as 02:00:00:00:00:01", shown(text))),
        }
    }
);

impl InterfaceId {
    pub fn from_name(name: &InterfaceName) -> Self {
        Self(name.as_str().to_owned())
    }

    /// The address, if it is one.
    pub fn mac(&self) -> Option<[u8; 6]> {
        mac(self)
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| match part.len() {
            2 if part.bytes().all(|byte| byte.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        })
        .collect();
    bytes?.try_into().ok()
}

/// An address and the length of its network's prefix, in bits.
macro_rules! cidr {
    ($(#[$doc:meta])* $name:ident, $address:ty, $bits:literal, $example:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name {
            pub address: $address,
            pub prefix: u8,
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let wrong = || format!("{} is not {}", shown(&text), $example);
                let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
                let plain = prefix.len() <= 3 && prefix.bytes().all(|byte| byte.is_ascii_digit());
                let prefix = prefix.parse().ok().filter(|prefix| plain && *prefix <= $bits).ok_or_else(wrong)?;
                let address: $address = address.parse().map_err(|_| wrong())?;
                let check: fn($address, u8) -> bool = $check;
                if check(address, prefix) { Ok(Self { address, prefix }) } else { Err(wrong()) }
            }
        }

        impl From<$name> for String {
            fn from(cidr: $name) -> Self {
                format!("{}/{}", cidr.address, cidr.prefix)
            }
        }
    };
}

pub(crate) use cidr;

cidr!(
    /// An IPv4 address of the node with the length of its network's prefix.
    Cidr4,
    Ipv4Addr,
    32,
    "an IPv4 address of a node with its network, such as 10.0.0.5/24",
    |address, prefix| prefix > 0
        && !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_broadcast()
        && !address.is_loopback()
);

cidr!(
    /// An IPv6 address of the node with the length of its network's prefix.
    Cidr6,
    Ipv6Addr,
    128,
    "an IPv6 address of a node with its network, such as fd00::5/64",
    |address, prefix| prefix > 0
        && !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && address.to_ipv4_mapped().is_none()
);

checked_string!(
    /// Where a route leads: `default`, or a network such as `10.1.0.0/16` or `fd01::/48`.
    Destination,
    |text| {
        if text == "default" || network(text).is_some() {
            return Ok(());
        }
        Err(format!("{} is not where a route leads: default, or a network without bits after its prefix, such as 10.1.0.0/16 or fd01::/48", shown(text)))
    }
);

impl Destination {
    /// None for `default`.
    pub fn network(&self) -> Option<(IpAddr, u8)> {
        network(self)
    }
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let plain = prefix.len() <= 3 && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix: u32 = prefix.parse().ok().filter(|_| plain)?;
    let host_bits_are_zero = match address {
        IpAddr::V4(address) => prefix <= 32 && u32::from(address).checked_shl(prefix).unwrap_or(0) == 0,
        IpAddr::V6(address) => prefix <= 128 && u128::from(address).checked_shl(prefix).unwrap_or(0) == 0,
    };
    host_bits_are_zero.then_some((address, u8::try_from(prefix).ok()?))
}

/// Declares a whole number within bounds.
macro_rules! bounded_number {
    ($(#[$doc:meta])* $name:ident, $type:ty, $least:literal, $most:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "u64")]
        #[schemars(extend("minimum" = $least, "maximum" = $most))]
        pub struct $name($type);

        impl $name {
            pub fn get(self) -> $type {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = String;

            fn try_from(number: u64) -> Result<Self, String> {
                let fits = <$type>::try_from(number).ok().filter(|number| ($least..=$most).contains(number));
                fits.map(Self).ok_or_else(|| format!("{number} is not between {} and {}", $least, $most))
            }
        }
    };
}

bounded_number!(
    /// The largest packet in bytes, 576 to 65535; 1280 at least where there is IPv6.
    Mtu, u32, 576, 65535
);
bounded_number!(
    /// A number of a VLAN (IEEE 802.1Q), 0 to 4094.
    VlanId, u16, 0, 4094
);
bounded_number!(
    /// Of several routes to one place the one with the least is taken: 1 to 4294967295.
    RouteMetric, u32, 1, 4_294_967_295_u32
);
bounded_number!(
    /// A number of interfaces, 0 to 64.
    MinLinks, u32, 0, 64
);
bounded_number!(
    /// A time in milliseconds, 0 to 3600000.
    Milliseconds, u32, 0, 3600000
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_what_the_kernel_takes_and_a_path_can_hold() {
        for fine in ["eth0", "eno1.100", "br-lan", "a", "_x", "abcdefghijklmno", "0a"] {
            assert!(fine.parse::<InterfaceName>().is_ok(), "{fine}");
            assert!(fine.parse::<InterfaceId>().is_ok(), "{fine}");
        }
        for wrong in
            ["", "abcdefghijklmnop", ".", "..", ".a", "-a", "a/b", "a b", "a:b", "ö", "lo", "all", "a\n"]
        {
            assert!(wrong.parse::<InterfaceName>().is_err(), "{wrong}");
            assert!(wrong.parse::<InterfaceId>().is_err(), "{wrong}");
        }
        assert!("02:00:00:00:00:01".parse::<InterfaceName>().is_err());
        let card: InterfaceId = "02:00:00:00:00:aB".parse().unwrap();
        assert_eq!(card.mac(), Some([2, 0, 0, 0, 0, 0xab]));
        for wrong in [
            "02:00:00:00:00",
            "02:00:00:00:00:1",
            "02:00:00:00:00:+1",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(wrong.parse::<InterfaceId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_of_a_host_with_its_network() {
        for fine in ["10.0.0.5/24", "192.0.2.1/32", "10.0.0.0/31"] {
            assert!(Cidr4::try_from(fine.to_owned()).is_ok(), "{fine}");
        }
        for wrong in [
            "10.0.0.5",
            "10.0.0.5/33",
            "10.0.0.5/0",
            "0.0.0.0/8",
            "224.0.0.1/4",
            "127.0.0.1/8",
            "fd00::1/64",
            "10.0.0.5/+8",
            "10.0.0.5/",
        ] {
            assert!(Cidr4::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        for wrong in
            ["fd00::1", "fd00::1/129", "::1/128", "ff02::1/16", "::/64", "10.0.0.1/8", "::ffff:10.0.0.1/96"]
        {
            assert!(Cidr6::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert_eq!(String::from(Cidr6::try_from("FD00::0005/64".to_owned()).unwrap()), "fd00::5/64");
    }

    #[test]
    fn a_route_leads_to_a_network() {
        for fine in ["default", "10.1.0.0/16", "0.0.0.0/0", "::/0", "fd01::/48", "10.0.0.1/32", "fd00::1/128"]
        {
            assert!(fine.parse::<Destination>().is_ok(), "{fine}");
        }
        for wrong in
            ["", "Default", "10.1.0.1/16", "10.1.0.0", "fd01::1/48", "0.0.0.0/33", "::/129", "10.0.0.0/-1"]
        {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn text_never_panics_and_what_is_taken_comes_back(text in "[0-9a-f.:/]{0,24}") {
            if let Ok(cidr) = Cidr4::try_from(text.clone()) {
                prop_assert_eq!(Cidr4::try_from(String::from(cidr)), Ok(cidr));
            }
            if let Ok(cidr) = Cidr6::try_from(text.clone()) {
                prop_assert_eq!(Cidr6::try_from(String::from(cidr)), Ok(cidr));
            }
            let _ = text.parse::<Destination>();
            let _ = text.parse::<InterfaceId>();
        }
    }
}
