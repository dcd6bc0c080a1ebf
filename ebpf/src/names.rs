//! Name servers: questions to a configured one go to tpx's own address for it, answers come back under its name.
//!
//! The mapping is one to one and without state, so it holds for any mix of sockets and servers: connected or not,
//! several servers behind one socket, IPv4-mapped addresses, servers on loopback addresses, UDP and TCP.

use tpx_ebpf_abi::{Counter, DNS_PORT};

use crate::{
    maps::{NAMES_PORT, NAMES4, NAMES6, SERVERS4, SERVERS6, count},
    sys::{Call, found},
};

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

/// The name server that the address of a call stands for.
#[inline(always)]
pub(crate) fn server4(call: &Call<'_>, ip: [u8; 4]) -> Option<([u8; 4], u16)> {
    let server = if call.port() == NAMES_PORT.load() { found(SERVERS4.get_ptr(ip)) } else { None };
    answered(call, server?)
}

/// As [`server4`].
#[inline(always)]
pub(crate) fn server6(call: &Call<'_>, ip: [u8; 16]) -> Option<([u8; 16], u16)> {
    let server = if call.port() == NAMES_PORT.load() { found(SERVERS6.get_ptr(ip)) } else { None };
    answered(call, server?)
}

#[inline(always)]
fn answered<T>(call: &Call<'_>, server: T) -> Option<(T, u16)> {
    if !call.is_ours() {
        return None;
    }
    count(Counter::NamesAnswered);
    Some((server, DNS_PORT))
}
