//! ICMP errors and resets: how a sender learns that its packet did not arrive.

use tpx_core::dial::DialFailure;

use super::{ICMP, ICMP_MAX, ICMP6, ICMP6_MAX, Segment, TCP, answer, finish, is_v4};

/// How much of a packet an error about it may quote.
pub(crate) fn quotable(packet: &[u8]) -> &[u8] {
    let most = if is_v4(packet) { ICMP_MAX - 28 } else { ICMP6_MAX - 48 };
    &packet[..packet.len().min(most)]
}

/// Destination unreachable, quoting `packet`; `None` for silence. "Refused" is "port unreachable".
pub(crate) fn unreachable(packet: &[u8], why: DialFailure) -> Option<Vec<u8>> {
    let (kind, code) = match (why, is_v4(packet)) {
        (DialFailure::TimedOut, _) => return None,
        (DialFailure::Refused, true) => (3, 3),  // ECONNREFUSED
        (DialFailure::Refused, false) => (1, 4), // ECONNREFUSED
        (DialFailure::HostUnreachable | DialFailure::Tunnel, true) => (3, 1), // EHOSTUNREACH
        (DialFailure::HostUnreachable | DialFailure::Tunnel, false) => (1, 3), // EHOSTUNREACH
        (DialFailure::NetworkUnreachable, true) => (3, 0), // ENETUNREACH
        (DialFailure::NetworkUnreachable, false) => (1, 0), // ENETUNREACH
        (DialFailure::Prohibited, true) => (3, 13), // EHOSTUNREACH
        (DialFailure::Prohibited, false) => (1, 1), // EACCES
    };
    Some(error(packet, kind, code, 0))
}

/// "Fragmentation needed" (RFC 1191) or "packet too big" (RFC 8201), quoting `packet`.
pub(crate) fn too_big(packet: &[u8], mtu: u32) -> Vec<u8> {
    if is_v4(packet) { error(packet, 3, 4, mtu.min(0xffff)) } else { error(packet, 2, 0, mtu) }
}

/// Nobody here speaks the protocol of `packet`; `next_header` is where in an IPv6 packet it is named (RFC 4443 3.4).
pub(crate) fn protocol_unreachable(packet: &[u8], next_header: usize) -> Vec<u8> {
    if is_v4(packet) { error(packet, 3, 2, 0) } else { error(packet, 4, 1, next_header as u32) }
}

/// An ICMP error whose second word is `word`.
fn error(packet: &[u8], kind: u8, code: u8, word: u32) -> Vec<u8> {
    let mut answer = answer(packet, ICMP, ICMP6);
    let at = answer.len();
    answer.extend_from_slice(&[kind, code, 0, 0]);
    answer.extend_from_slice(&word.to_be_bytes());
    answer.extend_from_slice(quotable(packet));
    finish(&mut answer, at, if is_v4(packet) { ICMP } else { ICMP6 });
    answer
}

/// The reset for a segment of no connection (RFC 9293, 3.10.7.1). The segment is no reset itself.
pub(crate) fn reset(packet: &[u8], segment: &Segment<'_>) -> Vec<u8> {
    let length = segment.payload.len() as u32 + u32::from(segment.is_syn()) + u32::from(segment.is_fin());
    let (sequence, acknowledged, flags) = if segment.is_ack() {
        (segment.acknowledgement, 0, 0x04)
    } else {
        (0, segment.sequence.wrapping_add(length), 0x14)
    };
    let mut answer = answer(packet, TCP, TCP);
    let at = answer.len();
    answer.extend_from_slice(&segment.destination.to_be_bytes());
    answer.extend_from_slice(&segment.source.to_be_bytes());
    answer.extend_from_slice(&sequence.to_be_bytes());
    answer.extend_from_slice(&acknowledged.to_be_bytes());
    answer.extend_from_slice(&[0x50, flags, 0, 0, 0, 0, 0, 0]);
    finish(&mut answer, at, TCP);
    answer
}

#[cfg(test)]
mod tests {
    use super::{
        super::{View, check::assert_sound, datagram},
        *,
    };

    fn sample(v4: bool, payload: usize) -> Vec<u8> {
        let (a, b) = if v4 { ("198.18.7.1:9", "10.96.0.10:53") } else { ("[fd00::1]:9", "[fd96::a]:53") };
        datagram(a.parse().unwrap(), b.parse().unwrap(), &vec![7; payload]).unwrap()
    }

    #[test]
    fn a_datagram_is_refused_as_a_port() {
        for (v4, at, expected) in [(true, 20, [3, 3]), (false, 40, [1, 4])] {
            let packet = sample(v4, 3000);
            let error = unreachable(&packet, DialFailure::Refused).unwrap();
            assert_sound(&error);
            assert_eq!(error[at..at + 2], expected);
            assert_eq!(error.len(), if v4 { ICMP_MAX } else { ICMP6_MAX });
            assert_eq!(error[at + 8..], packet[..error.len() - at - 8]);
        }
    }

    #[test]
    fn too_big_names_the_mtu() {
        let v4 = too_big(&sample(true, 3000), 1280);
        assert_sound(&v4);
        assert_eq!(v4[20..28], [3, 4, v4[22], v4[23], 0, 0, 5, 0]);
        let v6 = too_big(&sample(false, 3000), 1280);
        assert_sound(&v6);
        assert_eq!(v6[40..48], [2, 0, v6[42], v6[43], 0, 0, 5, 0]);
    }

    #[test]
    fn a_stray_segment_is_reset_where_it_expects_it() {
        let mut packet = answer(&sample(true, 0), TCP, TCP);
        packet.extend_from_slice(&[0, 80, 0x9c, 0x40, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(b"abc");
        finish(&mut packet, 20, TCP);
        for (flags, expected) in
            [(0x10, [0, 0, 0, 9, 0, 0, 0, 0, 0x50, 4]), (0x02, [0, 0, 0, 0, 0, 0, 0, 11, 0x50, 20])]
        {
            packet[33] = flags;
            let view = View::parse(&packet).unwrap();
            let reset = reset(&packet, &Segment::parse(&view).unwrap());
            assert_sound(&reset);
            assert_eq!(reset[20..24], [0x9c, 0x40, 0, 80]);
            assert_eq!(reset[24..34], expected);
        }
    }
}
