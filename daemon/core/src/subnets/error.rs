//! Why no decision about subnets is possible.

use ipnet::IpNet;

use super::{HostRoute, Role};
use crate::plan::PlanError;

/// Why no decision about subnets is possible. Each message names the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// A rule that can never be followed.
    #[error("{place}: {why}")]
    Rule {
        /// The flag.
        place: &'static str,
        /// What is wrong.
        why: PlanError,
    },
    /// The host uses the addresses, and conflicts are not to be resolved.
    #[error(
        "the cluster's subnet {subnet} ({role}) conflicts with the host's route {route}: reach it under virtual addresses \
         (--vnat {subnet}), let the cluster win (--allow-conflicting-subnets {subnet}), or set \
         routing.autoResolveConflicts: true (--never-proxy {subnet} leaves it to {device})", device = .route.device
    )]
    Conflict {
        /// The cluster's subnet.
        subnet: IpNet,
        /// Where it comes from.
        role: Role,
        /// The route in its way.
        route: HostRoute,
    },
    /// The virtual addresses are not free.
    #[error("the virtual subnet {range} overlaps {what}; set routing.virtualSubnet to a range that nothing uses")]
    VirtualTaken {
        /// The range.
        range: IpNet,
        /// What uses them.
        what: String,
    },
    /// A range that cannot hold virtual addresses.
    #[error("the virtual subnet {range} cannot be used: {why}; set routing.virtualSubnet to another range")]
    VirtualUnusable {
        /// The range.
        range: IpNet,
        /// What is wrong.
        why: String,
    },
}
