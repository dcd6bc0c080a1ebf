//! Which subnets go through the tunnel, and under which addresses.
//!
//! A VPN or a home network may use the cluster's addresses. [`decide`] takes the cluster's subnets, the host's routes and
//! the user's rules, and says for each subnet whether it is reached directly, behind virtual addresses, or not at all,
//! and why. It is total and does not depend on any order, so that it can run again whenever either side changes.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::cidr;

mod decide;
mod error;
mod policy;
pub(crate) mod ranges;
mod selector;
mod to_plan;

pub use decide::{Inputs, decide, decide_again};
pub use error::SubnetError;
pub use policy::RoutingPolicy;
pub use selector::{SelectorError, VnatSelector};

/// A unicast route of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostRoute {
    /// Where it leads to.
    pub destination: IpNet,
    /// Through which device.
    pub device: String,
    /// Through which router; `None` where the device reaches the destination itself.
    pub gateway: Option<IpAddr>,
    /// The routing table it stands in (254 is the main one).
    pub table: u32,
}

impl HostRoute {
    /// Whether it leads to everything: a default route, or one of the two halves that VPNs lay over it. Such a route
    /// yields to every other and is in nobody's way.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() <= 1
    }
}

/// As `ip route` writes it.
impl fmt::Display for HostRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination.prefix_len() {
            0 => f.write_str("default")?,
            _ => self.destination.fmt(f)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {}", self.device)?;
        if self.table != MAIN_TABLE { write!(f, " table {}", self.table) } else { Ok(()) }
    }
}

/// `RT_TABLE_MAIN` of linux/rtnetlink.h.
const MAIN_TABLE: u32 = 254;

/// Where a subnet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The cluster's services.
    Services,
    /// The cluster's pods.
    Pods,
    /// `--also-proxy`.
    Also,
    /// `--vnat` of a subnet that is none of the others.
    Vnat,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Services => "services",
            Self::Pods => "pods",
            Self::Also => "also-proxy",
            Self::Vnat => "vnat",
        })
    }
}

/// Why addresses inside a subnet stay outside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exempt {
    /// The tunnel itself runs over it.
    ApiServer,
    /// One of the host's name servers.
    NameServer,
    /// A router of the host's.
    Gateway,
    /// This rule of `--never-proxy`.
    NeverProxy(IpNet),
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => f.write_str("it is the API server"),
            Self::NameServer => f.write_str("it is a name server of this host"),
            Self::Gateway => f.write_str("it is a gateway of this host"),
            Self::NeverProxy(net) => write!(f, "--never-proxy {net} says so"),
        }
    }
}

/// Why a subnet is not simply reached under its own addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// `--vnat` asks for it.
    Asked(VnatSelector),
    /// The host has another use for the addresses.
    Conflict(HostRoute),
    /// Another rule says so.
    Exempt(Exempt),
    /// Such addresses are never steered; what lives there, and where.
    Reserved(String),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(selector) => write!(f, "--vnat {selector} says so"),
            Self::Conflict(route) => {
                write!(f, "{} goes to {}", route.destination, route.device)
            }
            Self::Exempt(exempt) => exempt.fmt(f),
            Self::Reserved(what) => f.write_str(what),
        }
    }
}

/// How a subnet is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Under its own addresses.
    Direct,
    /// Under virtual addresses; its own go where the host's routes lead.
    Virtual {
        /// Where the virtual addresses come from.
        range: IpNet,
        /// Why.
        because: Because,
    },
    /// Not at all.
    Refused {
        /// Why.
        because: Because,
    },
}

/// A subnet, or a part of one, and what becomes of it. More specific ones inside it have their own entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its addresses.
    pub cidr: IpNet,
    /// Where it comes from.
    pub role: Role,
    /// How it is reached.
    pub mode: Mode,
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cidr, role, mode } = self;
        match mode {
            Mode::Direct => write!(f, "{cidr} ({role}) is reached directly"),
            Mode::Virtual { range, because } => {
                write!(f, "{cidr} ({role}) is behind virtual addresses in {range} because {because}")
            }
            Mode::Refused { because } => write!(f, "{cidr} ({role}) is not reached because {because}"),
        }
    }
}

/// A part of a subnet that stays outside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Its addresses.
    pub cidr: IpNet,
    /// Why.
    pub why: Exempt,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stays outside the tunnel because {}", self.cidr, self.why)
    }
}

/// What becomes of every subnet. For an address, the most specific entry of both lists counts; no prefix is in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    /// The subnets, sorted.
    pub subnets: Vec<Subnet>,
    /// Parts of them that stay outside, sorted.
    pub exceptions: Vec<Exception>,
    /// Where virtual IPv4 addresses come from.
    pub virtual4: Ipv4Net,
    /// Where virtual IPv6 addresses come from.
    pub virtual6: Ipv6Net,
}

/// The entry that counts for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A subnet.
    Subnet(&'a Subnet),
    /// An exception.
    Exception(&'a Exception),
}

impl Entry<'_> {
    /// Its prefix.
    #[must_use]
    pub fn cidr(&self) -> IpNet {
        match self {
            Self::Subnet(subnet) => subnet.cidr,
            Self::Exception(exception) => exception.cidr,
        }
    }
}

impl Subnets {
    /// The entry that counts for `ip`; `None` for what has nothing to do with the cluster.
    #[must_use]
    pub fn entry(&self, ip: IpAddr) -> Option<Entry<'_>> {
        let subnet = cidr::longest_match(&self.subnets, |subnet| subnet.cidr, ip).map(Entry::Subnet);
        let exception = cidr::longest_match(&self.exceptions, |exception| exception.cidr, ip).map(Entry::Exception);
        subnet.into_iter().chain(exception).max_by_key(|entry| entry.cidr().prefix_len())
    }

    /// Whether `ip` is a cluster address that is reached under a virtual one.
    #[must_use]
    pub fn hides(&self, ip: IpAddr) -> bool {
        matches!(self.entry(ip), Some(Entry::Subnet(Subnet { mode: Mode::Virtual { .. }, .. })))
    }

    /// A line for each subnet that is not simply reached under its own addresses.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.subnets.iter().filter(|subnet| subnet.mode != Mode::Direct).map(Subnet::to_string).collect()
    }
}

#[cfg(test)]
mod tests;
