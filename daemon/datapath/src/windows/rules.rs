//! Rules of the name resolution policy table as the registry holds them: MS-GPNRPT, section 2.2.2.

use std::net::IpAddr;

use tpx_ebpf_abi::slot::Slot;

use crate::routed::Names;

/// How the comment of each of our rules begins; the device's name follows. What has it was written by tpx and may be
/// removed.
pub const MARK: &str = "Written by tpx, removed when it disconnects: ";
/// Names that one rule can have; undocumented, and found by others the hard way.
pub const MAX_DOMAINS: usize = 50;

/// "Ask the servers of this rule" (MS-GPNRPT 2.2.2.11).
const GENERIC_SERVERS: u32 = 8;
const VERSION: u32 = 1;

/// Where rules are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// The machine's own rules.
    Local,
    /// Those of group policy. As long as there is one here, Windows does not look at the others.
    GroupPolicy,
}

impl Store {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Local, Self::GroupPolicy];

    /// The registry key below HKEY_LOCAL_MACHINE.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Local => r"SYSTEM\CurrentControlSet\Services\Dnscache\Parameters\DnsPolicyConfig",
            Self::GroupPolicy => r"SOFTWARE\Policies\Microsoft\Windows NT\DNSClient\DnsPolicyConfig",
        }
    }
}

/// A rule: names below some domains are asked at some servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name of its key, a GUID that follows from slot and number.
    pub id: String,
    /// The domains, at most [`MAX_DOMAINS`].
    pub domains: Vec<String>,
    /// The servers, at port 53.
    pub servers: Vec<IpAddr>,
    /// Whose it is.
    pub comment: String,
}

/// A registry value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// REG_DWORD.
    Number(u32),
    /// REG_SZ.
    Text(String),
    /// REG_MULTI_SZ.
    List(Vec<String>),
}

impl Rule {
    /// Its values in the registry.
    #[must_use]
    pub fn values(&self) -> [(&'static str, Value); 5] {
        let servers: Vec<String> = self.servers.iter().map(IpAddr::to_string).collect();
        [
            ("Version", Value::Number(VERSION)),
            // With a dot in front the rule is for the domain and all below it.
            ("Name", Value::List(self.domains.iter().map(|domain| format!(".{domain}")).collect())),
            ("GenericDNSServers", Value::Text(servers.join("; "))),
            ("ConfigOptions", Value::Number(GENERIC_SERVERS)),
            ("Comment", Value::Text(self.comment.clone())),
        ]
    }
}

/// The comment of `slot`'s rules.
pub(super) fn mark(slot: Slot) -> String {
    format!("{MARK}{}", slot.device())
}

/// The rules that lead `names` to their servers.
pub(super) fn rules(slot: Slot, names: &Names) -> Vec<Rule> {
    let domains: Vec<&String> = names.domains.iter().collect();
    let rule = |(nth, domains): (usize, &[&String])| Rule {
        id: format!("{{74707830-{:04x}-4000-8000-{nth:012x}}}", slot.index()),
        domains: domains.iter().map(|domain| (*domain).clone()).collect(),
        servers: names.servers.clone(),
        comment: mark(slot),
    };
    domains.chunks(MAX_DOMAINS).enumerate().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(count: usize) -> Names {
        Names {
            servers: vec!["211.55.63.200".parse().unwrap(), "fd74:7078:6e65:7400::5200".parse().unwrap()],
            domains: (0..count).map(|n| format!("ns{n:03}")).collect(),
            search: Vec::new(),
        }
    }

    #[test]
    fn values_are_what_the_name_resolution_policy_table_holds() {
        let [rule] = &rules(Slot::FIRST, &names(2))[..] else { panic!("one rule") };
        assert_eq!(rule.id, "{74707830-0000-4000-8000-000000000000}");
        assert_eq!(
            rule.values(),
            [
                ("Version", Value::Number(1)),
                ("Name", Value::List(vec![".ns000".into(), ".ns001".into()])),
                ("GenericDNSServers", Value::Text("211.55.63.200; fd74:7078:6e65:7400::5200".into())),
                ("ConfigOptions", Value::Number(8)),
                ("Comment", Value::Text("Written by tpx, removed when it disconnects: tpx0".into())),
            ]
        );
    }

    #[test]
    fn many_domains_become_several_rules_with_names_of_their_own() {
        let many = rules(Slot::FIRST, &names(101));
        assert_eq!(many.iter().map(|rule| rule.domains.len()).collect::<Vec<_>>(), [50, 50, 1]);
        let all: BTreeSet<&String> = many.iter().flat_map(|rule| &rule.domains).collect();
        assert_eq!(all.len(), 101);
        let other = rules(Slot::new(1).unwrap(), &names(101));
        let ids: BTreeSet<&String> = many.iter().chain(&other).map(|rule| &rule.id).collect();
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn no_domains_no_rules() {
        assert_eq!(rules(Slot::FIRST, &names(0)), []);
    }
}
