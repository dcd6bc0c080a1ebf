//! The maps. Their names are those of `tpx_ebpf_abi::maps`.
#![expect(unsafe_code, reason = "the macro exports each map under its name")]

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use tpx_ebpf_abi::{
    Counter, Flow, Owner, Policy, Rule, Station, Target, Verdict,
    maps::{
        BOUND_MAX, BYPASS_MAX, CALLERS_MAX, DENY_PORTS_MAX, HELD_MAX, OWNERS_MAX, RULES_MAX, SENDERS_MAX, STATIONS_MAX,
        SYNS_BYTES, TARGETS_MAX, VIRTUAL_MAX,
    },
    mark,
    slot::{NAMES, Slot},
};

/// Cookie of the network namespace whose sockets are steered.
#[unsafe(no_mangle)]
pub(crate) static NETNS_COOKIE: Global<u64> = Global::new(0);
/// Interface index of the TUN device.
#[unsafe(no_mangle)]
pub(crate) static DEVICE: Global<u32> = Global::new(0);
/// Number of the datapath's slot.
#[unsafe(no_mangle)]
static SLOT: Global<u32> = Global::new(0);
/// Whether the scope is a process tree: 1 or 0.
#[unsafe(no_mangle)]
static TREE: Global<u8> = Global::new(0);
/// Port of the daemon's sockets that datagrams arrive at.
#[unsafe(no_mangle)]
pub(crate) static DATAGRAM_PORT: Global<u16> = Global::new(0);
/// Port of the slot's own DNS addresses.
#[unsafe(no_mangle)]
pub(crate) static NAMES_PORT: Global<u16> = Global::new(0);
/// Not zero: the kernel lets a program say what a refused call ends with.
#[unsafe(no_mangle)]
pub(crate) static RETVAL: Global<u32> = Global::new(0);
/// How processes are known, a `tpx_ebpf_abi::Pids`.
#[unsafe(no_mangle)]
pub(crate) static PIDS: Global<u32> = Global::new(0);
/// Device of the PID namespace that the daemon lives in.
#[unsafe(no_mangle)]
pub(crate) static PID_DEVICE: Global<u64> = Global::new(0);
/// Inode of the PID namespace that the daemon lives in.
#[unsafe(no_mangle)]
pub(crate) static PID_INODE: Global<u64> = Global::new(0);
/// Not 0: programs on devices outlive a crash.
#[unsafe(no_mangle)]
pub(crate) static OUTLIVES: Global<u32> = Global::new(0);
/// Not 0: the scope is made of containers.
#[unsafe(no_mangle)]
pub(crate) static OF_SENDERS: Global<u32> = Global::new(0);

#[map]
pub(crate) static RULES4: LpmTrie<[u8; 4], Rule> = LpmTrie::with_max_entries(2 * RULES_MAX, 0);
#[map]
pub(crate) static RULES6: LpmTrie<[u8; 16], Rule> = LpmTrie::with_max_entries(2 * RULES_MAX, 0);
#[map]
pub(crate) static POLICY: Array<Policy> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static DENY4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(2 * RULES_MAX, 0);
#[map]
pub(crate) static DENY6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(2 * RULES_MAX, 0);
#[map]
pub(crate) static DENY_PORTS: HashMap<u16, u8> = HashMap::with_max_entries(2 * DENY_PORTS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static NAMES4: HashMap<[u8; 4], [u8; 4]> = HashMap::with_max_entries(NAMES as u32, 0);
#[map]
pub(crate) static NAMES6: HashMap<[u8; 16], [u8; 16]> = HashMap::with_max_entries(NAMES as u32, 0);
#[map]
pub(crate) static SERVERS4: HashMap<[u8; 4], [u8; 4]> = HashMap::with_max_entries(NAMES as u32, 0);
#[map]
pub(crate) static SERVERS6: HashMap<[u8; 16], [u8; 16]> = HashMap::with_max_entries(NAMES as u32, 0);
#[map]
pub(crate) static VIRTUAL4: HashMap<[u8; 4], [u8; 4]> = HashMap::with_max_entries(VIRTUAL_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static VIRTUAL6: HashMap<[u8; 16], [u8; 16]> = HashMap::with_max_entries(VIRTUAL_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static REAL4: HashMap<[u8; 4], [u8; 4]> = HashMap::with_max_entries(VIRTUAL_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static REAL6: HashMap<[u8; 16], [u8; 16]> = HashMap::with_max_entries(VIRTUAL_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(TARGETS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static INDICES: HashMap<Target, u32> = HashMap::with_max_entries(TARGETS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static BYPASS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(BYPASS_MAX, 0);
#[map]
pub(crate) static CHOOSERS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(CALLERS_MAX, 0);
#[map]
pub(crate) static BOUND: LruHashMap<Flow, u8> = LruHashMap::with_max_entries(BOUND_MAX, 0);
#[map]
pub(crate) static SOCKETS: SockMap = SockMap::with_max_entries(4, 0);
#[map]
pub(crate) static HELD: HashMap<Flow, Verdict> = HashMap::with_max_entries(HELD_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static CALLERS: LruHashMap<u64, Owner> = LruHashMap::with_max_entries(CALLERS_MAX, 0);
#[map]
pub(crate) static OWNERS: LruHashMap<Flow, Owner> = LruHashMap::with_max_entries(OWNERS_MAX, 0);
#[map]
pub(crate) static SYNS: RingBuf = RingBuf::with_byte_size(SYNS_BYTES, 0);
#[map]
pub(crate) static STATIONS: LruHashMap<[u32; 4], Station> = LruHashMap::with_max_entries(STATIONS_MAX, 0);
#[map]
pub(crate) static SENDERS: HashMap<[u32; 4], u8> = HashMap::with_max_entries(SENDERS_MAX, BPF_F_NO_PREALLOC);
#[map]
static LOOKED_UP: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Counts one.
#[inline(always)]
pub(crate) fn count(what: Counter) {
    if let Some(n) = COUNTERS.get_ptr_mut(what as u32) {
        // SAFETY: the kernel gave a valid pointer to this CPU's value.
        unsafe { *n += 1 }
    }
}

/// Remembers, on this CPU, the ports of a packet that no socket of its own was found for.
#[inline(always)]
pub(crate) fn note_look_up(ports: [u8; 4]) {
    if let Some(noted) = LOOKED_UP.get_ptr_mut(0) {
        // SAFETY: the kernel gave a valid pointer to this CPU's value.
        unsafe { *noted = u32::from_ne_bytes(ports) }
    }
}

/// Whether the packet with these ports is the one that was noted on this CPU; forgets it.
#[inline(always)]
pub(crate) fn take_look_up(ports: [u8; 4]) -> bool {
    let Some(noted) = LOOKED_UP.get_ptr_mut(0) else { return false };
    // SAFETY: the kernel gave a valid pointer to this CPU's value.
    let was = unsafe { core::mem::replace(&mut *noted, 0) };
    was == u32::from_ne_bytes(ports)
}

/// The datapath's slot.
#[inline(always)]
pub(crate) fn own_slot() -> Slot {
    Slot::masked(SLOT.load())
}

/// Whether the scope is a process tree.
#[inline(always)]
pub(crate) fn is_tree() -> bool {
    TREE.load() != 0
}

/// The mark of a process tree's sockets that are not steered.
#[inline(always)]
pub(crate) fn member_mark() -> u32 {
    mark::member(own_slot())
}

/// The mark of steered sockets.
#[inline(always)]
pub(crate) fn steer_mark() -> u32 {
    mark::steer(own_slot())
}

/// The mark of the sockets that the daemon sends from.
#[inline(always)]
pub(crate) fn reinject_mark() -> u32 {
    mark::reinject(own_slot())
}
