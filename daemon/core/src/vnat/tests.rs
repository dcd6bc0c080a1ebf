//! A long random walk against a plain model, and the edges of ranges.

use super::*;
use crate::subnets::{HostRoute, Inputs, RoutingPolicy, decide};

/// What the first release gave out.
const GOLDEN: [&str; 3] = ["246.246.51.187", "246.246.53.207", "fd74:7078:6e65:7401:d827:4b5:e96f:d23a"];

fn default() -> Vnat {
    Vnat::new("a cluster", RoutingPolicy::VIRTUAL4, RoutingPolicy::VIRTUAL6)
}

fn narrow(range: &str) -> Vnat {
    Vnat::new("a cluster", range.parse().unwrap(), RoutingPolicy::VIRTUAL6)
}

fn four(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + n).into()
}

fn six(n: u128) -> IpAddr {
    Ipv6Addr::from((0xfd10_0096 << 96) + n).into()
}

/// SplitMix64: the same walk on every run.
struct Walk(u64);

impl Walk {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        pool::hash(1, &self.0.to_be_bytes()) % below
    }
}

#[test]
fn a_million_random_steps() {
    let routes: Vec<IpNet> =
        ["10.0.0.0/8", "246.245.0.0/16", "246.247.0.0/24", "fd74:7078:6e65:7402::/64", "240.0.0.0/6", "192.0.2.0/24"]
            .map(|n| n.parse().unwrap())
            .into();
    let route =
        |destination: &IpNet| HostRoute { destination: *destination, device: "lan0".into(), gateway: None, table: 254 };
    let inputs = Inputs { host_routes: routes.iter().map(route).collect(), ..Inputs::default() };
    assert!(decide(&inputs).is_ok(), "the ranges are free");
    let own: [IpNet; 2] = [
        IpNet::new_assert(tpx_ebpf_abi::slot::OWN4.0.into(), tpx_ebpf_abi::slot::OWN4.1),
        IpNet::new_assert(tpx_ebpf_abi::slot::OWN6.0.into(), tpx_ebpf_abi::slot::OWN6.1),
    ];
    let mut walk = Walk(7);
    let mut vnat = default();
    let mut model: HashMap<IpAddr, IpAddr> = HashMap::new();
    let mut back: HashMap<IpAddr, IpAddr> = HashMap::new();
    let mut fours = 0;
    for step in 0..1_000_000 {
        let real = match walk.next(3) {
            0 => six(walk.next(40_000).into()),
            // More than the range holds, so that it fills up.
            _ => four(walk.next(66_000) as u32),
        };
        match walk.next(16) {
            // Reconnect: what was given out is stored and read again.
            0 if step % 262_144 < 16 => {
                let stored = vnat.export();
                let mut other = default();
                other.import(stored.clone());
                assert_eq!((stored.len(), other.len()), (model.len(), model.len()));
                vnat = other;
                // All are in use at once, so that none makes room for another.
                for (real, address) in stored {
                    assert_eq!(model.get(&real), Some(&address));
                    assert_eq!(vnat.allocate(real), Ok(Allocation { address, fresh: true, evicted: None }));
                }
            }
            0..=9 => match vnat.allocate(real) {
                Ok(given) => {
                    assert_eq!(given.evicted, None);
                    let first = model.insert(real, given.address);
                    assert!(first.is_none_or(|first| first == given.address), "{real} moved");
                    assert_eq!(given.fresh, first.is_none());
                    if first.is_none() {
                        fours += usize::from(real.is_ipv4());
                        assert_eq!(back.insert(given.address, real), None, "{} was given out twice", given.address);
                        assert!(vnat.is_virtual(given.address) && given.address.is_ipv4() == real.is_ipv4());
                        assert!(!routes.iter().chain(&own).any(|net| net.contains(&given.address)));
                    }
                }
                Err(full) => {
                    assert!(real.is_ipv4() && !model.contains_key(&real));
                    assert_eq!(fours, full.capacity);
                }
            },
            10..=12 => assert_eq!(vnat.virtual_for(real), model.get(&real).copied()),
            _ => {
                let address = vnat.virtual_for(real).unwrap_or(real);
                assert_eq!(vnat.real_for(address), back.get(&address).copied());
            }
        }
    }
    assert_eq!(vnat.len(), model.len());
    // The range without tpx's own 256, its first, and its last, which is one of them.
    assert_eq!(fours, 65_536 - 256 - 1);
}

#[test]
fn what_is_asked_for_in_another_order_lies_where_it_lay() {
    let (mut one, mut other) = (default(), default());
    let reals: Vec<IpAddr> = (0..200).map(four).collect();
    for real in &reals {
        one.allocate(*real).unwrap();
    }
    for real in reals.iter().rev() {
        other.allocate(*real).unwrap();
    }
    let moved = reals.iter().filter(|real| one.virtual_for(**real) != other.virtual_for(**real)).count();
    assert!(moved <= 4, "{moved} of 200 moved without anything stored");
    // With what was stored, none.
    let mut third = default();
    third.import(one.export());
    assert!(reals.iter().rev().all(|real| third.allocate(*real).unwrap().address == one.virtual_for(*real).unwrap()));
    // Another cluster has other places.
    let mut elsewhere = Vnat::new("another cluster", RoutingPolicy::VIRTUAL4, RoutingPolicy::VIRTUAL6);
    assert_ne!(elsewhere.allocate(four(1)).unwrap().address, one.virtual_for(four(1)).unwrap());
}

#[test]
fn places_never_change_between_releases() {
    let mut vnat = default();
    let given: Vec<String> =
        [four(1), four(0x0307), six(1)].map(|real| vnat.allocate(real).unwrap().address.to_string()).into();
    assert_eq!(given, GOLDEN);
}

#[test]
fn a_full_range_is_an_error_that_names_the_setting() {
    let mut vnat = narrow("100.10.20.0/29");
    for n in 0..6 {
        vnat.allocate(four(n)).unwrap();
    }
    let full = vnat.allocate(four(6)).unwrap_err();
    assert_eq!(
        full.to_string(),
        "all 6 virtual addresses of 100.10.20.0/29 are in use: set routing.virtualSubnet to a wider subnet"
    );
    assert_eq!(vnat.allocate(four(5)).unwrap(), Allocation { fresh: false, ..vnat.allocate(four(5)).unwrap() });
    for end in ["100.10.20.0", "100.10.20.7"] {
        assert_eq!(vnat.real_for(end.parse().unwrap()), None);
        assert!(!vnat.is_virtual(end.parse().unwrap()));
    }
    assert!(vnat.allocate(six(1)).is_ok());
    assert!(narrow("246.246.255.0/24").allocate(four(1)).is_err());
}

#[test]
fn a_wide_range_is_bounded_all_the_same() {
    let mut vnat = narrow("100.0.0.0/8");
    for n in 0..Vnat::MAX_ADDRESSES as u32 {
        vnat.allocate(four(n)).unwrap();
    }
    assert!(vnat.allocate(four(70_000)).unwrap_err().to_string().contains("there are never more"));
}

#[test]
fn what_was_imported_and_not_asked_for_makes_room() {
    let mut before = narrow("100.10.20.0/29");
    for n in 0..6 {
        before.allocate(four(n)).unwrap();
    }
    let mut vnat = narrow("100.10.20.0/29");
    vnat.import(before.export());
    let used = vnat.allocate(four(0)).unwrap();
    assert!(used.fresh);
    for n in 10..15 {
        let given = vnat.allocate(four(n)).unwrap();
        let evicted = given.evicted.unwrap();
        assert_eq!(before.virtual_for(evicted), Some(given.address));
        assert_eq!((vnat.virtual_for(evicted), vnat.real_for(given.address)), (None, Some(four(n))));
    }
    assert!(vnat.allocate(four(20)).is_err());
    assert_eq!(vnat.real_for(used.address), Some(four(0)));
}

#[test]
fn what_does_not_fit_is_not_imported() {
    let mut vnat = default();
    let own = "246.246.255.53";
    let pairs = [("10.96.0.1", own), ("10.96.0.2", "100.0.0.1"), ("10.96.0.3", "fd74:7078:6e65:7401::1")];
    vnat.import(pairs.map(|(real, address)| (real.parse().unwrap(), address.parse().unwrap())));
    assert!(vnat.is_empty());
    let twice = [(four(1), "246.246.0.1"), (four(2), "246.246.0.1"), (four(1), "246.246.0.2")];
    vnat.import(twice.map(|(real, address)| (real, address.parse().unwrap())));
    assert_eq!(vnat.export(), [(four(1), "246.246.0.1".parse().unwrap())]);
    let IpAddr::V4(plain) = four(1) else { unreachable!() };
    assert_eq!(vnat.virtual_for(plain.to_ipv6_mapped().into()), vnat.virtual_for(four(1)));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "this test measures time")]
fn many_allocations_do_not_slow_a_look_up() {
    let mut vnat = default();
    let look_up = |vnat: &Vnat| {
        let round = || {
            let start = std::time::Instant::now();
            for _ in 0..200 {
                for n in 0..64 {
                    let address = vnat.virtual_for(four(n)).unwrap();
                    assert_eq!(vnat.real_for(std::hint::black_box(address)), Some(four(n)));
                }
            }
            start.elapsed()
        };
        (0..15).map(|_| round()).min().unwrap()
    };
    for n in 0..64 {
        vnat.allocate(four(n)).unwrap();
    }
    let few = look_up(&vnat);
    for n in 64..65_000 {
        vnat.allocate(four(n)).unwrap();
    }
    let many = look_up(&vnat);
    assert!(many < 2 * few, "{many:?} with 65,000 addresses, {few:?} with 64");
}
