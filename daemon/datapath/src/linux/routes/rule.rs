//! A policy rule of the host, and whether it matches an ordinary socket's packet (fib_rule_match in the kernel).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) preference: u32,
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
    /// "Not": what the selectors below do not match.
    pub(super) invert: bool,
    /// It asks for something that the packet in question does not have.
    pub(super) particular: bool,
    pub(super) mark: Option<(u32, u32)>,
    pub(super) uids: Option<(u32, u32)>,
    pub(super) to: Option<IpNet>,
    pub(super) action: Action,
    /// Routes with prefixes that are not longer do not count.
    pub(super) suppressed: Option<u8>,
    /// Who asks.
    pub(super) uid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Table(u32),
    Goto(u32),
    Nop,
    Refuse,
}

/// What a rule says about one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Table { id: u32, suppressed: Option<u8> },
    Goto(u32),
    Refuse,
    Next,
}

impl Rule {
    /// `ip rule`'s line, as the user `uid` meets it.
    pub(super) fn of(message: &RuleMessage, ipv4: bool, uid: u32) -> Self {
        let header = &message.header;
        let mut rule = Self {
            preference: 0,
            ipv4,
            ipv6: !ipv4,
            invert: header.flags.contains(RuleFlags::Invert),
            particular: header.tos != 0,
            mark: None,
            uids: None,
            to: None,
            action: Action::Nop,
            suppressed: None,
            uid,
        };
        let (mut table, mut target, mut mark, mut mask) = (u32::from(header.table), None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => rule.preference = *preference,
                RuleAttribute::Table(id) => table = *id,
                RuleAttribute::Goto(preference) => target = Some(*preference),
                RuleAttribute::FwMark(bits) => mark = Some(*bits),
                RuleAttribute::FwMask(bits) => mask = Some(*bits),
                RuleAttribute::UidRange(range) => rule.uids = Some((range.start, range.end)),
                RuleAttribute::Destination(ip) => rule.to = IpNet::new(*ip, header.dst_len).ok(),
                // -1 means none; a prefix is never longer than 128.
                RuleAttribute::SuppressPrefixLen(length) => rule.suppressed = u8::try_from(*length).ok(),
                // What is sent by this host comes from "lo".
                RuleAttribute::Iifname(name) => rule.particular |= name != "lo",
                // A socket without an address has 0.0.0.0, which only such a prefix covers.
                RuleAttribute::Source(ip) => rule.particular |= !(header.src_len == 0 || ip.is_unspecified() && ipv4),
                RuleAttribute::Oifname(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_) => rule.particular = true,
                RuleAttribute::TunId(id) => rule.particular |= *id != 0,
                RuleAttribute::L3MDev(set) => rule.particular |= *set,
                _ => {}
            }
        }
        rule.mark = mark.map(|bits| (bits, mask.unwrap_or(u32::MAX)));
        rule.action = match header.action {
            RuleAction::ToTable => Action::Table(table),
            RuleAction::Goto => target.map_or(Action::Nop, Action::Goto),
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => Action::Refuse,
            _ => Action::Nop,
        };
        rule
    }

    /// A rule for everything.
    #[cfg(test)]
    pub(super) fn to_table(preference: u32, table: u32) -> Self {
        Self {
            preference,
            ipv4: true,
            ipv6: true,
            invert: false,
            particular: false,
            mark: None,
            uids: None,
            to: None,
            action: Action::Table(table),
            suppressed: None,
            uid: 1000,
        }
    }

    /// What it says about a packet to `ip`.
    pub(super) fn verdict(&self, ip: IpAddr) -> Verdict {
        if !self.is_for(ip) || self.selects(ip) == self.invert {
            return Verdict::Next;
        }
        match self.action {
            Action::Table(id) => Verdict::Table { id, suppressed: self.suppressed },
            Action::Goto(preference) => Verdict::Goto(preference),
            Action::Refuse => Verdict::Refuse,
            Action::Nop => Verdict::Next,
        }
    }

    /// Whether a jump to `preference` for a packet to `ip` ends here.
    pub(super) fn is_target(&self, preference: u32, ip: IpAddr) -> bool {
        self.is_for(ip) && self.preference >= preference
    }

    fn is_for(&self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }

    fn selects(&self, ip: IpAddr) -> bool {
        !self.particular
            && self.mark.is_none_or(|(bits, mask)| bits & mask == 0)
            && self.uids.is_none_or(|(first, last)| (first..=last).contains(&self.uid))
            && self.to.is_none_or(|net| net.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        IpProtocol,
        rule::{RuleHeader, RulePortRange, RuleUidRange},
    };

    use super::*;

    fn verdict(flags: RuleFlags, attributes: Vec<RuleAttribute>, lens: (u8, u8)) -> Verdict {
        let mut message = RuleMessage::default();
        let (src_len, dst_len) = lens;
        message.header = RuleHeader { action: RuleAction::ToTable, flags, src_len, dst_len, ..RuleHeader::default() };
        message.attributes = attributes;
        message.attributes.push(RuleAttribute::Table(9));
        Rule::of(&message, true, 1000).verdict("10.1.2.3".parse().unwrap())
    }

    #[test]
    fn what_an_ordinary_packet_meets() {
        use RuleAttribute as A;
        let none = RuleFlags::empty();
        let ip = |text: &str| text.parse().unwrap();
        let port = RulePortRange { start: 53, end: 53 };
        for (attribute, lens, matches) in [
            (A::Priority(7), (0, 0), true),
            (A::Destination(ip("10.0.0.0")), (0, 8), true),
            (A::Destination(ip("11.0.0.0")), (0, 8), false),
            (A::Source(ip("10.0.0.1")), (32, 0), false),
            (A::Source(ip("0.0.0.0")), (32, 0), true),
            (A::Iifname("lo".into()), (0, 0), true),
            (A::Iifname("eth0".into()), (0, 0), false),
            (A::Oifname("eth0".into()), (0, 0), false),
            (A::FwMark(0xca6c), (0, 0), false),
            (A::FwMark(0), (0, 0), true),
            (A::UidRange(RuleUidRange { start: 1000, end: 1000 }), (0, 0), true),
            (A::UidRange(RuleUidRange { start: 0, end: 999 }), (0, 0), false),
            (A::IpProtocol(IpProtocol::Udp), (0, 0), false),
            (A::DestinationPortRange(port), (0, 0), false),
            (A::L3MDev(true), (0, 0), false),
            (A::SuppressPrefixLen(u32::MAX), (0, 0), true),
        ] {
            let said = verdict(none, vec![attribute.clone()], lens) != Verdict::Next;
            assert_eq!(said, matches, "{attribute:?}");
            let inverted = verdict(RuleFlags::Invert, vec![attribute.clone()], lens) != Verdict::Next;
            assert_eq!(inverted, !matches, "not {attribute:?}");
        }
    }

    #[test]
    fn marks_are_compared_under_their_mask() {
        let mark = |bits, mask| vec![RuleAttribute::FwMark(bits), RuleAttribute::FwMask(mask)];
        assert_eq!(verdict(RuleFlags::empty(), mark(0x0008_0000, 0x00ff_0000), (0, 0)), Verdict::Next);
        assert_ne!(verdict(RuleFlags::empty(), mark(0, 0x00ff_0000), (0, 0)), Verdict::Next);
    }
}
