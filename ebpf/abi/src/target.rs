//! Destinations of datagrams, and the addresses that stand for them.
//!
//! An unconnected socket speaks to many destinations, and a datagram that arrives at the daemon no longer says which one
//! it was meant for. So each destination gets an index, once and for the life of the datapath, and the datagram travels
//! to an address that carries the index. Nothing has to be remembered about the socket.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::slot::Slot;

/// Where a datagram goes. IPv4 addresses are IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2).
///
/// Words, because the programs would fill bytes in a loop, which needs CAP_PERFMON.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// What the application asked for, a cluster address or a virtual one: four words of it as they lie in memory.
    ip: [u32; 4],
    /// In host order; both sides are the same host.
    port: u32,
}

impl Target {
    /// For an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4(ip: [u8; 4], port: u16) -> Self {
        Self { ip: [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(ip)], port: port as u32 }
    }

    /// For an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn v6(ip: [u8; 16], port: u16) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip;
        let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
        let [a, b, c, d] = words;
        let ip = [u32::from_ne_bytes(a), u32::from_ne_bytes(b), u32::from_ne_bytes(c), u32::from_ne_bytes(d)];
        Self { ip, port: port as u32 }
    }

    /// Its address, if that is an IPv4 one.
    #[inline(always)]
    #[must_use]
    pub fn ip4(&self) -> Option<[u8; 4]> {
        let [a, b, c, d] = self.ip;
        let mapped = a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        if mapped { Some(d.to_ne_bytes()) } else { None }
    }

    /// Its address.
    #[inline(always)]
    #[must_use]
    pub const fn ip6(&self) -> [u8; 16] {
        let [a, b, c, d] = self.ip;
        let [a, b, c, d] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// Its port.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port as u16
    }

    /// Address and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.ip6()).to_canonical(), self.port())
    }
}

/// Bits of an index.
const BITS: u32 = 18;
/// Indices are smaller than this and not 0. Four times [`TARGETS_MAX`](crate::maps::TARGETS_MAX): a random one is free
/// at the first try three times out of four when the map is full.
pub const INDEX_END: u32 = 1 << BITS;

/// First address and prefix length of the IPv4 blocks of all slots.
pub const BLOCK4: (Ipv4Addr, u8) = (Ipv4Addr::new(246, 0, 0, 0), 11);
/// First address and prefix length of the IPv6 blocks of all slots (RFC 4193).
pub const BLOCK6: (Ipv6Addr, u8) = (six(0, 0), 60);

impl Slot {
    /// First address and prefix length of the block whose addresses stand for IPv4 destinations.
    #[must_use]
    pub const fn block4(self) -> (Ipv4Addr, u8) {
        (Ipv4Addr::from_bits(first4(self)), (32 - BITS) as u8)
    }

    /// First address and prefix length of the block whose addresses stand for IPv6 destinations.
    #[must_use]
    pub const fn block6(self) -> (Ipv6Addr, u8) {
        (six(self.index() as u16, 0), 64)
    }

    /// The IPv4 address that carries `index`.
    #[inline(always)]
    #[must_use]
    pub const fn encode4(self, index: u32) -> [u8; 4] {
        (first4(self) | (index & (INDEX_END - 1))).to_be_bytes()
    }

    /// The index in an IPv4 address of the slot's block.
    #[inline(always)]
    #[must_use]
    pub const fn decode4(self, ip: [u8; 4]) -> Option<u32> {
        let ip = u32::from_be_bytes(ip);
        if ip & !(INDEX_END - 1) == first4(self) { Some(ip & (INDEX_END - 1)) } else { None }
    }

    /// The IPv6 address that carries `index`.
    #[inline(always)]
    #[must_use]
    pub const fn encode6(self, index: u32) -> [u8; 16] {
        let i = index.to_be_bytes();
        [0xfd, 0x74, 0x70, 0x78, 0x6e, 0x65, 0x74, last6(self), 0, 0, 0, 0, i[0], i[1], i[2], i[3]]
    }

    /// The index in an IPv6 address of the slot's block.
    #[inline(always)]
    #[must_use]
    pub fn decode6(self, ip: &[u8; 16]) -> Option<u32> {
        match *ip {
            [0xfd, 0x74, 0x70, 0x78, 0x6e, 0x65, 0x74, last, 0, 0, 0, 0, a, b, c, d] if last == last6(self) => {
                Some(u32::from_be_bytes([a, b, c, d]))
            }
            _ => None,
        }
    }
}

#[inline(always)]
const fn first4(slot: Slot) -> u32 {
    BLOCK4.0.to_bits() | (slot.index() << BITS)
}

#[inline(always)]
const fn last6(slot: Slot) -> u8 {
    0xf0 | slot.index() as u8
}

const fn six(slot: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd74, 0x7078, 0x6e65, 0x74f0 | slot, 0, 0, 0, last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slot::{OWN4, OWN6};

    #[test]
    fn layout_has_no_padding() {
        assert_eq!((size_of::<Target>(), align_of::<Target>()), (20, 4));
    }

    #[test]
    fn targets_are_canonical() {
        let t = Target::v4([10, 96, 0, 10], 5300);
        assert_eq!(t.address(), "10.96.0.10:5300".parse().unwrap());
        assert_eq!(t, Target::v6(crate::v4_mapped([10, 96, 0, 10]), 5300));
        assert_eq!(Target::v6(Ipv6Addr::LOCALHOST.octets(), 1).address(), "[::1]:1".parse().unwrap());
    }

    #[test]
    fn blocks_lie_in_theirs_and_apart_from_the_own_addresses() {
        let inside = |ip: u32, (first, len): (Ipv4Addr, u8)| (ip ^ first.to_bits()) >> (32 - len) == 0;
        for slot in Slot::all() {
            assert!(inside(slot.block4().0.to_bits(), BLOCK4));
            assert_eq!(slot.block6().0.octets()[..7], BLOCK6.0.octets()[..7]);
            assert_eq!(slot.block6().0.octets()[7] & 0xf0, BLOCK6.0.octets()[7]);
        }
        assert!(!inside(OWN4.0.to_bits(), BLOCK4));
        assert_ne!(OWN6.0.octets()[7] & 0xf0, BLOCK6.0.octets()[7]);
    }

    proptest! {
        #[test]
        fn targets_keep_what_they_are_made_of(four: [u8; 4], six: [u8; 16], port: u16) {
            let (v4, v6) = (Target::v4(four, port), Target::v6(six, port));
            prop_assert_eq!((v4.ip4(), v4.port()), (Some(four), port));
            prop_assert_eq!((v6.ip6(), v6.port()), (six, port));
            prop_assert_eq!(v6.ip4(), crate::v4_in(&six));
        }

        #[test]
        fn an_address_carries_its_index_and_belongs_to_one_slot(i in 0..Slot::COUNT, index in 1..INDEX_END) {
            for slot in Slot::all() {
                let (four, six) = (slot.encode4(index), slot.encode6(index));
                let other = Slot::new(i).unwrap();
                let expected = (other == slot).then_some(index);
                prop_assert_eq!(other.decode4(four), expected);
                prop_assert_eq!(other.decode6(&six), expected);
            }
        }

        #[test]
        fn other_addresses_carry_none(ip: [u8; 4], six: [u8; 16]) {
            for slot in Slot::all() {
                if let Some(index) = slot.decode4(ip) {
                    prop_assert_eq!(slot.encode4(index), ip);
                }
                if let Some(index) = slot.decode6(&six) {
                    prop_assert_eq!(slot.encode6(index), six);
                }
            }
        }
    }
}
