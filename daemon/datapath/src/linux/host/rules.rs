//! The policy rules of a slot (ip-rule(8)): which packets look into which of its tables.
//!
//! Rules hang on nothing and outlive a process that is killed; over empty tables they do nothing, and the next start
//! removes them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_route::{
    AddressFamily, IpProtocol,
    rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage, RulePortRange},
};
use tpx_ebpf_abi::{DNS_PORT, mark, slot::Slot};

use super::desired::Table;

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// Packets of marked sockets.
    Marked { ipv6: bool },
    /// Packets from the device's own address.
    Lingering { ipv6: bool },
    /// Packets of a process tree that are not steered.
    Member { ipv6: bool },
    /// Every packet that no slot has marked.
    Floor { ipv6: bool },
    /// Questions to a name server; for IPv4 with one of two sources.
    Name { server: IpAddr, stream: bool, asker: Asker },
}

/// Whose questions a rule matches.
///
/// A route look-up for a packet that comes in, "may its source be there?" (fib_validate_source), has the packet's
/// addresses and ports exchanged. The answer of the real name server to the daemon looks like a question then, and a
/// local route for it makes it a martian. But such a look-up always has a source address, one of the host's others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asker {
    /// Any. IPv6 has no such check.
    Any,
    /// A socket whose source address is not chosen yet.
    Unbound,
    /// One that got the device's own address, by an earlier look-up.
    Own,
}

impl Rule {
    /// The rules that a road always has; a process tree's serve packets with its marks only.
    pub(super) fn standing(express: bool, tree: bool, ipv6: bool) -> Vec<Self> {
        let families = [false, true].into_iter().filter(|v6| ipv6 || !v6);
        let of = |ipv6| {
            let floor = if tree { Self::Member { ipv6 } } else { Self::Floor { ipv6 } };
            [Self::Marked { ipv6 }, Self::Lingering { ipv6 }, floor]
        };
        families.flat_map(of).filter(|rule| express || !matches!(rule, Self::Marked { .. })).collect()
    }

    /// The rules for one name server.
    pub(super) fn names(server: IpAddr) -> Vec<Self> {
        let askers: &[Asker] = if server.is_ipv4() { &[Asker::Unbound, Asker::Own] } else { &[Asker::Any] };
        let both = |asker: &Asker| [false, true].map(|stream| Self::Name { server, stream, asker: *asker });
        askers.iter().flat_map(both).collect()
    }

    /// As netlink wants it.
    pub(super) fn message(self, slot: Slot) -> RuleMessage {
        let (table, preference, ipv6) = self.place(slot);
        let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let mut message = RuleMessage::default();
        message.header = RuleHeader { family, action: RuleAction::ToTable, ..RuleHeader::default() };
        message.attributes = vec![RuleAttribute::Table(table.id(slot)), RuleAttribute::Priority(preference)];
        let marked = |ours, mask| [RuleAttribute::FwMark(ours), RuleAttribute::FwMask(mask)];
        match self {
            Self::Marked { .. } => message.attributes.extend(marked(mark::steer(slot), mark::RULE_MASK)),
            Self::Member { .. } => message.attributes.extend(marked(mark::member(slot), mark::RULE_MASK)),
            Self::Lingering { ipv6 } => {
                let own = if ipv6 { slot.ipv6().into() } else { IpAddr::from(slot.ipv4()) };
                message.header.src_len = bits(own);
                message.attributes.push(RuleAttribute::Source(own));
            }
            Self::Floor { .. } => message.attributes.extend(marked(0, mark::MASK)),
            Self::Name { server, stream, asker } => {
                let source = match asker {
                    Asker::Any => None,
                    Asker::Unbound => Some(Ipv4Addr::UNSPECIFIED),
                    Asker::Own => Some(slot.ipv4()),
                };
                if let Some(source) = source {
                    message.header.src_len = 32;
                    message.attributes.push(RuleAttribute::Source(source.into()));
                }
                message.header.dst_len = bits(server);
                message.attributes.extend([
                    RuleAttribute::Destination(server),
                    RuleAttribute::IpProtocol(if stream { IpProtocol::Tcp } else { IpProtocol::Udp }),
                    RuleAttribute::DestinationPortRange(RulePortRange { start: DNS_PORT, end: DNS_PORT }),
                ]);
                message.attributes.extend(marked(0, mark::MASK));
            }
        }
        message
    }

    fn place(self, slot: Slot) -> (Table, u32, bool) {
        match self {
            Self::Marked { ipv6 } => (Table::Marked, slot.preference(), ipv6),
            Self::Lingering { ipv6 } => (Table::Lingering, slot.lingering_preference(), ipv6),
            Self::Member { ipv6 } => (Table::Floor, slot.member_preference(), ipv6),
            Self::Floor { ipv6 } => (Table::Floor, slot.floor_preference(), ipv6),
            Self::Name { server, .. } => (Table::Names, slot.names_preference(), server.is_ipv6()),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marked { .. } => f.write_str("for marked packets"),
            Self::Lingering { .. } => f.write_str("for packets from the device's address"),
            Self::Member { .. } => f.write_str("for the process tree's packets"),
            Self::Floor { .. } => f.write_str("of the floor"),
            Self::Name { server, .. } => write!(f, "for the name server {server}"),
        }
    }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// A rule that some run of ours for this slot has made: it leads to one of the slot's tables, from where only tpx puts it.
pub(super) fn is_ours(rule: &RuleMessage, slot: Slot) -> bool {
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let kinds = [
        Rule::Marked { ipv6: false },
        Rule::Lingering { ipv6: false },
        Rule::Member { ipv6: false },
        Rule::Floor { ipv6: false },
        Rule::Name { server: any, stream: false, asker: Asker::Any },
    ];
    rule.header.action == RuleAction::ToTable
        && kinds.iter().any(|kind| {
            let (table, preference, _) = kind.place(slot);
            rule.attributes.contains(&RuleAttribute::Table(table.id(slot)))
                && rule.attributes.contains(&RuleAttribute::Priority(preference))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(slot: Slot) -> Vec<RuleMessage> {
        let servers = ["192.0.2.53", "2001:db8::53"].map(|s| Rule::names(s.parse().unwrap()));
        let standing = [false, true].map(|tree| Rule::standing(true, tree, true)).concat();
        standing.into_iter().chain(servers.concat()).map(|rule| rule.message(slot)).collect()
    }

    #[test]
    fn every_rule_is_recognised_in_its_own_slot_only() {
        let (first, second) = (Slot::FIRST, Slot::new(1).unwrap());
        assert_eq!(every(first).len(), 6 + 6 + 4 + 2);
        assert!(every(first).iter().all(|rule| is_ours(rule, first) && !is_ours(rule, second)));
    }

    #[test]
    fn rules_of_others_are_not_ours() {
        let mut rule = Rule::Floor { ipv6: false }.message(Slot::FIRST);
        rule.attributes = vec![RuleAttribute::Table(51820), RuleAttribute::Priority(Slot::FIRST.floor_preference())];
        assert!(!is_ours(&rule, Slot::FIRST));
        rule.attributes = vec![RuleAttribute::Table(Slot::FIRST.floor_table()), RuleAttribute::Priority(32765)];
        assert!(!is_ours(&rule, Slot::FIRST));
    }

    #[test]
    fn a_process_tree_takes_marked_packets_only() {
        let mark_of = |rule: &Rule| {
            let attributes = rule.message(Slot::FIRST).attributes;
            attributes.iter().find_map(|a| if let RuleAttribute::FwMark(mark) = a { Some(*mark) } else { None })
        };
        for rule in Rule::standing(true, true, true) {
            let by_source = matches!(rule, Rule::Lingering { .. });
            assert_eq!(mark_of(&rule).is_some_and(|mark| mark != 0), !by_source, "{rule:?}");
        }
        // And the workstation none of those.
        for rule in Rule::names("192.0.2.53".parse().unwrap()).into_iter().chain([Rule::Floor { ipv6: true }]) {
            assert_eq!(mark_of(&rule), Some(0));
        }
    }

    #[test]
    fn without_the_express_lane_nothing_looks_at_marks() {
        assert_eq!(Rule::standing(false, false, false), [Rule::Lingering { ipv6: false }, Rule::Floor { ipv6: false }]);
    }
}
