//! How a dial into the cluster can fail, in the words an application will read from `connect()`.

use serde::{Deserialize, Serialize};

/// Why the far side could not be reached.
///
/// The manager reports it as `Proxy-Status` (RFC 9209); the laptop turns it into the packet that makes the kernel give
/// the application the matching `errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum DialFailure {
    /// The target answered with a reset: `ECONNREFUSED`.
    #[error("connection refused")]
    Refused,
    /// No host answers at that address: `EHOSTUNREACH`.
    #[error("no route to host")]
    HostUnreachable,
    /// No route leads to that network: `ENETUNREACH`.
    #[error("network is unreachable")]
    NetworkUnreachable,
    /// A policy forbids it: `EACCES` where the platform can say so, else `EHOSTUNREACH`.
    #[error("administratively prohibited")]
    Prohibited,
    /// Nothing answered in time: the application's own timeout runs out, `ETIMEDOUT`.
    #[error("timed out")]
    TimedOut,
    /// The tunnel or the manager failed, not the target: `EHOSTUNREACH`.
    #[error("the tunnel failed")]
    Tunnel,
}
