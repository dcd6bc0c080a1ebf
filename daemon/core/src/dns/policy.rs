//! Who answers a question: the cluster, the original name servers, or both in turn.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    str::FromStr,
};

use ipnet::IpNet;

use super::{Name, Question, reverse_net};

/// What the decision depends on. Order and repetition in the lists make no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// The cluster's domain. The root stands for "not known"; then `cluster.local` is assumed, the kubelet's default.
    pub cluster_domain: Name,
    /// The namespaces the cluster has, as last heard.
    pub namespaces: BTreeSet<String>,
    /// With a value, only these namespaces' names are the cluster's (`--mapped-namespaces`), existing or not.
    pub mapped_namespaces: Option<BTreeSet<String>>,
    /// The namespace whose services are known by a single label.
    pub connected_namespace: Option<String>,
    /// Names under these belong to the original servers, although a namespace is called like the suffix.
    /// Nothing under the cluster domain, `.svc` or `.pod` is affected.
    pub exclude_suffixes: BTreeSet<Name>,
    /// Names under these are asked in the cluster as they are; stronger than `exclude_suffixes`.
    pub include_suffixes: BTreeSet<Name>,
    /// Exactly these names belong to the original servers, although the cluster has them too (a local `redis` instead
    /// of the cluster's).
    pub excludes: BTreeSet<Name>,
    /// Exactly these names stand for others, or for an address. Stronger than everything else; what they stand for is
    /// not looked up here again.
    pub mappings: BTreeMap<Name, Alias>,
    /// The cluster's service and pod subnets, for reverse names.
    pub subnets: Vec<IpNet>,
    /// Where virtual addresses come from: reverse names of those that nothing is behind belong to nobody.
    pub virtual_subnets: Vec<IpNet>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alias {
    /// Another name, of the cluster's or not.
    Name(Name),
    /// An address.
    Address(IpAddr),
}

/// An address where it can be read as one.
impl FromStr for Alias {
    type Err = super::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl PolicyConfig {
    /// The suffixes excluded where the user says nothing else: top-level domains that are also likely words.
    pub const DEFAULT_EXCLUDE_SUFFIXES: [&'static str; 5] = [".com", ".io", ".net", ".org", ".ru"];

    /// A configuration that knows the cluster's domain and no namespace, with the default exclusions.
    pub fn new(cluster_domain: Name) -> Self {
        Self {
            cluster_domain,
            namespaces: BTreeSet::new(),
            mapped_namespaces: None,
            connected_namespace: None,
            exclude_suffixes: Self::DEFAULT_EXCLUDE_SUFFIXES.iter().filter_map(|text| text.parse().ok()).collect(),
            include_suffixes: BTreeSet::new(),
            excludes: BTreeSet::new(),
            mappings: BTreeMap::new(),
            subnets: Vec::new(),
            virtual_subnets: Vec::new(),
        }
    }

    pub(super) fn domain(&self) -> Cow<'_, Name> {
        if self.cluster_domain.is_empty() {
            Cow::Owned(Name::from_labels(["cluster", "local"]).unwrap_or_default())
        } else {
            Cow::Borrowed(&self.cluster_domain)
        }
    }

    /// Whether short names may end in this namespace.
    fn is_cluster_namespace(&self, label: &[u8]) -> bool {
        contains(self.mapped_namespaces.as_ref().unwrap_or(&self.namespaces), label)
    }

    /// Whether `--mapped-namespaces` hides this namespace.
    fn is_hidden_namespace(&self, label: &[u8]) -> bool {
        self.mapped_namespaces.as_ref().is_some_and(|mapped| !contains(mapped, label))
    }

    /// Whether a host must be asked through the cluster because a reverse name covers it.
    fn covers(&self, net: &IpNet) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(net))
    }
}

fn contains(namespaces: &BTreeSet<String>, label: &[u8]) -> bool {
    // Names come in lower case; what a user typed may not.
    namespaces.iter().any(|namespace| namespace.as_bytes().eq_ignore_ascii_case(label))
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The cluster alone. The candidates are absolute names, asked in turn until one exists; never empty.
    Cluster {
        /// What to ask.
        candidates: Vec<Name>,
    },
    /// The cluster, and where no candidate exists the original server.
    ClusterThenElsewhere {
        /// What to ask.
        candidates: Vec<Name>,
    },
    /// The original server, untouched.
    Elsewhere,
    /// The original server, about another name; its answer is given under the name that was asked.
    ElsewhereAs(Name),
    /// This address, and no other record.
    Address(IpAddr),
    /// Nobody: the name belongs to a part of the cluster that must not be seen, or cannot exist.
    NxDomain,
}

/// Decides who answers `question`.
///
/// In this order: mapped names; excluded names; the cluster domain and what lies under it; reverse names of virtual
/// addresses and of the cluster's subnets; `.svc` and `.pod`; included suffixes; excluded suffixes; names whose last
/// label is one of the cluster's namespaces; single labels, which are services of the connected namespace. What is under
/// the cluster domain, `.svc` or `.pod`, included, reverse, or in a namespace never goes elsewhere, also when the cluster
/// does not know the name: it would tell strangers what runs inside.
pub fn decide(config: &PolicyConfig, question: &Question) -> Decision {
    match config.mappings.get(&question.name) {
        Some(Alias::Address(address)) => Decision::Address(address.to_canonical()),
        Some(Alias::Name(name)) => {
            let asked = Question { name: name.clone(), ..*question };
            match decide_plain(config, &asked) {
                Decision::Elsewhere => Decision::ElsewhereAs(name.clone()),
                // Whoever maps a name to a single label means the service.
                Decision::ClusterThenElsewhere { candidates } => Decision::Cluster { candidates },
                other => other,
            }
        }
        None if config.excludes.contains(&question.name) => Decision::Elsewhere,
        None => decide_plain(config, question),
    }
}

/// [`decide`] without the rules for single names.
fn decide_plain(config: &PolicyConfig, question: &Question) -> Decision {
    let name = &question.name;
    let domain = &*config.domain();
    if let Some(relative) = name.relative_to(domain) {
        return if is_hidden(config, &relative) { Decision::NxDomain } else { cluster([Some(name.clone())]) };
    }
    if let Some(net) = reverse_net(name) {
        if config.virtual_subnets.iter().any(|range| range.contains(&net)) {
            return Decision::NxDomain;
        }
        if config.covers(&net) {
            return cluster([Some(name.clone())]);
        }
    }
    let Some(top) = name.from_top(0) else { return Decision::Elsewhere };
    let included = under_any(name, &config.include_suffixes).then(|| name.clone());
    if name.len() > 1 {
        // A namespace may be called `svc` or `pod`: then a name has two readings, and both are asked.
        let in_namespace = config.is_cluster_namespace(top).then(|| expand(name, Some("svc"), domain)).flatten();
        if matches!(top, b"svc" | b"pod") {
            let absolute = (!is_hidden(config, name)).then(|| expand(name, None, domain)).flatten();
            return cluster([absolute, in_namespace, included]);
        }
        if included.is_none() && under_any(name, &config.exclude_suffixes) {
            return Decision::Elsewhere;
        }
        if included.is_some() || config.is_cluster_namespace(top) {
            return cluster([in_namespace, included]);
        }
        return Decision::Elsewhere;
    }
    if included.is_some() {
        return cluster([included]);
    }
    single_label(config, question)
}

/// A single label is a service of the connected namespace, if that has one of this name.
fn single_label(config: &PolicyConfig, question: &Question) -> Decision {
    let Some(namespace) = &config.connected_namespace else { return Decision::Elsewhere };
    let ours = !config.is_hidden_namespace(namespace.as_bytes())
        && !under_any(&question.name, &config.exclude_suffixes)
        // The root's delegations are no services; `localhost` never leaves the host (RFC 6761, 6.3).
        && !question.record_type.is_infrastructure()
        && question.name.from_top(0) != Some(b"localhost");
    let candidate = question
        .name
        .child_of_label(namespace)
        .ok()
        .filter(|_| ours)
        .and_then(|name| expand(&name, Some("svc"), &config.domain()));
    match candidate {
        Some(candidate) => Decision::ClusterThenElsewhere { candidates: vec![candidate] },
        None => Decision::Elsewhere,
    }
}

/// Whether a name, relative to the cluster domain, lies in a namespace that the user left out.
fn is_hidden(config: &PolicyConfig, relative: &Name) -> bool {
    match (relative.from_top(0), relative.from_top(1)) {
        (Some(b"svc" | b"pod"), Some(namespace)) => config.is_hidden_namespace(namespace),
        _ => false,
    }
}

/// `name`, then `label`, then the cluster's domain; `None` when that is no name.
fn expand(name: &Name, label: Option<&str>, domain: &Name) -> Option<Name> {
    match label {
        Some(label) => name.child_of_label(label).ok()?.join(domain).ok(),
        None => name.join(domain).ok(),
    }
}

fn under_any(name: &Name, suffixes: &BTreeSet<Name>) -> bool {
    suffixes.iter().any(|suffix| !suffix.is_empty() && name.is_under(suffix))
}

fn cluster<const N: usize>(candidates: [Option<Name>; N]) -> Decision {
    let mut distinct = Vec::new();
    for candidate in candidates.into_iter().flatten() {
        if !distinct.contains(&candidate) {
            distinct.push(candidate);
        }
    }
    if distinct.is_empty() { Decision::NxDomain } else { Decision::Cluster { candidates: distinct } }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
