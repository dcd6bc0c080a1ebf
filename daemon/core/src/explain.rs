//! Why an address goes where it goes.
//!
//! Everything that decides about an address, gathered into one answer: the rule that holds, the road of each protocol,
//! the translation, and what the host would have done without tpx.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tpx_ebpf_abi::{BLOCK4, BLOCK6, slot};

use crate::{
    plan::{Plan, Road, reserved},
    policy::{DenyRule, Policy},
    subnets::{Because, Entry, Exempt, HostRoute, Mode, Role, Subnets},
    vnat::Vnat,
};

/// Port of name servers (RFC 1035, 4.2).
const DNS: u16 = 53;

/// What is in force.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The decision about subnets.
    pub subnets: &'a Subnets,
    /// The plan that was applied.
    pub plan: &'a Plan,
    /// What must not be reached.
    pub policy: &'a Policy,
    /// The plan's name servers that nothing could be put in front of: they answer themselves.
    pub unsteered_name_servers: &'a [IpAddr],
    /// The virtual addresses that were given out.
    pub vnat: &'a Vnat,
    /// The host's own routes, default routes included, without those of tpx's device.
    pub routes: &'a [HostRoute],
}

/// The rule that decides about an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A subnet of the cluster's, or one that was added.
    Subnet {
        /// Where it comes from.
        role: Role,
        /// How it is reached.
        mode: Mode,
    },
    /// A part of a subnet that stays outside.
    Exempt(Exempt),
    /// A name server of the host's.
    NameServer,
    /// A name server of the host's that nothing could be put in front of.
    UnsteeredNameServer,
    /// The range of virtual addresses.
    Virtual,
    /// One of tpx's own addresses.
    Own,
    /// Such addresses never leave the host or its link; what lives there.
    Reserved(String),
    /// It has nothing to do with the cluster.
    Outside,
}

/// The road of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Into the cluster by the express lane (eBPF).
    Express,
    /// Into the cluster by the floor (the TUN device).
    Floor,
    /// To tpx's name server.
    NameServer,
    /// Where the host's routes lead.
    Host,
    /// Nowhere: the policy forbids it.
    Denied,
}

/// What becomes of the address on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Translation {
    /// Nothing.
    None,
    /// It is virtual, and this real address is behind it.
    Behind(IpAddr),
    /// It is virtual, and nothing is behind it: "host unreachable".
    Nobody,
    /// It is real and reached under this virtual address.
    Under(IpAddr),
    /// It is real and gets a virtual address as soon as a name leads to it.
    OnDemand,
}

/// Why an address goes where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The address. IPv4-mapped addresses are IPv4.
    pub address: IpAddr,
    /// The port, if one was asked about.
    pub port: Option<u16>,
    /// The prefix of the rule; `None` where no rule speaks.
    pub prefix: Option<IpNet>,
    /// The rule.
    pub rule: Rule,
    /// The road of TCP connections.
    pub tcp: Way,
    /// The road of datagrams.
    pub udp: Way,
    /// The road of ping.
    pub icmp: Way,
    /// The rule that forbids it, if one does.
    #[serde(default)]
    pub denied: Option<DenyRule>,
    /// What becomes of the address.
    pub translation: Translation,
    /// The route that the host would use without tpx; `None` where it has none.
    pub without: Option<HostRoute>,
}

/// Explains what happens to new connections to `address`.
#[must_use]
pub fn explain(view: &View<'_>, address: IpAddr, port: Option<u16>) -> Explanation {
    let address = address.to_canonical();
    let (prefix, rule) = rule(view, address);
    let answered_here = port == Some(DNS)
        && view.plan.name_servers.contains(&address)
        && !view.unsteered_name_servers.contains(&address);
    let steered = view.plan.steers(address);
    let flows = match (answered_here, steered, view.plan.road) {
        (true, ..) => Way::NameServer,
        (_, false, _) => Way::Host,
        (_, true, Road::Express) => Way::Express,
        (_, true, Road::Tun) => Way::Floor,
    };
    let translation = match &rule {
        Rule::Virtual if steered => view.vnat.real_for(address).map_or(Translation::Nobody, Translation::Behind),
        Rule::Subnet { mode: Mode::Virtual { .. }, .. } => {
            view.vnat.virtual_for(address).map_or(Translation::OnDemand, Translation::Under)
        }
        _ => Translation::None,
    };
    let routes = view.routes.iter().filter(|route| route.destination.contains(&address));
    // Between equally long ones the first in order, so that the answer does not depend on theirs.
    let without = routes.min_by_key(|route| (u8::MAX - route.destination.prefix_len(), *route)).cloned();
    let real = if let Translation::Behind(real) = translation { real } else { address };
    let denial = |port| Some(view.policy.denied_by(real, port)?.clone()).filter(|_| steered);
    let denied = denial(port).filter(|_| !answered_here);
    let flows = if denied.is_some() { Way::Denied } else { flows };
    let icmp = match (denial(None), steered) {
        (Some(_), _) => Way::Denied,
        (None, true) => Way::Floor,
        (None, false) => Way::Host,
    };
    Explanation { address, port, prefix, rule, tcp: flows, udp: flows, icmp, denied, translation, without }
}

fn rule(view: &View<'_>, address: IpAddr) -> (Option<IpNet>, Rule) {
    let own = [
        IpNet::new_assert(slot::OWN4.0.into(), slot::OWN4.1),
        IpNet::new_assert(BLOCK4.0.into(), BLOCK4.1),
        IpNet::new_assert(slot::OWN6.0.into(), slot::OWN6.1),
        IpNet::new_assert(BLOCK6.0.into(), BLOCK6.1),
    ];
    let ranges: [IpNet; 2] = [view.subnets.virtual4.into(), view.subnets.virtual6.into()];
    let host = IpNet::from(address);
    let unsteered = view.unsteered_name_servers.contains(&address);
    let name_server = if unsteered { Rule::UnsteeredNameServer } else { Rule::NameServer };
    let within = |nets: &[IpNet]| nets.iter().find(|net| net.contains(&address)).copied();
    if let Some(net) = within(&own) {
        return (Some(net), Rule::Own);
    }
    if let Some(net) = within(&ranges) {
        return (Some(net), Rule::Virtual);
    }
    match view.subnets.entry(address) {
        Some(Entry::Exception(exception)) if exception.why == Exempt::NameServer => (Some(host), name_server),
        Some(Entry::Exception(exception)) => (Some(exception.cidr), Rule::Exempt(exception.why)),
        Some(Entry::Subnet(subnet))
            if matches!(subnet.mode, Mode::Refused { because: Because::Exempt(Exempt::NameServer) }) =>
        {
            (Some(host), name_server)
        }
        Some(Entry::Subnet(subnet)) => {
            (Some(subnet.cidr), Rule::Subnet { role: subnet.role, mode: subnet.mode.clone() })
        }
        None if view.plan.name_servers.contains(&address) => (Some(host), name_server),
        None => match reserved(&host) {
            Some((what, net)) => (Some(net), Rule::Reserved(what.to_owned())),
            None => (None, Rule::Outside),
        },
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Express => "into the cluster by the express lane",
            Self::Floor => "into the cluster by the floor",
            Self::NameServer => "answered by tpx's name server",
            Self::Host => "where the host's routes lead",
            Self::Denied => "refused",
        })
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Behind(real) => write!(f, "stands for {real}"),
            Self::Nobody => f.write_str("virtual, but stands for nothing: connections find the host unreachable"),
            Self::Under(address) => write!(f, "reached under {address}"),
            Self::OnDemand => f.write_str("gets a virtual address as soon as a name leads to it"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subnet { role, mode } => {
                write!(f, "{role}")?;
                match mode {
                    Mode::Direct => f.write_str(", reached directly"),
                    Mode::Virtual { range, because } => {
                        write!(f, ", behind virtual addresses in {range} because {because}")
                    }
                    Mode::Refused { because } => write!(f, ", not reached because {because}"),
                }
            }
            Self::Exempt(why) => write!(f, "outside the tunnel because {why}"),
            Self::NameServer => {
                f.write_str("a name server of this host; tpx answers on its port 53, the rest is untouched")
            }
            Self::UnsteeredNameServer => f.write_str(
                "a name server of this host; it answers itself, because only eBPF could answer in its place",
            ),
            Self::Virtual => f.write_str("virtual addresses"),
            Self::Own => f.write_str("tpx's own addresses"),
            Self::Reserved(what) => write!(f, "{what}, never steered"),
            Self::Outside => f.write_str("nothing to do with the cluster"),
        }
    }
}

/// Several lines for people.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, prefix, rule, tcp, udp, icmp, denied, translation, without } = self;
        write!(f, "{address}")?;
        if let Some(port) = port {
            write!(f, " port {port}")?;
        }
        match prefix {
            Some(prefix) => writeln!(f, "\n  rule         {prefix}: {rule}")?,
            None => writeln!(f, "\n  rule         {rule}")?,
        }
        if let Some(denied) = denied {
            writeln!(f, "  policy       denied by --deny {denied}")?;
        }
        writeln!(f, "  TCP          {tcp}")?;
        writeln!(f, "  UDP          {udp}")?;
        writeln!(f, "  ping         {icmp}")?;
        writeln!(f, "  translation  {translation}")?;
        match without {
            Some(route) => write!(f, "  without tpx  {route}"),
            None => f.write_str("  without tpx  no route"),
        }
    }
}

#[cfg(test)]
mod tests;
