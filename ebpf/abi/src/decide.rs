//! The steering decisions, apart from the look-ups that feed them.

use crate::{Action, Rule};

/// Where name servers answer (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP or MPTCP.
    Stream,
    /// UDP.
    Datagram,
    /// Anything else: the floor's business.
    Other,
}

/// Where a connection or a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// To tpx's own DNS address instead of the name server.
    Name,
    /// A stream through the tunnel, to the address it asked for.
    Steer,
    /// A stream through the tunnel, to the address behind the virtual one.
    Translate,
    /// A datagram through the tunnel: to the address that stands for its destination.
    Encode,
    /// Where the host's routes lead.
    Leave,
}

impl Road {
    /// Whether it leads into the tunnel, which a policy may forbid.
    #[inline(always)]
    #[must_use]
    pub const fn enters(self) -> bool {
        matches!(self, Self::Steer | Self::Translate | Self::Encode)
    }
}

/// Decides for a destination: `name` says whether it is a configured name server, `rule` is the most specific rule.
///
/// Name servers come first, so that one inside a steered or excepted subnet is answered by tpx on its DNS port and
/// follows the rule on all others.
#[inline(always)]
#[must_use]
pub fn decide(kind: Kind, port: u16, name: bool, rule: Option<Rule>) -> Road {
    if name && port == DNS_PORT {
        return Road::Name;
    }
    let Some(rule) = rule else { return Road::Leave };
    match kind {
        Kind::Stream if rule.is(Action::Steer) => Road::Steer,
        Kind::Stream if rule.is(Action::Virtual) => Road::Translate,
        Kind::Datagram if rule.is(Action::Steer) || rule.is(Action::Virtual) => Road::Encode,
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

    const ACTIONS: [Action; 4] = [Action::Steer, Action::Except, Action::Virtual, Action::Hidden];

    #[test]
    fn each_kind_has_its_road() {
        let roads = |kind| ACTIONS.map(|action| decide(kind, 80, false, Some(Rule::new(action))));
        assert_eq!(roads(Kind::Stream), [Road::Steer, Road::Leave, Road::Translate, Road::Leave]);
        assert_eq!(roads(Kind::Datagram), [Road::Encode, Road::Leave, Road::Encode, Road::Leave]);
        assert_eq!(roads(Kind::Other), [Road::Leave; 4]);
        for kind in [Kind::Stream, Kind::Datagram, Kind::Other] {
            assert_eq!(decide(kind, 80, false, None), Road::Leave);
        }
    }

    #[test]
    fn names_come_first_on_their_port_only() {
        for action in ACTIONS {
            let rule = Some(Rule::new(action));
            for kind in [Kind::Stream, Kind::Datagram] {
                assert_eq!(decide(kind, 53, true, rule), Road::Name);
                assert_eq!(decide(kind, 853, true, rule), decide(kind, 853, false, rule));
            }
        }
        assert_eq!(decide(Kind::Datagram, 53, true, None), Road::Name);
        assert_eq!(decide(Kind::Datagram, 53, false, Some(Rule::new(Action::Steer))), Road::Encode);
    }

    /// What is left to the host's routes is never taken at the listener unless it was led there by a mark.
    #[test]
    fn what_is_steered_is_accepted() {
        for action in ACTIONS {
            let rule = Rule::new(action);
            if decide(Kind::Stream, 80, false, Some(rule)) != Road::Leave {
                assert!(rule.accepts());
            }
        }
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
