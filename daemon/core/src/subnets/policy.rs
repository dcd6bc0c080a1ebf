//! What the user wants of routing.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::VnatSelector;

/// The user's rules. Order and repetition in the lists make no difference; the most specific prefix wins, between equal
/// ones `never_proxy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingPolicy {
    /// What is behind virtual addresses, conflict or not (`--vnat`). A subnet inside one of the cluster's moves that
    /// part, another one is added.
    pub vnat: Vec<VnatSelector>,
    /// Reached through the cluster although they are not its own (`--also-proxy`).
    pub also_proxy: Vec<IpNet>,
    /// Never reached through the cluster (`--never-proxy`).
    pub never_proxy: Vec<IpNet>,
    /// Where the cluster wins over the host's routes (`--allow-conflicting-subnets`).
    pub allow_conflicting: Vec<IpNet>,
    /// Where virtual IPv4 addresses come from (`routing.virtualSubnet`).
    pub virtual4: Ipv4Net,
    /// Where virtual IPv6 addresses come from.
    pub virtual6: Ipv6Net,
    /// Whether a conflict moves the subnet behind virtual addresses; otherwise it is an error.
    pub auto_resolve: bool,
}

impl RoutingPolicy {
    /// The usual range on Linux and macOS: class E, which nobody routes.
    pub const VIRTUAL4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(246, 246, 0, 0), 16);
    /// The usual range on Windows, which does not route class E.
    pub const VIRTUAL4_WINDOWS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(211, 55, 48, 0), 20);
    /// The usual IPv6 range (RFC 4193): beside the block of tpx's own addresses, and never inside it.
    pub const VIRTUAL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd74, 0x7078, 0x6e65, 0x7401, 0, 0, 0, 0), 64);

    /// The usual rules of the system that this is built for.
    #[must_use]
    pub fn here() -> Self {
        if cfg!(windows) { Self::for_windows() } else { Self::default() }
    }

    /// The usual rules with the IPv4 range of Windows.
    #[must_use]
    pub fn for_windows() -> Self {
        Self { virtual4: Self::VIRTUAL4_WINDOWS, ..Self::default() }
    }
}

impl Default for RoutingPolicy {
    /// No rules; conflicts move behind the ranges of Linux and macOS.
    fn default() -> Self {
        Self {
            vnat: Vec::new(),
            also_proxy: Vec::new(),
            never_proxy: Vec::new(),
            allow_conflicting: Vec::new(),
            virtual4: Self::VIRTUAL4,
            virtual6: Self::VIRTUAL6,
            auto_resolve: true,
        }
    }
}
