//! UDP: a datagram for the cluster goes to an address that carries the index of its destination, and what comes back from
//! there comes from that destination.
//!
//! A mark set while sending would come too late: the first datagram's route is looked up with the mark from before.

use aya_ebpf::bindings::BPF_NOEXIST;
use tpx_ebpf_abi::{Counter, INDEX_END, Target};

use crate::{
    maps::{DATAGRAM_PORT, INDICES, TARGETS, count, own_slot},
    sys::{Call, found, random},
};

/// Random indices that are tried for a new destination; each is taken with a probability of a quarter at most.
const TRIES: u32 = 12;

/// The address to send to instead of `ip`. `None`: leave it to the floor.
#[inline(always)]
pub(crate) fn encode4(call: &Call<'_>, ip: [u8; 4]) -> Option<[u8; 4]> {
    Some(own_slot().encode4(index(call, &Target::v4(ip, call.port()))?))
}

/// As [`encode4`].
#[inline(always)]
pub(crate) fn encode6(call: &Call<'_>, ip: [u8; 16]) -> Option<[u8; 16]> {
    Some(own_slot().encode6(index(call, &Target::v6(ip, call.port()))?))
}

/// What the address of a call stands for, if it is one of ours.
#[inline(always)]
pub(crate) fn decode4(call: &Call<'_>, ip: [u8; 4]) -> Option<([u8; 4], u16)> {
    let target = target(call, own_slot().decode4(ip)?)?;
    Some((target.ip4()?, target.port()))
}

/// As [`decode4`].
#[inline(always)]
pub(crate) fn decode6(call: &Call<'_>, ip: &[u8; 16]) -> Option<([u8; 16], u16)> {
    let target = target(call, own_slot().decode6(ip)?)?;
    Some((target.ip6(), target.port()))
}

#[inline(always)]
fn target(call: &Call<'_>, index: u32) -> Option<Target> {
    if call.port() != DATAGRAM_PORT.load() || !call.is_datagram() || !call.is_ours() {
        return None;
    }
    let target = found(TARGETS.get_ptr(index))?;
    count(Counter::DatagramsDecoded);
    Some(target)
}

#[inline(always)]
fn index(call: &Call<'_>, target: &Target) -> Option<u32> {
    // The routes of our addresses lead to another device.
    if call.is_bound_to_device() {
        count(Counter::DatagramsBound);
        return None;
    }
    if !call.is_ours() {
        return None;
    }
    let index = index_of(target);
    count(if index.is_some() { Counter::DatagramsEncoded } else { Counter::DatagramsUnindexed });
    index
}

/// The index of a destination, a new one if need be. Never given back: a socket may be connected to it for days.
///
/// It is random, so that a socket from before a restart of the datapath hardly ever finds its index used by another.
#[inline(always)]
fn index_of(target: &Target) -> Option<u32> {
    if let Some(index) = found(INDICES.get_ptr(target)) {
        return Some(index);
    }
    for _ in 0..TRIES {
        let index = random() & (INDEX_END - 1);
        // The way back first: nobody may find the index without its destination.
        if index == 0 || TARGETS.insert(index, target, BPF_NOEXIST.into()).is_err() {
            continue;
        }
        if INDICES.insert(target, index, BPF_NOEXIST.into()).is_ok() {
            return Some(index);
        }
        // Another CPU was faster, or the map is full.
        let _ = TARGETS.remove(index);
        return found(INDICES.get_ptr(target));
    }
    None
}
