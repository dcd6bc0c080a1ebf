//! What must not be reached: refused in the very call, before anything is sent.

use core::hint::black_box;

use aya_ebpf::maps::lpm_trie::Key;
use tpx_ebpf_abi::{Counter, Policy, Rule, decide, v4_in};

use crate::{
    connect::{rule4, rule6},
    maps::{DENY_PORTS, DENY4, DENY6, POLICY, VIRTUAL4, VIRTUAL6, count},
    names,
    sys::{Call, found},
};

/// The errno of a call to `ip`, if it would enter the tunnel and what is behind it is denied.
#[inline(always)]
pub(crate) fn denied4(call: &Call<'_>, ip: [u8; 4]) -> Option<u32> {
    let policy = policy()?;
    let own = names::own4(call, ip).is_some();
    if !enters(call, own, rule4(ip)) {
        return None;
    }
    let real = found(VIRTUAL4.get_ptr(ip)).unwrap_or(ip);
    denied(call, policy, DENY4.get(Key::new(32, real)).is_some())
}

/// As [`denied4`], for both families.
#[inline(always)]
pub(crate) fn denied6(call: &Call<'_>, ip: [u8; 16]) -> Option<u32> {
    if let Some(v4) = v4_in(&ip) {
        return denied4(call, v4);
    }
    let policy = policy()?;
    let own = names::own6(call, ip).is_some();
    if !enters(call, own, rule6(ip)) {
        return None;
    }
    let real = found(VIRTUAL6.get_ptr(ip)).unwrap_or(ip);
    denied(call, policy, DENY6.get(Key::new(128, real)).is_some())
}

/// `None` where nothing is denied: the usual case costs this look-up only.
#[inline(always)]
fn policy() -> Option<Policy> {
    found(POLICY.get_ptr(0)).filter(|policy| policy.errno != 0)
}

#[inline(always)]
fn enters(call: &Call<'_>, own: bool, rule: Option<Rule>) -> bool {
    decide(call.kind(), call.port(), own, rule).enters()
}

#[inline(always)]
fn denied(call: &Call<'_>, policy: Policy, address: bool) -> Option<u32> {
    let port = policy.ports != 0 && DENY_PORTS.get_ptr(call.port()).is_some();
    // The black boxes keep LLVM from joining what the look-ups found, two pointers, with a bitwise "or".
    if !(black_box(port) || black_box(address)) || !call.is_ours() {
        return None;
    }
    count(Counter::Denied);
    Some(policy.errno)
}
