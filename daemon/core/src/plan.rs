//! The plan: what the host should look like while connected, as data.
//!
//! The user daemon makes it, the privileged daemon checks it again and carries it out. Applying the same plan twice
//! changes nothing.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod bounded;
mod check;

pub use check::PlanError;
pub(crate) use check::{may_be_steered, reserved};

/// Which processes see the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every process of the machine: the root of the cgroup2 tree.
    #[default]
    Workstation,
    /// One process tree: a cgroup2 directory.
    Cgroup(PathBuf),
}

/// How connections enter the tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Road {
    /// The express lane, and the floor under it for what its programs do not see.
    #[default]
    Express,
    /// The floor alone: the TUN device carries everything, no program is loaded.
    Tun,
}

/// What systemd-resolved learns about tpx's device; it forgets it with the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolverLink {
    /// tpx's own addresses that answer for the cluster, at port 53: the slot's resolver addresses, which are routed to
    /// the device. At most [`Plan::MAX_NAME_SERVERS`].
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_NAME_SERVERS }>")]
    pub servers: Vec<IpAddr>,
    /// Domains whose names are asked there and nowhere else. At most [`Plan::MAX_DOMAINS`].
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_DOMAINS }>")]
    pub routing_domains: Vec<String>,
    /// Domains that complete single labels, and whose names are asked there too. At most [`Plan::MAX_DOMAINS`].
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_DOMAINS }>")]
    pub search_domains: Vec<String>,
}

/// Desired host state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Who is affected.
    pub scope: Scope,
    /// How connections enter the tunnel.
    pub road: Road,
    /// Subnets whose connections go through the tunnel under their own addresses. At most [`Plan::MAX_SUBNETS`], together
    /// with the next three lists.
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_SUBNETS }>")]
    pub steer: Vec<IpNet>,
    /// Ranges of virtual addresses; connections into them go through the tunnel to the address behind.
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_SUBNETS }>")]
    pub virtual_subnets: Vec<IpNet>,
    /// Cluster subnets behind virtual addresses: new connections to their own addresses go where the host's routes lead
    /// (a VPN), but translated connections and those that were open before they moved still reach the cluster.
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_SUBNETS }>")]
    pub hidden: Vec<IpNet>,
    /// Parts of `steer` that stay outside the tunnel (the API server, name servers); the most specific prefix wins.
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_SUBNETS }>")]
    pub except: Vec<IpNet>,
    /// The configured name servers whose port 53 is answered by tpx. At most [`Plan::MAX_NAME_SERVERS`].
    #[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_NAME_SERVERS }>")]
    pub name_servers: Vec<IpAddr>,
    /// Addresses that must never be steered, whatever the lists above say: those of the API server, which the tunnel
    /// itself runs over. [`check`](Self::check) refuses a plan that steers one of them. The privileged daemon cannot
    /// know them; that the lists agree with them is what it can hold the user daemon to. At most
    /// [`Plan::MAX_PROTECTED`].
    #[serde(default, deserialize_with = "bounded::list::<_, _, { Plan::MAX_PROTECTED }>")]
    pub protected: Vec<IpAddr>,
    /// What systemd-resolved is told, where it runs.
    #[serde(default)]
    pub resolver: Option<ResolverLink>,
}

impl Plan {
    /// Bound on the subnets of all four lists.
    pub const MAX_SUBNETS: usize = tpx_ebpf_abi::maps::RULES_MAX as usize;
    /// Bound on `name_servers`; resolv.conf(5) knows three.
    pub const MAX_NAME_SERVERS: usize = 8;
    /// Bound on `protected`; an API server has a few addresses.
    pub const MAX_PROTECTED: usize = 64;
    /// Bound on each list of domains of a [`ResolverLink`].
    pub const MAX_DOMAINS: usize = 1024;

    /// Whether connections to `ip` go through the tunnel: the most specific prefix of both lists decides.
    #[must_use]
    pub fn steers(&self, ip: IpAddr) -> bool {
        let longest = |nets: &[IpNet]| nets.iter().filter(|n| n.contains(&ip)).map(IpNet::prefix_len).max();
        let inside = longest(&self.steer).max(longest(&self.virtual_subnets));
        inside > longest(&self.except).max(longest(&self.hidden))
    }
}
