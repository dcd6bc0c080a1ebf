//! Name servers: questions to a configured one go to tpx's own address for it, answers come back under its name.
//!
//! The mapping is one to one and without state, so it holds for any mix of sockets and servers: connected or not,
//! several servers behind one socket, IPv4-mapped addresses, servers on loopback addresses, UDP and TCP.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tpx_ebpf_abi::{Counter, DNS_PORT, slot, v4_in, v4_mapped};

use crate::{
    maps::{NAMES4, NAMES6, SERVERS4, SERVERS6, count},
    sys::{Call, found},
};

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    if let Some(own) = own4(&call, call.ip4())
        && may_exchange(&call)
    {
        call.set_ip4(own);
        call.set_port(slot::DNS_PORT);
    }
    1
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip6();
    let own = match v4_in(&ip) {
        Some(v4) => own4(&call, v4).map(v4_mapped),
        None => own6(&call, ip),
    };
    if let Some(own) = own
        && may_exchange(&call)
    {
        call.set_ip6(own);
        call.set_port(slot::DNS_PORT);
    }
    1
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    back4(&Call(&ctx));
    1
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    back6(&Call(&ctx));
    1
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    back4(&Call(&ctx));
    1
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    back6(&Call(&ctx));
    1
}

/// tpx's own address for a name server, if this call speaks to its DNS port.
#[inline(always)]
pub(crate) fn own4(call: &Call<'_>, ip: [u8; 4]) -> Option<[u8; 4]> {
    if call.port() == DNS_PORT { found(NAMES4.get_ptr(ip)) } else { None }
}

/// As [`own4`].
#[inline(always)]
pub(crate) fn own6(call: &Call<'_>, ip: [u8; 16]) -> Option<[u8; 16]> {
    if call.port() == DNS_PORT { found(NAMES6.get_ptr(ip)) } else { None }
}

/// Whether this socket's questions are answered by tpx. A socket tied to a device asks the servers behind that device
/// and could not reach tpx's addresses anyway.
#[inline(always)]
pub(crate) fn may_exchange(call: &Call<'_>) -> bool {
    let may = !call.is_bound_to_device() && call.is_ours();
    if may {
        count(Counter::NamesAsked);
    }
    may
}

#[inline(always)]
fn back4(call: &Call<'_>) {
    if let Some(server) = server4(call, call.ip4())
        && call.is_ours()
    {
        call.set_ip4(server);
        call.set_port(DNS_PORT);
        count(Counter::NamesAnswered);
    }
}

#[inline(always)]
fn back6(call: &Call<'_>) {
    let ip = call.ip6();
    let server = match v4_in(&ip) {
        Some(v4) => server4(call, v4).map(v4_mapped),
        None if call.port() == slot::DNS_PORT => found(SERVERS6.get_ptr(ip)),
        None => None,
    };
    if let Some(server) = server
        && call.is_ours()
    {
        call.set_ip6(server);
        call.set_port(DNS_PORT);
        count(Counter::NamesAnswered);
    }
}

#[inline(always)]
fn server4(call: &Call<'_>, ip: [u8; 4]) -> Option<[u8; 4]> {
    if call.port() == slot::DNS_PORT { found(SERVERS4.get_ptr(ip)) } else { None }
}
