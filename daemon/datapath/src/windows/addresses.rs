//! Windows neither routes nor accepts 240.0.0.0/4, so that all that lies there elsewhere lies in 211.55.48.0/20 here.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use tpx_core::{cidr, plan::Plan};
use tpx_ebpf_abi::slot;

use crate::HostError;

/// Where virtual addresses come from unless the configuration says otherwise.
pub const VIRTUAL4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(211, 55, 48, 0), 20);
/// The block of tpx's own addresses, at its top.
pub const OWN4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(211, 55, 63, 0), 24);

const RESERVED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4);

/// [`VIRTUAL4`] without [`OWN4`].
#[must_use]
pub fn virtual_pool() -> Vec<IpNet> {
    cidr::difference(&[VIRTUAL4.into()], &[OWN4.into()])
}

/// What stands here for one of tpx's own addresses (`tpx_ebpf_abi::slot`): IPv4 ones move to [`OWN4`], all others stay.
#[must_use]
pub fn own_address(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(four) if four.octets()[..3] == slot::OWN4.0.octets()[..3] => {
            let [a, b, c, _] = OWN4.network().octets();
            Ipv4Addr::new(a, b, c, four.octets()[3]).into()
        }
        other => other,
    }
}

/// Refuses what Windows would not route.
pub(super) fn check(plan: &Plan) -> Result<(), HostError> {
    let refuse = |net: &IpNet, why: &str| Err(HostError::Refused(format!("{net} {why}")));
    let meets = |net: &IpNet, block: Ipv4Net| {
        let block = IpNet::V4(block);
        block.contains(net) || net.contains(&block)
    };
    for net in plan.steer.iter().chain(&plan.virtual_subnets) {
        if meets(net, RESERVED) {
            return refuse(
                net,
                &format!("touches {RESERVED}, which Windows does not route; {VIRTUAL4} is the usual range"),
            );
        }
        if meets(net, OWN4) {
            return refuse(net, &format!("touches tpx's own addresses ({OWN4})"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tpx_ebpf_abi::slot::{NAMES, Slot};

    use super::*;
    use crate::routed::tests::{nets, plan};

    #[test]
    fn the_pool_is_the_range_without_our_own_addresses() {
        let pool = virtual_pool();
        assert_eq!(pool, nets(&["211.55.48.0/21", "211.55.56.0/22", "211.55.60.0/23", "211.55.62.0/24"]));
        assert!(VIRTUAL4.contains(&OWN4));
    }

    #[test]
    fn own_addresses_stay_distinct_and_come_into_our_block() {
        let own: Vec<IpAddr> = Slot::all()
            .flat_map(|s| (0..NAMES).filter_map(move |n| s.dns4(n)).chain([s.ipv4(), s.resolver4()]))
            .map(|ip| own_address(ip.into()))
            .collect();
        assert!(own.iter().all(|ip| IpNet::from(OWN4).contains(ip)));
        assert_eq!(own.iter().collect::<BTreeSet<_>>().len(), own.len());
        for same in ["192.0.2.1", "fd74:7078:6e65:7400::1", "246.246.1.1"] {
            let same: IpAddr = same.parse().unwrap();
            assert_eq!(own_address(same), same);
        }
    }

    #[test]
    fn what_windows_does_not_route_is_refused_by_name() {
        for (net, words) in [("246.246.0.0/17", "240.0.0.0/4"), ("211.55.48.0/20", "211.55.63.0/24")] {
            let plan = Plan { virtual_subnets: nets(&[net]), ..plan() };
            let text = check(&plan).unwrap_err().to_string();
            assert!(text.contains(net) && text.contains(words), "{text}");
        }
        check(&plan()).unwrap();
        check(&Plan { virtual_subnets: virtual_pool(), ..plan() }).unwrap();
    }
}
