//! What `tpx status` shows; also its JSON and YAML form, so fields are part of the interface.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tpx_core::{
    plan,
    policy::{DenyRule, DenyWith},
    subnets::{self, Mode},
};
use tpx_datapath::{
    linux::{Bridge, Bridges, Hook},
    remote::protocol::Missing,
};

/// The whole state of one connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The connection's name.
    pub name: String,
    /// Whether streams can be opened now.
    pub state: State,
    /// Whose processes see the cluster.
    pub scope: Scope,
    /// Which cluster.
    pub kubernetes: Kubernetes,
    /// The namespace whose services are known by a single label.
    pub namespace: String,
    /// The namespaces that names are limited to; `null`: all.
    pub mapped_namespaces: Option<Vec<String>>,
    /// The cluster side.
    pub manager: Manager,
    /// The laptop side.
    pub datapath: Datapath,
    /// Names.
    pub dns: Dns,
    /// Connections since `tpx connect`.
    pub flows: Flows,
    /// The user daemon.
    pub user_daemon: UserDaemon,
    /// The privileged daemon.
    pub root_daemon: RootDaemon,
}

/// Whether the tunnel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Yes.
    Connected,
    /// A carrier was lost and is being made again, or the manager does not take this laptop in; new connections wait meanwhile,
    /// and fail when it takes long.
    Reconnecting,
}

impl State {
    /// Streams need both: a lane, and a session that the manager knows.
    pub(crate) fn of(lane_is_up: bool, session_is_up: bool) -> Self {
        if lane_is_up && session_is_up { Self::Connected } else { Self::Reconnecting }
    }
}

/// Whose processes see the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Scope {
    /// All of this machine.
    Workstation,
    /// Those in a directory of the cgroup2 tree (`tpx connect --scope`).
    Cgroup {
        /// The directory.
        cgroup: PathBuf,
    },
    /// A command's own process tree (`tpx run`).
    Tree {
        /// Its directory in the cgroup2 tree.
        cgroup: PathBuf,
    },
    /// A container (`tpx connect --scope container:NAME`).
    Container {
        /// As it was called.
        name: String,
        /// Where it is now; nowhere while it is stopped.
        addresses: Vec<IpAddr>,
    },
}

impl Scope {
    /// The scope of a plan; `tree` is the directory that was made for it, `container` what was asked for.
    pub(crate) fn of(plan: &plan::Scope, tree: Option<&Path>, container: Option<&str>) -> Self {
        match (plan, tree) {
            (plan::Scope::Workstation, _) => Self::Workstation,
            (plan::Scope::Cgroup(cgroup), _) => Self::Cgroup { cgroup: cgroup.clone() },
            (plan::Scope::Tree, tree) => Self::Tree { cgroup: tree.map(PathBuf::from).unwrap_or_default() },
            (plan::Scope::Containers(addresses), _) => {
                Self::Container { name: container.unwrap_or_default().to_owned(), addresses: addresses.clone() }
            }
        }
    }

    /// Whether some of this machine's own processes are in it.
    pub(crate) fn is_of_processes(&self) -> bool {
        !matches!(self, Self::Container { .. })
    }

    /// The directory of the cgroup2 tree; `None` where every process counts, or none.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        match self {
            Self::Workstation | Self::Container { .. } => None,
            Self::Cgroup { cgroup } | Self::Tree { cgroup } => Some(cgroup),
        }
    }
}

/// As the middle of a sentence.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workstation => f.write_str("workstation"),
            Self::Cgroup { cgroup } => write!(f, "cgroup {}", cgroup.display()),
            Self::Tree { .. } => f.write_str("process tree"),
            Self::Container { name, .. } => write!(f, "container {name}"),
        }
    }
}

/// The API server and who asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kubernetes {
    /// kubeconfig's context.
    pub context: String,
    /// The API server's URL.
    pub server: String,
}

/// The traffic manager.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manager {
    /// Where it runs.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// How streams reach it.
    pub carrier: String,
    /// Its id for this laptop's stay.
    pub session: String,
    /// Why it cannot be asked now.
    pub problem: Option<String>,
}

/// How connections enter the tunnel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Datapath {
    /// `ebpf` or `tun`.
    pub road: String,
    /// Why this one.
    pub because: String,
    /// What enters the tunnel, and how.
    pub subnets: Vec<Subnet>,
    /// What never enters the tunnel although a subnet covers it.
    pub except: Vec<IpNet>,
    /// What must not be reached.
    pub policy: Policy,
    /// Who sees the cluster besides this machine's processes.
    pub containers: Containers,
    /// What the kernel lacks, with what is done instead.
    pub missing: Vec<Missing>,
    /// Why a later change of cluster or host could not be followed.
    pub problem: Option<String>,
}

/// What must not be reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// As in `policy.deny`.
    pub deny: Vec<DenyRule>,
    /// `access` or `refused`.
    pub deny_with: DenyWith,
    /// How many subnets that is now.
    pub subnets: usize,
}

/// The containers on this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Containers {
    /// Bridges whose containers see the cluster.
    pub bridges: Vec<String>,
    /// How their packets are taken: `tcx` or `clsact`.
    pub hook: Option<Hook>,
    /// Bridges whose containers do not, with the reason.
    pub problems: Vec<String>,
    /// Why none does.
    pub problem: Option<String>,
}

impl Containers {
    /// None, for one reason.
    pub(crate) fn none(problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()), ..Self::default() }
    }
}

impl From<Bridges> for Containers {
    fn from(all: Bridges) -> Self {
        let (served, not): (Vec<_>, Vec<_>) = all.bridges.into_iter().partition(|bridge| bridge.problem.is_none());
        let problem = |bridge: Bridge| format!("{}: {}", bridge.name, bridge.problem.unwrap_or_default());
        Self {
            bridges: served.into_iter().map(|bridge| bridge.name).collect(),
            hook: all.hook,
            problems: not.into_iter().map(problem).collect(),
            problem: all.problem,
        }
    }
}

/// A subnet that is reached through the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Subnet {
    /// Its range.
    pub cidr: IpNet,
    /// `services`, `pods`, `also-proxy` or `vnat`.
    pub role: String,
    /// `direct` (under its own addresses), `virtual` or `refused`.
    pub mode: String,
    /// Where its virtual addresses come from.
    pub range: Option<IpNet>,
    /// Why it is not direct.
    pub because: Option<String>,
}

impl From<&subnets::Subnet> for Subnet {
    fn from(subnet: &subnets::Subnet) -> Self {
        let (mode, range, because) = match &subnet.mode {
            Mode::Direct => ("direct", None, None),
            Mode::Virtual { range, because } => ("virtual", Some(*range), Some(because)),
            Mode::Refused { because } => ("refused", None, Some(because)),
        };
        Self {
            cidr: subnet.cidr,
            role: subnet.role.to_string(),
            mode: mode.into(),
            range,
            because: because.map(ToString::to_string),
        }
    }
}

/// The name server side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Dns {
    /// The original name servers, whose port 53 is answered by tpx.
    pub name_servers: Vec<String>,
    /// Those that nothing can be put in front of: without the express lane, servers on this machine itself.
    pub unanswered: Vec<String>,
    /// Whether systemd-resolved was told to ask tpx for the cluster's names.
    pub systemd_resolved: bool,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Questions seen.
    pub queries: u64,
    /// Of these, answered by the cluster.
    pub cluster: u64,
    /// Of these, passed on to the original name servers.
    pub forwarded: u64,
    /// Of these, answered with an error of tpx's own.
    pub failed: u64,
}

/// Counters of connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Flows {
    /// Carried now.
    pub open: u64,
    /// Carried so far, the open ones included.
    pub opened: u64,
    /// Whose `connect()` failed as the cluster said, or for a virtual address that stands for nothing.
    pub refused: u64,
    /// Whose `connect()` the user daemon failed because the policy denies it. The kernel's programs deny most before anybody
    /// could count: `tpx maps dump counters`.
    #[serde(default)]
    pub denied: u64,
    /// Whose `connect()` failed because there was no carrier, or the manager did not answer.
    #[serde(default)]
    pub failed: u64,
    /// Bytes from the laptop to the cluster, of ended flows.
    pub bytes_up: u64,
    /// Bytes from the cluster to the laptop, of ended flows.
    pub bytes_down: u64,
}

/// The process that carries bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UserDaemon {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its log.
    pub log: String,
    /// Seconds since it connected.
    pub connected_seconds: u64,
}

/// The process that does verbs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootDaemon {
    /// Its version.
    pub version: String,
    /// Its socket.
    pub socket: String,
}
