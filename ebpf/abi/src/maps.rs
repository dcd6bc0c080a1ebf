//! Names and sizes of the maps. A name here is the name of the `static` in `tpx-ebpf`.

/// LPM trie: IPv4 prefix to [`Rule`](crate::Rule).
pub const RULES4: &str = "RULES4";
/// LPM trie: IPv6 prefix to [`Rule`](crate::Rule).
pub const RULES6: &str = "RULES6";
/// Array of one [`Policy`](crate::Policy).
pub const POLICY: &str = "POLICY";
/// LPM trie: IPv4 prefix that is denied, to `u32`. Apart from the rules, because these say what enters the tunnel, and
/// the most specific of them wins: a wide denial would lose.
pub const DENY4: &str = "DENY4";
/// LPM trie: IPv6 prefix that is denied, to `u32`.
pub const DENY6: &str = "DENY6";
/// Hash: denied port (`u16`) to `u8`.
pub const DENY_PORTS: &str = "DENY_PORTS";
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
/// LRU hash: cookie (`u64`) of a steered socket of a process tree whose source the application has chosen, to `u8`; between
/// `connect()` and the choice of a source port.
pub const CHOOSERS: &str = "CHOOSERS";
/// LRU hash: [`Flow`](crate::Flow) of such a socket to `u8`.
pub const BOUND: &str = "BOUND";
/// Socket map: the daemon's sockets, at [`LISTENER4`], [`LISTENER6`], [`DATAGRAMS4`] and [`DATAGRAMS6`].
pub const SOCKETS: &str = "SOCKETS";
/// Hash: [`Flow`](crate::Flow) to [`Verdict`](crate::Verdict).
pub const HELD: &str = "HELD";
/// LRU hash: socket cookie (`u64`) to [`Owner`](crate::Owner), between `connect()` and the choice of a source port.
pub const CALLERS: &str = "CALLERS";
/// LRU hash: [`Flow`](crate::Flow) to [`Owner`](crate::Owner), until the daemon takes it.
pub const OWNERS: &str = "OWNERS";
/// Ring buffer of [`SynRecord`](crate::SynRecord).
pub const SYNS: &str = "SYNS";
/// LRU hash: a container's address (IPv4 as IPv4-mapped) to its [`Station`](crate::Station).
pub const STATIONS: &str = "STATIONS";
/// Hash: address of a container that is in the scope (as in [`STATIONS`]) to `u8`.
pub const SENDERS: &str = "SENDERS";
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

/// Bound on the rules of one family: all four lists of a plan. Memory is taken for those that are there; the maps have room
/// for twice as many, since those of the next plan come before those of the last one go.
pub const RULES_MAX: u32 = 16_384;
/// Bound on denied ports.
pub const DENY_PORTS_MAX: u32 = 1024;
/// Bound on the virtual addresses of one family that the kernel translates.
pub const VIRTUAL_MAX: u32 = 65536;
/// Bound on the destinations of datagrams in the life of a datapath.
pub const TARGETS_MAX: u32 = 65536;
/// Bound on flows whose SYN is held.
pub const HELD_MAX: u32 = 65536;
/// Bound on calls of `connect()` at one moment whose callers are remembered: 0.4 MB.
pub const CALLERS_MAX: u32 = 4096;
/// Bound on connections whose owners the daemon has not taken yet, more than [`SYNS_BYTES`] holds: 1 MB.
pub const OWNERS_MAX: u32 = 8192;
/// Bound on the daemon's own sockets that are remembered; the oldest go first.
pub const BYPASS_MAX: u32 = 65536;
/// Bound on connections from chosen sources that are remembered; the oldest go first.
pub const BOUND_MAX: u32 = 4096;
/// Bound on the containers that answers find back to; the longest silent go first.
pub const STATIONS_MAX: u32 = 16384;
/// Bound on the addresses of containers that a scope is made of.
pub const SENDERS_MAX: u32 = 64;
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
    /// `u8`: 1 when the scope is a process tree, 0 when it is the whole workstation.
    pub const TREE: &str = "TREE";
    /// `u16`: the port of the sockets that datagrams arrive at.
    pub const DATAGRAM_PORT: &str = "DATAGRAM_PORT";
    /// `u16`: the port of the slot's own DNS addresses, one of [`DNS_PORTS`](crate::slot::DNS_PORTS).
    pub const NAMES_PORT: &str = "NAMES_PORT";
    /// `u32`: not zero where a program may say what a refused call ends with (Linux 5.18); elsewhere it is EPERM.
    pub const RETVAL: &str = "RETVAL";
    /// `u32`: how processes are known, a [`Pids`](crate::Pids).
    pub const PIDS: &str = "PIDS";
    /// `u64`: device of the PID namespace that numbers are of.
    pub const PID_DEVICE: &str = "PID_DEVICE";
    /// `u64`: inode of the PID namespace that numbers are of.
    pub const PID_INODE: &str = "PID_INODE";
    /// `u32`: not 0 where programs on devices outlive a crash; they let packets pass once the TUN device is gone.
    pub const OUTLIVES: &str = "OUTLIVES";
    /// `u32`: not 0 where the scope is made of containers: of what bridges carry, only packets of [`SENDERS`](super::SENDERS)
    /// are its own.
    pub const OF_SENDERS: &str = "OF_SENDERS";
}

/// Names of the programs, as the loader finds them.
pub mod program {
    /// The hooks on the scope's cgroup.
    pub const CGROUP: [&str; 8] =
        ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];
    /// The hook on a process tree's cgroup that marks new sockets.
    pub const SOCK_CREATE: &str = "sock_create";
    /// The program that knows whose streams are, and which of a process tree's have sources of their own, on the scope's
    /// cgroup as well.
    pub const OWNER: &str = "owner";
    /// The sk_lookup program.
    pub const LOOKUP: &str = "lookup";
    /// The socket filter on the listeners.
    pub const HOLD: &str = "hold";
    /// On containers' bridges, incoming.
    pub const FROM_CONTAINER: &str = "from_container";
    /// On the TUN device, incoming.
    pub const TO_CONTAINER: &str = "to_container";
}
