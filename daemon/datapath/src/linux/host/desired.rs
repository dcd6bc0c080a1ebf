//! A plan as the sets that the host is compared with.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use tpx_core::{
    cidr::subtract,
    plan::{Plan, Road, Scope},
};
use tpx_ebpf_abi::{Action, slot::Slot};

use super::denials::Denials;

/// The routing tables of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    /// Of marked sockets: what the express lane carries is local.
    Marked,
    /// Of everybody in the scope: what is routed to the device.
    Floor,
    /// Of packets that have the device's own address already: subnets that are hidden now, and a process tree's floor.
    Lingering,
    /// Of questions to name servers, which are made local.
    Names,
}

impl Table {
    pub(super) fn id(self, slot: Slot) -> u32 {
        match self {
            Self::Marked => slot.table(),
            Self::Floor => slot.floor_table(),
            Self::Lingering => slot.lingering_table(),
            Self::Names => slot.names_table(),
        }
    }

    /// Whether its routes deliver on this host instead of leading to the device.
    pub(super) fn is_local(self) -> bool {
        matches!(self, Self::Marked | Self::Names)
    }
}

/// What maps and tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) routes: BTreeSet<(Table, IpNet)>,
    pub(super) rules: BTreeMap<IpNet, Action>,
    pub(super) names: BTreeSet<IpAddr>,
    pub(super) denials: Denials,
    /// The containers that the scope is made of.
    pub(super) senders: BTreeSet<IpAddr>,
}

impl Desired {
    /// What `plan` asks for; without `ipv6` only the IPv4 half.
    pub(super) fn of(plan: &Plan, slot: Slot, ipv6: bool) -> Self {
        let possible = |ip: IpAddr| ip.is_ipv4() || ipv6;
        let nets = |list: &[IpNet]| -> Vec<IpNet> { list.iter().copied().filter(|n| possible(n.addr())).collect() };
        let (steer, behind) = (nets(&plan.steer), nets(&plan.virtual_subnets));
        let (hidden, except) = (nets(&plan.hidden), nets(&plan.except));
        let mut desired = Self {
            names: plan.name_servers.iter().copied().filter(|ip| possible(*ip)).collect(),
            denials: Denials::of(plan),
            senders: match &plan.scope {
                Scope::Containers(addresses) => addresses.iter().copied().collect(),
                Scope::Workstation | Scope::Cgroup(_) | Scope::Tree => BTreeSet::new(),
            },
            ..Self::default()
        };
        if plan.road == Road::Express {
            let lists = [
                (&steer, Action::Steer),
                (&behind, Action::Virtual),
                (&hidden, Action::Hidden),
                (&except, Action::Except),
            ];
            desired.rules = lists.iter().flat_map(|(list, action)| list.iter().map(|net| (*net, *action))).collect();
            let marked = steer.iter().chain(&behind).chain(&hidden);
            desired.routes.extend(marked.map(|net| (Table::Marked, *net)));
        }
        let inside = [steer, behind].concat();
        let outside = [hidden.clone(), except.clone()].concat();
        let floor = subtract(&inside, &outside);
        desired.routes.extend(floor.iter().map(|net| (Table::Floor, *net)));
        desired.routes.extend(subtract(&hidden, &except).into_iter().map(|net| (Table::Lingering, net)));
        if plan.scope.is_tree() {
            // Packets without its mark come this way as well: those that ask, with the addresses of an answer exchanged,
            // whether it may come from the device (rp_filter).
            desired.routes.extend(floor.into_iter().map(|net| (Table::Lingering, net)));
        } else {
            let resolvers = plan.resolver.iter().flat_map(|link| &link.servers).filter(|ip| possible(**ip));
            desired.routes.extend(resolvers.map(|ip| (Table::Floor, IpNet::from(*ip))));
        }
        debug_assert!(desired.routes.iter().all(|(table, _)| Slot::owns_table(table.id(slot))));
        desired
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
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn plan() -> Plan {
        Plan {
            scope: Scope::Workstation,
            steer: vec!["10.96.0.0/16".parse().unwrap(), "fd10::/64".parse().unwrap()],
            hidden: vec!["10.244.0.0/16".parse().unwrap()],
            virtual_subnets: vec!["246.246.0.0/17".parse().unwrap()],
            except: vec!["10.96.0.1/32".parse().unwrap()],
            name_servers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
            ..Plan::default()
        }
    }

    fn routes(desired: &Desired, table: Table) -> Vec<String> {
        desired.routes.iter().filter(|(t, _)| *t == table).map(|(_, net)| net.to_string()).collect()
    }

    #[test]
    fn each_table_gets_its_part() {
        let d = Desired::of(&plan(), Slot::FIRST, true);
        assert_eq!(routes(&d, Table::Marked), ["10.96.0.0/16", "10.244.0.0/16", "246.246.0.0/17", "fd10::/64"]);
        assert_eq!(routes(&d, Table::Lingering), ["10.244.0.0/16"]);
        let floor = routes(&d, Table::Floor);
        // The hole of one address takes sixteen prefixes.
        assert_eq!(floor.len(), 16 + 2);
        assert!(floor.contains(&"10.96.128.0/17".into()) && floor.contains(&"10.96.0.0/32".into()));
    }

    #[test]
    fn a_process_tree_has_the_same_floor_and_the_floor_alone_no_rules() {
        let workstation = Desired::of(&plan(), Slot::FIRST, true);
        let tree = Desired::of(&Plan { scope: Scope::Tree, ..plan() }, Slot::FIRST, true);
        for table in [Table::Marked, Table::Floor] {
            assert_eq!(routes(&tree, table), routes(&workstation, table));
        }
        // Answers on its floor are checked by the device's address.
        let lingering: BTreeSet<_> = routes(&tree, Table::Lingering).into_iter().collect();
        let both = [routes(&workstation, Table::Floor), routes(&workstation, Table::Lingering)].concat();
        assert_eq!(lingering, both.into_iter().collect());
        let tun = Desired::of(&Plan { road: Road::Tun, ..plan() }, Slot::FIRST, true);
        assert!(tun.rules.is_empty() && tun.routes.iter().all(|(t, _)| *t != Table::Marked));
        assert_eq!(routes(&tun, Table::Floor), routes(&workstation, Table::Floor));
    }

    #[test]
    fn containers_are_a_scope_by_their_addresses() {
        let addresses: Vec<IpAddr> = vec!["172.17.0.2".parse().unwrap(), "fd17::2".parse().unwrap()];
        let d = Desired::of(&Plan { scope: Scope::Containers(addresses.clone()), ..plan() }, Slot::FIRST, true);
        assert_eq!(d.senders, addresses.into_iter().collect());
        assert!(Desired::of(&plan(), Slot::FIRST, true).senders.is_empty());
    }

    #[test]
    fn without_ipv6_half_of_it_is_left() {
        let d = Desired::of(&plan(), Slot::FIRST, false);
        assert_eq!((d.rules.len(), d.names.len()), (4, 1));
        assert!(d.rules.keys().chain(d.routes.iter().map(|(_, n)| n)).all(|n| n.addr().is_ipv4()));
    }

    #[test]
    fn families_are_kept() {
        let own = own_address(Slot::FIRST, "127.0.0.53".parse().unwrap(), 1);
        assert_eq!(own, Some("246.246.255.54".parse().unwrap()));
        assert!(own_address(Slot::FIRST, "fe80::1".parse().unwrap(), 0).unwrap().is_ipv6());
        assert_eq!(own_address(Slot::FIRST, "127.0.0.53".parse().unwrap(), 8), None);
    }

    fn net() -> impl Strategy<Value = IpNet> {
        // Few distinct addresses, so that prefixes meet.
        let of = |(a, n): (u32, u8)| IpNet::new_assert(Ipv4Addr::from(0x0a00_0000 | (a * 17)).into(), n).trunc();
        (0u32..64, 20u8..=32).prop_map(of)
    }

    proptest! {
        #[test]
        fn the_floor_leads_where_the_plan_steers(
            steer in prop::collection::vec(net(), 0..6),
            hidden in prop::collection::vec(net(), 0..4),
            except in prop::collection::vec(net(), 0..6),
            probes in prop::collection::vec(0u32..6000, 40),
        ) {
            let plan = Plan { steer, hidden, except, ..Plan::default() };
            let desired = Desired::of(&plan, Slot::FIRST, true);
            for a in probes {
                let ip = IpAddr::from(Ipv4Addr::from(0x0a00_0000 | a));
                let routes = desired.routes.iter().filter(|(table, net)| *table == Table::Floor && net.contains(&ip));
                prop_assert_eq!(routes.count(), usize::from(plan.steers(ip)));
            }
        }
    }
}
