//! The unprivileged half of the express lane: connections and datagrams that the kernel steered here.
//!
//! One task reads held SYNs and watches the clock, one for each listener accepts, one for each UDP socket receives. What is
//! decided about a SYN is `tpx_core::syngate`; this module only carries it out.

mod associations;
mod datagrams;
mod gate;
mod owners;
mod raw;

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use aya::maps::{Map, MapData, MapError, RingBuf};
use socket2::{SockRef, Socket};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep_until,
};
use tpx_core::{
    dial::DialFailure,
    syngate::{Counters, FlowKey, Limits, Proto},
};
use tpx_ebpf_abi::{HeldSyn, Owner};

use self::{gate::Gate, owners::Owners, raw::Raws};
use super::sys;
use crate::{Arrival, Caller, DatagramFlow, FlowSource, FlowStream, Knock, packet::Syn};

/// Most SYNs read in one go, so that other tasks have their turn.
const BATCH: usize = 256;
/// Pause after `accept()` failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The files that the lane works with; a part of [`Handover`](super::Handover).
#[derive(Debug)]
pub struct ExpressParts {
    /// Transparent listeners for IPv4 and IPv6.
    pub listeners: [OwnedFd; 2],
    /// Raw sockets for IPv4 and IPv6.
    pub raws: [OwnedFd; 2],
    /// Ring buffer of held SYNs.
    pub syns: OwnedFd,
    /// Map of flows and verdicts.
    pub held: OwnedFd,
    /// Map of flows and their owners.
    pub owners: OwnedFd,
    /// UDP sockets for IPv4 and IPv6.
    pub datagrams: [OwnedFd; 2],
    /// Map of indices and the destinations of datagrams.
    pub targets: OwnedFd,
}

/// The road that yields connections steered by the kernel.
pub struct ExpressLane {
    knocks: mpsc::Receiver<HeldKnock>,
    datagrams: mpsc::Receiver<DatagramFlow>,
    gate: Arc<Gate>,
    /// They end with the lane.
    _tasks: JoinSet<()>,
}

impl ExpressLane {
    /// Starts the lane on the current runtime. It ends when dropped; attempts it has yielded can still be answered.
    ///
    /// # Errors
    /// When a file is not what it should be.
    pub fn new(parts: ExpressParts) -> io::Result<Self> {
        Self::with_limits(parts, Limits::default())
    }

    /// The same with other bounds and periods.
    ///
    /// # Errors
    /// When a file is not what it should be.
    pub fn with_limits(parts: ExpressParts, limits: Limits) -> io::Result<Self> {
        let map = MapData::from_fd(parts.syns).and_then(Map::from_map_data).map_err(io::Error::other)?;
        let ring: RingBuf<MapData> = map.try_into().map_err(|e: MapError| io::Error::other(e))?;
        let ring = sys::watch(ring)?;
        // Every open attempt has room, so that none is turned away here.
        let (announce, knocks) = mpsc::channel(limits.open.max(1));
        let [v4, v6] = parts.listeners;
        let listeners = [listener(v4)?, listener(v6)?];
        let raws = Arc::new(Raws::new(parts.raws));
        let mut tasks = JoinSet::new();
        let datagrams = datagrams::start(parts.datagrams, &parts.targets, &raws, &mut tasks)?;
        let gate = Arc::new(Gate::new(limits, listeners.clone(), raws, parts.held)?);
        for listener in listeners {
            tasks.spawn(accept(listener, Arc::clone(&gate)));
        }
        tasks.spawn(read(ring, Arc::clone(&gate), Owners::new(parts.owners)?, announce));
        Ok(Self { knocks, datagrams, gate, _tasks: tasks })
    }

    /// A handle to look at the lane with, wherever the lane itself goes.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge(Arc::clone(&self.gate))
    }
}

#[async_trait]
impl FlowSource for ExpressLane {
    async fn next(&mut self) -> Option<Arrival> {
        tokio::select! {
            knock = self.knocks.recv() => Some(Arrival::Connection(Box::new(knock?))),
            flow = self.datagrams.recv() => Some(Arrival::Datagrams(flow?)),
        }
    }
}

/// Looks at an [`ExpressLane`].
#[derive(Clone)]
pub struct Gauge(Arc<Gate>);

/// How a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Attempts that are held or released.
    pub open: usize,
    /// Refusals that are remembered.
    pub remembered: usize,
    /// How often things happened.
    pub counters: Counters,
}

impl Gauge {
    /// One look.
    #[must_use]
    pub fn read(&self) -> Reading {
        let (counters, open, remembered) = self.0.numbers();
        Reading { open, remembered, counters }
    }
}

/// An attempt whose SYN is held by the kernel.
struct HeldKnock {
    gate: Arc<Gate>,
    syn: Arc<Syn>,
    owner: Option<Owner>,
    answered: bool,
}

#[async_trait]
impl Knock for HeldKnock {
    fn source(&self) -> std::net::SocketAddr {
        self.syn.attempt().key.source()
    }

    fn destination(&self) -> std::net::SocketAddr {
        self.syn.attempt().key.destination()
    }

    fn caller(&self) -> Option<Caller> {
        self.owner.as_ref().and_then(owners::caller)
    }

    async fn release(mut self: Box<Self>) -> io::Result<FlowStream> {
        self.answered = true;
        let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "the application has given up");
        self.gate.release(&self.syn).ok_or_else(gone)?.await.map(FlowStream::Socket).map_err(|_| gone())
    }

    fn refuse(mut self: Box<Self>, why: DialFailure) {
        self.answered = true;
        self.gate.decline(&self.syn, why);
    }
}

impl Drop for HeldKnock {
    fn drop(&mut self) {
        if !self.answered {
            self.gate.decline(&self.syn, DialFailure::TimedOut);
        }
    }
}

/// Reads SYNs and does what the clock asks for. Ends when nobody listens or the ring buffer fails.
async fn read(mut ring: AsyncFd<RingBuf<MapData>>, gate: Arc<Gate>, owners: Owners, announce: mpsc::Sender<HeldKnock>) {
    loop {
        let due = gate.expire();
        tokio::select! {
            ready = ring.readable_mut() => match ready {
                Ok(mut ready) => {
                    if drain(ready.get_inner_mut(), &gate, &owners, &announce) < BATCH {
                        ready.clear_ready();
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                Err(e) => return tracing::error!("ring buffer: {e}"),
            },
            () = clock(due) => {}
            () = gate.earlier() => {}
            () = announce.closed() => return,
        }
    }
}

async fn clock(due: Option<tokio::time::Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The SYN as it goes to the listener.
fn finished(held: &HeldSyn<'_>) -> Option<Syn> {
    Syn::new(held.flow.source(), held.flow.destination(), held.ip, held.tcp)
}

/// How many records there were, at most [`BATCH`].
fn drain(ring: &mut RingBuf<MapData>, gate: &Arc<Gate>, owners: &Owners, announce: &mpsc::Sender<HeldKnock>) -> usize {
    for count in 0..BATCH {
        let Some(record) = ring.next() else {
            return count;
        };
        let Some(syn) = HeldSyn::parse(&record).and_then(|held| finished(&held)) else {
            tracing::warn!("a record of {} bytes that is no SYN", record.len());
            continue;
        };
        drop(record);
        if gate.syn(&syn) {
            let owner = owners.take(&syn.attempt().key);
            let knock = HeldKnock { gate: Arc::clone(gate), syn: Arc::new(syn), owner, answered: false };
            // When there is no room after all, dropping the knock cleans up.
            if announce.try_send(knock).is_err() {
                tracing::warn!("a connection was dropped: too many wait");
            }
        }
    }
    BATCH
}

fn listener(file: OwnedFd) -> io::Result<Arc<TcpListener>> {
    let listener = Socket::from(file);
    listener.set_nonblocking(true)?;
    Ok(Arc::new(TcpListener::from_std(listener.into())?))
}

/// Hands every connection to whoever released it.
async fn accept(listener: Arc<TcpListener>, gate: Arc<Gate>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(e) = hand_over(stream, peer, &gate) {
                    tracing::debug!("a connection from {peer} was lost: {e}");
                }
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                tracing::warn!("accept: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn hand_over(stream: TcpStream, peer: std::net::SocketAddr, gate: &Gate) -> io::Result<()> {
    // The listener is transparent: the local address is what the application asked for.
    let key = FlowKey::new(Proto::Tcp, peer, stream.local_addr()?);
    let Some(waiter) = gate.accepted(key) else {
        tracing::debug!("{peer} to {}: nobody released it", key.destination());
        return Ok(());
    };
    // Inherited from the listener; it would see every packet.
    SockRef::from(&stream).detach_filter()?;
    stream.set_nodelay(true)?;
    // Whoever released it may have lost interest: then it closes here.
    drop(waiter.send(stream));
    Ok(())
}
