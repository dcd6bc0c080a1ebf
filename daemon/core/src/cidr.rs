//! Arithmetic on sets of subnets.
//!
//! Rules speak in prefixes of which the most specific wins; routing tables and the kernel's maps of virtual addresses
//! want plain sets. These functions go from one to the other, with as few prefixes as possible.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

/// The smallest set of prefixes that covers exactly the addresses for which the longest prefix of `steer` is longer than
/// the longest prefix of `except`. At equal length the exception wins. Sorted.
#[must_use]
pub fn subtract(steer: &[IpNet], except: &[IpNet]) -> Vec<IpNet> {
    let mut marks: BTreeMap<IpNet, bool> = steer.iter().map(|net| (net.trunc(), true)).collect();
    marks.extend(except.iter().map(|net| (net.trunc(), false)));
    let marks: Vec<(IpNet, bool)> = marks.into_iter().collect();
    let six = marks.partition_point(|(net, _)| matches!(net, IpNet::V4(_)));
    let mut covered = Vec::new();
    for (everything, marks) in [(EVERYTHING4, &marks[..six]), (EVERYTHING6, &marks[six..])] {
        if cover(everything, marks, false, &mut covered) {
            covered.push(everything);
        }
    }
    covered
}

/// The smallest set of prefixes that covers exactly the addresses that are in `of` and not in `without`, whatever the
/// lengths of their prefixes. Sorted.
#[must_use]
pub fn difference(of: &[IpNet], without: &[IpNet]) -> Vec<IpNet> {
    let left: Vec<IpNet> = of.iter().filter(|net| !without.iter().any(|w| w.contains(*net))).copied().collect();
    subtract(&left, without)
}

/// The entry with the longest of those prefixes that hold `ip`. The entries are sorted by their prefixes, `net`, and so many
/// that it matters: this is asked for every connection.
pub(crate) fn longest_match<T>(sorted: &[T], net: impl Fn(&T) -> IpNet, ip: IpAddr) -> Option<&T> {
    let mut within = IpNet::from(ip);
    loop {
        let before = sorted.get(..sorted.partition_point(|entry| net(entry) <= within))?;
        let nearest = before.last()?;
        if net(nearest).contains(&ip) {
            return Some(nearest);
        }
        // Whatever holds `ip` and stands before the nearest one holds the beginning of that one too.
        let common = common_bits(net(nearest).addr(), ip)?;
        within = IpNet::new(ip, common.min(within.prefix_len().checked_sub(1)?)).ok()?.trunc();
    }
}

/// How many bits two addresses begin with in common; `None` for addresses of two families.
fn common_bits(a: IpAddr, b: IpAddr) -> Option<u8> {
    let zeros = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return None,
    };
    u8::try_from(zeros).ok()
}

/// The two halves of a subnet; `None` for a single address.
fn halves(net: IpNet) -> Option<[IpNet; 2]> {
    let mut halves = net.subnets(net.prefix_len() + 1).ok()?;
    Some([halves.next()?, halves.next()?])
}

pub(crate) const EVERYTHING4: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
pub(crate) const EVERYTHING6: IpNet = IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));

/// Appends what is covered inside `net`, unless all of it is: then returns true and appends nothing, so that halves
/// become one prefix again. `marks` are those inside `net`, sorted; `inherited` is what holds where none of them does.
fn cover(net: IpNet, marks: &[(IpNet, bool)], inherited: bool, covered: &mut Vec<IpNet>) -> bool {
    let (inherited, marks) = match marks.split_first() {
        Some(((first, mark), rest)) if *first == net => (*mark, rest),
        _ => (inherited, marks),
    };
    let Some([low, high]) = halves(net).filter(|_| !marks.is_empty()) else { return inherited };
    let middle = marks.partition_point(|(mark, _)| low.contains(mark));
    let start = covered.len();
    let low_whole = cover(low, &marks[..middle], inherited, covered);
    let between = covered.len();
    let high_whole = cover(high, &marks[middle..], inherited, covered);
    match (low_whole, high_whole) {
        (true, true) => {
            covered.truncate(start);
            return true;
        }
        (true, false) => covered.insert(between, low),
        (false, true) => covered.push(high),
        (false, false) => {}
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    /// Subnets that meet often: few bits differ.
    pub(crate) fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0u32..1024, 16u8..=32).prop_map(|(a, n)| v4(a, n)),
            (any::<u32>(), 0u8..=32).prop_map(|(a, n)| IpNet::new_assert(Ipv4Addr::from(a).into(), n).trunc()),
            (0u128..64, 112u8..=128).prop_map(|(a, n)| v6(a, n)),
        ]
    }

    pub(crate) fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u32..1024, any::<u8>()).prop_map(|(a, low)| v4(a, 32).addr_plus(low)),
            any::<u32>().prop_map(|a| Ipv4Addr::from(a).into()),
            (0u128..64).prop_map(|a| v6(a, 128).addr()),
        ]
    }

    trait Plus {
        fn addr_plus(&self, low: u8) -> IpAddr;
    }
    impl Plus for IpNet {
        fn addr_plus(&self, low: u8) -> IpAddr {
            let IpAddr::V4(four) = self.addr() else { return self.addr() };
            Ipv4Addr::from(u32::from(four) | u32::from(low & 0x3f)).into()
        }
    }

    fn v4(a: u32, len: u8) -> IpNet {
        IpNet::new_assert(Ipv4Addr::from(0x0a60_0000 | (a << 6)).into(), len).trunc()
    }

    fn v6(a: u128, len: u8) -> IpNet {
        IpNet::new_assert(Ipv6Addr::from((0xfd10_0096 << 96) | (a << 10)).into(), len).trunc()
    }

    fn longest(nets: &[IpNet], ip: IpAddr) -> Option<u8> {
        nets.iter().filter(|n| n.contains(&ip)).map(IpNet::prefix_len).max()
    }

    #[test]
    fn a_hole_leaves_the_prefixes_around_it() {
        let around = subtract(&nets(&["10.96.0.0/30"]), &nets(&["10.96.0.1/32"]));
        assert_eq!(around, nets(&["10.96.0.0/32", "10.96.0.2/31"]));
        assert_eq!(subtract(&nets(&["10.96.0.0/16"]), &[]), nets(&["10.96.0.0/16"]));
        assert_eq!(subtract(&nets(&["0.0.0.0/0", "::/0"]), &[]), nets(&["0.0.0.0/0", "::/0"]));
        assert_eq!(subtract(&[], &nets(&["10.0.0.0/8"])), []);
    }

    #[test]
    fn halves_become_one() {
        assert_eq!(subtract(&nets(&["10.0.0.0/9", "10.128.0.0/9"]), &[]), nets(&["10.0.0.0/8"]));
        assert_eq!(subtract(&nets(&["10.1.2.3/32"]), &nets(&["10.0.0.0/8"])), nets(&["10.1.2.3/32"]));
    }

    #[test]
    fn a_difference_does_not_care_for_prefix_lengths() {
        assert_eq!(difference(&nets(&["10.1.0.0/16"]), &nets(&["10.0.0.0/8"])), []);
        assert_eq!(difference(&nets(&["10.0.0.0/8"]), &nets(&["10.0.0.0/9", "10.128.0.0/9"])), []);
        assert_eq!(difference(&nets(&["10.0.0.0/8"]), &nets(&["10.0.0.0/9"])), nets(&["10.128.0.0/9"]));
    }

    proptest! {
        #[test]
        fn covers_exactly_what_the_longest_prefix_says(
            steer in proptest::collection::vec(any_net(), 0..8),
            except in proptest::collection::vec(any_net(), 0..8),
            ips in proptest::collection::vec(any_address(), 64),
        ) {
            let covered = subtract(&steer, &except);
            let edges = steer.iter().chain(&except).flat_map(|n| [n.network(), n.broadcast()]);
            for ip in ips.into_iter().chain(edges) {
                let holds = covered.iter().filter(|n| n.contains(&ip)).count();
                prop_assert_eq!(holds, usize::from(longest(&steer, ip) > longest(&except, ip)), "{}", ip);
            }
            prop_assert!(covered.is_sorted());
            // No two are the halves of one: with that and no overlap there is no smaller set.
            prop_assert!(covered.windows(2).all(|w| !w[0].is_sibling(&w[1])));
            prop_assert_eq!(subtract(&covered, &[]), covered);
        }

        #[test]
        fn the_longest_match_is_the_longest_that_matches(
            mut nets in proptest::collection::vec(any_net(), 0..24),
            ips in proptest::collection::vec(any_address(), 64),
        ) {
            nets.sort();
            nets.dedup();
            let edges = nets.iter().flat_map(|n| [n.network(), n.broadcast()]).collect::<Vec<_>>();
            for ip in ips.into_iter().chain(edges) {
                let found = longest_match(&nets, |net| *net, ip);
                prop_assert_eq!(found.map(IpNet::prefix_len), longest(&nets, ip), "{}", ip);
                prop_assert!(found.is_none_or(|net| net.contains(&ip)));
            }
        }

        #[test]
        fn differences_are_differences(
            of in proptest::collection::vec(any_net(), 0..8),
            without in proptest::collection::vec(any_net(), 0..8),
            ips in proptest::collection::vec(any_address(), 64),
        ) {
            let left = difference(&of, &without);
            for ip in ips {
                let expected = longest(&of, ip).is_some() && longest(&without, ip).is_none();
                prop_assert_eq!(longest(&left, ip).is_some(), expected, "{}", ip);
            }
        }
    }
}
