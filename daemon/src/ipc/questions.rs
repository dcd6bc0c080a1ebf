//! What can be asked of a connection besides its state: why an address goes where it goes, what an environment means here,
//! what the maps hold. Also the JSON and YAML forms of the answers, so fields are part of the interface.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use tpx_core::explain::{Explanation, Way};
use tpx_datapath::MapsDump;

/// What `tpx explain` is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// An address, and a port of it.
    Address(IpAddr, Option<u16>),
    /// A DNS name, and a port of its addresses.
    Name(String, Option<u16>),
    /// A process of this machine, and the name of the connection whose cluster it sees.
    Process(u32, Option<String>),
}

/// The answer of `tpx explain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Explained {
    /// How the name came to its addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<NameExplanation>,
    /// Whether the process sees the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessExplanation>,
    /// Each address, in order.
    pub addresses: Vec<Explanation>,
    /// Names of services and pods among all addresses above, where the cluster knows them.
    pub names: BTreeMap<IpAddr, String>,
}

/// How a name resolves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NameExplanation {
    /// The name.
    pub name: String,
    /// Who answers, in words.
    pub answered_by: String,
    /// What is asked in the cluster, in turn.
    pub candidates: Vec<String>,
    /// What programs are told; virtual addresses where the real ones have moved.
    pub addresses: Vec<IpAddr>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether and how a process sees the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessExplanation {
    /// Its id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: String,
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// Whether it is in the host's own network namespace; `null`: the process is another user's, nobody here can tell.
    pub own_network: Option<bool>,
    /// The connection whose cluster it sees; `null`: none's.
    pub connection: Option<String>,
    /// Whether new connections of it to the cluster are carried, in words.
    pub scope: String,
    /// The far ends of its sockets.
    pub peers: Vec<SocketAddr>,
}

/// A variable of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What `tpx maps dump` shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct MapsView {
    /// The kernel's maps.
    #[serde(flatten)]
    pub maps: MapsDump,
    /// Virtual addresses that were given out, the kernel's and the user daemon's.
    pub vnat: Vec<VnatRow>,
    /// What is carried now.
    pub flows: Vec<FlowRow>,
    /// Who sees the cluster.
    pub scopes: Vec<ScopeRow>,
    /// Names of services and pods, where the cluster knows them.
    pub names: BTreeMap<IpAddr, String>,
}

/// A virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VnatRow {
    /// What programs are told.
    pub virtual_ip: IpAddr,
    /// What it stands for.
    pub real: IpAddr,
    /// Whether the kernel translates it (the express lane), too.
    pub in_kernel: bool,
}

/// What `tpx flows` shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct FlowsView {
    /// What is carried now, and what ended lately where that was asked for.
    pub flows: Vec<FlowRow>,
    /// Names of services and pods behind the flows' destinations, where the cluster knows them.
    pub names: BTreeMap<IpAddr, String>,
}

/// A flow that is carried, or was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FlowRow {
    /// Which one it is, as long as the connection lasts.
    pub number: u64,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The application's own address.
    pub source: SocketAddr,
    /// What it asked for.
    pub destination: SocketAddr,
    /// Where that leads in the cluster.
    pub target: SocketAddr,
    /// By which road it came: `express` or `floor`.
    pub road: Way,
    /// Whose socket it is; `null`: another user's, another network namespace's, of no port (ping), or gone before anybody
    /// could look.
    pub process: Option<Process>,
    /// The user whose socket it is; `null`: nobody found out.
    pub uid: Option<u32>,
    /// The bridge that its source is a container behind.
    pub bridge: Option<String>,
    /// Bytes of payload from the application to the cluster.
    pub bytes_up: u64,
    /// Bytes of payload from the cluster to the application.
    pub bytes_down: u64,
    /// Datagrams and pings to the cluster; `null` for TCP.
    pub packets_up: Option<u64>,
    /// Datagrams and pings from the cluster; `null` for TCP.
    pub packets_down: Option<u64>,
    /// How long it has lasted, in seconds.
    pub seconds: f64,
    /// How long ago it ended, in seconds; `null`: it goes on.
    pub ended_seconds_ago: Option<f64>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: String,
}

/// Processes that see the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScopeRow {
    /// The connection's name.
    pub connection: String,
    /// `workstation`, or the directory of the cgroup2 tree.
    pub scope: String,
    /// `ebpf` or `tun`.
    pub road: String,
    /// How many processes are in it; `null`: all of this machine.
    pub processes: Option<usize>,
}
