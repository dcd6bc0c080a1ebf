//! Contexts and helpers of the kernel, in terms that the programs use.

mod filter;
mod frame;
mod lookup;

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_pidns_info, bpf_sock},
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_ns_current_pid_tgid,
        bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval, bpf_setsockopt, bpf_skb_load_bytes,
    },
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use tpx_ebpf_abi::{Counter, Flow, Kind, Owner, Pids, mark, slot::Slot, v4_mapped};

pub(crate) use self::{
    filter::{Packet, copied, released, seen},
    frame::{ETHERNET, Frame, Route},
    lookup::Lookup,
};
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

/// Bytes of a packet, from where its context says that it begins.
///
/// # Safety
/// `context` is that of a packet.
#[inline(always)]
unsafe fn load<const N: usize>(context: *mut c_void, at: u32) -> Option<[u8; N]> {
    let mut to = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: room for N bytes; they are initialised when the helper returns 0.
    unsafe { (bpf_skb_load_bytes(context, at, to.as_mut_ptr().cast(), N as u32) == 0).then(|| to.assume_init()) }
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
