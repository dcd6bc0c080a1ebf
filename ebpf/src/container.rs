//! Containers: what they send into the cluster is taken off their bridge and handed to the TUN device, and what comes from
//! there for them is handed back. The floor carries it, in the user daemon.
//!
//! Packets stay as they are, and none passes the host's firewall, address translation or routes: those are made for
//! traffic between the containers and networks of the host's, and would drop or rewrite this.

use aya_ebpf::{
    bindings::{BPF_ANY, TC_ACT_UNSPEC},
    macros::classifier,
    maps::lpm_trie::Key,
    programs::TcContext,
};
use tpx_ebpf_abi::{Counter, DNS_PORT, Station, may_be_container, ports4, ports6, takes, v4_mapped};

use crate::{
    connect::{rule4, rule6},
    maps::{DEVICE, OUTLIVES, SENDERS, STATIONS, count},
    sys::{ETHERNET, Frame, Route, found},
};

#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    let frame = Frame(&ctx);
    let taken = if !frame.is_for_this_host() {
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
    let destination = if frame.is_v4() { frame.load(16).map(v4_mapped) } else { frame.load(24) };
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
    let why = if takes(rule4(destination)) {
        Counter::ContainersSteered
    } else {
        let ports: [u8; 4] = frame.load(ETHERNET + ports4(&header)?)?;
        asks(ports, || frame.route4(destination))?
    };
    remember(frame, v4_mapped(source), || frame.route4(source))?;
    Some(why)
}

/// As [`taken4`].
#[inline(always)]
fn taken6(frame: &Frame<'_>) -> Option<Counter> {
    let header: [u8; 40] = frame.load(ETHERNET)?;
    let source: [u8; 16] = frame.load(ETHERNET + 8)?;
    let destination: [u8; 16] = frame.load(ETHERNET + 24)?;
    let why = if takes(rule6(destination)) {
        Counter::ContainersSteered
    } else {
        let ports: [u8; 4] = frame.load(ETHERNET + ports6(&header)?)?;
        asks(ports, || frame.route6(destination))?
    };
    remember(frame, source, || frame.route6(source))?;
    Some(why)
}

/// A question to a name server somewhere else. One on this host goes on answering: what it asks itself is steered as that
/// of any process.
#[inline(always)]
fn asks(ports: [u8; 4], route: impl FnOnce() -> Route) -> Option<Counter> {
    let [_, _, high, low] = ports;
    let asks = u16::from_be_bytes([high, low]) == DNS_PORT && matches!(route(), Route::Device(_));
    asks.then_some(Counter::ContainersAsked)
}

/// Remembers where the sender is; `None` when it does not see the cluster. An address that the host would not look for
/// behind this bridge is not taken: its answers, and those of whoever really has it, would go astray.
#[inline(always)]
fn remember(frame: &Frame<'_>, source: [u8; 16], route: impl FnOnce() -> Route) -> Option<()> {
    SENDERS.get(Key::new(128, source))?;
    let station = Station::of(frame.device(), frame.load(0)?);
    if found(STATIONS.get_ptr(source)) == Some(station) {
        return Some(());
    }
    let lives_here = match route() {
        Route::Device(device) => device == station.device,
        Route::Stays => false,
        Route::NoRouter => true,
    };
    if !lives_here || !may_be_container(&source) {
        count(Counter::ContainersForeign);
        return None;
    }
    STATIONS.insert(source, station, BPF_ANY.into()).ok()
}
