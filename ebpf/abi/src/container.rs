//! Packets of containers: which are taken off their bridge, and what answers need to find back.

use crate::{Action, Rule};

/// Who sent a packet over a bridge, as answers need it: they go out of the same device, between the same two network
/// cards. No address is looked up for them, so nothing that the host routes or resolves is in their way.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Station {
    /// Interface index of the bridge.
    pub device: u32,
    /// Destination and source of the answers' Ethernet header.
    pub cards: [u8; 12],
}

impl Station {
    /// The sender of a packet that arrived on the bridge `device` with these destination and source.
    #[inline(always)]
    #[must_use]
    pub const fn of(device: u32, cards: [u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = cards;
        Self { device, cards: [g, h, i, j, k, l, a, b, c, d, e, f] }
    }

    /// Whether both are the same. Compared as arrays they would be in a loop, which in the kernel needs CAP_PERFMON.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d, e, f, g, h, i, j, k, l], o) = (self.cards, other.cards);
        let first = a == o[0] && b == o[1] && c == o[2] && d == o[3] && e == o[4] && f == o[5];
        let second = g == o[6] && h == o[7] && i == o[8] && j == o[9] && k == o[10] && l == o[11];
        self.device == other.device && first && second
    }
}

/// Whether packets of containers into a subnet with this rule go through the tunnel: as new connections of the host do.
#[inline(always)]
#[must_use]
pub fn takes(rule: Option<Rule>) -> bool {
    rule.is_some_and(|rule| rule.is(Action::Steer) || rule.is(Action::Virtual))
}

/// Whether a source is one that answers can be sent to: unicast, and not of this link or host alone.
#[inline(always)]
#[must_use]
pub const fn may_send4(source: [u8; 4]) -> bool {
    !matches!(source, [0 | 127 | 224.., ..] | [169, 254, ..])
}

/// The same for IPv6. tpx's own addresses are nobody's behind a bridge: among those of IPv4 they are excluded as multicast
/// ones are.
#[inline(always)]
#[must_use]
pub const fn may_send6(source: &[u8; 16]) -> bool {
    // The unspecified and the loopback address begin as addresses that nobody has.
    !matches!(
        source,
        [0, 0, ..] | [0xff, ..] | [0xfe, 0x80..0xc0, ..] | [0xfd, 0x74, 0x70, 0x78, 0x6e, 0x65, 0x74, _, ..]
    )
}

/// Where the ports of an IPv4 packet are, if it is a whole packet of TCP or UDP. Of fragments only the first would say.
#[inline(always)]
#[must_use]
pub fn ports4(header: &[u8; 20]) -> Option<u32> {
    let whole = header[6] & 0x3f == 0 && header[7] == 0;
    let length = (header[0] & 15) as u32 * 4;
    if whole && matches!(header[9], 6 | 17) { Some(length) } else { None }
}

/// The same for IPv6; packets with extension headers are none.
#[inline(always)]
#[must_use]
pub fn ports6(header: &[u8; 40]) -> Option<u32> {
    if matches!(header[6], 6 | 17) { Some(40) } else { None }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn may_send(ip: &str) -> bool {
        match ip.parse().unwrap() {
            IpAddr::V4(ip) => may_send4(ip.octets()),
            IpAddr::V6(ip) => may_send6(&ip.octets()),
        }
    }

    #[test]
    fn layout_has_no_padding() {
        assert_eq!((size_of::<Station>(), core::mem::offset_of!(Station, cards)), (16, 4));
    }

    #[test]
    fn answers_go_the_other_way() {
        let station = Station::of(7, [1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4]);
        assert_eq!(station, Station { device: 7, cards: [3, 3, 3, 3, 3, 4, 1, 1, 1, 1, 1, 2] });
    }

    #[test]
    fn every_byte_counts() {
        let one = Station { device: 7, cards: [9; 12] };
        assert!(one.is(&one) && !one.is(&Station { device: 8, ..one }));
        for at in 0..12 {
            let mut other = one;
            other.cards[at] = 8;
            assert!(!one.is(&other));
        }
    }

    #[test]
    fn what_the_host_steers_is_taken() {
        let takes = |action| takes(Some(Rule::new(action)));
        assert!(takes(Action::Steer) && takes(Action::Virtual));
        assert!(!takes(Action::Except) && !takes(Action::Hidden) && !super::takes(None));
    }

    #[test]
    fn senders_have_addresses() {
        for good in ["172.17.0.2", "10.88.0.5", "192.0.2.1", "fd00::2", "2001:db8::1", "169.253.1.1", "fec0::1"] {
            assert!(may_send(good), "{good}");
        }
        for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.251", "255.255.255.255", "169.254.1.1", "::", "::1", "fe80::1"] {
            assert!(!may_send(bad), "{bad}");
        }
        assert!(!may_send("ff02::1") && !may_send("febf::1"));
        for own in [crate::slot::OWN6.0, crate::BLOCK6.0, crate::slot::Slot::FIRST.ipv6()] {
            assert!(!may_send6(&own.octets()), "{own}");
        }
        for own in [crate::slot::OWN4.0, crate::BLOCK4.0, crate::slot::Slot::FIRST.ipv4()] {
            assert!(!may_send4(own.octets()), "{own}");
        }
    }

    #[test]
    fn ports_of_whole_packets_only() {
        let four = |flags: [u8; 2], protocol| {
            let mut header = [0; 20];
            (header[0], header[6], header[7], header[9]) = (0x46, flags[0], flags[1], protocol);
            ports4(&header)
        };
        // "Don't fragment" is no fragment (RFC 791, 3.1).
        assert_eq!([four([0, 0], 17), four([0x40, 0], 6)], [Some(24); 2]);
        assert_eq!([four([0x20, 0], 17), four([0, 9], 17), four([0x1f, 0], 17), four([0, 0], 1)], [None; 4]);
        let six = |next| {
            let mut header = [0; 40];
            header[6] = next;
            ports6(&header)
        };
        assert_eq!([six(6), six(17), six(44), six(0)], [Some(40), Some(40), None, None]);
    }
}
