//! The steering decisions, apart from the look-ups that feed them.

use crate::Rule;

/// Where name servers answer (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// To tpx's own DNS address instead of the name server.
    Name,
    /// Through the tunnel.
    Steer,
    /// Where the host's routes lead.
    Leave,
}

/// Decides for a destination: `name` says whether it is a configured name server, `rule` is the most specific rule.
///
/// Name servers come first, so that one inside a steered or excepted subnet is answered by tpx on its DNS port and
/// follows the rule on all others. Only streams are steered.
#[inline(always)]
#[must_use]
pub fn decide(stream: bool, port: u16, name: bool, rule: Option<Rule>) -> Road {
    if name && port == DNS_PORT {
        return Road::Name;
    }
    match rule {
        Some(rule) if stream && rule.steers() => Road::Steer,
        _ => Road::Leave,
    }
}

/// Whether an IPv6 address stands for an IPv4 one (RFC 4291, 2.5.5.2).
#[inline(always)]
#[must_use]
pub fn is_v4_mapped(ip: &[u8; 16]) -> bool {
    matches!(ip, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..])
}

/// The IPv4 address inside an IPv4-mapped one.
#[inline(always)]
#[must_use]
pub fn v4_in(ip: &[u8; 16]) -> Option<[u8; 4]> {
    if is_v4_mapped(ip) { Some([ip[12], ip[13], ip[14], ip[15]]) } else { None }
}

/// An IPv4 address as an IPv4-mapped one.
#[inline(always)]
#[must_use]
pub const fn v4_mapped(ip: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ip[0], ip[1], ip[2], ip[3]]
}

/// Whether the flags of a TCP header (its byte 13) ask for a connection: SYN without ACK (RFC 9293, 3.1).
#[inline(always)]
#[must_use]
pub const fn is_connection_request(flags: u8) -> bool {
    flags & 0x12 == 0x02
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::Action;

    #[test]
    fn names_first_then_rules_for_streams() {
        let (steer, except) = (Some(Rule::new(Action::Steer)), Some(Rule::new(Action::Except)));
        assert_eq!(decide(true, 80, false, None), Road::Leave);
        assert_eq!(decide(true, 80, false, steer), Road::Steer);
        assert_eq!(decide(true, 80, false, except), Road::Leave);
        assert_eq!(decide(false, 80, false, steer), Road::Leave);
        assert_eq!(decide(true, 53, true, steer), Road::Name);
        assert_eq!(decide(false, 53, true, except), Road::Name);
        assert_eq!(decide(true, 853, true, steer), Road::Steer);
        assert_eq!(decide(true, 53, false, steer), Road::Steer);
    }

    #[test]
    fn flags() {
        assert!(is_connection_request(0x02));
        assert!(is_connection_request(0xc2)); // with ECN (RFC 3168)
        assert!(!is_connection_request(0x12));
        assert!(!is_connection_request(0x10));
        assert!(!is_connection_request(0x04));
    }

    proptest! {
        #[test]
        fn mapped_agrees_with_core(ip: [u8; 16], v4: [u8; 4]) {
            prop_assert_eq!(v4_in(&ip).map(Ipv4Addr::from), Ipv6Addr::from(ip).to_ipv4_mapped());
            prop_assert_eq!(v4_mapped(v4), Ipv4Addr::from(v4).to_ipv6_mapped().octets());
            prop_assert_eq!(v4_in(&v4_mapped(v4)), Some(v4));
        }
    }
}
