//! Several datapaths can exist on one host (two process trees in two clusters). Each has a slot, and everything that
//! has a name or a number on the host follows from it.

use core::net::{Ipv4Addr, Ipv6Addr};

/// Which datapath of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Slot(u32);

impl Slot {
    /// How many can exist.
    pub const COUNT: u32 = 8;
    /// The datapath of the whole workstation; process trees have the others.
    pub const FIRST: Self = Self(0);

    /// `None` from [`Slot::COUNT`] on.
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index)) } else { None }
    }

    /// The slot that a program was loaded for. A wrong number becomes some slot; the loader writes no wrong ones.
    #[inline(always)]
    #[must_use]
    pub const fn masked(index: u32) -> Self {
        Self(index % Self::COUNT)
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Its number, from 0.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// Name of the TUN device.
    #[must_use]
    pub const fn device(self) -> &'static str {
        ["tpx0", "tpx1", "tpx2", "tpx3", "tpx4", "tpx5", "tpx6", "tpx7"][self.0 as usize]
    }

    /// Routing table that holds the steered subnets.
    #[must_use]
    pub const fn table(self) -> u32 {
        7071 + self.0
    }

    /// Routing table of the floor: what is routed to the device whoever sends it.
    #[must_use]
    pub const fn floor_table(self) -> u32 {
        7171 + self.0
    }

    /// Routing table for packets from the device's own address: subnets that are hidden behind virtual addresses now,
    /// for connections that were open before.
    #[must_use]
    pub const fn lingering_table(self) -> u32 {
        7271 + self.0
    }

    /// Routing table that makes name servers local, without the express lane.
    #[must_use]
    pub const fn names_table(self) -> u32 {
        7371 + self.0
    }

    /// Preference of the policy rule that leads marked packets to the table. Before those of VPNs (Tailscale begins at
    /// 5210, wg-quick sits close to 32766) and behind the kernel's own local table at 0.
    #[must_use]
    pub const fn preference(self) -> u32 {
        90 + self.0
    }

    /// Preference of the rule for packets from the device's own address. Behind those of marks, before all others.
    #[must_use]
    pub const fn lingering_preference(self) -> u32 {
        90 + Self::COUNT + self.0
    }

    /// Preference of the rule that leads packets of a process tree to the floor's table.
    #[must_use]
    pub const fn member_preference(self) -> u32 {
        90 + 2 * Self::COUNT + self.0
    }

    /// Preference of the rules that lead questions to name servers (protocol, address and port) to their table.
    #[must_use]
    pub const fn names_preference(self) -> u32 {
        90 + 3 * Self::COUNT + self.0
    }

    /// Preference of the floor's rule for the whole workstation, which matches all that no slot has marked.
    #[must_use]
    pub const fn floor_preference(self) -> u32 {
        90 + 4 * Self::COUNT + self.0
    }

    /// Whether a device is some slot's.
    #[must_use]
    pub fn owns_device(name: &str) -> bool {
        (0..Self::COUNT).filter_map(Self::new).any(|slot| slot.device() == name)
    }

    /// Whether a routing table is some slot's.
    #[must_use]
    pub const fn owns_table(table: u32) -> bool {
        let mut first = 7071;
        while first <= 7371 {
            if table >= first && table < first + Self::COUNT {
                return true;
            }
            first += 100;
        }
        false
    }

    /// The device's own IPv4 address; steered connections get it as their source.
    #[must_use]
    pub const fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(246, 246, 255, 1 + self.0 as u8)
    }

    /// The device's own IPv6 address.
    #[must_use]
    pub const fn ipv6(self) -> Ipv6Addr {
        own6(1 + self.0 as u16)
    }

    /// The slot whose device has this IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn of4(ip: [u8; 4]) -> Option<Self> {
        let [246, 246, 255, last] = ip else { return None };
        Self::new((last as u32).wrapping_sub(1))
    }

    /// The slot whose device has this IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn of6(ip: [u8; 16]) -> Option<Self> {
        let [0xfd, 0x74, 0x70, 0x78, 0x6e, 0x65, 0x74, 0, 0, 0, 0, 0, 0, 0, 0, last] = ip else { return None };
        Self::new((last as u32).wrapping_sub(1))
    }

    /// The IPv4 address that stands for the `nth` name server (from 0). `None` past [`NAMES`].
    #[must_use]
    pub const fn dns4(self, nth: usize) -> Option<Ipv4Addr> {
        if nth < NAMES { Some(Ipv4Addr::new(246, 246, 255, (53 + self.0 as usize * NAMES + nth) as u8)) } else { None }
    }

    /// The IPv4 address that systemd-resolved asks. No address of the host: it is routed to the device, as a resolver
    /// that binds its questions to the device needs it.
    #[must_use]
    pub const fn resolver4(self) -> Ipv4Addr {
        Ipv4Addr::new(246, 246, 255, 200 + self.0 as u8)
    }

    /// The same for IPv6.
    #[must_use]
    pub const fn resolver6(self) -> Ipv6Addr {
        own6(0x5200 + self.0 as u16)
    }

    /// The IPv6 address that stands for the `nth` name server (from 0). `None` past [`NAMES`].
    #[must_use]
    pub const fn dns6(self, nth: usize) -> Option<Ipv6Addr> {
        if nth < NAMES { Some(own6((0x5300 + self.0 as usize * NAMES + nth) as u16)) } else { None }
    }
}

/// Ports of tpx's own DNS addresses: the first that is free. Not 53: a name server of the laptop's own that listens on all
/// addresses would have it, and binding it needs a capability more. More than one, since anybody may listen on all addresses.
/// The programs exchange the port together with the address.
pub const DNS_PORTS: [u16; 4] = [7053, 17_053, 27_053, 37_053];
/// Name servers that one slot can stand in for.
pub const NAMES: usize = 8;
/// First address and prefix length of the IPv4 block that all own addresses come from: the top of the virtual subnet.
pub const OWN4: (Ipv4Addr, u8) = (Ipv4Addr::new(246, 246, 255, 0), 24);
/// First address and prefix length of the IPv6 block that all own addresses come from (RFC 4193).
pub const OWN6: (Ipv6Addr, u8) = (own6(0), 64);

const fn own6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd74, 0x7078, 0x6e65, 0x7400, 0, 0, 0, last)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_slots_share_anything() {
        let names: BTreeSet<_> = Slot::all().map(Slot::device).collect();
        assert_eq!(names.len(), Slot::COUNT as usize);
        let tables: BTreeSet<_> =
            Slot::all().flat_map(|s| [s.table(), s.floor_table(), s.lingering_table(), s.names_table()]).collect();
        let rules: BTreeSet<_> = Slot::all()
            .flat_map(|s| [s.preference(), s.lingering_preference(), s.names_preference(), s.floor_preference()])
            .chain(Slot::all().map(Slot::member_preference))
            .collect();
        assert_eq!([tables.len(), rules.len()], [4, 5].map(|kinds| kinds * Slot::COUNT as usize));
        assert!(tables.iter().all(|t| Slot::owns_table(*t)));
        assert!([0, 252, 253, 254, 255, 7070, 7079, 7379, 51820].iter().all(|t| !Slot::owns_table(*t)));
        // Before the first rule of a VPN, and the specific ones before the floor's.
        assert!(rules.iter().all(|r| (90..5210).contains(r)));
        assert!(Slot::all().all(|s| s.preference() < s.lingering_preference()));
        assert!(Slot::all().all(|s| Slot::all().all(|t| s.names_preference() < t.floor_preference())));
        // What a process tree sends is led away before what is meant for everybody.
        assert!(Slot::all().all(|s| Slot::all().all(|t| s.member_preference() < t.names_preference())));
        assert!(Slot::all().all(|s| Slot::all().all(|t| s.lingering_preference() < t.floor_preference())));
    }

    #[test]
    fn own_addresses_are_distinct_and_inside_their_block() {
        let v4: std::vec::Vec<_> = Slot::all()
            .flat_map(|s| (0..NAMES).map(move |n| s.dns4(n).unwrap()).chain([s.ipv4(), s.resolver4()]))
            .collect();
        let v6: std::vec::Vec<_> = Slot::all()
            .flat_map(|s| (0..NAMES).map(move |n| s.dns6(n).unwrap()).chain([s.ipv6(), s.resolver6()]))
            .collect();
        assert!(v4.iter().all(|a| a.octets()[..3] == OWN4.0.octets()[..3]));
        assert!(v6.iter().all(|a| a.octets()[..8] == OWN6.0.octets()[..8]));
        assert_eq!(v4.iter().collect::<BTreeSet<_>>().len(), v4.len());
        assert_eq!(v6.iter().collect::<BTreeSet<_>>().len(), v6.len());
        for slot in Slot::all() {
            assert_eq!((Slot::of4(slot.ipv4().octets()), Slot::of6(slot.ipv6().octets())), (Some(slot), Some(slot)));
        }
        assert_eq!(v4.iter().filter(|a| Slot::of4(a.octets()).is_some()).count(), Slot::COUNT as usize);
        assert_eq!(v6.iter().filter(|a| Slot::of6(a.octets()).is_some()).count(), Slot::COUNT as usize);
        assert_eq!([Slot::of4([246, 246, 255, 0]), Slot::of4([10, 0, 0, 1]), Slot::of6([0; 16])], [None; 3]);
        assert_eq!(Slot::FIRST.dns4(NAMES), None);
        assert_eq!(Slot::FIRST.dns6(NAMES), None);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(Slot::new(Slot::COUNT), None);
        assert_eq!(Slot::new(3), Some(Slot::masked(3)));
    }
}
