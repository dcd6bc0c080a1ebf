//! Packets as bytes, for every road: reading headers, building answers and errors.
//!
//! What arrives was checked by the kernel that sent it, so checksums are written here and never verified.

mod error;
mod fragment;
mod reassembly;
mod syn;
mod view;

use std::net::{IpAddr, SocketAddr};

pub(crate) use error::{protocol_unreachable, quotable, reset, too_big, unreachable};
pub(crate) use fragment::fragments;
pub(crate) use reassembly::Reassembly;
pub(crate) use syn::Syn;
pub(crate) use view::{Segment, View, ends, word};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP6: u8 = 58;
/// Most bytes of an ICMPv4 error (RFC 1812, 4.3.2.3).
const ICMP_MAX: usize = 576;
/// Most bytes of an ICMPv6 error (RFC 4443, 2.4 c).
const ICMP6_MAX: usize = 1280;
/// Time to live of what starts here.
const TTL: u8 = 64;
/// Most payload of a UDP datagram (RFC 768 over IPv4; RFC 8200 without jumbograms allows a little more).
pub(crate) const UDP_MAX: usize = 65_507;

/// A UDP datagram in one packet, of whatever size. `None` when the addresses are of two families or the payload has more
/// than [`UDP_MAX`] bytes.
pub(crate) fn datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > UDP_MAX {
        return None;
    }
    let mut packet = header(source.ip(), destination.ip(), UDP, 8 + payload.len())?;
    let at = packet.len();
    packet.extend_from_slice(&source.port().to_be_bytes());
    packet.extend_from_slice(&destination.port().to_be_bytes());
    packet.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    finish(&mut packet, at, UDP);
    Some(packet)
}

/// What an echo request or reply says (RFC 792, RFC 4443 4.1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct EchoText<'a> {
    pub(crate) request: bool,
    pub(crate) identifier: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: &'a [u8],
}

/// An echo message in one packet; `None` as for [`datagram`].
pub(crate) fn echo(source: IpAddr, destination: IpAddr, text: EchoText<'_>) -> Option<Vec<u8>> {
    if text.payload.len() > UDP_MAX {
        return None;
    }
    let (proto, kind) = match (source.is_ipv4(), text.request) {
        (true, true) => (ICMP, 8),
        (true, false) => (ICMP, 0),
        (false, true) => (ICMP6, 128),
        (false, false) => (ICMP6, 129),
    };
    let mut packet = header(source, destination, proto, 8 + text.payload.len())?;
    let at = packet.len();
    packet.extend_from_slice(&[kind, 0, 0, 0]);
    packet.extend_from_slice(&text.identifier.to_be_bytes());
    packet.extend_from_slice(&text.sequence.to_be_bytes());
    packet.extend_from_slice(text.payload);
    finish(&mut packet, at, proto);
    Some(packet)
}

/// An IP header with room for `body` bytes after it.
fn header(source: IpAddr, destination: IpAddr, proto: u8, body: usize) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(40 + body);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, TTL, proto, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, proto, TTL]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
        }
        _ => return None,
    }
    Some(packet)
}

/// An IP header from where `packet` went to where it came from.
fn answer(packet: &[u8], v4: u8, v6: u8) -> Vec<u8> {
    let b = packet;
    if is_v4(b) {
        [&[0x45, 0, 0, 0, 0, 0, 0, 0, TTL, v4, 0, 0], &b[16..20], &b[12..16]].concat()
    } else {
        [&[0x60, 0, 0, 0, 0, 0, v6, TTL], &b[24..40], &b[8..24]].concat()
    }
}

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// Writes lengths and checksums (RFC 1071) of a packet whose IP header has `at` bytes.
pub(crate) fn finish(packet: &mut [u8], at: usize, proto: u8) {
    let (total, body) = (packet.len() as u16, (packet.len() - at) as u16);
    let pseudo = if is_v4(packet) {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        finish_ipv4(&mut packet[..at]);
        if proto == ICMP { 0 } else { pseudo(packet, proto, body) }
    } else {
        let rest = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&rest.to_be_bytes());
        pseudo(packet, proto, body)
    };
    let field = at
        + match proto {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
    packet[field..field + 2].fill(0);
    let mut whole = fold(sum(pseudo, &packet[at..]));
    if proto == UDP && whole == [0, 0] {
        whole = [0xff, 0xff]; // zero means "no checksum" (RFC 768)
    }
    packet[field..field + 2].copy_from_slice(&whole);
}

/// Writes the checksum of an IPv4 header.
fn finish_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let whole = fold(sum(0, header));
    header[10..12].copy_from_slice(&whole);
}

/// The sum over a pseudo header (RFC 9293 3.1, RFC 8200 8.1), not folded.
pub(crate) fn pseudo(packet: &[u8], proto: u8, body: u16) -> u32 {
    let start = u32::from(proto) + u32::from(body);
    sum(start, if is_v4(packet) { &packet[12..20] } else { &packet[8..40] })
}

/// Adds 16-bit words; at most 64 KiB of them, so that 32 bits hold the carries.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let (words, odd) = bytes.as_chunks::<2>();
    let all: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    start + all + odd.first().map_or(0, |b| u32::from(*b) << 8)
}

/// The checksum that belongs to a sum.
pub(crate) fn fold(sum: u32) -> [u8; 2] {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (!(twice as u16)).to_be_bytes()
}

#[cfg(test)]
pub(crate) mod check {
    /// A receiver's checks, written apart from the code they check: every sum over data and checksum is all ones.
    pub(crate) fn assert_sound(p: &[u8]) {
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
}
