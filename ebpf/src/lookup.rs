//! Which socket gets a packet: TCP to a steered address goes to the daemon's listener, whatever its port.

use aya_ebpf::{bindings::sk_action::SK_PASS, macros::sk_lookup, programs::SkLookupContext};
use tpx_ebpf_abi::{
    Counter, Rule,
    maps::{LISTENER4, LISTENER6},
};

use crate::{
    connect::{rule4, rule6},
    maps::{DEVICE, LISTENERS, count, note_look_up},
    sys::Lookup,
};

/// The loopback device has this index in every network namespace (LOOPBACK_IFINDEX of the kernel).
const LOOPBACK: u32 = 1;

#[sk_lookup]
pub(crate) fn lookup(ctx: SkLookupContext) -> u32 {
    let packet = Lookup(&ctx);
    // Steered packets come from this host: they arrive on the loopback device, or (IPv6) on the device of their route.
    // One from another machine, to an address of this host that a steered subnet happens to cover, is not for us.
    let device = packet.ingress_device();
    if !packet.is_tcp() || (device != LOOPBACK && device != DEVICE.load()) {
        return SK_PASS;
    }
    let (rule, slot) = if packet.is_v4() { (rule4(packet.ip4()), LISTENER4) } else { (rule6(packet.ip6()), LISTENER6) };
    if rule.is_some_and(Rule::steers) {
        let assigned = LISTENERS.redirect_sk_lookup(&ctx, slot, 0).is_ok();
        count(if assigned { Counter::Assigned } else { Counter::AssignFailed });
        note_look_up(packet.ports());
    }
    SK_PASS
}
