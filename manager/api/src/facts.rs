//! What a laptop learns about the cluster, validated.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::proto;

/// The cluster's facts. Every list is sorted and free of duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where Services have their addresses.
    pub service_subnets: Vec<IpNet>,
    /// Where pods have their addresses.
    pub pod_subnets: Vec<IpNet>,
    /// Names of the namespaces.
    pub namespaces: Vec<String>,
    /// Without dots at the ends, as in `cluster.local`.
    pub cluster_domain: String,
    /// The manager's own addresses inside the cluster.
    pub manager_addresses: Vec<IpAddr>,
    /// What the cluster's administrator configures laptops with, as it was written (YAML); not validated here.
    pub client_config: Option<String>,
    /// Addresses of services and pods by their namespace; on a laptop, of the namespaces that it has asked for.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
}

/// Facts that a manager must not send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// A list is longer than its bound.
    #[error("the manager sent {count} {what}, more than {limit}")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// Its length.
        count: usize,
        /// Its bound.
        limit: usize,
    },
    /// Text that is not what it should be.
    #[error("the manager sent {text:?}, which is no {what}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// The text, cut off.
        text: String,
    },
}

impl Facts {
    /// Bound on each list of subnets and on the manager's addresses.
    pub const MAX_SUBNETS: usize = 1024;
    /// Bound on the namespaces.
    pub const MAX_NAMESPACES: usize = 65_536;
    /// Bound on the namespaces whose addresses one laptop asks for.
    pub const MAX_ASKED: usize = 64;
    /// Bound on the addresses of all these namespaces.
    pub const MAX_ADDRESSES: usize = 65_536;
    /// Bound on the client configuration, bytes.
    pub const MAX_CLIENT_CONFIG: usize = 64 << 10;

    /// The same for a laptop that has asked for the addresses of `namespaces`.
    ///
    /// # Errors
    /// When they have more than [`MAX_ADDRESSES`](Self::MAX_ADDRESSES).
    pub fn for_laptop(&self, namespaces: &[String]) -> Result<Self, FactsError> {
        let of = |name: &String| (name.clone(), self.addresses.get(name).cloned().unwrap_or_default());
        let addresses: BTreeMap<_, _> = namespaces.iter().map(of).collect();
        bounded_addresses(addresses.values().map(Vec::len).sum())?;
        let Self { service_subnets, pod_subnets, namespaces, cluster_domain, manager_addresses, client_config, .. } =
            self;
        Ok(Self {
            service_subnets: service_subnets.clone(),
            pod_subnets: pod_subnets.clone(),
            namespaces: namespaces.clone(),
            cluster_domain: cluster_domain.clone(),
            manager_addresses: manager_addresses.clone(),
            client_config: client_config.clone(),
            addresses,
        })
    }
}

impl TryFrom<proto::Facts> for Facts {
    type Error = FactsError;

    fn try_from(facts: proto::Facts) -> Result<Self, FactsError> {
        let domain = |text: String| {
            let valid = text.len() <= 253 && text.split('.').all(is_label);
            if valid { Ok(text) } else { Err(malformed("cluster domain", &text)) }
        };
        let namespace = |text: String| if is_label(&text) { Ok(text) } else { Err(malformed("namespace", &text)) };
        let subnet = |text: String| match text.parse::<IpNet>() {
            Ok(subnet) => Ok(subnet.trunc()),
            Err(_) => Err(malformed("subnet", &text)),
        };
        let address = |text: String| text.parse::<IpAddr>().map_err(|_| malformed("address", &text));
        if let Some(count) = facts.client_config.as_ref().map(String::len)
            && count > Self::MAX_CLIENT_CONFIG
        {
            let what = "bytes of client configuration";
            return Err(FactsError::TooMany { what, count, limit: Self::MAX_CLIENT_CONFIG });
        }
        let count = facts.addresses.iter().map(|of| of.addresses.len()).sum();
        bounded_addresses(count)?;
        if facts.addresses.len() > Self::MAX_ASKED {
            let what = "namespaces with addresses";
            return Err(FactsError::TooMany { what, count: facts.addresses.len(), limit: Self::MAX_ASKED });
        }
        let members = |of: proto::NamespaceAddresses| {
            Ok((namespace(of.namespace)?, list(of.addresses, "addresses", Self::MAX_ADDRESSES, address)?))
        };
        Ok(Self {
            addresses: facts.addresses.into_iter().map(members).collect::<Result<_, _>>()?,
            service_subnets: list(facts.service_subnets, "service subnets", Self::MAX_SUBNETS, subnet)?,
            pod_subnets: list(facts.pod_subnets, "pod subnets", Self::MAX_SUBNETS, subnet)?,
            namespaces: list(facts.namespaces, "namespaces", Self::MAX_NAMESPACES, namespace)?,
            cluster_domain: domain(facts.cluster_domain)?,
            manager_addresses: list(facts.manager_addresses, "addresses", Self::MAX_SUBNETS, address)?,
            client_config: facts.client_config,
        })
    }
}

impl From<&Facts> for proto::Facts {
    fn from(facts: &Facts) -> Self {
        let text = |subnets: &[IpNet]| subnets.iter().map(IpNet::to_string).collect();
        Self {
            service_subnets: text(&facts.service_subnets),
            pod_subnets: text(&facts.pod_subnets),
            namespaces: facts.namespaces.clone(),
            cluster_domain: facts.cluster_domain.clone(),
            manager_addresses: facts.manager_addresses.iter().map(IpAddr::to_string).collect(),
            client_config: facts.client_config.clone(),
            addresses: facts
                .addresses
                .iter()
                .map(|(namespace, addresses)| proto::NamespaceAddresses {
                    namespace: namespace.clone(),
                    addresses: addresses.iter().map(IpAddr::to_string).collect(),
                })
                .collect(),
        }
    }
}

fn bounded_addresses(count: usize) -> Result<(), FactsError> {
    let (what, limit) = ("addresses of namespaces", Facts::MAX_ADDRESSES);
    if count > limit { Err(FactsError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn list<T: Ord>(
    texts: Vec<String>,
    what: &'static str,
    limit: usize,
    parse: impl Fn(String) -> Result<T, FactsError>,
) -> Result<Vec<T>, FactsError> {
    if texts.len() > limit {
        return Err(FactsError::TooMany { what, count: texts.len(), limit });
    }
    let mut items = texts.into_iter().map(parse).collect::<Result<Vec<T>, _>>()?;
    items.sort_unstable();
    items.dedup();
    Ok(items)
}

/// RFC 1123, as Kubernetes has it: lower case, digits and inner hyphens, 63 at most.
fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

fn malformed(what: &'static str, text: &str) -> FactsError {
    FactsError::Malformed { what, text: text.chars().take(80).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> proto::Facts {
        proto::Facts {
            service_subnets: vec!["10.96.0.0/16".into(), "fd00:1::/108".into()],
            pod_subnets: vec!["10.244.0.7/24".into(), "10.244.0.0/24".into()],
            namespaces: vec!["emojivoto".into(), "default".into()],
            cluster_domain: "cluster.local".into(),
            manager_addresses: vec!["10.244.0.5".into()],
            client_config: Some("dns:\n  excludes: [internal]\n".into()),
            addresses: vec![proto::NamespaceAddresses {
                namespace: "emojivoto".into(),
                addresses: vec!["10.96.0.9".into(), "fd96::9".into(), "10.96.0.9".into()],
            }],
        }
    }

    #[test]
    fn canonical_form() {
        let facts = Facts::try_from(sample()).unwrap();
        assert_eq!(facts.pod_subnets, ["10.244.0.0/24".parse().unwrap()]);
        assert_eq!(facts.namespaces, ["default", "emojivoto"]);
        assert_eq!(facts.addresses["emojivoto"].len(), 2);
        let asked = facts.for_laptop(&["emojivoto".into(), "gone".into()]).unwrap();
        assert_eq!(asked.addresses["emojivoto"], facts.addresses["emojivoto"]);
        assert!(asked.addresses["gone"].is_empty());
        assert_eq!(facts.for_laptop(&[]).unwrap().addresses.len(), 0);
        assert_eq!(Facts::try_from(proto::Facts::from(&facts)), Ok(facts));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let change: [fn(&mut proto::Facts); 11] = [
            |facts| facts.addresses[0].addresses.push("host".into()),
            |facts| facts.addresses[0].addresses = vec!["10.0.0.1".into(); Facts::MAX_ADDRESSES + 1],
            |facts| facts.addresses = vec![facts.addresses[0].clone(); Facts::MAX_ASKED + 1],
            |facts| facts.client_config = Some("#".repeat(Facts::MAX_CLIENT_CONFIG + 1)),
            |facts| facts.service_subnets.push("10.0.0.0".into()),
            |facts| facts.pod_subnets = vec!["10.0.0.0/8".into(); Facts::MAX_SUBNETS + 1],
            |facts| facts.namespaces.push("a.b".into()),
            |facts| facts.namespaces.push(String::new()),
            |facts| facts.cluster_domain = ".cluster.local".into(),
            |facts| facts.cluster_domain = String::new(),
            |facts| facts.manager_addresses.push("host".into()),
        ];
        for change in change {
            let mut facts = sample();
            change(&mut facts);
            assert!(Facts::try_from(facts.clone()).is_err(), "{facts:?}");
        }
    }
}
