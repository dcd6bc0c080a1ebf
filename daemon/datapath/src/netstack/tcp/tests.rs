//! A flow against a peer that is smoltcp as well, over a network that loses, repeats and reorders packets; and against
//! a peer that sends anything.

use std::collections::VecDeque;

use proptest::prelude::*;
use smoltcp::wire::IpEndpoint;

use super::*;
use crate::{netstack::Segments, packet::check::assert_sound};

const MTU: usize = 1500;

fn settings() -> Settings {
    Settings {
        mtu: MTU as u16,
        receive: 64 << 10,
        send: 64 << 10,
        keep_alive: Duration::from_secs(300),
        patience: Duration::from_secs(900),
    }
}

/// The application's system.
struct Peer {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
}

#[derive(Default)]
struct Wire {
    received: Option<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct In(Vec<u8>);
struct Out<'t>(&'t mut VecDeque<Vec<u8>>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'t> = In;
    type TxToken<'t> = Out<'t>;

    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        Some((In(self.received.take()?), Out(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl Peer {
    fn new(v4: bool) -> Self {
        let (own, to): (IpEndpoint, IpEndpoint) = if v4 {
            let (own, to): (std::net::SocketAddr, std::net::SocketAddr) =
                ("198.18.7.1:40000".parse().unwrap(), "10.96.0.10:80".parse().unwrap());
            (own.into(), to.into())
        } else {
            let (own, to): (std::net::SocketAddr, std::net::SocketAddr) =
                ("[fd00::1]:40000".parse().unwrap(), "[fd96::a]:80".parse().unwrap());
            (own.into(), to.into())
        };
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(own.addr, 0)).unwrap());
        let mut socket = Socket::new(buffer(64 << 10), buffer(64 << 10));
        // It is the same stack, so it needs the same guard.
        socket.set_keep_alive(Some(END_GUARD.into()));
        socket.connect(interface.context(), to, own).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, wire }
    }

    fn poll(&mut self, now: Duration) {
        self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn receive(&mut self, now: Duration, packet: Vec<u8>) {
        self.wire.received = Some(packet);
        self.interface.poll_ingress_single(instant(now), &mut self.wire, &mut self.sockets);
    }
}

/// Numbers that a test can repeat (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }
}

/// A network: packets arrive after 0.1 ms, but some later than others, some never, some twice.
struct Network {
    dice: Dice,
    /// In a thousand.
    loss: u64,
    twice: u64,
    on_the_way: Vec<(Duration, bool, Vec<u8>)>,
}

impl Network {
    fn carry(&mut self, now: Duration, to_peer: bool, packet: &[u8]) {
        for _ in 0..1 + u32::from(self.dice.roll(1000) < self.twice) {
            if self.dice.roll(1000) >= self.loss {
                let late = if self.dice.roll(20) == 0 { self.dice.roll(5000) } else { 0 };
                let at = now + Duration::from_micros(100 + late);
                self.on_the_way.push((at, to_peer, packet.to_vec()));
            }
        }
    }

    fn arrived(&mut self, now: Duration) -> Vec<(bool, Vec<u8>)> {
        let (mut here, rest): (Vec<_>, Vec<_>) = self.on_the_way.drain(..).partition(|(at, ..)| *at <= now);
        self.on_the_way = rest;
        here.sort_by_key(|(at, ..)| *at);
        here.into_iter().map(|(_, to_peer, packet)| (to_peer, packet)).collect()
    }
}

fn emit(flow: &TcpFlow, out: &Outgoing, now: Duration, network: &mut Network) {
    let mut segments = Segments::new(out.packet(), flow.mss()).unwrap();
    while let Some(segment) = segments.next() {
        assert_sound(segment);
        assert!(segment.len() <= MTU);
        network.carry(now, true, segment);
    }
}

fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i ^ i >> 8) as u8 ^ salt).collect()
}

/// Sends `up` and `down` bytes, ends both halves, and checks that all arrived and both sides end.
fn exchange(v4: bool, up: usize, down: usize, loss: u64, twice: u64, seed: u64) {
    let mut network = Network { dice: Dice(seed), loss, twice, on_the_way: Vec::new() };
    let (mut peer, mut flow, mut out) = (Peer::new(v4), None::<TcpFlow>, Outgoing::new());
    let (up, down) = (pattern(up, 1), pattern(down, 2));
    let (mut sent_up, mut sent_down) = (0, 0);
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let (mut eof_up, mut closed_down) = (false, false);
    let mut now = Duration::ZERO;
    let mut stuck = 0;
    loop {
        // The network.
        for (to_peer, packet) in network.arrived(now) {
            if to_peer {
                peer.receive(now, packet);
                continue;
            }
            let view = View::parse(&packet).unwrap();
            let segment = Segment::parse(&view).unwrap();
            match &mut flow {
                None if segment.is_syn() => flow = TcpFlow::new(now, &packet, seed, &settings()),
                // A repeated SYN is kept away by SynGate.
                Some(flow) if !segment.is_syn() => {
                    if flow.handle_packet(now, &packet, &segment, &mut out) {
                        emit(flow, &out, now, &mut network);
                    }
                    if flow.is_over()
                        && !segment.is_rst()
                        && (segment.is_fin() || !segment.payload.is_empty())
                        && let Some(last) = flow.farewell()
                    {
                        network.carry(now, true, last);
                    }
                }
                _ => {}
            }
        }
        // The application.
        let socket = peer.socket();
        if socket.may_send() {
            sent_up += socket.send_slice(&up[sent_up..]).unwrap();
            if sent_up == up.len() {
                socket.close();
            }
        }
        let mut bytes = [0; 5000];
        while let Ok(n @ 1..) = socket.recv_slice(&mut bytes) {
            got_down.extend_from_slice(&bytes[..n]);
        }
        peer.poll(now);
        for packet in std::mem::take(&mut peer.wire.sent) {
            network.carry(now, false, &packet);
        }
        // The floor.
        if let Some(flow) = &mut flow {
            if flow.is_open() {
                if let Ok(n) = flow.send(&down[sent_down..]) {
                    sent_down += n;
                }
                if sent_down == down.len() && !closed_down {
                    flow.close();
                    closed_down = true;
                }
                while !eof_up {
                    match flow.recv(&mut bytes) {
                        Ok(0) => eof_up = true,
                        Ok(n) => got_up.extend_from_slice(&bytes[..n]),
                        Err(e) => {
                            assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                            break;
                        }
                    }
                }
            }
            while flow.poll_transmit(now, &mut out) {
                emit(flow, &out, now, &mut network);
            }
            // A peer that heard everything may be gone before it was heard to have.
            let done = eof_up && got_down == down;
            assert!(flow.broken().is_none_or(|b| done && b == Broken::Reset), "{:?}", flow.broken());
            if flow.is_over() && eof_up && !peer.socket().is_open() {
                break;
            }
        }
        // The clock.
        let next = [
            network.on_the_way.iter().map(|(at, ..)| *at).min(),
            peer.interface
                .poll_at(instant(now), &peer.sockets)
                .map(|at| Duration::from_micros(at.total_micros().try_into().unwrap_or(0))),
            flow.as_mut().and_then(|f| f.poll_timeout(now)),
        ];
        let next = next.into_iter().flatten().min().expect("nobody has anything to do");
        stuck = if next > now { 0 } else { stuck + 1 };
        assert!(stuck < 1000, "time stands still");
        now = next.max(now);
        assert!(now < Duration::from_secs(4000), "it takes too long");
    }
    assert!(got_up == up, "up: {} of {} bytes", got_up.len(), up.len());
    assert!(got_down == down, "down: {} of {} bytes", got_down.len(), down.len());
    assert!(flow.unwrap().is_finished());
}

/// Both ended at once, and the peer did not hear that its end was heard.
#[test]
fn an_end_is_acknowledged_again() {
    exchange(true, 180_713, 241_869, 0, 0, 11_965_571_926_871_064_990);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_calm_network_carries_everything(v4: bool, up in 0usize..300_000, down in 0usize..300_000, seed: u64) {
        exchange(v4, up, down, 0, 0, seed);
    }

    #[test]
    fn a_bad_network_carries_everything(
        v4: bool,
        up in 0usize..60_000,
        down in 0usize..60_000,
        loss in 0u64..150,
        twice in 0u64..150,
        seed: u64,
    ) {
        exchange(v4, up, down, loss, twice, seed);
    }

    /// Segments near the truth, in any order and with any flags, between calls of the user.
    #[test]
    fn anything_is_survived(
        v4: bool,
        moves in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>(), 0usize..3000), 1..60),
    ) {
        let mut peer = Peer::new(v4);
        peer.poll(Duration::ZERO);
        let syn = peer.wire.sent.pop_front().unwrap();
        let mut flow = TcpFlow::new(Duration::ZERO, &syn, 1, &settings()).unwrap();
        let (at, isn) = (if v4 { 20 } else { 40 }, flow.isn());
        let mut out = Outgoing::new();
        prop_assert!(flow.poll_transmit(Duration::ZERO, &mut out));
        let view = View::parse(out.packet()).unwrap();
        let own = Segment::parse(&view).unwrap().sequence;
        for (step, (what, sequence, acknowledgement, window, length)) in moves.into_iter().enumerate() {
            let now = Duration::from_millis(step as u64 * 700);
            match what & 7 {
                0 => drop(flow.send(&vec![1; length])),
                1 => drop(flow.recv(&mut vec![0; length])),
                2 if what > 200 => flow.close(),
                3 if what > 230 => flow.abort(),
                _ => {
                    let mut packet = syn[..at].to_vec();
                    packet.extend_from_slice(&syn[at..at + 4]);
                    packet.extend_from_slice(&isn.wrapping_add(u32::from(sequence % 5000)).to_be_bytes());
                    packet.extend_from_slice(&own.wrapping_add(u32::from(acknowledgement % 5000)).to_be_bytes());
                    // Mostly acknowledgements.
                    let flags = if what & 0x80 == 0 { 0x10 | what >> 6 & 9 } else { what >> 2 & 0x1f };
                    packet.extend_from_slice(&[0x50, flags]);
                    packet.extend_from_slice(&window.to_be_bytes());
                    packet.extend_from_slice(&[0, 0, 0, 0]);
                    packet.extend(std::iter::repeat_n(9, length));
                    packet::finish(&mut packet, at, TCP);
                    let view = View::parse(&packet).unwrap();
                    flow.handle_packet(now, &packet, &Segment::parse(&view).unwrap(), &mut out);
                }
            }
            let mut sent = 0;
            while flow.poll_transmit(now, &mut out) {
                sent += 1;
                prop_assert!(sent < 1000);
            }
            prop_assert!(flow.poll_timeout(now).is_none() || !flow.is_over());
        }
    }
}

/// A flow whose handshake is over, and its peer.
fn opened() -> (TcpFlow, Peer, Outgoing) {
    let (mut peer, mut out) = (Peer::new(true), Outgoing::new());
    peer.poll(Duration::ZERO);
    let syn = peer.wire.sent.pop_front().unwrap();
    let mut flow = TcpFlow::new(Duration::ZERO, &syn, 3, &settings()).unwrap();
    talk(&mut flow, &mut peer, &mut out);
    assert!(flow.is_open());
    (flow, peer, out)
}

fn talk(flow: &mut TcpFlow, peer: &mut Peer, out: &mut Outgoing) {
    for _ in 0..20 {
        while flow.poll_transmit(Duration::ZERO, out) {
            let mut segments = Segments::new(out.packet(), flow.mss()).unwrap();
            while let Some(segment) = segments.next() {
                peer.receive(Duration::ZERO, segment.to_vec());
            }
        }
        peer.poll(Duration::ZERO);
        for packet in std::mem::take(&mut peer.wire.sent) {
            let view = View::parse(&packet).unwrap();
            if flow.handle_packet(Duration::ZERO, &packet, &Segment::parse(&view).unwrap(), out) {
                peer.receive(Duration::ZERO, out.packet().to_vec());
            }
        }
    }
}

#[test]
fn a_reset_is_told_after_what_came_before() {
    let (mut flow, mut peer, mut out) = opened();
    peer.socket().send_slice(b"last words").unwrap();
    talk(&mut flow, &mut peer, &mut out);
    peer.socket().abort();
    talk(&mut flow, &mut peer, &mut out);
    assert_eq!(flow.broken(), Some(Broken::Reset));
    assert!(flow.is_readable() && flow.is_writable() && flow.is_over());
    let mut bytes = [0; 100];
    assert_eq!(flow.recv(&mut bytes).unwrap(), 10);
    assert_eq!(flow.recv(&mut bytes).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(flow.send(b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn an_abort_resets_the_peer() {
    let (mut flow, mut peer, mut out) = opened();
    flow.abort();
    talk(&mut flow, &mut peer, &mut out);
    assert!(flow.is_over());
    assert_eq!(peer.socket().state(), State::Closed);
    assert!(peer.socket().recv_slice(&mut [0; 1]).is_err_and(|e| e == RecvError::InvalidState));
}

#[test]
fn halves_end_on_their_own() {
    let (mut flow, mut peer, mut out) = opened();
    flow.close();
    talk(&mut flow, &mut peer, &mut out);
    assert!(!peer.socket().may_recv() && peer.socket().may_send());
    assert_eq!(flow.send(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    peer.socket().send_slice(b"still here").unwrap();
    peer.socket().close();
    talk(&mut flow, &mut peer, &mut out);
    assert!(flow.is_over() && !flow.is_finished());
    assert!(flow.farewell().is_some());
    let mut bytes = Vec::new();
    assert_eq!(flow.recv_buf(&mut bytes).unwrap(), 10);
    assert_eq!(flow.recv_buf(&mut bytes).unwrap(), 0);
    assert_eq!(bytes, b"still here");
    assert!(flow.is_finished() && flow.broken().is_none());
}

#[test]
fn the_segment_size_is_the_peers_and_the_paths() {
    let (mut flow, ..) = opened();
    assert_eq!(flow.mss(), 1460);
    flow.handle_path_mtu(1280);
    assert_eq!(flow.mss(), 1240);
    // Larger again: not learned this way. Absurdly small: not believed.
    flow.handle_path_mtu(1400);
    assert_eq!(flow.mss(), 1240);
    flow.handle_path_mtu(68);
    assert_eq!(flow.mss(), LEAST_V4);
}

#[test]
fn a_silent_peer_is_given_up() {
    let (mut flow, _peer, mut out) = opened();
    flow.send(&[1; 100]).unwrap();
    let mut now = Duration::ZERO;
    while flow.broken().is_none() {
        while flow.poll_transmit(now, &mut out) {}
        if flow.is_over() {
            break;
        }
        now = flow.poll_timeout(now).unwrap().max(now + Duration::from_millis(1));
    }
    assert_eq!(flow.broken(), Some(Broken::TimedOut));
    assert!(now >= settings().patience && now < settings().patience + Duration::from_secs(61));
}

#[test]
fn what_is_no_syn_begins_nothing() {
    let mut peer = Peer::new(true);
    peer.poll(Duration::ZERO);
    let mut syn = peer.wire.sent.pop_front().unwrap();
    assert!(TcpFlow::new(Duration::ZERO, &syn, 1, &settings()).is_some());
    assert!(TcpFlow::new(Duration::ZERO, &syn[..30], 1, &settings()).is_none());
    syn[33] = 0x12;
    assert!(TcpFlow::new(Duration::ZERO, &syn, 1, &settings()).is_none());
    syn[33] = 0x02;
    syn[16] = 224;
    assert!(TcpFlow::new(Duration::ZERO, &syn, 1, &settings()).is_none());
}
