//! connect(): mark what leads into the cluster, exchange virtual addresses and name servers, leave everything else as it
//! is.

use aya_ebpf::{macros::cgroup_sock_addr, maps::lpm_trie::Key, programs::SockAddrContext};
use tpx_ebpf_abi::{Counter, Road, Rule, decide, v4_in};

use crate::{
    datagrams,
    maps::{
        CHOOSERS, DATAGRAM_PORT, NAMES_PORT, RULES4, RULES6, VIRTUAL4, VIRTUAL6, count, is_tree, member_mark,
        steer_mark,
    },
    names, owner, policy,
    sys::{Call, found, mapped, refuse},
};

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip4();
    if let Some(errno) = policy::denied4(&call, ip) {
        return refuse(errno);
    }
    call.put4(towards4(&call, ip));
    1
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
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

/// The most specific rule for an IPv4 address.
#[inline(always)]
pub(crate) fn rule4(ip: [u8; 4]) -> Option<Rule> {
    RULES4.get(Key::new(32, ip)).copied()
}

/// The most specific rule for an IPv6 address.
#[inline(always)]
pub(crate) fn rule6(ip: [u8; 16]) -> Option<Rule> {
    RULES6.get(Key::new(128, ip)).copied()
}

/// Acts on the socket; returns the address and port to connect to instead.
#[inline(always)]
fn towards4(call: &Call<'_>, ip: [u8; 4]) -> Option<([u8; 4], u16)> {
    let own = names::own4(call, ip);
    match decide(call.kind(), call.port(), own.is_some(), rule4(ip)) {
        Road::Steer if steer(call) => None,
        Road::Translate if steer(call) => {
            // One that the listener would not be given keeps its virtual address: then the daemon translates it.
            let real = found(VIRTUAL4.get_ptr(ip)).filter(|real| rule4(*real).is_some_and(Rule::accepts));
            count(if real.is_some() { Counter::Translated } else { Counter::Untranslated });
            Some((real?, call.port()))
        }
        Road::Encode => Some((datagrams::encode4(call, ip)?, DATAGRAM_PORT.load())),
        road => {
            let exchange = road == Road::Name && names::may_exchange(call);
            leave(call);
            if exchange { Some((own?, NAMES_PORT.load())) } else { None }
        }
    }
}

/// As [`towards4`].
#[inline(always)]
fn towards6(call: &Call<'_>, ip: [u8; 16]) -> Option<([u8; 16], u16)> {
    let own = names::own6(call, ip);
    match decide(call.kind(), call.port(), own.is_some(), rule6(ip)) {
        Road::Steer if steer(call) => None,
        Road::Translate if steer(call) => {
            let real = found(VIRTUAL6.get_ptr(ip)).filter(|real| rule6(*real).is_some_and(Rule::accepts));
            count(if real.is_some() { Counter::Translated } else { Counter::Untranslated });
            Some((real?, call.port()))
        }
        Road::Encode => Some((datagrams::encode6(call, ip)?, DATAGRAM_PORT.load())),
        road => {
            let exchange = road == Road::Name && names::may_exchange(call);
            leave(call);
            if exchange { Some((own?, NAMES_PORT.load())) } else { None }
        }
    }
}

/// Marks the socket. False: it is none of ours, or the kernel did not let us.
#[inline(always)]
fn steer(call: &Call<'_>) -> bool {
    if !call.is_ours() {
        return false;
    }
    if is_tree() {
        note_source(call);
    }
    let done = call.set_mark(steer_mark()) && call.unbind_device();
    if done {
        owner::note(call);
    }
    count(if done { Counter::Steered } else { Counter::SteerFailed });
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(call.0, "steered to port {}", call.port());
    done
}

/// Remembers that the application has chosen a source: all others are the slot's own address, by which [`lookup`] knows
/// whose a packet is.
///
/// [`lookup`]: crate::lookup
#[inline(always)]
fn note_source(call: &Call<'_>) {
    if call.has_source() {
        let _ = CHOOSERS.insert(call.cookie(), 1, 0);
    }
}

/// For a socket that was steered once and now connects elsewhere. One of another network namespace may have been steered by
/// the same slot there.
#[inline(always)]
fn leave(call: &Call<'_>) {
    if call.is_foreign() {
        return;
    }
    if call.has_mark(steer_mark()) {
        call.set_mark(if is_tree() { member_mark() } else { 0 });
        count(Counter::Unmarked);
    } else {
        join(call);
    }
}

/// For a socket of a process tree that is older than the scope: from here on it is as one that was made inside. The
/// programs of the scopes around, which run after this one, leave it alone.
#[inline(always)]
pub(crate) fn join(call: &Call<'_>) {
    if is_tree() && call.is_unclaimed() && call.stranger().is_none() {
        call.set_mark(member_mark());
    }
}
