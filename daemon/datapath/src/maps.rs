//! What the kernel's maps say, as data: the body of `tpx maps dump`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One look at all maps. Not atomic: entries may come and go between the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapsDump {
    /// What is steered and what is denied, in the order of the addresses.
    pub rules: Vec<RuleRow>,
    /// Ports that must not be reached in the cluster.
    #[serde(default)]
    pub denied_ports: Vec<u16>,
    /// Whose port 53 is answered by tpx.
    pub name_servers: Vec<NameServerRow>,
    /// Virtual addresses that the kernel translates, in their order.
    pub translations: Vec<VirtualRow>,
    /// What datagrams were sent to, in the order of the indices.
    pub datagrams: Vec<DatagramRow>,
    /// Connections whose first packet is held or was just released.
    pub held: Vec<HeldRow>,
    /// Sockets of the daemon's own that no program touches.
    pub bypassed_sockets: u64,
    /// What the programs counted since they were loaded.
    pub counters: Vec<CounterRow>,
}

impl MapsDump {
    /// The same with what the privileged daemon has read.
    #[must_use]
    pub fn with(self, tables: Tables) -> Self {
        let Tables { rules, denied_ports, name_servers } = tables;
        Self { rules, denied_ports, name_servers, ..self }
    }
}

/// What the privileged daemon alone writes into the maps, and therefore alone reads there: a map file cannot be handed over
/// for reading only, and who writes rules has the whole machine's connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// As in [`MapsDump`].
    pub rules: Vec<RuleRow>,
    /// As in [`MapsDump`].
    pub denied_ports: Vec<u16>,
    /// As in [`MapsDump`].
    pub name_servers: Vec<NameServerRow>,
}

/// A prefix and what happens to connections into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRow {
    /// The prefix.
    pub cidr: IpNet,
    /// `steer`, `except`, `virtual` or `hidden`; `deny` for what must not be reached, whatever the others say.
    pub action: String,
}

/// A name server and the address that stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameServerRow {
    /// The server that applications believe they ask.
    pub name_server: IpAddr,
    /// tpx's own address.
    pub answered_at: IpAddr,
}

/// A virtual address and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualRow {
    /// What applications connect to.
    pub virtual_ip: IpAddr,
    /// The cluster's address.
    pub real: IpAddr,
}

/// A destination of datagrams and the number that stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramRow {
    /// The number; never used for another destination while the datapath lives.
    pub index: u32,
    /// What applications send to.
    pub destination: SocketAddr,
}

/// A held connection attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRow {
    /// Where the application connects from.
    pub source: SocketAddr,
    /// What it asked for.
    pub destination: SocketAddr,
    /// `held` or `released`.
    pub state: String,
    /// First packets seen, the first one included.
    pub syns: u32,
}

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRow {
    /// Its name.
    pub name: String,
    /// Sum over all CPUs.
    pub value: u64,
}
