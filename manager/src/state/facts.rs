//! What the cluster's subnets are, from what can be seen of it; pure.
//!
//! Service subnets: the `ServiceCIDR` objects where the cluster has them (Kubernetes 1.33, or 1.29 with the feature on).
//! Elsewhere they are learned from the ClusterIPs in use: IPv4 addresses that share their first 16 bits make that /16,
//! IPv6 addresses that share their first 112 bits that /112. Those are the usual sizes; an address outside what was
//! learned adds its own. Pod subnets: the nodes' pod CIDRs, and for pods outside them (clouds that give pods addresses
//! of their own network) the /24 or /120 around each pod, merged. Pods on the host's network do not count, and the nodes' own
//! addresses are cut out of what was learned: they are the business of the laptop's own routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tpx_api::Facts;

/// What is known about the cluster, as it came in. Keys are names, so that updates and removals find their object.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `ServiceCIDR` objects; `None` while the cluster has not said whether it has any.
    pub service_cidrs: Option<BTreeMap<String, Vec<IpNet>>>,
    /// ClusterIPs of Services, by namespace/name.
    pub services: BTreeMap<String, Vec<IpAddr>>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Addresses of pods that are not on their host's network, by namespace/name.
    pub pods: BTreeMap<String, Vec<IpAddr>>,
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
    /// What the administrator configures laptops with.
    pub client_config: Option<String>,
}

/// What matters of a node.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

impl Seen {
    /// Makes facts of it. The same `Seen` always gives the same facts.
    #[must_use]
    pub fn facts(&self, cluster_domain: &str, manager_addresses: &[IpAddr]) -> Facts {
        let declared: Vec<IpNet> = self.service_cidrs.iter().flat_map(BTreeMap::values).flatten().copied().collect();
        let service_ips = self.services.values().flatten().copied();
        // Services outside every declared range: their range is being removed, or this is an old cluster.
        let services = merge([learned(&declared, service_ips, 16, 112), declared].concat());
        let pod_cidrs: Vec<IpNet> = self.nodes.values().flat_map(|node| &node.pod_cidrs).copied().collect();
        let pods = self.pod_subnets(pod_cidrs);
        let mut manager_addresses = manager_addresses.to_vec();
        manager_addresses.sort_unstable();
        manager_addresses.dedup();
        Facts {
            service_subnets: bounded(services),
            pod_subnets: bounded(pods),
            namespaces: self.namespaces.iter().take(Facts::MAX_NAMESPACES).cloned().collect(),
            cluster_domain: cluster_domain.to_owned(),
            manager_addresses,
            client_config: self.client_config.clone(),
            addresses: self.addresses(),
        }
    }

    /// What each namespace has.
    fn addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let mut all: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for (key, ips) in self.services.iter().chain(&self.pods) {
            if let Some((namespace, _)) = key.split_once('/') {
                all.entry(namespace).or_default().extend(ips);
            }
        }
        all.into_iter().map(|(namespace, ips)| (namespace.to_owned(), ips.into_iter().collect())).collect()
    }

    fn pod_subnets(&self, pod_cidrs: Vec<IpNet>) -> Vec<IpNet> {
        let learned = merge(learned(&pod_cidrs, self.pods.values().flatten().copied(), 24, 120));
        let nodes: BTreeSet<IpAddr> = self.nodes.values().flat_map(|node| &node.addresses).copied().collect();
        let cut = learned.iter().flat_map(|subnet| without(*subnet, &nodes)).collect();
        let subnets = merge([cut, pod_cidrs.clone()].concat());
        if subnets.len() <= Facts::MAX_SUBNETS {
            return subnets;
        }
        // Too many holes: a laptop's table of subnets is bounded, and pods come first.
        merge([learned, pod_cidrs].concat())
    }
}

/// Around each address outside of `known` a subnet with the prefix of its family.
fn learned(known: &[IpNet], addresses: impl Iterator<Item = IpAddr>, v4: u8, v6: u8) -> Vec<IpNet> {
    let mut learned = BTreeSet::new();
    for address in addresses {
        let around = match address {
            IpAddr::V4(address) => IpNet::from(Ipv4Net::new_assert(address, v4)).trunc(),
            IpAddr::V6(address) => IpNet::from(Ipv6Net::new_assert(address, v6)).trunc(),
        };
        if !learned.contains(&around) && !known.iter().any(|subnet| subnet.contains(&address)) {
            learned.insert(around);
        }
    }
    learned.into_iter().collect()
}

/// `subnet` in parts that hold none of `holes`.
fn without(subnet: IpNet, holes: &BTreeSet<IpAddr>) -> Vec<IpNet> {
    if holes.range(subnet.network()..=subnet.broadcast()).next().is_none() {
        return vec![subnet];
    }
    let halves = subnet.subnets(subnet.prefix_len() + 1);
    // A single address has no halves: it is a hole.
    halves.into_iter().flatten().flat_map(|half| without(half, holes)).collect()
}

/// Joins neighbours, drops what another contains, sorts.
fn merge(subnets: Vec<IpNet>) -> Vec<IpNet> {
    let mut merged = IpNet::aggregate(&subnets);
    merged.sort_unstable();
    merged
}

/// At most [`Facts::MAX_SUBNETS`]: a large cluster's many small subnets become fewer, larger ones.
fn bounded(mut subnets: Vec<IpNet>) -> Vec<IpNet> {
    while subnets.len() > Facts::MAX_SUBNETS {
        let longest = |v4: bool| subnets.iter().filter(|s| s.addr().is_ipv4() == v4).map(IpNet::prefix_len).max();
        let (v4, v6) = (longest(true), longest(false));
        let widened = subnets.iter().map(|subnet| {
            let longest = if subnet.addr().is_ipv4() { v4 } else { v6 };
            match subnet.supernet() {
                Some(wider) if Some(subnet.prefix_len()) == longest => wider,
                _ => *subnet,
            }
        });
        subnets = merge(widened.collect());
    }
    subnets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn declared_ranges_are_taken_as_they_are() {
        let declared = [("kubernetes".into(), nets(&["10.96.0.0/12", "fd00:10:96::/112"]))].into();
        let mut seen = Seen { service_cidrs: Some(declared), ..Seen::default() };
        seen.services.insert("default/kubernetes".into(), ips(&["10.96.0.1"]));
        let pod_cidrs = nets(&["10.244.0.0/24", "fd00:10:244::/64"]);
        // Some put their bridge's address among the node's: what is declared is not cut.
        let addresses = ips(&["192.168.1.7", "10.244.0.1"]);
        seen.nodes.insert("n".into(), Node { pod_cidrs, addresses });
        seen.pods.insert("a/b".into(), ips(&["10.244.0.9", "fd00:10:244::9"]));
        let facts = seen.facts("cluster.local", &ips(&["10.244.0.5"]));
        assert_eq!(facts.service_subnets, nets(&["10.96.0.0/12", "fd00:10:96::/112"]));
        assert_eq!(facts.pod_subnets, nets(&["10.244.0.0/24", "fd00:10:244::/64"]));
    }

    #[test]
    fn without_declarations_they_are_learned() {
        let mut seen = Seen::default();
        seen.services.insert("default/kubernetes".into(), ips(&["10.43.0.1"]));
        seen.services.insert("default/b".into(), ips(&["10.43.7.9", "fd00::7:1"]));
        seen.pods.insert("a/b".into(), ips(&["172.31.4.7"]));
        seen.pods.insert("a/c".into(), ips(&["172.31.5.7", "172.31.4.8"]));
        let facts = seen.facts("cluster.local", &[]);
        assert_eq!(facts.service_subnets, nets(&["10.43.0.0/16", "fd00::7:0/112"]));
        assert_eq!(facts.pod_subnets, nets(&["172.31.4.0/23"]));
    }

    /// Pods with addresses of the nodes' network (AWS VPC CNI, Azure CNI, host-local macvlan).
    #[test]
    fn nodes_are_cut_out_of_what_was_learned() {
        let mut seen = Seen::default();
        seen.nodes.insert("n".into(), Node { pod_cidrs: Vec::new(), addresses: ips(&["10.0.7.200", "203.0.113.9"]) });
        seen.pods.insert("a/b".into(), ips(&["10.0.7.20"]));
        let subnets = seen.facts("cluster.local", &[]).pod_subnets;
        let covers = |ip: &str| subnets.iter().any(|subnet| subnet.contains(&ip.parse::<IpAddr>().unwrap()));
        assert!(covers("10.0.7.20") && covers("10.0.7.199") && covers("10.0.7.201"));
        assert!(!covers("10.0.7.200") && !covers("203.0.113.9"));
        assert_eq!(subnets.len(), 8, "{subnets:?}");
    }

    #[test]
    fn too_many_nodes_do_not_hide_the_pods() {
        let mut seen = Seen::default();
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
        seen.nodes.insert(
            "n".into(),
            Node { pod_cidrs: Vec::new(), addresses: (0..60_000).step_by(30).map(address).collect() },
        );
        seen.pods.insert("a".into(), (1..60_000).step_by(100).map(address).collect());
        let subnets = seen.facts("cluster.local", &[]).pod_subnets;
        assert!(subnets.len() <= Facts::MAX_SUBNETS);
        assert!((1..60_000).step_by(100).all(|n| subnets.iter().any(|subnet| subnet.contains(&address(n)))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Every address that was seen is covered, and the facts are ones a laptop accepts.
        #[test]
        fn all_that_was_seen_is_covered(
            services in proptest::collection::vec(any::<IpAddr>(), 0..50),
            pods in proptest::collection::vec(any::<std::net::Ipv4Addr>(), 0..1500),
            nodes in proptest::collection::vec(any::<std::net::Ipv4Addr>(), 0..20),
            beside in 0_usize..20,
        ) {
            let mut seen = Seen::default();
            seen.services.insert("a".into(), services.clone());
            seen.pods.insert("a".into(), pods.iter().copied().map(IpAddr::V4).collect());
            // Some nodes next to pods.
            let beside = pods.iter().take(beside).map(|pod| std::net::Ipv4Addr::from(u32::from(*pod) ^ 1));
            let nodes: Vec<IpAddr> = nodes.into_iter().chain(beside).map(IpAddr::V4).collect();
            seen.nodes.insert("n".into(), Node { pod_cidrs: Vec::new(), addresses: nodes.clone() });
            let facts = seen.facts("cluster.local", &[]);
            let covered = |subnets: &[IpNet], ip: IpAddr| subnets.iter().any(|subnet| subnet.contains(&ip));
            prop_assert!(services.iter().all(|ip| covered(&facts.service_subnets, *ip)));
            let pods: BTreeSet<IpAddr> = pods.into_iter().map(IpAddr::V4).collect();
            prop_assert!(pods.iter().all(|ip| nodes.contains(ip) || covered(&facts.pod_subnets, *ip)));
            if pods.len() < 500 {
                prop_assert!(nodes.iter().all(|ip| !covered(&facts.pod_subnets, *ip)));
            }
            prop_assert_eq!(Facts::try_from(tpx_api::proto::Facts::from(&facts)), Ok(facts));
        }
    }
}
