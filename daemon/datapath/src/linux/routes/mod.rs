//! What the host would do without tpx: its routes and policy rules, read without privilege, and followed as they change.
//!
//! The kernel's own answer (`ip route get`) has tpx's rules in it. So the rules and tables of the host are listed, those
//! of tpx left out, and the look-up is done here, in the kernel's order: for a packet of a socket of this user that has
//! neither source address, mark nor device yet. Rules that ask for protocols or ports are taken as not matching.

mod ask;
mod monitor;
mod read;
mod rule;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use tpx_core::subnets::HostRoute;
use tpx_ebpf_abi::slot::Slot;

pub(super) use ask::{device_of, device_to};
pub use monitor::Monitor;
pub use read::read;

use self::rule::{Action, Rule, Verdict};

/// What the host's network looks like without tpx.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// Unicast routes of all tables but the kernel's own, default routes included, one for each next hop, sorted.
    pub routes: Vec<HostRoute>,
    /// Routers that these routes go through, sorted.
    pub gateways: Vec<IpAddr>,
    /// The host's own addresses, without loopback and link-local ones, sorted.
    pub addresses: Vec<IpAddr>,
    /// In the kernel's order.
    rules: Vec<Rule>,
    /// Sorted: within each table the most specific first, then the preferred.
    rows: Vec<Row>,
}

/// Where a packet would go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By this route.
    Route(HostRoute),
    /// To this host itself.
    Local,
    /// No route leads there, or one that refuses.
    Nowhere,
}

impl Way {
    /// The route that leaves this host.
    #[must_use]
    pub fn into_route(self) -> Option<HostRoute> {
        match self {
            Self::Route(route) => Some(route),
            Self::Local | Self::Nowhere => None,
        }
    }
}

/// A line of a routing table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    table: u32,
    /// Address bits that the prefix leaves open: fewer is more specific.
    open: u8,
    /// Less is preferred.
    metric: u32,
    kind: Kind,
    route: HostRoute,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Unicast,
    Local,
    /// Unreachable, prohibit, blackhole.
    Refusing,
    /// "Look into the next table."
    Throw,
}

/// `RT_TABLE_LOCAL` of linux/rtnetlink.h.
const LOCAL_TABLE: u32 = 255;

impl HostNetwork {
    /// Leaves out what is tpx's own: what leads there is what the host would not have without it.
    fn of(mut rules: Vec<Rule>, mut rows: Vec<Row>, addresses: BTreeSet<IpAddr>) -> Self {
        rules.retain(|rule| !matches!(rule.action, Action::Table(table) if Slot::owns_table(table)));
        // The kernel lists rules by preference, each family apart; the sort is stable.
        rules.sort_by_key(|rule| rule.preference);
        rows.retain(|row| !Slot::owns_table(row.table) && !is_ours(&row.route.device));
        rows.sort();
        let unicast = rows.iter().filter(|row| row.kind == Kind::Unicast && row.table != LOCAL_TABLE);
        let routes: BTreeSet<HostRoute> = unicast.map(|row| row.route.clone()).collect();
        let gateways: BTreeSet<IpAddr> = routes.iter().filter_map(|route| route.gateway).collect();
        Self {
            routes: routes.into_iter().collect(),
            gateways: gateways.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
            rules,
            rows,
        }
    }

    /// Where a packet to `ip` would go without tpx.
    #[must_use]
    pub fn lookup(&self, ip: IpAddr) -> Way {
        let mut at = 0;
        while let Some(rule) = self.rules.get(at) {
            at += 1;
            match rule.verdict(ip) {
                Verdict::Table { id, suppressed } => match self.in_table(id, ip, suppressed) {
                    Some(row) if row.kind == Kind::Unicast => return Way::Route(row.route.clone()),
                    Some(row) if row.kind == Kind::Local => return Way::Local,
                    Some(row) if row.kind == Kind::Refusing => return Way::Nowhere,
                    _ => {}
                },
                Verdict::Goto(preference) => {
                    // The kernel jumps forward only.
                    let ahead = self.rules[at..].iter().position(|r| r.is_target(preference, ip));
                    at = ahead.map_or(self.rules.len(), |skip| at + skip);
                }
                Verdict::Refuse => return Way::Nowhere,
                Verdict::Next => {}
            }
        }
        Way::Nowhere
    }

    fn in_table(&self, table: u32, ip: IpAddr, suppressed: Option<u8>) -> Option<&Row> {
        let covers = |row: &&Row| row.table == table && row.route.destination.contains(&ip);
        let best = self.rows.iter().find(covers)?;
        suppressed.is_none_or(|longest| best.route.destination.prefix_len() > longest).then_some(best)
    }
}

impl Row {
    fn new(route: HostRoute, metric: u32, kind: Kind) -> Self {
        let open = max_len(&route.destination) - route.destination.prefix_len();
        Self { table: route.table, open, metric, kind, route }
    }
}

fn is_ours(device: &str) -> bool {
    Slot::all().any(|slot| slot.device() == device)
}

fn max_len(net: &IpNet) -> u8 {
    if net.addr().is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, device: &str, table: u32) -> HostRoute {
        HostRoute { destination: destination.parse().unwrap(), device: device.into(), gateway: None, table }
    }

    fn host(rules: Vec<Rule>, rows: Vec<Row>) -> HostNetwork {
        HostNetwork::of(rules, rows, BTreeSet::new())
    }

    fn unicast(destination: &str, device: &str, table: u32) -> Row {
        Row::new(route(destination, device, table), 0, Kind::Unicast)
    }

    fn device(host: &HostNetwork, ip: &str) -> String {
        match host.lookup(ip.parse().unwrap()) {
            Way::Route(route) => route.device,
            other => format!("{other:?}"),
        }
    }

    fn standard() -> Vec<Rule> {
        vec![Rule::to_table(0, 255), Rule::to_table(32766, 254), Rule::to_table(32767, 253)]
    }

    #[test]
    fn the_most_specific_then_the_preferred() {
        let slow = Row { metric: 600, ..unicast("0.0.0.0/0", "wlan0", 254) };
        let routes = vec![
            unicast("10.0.0.0/8", "vpn0", 254),
            slow,
            Row { metric: 100, ..unicast("0.0.0.0/0", "eth0", 254) },
            unicast("10.1.0.0/16", "eth1", 254),
            Row::new(route("192.168.1.5/32", "eth0", 255), 0, Kind::Local),
            Row::new(route("10.66.0.0/16", "", 254), 0, Kind::Refusing),
        ];
        let host = host(standard(), routes);
        for (ip, expected) in [
            ("10.2.3.4", "vpn0"),
            ("10.1.3.4", "eth1"),
            ("192.0.2.1", "eth0"),
            ("192.168.1.5", "Local"),
            ("10.66.1.1", "Nowhere"),
            ("2001:db8::1", "Nowhere"),
        ] {
            assert_eq!(device(&host, ip), expected, "{ip}");
        }
        assert_eq!(host.routes.len(), 4);
    }

    #[test]
    fn as_wg_quick_does() {
        let mut rules = standard();
        rules.insert(1, Rule { suppressed: Some(0), ..Rule::to_table(32764, 254) });
        rules.insert(2, Rule { invert: true, mark: Some((0xca6c, u32::MAX)), ..Rule::to_table(32765, 51820) });
        let routes = vec![
            unicast("0.0.0.0/0", "wg0", 51820),
            unicast("0.0.0.0/0", "eth0", 254),
            unicast("192.168.1.0/24", "eth0", 254),
        ];
        let host = host(rules, routes);
        assert_eq!(device(&host, "198.51.100.1"), "wg0");
        assert_eq!(device(&host, "192.168.1.7"), "eth0");
    }

    #[test]
    fn jumps_throws_and_refusals() {
        let rules = vec![
            Rule { action: Action::Goto(200), to: Some("10.0.0.0/8".parse().unwrap()), ..Rule::to_table(100, 0) },
            Rule::to_table(150, 1),
            Rule::to_table(200, 2),
            Rule { action: Action::Refuse, ..Rule::to_table(300, 0) },
            Rule::to_table(32766, 254),
        ];
        let routes = vec![
            unicast("0.0.0.0/0", "one", 1),
            unicast("10.0.0.0/8", "two", 2),
            Row::new(route("10.9.0.0/16", "", 2), 0, Kind::Throw),
            unicast("0.0.0.0/0", "main", 254),
        ];
        let host = host(rules, routes);
        assert_eq!(device(&host, "10.1.1.1"), "two");
        assert_eq!(device(&host, "192.0.2.1"), "one");
        assert_eq!(device(&host, "10.9.1.1"), "Nowhere");
    }
}
