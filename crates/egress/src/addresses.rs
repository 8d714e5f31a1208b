//! Decides which addresses may be connected to: those that are public and not this host's, and those that the operator
//! adds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;

use crate::EgressError;

/// A range of addresses, given by its first address and the length of its prefix.
type Range4 = ([u8; 4], u8);
type Range6 = ([u16; 8], u8);

/// IPv4 ranges without public hosts. The default source is the IANA IPv4 Special-Purpose Address Registry,
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>: all ranges that are not globally reachable.
const REFUSED_4: [Range4; 17] = [
    ([0, 0, 0, 0], 8),          // this network, RFC 791
    ([10, 0, 0, 0], 8),         // private use, RFC 1918
    ([100, 64, 0, 0], 10),      // shared address space, RFC 6598
    ([127, 0, 0, 0], 8),        // loopback, RFC 1122
    ([168, 63, 129, 16], 32), // Azure's platform, reachable from its machines only: its documentation
    ([169, 254, 0, 0], 16),   // link local, RFC 3927; metadata of most clouds
    ([172, 16, 0, 0], 12),    // private use, RFC 1918
    ([192, 0, 0, 0], 24),     // IETF protocol assignments, RFC 6890
    ([192, 0, 2, 0], 24),     // documentation, RFC 5737
    ([192, 88, 99, 0], 24),   // 6to4 relay anycast, deprecated by RFC 7526
    ([192, 168, 0, 0], 16),   // private use, RFC 1918
    ([198, 18, 0, 0], 15),    // benchmarking, RFC 2544
    ([198, 51, 100, 0], 24),  // documentation, RFC 5737
    ([203, 0, 113, 0], 24),   // documentation, RFC 5737
    ([224, 0, 0, 0], 4),      // multicast, RFC 5771
    ([240, 0, 0, 0], 4),      // reserved, RFC 1112
    ([255, 255, 255, 255], 32), // limited broadcast, RFC 8190
];

/// The IPv6 range from which addresses are assigned to hosts: IANA IPv6 Global Unicast Address Assignments,
/// <https://www.iana.org/assignments/ipv6-unicast-address-assignments>. Loopback, unique local, link
/// local, multicast and the forms that hold an IPv4 address are outside.
const UNICAST: Range6 = ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Ranges within [`UNICAST`] that have no public hosts: IANA IPv6 Special-Purpose Address Registry,
/// <https://www.iana.org/assignments/iana-ipv6-special-registry>.
const REFUSED_6: [Range6; 4] = [
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // IETF protocol assignments, RFC 2928; Teredo, RFC 4380
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation, RFC 3849
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4, RFC 3056: leads to the IPv4 address that it holds
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation, RFC 9637
];

/// NAT64's well-known prefix, RFC 6052: the last 32 bits are the IPv4 address that it leads to.
const NAT64: Range6 = ([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// The rules on the addresses that may be connected to.
#[derive(Clone, Debug, Default)]
pub struct AddressRules {
    allowed: Vec<IpNet>,
}

impl AddressRules {
    /// Creates rules that admit public addresses of other hosts, and the addresses of these ranges. A single address is
    /// a range of one.
    ///
    /// # Errors
    /// Returns [`EgressError::Cidr`] for a text that is not a range.
    pub fn new(allowed: &[String]) -> Result<Self, EgressError> {
        let ranges = allowed.iter().map(|given| range(given));
        let allowed = ranges.collect::<Result<_, _>>()?;
        Ok(Self { allowed })
    }

    /// Returns whether an address may be connected to.
    #[must_use]
    pub fn admit(&self, address: IpAddr) -> bool {
        // An IPv4-mapped IPv6 address is the same address as the IPv4 one.
        let address = address.to_canonical();
        let is_allowed = self.allowed.iter().any(|range| range.contains(&address));
        is_allowed || is_public(address) && !is_own(address)
    }
}

fn range(given: &str) -> Result<IpNet, EgressError> {
    let range = given.parse::<IpNet>();
    range
        .or_else(|_| given.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| EgressError::Cidr {
            given: given.to_owned(),
        })
}

/// Returns whether an address is that of a host on the public Internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !REFUSED_4.iter().any(|range| within_4(range, address)),
        IpAddr::V6(address) if within_6(&NAT64, address) => {
            let [.., a, b, c, d] = address.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(address) => {
            within_6(&UNICAST, address) && !REFUSED_6.iter().any(|range| within_6(range, address))
        }
    }
}

/// Returns whether an address is one of this host's. A connection from this host to it passes every firewall in front
/// of the host, and reaches services that are meant for the neighbours only.
fn is_own(address: IpAddr) -> bool {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            log::error!(error:%; "addresses of this host cannot be listed");
            return true;
        }
    };
    let mut own = interfaces.filter_map(|interface| {
        let own = interface.address?;
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
        v4.or_else(|| own.as_sockaddr_in6().map(|own| IpAddr::V6(own.ip())))
    });
    own.any(|own| own == address)
}

fn within_4((first, prefix): &Range4, address: Ipv4Addr) -> bool {
    Ipv4Net::new((*first).into(), *prefix).is_ok_and(|range| range.contains(&address))
}

fn within_6((first, prefix): &Range6, address: Ipv6Addr) -> bool {
    Ipv6Net::new((*first).into(), *prefix).is_ok_and(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    #[test]
    fn every_special_range_is_refused_from_its_first_to_its_last_address() {
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("168.63.129.16", "168.63.129.16"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.88.99.0", "192.88.99.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
            ("224.0.0.0", "239.255.255.255"),
            ("240.0.0.0", "255.255.255.255"),
            ("::", "::1"),
            ("::ffff:10.0.0.0", "::ffff:10.255.255.255"),
            ("::127.0.0.1", "::127.255.255.255"),
            ("64:ff9b::10.0.0.1", "64:ff9b::192.168.255.255"),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
            ("100::", "100::ffff:ffff:ffff:ffff"),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert!(!public(first), "{first}");
            assert!(!public(last), "{last}");
        }
    }

    #[test]
    fn their_neighbours_are_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.114.0",
            "223.255.255.255",
            "8.8.8.8",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2003::1",
        ] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn what_the_operator_allows_is_allowed_in_each_of_its_forms() {
        let allowed = ["10.1.0.0/16", "fd00::/8", "127.0.0.1"].map(str::to_owned);
        let addresses = AddressRules::new(&allowed).unwrap();
        let admitted = |text: &str| addresses.admit(text.parse().unwrap());
        for address in [
            "10.1.2.3",
            "::ffff:10.1.2.3",
            "fd12::1",
            "127.0.0.1",
            "8.8.8.8",
        ] {
            assert!(admitted(address), "{address}");
        }
        for address in [
            "10.2.0.0",
            "fc00::1",
            "127.0.0.2",
            "::1",
            "64:ff9b::10.1.2.3",
        ] {
            assert!(!admitted(address), "{address}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_are_told_from_others() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut own = vec!["127.0.0.1".parse().unwrap()];
        // Sends no packet. The kernel chooses the address that the host would send from, if it has a route.
        if socket.connect("8.8.8.8:53").is_ok() {
            own.push(socket.local_addr().unwrap().ip());
        }
        for own in own {
            assert!(is_own(own), "{own}");
        }
        for other in ["127.0.0.2", "192.0.2.1", "8.8.8.8", "2001:db8::1"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn the_tables_hold_ranges() {
        for (first, prefix) in REFUSED_4 {
            let range = Ipv4Net::new(first.into(), prefix).unwrap();
            assert_eq!(range.network(), range.addr());
        }
        for (first, prefix) in REFUSED_6.into_iter().chain([UNICAST, NAT64]) {
            let range = Ipv6Net::new(first.into(), prefix).unwrap();
            assert_eq!(range.network(), range.addr());
        }
    }
}
