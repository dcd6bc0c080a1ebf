//! What all parts of a floor share, and where packets are sorted.

use std::{
    cell::RefCell,
    hash::{BuildHasher as _, RandomState},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tpx_core::syngate::{Attempt, SynGate};

use super::{
    FloorReading, FloorSettings, PacketDevice, clock::Clock, connections::Table, datagrams::Datagrams, echoes::Echoes,
    flow::Flow,
};
use crate::{
    Arrival,
    netstack::{Outgoing, PACKET_MAX, Segments, tcp},
    packet::{self, ICMP, ICMP6, Reassembly, Segment, TCP, UDP, View, fragments, word},
};

/// Most packets between two looks at the flows they belong to. The flows' acknowledgements wait for that long.
const BATCH: usize = 32;
/// "No next header" (RFC 8200, 4.7).
const NOTHING: u8 = 59;

pub(super) struct Shared {
    device: Box<dyn PacketDevice>,
    mtu: u16,
    pub(super) tcp: tcp::Settings,
    /// The moment that all times count from.
    pub(super) start: Instant,
    pub(super) clock: Clock,
    table: Mutex<Table>,
    pub(super) datagrams: Mutex<Datagrams>,
    pub(super) echoes: Mutex<Echoes>,
    /// Keys the initial sequence numbers (RFC 6528).
    secret: RandomState,
    identification: AtomicU32,
}

/// What the reading task keeps between packets.
pub(super) struct Batch {
    buffer: Box<[u8]>,
    touched: Vec<Arc<Flow>>,
    fragments: Reassembly,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            buffer: vec![0; PACKET_MAX + 1].into_boxed_slice(),
            touched: Vec::new(),
            fragments: Reassembly::default(),
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Outgoing> = RefCell::new(Outgoing::new());
}

impl Shared {
    pub(super) fn new(device: Box<dyn PacketDevice>, mtu: u16, settings: FloorSettings) -> Self {
        let FloorSettings { limits, associations, queue, receive, send, keep_alive, patience } = settings;
        let secret = RandomState::new();
        Self {
            device,
            mtu,
            tcp: tcp::Settings { mtu, receive, send, keep_alive, patience },
            start: Instant::now(),
            clock: Clock::default(),
            table: Mutex::new(Table::new(SynGate::new(limits))),
            datagrams: Mutex::new(Datagrams::new(associations, queue)),
            echoes: Mutex::new(Echoes::new(associations, queue)),
            identification: AtomicU32::new(secret.hash_one(0) as u32),
            secret,
        }
    }

    /// Reads and handles a batch of packets.
    pub(super) fn poll_packets(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        batch: &mut Batch,
        announce: &mpsc::Sender<Arrival>,
    ) -> Poll<io::Result<()>> {
        let Batch { buffer, touched, fragments } = batch;
        let mut done = Poll::Pending;
        for _ in 0..BATCH {
            match self.device.poll_recv(cx, buffer) {
                Poll::Ready(Ok(len)) => {
                    done = Poll::Ready(Ok(()));
                    self.handle_packet(&buffer[..len], fragments, announce, touched);
                }
                Poll::Ready(Err(e)) => {
                    done = Poll::Ready(Err(e));
                    break;
                }
                Poll::Pending => break,
            }
        }
        for flow in touched.drain(..) {
            flow.untouch();
            self.with(&flow, |_| ());
        }
        done
    }

    fn handle_packet(
        self: &Arc<Self>,
        bytes: &[u8],
        fragments: &mut Reassembly,
        announce: &mpsc::Sender<Arrival>,
        touched: &mut Vec<Arc<Flow>>,
    ) {
        let Some(view) = View::parse(bytes) else {
            return;
        };
        if view.fragment.is_none() {
            return self.handle_whole(&view, announce, touched);
        }
        if let Some(whole) = fragments.handle_fragment(self.now(), &view)
            && let Some(view) = View::parse(&whole)
        {
            self.handle_whole(&view, announce, touched);
        }
    }

    fn handle_whole(self: &Arc<Self>, view: &View<'_>, announce: &mpsc::Sender<Arrival>, touched: &mut Vec<Arc<Flow>>) {
        // Nothing here speaks to groups, and nobody may be told of errors about them (RFC 1122 3.2.2, RFC 4443 2.4 e).
        if !view.is_unicast() {
            return;
        }
        match view.protocol {
            TCP => {
                if let Some(segment) = Segment::parse(view) {
                    touched.extend(self.handle_segment(view, &segment, announce));
                }
            }
            UDP => self.handle_datagram(view, announce),
            ICMP if view.source.is_ipv4() => self.handle_icmp(view, announce),
            ICMP6 if view.source.is_ipv6() => self.handle_icmp(view, announce),
            NOTHING if view.source.is_ipv6() => {}
            _ => self.emit(&packet::protocol_unreachable(view.packet, view.protocol_at)),
        }
    }

    fn handle_icmp(self: &Arc<Self>, view: &View<'_>, announce: &mpsc::Sender<Arrival>) {
        let body = view.body();
        let (Some(kind), Some(quoted)) = (word(body, 0), body.get(8..)) else {
            return;
        };
        let quoted = || View::parse_quoted(quoted).filter(|q| q.fragment.is_none_or(|f| f.offset == 0));
        let v4 = view.source.is_ipv4();
        match (v4, kind) {
            (true, 0x0800) | (false, 0x8000) => self.handle_echo(view, announce),
            // Fragmentation needed; packet too big.
            (true, 0x0304) | (false, 0x0200) => {
                let mtu = if v4 {
                    word(body, 6).map(u32::from)
                } else {
                    body[4..].first_chunk().map(|b| u32::from_be_bytes(*b))
                };
                if let (Some(quoted), Some(mtu)) = (quoted().filter(|q| q.protocol == TCP), mtu) {
                    self.handle_path_mtu(&quoted, mtu);
                }
            }
            // Port unreachable: the application has closed its socket.
            (true, 0x0303) | (false, 0x0104) => {
                if let Some(quoted) = quoted().filter(|q| q.protocol == UDP) {
                    self.handle_unheard(&quoted);
                }
            }
            _ => {}
        }
    }

    /// Sends a packet of TCP's.
    pub(super) fn transmit(&self, out: &mut Outgoing, mss: u16) {
        let sent = if self.device.offloads() {
            let offload = out.offload(mss);
            self.device.send(out.packet(), offload.as_ref())
        } else {
            let mut sent = Ok(());
            let mut segments = Segments::new(out.packet(), mss);
            while let Some(segment) = segments.as_mut().and_then(Segments::next) {
                sent = sent.and(self.device.send(segment, None));
            }
            sent
        };
        if let Err(e) = sent {
            tracing::debug!("send: {e}");
        }
    }

    /// Sends a finished packet, in fragments if need be.
    pub(super) fn emit_large(&self, packet: Vec<u8>) {
        if packet.len() <= usize::from(self.mtu) {
            return self.emit(&packet);
        }
        for fragment in fragments(packet, self.mtu.into(), self.identification.fetch_add(1, Relaxed)) {
            self.emit(&fragment);
        }
    }

    /// Sends a finished packet that fits.
    pub(super) fn emit(&self, packet: &[u8]) {
        if let Err(e) = self.device.send(packet, None) {
            tracing::debug!("send: {e}");
        }
    }

    /// Room for one packet. Must not be used while it is in use.
    #[expect(clippy::unused_self, reason = "one buffer per thread serves all floors")]
    pub(super) fn scratch<R>(&self, work: impl FnOnce(&mut Outgoing) -> R) -> R {
        SCRATCH.with_borrow_mut(work)
    }

    pub(super) fn seed(&self, attempt: &Attempt) -> u64 {
        self.secret.hash_one((attempt, self.now()))
    }

    pub(super) fn reading(&self) -> FloorReading {
        let table = self.table();
        let (open, remembered, counters) = (table.gate.open(), table.gate.remembered(), table.gate.counters());
        let connections = table.flows.len();
        drop(table);
        let datagrams = lock(&self.datagrams).len();
        FloorReading { open, remembered, connections, datagrams, echoes: lock(&self.echoes).len(), counters }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
