//! What a plan may never ask for, whoever made it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Component, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tpx_ebpf_abi::{BLOCK4, BLOCK6, may_send4, may_send6, slot};

use super::{Plan, ResolverLink, Road, Scope};
use crate::{cidr, dns::Name};

/// Why a plan is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// More entries than fit.
    #[error("{count} {what}, but at most {max} are possible")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// Its length.
        count: usize,
        /// Its bound.
        max: usize,
    },
    /// An address with bits behind the prefix.
    #[error("{0} has bits set behind its prefix; write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// So wide that it comes close to a default route.
    #[error("{net} is too wide: nothing shorter than /{shortest} is ever steered")]
    TooWide {
        /// The subnet.
        net: IpNet,
        /// The shortest prefix of its family.
        shortest: u8,
    },
    /// Together they come close to a default route.
    #[error("the subnets hold more than an eighth of all IPv{0} addresses")]
    TooMuch(u8),
    /// It touches addresses that must not be steered.
    #[error("{net} touches {what} ({reserved})")]
    Reserved {
        /// The subnet.
        net: IpNet,
        /// What lives there.
        what: &'static str,
        /// The range it touches.
        reserved: IpNet,
    },
    /// Listed twice, or both steered and excepted.
    #[error("{0} is listed twice")]
    Twice(IpNet),
    /// No connection has this port.
    #[error("port {0} cannot be denied, or is listed twice")]
    Port(u16),
    /// An address that no name server has.
    #[error("{0} cannot be a name server")]
    NoNameServer(IpAddr),
    /// The tunnel would swallow the questions of everybody who asks another port of it.
    #[error("the name server {0} would be steered; it has to be excepted")]
    SteeredNameServer(IpAddr),
    /// The tunnel would swallow the connections that carry it.
    #[error("{0} must stay outside the tunnel and would be steered; it has to be excepted")]
    SteeredProtected(IpAddr),
    /// systemd-resolved is only ever sent to tpx itself.
    #[error("{0} is none of tpx's own resolver addresses")]
    ForeignResolver(IpAddr),
    /// Not a domain that systemd-resolved may be told.
    #[error("{0:?} is no domain name of letters, digits, hyphens and underscores")]
    Domain(String),
    /// The floor cannot tell processes apart.
    #[error("a scope of its own needs the express lane; the TUN device serves the whole workstation only")]
    TreeOnFloor,
    /// An address that no container has.
    #[error("{0} cannot be the address of a container, or is listed twice")]
    NoContainer(IpAddr),
    /// Not a plain absolute path.
    #[error("{:?} is no absolute path without dots", .0)]
    Path(PathBuf),
}

/// Longest path that the kernel takes, in bytes (`PATH_MAX` of linux/limits.h).
const PATH_MAX: usize = 4095;

/// The shortest prefixes that are ever steered.
const SHORTEST: (u8, u8) = (8, 16);

const RESERVED4: [(&str, Ipv4Net); 7] = [
    ("\"this\" network", v4(0, 0, 0, 0, 8)),
    ("loopback addresses", v4(127, 0, 0, 0, 8)),
    ("link-local addresses", v4(169, 254, 0, 0, 16)),
    ("multicast addresses", v4(224, 0, 0, 0, 4)),
    ("the broadcast address", v4(255, 255, 255, 255, 32)),
    ("tpx's own addresses", Ipv4Net::new_assert(slot::OWN4.0, slot::OWN4.1)),
    ("tpx's own addresses", Ipv4Net::new_assert(BLOCK4.0, BLOCK4.1)),
];

const RESERVED6: [(&str, Ipv6Net); 7] = [
    ("the unspecified address", Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
    ("the loopback address", Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    ("IPv4-mapped addresses", Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)),
    ("link-local addresses", Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
    ("multicast addresses", Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    ("tpx's own addresses", Ipv6Net::new_assert(slot::OWN6.0, slot::OWN6.1)),
    ("tpx's own addresses", Ipv6Net::new_assert(BLOCK6.0, BLOCK6.1)),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)
}

impl Plan {
    /// Checks everything that can be said without looking at the host. The privileged daemon asks this before it
    /// changes anything, whatever the user daemon has asked before.
    ///
    /// # Errors
    /// The first [`PlanError`].
    pub fn check(&self) -> Result<(), PlanError> {
        let lists = [&self.steer, &self.virtual_subnets, &self.hidden, &self.except];
        bounded("subnets in all", lists.iter().map(|list| list.len()).sum(), Self::MAX_SUBNETS)?;
        bounded("name servers", self.name_servers.len(), Self::MAX_NAME_SERVERS)?;
        let mut seen = BTreeSet::new();
        for net in lists.into_iter().flatten() {
            if *net != net.trunc() {
                return Err(PlanError::HostBits(*net));
            }
            if !seen.insert(*net) {
                return Err(PlanError::Twice(*net));
            }
        }
        for net in self.steer.iter().chain(&self.virtual_subnets).chain(&self.hidden) {
            may_be_steered(net)?;
        }
        few_addresses(&[&self.steer[..], &self.virtual_subnets].concat())?;
        let mut seen = BTreeSet::new();
        for server in &self.name_servers {
            may_be_name_server(*server)?;
            if !seen.insert(*server) {
                return Err(PlanError::Twice((*server).into()));
            }
            if self.steers(*server) {
                return Err(PlanError::SteeredNameServer(*server));
            }
        }
        self.check_denials()?;
        bounded("protected addresses", self.protected.len(), Self::MAX_PROTECTED)?;
        // As the kernel sees it: ::ffff:10.96.0.1 is 10.96.0.1.
        if let Some(steered) = self.protected.iter().find(|ip| self.steers(ip.to_canonical())) {
            return Err(PlanError::SteeredProtected(*steered));
        }
        if let Some(resolver) = &self.resolver {
            resolver.check()?;
        }
        bounded("patterns of container devices", self.container_devices.len(), Self::MAX_CONTAINER_DEVICES)?;
        match &self.scope {
            scope if scope.is_tree() && self.road == Road::Tun => Err(PlanError::TreeOnFloor),
            Scope::Containers(addresses) => check_containers(addresses),
            Scope::Cgroup(path)
                if !path.is_absolute()
                    || path.as_os_str().len() > PATH_MAX
                    || path.as_os_str().as_encoded_bytes().contains(&0)
                    || path.components().any(|c| !matches!(c, Component::RootDir | Component::Normal(_))) =>
            {
                Err(PlanError::Path(path.clone()))
            }
            Scope::Cgroup(_) | Scope::Tree | Scope::Workstation => Ok(()),
        }
    }
}

impl Plan {
    fn check_denials(&self) -> Result<(), PlanError> {
        bounded("denied subnets", self.deny.len(), Self::MAX_SUBNETS)?;
        bounded("denied ports", self.deny_ports.len(), Self::MAX_DENY_PORTS)?;
        let mut seen = BTreeSet::new();
        for net in &self.deny {
            if *net != net.trunc() {
                return Err(PlanError::HostBits(*net));
            }
            if !seen.insert(*net) {
                return Err(PlanError::Twice(*net));
            }
        }
        let mut seen = BTreeSet::new();
        match self.deny_ports.iter().find(|port| **port == 0 || !seen.insert(**port)) {
            Some(port) => Err(PlanError::Port(*port)),
            None => Ok(()),
        }
    }
}

impl ResolverLink {
    fn check(&self) -> Result<(), PlanError> {
        bounded("resolver addresses", self.servers.len(), Plan::MAX_NAME_SERVERS)?;
        bounded("routing domains", self.routing_domains.len(), Plan::MAX_DOMAINS)?;
        bounded("search domains", self.search_domains.len(), Plan::MAX_DOMAINS)?;
        let own = |ip: &IpAddr| slot::Slot::all().any(|s| [s.resolver4().into(), s.resolver6().into()].contains(ip));
        if let Some(foreign) = self.servers.iter().find(|ip| !own(ip)) {
            return Err(PlanError::ForeignResolver(*foreign));
        }
        match self.routing_domains.iter().chain(&self.search_domains).find(|domain| !is_domain(domain)) {
            Some(domain) => Err(PlanError::Domain(domain.clone())),
            None => Ok(()),
        }
    }
}

/// The root does not count: tpx would be asked for every name there is.
fn is_domain(text: &str) -> bool {
    let plain = |label: &[u8]| label.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
    text.parse::<Name>().is_ok_and(|name| !name.is_empty() && name.labels().all(plain))
}

/// Many wide subnets are as good as a default route.
fn few_addresses(nets: &[IpNet]) -> Result<(), PlanError> {
    // In units of the narrowest subnet that counts: /32 and /64.
    let (mut four, mut six) = (0_u128, 0_u128);
    for net in cidr::subtract(nets, &[]) {
        match net {
            IpNet::V4(net) => four += 1 << (32 - net.prefix_len()),
            IpNet::V6(net) => six += 1 << 64_u8.saturating_sub(net.prefix_len()),
        }
    }
    match (four > 1 << 29, six > 1 << 61) {
        (true, _) => Err(PlanError::TooMuch(4)),
        (_, true) => Err(PlanError::TooMuch(6)),
        (false, false) => Ok(()),
    }
}

fn check_containers(addresses: &[IpAddr]) -> Result<(), PlanError> {
    bounded("addresses of containers", addresses.len(), Plan::MAX_CONTAINERS)?;
    let may_send = |ip: IpAddr| match ip {
        IpAddr::V4(four) => may_send4(four.octets()),
        IpAddr::V6(six) => may_send6(&six.octets()),
    };
    let mut seen = BTreeSet::new();
    match addresses.iter().find(|ip| !may_send(**ip) || !seen.insert(**ip)) {
        Some(ip) => Err(PlanError::NoContainer(*ip)),
        None => Ok(()),
    }
}

fn bounded(what: &'static str, count: usize, max: usize) -> Result<(), PlanError> {
    if count > max { Err(PlanError::TooMany { what, count, max }) } else { Ok(()) }
}

pub(crate) fn may_be_steered(net: &IpNet) -> Result<(), PlanError> {
    let shortest = if net.addr().is_ipv4() { SHORTEST.0 } else { SHORTEST.1 };
    if net.prefix_len() < shortest {
        return Err(PlanError::TooWide { net: *net, shortest });
    }
    match reserved(net) {
        Some((what, reserved)) => Err(PlanError::Reserved { net: *net, what, reserved }),
        None => Ok(()),
    }
}

/// The reserved range that shares an address with `net`.
pub(crate) fn reserved(net: &IpNet) -> Option<(&'static str, IpNet)> {
    let four = RESERVED4.iter().map(|(what, r)| (*what, IpNet::V4(*r)));
    let six = RESERVED6.iter().map(|(what, r)| (*what, IpNet::V6(*r)));
    four.chain(six).find(|(_, r)| r.contains(net) || net.contains(r))
}

/// Loopback addresses (systemd-resolved's 127.0.0.53) and link-local ones (a router's) are name servers all right.
fn may_be_name_server(ip: IpAddr) -> Result<(), PlanError> {
    let own = IpNet::from(ip);
    let ours =
        [IpNet::new_assert(slot::OWN4.0.into(), slot::OWN4.1), IpNet::new_assert(slot::OWN6.0.into(), slot::OWN6.1)];
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    let mapped = matches!(ip, IpAddr::V6(six) if six.to_ipv4_mapped().is_some());
    if ip.is_unspecified() || ip.is_multicast() || broadcast || mapped || ours.iter().any(|o| o.contains(&own)) {
        return Err(PlanError::NoNameServer(ip));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn steering(list: &[&str]) -> Plan {
        Plan { steer: nets(list), ..Plan::default() }
    }

    #[test]
    fn a_usual_plan_passes() {
        let plan = Plan {
            except: nets(&["10.96.0.1/32"]),
            name_servers: vec!["127.0.0.53".parse().unwrap(), "fe80::1".parse().unwrap()],
            scope: Scope::Cgroup("/sys/fs/cgroup/user.slice/tpx".into()),
            ..steering(&["10.96.0.0/12", "10.244.0.0/16", "fd10:96::/112", "246.246.0.0/17"])
        };
        assert_eq!(plan.check(), Ok(()));
    }

    #[test]
    fn what_is_never_steered() {
        for net in ["0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/3", "fc00::/15"] {
            assert!(matches!(steering(&[net]).check(), Err(PlanError::TooWide { .. })), "{net}");
        }
        let reserved = [
            "0.1.2.0/24",
            "127.0.0.0/8",
            "127.0.0.53/32",
            "169.254.169.254/32",
            "224.0.0.0/8",
            "239.1.1.1/32",
            "255.255.255.255/32",
            "255.0.0.0/8",
            "246.246.0.0/16",
            "246.246.255.53/32",
            "246.0.0.0/8",
            "246.31.1.0/24",
            "::1/128",
            "::/16",
            "::ffff:10.96.0.1/128",
            "fe80::/64",
            "ff02::1/128",
            "fd74:7078:6e65:7400::53/128",
            "fd74::/16",
            "fd74:7078:6e65:74f7::/64",
        ];
        for net in reserved {
            assert!(matches!(steering(&[net]).check(), Err(PlanError::Reserved { .. })), "{net}");
        }
    }

    #[test]
    fn careless_lists() {
        assert_eq!(steering(&["10.96.0.1/16"]).check(), Err(PlanError::HostBits("10.96.0.1/16".parse().unwrap())));
        let twice = PlanError::Twice("10.96.0.0/16".parse().unwrap());
        assert_eq!(steering(&["10.96.0.0/16", "10.96.0.0/16"]).check(), Err(twice.clone()));
        let plan = Plan { except: nets(&["10.96.0.0/16"]), ..steering(&["10.96.0.0/16"]) };
        assert_eq!(plan.check(), Err(twice));
        let net = |n: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)));
        let full = Plan {
            steer: (0..10_000).map(net).collect(),
            except: (10_000..16_384).map(net).collect(),
            ..Plan::default()
        };
        assert_eq!(full.check(), Ok(()));
        let more = Plan { hidden: vec![net(16_384)], ..full };
        assert_eq!(more.check(), Err(PlanError::TooMany { what: "subnets in all", count: 16_385, max: 16_384 }));
        let many =
            Plan { name_servers: (1..=9).map(|n| Ipv4Addr::new(192, 0, 2, n).into()).collect(), ..steering(&[]) };
        assert_eq!(many.check(), Err(PlanError::TooMany { what: "name servers", count: 9, max: 8 }));
    }

    #[test]
    fn name_servers() {
        for ip in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::fb", "246.246.255.53", "::ffff:8.8.8.8"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Plan { name_servers: vec![ip], ..steering(&[]) }.check(), Err(PlanError::NoNameServer(ip)));
        }
        let ip = "10.96.0.10".parse().unwrap();
        let plan = Plan { name_servers: vec![ip], ..steering(&["10.96.0.0/16"]) };
        assert_eq!(plan.check(), Err(PlanError::SteeredNameServer(ip)));
        assert_eq!(Plan { except: vec![ip.into()], ..plan }.check(), Ok(()));
    }

    #[test]
    fn protected_addresses() {
        let api: IpAddr = "10.96.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.96.0.1".parse().unwrap();
        for ip in [api, mapped] {
            let plan = Plan { protected: vec![ip], ..steering(&["10.96.0.0/16"]) };
            assert_eq!(plan.check(), Err(PlanError::SteeredProtected(ip)));
            assert_eq!(Plan { except: vec![api.into()], ..plan.clone() }.check(), Ok(()));
            assert_eq!(Plan { except: nets(&["10.96.0.0/24"]), ..plan.clone() }.check(), Ok(()));
            // An exception does not help where something more specific is steered.
            let within = nets(&["10.96.0.0/16", "10.96.0.0/30"]);
            let plan = Plan { steer: within, except: nets(&["10.96.0.0/24"]), ..plan };
            assert_eq!(plan.check(), Err(PlanError::SteeredProtected(ip)));
        }
        let behind = Plan { virtual_subnets: nets(&["10.96.0.0/16"]), protected: vec![api], ..steering(&[]) };
        assert_eq!(behind.check(), Err(PlanError::SteeredProtected(api)));
        let outside = vec!["127.0.0.1".parse().unwrap(), "203.0.113.7".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(Plan { protected: outside, ..steering(&["10.96.0.0/16"]) }.check(), Ok(()));
    }

    #[test]
    fn resolver_links() {
        let link = |server: &str, domain: &str| {
            let resolver = Some(ResolverLink {
                servers: vec![server.parse().unwrap()],
                routing_domains: vec![domain.into()],
                search_domains: vec!["default.svc.cluster.local".into()],
            });
            Plan { resolver, ..steering(&[]) }.check()
        };
        let own = slot::Slot::FIRST.resolver4().to_string();
        assert_eq!(link(&own, "cluster.local"), Ok(()));
        assert_eq!(link(&slot::Slot::FIRST.resolver6().to_string(), "_x.a-1.example."), Ok(()));
        for foreign in ["192.0.2.53", "246.246.255.53", "127.0.0.1"] {
            assert_eq!(link(foreign, "svc"), Err(PlanError::ForeignResolver(foreign.parse().unwrap())));
        }
        for odd in ["", ".", "a..b", "a b", "~svc", "ü.example", &"a".repeat(64)] {
            assert_eq!(link(&own, odd), Err(PlanError::Domain(odd.into())), "{odd}");
        }
    }

    #[test]
    fn many_wide_subnets_are_no_way_around() {
        let wide = |first: u8, last: u8| (first..=last).map(|a| format!("{a}.0.0.0/8").parse().unwrap()).collect();
        assert_eq!(Plan { steer: wide(1, 32), ..Plan::default() }.check(), Ok(()));
        assert_eq!(Plan { steer: wide(1, 33), ..Plan::default() }.check(), Err(PlanError::TooMuch(4)));
        let six = (0x2000..0x4001).map(|a| format!("{a:x}::/16").parse().unwrap()).collect();
        assert_eq!(Plan { steer: six, ..Plan::default() }.check(), Err(PlanError::TooMuch(6)));
        // Single addresses are no subnets.
        let many = (0..10_000).map(|n| format!("fd96::{n:x}/128").parse().unwrap()).collect();
        assert_eq!(Plan { steer: many, ..Plan::default() }.check(), Ok(()));
    }

    #[test]
    fn containers_have_addresses() {
        let plan = |list: &[&str]| {
            let addresses = list.iter().map(|ip| ip.parse().unwrap()).collect();
            Plan { scope: Scope::Containers(addresses), ..steering(&["10.96.0.0/16"]) }
        };
        assert_eq!(plan(&[]).check(), Ok(()));
        assert_eq!(plan(&["172.17.0.2", "fd17::2"]).check(), Ok(()));
        for bad in ["127.0.0.1", "0.0.0.0", "fe80::1", "::1", "::ffff:172.17.0.2", "224.0.0.1"] {
            assert_eq!(plan(&[bad]).check(), Err(PlanError::NoContainer(bad.parse().unwrap())));
        }
        assert!(matches!(plan(&["172.17.0.2", "172.17.0.2"]).check(), Err(PlanError::NoContainer(_))));
        let many = (0..=Plan::MAX_CONTAINERS as u32).map(|n| IpAddr::from(Ipv4Addr::from(0xac11_0002 + n))).collect();
        let many = Plan { scope: Scope::Containers(many), ..steering(&[]) };
        assert!(matches!(many.check(), Err(PlanError::TooMany { max: Plan::MAX_CONTAINERS, .. })));
    }

    #[test]
    fn container_devices() {
        let many = |count| Plan { container_devices: vec!["docker0".parse().unwrap(); count], ..steering(&[]) };
        assert_eq!(many(Plan::MAX_CONTAINER_DEVICES).check(), Ok(()));
        let refused = PlanError::TooMany { what: "patterns of container devices", count: 33, max: 32 };
        assert_eq!(many(33).check(), Err(refused));
    }

    #[test]
    fn the_floor_alone_serves_the_workstation_only() {
        let plan = Plan { road: Road::Tun, ..steering(&["10.96.0.0/16"]) };
        assert_eq!(plan.check(), Ok(()));
        for tree in [Scope::Cgroup("/sys/fs/cgroup/x".into()), Scope::Tree, Scope::Containers(Vec::new())] {
            assert_eq!(Plan { scope: tree.clone(), ..plan.clone() }.check(), Err(PlanError::TreeOnFloor));
            assert_eq!(Plan { scope: tree, road: Road::Express, ..plan.clone() }.check(), Ok(()));
        }
    }

    #[test]
    fn cgroup_paths() {
        let long = format!("/{}", "a".repeat(PATH_MAX));
        for path in ["", "relative", "/sys/fs/cgroup/../../etc", "/a\0b", &long] {
            let plan = Plan { scope: Scope::Cgroup(path.into()), ..steering(&[]) };
            assert_eq!(plan.check(), Err(PlanError::Path(path.into())), "{path}");
        }
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0u8..=32).prop_map(|(a, n)| IpNet::new_assert(Ipv4Addr::from(a).into(), n).trunc()),
            (any::<u128>(), 0u8..=128).prop_map(|(a, n)| IpNet::new_assert(Ipv6Addr::from(a).into(), n).trunc()),
        ]
    }

    proptest! {
        #[test]
        fn nothing_that_passes_covers_what_must_stay(
            steer in proptest::collection::vec(any_net(), 0..4),
            except in proptest::collection::vec(any_net(), 0..4),
        ) {
            let plan = Plan { steer, except, ..Plan::default() };
            if plan.check().is_ok() {
                for ip in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::",
                    "255.255.255.255", "246.246.255.1", "fd74:7078:6e65:7400::1", "::ffff:10.0.0.1"] {
                    let ip: IpAddr = ip.parse().unwrap();
                    prop_assert!(!plan.steers(ip));
                    prop_assert!(!plan.steer.iter().any(|n| n.contains(&ip)));
                }
                prop_assert!(plan.steer.iter().all(|n| n.prefix_len() >= 8));
            }
        }

        #[test]
        fn the_longest_prefix_decides(a: u32, long in 9u8..=32, short in 8u8..=31) {
            prop_assume!(short < long);
            let ip = Ipv4Addr::from(a);
            let net = |n| IpNet::new_assert(ip.into(), n).trunc();
            let plan = |steer, except| Plan { steer: vec![net(steer)], except: vec![net(except)], ..Plan::default() };
            prop_assert!(plan(long, short).steers(ip.into()));
            prop_assert!(!plan(short, long).steers(ip.into()));
        }
    }
}
