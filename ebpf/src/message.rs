//! sendmsg(), recvmsg() and getpeername(): addresses are exchanged on the way out and put back on the way in.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tpx_ebpf_abi::{Counter, Road, decide, v4_in};

use crate::{
    connect::{join, rule4, rule6},
    datagrams,
    maps::{DATAGRAM_PORT, NAMES_PORT, REAL4, REAL6, count, steer_mark},
    names, policy,
    sys::{Call, found, mapped, refuse},
};

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip4();
    if let Some(errno) = policy::denied4(&call, ip) {
        return refuse(errno);
    }
    call.put4(towards4(&call, ip));
    1
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip6();
    if let Some(errno) = policy::denied6(&call, ip) {
        return refuse(errno);
    }
    let other = match v4_in(&ip) {
        Some(v4) => towards4(&call, v4).map(mapped),
        None => towards6(&call, ip),
    };
    call.put6(other);
    1
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    call.put4(from4(&call, call.ip4()));
    1
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    call.put6(from6(&call, call.ip6()));
    1
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip4();
    call.put4(from4(&call, ip).or_else(|| virtual4(&call, ip)));
    1
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip6();
    let peer = from6(&call, ip).or_else(|| match v4_in(&ip) {
        Some(v4) => virtual4(&call, v4).map(mapped),
        None => virtual6(&call, ip),
    });
    call.put6(peer);
    1
}

/// Where a datagram goes instead.
#[inline(always)]
fn towards4(call: &Call<'_>, ip: [u8; 4]) -> Option<([u8; 4], u16)> {
    let own = names::own4(call, ip);
    match decide(call.kind(), call.port(), own.is_some(), rule4(ip)) {
        Road::Name if names::may_exchange(call) => Some((own?, NAMES_PORT.load())),
        Road::Encode => Some((datagrams::encode4(call, ip)?, DATAGRAM_PORT.load())),
        _ => {
            join(call);
            None
        }
    }
}

/// As [`towards4`].
#[inline(always)]
fn towards6(call: &Call<'_>, ip: [u8; 16]) -> Option<([u8; 16], u16)> {
    let own = names::own6(call, ip);
    match decide(call.kind(), call.port(), own.is_some(), rule6(ip)) {
        Road::Name if names::may_exchange(call) => Some((own?, NAMES_PORT.load())),
        Road::Encode => Some((datagrams::encode6(call, ip)?, DATAGRAM_PORT.load())),
        _ => {
            join(call);
            None
        }
    }
}

/// Whom the address of a call stands for.
#[inline(always)]
fn from4(call: &Call<'_>, ip: [u8; 4]) -> Option<([u8; 4], u16)> {
    names::server4(call, ip).or_else(|| datagrams::decode4(call, ip))
}

/// As [`from4`].
#[inline(always)]
fn from6(call: &Call<'_>, ip: [u8; 16]) -> Option<([u8; 16], u16)> {
    match v4_in(&ip) {
        Some(v4) => from4(call, v4).map(mapped),
        None => names::server6(call, ip).or_else(|| datagrams::decode6(call, &ip)),
    }
}

/// The virtual address that a connected stream asked for.
#[inline(always)]
fn virtual4(call: &Call<'_>, ip: [u8; 4]) -> Option<([u8; 4], u16)> {
    if !is_steered(call) {
        return None;
    }
    named(call, found(REAL4.get_ptr(ip))?)
}

/// As [`virtual4`].
#[inline(always)]
fn virtual6(call: &Call<'_>, ip: [u8; 16]) -> Option<([u8; 16], u16)> {
    if !is_steered(call) {
        return None;
    }
    named(call, found(REAL6.get_ptr(ip))?)
}

#[inline(always)]
fn is_steered(call: &Call<'_>) -> bool {
    call.is_stream() && call.has_mark(steer_mark())
}

#[inline(always)]
fn named<T>(call: &Call<'_>, ip: T) -> Option<(T, u16)> {
    count(Counter::PeersNamed);
    Some((ip, call.port()))
}
