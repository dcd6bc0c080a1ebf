//! connect(): mark what leads into the cluster, exchange name servers, leave everything else as it is.

use aya_ebpf::{macros::cgroup_sock_addr, maps::lpm_trie::Key, programs::SockAddrContext};
use tpx_ebpf_abi::{Counter, Road, Rule, decide, slot, v4_in, v4_mapped};

use crate::{
    maps::{RULES4, RULES6, count, steer_mark},
    names,
    sys::Call,
};

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    if let Some(own) = towards4(&call, call.ip4()) {
        call.set_ip4(own);
        call.set_port(slot::DNS_PORT);
    }
    1
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    let call = Call(&ctx);
    let ip = call.ip6();
    let other = match v4_in(&ip) {
        Some(v4) => towards4(&call, v4).map(v4_mapped),
        None => towards6(&call, ip),
    };
    if let Some(own) = other {
        call.set_ip6(own);
        call.set_port(slot::DNS_PORT);
    }
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

/// Acts on the socket; returns the address to connect to instead.
#[inline(always)]
fn towards4(call: &Call<'_>, ip: [u8; 4]) -> Option<[u8; 4]> {
    let own = names::own4(call, ip);
    let stream = call.is_stream();
    let rule = if stream { rule4(ip) } else { None };
    act(call, decide(stream, call.port(), own.is_some(), rule)).then_some(own).flatten()
}

/// As [`towards4`].
#[inline(always)]
fn towards6(call: &Call<'_>, ip: [u8; 16]) -> Option<[u8; 16]> {
    let own = names::own6(call, ip);
    let stream = call.is_stream();
    let rule = if stream { rule6(ip) } else { None };
    act(call, decide(stream, call.port(), own.is_some(), rule)).then_some(own).flatten()
}

/// Carries a decision out. True: the address has to be exchanged.
#[inline(always)]
fn act(call: &Call<'_>, road: Road) -> bool {
    let name = match road {
        Road::Steer if call.is_ours() => {
            let done = call.set_mark(steer_mark()) && call.unbind_device();
            count(if done { Counter::Steered } else { Counter::SteerFailed });
            #[cfg(feature = "log")]
            aya_log_ebpf::debug!(call.0, "steered to port {}", call.port());
            return false;
        }
        Road::Name => names::may_exchange(call),
        Road::Steer | Road::Leave => false,
    };
    // A socket that was steered once and now connects elsewhere.
    if call.has_mark(steer_mark()) {
        call.set_mark(0);
        count(Counter::Unmarked);
    }
    name
}
