//! What newer kernels have, and what is done where it is missing.

use std::{fmt, str::FromStr};

use crate::remote::protocol::Missing;

/// Something that not every kernel has, or lets us have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Programs at connect() and its relatives, for a cgroup.
    ConnectHooks,
    /// Programs that choose the socket of a packet.
    SkLookup,
    /// Programs on a socket.
    SocketFilter,
    /// Use of maps by a user who was handed their files.
    UserMaps,
    /// Programs on a network device, by links.
    Tcx,
    /// The error that a refused call ends with.
    SetRetval,
    /// The name that sockets have for their network namespace.
    NetnsCookie,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ConnectHooks,
        Self::SkLookup,
        Self::SocketFilter,
        Self::UserMaps,
        Self::Tcx,
        Self::SetRetval,
        Self::NetnsCookie,
    ];

    /// One word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectHooks => "connect_hooks",
            Self::SkLookup => "sk_lookup",
            Self::SocketFilter => "socket_filter",
            Self::UserMaps => "user_maps",
            Self::Tcx => "tcx",
            Self::SetRetval => "set_retval",
            Self::NetnsCookie => "netns_cookie",
        }
    }

    /// What it is, and what brings it.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::ConnectHooks => "connect hooks of cgroups (Linux 5.8 and CONFIG_CGROUP_BPF)",
            Self::SkLookup => "sk_lookup programs (Linux 5.9 and CONFIG_BPF_SYSCALL)",
            Self::SocketFilter => "socket filter programs with ring buffers (Linux 5.8 and CONFIG_BPF_SYSCALL)",
            Self::UserMaps => "maps for users without privilege (Linux 5.19, or kernel.unprivileged_bpf_disabled=0)",
            Self::Tcx => "TCX (Linux 6.6)",
            Self::SetRetval => "bpf_set_retval (Linux 5.18)",
            Self::NetnsCookie => "cookies of network namespaces (SO_NETNS_COOKIE, Linux 5.14)",
        }
    }

    /// What is done without it.
    #[must_use]
    pub const fn fallback(self) -> &'static str {
        match self {
            Self::Tcx => "containers are served by clsact filters, which stay after a crash, without effect",
            Self::SetRetval => "calls that are denied end with EPERM, whatever is configured",
            Self::UserMaps => "the TUN device carries everything, unless root connects",
            _ => "the TUN device carries everything",
        }
    }

    /// Whether the express lane cannot be without it, for user `uid`'s daemon.
    #[must_use]
    pub const fn is_needed(self, uid: u32) -> bool {
        match self {
            Self::ConnectHooks | Self::SkLookup | Self::SocketFilter | Self::NetnsCookie => true,
            Self::UserMaps => uid != 0,
            Self::Tcx | Self::SetRetval => false,
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|f| f.name() == name)
            .ok_or_else(|| format!("no such feature; there are {}", known()))
    }
}

impl From<Feature> for Missing {
    fn from(feature: Feature) -> Self {
        Self { feature: feature.name().into(), about: feature.about().into(), fallback: feature.fallback().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        assert!(Feature::ALL.iter().all(|f| f.to_string().parse() == Ok(*f)));
        assert!("xdp".parse::<Feature>().unwrap_err().contains("sk_lookup"));
    }

    #[test]
    fn root_needs_no_leave_to_use_maps() {
        let needed = |uid| Feature::ALL.map(|f| f.is_needed(uid));
        assert_eq!(needed(1000), [true, true, true, true, false, false, true]);
        assert_eq!(needed(0), [true, true, true, false, false, false, true]);
    }
}
