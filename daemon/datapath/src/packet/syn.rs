//! A SYN as bytes: finishing one that was held, and answering it with an error.
//!
//! What `connect()` returns for an ICMP error is fixed by the kernel: `icmp_err_convert` in net/ipv4/icmp.c,
//! `icmpv6_err_convert` in net/ipv6/icmp.c. IPv4 has no code for `EACCES`.

use std::net::SocketAddr;

use tpx_core::{
    dial::DialFailure,
    syngate::{Attempt, FlowKey, Proto},
};

use super::{TCP, answer, finish, unreachable};

/// A SYN as a listener takes it: lengths and checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Syn {
    attempt: Attempt,
    ip_header: usize,
    bytes: Vec<u8>,
}

impl Syn {
    /// Finishes a SYN between these two. `None` if it is no IP packet of that length.
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, ip: &[u8], tcp: &[u8]) -> Option<Self> {
        let least = match ip.first()? >> 4 {
            4 => 20,
            6 => 40,
            _ => return None,
        };
        if ip.len() < least || tcp.len() < 20 {
            return None;
        }
        let isn = u32::from_be_bytes(*tcp[4..].first_chunk()?);
        let key = FlowKey::new(Proto::Tcp, source, destination);
        let mut bytes = [ip, tcp].concat();
        finish(&mut bytes, ip.len(), TCP);
        Some(Self { attempt: Attempt { key, isn }, ip_header: ip.len(), bytes })
    }

    /// Whose SYN it is.
    pub(crate) fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The packet.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The packet that makes `connect()` fail like that; `None` for silence.
    pub(crate) fn refusal(&self, why: DialFailure) -> Option<Vec<u8>> {
        if why == DialFailure::Refused { Some(self.reset()) } else { unreachable(&self.bytes, why) }
    }

    /// RST and ACK (RFC 9293, 3.5.2).
    fn reset(&self) -> Vec<u8> {
        let tcp = &self.bytes[self.ip_header..];
        let ack = self.attempt.isn.wrapping_add(1);
        let mut packet = answer(&self.bytes, TCP, TCP);
        let at = packet.len();
        packet.extend_from_slice(&[tcp[2], tcp[3], tcp[0], tcp[1], 0, 0, 0, 0]);
        packet.extend_from_slice(&ack.to_be_bytes());
        packet.extend_from_slice(&[0x50, 0x14, 0, 0, 0, 0, 0, 0]);
        finish(&mut packet, at, TCP);
        packet
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{ICMP_MAX, ICMP6_MAX, check::assert_sound},
        *,
    };

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

    fn ends(v4: bool) -> (SocketAddr, SocketAddr) {
        if v4 {
            (([198, 18, 7, 1], 40000).into(), ([10, 96, 0, 10], 80).into())
        } else {
            (([0xfdfd; 8], 40000).into(), ([0xfcfc; 8], 80).into())
        }
    }

    fn syn(v4: bool, options: usize, payload: &[u8]) -> Syn {
        let (ip_header, packet) = raw(v4, options, payload);
        let (src, dst) = ends(v4);
        Syn::new(src, dst, &packet[..ip_header], &packet[ip_header..]).unwrap()
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
        let (src, dst) = ends(true);
        let take = |ip: &[u8], tcp: &[u8]| Syn::new(src, dst, ip, tcp);
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
