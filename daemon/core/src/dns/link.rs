//! What a resolver that knows a name server for each device (systemd-resolved) has to be told about tpx's: the same
//! names that [`decide`](super::decide) gives to the cluster, as far as suffixes can say it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::PolicyConfig;

/// Most zones that one subnet is split into.
const ZONES: usize = 16;

/// Domains of one device's name server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkDomains {
    /// Names under these are asked there and nowhere else. A large cluster has more namespaces than such a resolver has room for:
    /// what matters most comes first.
    pub routing: Vec<String>,
    /// These complete single labels.
    pub search: Vec<String>,
}

impl PolicyConfig {
    /// The domains, without duplicates. Behind those that are no namespaces and the connected namespace stand the others, sorted.
    #[must_use]
    pub fn link_domains(&self) -> LinkDomains {
        let domain = self.domain().to_string().trim_end_matches('.').to_owned();
        let namespaces = self.mapped_namespaces.as_ref().unwrap_or(&self.namespaces);
        let excluded = |namespace: &&String| {
            self.exclude_suffixes.iter().any(|name| name.to_string().trim_end_matches('.') == namespace.as_str())
        };
        let mut first: BTreeSet<String> = [domain.clone(), "svc".into(), "pod".into()].into();
        first.extend(self.include_suffixes.iter().map(|name| name.to_string().trim_end_matches('.').to_owned()));
        first.extend(self.subnets.iter().chain(&self.virtual_subnets).flat_map(reverse_zones));
        let connected = self.connected_namespace.as_ref();
        first.extend(connected.filter(|name| namespaces.contains(*name) && !excluded(name)).cloned());
        let mut routing: Vec<String> = first.iter().cloned().collect();
        routing.extend(namespaces.iter().filter(|name| !excluded(name) && !first.contains(*name)).cloned());
        let search = connected.map(|namespace| format!("{namespace}.svc.{domain}")).into_iter().collect();
        LinkDomains { routing, search }
    }
}

/// The zones under in-addr.arpa or ip6.arpa that hold exactly the reverse names of `net`; none where that takes too many.
fn reverse_zones(net: &IpNet) -> Vec<String> {
    let bits = if net.addr().is_ipv4() { 8 } else { 4 };
    let length = net.prefix_len().div_ceil(bits) * bits;
    let zones = net.subnets(length).into_iter().flatten().take(ZONES + 1).map(|zone| zone_name(&zone));
    let zones: Vec<String> = zones.collect();
    if zones.len() > ZONES { Vec::new() } else { zones }
}

fn zone_name(zone: &IpNet) -> String {
    let labels: Vec<String> = match zone {
        IpNet::V4(net) => {
            net.addr().octets().iter().take(usize::from(net.prefix_len() / 8)).map(u8::to_string).collect()
        }
        IpNet::V6(net) => {
            let nibbles = net.addr().octets().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
            nibbles.take(usize::from(net.prefix_len() / 4)).map(|nibble| format!("{nibble:x}")).collect()
        }
    };
    let end = if zone.addr().is_ipv4() { "in-addr.arpa" } else { "ip6.arpa" };
    labels.iter().rev().map(|label| format!("{label}.")).collect::<String>() + end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PolicyConfig {
        let mut config = PolicyConfig::new("cluster.local".parse().unwrap());
        config.namespaces = ["default", "emojivoto", "com"].map(str::to_owned).into();
        config.connected_namespace = Some("emojivoto".into());
        config.virtual_subnets = vec!["246.246.0.0/16".parse().unwrap()];
        config.subnets = vec!["10.96.0.0/16".parse().unwrap(), "fd10:96::/112".parse().unwrap()];
        config
    }

    #[test]
    fn the_clusters_names_and_nothing_that_others_own() {
        let domains = config().link_domains();
        for name in ["cluster.local", "svc", "default", "emojivoto", "96.10.in-addr.arpa", "246.246.in-addr.arpa"] {
            assert!(domains.routing.iter().any(|domain| domain == name), "{name}: {domains:?}");
        }
        assert!(domains.routing.iter().any(|domain| domain.ends_with("6.9.0.0.0.1.d.f.ip6.arpa")));
        assert!(!domains.routing.contains(&"com".into()), "a top-level domain must not be taken from the internet");
        assert_eq!(domains.search, ["emojivoto.svc.cluster.local"]);
    }

    #[test]
    fn of_many_namespaces_the_others_come_last() {
        let mut config = config();
        config.namespaces.extend((0..2000).map(|n| format!("a{n:04}")));
        config.include_suffixes = ["corp.example".parse().unwrap()].into();
        let domains = config.link_domains();
        let first = &domains.routing[..20];
        for name in ["cluster.local", "svc", "pod", "corp.example", "emojivoto", "246.246.in-addr.arpa"] {
            assert!(first.iter().any(|domain| domain == name), "{name}: {first:?}");
        }
        let all: BTreeSet<&String> = domains.routing.iter().collect();
        assert_eq!((all.len(), domains.routing.len()), (2009, 2009));
    }

    #[test]
    fn mapped_namespaces_limit_the_names() {
        let mapped = Some(["shop".to_owned()].into());
        let domains = PolicyConfig { mapped_namespaces: mapped, ..config() }.link_domains();
        assert!(domains.routing.contains(&"shop".into()) && !domains.routing.contains(&"emojivoto".into()));
    }

    #[test]
    fn prefixes_between_labels_are_split() {
        assert_eq!(reverse_zones(&"10.0.0.0/15".parse().unwrap()), ["0.10.in-addr.arpa", "1.10.in-addr.arpa"]);
        assert_eq!(reverse_zones(&"10.96.0.0/12".parse().unwrap()).len(), 16);
        assert!(reverse_zones(&"10.0.0.0/11".parse().unwrap()).is_empty());
    }
}
