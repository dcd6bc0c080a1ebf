//! Contexts and helpers of the kernel, in terms that the programs use.

mod frame;

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_pidns_info, bpf_sock},
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_ns_current_pid_tgid,
        bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval, bpf_setsockopt, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative,
    },
    maps::{HashMap, ring_buf::RingBufEntry},
    programs::{SkBuffContext, SkLookupContext, SockAddrContext, SockContext, SockOpsContext},
};
use tpx_ebpf_abi::{Counter, Flow, IP_HEADER_MAX, Kind, Owner, Pids, SynRecord, Verdict, mark, slot::Slot, v4_mapped};

pub(crate) use self::frame::{ETHERNET, Frame, Route};
use crate::maps::{
    BYPASS, NETNS_COOKIE, PID_DEVICE, PID_INODE, PIDS, RETVAL, count, member_mark, own_slot, reinject_mark,
};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;
const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
/// BPF_HDR_START_NET: offsets count from the IP header.
const HDR_START_NET: u32 = 1;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that set marks and read cookies are offered to programs under a GPL-compatible license only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Four words of a context, one by one. Copied as an array they become a pointer into the context, which the verifier
/// refuses ("dereference of modified ctx ptr").
///
/// # Safety
/// `at` points at a field of a context.
#[inline(always)]
unsafe fn words(at: *const [u32; 4]) -> [u8; 16] {
    let word = at.cast::<u32>();
    // SAFETY: the caller's field has four words.
    let w = unsafe {
        [word.read_volatile(), word.add(1).read_volatile(), word.add(2).read_volatile(), word.add(3).read_volatile()]
    };
    let [a, b, c, d] = w.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// A socket call with an address, inside a cgroup hook.
pub(crate) struct Call<'a>(pub(crate) &'a SockAddrContext);

impl Call<'_> {
    /// The IPv4 address of the call.
    #[inline(always)]
    pub(crate) fn ip4(&self) -> [u8; 4] {
        // SAFETY: the kernel's context lives as long as the program runs.
        unsafe { (*self.0.sock_addr).user_ip4 }.to_ne_bytes()
    }

    /// Replaces the IPv4 address.
    #[inline(always)]
    fn set_ip4(&self, ip: [u8; 4]) {
        // SAFETY: as in `ip4`; this field may be written.
        unsafe { (*self.0.sock_addr).user_ip4 = u32::from_ne_bytes(ip) }
    }

    /// The IPv6 address of the call.
    #[inline(always)]
    pub(crate) fn ip6(&self) -> [u8; 16] {
        // SAFETY: as in `ip4`.
        unsafe { words(&raw const (*self.0.sock_addr).user_ip6) }
    }

    /// Replaces the IPv6 address.
    #[inline(always)]
    fn set_ip6(&self, ip: [u8; 16]) {
        // SAFETY: as in `set_ip4`, word by word as the verifier wants it.
        unsafe {
            let word = (&raw mut (*self.0.sock_addr).user_ip6).cast::<u32>();
            word.write_volatile(u32::from_ne_bytes([ip[0], ip[1], ip[2], ip[3]]));
            word.add(1).write_volatile(u32::from_ne_bytes([ip[4], ip[5], ip[6], ip[7]]));
            word.add(2).write_volatile(u32::from_ne_bytes([ip[8], ip[9], ip[10], ip[11]]));
            word.add(3).write_volatile(u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]));
        }
    }

    /// The port of the call.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: as in `ip4`. The field holds a port in network order.
        u16::from_be(unsafe { (*self.0.sock_addr).user_port } as u16)
    }

    /// Replaces the port.
    #[inline(always)]
    fn set_port(&self, port: u16) {
        // SAFETY: as in `set_ip4`.
        unsafe { (*self.0.sock_addr).user_port = u32::from(port.to_be()) }
    }

    /// Replaces IPv4 address and port, if there are others.
    #[inline(always)]
    pub(crate) fn put4(&self, other: Option<([u8; 4], u16)>) {
        if let Some((ip, port)) = other {
            self.set_ip4(ip);
            self.set_port(port);
        }
    }

    /// Replaces IPv6 address and port, if there are others.
    #[inline(always)]
    pub(crate) fn put6(&self, other: Option<([u8; 16], u16)>) {
        if let Some((ip, port)) = other {
            self.set_ip6(ip);
            self.set_port(port);
        }
    }

    /// What the socket carries.
    #[inline(always)]
    pub(crate) fn kind(&self) -> Kind {
        if self.is_stream() {
            Kind::Stream
        } else if self.is_datagram() {
            Kind::Datagram
        } else {
            Kind::Other
        }
    }

    /// Whether the socket carries datagrams of UDP (not those of ping sockets or UDP-Lite).
    #[inline(always)]
    pub(crate) fn is_datagram(&self) -> bool {
        // SAFETY: as in `ip4`.
        unsafe { (*self.0.sock_addr).protocol == IPPROTO_UDP }
    }

    /// Whether the socket carries a stream: TCP or MPTCP.
    #[inline(always)]
    pub(crate) fn is_stream(&self) -> bool {
        // SAFETY: as in `ip4`.
        unsafe { (*self.0.sock_addr).type_ == SOCK_STREAM }
    }

    #[inline(always)]
    fn socket(&self) -> Option<&bpf_sock> {
        // SAFETY: the kernel gives null or a socket that outlives the program.
        unsafe { (*self.0.sock_addr).__bindgen_anon_1.sk.as_ref() }
    }

    /// A socket of our network namespace that is neither the daemon's own nor another slot's. The kernel runs the hooks of a cgroup for all
    /// network namespaces, in which our addresses mean nothing.
    #[inline(always)]
    pub(crate) fn is_ours(&self) -> bool {
        match self.stranger() {
            None => true,
            Some(why) => {
                count(why);
                false
            }
        }
    }

    /// Whether it is of another network namespace.
    #[inline(always)]
    pub(crate) fn is_foreign(&self) -> bool {
        // SAFETY: the helper takes the context as it came.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) != NETNS_COOKIE.load() }
    }

    /// Why it is none of ours; `None` when it is.
    #[inline(always)]
    pub(crate) fn stranger(&self) -> Option<Counter> {
        if self.is_foreign() {
            return Some(Counter::ForeignNetns);
        }
        let exempt = BYPASS.get_ptr(self.cookie()).is_some();
        if exempt && self.has_mark(member_mark()) {
            // Its daemon belongs to the process tree that it serves: not even the floor is for this one.
            self.set_mark(0);
        }
        let others = self.socket().is_some_and(|s| mark::is_others(s.mark, own_slot()));
        if others || exempt || self.has_mark(reinject_mark()) { Some(Counter::Bypassed) } else { None }
    }

    /// The socket's number, never given to another one.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context as it came.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// Whether our bits of the socket's mark are `ours`.
    #[inline(always)]
    pub(crate) fn has_mark(&self, ours: u32) -> bool {
        self.socket().is_some_and(|s| mark::is(s.mark, ours))
    }

    /// Whether nobody but the workstation's programs has put anything into our bits of the socket's mark.
    #[inline(always)]
    pub(crate) fn is_unclaimed(&self) -> bool {
        self.has_mark(0) || self.has_mark(mark::steer(Slot::FIRST))
    }

    /// Whether the socket is bound to an address.
    #[inline(always)]
    pub(crate) fn has_source(&self) -> bool {
        let Some(socket) = self.socket() else { return false };
        if socket.family == AF_INET {
            return socket.src_ip4 != 0;
        }
        // SAFETY: the field has four words.
        u128::from_ne_bytes(unsafe { words(&raw const socket.src_ip6) }) != 0
    }

    /// Replaces our bits of the socket's mark.
    #[inline(always)]
    pub(crate) fn set_mark(&self, ours: u32) -> bool {
        let Some(socket) = self.socket() else {
            return false;
        };
        let mut mark = mark::with(socket.mark, ours);
        self.set_option(SO_MARK, &mut mark)
    }

    /// Whether the socket is tied to a device.
    #[inline(always)]
    pub(crate) fn is_bound_to_device(&self) -> bool {
        self.socket().is_some_and(|s| s.bound_dev_if != 0)
    }

    /// Unties the socket from a device: it would never find the marked table's routes.
    #[inline(always)]
    pub(crate) fn unbind_device(&self) -> bool {
        // An empty name. As an array it would be filled in a loop, which needs CAP_PERFMON.
        !self.is_bound_to_device() || self.set_option(SO_BINDTODEVICE, &mut 0u32)
    }

    #[inline(always)]
    fn set_option<T>(&self, option: i32, value: &mut T) -> bool {
        let len = size_of::<T>() as i32;
        // SAFETY: the value is on our stack and `len` bytes long.
        unsafe { bpf_setsockopt(self.0.as_ptr(), SOL_SOCKET, option, (&raw mut *value).cast(), len) == 0 }
    }
}

/// A socket that is being made.
pub(crate) struct NewSocket<'a>(pub(crate) &'a SockContext);

impl NewSocket<'_> {
    /// Whether it is of our network namespace, and no inner scope has marked it. Those of TCP are left to connect(): they
    /// do nothing before, and a server's answers to other machines go where the host's routes lead.
    #[inline(always)]
    pub(crate) fn is_ours(&self) -> bool {
        // SAFETY: the kernel's context lives as long as the program runs.
        if matches!(unsafe { (*self.0.sock).protocol }, IPPROTO_TCP | IPPROTO_MPTCP) {
            return false;
        }
        // SAFETY: the helper takes the context as it came.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) == NETNS_COOKIE.load() && mark::is_free((*self.0.sock).mark) }
    }

    /// Replaces our bits of its mark.
    #[inline(always)]
    pub(crate) fn set_mark(&self, ours: u32) {
        // SAFETY: the kernel's context lives as long as the program runs; this field may be written.
        unsafe { (*self.0.sock).mark = mark::with((*self.0.sock).mark, ours) }
    }
}

/// Ends the call with an error; what the program returns. On a kernel without the helper, which the verifier then does not
/// get to see, the error is EPERM.
#[inline(always)]
pub(crate) fn refuse(errno: u32) -> i32 {
    if RETVAL.load() != 0 {
        // SAFETY: the helper takes a number.
        unsafe { bpf_set_retval(-(errno as i32)) };
    }
    0
}

/// Who makes this call, which has to be in a hook that runs inside it.
#[inline(always)]
pub(crate) fn caller() -> Option<Owner> {
    let pid = pid()?;
    // SAFETY: the helper takes nothing.
    let uid = unsafe { bpf_get_current_uid_gid() } as u32;
    Some(Owner { pid, uid })
}

/// The number of the process that makes this call, as the daemon knows it. The verifier knows the loader's choice and does
/// not look at the other branch, whose helper an older kernel lacks.
#[inline(always)]
fn pid() -> Option<u32> {
    if PIDS.load() != Pids::Namespace as u32 {
        // SAFETY: the helper takes nothing.
        return Some((unsafe { bpf_get_current_pid_tgid() } >> 32) as u32);
    }
    let mut found = bpf_pidns_info { pid: 0, tgid: 0 };
    let len = size_of::<bpf_pidns_info>() as u32;
    // SAFETY: room for `len` bytes.
    let result = unsafe { bpf_get_ns_current_pid_tgid(PID_DEVICE.load(), PID_INODE.load(), &raw mut found, len) };
    (result == 0).then_some(found.tgid)
}

/// A TCP socket that something happens to.
pub(crate) struct Opening<'a>(pub(crate) &'a SockOpsContext);

impl Opening<'_> {
    /// Whether it is about to send its SYN: all its addresses are known.
    #[inline(always)]
    pub(crate) fn is_connecting(&self) -> bool {
        self.0.op() == BPF_SOCK_OPS_TCP_CONNECT_CB
    }

    /// As [`Call::cookie`].
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context as it came.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// The addresses of its packets. Those of an IPv6 socket may be IPv4-mapped, as a flow's are.
    #[inline(always)]
    pub(crate) fn flow(&self) -> Flow {
        let (src, dst) = if self.0.family() == AF_INET {
            (v4_mapped(self.0.local_ip4().to_ne_bytes()), v4_mapped(self.0.remote_ip4().to_ne_bytes()))
        } else {
            // SAFETY: the kernel's context lives as long as the program runs.
            unsafe { (words(&raw const (*self.0.ops).local_ip6), words(&raw const (*self.0.ops).remote_ip6)) }
        };
        // One port is in host order, the other one in network order and in the upper half.
        let sport = (self.0.local_port() as u16).to_be_bytes();
        let [_, _, high, low] = self.0.remote_port().to_ne_bytes();
        Flow { src, dst, sport, dport: [high, low] }
    }
}

/// A packet that looks for its socket.
pub(crate) struct Lookup<'a>(pub(crate) &'a SkLookupContext);

impl Lookup<'_> {
    /// Whether it is TCP, else UDP.
    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        // SAFETY: the kernel's context lives as long as the program runs; so below.
        unsafe { (*self.0.lookup).protocol == IPPROTO_TCP }
    }

    /// Its destination port.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: as above. In host order.
        unsafe { (*self.0.lookup).local_port as u16 }
    }

    /// Whether it is IPv4, else IPv6.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0.lookup).family == AF_INET }
    }

    /// Its IPv4 destination.
    #[inline(always)]
    pub(crate) fn ip4(&self) -> [u8; 4] {
        // SAFETY: as above.
        unsafe { (*self.0.lookup).local_ip4 }.to_ne_bytes()
    }

    /// Its IPv6 destination.
    #[inline(always)]
    pub(crate) fn ip6(&self) -> [u8; 16] {
        // SAFETY: as above.
        unsafe { words(&raw const (*self.0.lookup).local_ip6) }
    }

    /// The slot that its source is the own address of.
    #[inline(always)]
    pub(crate) fn source_slot(&self) -> Option<Slot> {
        // SAFETY: as above.
        unsafe {
            if self.is_v4() {
                Slot::of4((*self.0.lookup).remote_ip4.to_ne_bytes())
            } else {
                Slot::of6(words(&raw const (*self.0.lookup).remote_ip6))
            }
        }
    }

    /// Its addresses.
    #[inline(always)]
    pub(crate) fn flow(&self) -> Flow {
        // SAFETY: as above.
        let (src, dst) = unsafe {
            if self.is_v4() {
                (v4_mapped((*self.0.lookup).remote_ip4.to_ne_bytes()), v4_mapped(self.ip4()))
            } else {
                (words(&raw const (*self.0.lookup).remote_ip6), self.ip6())
            }
        };
        let [s, t, d, e] = self.ports();
        Flow { src, dst, sport: [s, t], dport: [d, e] }
    }

    /// Whether another program has found it a socket already.
    #[inline(always)]
    pub(crate) fn is_assigned(&self) -> bool {
        // SAFETY: as above.
        unsafe { !(*self.0.lookup).__bindgen_anon_1.__bindgen_anon_1.sk.is_null() }
    }

    /// Source and destination port, in network order, as the TCP header begins.
    #[inline(always)]
    pub(crate) fn ports(&self) -> [u8; 4] {
        // SAFETY: as above. Kernels before 5.18 know the source port as a word only; all fill it up with zeros.
        let source = unsafe { (&raw const (*self.0.lookup).remote_port).cast::<u32>().read_volatile() }.to_ne_bytes();
        let destination = self.port().to_be_bytes();
        [source[0], source[1], destination[0], destination[1]]
    }

    /// Index of the device it arrived on.
    #[inline(always)]
    pub(crate) fn ingress_device(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0.lookup).ingress_ifindex }
    }
}

/// A packet inside a filter of a TCP socket.
pub(crate) struct Packet<'a>(pub(crate) &'a SkBuffContext);

impl Packet<'_> {
    /// Bytes from the TCP header on.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.0.len()
    }

    /// The packet's mark.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: the kernel's context lives as long as the program runs.
        unsafe { (*self.0.skb.skb).mark }
    }

    /// Bytes from the TCP header on.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut to = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: room for N bytes; they are initialised when the helper returns 0.
        unsafe {
            (bpf_skb_load_bytes(self.0.as_ptr(), at, to.as_mut_ptr().cast(), N as u32) == 0).then(|| to.assume_init())
        }
    }

    /// Bytes from the IP header on. Reaches that header only: the helper does not follow paged data.
    #[inline(always)]
    pub(crate) fn load_ip<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut to = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: as in `load`.
        unsafe {
            let r = bpf_skb_load_bytes_relative(self.0.as_ptr(), at, to.as_mut_ptr().cast(), N as u32, HDR_START_NET);
            (r == 0).then(|| to.assume_init())
        }
    }
}

/// Fills a ring buffer record; `ip` and `tcp` are the lengths of the IP header and of all that follows, at most
/// [`IP_HEADER_MAX`] and `N` less that.
#[inline(always)]
pub(crate) fn copied<const N: usize>(
    packet: &Packet<'_>,
    entry: &mut RingBufEntry<SynRecord<N>>,
    flow: &Flow,
    ip: u32,
    tcp: u32,
) -> bool {
    let e = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; the verifier checks the bounds that the caller promises.
    unsafe {
        (*e).flow = *flow;
        (*e).ip_header = ip as u16;
        (*e).len = (ip + tcp) as u16;
        let to = (&raw mut (*e).packet).cast::<u8>();
        if bpf_skb_load_bytes_relative(packet.0.as_ptr(), 0, to.cast(), ip, HDR_START_NET) != 0
            || bpf_skb_load_bytes(packet.0.as_ptr(), 0, to.add(IP_HEADER_MAX).cast(), tcp) != 0
        {
            return false;
        }
        if ip == 40 && *to >> 4 == 6 {
            // Extension headers are left out: TCP comes next.
            *to.add(6) = IPPROTO_TCP as u8;
        }
    }
    true
}

/// Whether the flow's SYNs may pass, if it is known; counts the repetition.
#[inline(always)]
pub(crate) fn seen(held: &HashMap<Flow, Verdict>, flow: &Flow) -> Option<bool> {
    let verdict = held.get_ptr_mut(flow)?;
    // SAFETY: the kernel gave a valid pointer; a lost increment between two CPUs only miscounts.
    unsafe {
        (*verdict).syns += 1;
        Some((*verdict).pass != 0)
    }
}

/// Whether the daemon has let the flow through and not taken the connection yet.
#[inline(always)]
pub(crate) fn released(held: &HashMap<Flow, Verdict>, flow: &Flow) -> bool {
    found(held.get_ptr(flow)).is_some_and(|verdict| verdict.pass != 0)
}

/// The value that a map look-up found.
#[inline(always)]
pub(crate) fn found<T: Copy>(value: Option<*const T>) -> Option<T> {
    // SAFETY: map look-ups give valid pointers.
    value.map(|v| unsafe { *v })
}

/// An IPv4 address as an IPv4-mapped one, with its port.
#[inline(always)]
pub(crate) fn mapped((ip, port): ([u8; 4], u16)) -> ([u8; 16], u16) {
    (v4_mapped(ip), port)
}

/// Any number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_prandom_u32() }
}
