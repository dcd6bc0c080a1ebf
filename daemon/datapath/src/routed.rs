//! What a plan asks of a host that knows nothing but routes and rules for names: macOS and Windows.
//!
//! There the TUN road is the only one, whole, for every process. Pure; each platform turns the difference between two of
//! these into its own steps.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use tpx_core::{
    cidr::subtract,
    plan::{Plan, ResolverLink, Road, Scope},
};

use crate::HostError;

/// Desired state, as sets that the applied state is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routed {
    /// Prefixes that are routed to the device: all that the plan steers, virtual subnets included, and the name servers
    /// of [`names`](Self::names).
    pub routes: BTreeSet<IpNet>,
    /// Prefixes that only connections from the device's own address still reach through it.
    pub hidden: BTreeSet<IpNet>,
    /// Who answers which names.
    pub names: Names,
}

/// Names that are asked at tpx's own servers. Without servers there are no domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Where they are asked, at port 53, in the plan's order.
    pub servers: Vec<IpAddr>,
    /// Domains whose names are asked there; lower case, no dot at the end. Search domains are among them.
    pub domains: BTreeSet<String>,
    /// What completes single labels, in order.
    pub search: Vec<String>,
}

impl Routed {
    /// What `plan` asks for on `platform` (its name, for messages).
    ///
    /// # Errors
    /// [`HostError::Refused`] for a plan that is never allowed, [`HostError::Unsupported`] for what routes cannot express.
    pub fn of(plan: &Plan, platform: &str) -> Result<Self, HostError> {
        let unsupported = |why: &str| Err(HostError::Unsupported(format!("{why} on {platform}")));
        match (&plan.scope, plan.road) {
            (Scope::Cgroup(_) | Scope::Tree | Scope::Containers(_), _) => {
                return unsupported("`tpx run` needs Linux: routes serve the whole workstation, not one process tree,");
            }
            (Scope::Workstation, Road::Express) => {
                return unsupported("there is no express lane; use --datapath auto or tun");
            }
            (Scope::Workstation, Road::Tun) => plan.check().map_err(|e| HostError::Refused(e.to_string()))?,
        }
        let names = plan.resolver.as_ref().map(Names::of).unwrap_or_default();
        if !plan.name_servers.is_empty() && names.servers.is_empty() {
            return unsupported("name servers cannot be stood in for: the plan has to name a resolver");
        }
        let inside: Vec<IpNet> = plan.steer.iter().chain(&plan.virtual_subnets).copied().collect();
        let outside: Vec<IpNet> = plan.except.iter().chain(&plan.hidden).copied().collect();
        let mut routes: BTreeSet<IpNet> = subtract(&inside, &outside).into_iter().collect();
        routes.extend(names.servers.iter().map(|ip| IpNet::from(*ip)));
        Ok(Self { routes, hidden: subtract(&plan.hidden, &plan.except).into_iter().collect(), names })
    }
}

impl Names {
    fn of(link: &ResolverLink) -> Self {
        if link.servers.is_empty() {
            return Self::default();
        }
        let plain = |domain: &String| domain.trim_end_matches('.').to_ascii_lowercase();
        let mut search = Vec::new();
        for domain in link.search_domains.iter().map(plain) {
            if !search.contains(&domain) {
                search.push(domain);
            }
        }
        let domains = link.routing_domains.iter().map(plain).chain(search.iter().cloned()).collect();
        Self { servers: link.servers.clone(), domains, search }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tpx_ebpf_abi::slot::Slot;

    use super::*;

    pub(crate) fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    /// What `tpx connect` asks for in a cluster with a subnet behind virtual addresses.
    pub(crate) fn plan() -> Plan {
        Plan {
            road: Road::Tun,
            steer: nets(&["10.96.0.0/16", "fd10:96::/112"]),
            virtual_subnets: nets(&["211.55.48.0/24"]),
            hidden: nets(&["10.244.0.0/16"]),
            except: nets(&["10.96.0.1/32"]),
            resolver: Some(ResolverLink {
                servers: vec![Slot::FIRST.resolver4().into()],
                routing_domains: vec!["Cluster.Local".into(), "emojivoto.".into()],
                search_domains: vec!["emojivoto.svc.cluster.local".into(), "svc.cluster.local".into()],
            }),
            ..Plan::default()
        }
    }

    #[test]
    fn routes_are_what_the_plan_steers_and_the_way_to_its_name_server() {
        let routed = Routed::of(&plan(), "macOS").unwrap();
        for (ip, inside) in [
            ("10.96.0.1", false),
            ("10.96.0.2", true),
            ("10.96.255.255", true),
            ("10.244.1.1", false),
            ("211.55.48.9", true),
            ("211.55.49.9", false),
            ("fd10:96::1", true),
            ("246.246.255.200", true),
            ("192.0.2.1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(routed.routes.iter().any(|net| net.contains(&ip)), inside, "{ip}");
        }
        assert_eq!(routed.hidden, nets(&["10.244.0.0/16"]).into_iter().collect());
    }

    #[test]
    fn names_are_plain_and_search_domains_are_asked_there_too() {
        let names = Routed::of(&plan(), "macOS").unwrap().names;
        let domains: Vec<&str> = names.domains.iter().map(String::as_str).collect();
        assert_eq!(domains, ["cluster.local", "emojivoto", "emojivoto.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(names.search, ["emojivoto.svc.cluster.local", "svc.cluster.local"]);
    }

    #[test]
    fn a_resolver_without_servers_asks_for_nothing() {
        let mut plan = plan();
        plan.resolver.as_mut().unwrap().servers.clear();
        assert_eq!(Routed::of(&plan, "macOS").unwrap().names, Names::default());
    }

    #[test]
    fn what_routes_cannot_express_is_said_in_one_line() {
        let cases = [
            (Plan { scope: Scope::Cgroup("/sys/fs/cgroup/x".into()), ..plan() }, "`tpx run` needs Linux"),
            (Plan { scope: Scope::Tree, ..plan() }, "`tpx run` needs Linux"),
            (Plan { road: Road::Express, ..plan() }, "no express lane; use --datapath auto or tun on Windows"),
            (
                Plan { resolver: None, name_servers: vec!["192.0.2.53".parse().unwrap()], ..plan() },
                "has to name a resolver on Windows",
            ),
        ];
        for (plan, words) in cases {
            let error = Routed::of(&plan, "Windows").unwrap_err();
            assert!(matches!(error, HostError::Unsupported(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(words) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_plan_that_is_never_allowed_is_refused_here_as_well() {
        let plan = Plan { steer: nets(&["0.0.0.0/0"]), ..plan() };
        assert!(matches!(Routed::of(&plan, "macOS"), Err(HostError::Refused(_))));
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        (0u32..1 << 12, 20u8..=32)
            .prop_map(|(low, len)| IpNet::new_assert(std::net::Ipv4Addr::from(0x0a60_0000 | low).into(), len).trunc())
    }

    proptest! {
        #[test]
        fn an_address_is_routed_exactly_when_the_plan_steers_it(
            steer in prop::collection::btree_set(any_net(), 0..6),
            except in prop::collection::btree_set(any_net(), 0..6),
            hidden in prop::collection::btree_set(any_net(), 0..6),
            low in 0u32..1 << 12,
        ) {
            let except: Vec<IpNet> = except.difference(&steer).copied().collect();
            let hidden: Vec<IpNet> =
                hidden.into_iter().filter(|net| !steer.contains(net) && !except.contains(net)).collect();
            let plan =
                Plan { road: Road::Tun, steer: steer.into_iter().collect(), except, hidden, ..Plan::default() };
            let ip: IpAddr = std::net::Ipv4Addr::from(0x0a60_0000 | low).into();
            let routed = Routed::of(&plan, "macOS").unwrap();
            prop_assert_eq!(routed.routes.iter().any(|net| net.contains(&ip)), plan.steers(ip));
        }
    }
}
