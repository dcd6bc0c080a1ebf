//! The filter on the daemon's listeners: a SYN waits until the daemon knows how the cluster answers.
//!
//! The first SYN of a flow is handed to the daemon and dropped; repetitions are counted and dropped; once the daemon has
//! decided, the SYN that it sends again (or the application's next one) passes.

use core::hint::black_box;

use aya_ebpf::{bindings::BPF_NOEXIST, macros::socket_filter, programs::SkBuffContext};
use tpx_ebpf_abi::{
    Counter, Flow, IP_HEADER_MAX, Rule, SYN_BARE, SYN_MAX, SynRecord, Verdict, is_connection_request, mark, v4_in,
    v4_mapped,
};

use crate::{
    connect::{rule4, rule6},
    maps::{HELD, SYNS, count, reinject_mark, take_look_up},
    sys::{Packet, copied, released, seen},
};

/// TCP header without options.
const TCP_MIN: u32 = 20;
/// Covers every length of an IP header, less one.
const IP_MASK: u32 = 63;

#[socket_filter]
pub(crate) fn hold(ctx: SkBuffContext) -> i64 {
    let packet = Packet(&ctx);
    // What cannot be read is no SYN that the kernel's TCP would take: let it deal with that.
    if passes(&packet).unwrap_or(true) { i64::from(ctx.len()) } else { 0 }
}

/// The parts of a SYN that are looked at.
struct Syn {
    flow: Flow,
    ip_header: u32,
    tcp_header: u32,
}

#[inline(always)]
fn passes(packet: &Packet<'_>) -> Option<bool> {
    // Inside a TCP filter the packet begins at the TCP header.
    let tcp: [u8; TCP_MIN as usize] = packet.load(0)?;
    let looked_up = take_look_up([tcp[0], tcp[1], tcp[2], tcp[3]]);
    if !is_connection_request(tcp[13]) {
        return Some(!looked_up || !is_crossing(packet, &tcp));
    }
    if mark::is(packet.mark(), reinject_mark()) {
        count(Counter::SynsPassed);
        return Some(true);
    }
    let syn = read(packet, &tcp)?;
    if let Some(pass) = seen(&HELD, &syn.flow) {
        count(if pass { Counter::SynsPassed } else { Counter::SynsRepeated });
        return Some(pass);
    }
    let steered = match v4_in(&syn.flow.dst) {
        Some(v4) => rule4(v4),
        None => rule6(syn.flow.dst),
    };
    if !steered.is_some_and(Rule::accepts) {
        count(Counter::SynsStray);
        return Some(false);
    }
    if HELD.insert(syn.flow, Verdict::HELD, BPF_NOEXIST.into()).is_err() {
        count(Counter::SynsLost);
    } else if announce(packet, &syn) {
        count(Counter::SynsHeld);
    } else {
        // Nobody would ever decide it: the next repetition tries again.
        let _ = HELD.remove(syn.flow);
        count(Counter::SynsLost);
    }
    Some(false)
}

/// Whether the kernel is making the socket of this very packet right now.
///
/// The acknowledgement of a handshake and the first data may be taken in on two CPUs at once. Between taking the request
/// out of its table and putting the connection in, the kernel finds neither (mended in Linux 6.19, "inet: Avoid ehash
/// lookup race in inet_ehash_insert()"): the data comes to the listener, which would answer with a reset. Dropped, it is
/// sent again a moment later. The daemon has not accepted yet, so its verdict is still there.
#[inline(always)]
fn is_crossing(packet: &Packet<'_>, tcp: &[u8; TCP_MIN as usize]) -> bool {
    let crossing = read(packet, tcp).is_some_and(|it| released(&HELD, &it.flow));
    if crossing {
        count(Counter::Crossed);
    }
    crossing
}

#[inline(always)]
fn read(packet: &Packet<'_>, tcp: &[u8; TCP_MIN as usize]) -> Option<Syn> {
    let mut flow = Flow { src: [0; 16], dst: [0; 16], sport: [tcp[0], tcp[1]], dport: [tcp[2], tcp[3]] };
    let [first] = packet.load_ip::<1>(0)?;
    let ip_header = if first >> 4 == 4 {
        let a: [u8; 8] = packet.load_ip(12)?;
        flow.src = v4_mapped([a[0], a[1], a[2], a[3]]);
        flow.dst = v4_mapped([a[4], a[5], a[6], a[7]]);
        u32::from(first & 15) * 4
    } else {
        flow.src = packet.load_ip(8)?;
        flow.dst = packet.load_ip(24)?;
        40
    };
    Some(Syn { flow, ip_header, tcp_header: u32::from(tcp[12] >> 4) * 4 })
}

/// Hands a SYN to the daemon; false if it could not be.
#[inline(always)]
fn announce(packet: &Packet<'_>, syn: &Syn) -> bool {
    let len = packet.len();
    if len <= room::<SYN_BARE>() {
        return record::<SYN_BARE>(packet, syn, len);
    }
    if len <= room::<SYN_MAX>() {
        return record::<SYN_MAX>(packet, syn, len);
    }
    count(Counter::SynsCut);
    record::<SYN_BARE>(packet, syn, syn.tcp_header)
}

/// Bytes for TCP header and payload in a record, a power of two.
const fn room<const N: usize>() -> u32 {
    (N - IP_HEADER_MAX) as u32
}

#[inline(always)]
fn record<const N: usize>(packet: &Packet<'_>, syn: &Syn, len: u32) -> bool {
    const { assert!(room::<N>().is_power_of_two()) };
    if !(20..=IP_HEADER_MAX as u32).contains(&syn.ip_header) || !(TCP_MIN..=room::<N>()).contains(&len) {
        return false;
    }
    // The verifier wants to see the bounds again where the numbers are used: before Linux 6.8 it forgets those of a
    // number that was put on the stack before it was compared. Zero is none of them. The black boxes keep LLVM from
    // removing the masks.
    let ip = (black_box(syn.ip_header - 1) & IP_MASK) + 1;
    let tcp = (black_box(len - 1) & (room::<N>() - 1)) + 1;
    let Some(mut entry) = SYNS.reserve::<SynRecord<N>>(0) else {
        return false;
    };
    if copied(packet, &mut entry, &syn.flow, ip, tcp) {
        entry.submit(0);
        true
    } else {
        entry.discard(0);
        false
    }
}
