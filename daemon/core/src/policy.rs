//! What a connection must not reach: rules of the user's, and the one decision that follows from them.
//!
//! Rules only ever forbid, and they forbid what would enter the tunnel: elsewhere the host decides. So a rule may be as
//! wide as it likes, and whatever is behind a virtual address decides, not the virtual address. The kernel's programs and
//! the user daemon (for what the programs do not see) carry the same decision out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize, de};

use crate::{config::nearest, dial::DialFailure};

/// What must not be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenyRule {
    /// The services and pods of a namespace, whatever addresses they have at the time.
    Namespace(String),
    /// These addresses. No bits are set behind the prefix.
    Cidr(IpNet),
    /// A port of every address.
    Port(u16),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// None of the forms.
    #[error("{text:?} is none of namespace:NAME, a subnet and port:NUMBER{}", hint(*.suggestion))]
    Unknown {
        /// What was written.
        text: String,
        /// The word it comes closest to.
        suggestion: Option<&'static str>,
    },
    /// Not what Kubernetes calls a namespace.
    #[error("{0:?} is no name of a namespace")]
    Namespace(String),
    /// Not a number from 1 to 65535.
    #[error("{0:?} is no port")]
    Port(String),
    /// An address with bits behind the prefix.
    #[error("{0} has bits set behind its prefix; write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// IPv4 addresses in their IPv6 form, and others, which nobody has.
    #[error("{0} contains IPv4 addresses in their IPv6 form (::ffff:0:0/96) beside others; write 0.0.0.0/0, or ::/0")]
    PartlyMapped(IpNet),
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map(|word| format!("; did you mean {word}:?")).unwrap_or_default()
}

impl FromStr for DenyRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(net) = text.parse::<IpNet>() {
            return if net == net.trunc() { canonical(net).map(Self::Cidr) } else { Err(RuleError::HostBits(net)) };
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Cidr(ip.to_canonical().into()));
        }
        let unknown = |suggestion| Err(RuleError::Unknown { text: text.to_owned(), suggestion });
        match text.split_once(':') {
            Some(("namespace", name)) if is_label(name) => Ok(Self::Namespace(name.to_owned())),
            Some(("namespace", name)) => Err(RuleError::Namespace(name.to_owned())),
            Some(("port", port)) => match port.parse() {
                Ok(port) if port != 0 => Ok(Self::Port(port)),
                _ => Err(RuleError::Port(port.to_owned())),
            },
            Some((word, _)) => unknown(nearest(word, ["namespace", "port"])),
            None => unknown(None),
        }
    }
}

/// IPv4 addresses in their IPv6 form (RFC 4291, 2.5.5.2) are IPv4 addresses, here as in `connect()`: a rule about the form
/// would match nothing. A prefix with all of them and more in it is refused, because it says neither "all of IPv4" nor
/// anything about IPv6 that anybody has. All of IPv6, and the half of it that they are in, mean IPv6 alone, as in routes.
fn canonical(net: IpNet) -> Result<IpNet, RuleError> {
    const HALF: u8 = 1;
    let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    match net {
        IpNet::V6(v6) if mapped.contains(&v6) => {
            let address = v6.addr().to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
            Ok(Ipv4Net::new_assert(address, v6.prefix_len() - mapped.prefix_len()).into())
        }
        IpNet::V6(v6) if v6.contains(&mapped) && v6.prefix_len() > HALF => Err(RuleError::PartlyMapped(net)),
        _ => Ok(net),
    }
}

/// RFC 1123, as Kubernetes has it.
fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

impl fmt::Display for DenyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "namespace:{name}"),
            Self::Cidr(net) => net.fmt(f),
            Self::Port(port) => write!(f, "port:{port}"),
        }
    }
}

impl Serialize for DenyRule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DenyRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What `connect()` says to who is denied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyWith {
    /// "Permission denied", which no dead service says.
    #[default]
    Access,
    /// "Connection refused", as if nobody listened.
    Refused,
}

impl DenyWith {
    /// The words for it.
    pub const ALL: [(&'static str, Self); 2] = [("access", Self::Access), ("refused", Self::Refused)];

    /// The same in the words of a failed dial.
    #[must_use]
    pub fn failure(self) -> DialFailure {
        match self {
            Self::Access => DialFailure::Prohibited,
            Self::Refused => DialFailure::Refused,
        }
    }
}

impl fmt::Display for DenyWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, with)| with == self).map_or("", |(word, _)| word))
    }
}

/// The rules with the addresses that they stand for now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<DenyRule>,
    with: DenyWith,
    /// Each prefix with the rule that denies it, in the order of the user's. Of rules for the same prefix the first.
    nets: BTreeMap<IpNet, usize>,
    /// The lengths that prefixes have, longest first: what has to be looked up for an address.
    lengths: BTreeSet<std::cmp::Reverse<u8>>,
    ports: BTreeMap<u16, usize>,
}

impl Policy {
    /// Puts rules together. `members` says which addresses a namespace has; one that it does not know has none.
    #[must_use]
    pub fn new(rules: Vec<DenyRule>, with: DenyWith, members: &BTreeMap<String, Vec<IpAddr>>) -> Self {
        let mut policy = Self { rules, with, ..Self::default() };
        for (nth, rule) in policy.rules.iter().enumerate() {
            match rule {
                DenyRule::Namespace(name) => {
                    for ip in members.get(name).into_iter().flatten() {
                        policy.nets.entry((*ip).into()).or_insert(nth);
                    }
                }
                DenyRule::Cidr(net) => drop(policy.nets.entry(*net).or_insert(nth)),
                DenyRule::Port(port) => drop(policy.ports.entry(*port).or_insert(nth)),
            }
        }
        policy.lengths = policy.nets.keys().map(|net| std::cmp::Reverse(net.prefix_len())).collect();
        policy
    }

    /// The rules, as the user gave them.
    #[must_use]
    pub fn rules(&self) -> &[DenyRule] {
        &self.rules
    }

    /// What who is denied hears.
    #[must_use]
    pub fn with(&self) -> DenyWith {
        self.with
    }

    /// The rule that denies an address of the cluster's, of several the most specific; ports come last.
    #[must_use]
    pub fn denied_by(&self, ip: IpAddr, port: Option<u16>) -> Option<&DenyRule> {
        let ip = ip.to_canonical();
        let within = |length: u8| self.nets.get(&IpNet::new(ip, length).ok()?.trunc());
        let nth = self.lengths.iter().find_map(|length| within(length.0));
        self.rules.get(*nth.or_else(|| self.ports.get(&port?))?)
    }

    /// Why a flow to `target` (behind virtual addresses) must not be carried, if so.
    ///
    /// # Errors
    /// What the application is to hear.
    pub fn check(&self, target: SocketAddr) -> Result<(), DialFailure> {
        match self.denied_by(target.ip(), Some(target.port())) {
            Some(_) => Err(self.with.failure()),
            None => Ok(()),
        }
    }

    /// The prefixes for a plan, without those inside others.
    #[must_use]
    pub fn nets(&self) -> Vec<IpNet> {
        crate::cidr::subtract(&self.nets.keys().copied().collect::<Vec<_>>(), &[])
    }

    /// The ports for a plan.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.ports.keys().copied().collect()
    }

    /// The namespaces whose addresses it needs.
    pub fn namespaces(rules: &[DenyRule]) -> impl Iterator<Item = &str> {
        rules.iter().filter_map(|rule| match rule {
            DenyRule::Namespace(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cidr::tests::{any_address, any_net};

    fn rule(text: &str) -> DenyRule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_are_read_and_written() {
        for text in ["namespace:emojivoto", "10.96.0.0/16", "fd96::/112", "0.0.0.0/0", "port:7"] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("10.96.0.1"), rule("10.96.0.1/32"));
        assert_eq!(rule("::ffff:10.96.0.1"), rule("10.96.0.1/32"));
        assert_eq!(rule("::ffff:10.96.0.0/112"), rule("10.96.0.0/16"));
        assert_eq!(rule("::ffff:0:0/96"), rule("0.0.0.0/0"));
        assert_eq!(rule("::/0").to_string(), "::/0");
        let error = |text: &str| text.parse::<DenyRule>().unwrap_err().to_string();
        for partly in ["::fffe:0:0/95", "::/64", "::/8"] {
            assert!(error(partly).contains("write 0.0.0.0/0"), "{}", error(partly));
        }
        assert!(error("10.96.0.1/16").contains("write 10.96.0.0/16"));
        assert!(error("namespaces:shop").contains("did you mean namespace:?"), "{}", error("namespaces:shop"));
        assert!(error("shop").contains("namespace:NAME"));
        for bad in ["namespace:", "namespace:Shop", "port:0", "port:65536", "port:http", "", "10.96.0.0/33"] {
            assert!(bad.parse::<DenyRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_is_what_it_has_now() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let members = [("shop".to_owned(), vec![ip("10.96.0.7"), ip("fd96::7")])].into();
        let rules = vec![rule("namespace:shop"), rule("namespace:new"), rule("10.96.0.0/16"), rule("port:7")];
        let policy = Policy::new(rules, DenyWith::Access, &members);
        let denied = |text: &str, port| policy.denied_by(ip(text), port).map(ToString::to_string);
        assert_eq!(denied("10.96.0.7", Some(80)).as_deref(), Some("namespace:shop"));
        assert_eq!(denied("::ffff:10.96.0.7", None).as_deref(), Some("namespace:shop"));
        assert_eq!(denied("10.96.0.8", Some(7)).as_deref(), Some("10.96.0.0/16"));
        assert_eq!(denied("fd96::8", Some(7)).as_deref(), Some("port:7"));
        assert_eq!(denied("fd96::8", None), None);
        assert_eq!(policy.nets(), ["10.96.0.0/16", "fd96::7/128"].map(|net| net.parse().unwrap()));
        assert_eq!(policy.ports(), [7]);
        assert_eq!(policy.check("[fd96::7]:1".parse().unwrap()), Err(DialFailure::Prohibited));
        let refusing = Policy::new(vec![rule("port:7")], DenyWith::Refused, &BTreeMap::new());
        assert_eq!(refusing.check("[fd96::7]:7".parse().unwrap()), Err(DialFailure::Refused));
        assert_eq!(refusing.check("[fd96::7]:8".parse().unwrap()), Ok(()));
    }

    proptest! {
        /// As if all rules were looked at one by one; and the plan's prefixes say the same.
        #[test]
        fn the_most_specific_rule_denies(
            nets in prop::collection::vec(any_net(), 0..12),
            ports in prop::collection::vec(1u16..4, 0..2),
            ip in any_address(),
            port in 1u16..5,
        ) {
            let rules: Vec<DenyRule> = (nets.iter().copied().map(DenyRule::Cidr))
                .chain(ports.iter().copied().map(DenyRule::Port))
                .collect();
            let policy = Policy::new(rules.clone(), DenyWith::Access, &BTreeMap::new());
            let longest = nets.iter().filter(|net| net.contains(&ip)).max_by_key(|net| net.prefix_len());
            let expected = match longest {
                Some(net) => Some(DenyRule::Cidr(*net)),
                None => ports.contains(&port).then_some(DenyRule::Port(port)),
            };
            prop_assert_eq!(policy.denied_by(ip, Some(port)).cloned(), expected.clone());
            let by_plan = policy.nets().iter().any(|net| net.contains(&ip)) || policy.ports().contains(&port);
            prop_assert_eq!(by_plan, expected.is_some());
            prop_assert_eq!(policy.check(SocketAddr::new(ip, port)).is_err(), expected.is_some());
        }
    }
}
