//! Containers: what they send into the cluster is taken off their bridge and handed to the TUN device, and what comes from
//! there for them is handed back. The floor carries it, in the user daemon.
//!
//! Packets stay as they are, and none passes the host's firewall, address translation or routes: those are made for
//! traffic between the containers and networks of the host's, and would drop or rewrite this.

use aya_ebpf::{
    bindings::{BPF_ANY, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use tpx_ebpf_abi::{Counter, DNS_PORT, Station, mark, may_send4, may_send6, ports4, ports6, takes};

use crate::{
    connect::{rule4, rule6},
    maps::{DEVICE, OF_SENDERS, OUTLIVES, SENDERS, STATIONS, count, member_mark},
    sys::{ETHERNET, Frame, Route, found},
};

#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    let frame = Frame(&ctx);
    let taken = if !frame.is_for_this_host() || !mark::is_free(frame.mark()) {
        None
    } else if frame.is_v4() {
        taken4(&frame)
    } else if frame.is_v6() {
        taken6(&frame)
    } else {
        None
    };
    let Some(why) = taken else { return TC_ACT_UNSPEC };
    count(why);
    if OUTLIVES.load() == 0 { frame.redirect(DEVICE.load()) } else { frame.redirect_if_there(DEVICE.load()) }
}

#[classifier]
pub(crate) fn to_container(ctx: TcContext) -> i32 {
    let frame = Frame(&ctx);
    let destination = if frame.is_v4() { frame.load(16).map(mapped_words) } else { frame.load(24).map(words) };
    let Some(destination) = destination else { return TC_ACT_UNSPEC };
    let Some(station) = found(STATIONS.get_ptr(destination)) else { return TC_ACT_UNSPEC };
    count(Counter::ContainersAnswered);
    frame.send(&station)
}

/// Why a packet is taken off its bridge, if it is.
#[inline(always)]
fn taken4(frame: &Frame<'_>) -> Option<Counter> {
    let header: [u8; 20] = frame.load(ETHERNET)?;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let (source, destination) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    let sender = mapped_words(source);
    own(frame, sender)?;
    let why = if takes(rule4(destination)) {
        Counter::ContainersSteered
    } else {
        let ports: [u8; 4] = frame.load(ETHERNET + ports4(&header)?)?;
        asks(ports, || frame.route4(destination))?
    };
    remember(frame, sender, || may_send4(source) && lives_here(frame, frame.route4(source)))?;
    Some(why)
}

/// As [`taken4`].
#[inline(always)]
fn taken6(frame: &Frame<'_>) -> Option<Counter> {
    let header: [u8; 40] = frame.load(ETHERNET)?;
    let source: [u8; 16] = frame.load(ETHERNET + 8)?;
    let destination: [u8; 16] = frame.load(ETHERNET + 24)?;
    let sender = words(source);
    own(frame, sender)?;
    let why = if takes(rule6(destination)) {
        Counter::ContainersSteered
    } else {
        let ports: [u8; 4] = frame.load(ETHERNET + ports6(&header)?)?;
        asks(ports, || frame.route6(destination))?
    };
    remember(frame, sender, || may_send6(&source) && lives_here(frame, frame.route6(source)))?;
    Some(why)
}

/// Marks the packets of a scope that is made of containers, as sockets of a process tree are: what is not taken is neither
/// another scope's nor, where this host forwards it, for the workstation's floor. `None` for what others send.
#[inline(always)]
fn own(frame: &Frame<'_>, sender: [u32; 4]) -> Option<()> {
    if OF_SENDERS.load() != 0 {
        found(SENDERS.get_ptr(sender))?;
        frame.set_mark(member_mark());
    }
    Some(())
}

/// A question to a name server somewhere else. One on this host goes on answering: what it asks itself is steered as that
/// of any process.
#[inline(always)]
fn asks(ports: [u8; 4], route: impl FnOnce() -> Route) -> Option<Counter> {
    let [_, _, high, low] = ports;
    let asks = u16::from_be_bytes([high, low]) == DNS_PORT && matches!(route(), Route::Device(_));
    asks.then_some(Counter::ContainersAsked)
}

/// Remembers where the sender is; `None` when it is not where it says.
#[inline(always)]
fn remember(frame: &Frame<'_>, source: [u32; 4], is_there: impl FnOnce() -> bool) -> Option<()> {
    let station = Station::of(frame.device(), frame.load(0)?);
    if found(STATIONS.get_ptr(source)).is_some_and(|known| known.is(&station)) {
        return Some(());
    }
    if !is_there() {
        count(Counter::ContainersForeign);
        return None;
    }
    STATIONS.insert(source, station, BPF_ANY.into()).ok()
}

/// An address that the host would not look for behind this bridge is not taken: its answers, and those of whoever really
/// has it, would go astray.
#[inline(always)]
fn lives_here(frame: &Frame<'_>, route: Route) -> bool {
    match route {
        Route::Device(device) => device == frame.device(),
        Route::Stays => false,
        Route::NoRouter => true,
    }
}

/// An address in words: as bytes the zeros of an IPv4-mapped one would be filled in by a loop, which needs CAP_PERFMON.
#[inline(always)]
fn words(ip: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// An IPv4 address as an IPv4-mapped one (RFC 4291, 2.5.5.2).
#[inline(always)]
fn mapped_words(ip: [u8; 4]) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(ip)]
}
