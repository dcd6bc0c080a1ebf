//! One TCP connection of an application, seen from the far end.
//!
//! smoltcp does the protocol. It works with segments of up to 64 KiB whatever the path carries: its peer's segment size is
//! rewritten in the SYN, the real one is kept here, and whoever sends the packets cuts them ([`Offload`] or
//! [`Segments`](super::Segments)).

use std::{io, time::Duration};

use bytes::BufMut;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State},
    time::Instant,
    wire::{HardwareAddress, IpCidr},
};

use super::{Outgoing, PACKET_MAX};
use crate::packet::{self, Segment, TCP, View};

/// What smoltcp believes the peer takes in one segment.
const GIANT_MSS: u16 = (PACKET_MAX - 60) as u16;
/// Segment size of a peer that does not say (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// Smallest segment that a path may ask for, as Linux has it (`min_pmtu` less headers; RFC 8200 for IPv6).
const LEAST_V4: u16 = 552 - 40;
const LEAST_V6: u16 = 1280 - 60;

/// Flags of a segment (RFC 9293, 3.1).
const FIN: u8 = 0x01;
const PUSH: u8 = 0x08;

/// See [`TcpFlow::guard_the_end`]; about a retransmission timeout.
const END_GUARD: Duration = Duration::from_secs(1);

/// What all connections of a floor have in common.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Of the device, in bytes.
    pub(crate) mtu: u16,
    /// Bytes of buffer for each direction, touched when used.
    pub(crate) receive: usize,
    pub(crate) send: usize,
    /// After this time without a packet the peer is asked whether it is there.
    pub(crate) keep_alive: Duration,
    /// After this time without an answer the connection is given up.
    pub(crate) patience: Duration,
}

/// Why a connection ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The application's side reset it.
    Reset,
    /// The application's side stopped answering.
    TimedOut,
    /// It was given up on this side.
    Aborted,
}

impl From<Broken> for io::Error {
    fn from(why: Broken) -> Self {
        match why {
            Broken::Reset => io::ErrorKind::ConnectionReset.into(),
            Broken::TimedOut => io::ErrorKind::TimedOut.into(),
            Broken::Aborted => io::ErrorKind::ConnectionAborted.into(),
        }
    }
}

/// The machine.
pub(crate) struct TcpFlow {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    v4: bool,
    /// Initial sequence number of the application's SYN.
    isn: u32,
    mss: u16,
    /// The largest segment that is taken.
    own_mss: u16,
    keep_alive: Duration,
    opened: bool,
    broken: Option<Broken>,
    /// The last packet, once both sides have ended: it is repeated when the peer did not hear it.
    farewell: Option<Vec<u8>>,
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow").field("state", &self.socket().state()).finish_non_exhaustive()
    }
}

impl TcpFlow {
    /// A connection that answers `syn`, an IP packet. `None` when it is no SYN between two hosts. `seed` should not be
    /// guessable: the sequence numbers come from it.
    pub(crate) fn new(now: Duration, syn: &[u8], seed: u64, settings: &Settings) -> Option<Self> {
        let view = View::parse(syn).filter(View::is_unicast)?;
        let segment = Segment::parse(&view).filter(|s| s.is_syn() && !s.is_ack() && s.destination != 0)?;
        let v4 = view.source.is_ipv4();
        let most = settings.mtu.saturating_sub(if v4 { 40 } else { 60 });
        let mss = segment.mss().filter(|mss| *mss > 0).unwrap_or(DEFAULT_MSS).min(most).max(48);

        let mut port = Port { received: None, out: None };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, instant(now));
        // One address and everybody else on the same link: nothing to route.
        interface.update_ip_addrs(|all| {
            let _ = all.push(IpCidr::new(view.destination.into(), 0));
        });
        let mut socket = Socket::new(buffer(settings.receive), buffer(settings.send));
        socket.set_nagle_enabled(false);
        // Acknowledgements are held back by whoever calls: until a batch of packets is through.
        socket.set_ack_delay(None);
        socket.set_congestion_control(CongestionControl::None);
        socket.set_keep_alive(Some(settings.keep_alive.into()));
        socket.set_timeout(Some(settings.patience.into()));
        socket.listen((view.destination, segment.destination)).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let isn = segment.sequence;
        let mut flow = Self {
            interface,
            sockets,
            handle,
            v4,
            isn,
            mss,
            own_mss: most,
            keep_alive: settings.keep_alive,
            opened: false,
            broken: None,
            farewell: None,
        };

        let mut syn = view.packet.to_vec();
        if let Some(at) = segment.mss_at() {
            let at = view.at + 20 + at;
            syn[at..at + 2].copy_from_slice(&GIANT_MSS.to_be_bytes());
        }
        flow.ingress(now, &syn, None);
        (flow.socket().state() == State::SynReceived).then_some(flow)
    }

    /// Initial sequence number of the SYN that began it.
    pub(crate) fn isn(&self) -> u32 {
        self.isn
    }

    /// A packet of this connection, and the segment in it. True: there is an answer in `out`. Poll for packets and the
    /// timeout afterwards.
    pub(crate) fn handle_packet(
        &mut self,
        now: Duration,
        packet: &[u8],
        segment: &Segment<'_>,
        out: &mut Outgoing,
    ) -> bool {
        let before = self.socket().state();
        out.clear();
        if self.is_over() {
            return false;
        }
        self.ingress(now, packet, Some(out));
        let after = self.socket().state();
        if after != before && segment.is_rst() && matches!(after, State::Closed | State::Listen) {
            self.break_off(Broken::Reset);
        }
        self.opened |= !matches!(after, State::Listen | State::SynReceived | State::Closed);
        if after != before {
            self.guard_the_end();
        }
        self.finish(out)
    }

    /// The next packet to send, in `out`. Call until false.
    pub(crate) fn poll_transmit(&mut self, now: Duration, out: &mut Outgoing) -> bool {
        let before = self.socket().state();
        out.clear();
        // What was received stays readable; smoltcp would throw it away in the end.
        if self.is_over() {
            return false;
        }
        let Self { interface, sockets, .. } = self;
        interface.poll_egress(instant(now), &mut Port { received: None, out: Some(out) }, sockets);
        if self.socket().state() == State::Closed && !matches!(before, State::Closed | State::TimeWait) {
            self.break_off(Broken::TimedOut);
        }
        self.finish(out)
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something to do, if nothing else happens.
    pub(crate) fn poll_timeout(&mut self, now: Duration) -> Option<Duration> {
        if self.is_over() {
            return None;
        }
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Duration::from_micros(at.total_micros().try_into().unwrap_or(0)))
    }

    /// The path carries no larger packets than `mtu` (RFC 1191, RFC 8201).
    pub(crate) fn handle_path_mtu(&mut self, mtu: u16) {
        let (headers, least) = if self.v4 { (40, LEAST_V4) } else { (60, LEAST_V6) };
        self.mss = self.mss.min(mtu.saturating_sub(headers).max(least));
    }

    /// Most bytes of payload in a segment that goes out.
    pub(crate) fn mss(&self) -> u16 {
        self.mss
    }

    /// Whether the handshake was completed at any time.
    pub(crate) fn is_open(&self) -> bool {
        self.opened
    }

    /// Why it ended early, if it did.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// Takes received bytes; `Ok(0)` at the end of the stream, "would block" while there are none.
    pub(crate) fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.socket_mut().recv_slice(into) {
            Ok(0) if !into.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            Ok(n) => Ok(n),
            Err(RecvError::Finished) => Ok(0),
            Err(RecvError::InvalidState) => Err(self.broken.unwrap_or(Broken::Aborted).into()),
        }
    }

    /// The same into a buffer that may grow.
    pub(crate) fn recv_buf(&mut self, into: &mut impl BufMut) -> io::Result<usize> {
        let mut all = 0;
        loop {
            let take = |data: &mut [u8]| {
                let n = data.len().min(into.remaining_mut());
                into.put_slice(&data[..n]);
                (n, n)
            };
            // Twice at most: the ring's end, and its beginning.
            match self.socket_mut().recv(take) {
                Ok(0) if all == 0 && into.has_remaining_mut() => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(0) => return Ok(all),
                Ok(n) => all += n,
                Err(_) if all > 0 => return Ok(all),
                Err(RecvError::Finished) => return Ok(0),
                Err(RecvError::InvalidState) => return Err(self.broken.unwrap_or(Broken::Aborted).into()),
            }
        }
    }

    /// Whether [`recv`](Self::recv) has an answer other than "would block".
    pub(crate) fn is_readable(&self) -> bool {
        let socket = self.socket();
        socket.can_recv() || !socket.may_recv()
    }

    /// Takes bytes to send, as many as fit; "would block" when none do.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(broken) = self.broken {
            return Err(broken.into());
        }
        match self.socket_mut().send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            Ok(n) => Ok(n),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Whether it is worth to send now: there is some room, or an error to be told of.
    pub(crate) fn is_writable(&self) -> bool {
        let socket = self.socket();
        self.broken.is_some() || !socket.may_send() || socket.send_queue() <= socket.send_capacity() / 4 * 3
    }

    /// Ends this side's half after what was sent.
    pub(crate) fn close(&mut self) {
        self.socket_mut().close();
        self.guard_the_end();
    }

    /// Resets the connection.
    pub(crate) fn abort(&mut self) {
        if self.broken.is_none() {
            self.broken = Some(Broken::Aborted);
        }
        self.socket_mut().abort();
    }

    /// The connection is gone and its peer need not be told.
    pub(crate) fn forget(&mut self, why: Broken) {
        self.break_off(why);
        self.socket_mut().abort();
        // The reset that this would send ends here.
        self.poll_transmit(Duration::ZERO, &mut Outgoing::new());
    }

    /// Whether both sides have ended their halves and all that came was taken.
    pub(crate) fn is_finished(&mut self) -> bool {
        let socket = self.socket_mut();
        !socket.may_send() && !socket.can_recv() && matches!(socket.recv_slice(&mut []), Err(RecvError::Finished))
    }

    /// Whether no more packets of this connection are of interest, but for repetitions.
    pub(crate) fn is_over(&self) -> bool {
        match self.socket().state() {
            State::Closed | State::Listen => self.socket().remote_endpoint().is_none(),
            State::TimeWait => self.farewell.is_some(),
            _ => false,
        }
    }

    /// What to answer to repetitions after [`is_over`](Self::is_over), when that is anything but a reset.
    pub(crate) fn farewell(&self) -> Option<&[u8]> {
        self.farewell.as_deref()
    }

    /// Three repeated acknowledgements while nothing but the FIN is outstanding make smoltcp 0.14 stop its retransmission
    /// timer and send nothing (`dispatch`: fast retransmit with an empty buffer); a lost FIN would stay lost. When it is
    /// then time to keep the connection alive it does send the FIN, so that time is made to come soon.
    fn guard_the_end(&mut self) {
        let ending = matches!(self.socket().state(), State::FinWait1 | State::Closing | State::LastAck);
        let pause = if ending { END_GUARD } else { self.keep_alive };
        self.socket_mut().set_keep_alive(Some(pause.into()));
    }

    fn break_off(&mut self, why: Broken) {
        self.broken.get_or_insert(why);
    }

    fn ingress(&mut self, now: Duration, packet: &[u8], out: Option<&mut Outgoing>) {
        let Self { interface, sockets, .. } = self;
        interface.poll_ingress_single(instant(now), &mut Port { received: Some(packet), out }, sockets);
    }

    /// Rewrites what must not be seen outside. False when there is no packet.
    fn finish(&mut self, out: &mut Outgoing) -> bool {
        let Some(view) = View::parse(out.packet()) else {
            return false;
        };
        let at = view.at;
        if let Some(segment) = Segment::parse(&view) {
            if let Some(mss) = segment.mss_at().filter(|_| segment.is_syn()) {
                out.packet_mut()[at + 20 + mss..][..2].copy_from_slice(&self.own_mss.to_be_bytes());
            } else if matches!(self.socket().state(), State::Closing | State::TimeWait) {
                // Without what it carried, the FIN included: by the time this is sent the peer has acknowledged that, and
                // would not look at an acknowledgement that comes with it again (RFC 9293, 3.10.7.4).
                let mut last = view.packet[..view.packet.len() - segment.payload.len()].to_vec();
                let carried = segment.payload.len() as u32 + u32::from(segment.is_fin());
                let sequence = segment.sequence.wrapping_add(carried);
                last[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
                last[at + 13] &= !(FIN | PUSH);
                packet::finish(&mut last, at, TCP);
                self.farewell = Some(last);
            }
        }
        true
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

/// Zeroed memory of that size comes from the kernel and costs nothing before it is used.
fn buffer(bytes: usize) -> SocketBuffer<'static> {
    SocketBuffer::new(vec![0; bytes])
}

/// smoltcp's device: at most one packet in, at most one out.
struct Port<'a> {
    received: Option<&'a [u8]>,
    out: Option<&'a mut Outgoing>,
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sent<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sent<'_>)> {
        Some((Received(self.received.take()?), Sent(self.out.as_deref_mut())))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(Some(self.out.as_deref_mut()?)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = PACKET_MAX;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Received<'t>(&'t [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Sent<'t>(Option<&'t mut Outgoing>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.0 {
            Some(out) => f(out.room(len)),
            None => f(&mut vec![0; len]),
        }
    }
}

#[cfg(test)]
mod tests;
