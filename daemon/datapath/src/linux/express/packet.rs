//! Packets as bytes: finishing a held SYN, and answering it with an error.
//!
//! What `connect()` returns for an ICMP error is fixed by the kernel: `icmp_err_convert` in net/ipv4/icmp.c,
//! `icmpv6_err_convert` in net/ipv6/icmp.c. IPv4 has no code for `EACCES`.

use std::net::IpAddr;

use tpx_core::{
    dial::DialFailure,
    syngate::{Attempt, FlowKey, Proto},
};
use tpx_ebpf_abi::HeldSyn;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Most bytes of an ICMPv4 error (RFC 1812, 4.3.2.3).
const ICMP_MAX: usize = 576;
/// Most bytes of an ICMPv6 error (RFC 4443, 2.4 c).
const ICMP6_MAX: usize = 1280;
const TTL: u8 = 64;

/// A SYN as it goes to the listener: lengths and checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Syn {
    attempt: Attempt,
    ip_header: usize,
    bytes: Vec<u8>,
}

impl Syn {
    /// Finishes a SYN from the ring buffer. `None` if it is no IP packet of that length.
    pub(super) fn new(held: &HeldSyn<'_>) -> Option<Self> {
        let least = match held.ip.first()? >> 4 {
            4 => 20,
            6 => 40,
            _ => return None,
        };
        if held.ip.len() < least || held.tcp.len() < 20 {
            return None;
        }
        let isn = u32::from_be_bytes(*held.tcp[4..].first_chunk()?);
        let key = FlowKey::new(Proto::Tcp, held.flow.source(), held.flow.destination());
        let mut bytes = [held.ip, held.tcp].concat();
        finish(&mut bytes, held.ip.len(), TCP);
        Some(Self { attempt: Attempt { key, isn }, ip_header: held.ip.len(), bytes })
    }

    /// Whose SYN it is.
    pub(super) fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The packet.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the packet goes.
    pub(super) fn to(&self) -> IpAddr {
        self.attempt.key.destination().ip()
    }

    /// Where an answer goes.
    pub(super) fn back(&self) -> IpAddr {
        self.attempt.key.source().ip()
    }

    /// The packet that makes `connect()` fail like that; `None` for silence.
    pub(super) fn refusal(&self, why: DialFailure) -> Option<Vec<u8>> {
        let v4 = self.is_v4();
        let (kind, code) = match (why, v4) {
            (DialFailure::TimedOut, _) => return None,
            (DialFailure::Refused, _) => return Some(self.reset()),
            (DialFailure::HostUnreachable | DialFailure::Tunnel, true) => (3, 1), // EHOSTUNREACH
            (DialFailure::HostUnreachable | DialFailure::Tunnel, false) => (1, 3), // EHOSTUNREACH
            (DialFailure::NetworkUnreachable, true) => (3, 0),                    // ENETUNREACH
            (DialFailure::NetworkUnreachable, false) => (1, 0),                   // ENETUNREACH
            (DialFailure::Prohibited, true) => (3, 13),                           // EHOSTUNREACH
            (DialFailure::Prohibited, false) => (1, 1),                           // EACCES
        };
        Some(self.unreachable(kind, code))
    }

    fn is_v4(&self) -> bool {
        self.bytes[0] >> 4 == 4
    }

    /// RST and ACK (RFC 9293, 3.5.2).
    fn reset(&self) -> Vec<u8> {
        let tcp = &self.bytes[self.ip_header..];
        let ack = self.attempt.isn.wrapping_add(1);
        let mut packet = self.header_back(TCP, TCP);
        let at = packet.len();
        packet.extend_from_slice(&[tcp[2], tcp[3], tcp[0], tcp[1], 0, 0, 0, 0]);
        packet.extend_from_slice(&ack.to_be_bytes());
        packet.extend_from_slice(&[0x50, 0x14, 0, 0, 0, 0, 0, 0]);
        finish(&mut packet, at, TCP);
        packet
    }

    /// Destination unreachable, quoting the SYN.
    fn unreachable(&self, kind: u8, code: u8) -> Vec<u8> {
        let mut packet = self.header_back(ICMP, ICMP6);
        let at = packet.len();
        packet.extend_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
        let (proto, most) = if self.is_v4() { (ICMP, ICMP_MAX) } else { (ICMP6, ICMP6_MAX) };
        packet.extend_from_slice(&self.bytes[..self.bytes.len().min(most - packet.len())]);
        finish(&mut packet, at, proto);
        packet
    }

    /// An IP header from the asked address to the asking one.
    fn header_back(&self, v4: u8, v6: u8) -> Vec<u8> {
        let b = &self.bytes;
        if self.is_v4() {
            [&[0x45, 0, 0, 0, 0, 0, 0, 0, TTL, v4, 0, 0], &b[16..20], &b[12..16]].concat()
        } else {
            [&[0x60, 0, 0, 0, 0, 0, v6, TTL], &b[24..40], &b[8..24]].concat()
        }
    }
}

/// Writes lengths and checksums (RFC 1071) of a packet whose IP header has `at` bytes.
fn finish(packet: &mut [u8], at: usize, proto: u8) {
    let (total, body) = (packet.len() as u16, (packet.len() - at) as u16);
    let pseudo = u32::from(proto) + u32::from(body);
    let pseudo = if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[10..12].fill(0);
        let header = fold(sum(0, &packet[..at]));
        packet[10..12].copy_from_slice(&header);
        if proto == ICMP { 0 } else { sum(pseudo, &packet[12..20]) }
    } else {
        packet[4..6].copy_from_slice(&body.to_be_bytes());
        sum(pseudo, &packet[8..40])
    };
    let field = at + if proto == TCP { 16 } else { 2 };
    packet[field..field + 2].fill(0);
    let whole = fold(sum(pseudo, &packet[at..]));
    packet[field..field + 2].copy_from_slice(&whole);
}

/// Adds 16-bit words; at most 64 KiB of them, so that 32 bits hold the carries.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let (words, odd) = bytes.as_chunks::<2>();
    let all: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    start + all + odd.first().map_or(0, |b| u32::from(*b) << 8)
}

fn fold(sum: u32) -> [u8; 2] {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (!(twice as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tpx_ebpf_abi::{Flow, v4_mapped};

    use super::*;

    const V4: [u8; 8] = [198, 18, 7, 1, 10, 96, 0, 10];
    const ISN: u32 = 0xffff_ffff;

    /// A SYN as the kernel shows it: offload has left lengths and checksums unfinished.
    fn raw(v4: bool, options: usize, payload: &[u8]) -> (usize, Vec<u8>) {
        let mut p = if v4 {
            let mut p = vec![0x45 + options as u8 / 4, 0, 9, 9, 0x12, 0x34, 0x40, 0, 64, 6, 0xaa, 0xaa];
            p.extend_from_slice(&V4);
            p.resize(20 + options, 1);
            p
        } else {
            let mut p = vec![0x60, 0, 0, 0, 9, 9, 6, 64];
            p.extend_from_slice(&[0xfd; 16]);
            p.extend_from_slice(&[0xfc; 16]);
            p
        };
        let at = p.len();
        p.extend_from_slice(&[0x9c, 0x40, 0, 80]);
        p.extend_from_slice(&ISN.to_be_bytes());
        p.extend_from_slice(&[0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0xbb, 0xbb, 0, 0, 2, 4, 5, 0xb4]);
        p.extend_from_slice(payload);
        (at, p)
    }

    fn syn(v4: bool, options: usize, payload: &[u8]) -> Syn {
        let (ip_header, packet) = raw(v4, options, payload);
        let (src, dst) =
            if v4 { (v4_mapped([198, 18, 7, 1]), v4_mapped([10, 96, 0, 10])) } else { ([0xfd; 16], [0xfc; 16]) };
        let flow = Flow { src, dst, sport: [0x9c, 0x40], dport: [0, 80] };
        Syn::new(&HeldSyn { flow, ip: &packet[..ip_header], tcp: &packet[ip_header..] }).unwrap()
    }

    /// A receiver's checks, written apart from the code above: every sum over data and checksum is all ones.
    fn assert_sound(p: &[u8]) {
        let ones = |parts: &[&[u8]]| {
            let mut all = parts.concat();
            if all.len() % 2 == 1 {
                all.push(0);
            }
            let mut sum: u64 = all.chunks(2).map(|c| u64::from(c[0]) * 256 + u64::from(c[1])).sum();
            while sum > 0xffff {
                sum = sum / 65536 + sum % 65536;
            }
            sum == 0xffff
        };
        if p[0] >> 4 == 4 {
            let at = usize::from(p[0] & 15) * 4;
            assert_eq!(usize::from(p[2]) * 256 + usize::from(p[3]), p.len());
            assert!(ones(&[&p[..at]]), "IPv4 header");
            let length = ((p.len() - at) as u16).to_be_bytes();
            let pseudo = [&p[12..20], &[0, p[9]], &length].concat();
            assert!(if p[9] == 1 { ones(&[&p[at..]]) } else { ones(&[&pseudo, &p[at..]]) }, "payload");
        } else {
            assert_eq!(usize::from(p[4]) * 256 + usize::from(p[5]), p.len() - 40);
            let length = ((p.len() - 40) as u32).to_be_bytes();
            assert!(ones(&[&p[8..40], &length, &[0, 0, 0, p[6]], &p[40..]]), "payload");
        }
    }

    #[test]
    fn a_syn_is_finished_and_otherwise_as_it_was() {
        for (v4, options) in [(true, 0), (true, 8), (true, 40), (false, 0)] {
            let (at, before) = raw(v4, options, b"odd");
            let s = syn(v4, options, b"odd");
            assert_sound(s.bytes());
            assert_eq!(s.bytes()[at..at + 16], before[at..at + 16]);
            assert_eq!(s.bytes()[at + 18..], before[at + 18..]);
            assert_eq!(s.attempt().isn, ISN);
            assert_eq!(s.attempt().key.destination().port(), 80);
        }
    }

    #[test]
    fn what_is_no_ip_packet_is_not_taken() {
        let (_, mut packet) = raw(true, 0, b"");
        let take = |ip: &[u8], tcp: &[u8]| Syn::new(&HeldSyn { flow: Flow::default(), ip, tcp });
        assert!(take(&packet[..20], &packet[20..]).is_some());
        assert!(take(&packet[..20], &packet[20..39]).is_none());
        assert!(take(&packet[..19], &packet[20..]).is_none());
        assert!(take(&[], &packet[20..]).is_none());
        packet[0] = 0x65;
        assert!(take(&packet[..20], &packet[20..]).is_none());
        packet[0] = 0x75;
        assert!(take(&packet[..20], &packet[20..]).is_none());
    }

    #[test]
    fn refused_is_a_reset_that_acknowledges_the_syn() {
        for v4 in [true, false] {
            let p = syn(v4, 0, b"").refusal(DialFailure::Refused).unwrap();
            assert_sound(&p);
            let tcp = &p[if v4 { 20 } else { 40 }..];
            assert_eq!(tcp[..4], [0, 80, 0x9c, 0x40]);
            assert_eq!(tcp[8..12], [0; 4]); // the sequence number wraps
            assert_eq!(tcp[13], 0x14);
        }
    }

    #[test]
    fn errors_quote_the_syn_and_go_back_to_the_asker() {
        let code = |v4, why| {
            let s = syn(v4, 0, b"");
            let p: Vec<u8> = s.refusal(why).unwrap();
            assert_sound(&p);
            let at = if v4 { 20 } else { 40 };
            assert_eq!(p[at + 8..], *s.bytes());
            if v4 {
                assert_eq!(p[12..20], [10, 96, 0, 10, 198, 18, 7, 1]);
            } else {
                assert_eq!((p[8], p[24]), (0xfc, 0xfd));
            }
            (p[at], p[at + 1])
        };
        assert_eq!(code(true, DialFailure::HostUnreachable), (3, 1));
        assert_eq!(code(true, DialFailure::NetworkUnreachable), (3, 0));
        assert_eq!(code(true, DialFailure::Prohibited), (3, 13));
        assert_eq!(code(true, DialFailure::Tunnel), (3, 1));
        assert_eq!(code(false, DialFailure::HostUnreachable), (1, 3));
        assert_eq!(code(false, DialFailure::NetworkUnreachable), (1, 0));
        assert_eq!(code(false, DialFailure::Prohibited), (1, 1));
        assert_eq!(code(false, DialFailure::Tunnel), (1, 3));
        assert_eq!(syn(true, 0, b"").refusal(DialFailure::TimedOut), None);
    }

    proptest! {
        #[test]
        fn every_packet_is_sound_and_short_enough(
            v4: bool,
            words in 0usize..=10,
            payload in prop::collection::vec(any::<u8>(), 0..1400),
        ) {
            let s = syn(v4, if v4 { words * 4 } else { 0 }, &payload);
            assert_sound(s.bytes());
            for why in [DialFailure::Refused, DialFailure::HostUnreachable, DialFailure::Prohibited] {
                let p = s.refusal(why).unwrap();
                assert_sound(&p);
                let most = if v4 { ICMP_MAX } else { ICMP6_MAX };
                prop_assert!(p.len() <= most);
                // Ports and sequence number are always quoted.
                prop_assert!(why == DialFailure::Refused || p.len() >= s.ip_header + 8 + 28);
            }
        }
    }
}
