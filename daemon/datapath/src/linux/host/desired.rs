//! A plan as the sets that the host is compared with.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use tpx_core::plan::{Plan, Scope};
use tpx_ebpf_abi::{Action, slot::Slot};

/// What maps and tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) routes: BTreeSet<IpNet>,
    pub(super) rules: BTreeMap<IpNet, Action>,
    pub(super) names: BTreeSet<IpAddr>,
}

impl Desired {
    /// What `plan` asks for; without `ipv6` only the IPv4 half.
    pub(super) fn of(plan: &Plan, ipv6: bool) -> Self {
        let possible = |v4: bool| v4 || ipv6;
        let nets = |list: &[IpNet]| -> Vec<IpNet> {
            list.iter().copied().filter(|net| possible(net.addr().is_ipv4())).collect()
        };
        let lists = [
            (Action::Steer, &plan.steer),
            (Action::Virtual, &plan.virtual_subnets),
            (Action::Hidden, &plan.hidden),
            (Action::Except, &plan.except),
        ];
        let rules: BTreeMap<IpNet, Action> =
            lists.into_iter().flat_map(|(action, list)| nets(list).into_iter().map(move |n| (n, action))).collect();
        Self {
            // Marked sockets reach all but the exceptions: those of hidden subnets were translated, or are older.
            routes: rules.iter().filter(|(_, action)| **action != Action::Except).map(|(n, _)| *n).collect(),
            rules,
            names: plan.name_servers.iter().copied().filter(|ip| possible(ip.is_ipv4())).collect(),
        }
    }

    /// A plan that asks for exactly this.
    pub(super) fn to_plan(&self, scope: Scope) -> Plan {
        let with = |action| self.rules.iter().filter(|(_, a)| **a == action).map(|(n, _)| *n).collect();
        Plan {
            scope,
            steer: with(Action::Steer),
            virtual_subnets: with(Action::Virtual),
            hidden: with(Action::Hidden),
            except: with(Action::Except),
            name_servers: self.names.iter().copied().collect(),
            ..Plan::default()
        }
    }
}

/// tpx's own address that stands for `server`, in its family.
pub(super) fn own_address(slot: Slot, server: IpAddr, nth: usize) -> Option<IpAddr> {
    match server {
        IpAddr::V4(_) => slot.dns4(nth).map(IpAddr::V4),
        IpAddr::V6(_) => slot.dns6(nth).map(IpAddr::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            scope: Scope::Workstation,
            steer: vec!["10.96.0.0/16".parse().unwrap(), "fd10::/64".parse().unwrap()],
            virtual_subnets: vec!["246.246.0.0/17".parse().unwrap()],
            hidden: vec!["10.244.0.0/16".parse().unwrap()],
            except: vec!["10.96.0.1/32".parse().unwrap()],
            name_servers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
            ..Plan::default()
        }
    }

    #[test]
    fn a_plan_survives_the_way_there_and_back() {
        assert_eq!(Desired::of(&plan(), true).to_plan(Scope::Workstation), plan());
    }

    #[test]
    fn without_ipv6_half_of_it_is_left() {
        let d = Desired::of(&plan(), false);
        assert_eq!((d.routes.len(), d.rules.len(), d.names.len()), (3, 4, 1));
        assert!(d.rules.keys().all(|n| n.addr().is_ipv4()));
    }

    #[test]
    fn families_are_kept() {
        let own = own_address(Slot::FIRST, "127.0.0.53".parse().unwrap(), 1);
        assert_eq!(own, Some("246.246.255.54".parse().unwrap()));
        assert!(own_address(Slot::FIRST, "fe80::1".parse().unwrap(), 0).unwrap().is_ipv6());
        assert_eq!(own_address(Slot::FIRST, "127.0.0.53".parse().unwrap(), 8), None);
    }
}
