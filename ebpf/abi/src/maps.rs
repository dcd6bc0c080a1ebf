//! Names and sizes of the maps. A name here is the name of the `static` in `tpx-ebpf`.

/// LPM trie: IPv4 prefix to [`Rule`](crate::Rule).
pub const RULES4: &str = "RULES4";
/// LPM trie: IPv6 prefix to [`Rule`](crate::Rule).
pub const RULES6: &str = "RULES6";
/// Hash: IPv4 name server to tpx's own DNS address.
pub const NAMES4: &str = "NAMES4";
/// Hash: IPv6 name server to tpx's own DNS address.
pub const NAMES6: &str = "NAMES6";
/// Hash: tpx's own IPv4 DNS address to the name server.
pub const SERVERS4: &str = "SERVERS4";
/// Hash: tpx's own IPv6 DNS address to the name server.
pub const SERVERS6: &str = "SERVERS6";
/// Hash: virtual IPv4 address to the one behind it. Filled by the user daemon, as the next three.
pub const VIRTUAL4: &str = "VIRTUAL4";
/// Hash: virtual IPv6 address to the one behind it.
pub const VIRTUAL6: &str = "VIRTUAL6";
/// Hash: IPv4 address to the virtual one before it.
pub const REAL4: &str = "REAL4";
/// Hash: IPv6 address to the virtual one before it.
pub const REAL6: &str = "REAL6";
/// Hash: index (`u32`) to the [`Target`](crate::Target) of datagrams.
pub const TARGETS: &str = "TARGETS";
/// Hash: [`Target`](crate::Target) to its index (`u32`).
pub const INDICES: &str = "INDICES";
/// LRU hash: socket cookie (`u64`) to `u8`; sockets in it are never touched.
pub const BYPASS: &str = "BYPASS";
/// Socket map: the daemon's sockets, at [`LISTENER4`], [`LISTENER6`], [`DATAGRAMS4`] and [`DATAGRAMS6`].
pub const SOCKETS: &str = "SOCKETS";
/// Hash: [`Flow`](crate::Flow) to [`Verdict`](crate::Verdict).
pub const HELD: &str = "HELD";
/// Ring buffer of [`SynRecord`](crate::SynRecord).
pub const SYNS: &str = "SYNS";
/// LRU hash: a container's address (IPv4 as IPv4-mapped) to its [`Station`](crate::Station).
pub const STATIONS: &str = "STATIONS";
/// Per-CPU array of one `u32`: the ports of the packet that was looked up last.
pub const LOOKED_UP: &str = "LOOKED_UP";
/// Per-CPU array of `u64`, indexed by [`Counter`](crate::Counter).
pub const COUNTERS: &str = "COUNTERS";

/// Index of the IPv4 listener.
pub const LISTENER4: u32 = 0;
/// Index of the IPv6 listener.
pub const LISTENER6: u32 = 1;

/// Index of the IPv4 socket that datagrams arrive at.
pub const DATAGRAMS4: u32 = 2;
/// Index of the IPv6 socket that datagrams arrive at.
pub const DATAGRAMS6: u32 = 3;

/// Bound on the rules of one family: all four lists of a plan.
pub const RULES_MAX: u32 = 4096;
/// Bound on the virtual addresses of one family that the kernel translates.
pub const VIRTUAL_MAX: u32 = 65536;
/// Bound on the destinations of datagrams in the life of a datapath.
pub const TARGETS_MAX: u32 = 65536;
/// Bound on flows whose SYN is held.
pub const HELD_MAX: u32 = 65536;
/// Bound on the daemon's own sockets that are remembered; the oldest go first.
pub const BYPASS_MAX: u32 = 65536;
/// Bound on the containers that answers find back to; the longest silent go first.
pub const STATIONS_MAX: u32 = 16384;
/// Size of the ring buffer in bytes: 6,000 SYNs without payload.
pub const SYNS_BYTES: u32 = 1 << 20;

/// Globals that the loader writes.
pub mod global {
    /// `u64`: cookie of the network namespace whose sockets are steered.
    pub const NETNS_COOKIE: &str = "NETNS_COOKIE";
    /// `u32`: interface index of the TUN device.
    pub const DEVICE: &str = "DEVICE";
    /// `u32`: the datapath's [`Slot`](crate::slot::Slot).
    pub const SLOT: &str = "SLOT";
    /// `u16`: the port of the sockets that datagrams arrive at.
    pub const DATAGRAM_PORT: &str = "DATAGRAM_PORT";
    /// `u32`: not 0 where programs on devices outlive a crash; they let packets pass once the TUN device is gone.
    pub const OUTLIVES: &str = "OUTLIVES";
}

/// Names of the programs, as the loader finds them.
pub mod program {
    /// The hooks on the scope's cgroup.
    pub const CGROUP: [&str; 8] =
        ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];
    /// The sk_lookup program.
    pub const LOOKUP: &str = "lookup";
    /// The socket filter on the listeners.
    pub const HOLD: &str = "hold";
    /// On containers' bridges, incoming.
    pub const FROM_CONTAINER: &str = "from_container";
    /// On the TUN device, incoming.
    pub const TO_CONTAINER: &str = "to_container";
}
