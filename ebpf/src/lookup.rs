//! Which socket gets a packet: TCP to a steered address goes to the daemon's listener, whatever its port; UDP to an address
//! that stands for a destination goes to the daemon's socket.

use aya_ebpf::{
    bindings::{BPF_SK_LOOKUP_F_REPLACE, sk_action::SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use tpx_ebpf_abi::{
    Counter, Rule,
    maps::{DATAGRAMS4, DATAGRAMS6, LISTENER4, LISTENER6},
};

use crate::{
    connect::{rule4, rule6},
    maps::{BOUND, DATAGRAM_PORT, DEVICE, SOCKETS, count, is_tree, note_look_up, own_slot},
    sys::Lookup,
};

/// The loopback device has this index in every network namespace (LOOPBACK_IFINDEX of the kernel).
const LOOPBACK: u32 = 1;

#[sk_lookup]
pub(crate) fn lookup(ctx: SkLookupContext) -> u32 {
    let packet = Lookup(&ctx);
    // Steered packets come from this host: they arrive on the loopback device, or on the device that has the address. One
    // from another machine, to an address of this host that a steered subnet happens to cover, is not for us.
    let device = packet.ingress_device();
    if device != LOOPBACK && device != DEVICE.load() {
        return SK_PASS;
    }
    if packet.is_tcp() {
        let Some(replace) = claim(&packet) else {
            return SK_PASS;
        };
        let (rule, slot) =
            if packet.is_v4() { (rule4(packet.ip4()), LISTENER4) } else { (rule6(packet.ip6()), LISTENER6) };
        if rule.is_some_and(Rule::accepts) {
            assign(&ctx, slot, replace, Counter::Assigned);
            note_look_up(packet.ports());
        }
        return SK_PASS;
    }
    if packet.port() == DATAGRAM_PORT.load() {
        let own = own_slot();
        let (index, slot) = if packet.is_v4() {
            (own.decode4(packet.ip4()), DATAGRAMS4)
        } else {
            (own.decode6(&packet.ip6()), DATAGRAMS6)
        };
        if index.is_some() {
            assign(&ctx, slot, 0, Counter::DatagramsAssigned);
        }
    }
    SK_PASS
}

/// Whether a connection request may be this slot's, with the flags to take it. Several slots may steer one address, and
/// the mark that led the packet here cannot be seen; its source can. Connections from a source that the application has
/// chosen are remembered for a process tree; what nobody claims is the workstation's.
#[inline(always)]
fn claim(packet: &Lookup<'_>) -> Option<u64> {
    match packet.source_slot() {
        Some(slot) if slot.index() == own_slot().index() => Some(0),
        Some(_) => None,
        None if is_tree() => {
            if BOUND.get_ptr(packet.flow()).is_some() {
                Some(BPF_SK_LOOKUP_F_REPLACE.into())
            } else {
                None
            }
        }
        None if packet.is_assigned() => None,
        None => Some(0),
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, slot: u32, flags: u64, done: Counter) {
    let assigned = SOCKETS.redirect_sk_lookup(ctx, slot, flags).is_ok();
    count(if assigned { done } else { Counter::AssignFailed });
}
