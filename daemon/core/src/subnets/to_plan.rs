//! From the decision to the plan.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Mode, Subnets, ranges};
use crate::plan::{Plan, Road, Scope};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Steer,
    Hidden,
    Outside,
}

impl Subnets {
    /// The plan that carries the decision out. `name_servers` in the order of the host's configuration; those past
    /// [`Plan::MAX_NAME_SERVERS`] are left out.
    ///
    /// The ranges of virtual addresses are in it as soon as their family has any subnet, moved or not: connections to
    /// virtual addresses go on when the conflict that made them is over.
    #[must_use]
    pub fn plan(&self, scope: Scope, road: Road, name_servers: &[IpAddr]) -> Plan {
        let mut plan = Plan { scope, road, ..Plan::default() };
        let mut around: Vec<(IpNet, Class)> = Vec::new();
        for (cidr, class) in self.classes() {
            while around.last().is_some_and(|(net, _)| !net.contains(&cidr)) {
                around.pop();
            }
            if around.last().map_or(Class::Outside, |(_, class)| *class) != class {
                match class {
                    Class::Steer => plan.steer.push(cidr),
                    Class::Hidden => plan.hidden.push(cidr),
                    Class::Outside => plan.except.push(cidr),
                }
            }
            around.push((cidr, class));
        }
        let used = |four: bool| plan.steer.iter().chain(&plan.hidden).any(|net| net.addr().is_ipv4() == four);
        let ranges: [IpNet; 2] = [self.virtual4.into(), self.virtual6.into()];
        plan.virtual_subnets =
            ranges.into_iter().filter(|range| used(range.addr().is_ipv4())).flat_map(ranges::usable).collect();
        for server in name_servers {
            if !plan.name_servers.contains(server) && plan.name_servers.len() < Plan::MAX_NAME_SERVERS {
                plan.name_servers.push(*server);
            }
        }
        plan
    }

    /// Every entry, sorted.
    fn classes(&self) -> BTreeMap<IpNet, Class> {
        let subnets = self.subnets.iter().map(|subnet| {
            let class = match subnet.mode {
                Mode::Direct => Class::Steer,
                Mode::Virtual { .. } => Class::Hidden,
                Mode::Refused { .. } => Class::Outside,
            };
            (subnet.cidr, class)
        });
        subnets.chain(self.exceptions.iter().map(|exception| (exception.cidr, Class::Outside))).collect()
    }
}
