//! The plan: what the host should look like while connected, as data.
//!
//! The user daemon makes it, the privileged daemon checks it again and carries it out. Applying the same plan twice
//! changes nothing.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{devices::DevicePattern, policy::DenyWith};

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
    /// A new process tree: tpx-rootd makes a cgroup for it as a child of the calling process's own cgroup, and removes
    /// it when the session ends.
    Tree,
    /// Containers behind bridges of this machine, by their addresses. None while the container is stopped that is meant.
    /// At most [`Plan::MAX_CONTAINERS`].
    Containers(#[serde(deserialize_with = "bounded::list::<_, _, { Plan::MAX_CONTAINERS }>")] Vec<IpAddr>),
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
    /// Cluster addresses that must not be reached: what would enter the tunnel to one of them is refused, whatever lists
    /// above say. It forbids nothing outside the tunnel, so that a prefix may be as short as it likes. At most
    /// [`Plan::MAX_SUBNETS`].
    #[serde(default, deserialize_with = "bounded::list::<_, _, { Plan::MAX_SUBNETS }>")]
    pub deny: Vec<IpNet>,
    /// Ports that must not be reached in the cluster. At most [`Plan::MAX_DENY_PORTS`].
    #[serde(default, deserialize_with = "bounded::list::<_, _, { Plan::MAX_DENY_PORTS }>")]
    pub deny_ports: Vec<u16>,
    /// What who is denied hears.
    #[serde(default)]
    pub deny_with: DenyWith,
    /// What systemd-resolved is told, where it runs. It answers every process: for a process tree it is told nothing.
    #[serde(default)]
    pub resolver: Option<ResolverLink>,
    /// The bridges whose containers see the cluster, also those that appear later: all of them, or those that are the scope.
    /// Only on the express lane, and not for one process tree. At most [`Plan::MAX_CONTAINER_DEVICES`].
    #[serde(default, deserialize_with = "bounded::list::<_, _, { Plan::MAX_CONTAINER_DEVICES }>")]
    pub container_devices: Vec<DevicePattern>,
}

impl Scope {
    /// Whether it is that of some processes only.
    #[must_use]
    pub fn is_tree(&self) -> bool {
        !matches!(self, Self::Workstation)
    }

    /// Whether it is that of containers.
    #[must_use]
    pub fn is_containers(&self) -> bool {
        matches!(self, Self::Containers(_))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workstation => f.write_str("the workstation"),
            Self::Cgroup(path) => write!(f, "{}", path.display()),
            Self::Tree => f.write_str("a new process tree"),
            Self::Containers(addresses) => {
                let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                write!(f, "the containers at [{}]", list.join(", "))
            }
        }
    }
}

impl Plan {
    /// Bound on the subnets of all four lists.
    pub const MAX_SUBNETS: usize = tpx_ebpf_abi::maps::RULES_MAX as usize;
    /// Bound on `name_servers`; resolv.conf(5) knows three.
    pub const MAX_NAME_SERVERS: usize = 8;
    /// Bound on `protected`; an API server has a few addresses.
    pub const MAX_PROTECTED: usize = 64;
    /// Bound on `deny_ports`.
    pub const MAX_DENY_PORTS: usize = 1024;
    /// Bound on `container_devices`.
    pub const MAX_CONTAINER_DEVICES: usize = 32;
    /// Bound on the addresses of [`Scope::Containers`].
    pub const MAX_CONTAINERS: usize = tpx_ebpf_abi::maps::SENDERS_MAX as usize;
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
