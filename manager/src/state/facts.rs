//! What the cluster's subnets are, from what can be seen of it; pure.
//!
//! Service subnets: the `ServiceCIDR` objects where the cluster has them (Kubernetes 1.33, or 1.29 with the feature on).
//! Elsewhere they are learned from the ClusterIPs in use: IPv4 addresses that share their first 16 bits make that /16,
//! IPv6 addresses that share their first 112 bits that /112. Those are the usual sizes; an address outside what was
//! learned adds its own. Pod subnets: the nodes' pod CIDRs, and for pods outside them (clouds that give pods addresses
//! of their own network) the /24 or /120 around each pod, merged. Pods on the host's network do not count.

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
    /// Pod CIDRs of nodes.
    pub nodes: BTreeMap<String, Vec<IpNet>>,
    /// Addresses of pods that are not on their host's network, by namespace/name.
    pub pods: BTreeMap<String, Vec<IpAddr>>,
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
}

impl Seen {
    /// Makes facts of it. The same `Seen` always gives the same facts.
    #[must_use]
    pub fn facts(&self, cluster_domain: &str, manager_addresses: &[IpAddr]) -> Facts {
        let declared: Vec<IpNet> = self.service_cidrs.iter().flat_map(BTreeMap::values).flatten().copied().collect();
        let service_ips = self.services.values().flatten().copied();
        // Services outside every declared range: their range is being removed, or this is an old cluster.
        let services = cover(declared, service_ips, 16, 112);
        let pod_cidrs = self.nodes.values().flatten().copied().collect();
        let pods = cover(pod_cidrs, self.pods.values().flatten().copied(), 24, 120);
        let mut manager_addresses = manager_addresses.to_vec();
        manager_addresses.sort_unstable();
        manager_addresses.dedup();
        Facts {
            service_subnets: bounded(services),
            pod_subnets: bounded(pods),
            namespaces: self.namespaces.iter().take(Facts::MAX_NAMESPACES).cloned().collect(),
            cluster_domain: cluster_domain.to_owned(),
            manager_addresses,
        }
    }
}

/// `known`, and around each address outside of it a subnet with the prefix of its family.
fn cover(known: Vec<IpNet>, addresses: impl Iterator<Item = IpAddr>, v4: u8, v6: u8) -> Vec<IpNet> {
    let mut subnets: BTreeSet<IpNet> = known.iter().map(IpNet::trunc).collect();
    for address in addresses {
        if subnets.iter().any(|subnet| subnet.contains(&address)) {
            continue;
        }
        subnets.insert(match address {
            IpAddr::V4(address) => IpNet::from(Ipv4Net::new_assert(address, v4)).trunc(),
            IpAddr::V6(address) => IpNet::from(Ipv6Net::new_assert(address, v6)).trunc(),
        });
    }
    merge(subnets.into_iter().collect())
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
        seen.nodes.insert("n".into(), nets(&["10.244.0.0/24", "fd00:10:244::/64"]));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Every address that was seen is covered, and the facts are ones a laptop accepts.
        #[test]
        fn all_that_was_seen_is_covered(
            services in proptest::collection::vec(any::<IpAddr>(), 0..50),
            pods in proptest::collection::vec(any::<std::net::Ipv4Addr>(), 0..1500),
        ) {
            let mut seen = Seen::default();
            seen.services.insert("a".into(), services.clone());
            seen.pods.insert("a".into(), pods.iter().copied().map(IpAddr::V4).collect());
            let facts = seen.facts("cluster.local", &[]);
            let covered = |subnets: &[IpNet], ip: IpAddr| subnets.iter().any(|subnet| subnet.contains(&ip));
            prop_assert!(services.iter().all(|ip| covered(&facts.service_subnets, *ip)));
            prop_assert!(pods.iter().all(|ip| covered(&facts.pod_subnets, IpAddr::V4(*ip))));
            prop_assert_eq!(Facts::try_from(tpx_api::proto::Facts::from(&facts)), Ok(facts));
        }
    }
}
