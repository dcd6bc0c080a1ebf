//! Where things are in a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Most IPv6 extension headers that are walked; more is no honest packet.
const EXTENSIONS: usize = 8;
const FRAGMENT: u8 = 44;

/// An IP packet, looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    /// The packet without what may follow it.
    pub(crate) packet: &'a [u8],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// What the body is, after IPv6 extension headers.
    pub(crate) protocol: u8,
    /// Where in the packet `protocol` stands.
    pub(crate) protocol_at: usize,
    /// Where the body begins.
    pub(crate) at: usize,
    pub(crate) fragment: Option<Fragment>,
}

/// Which part of a packet a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) identification: u32,
    /// In bytes.
    pub(crate) offset: usize,
    /// More follow.
    pub(crate) more: bool,
}

impl<'a> View<'a> {
    /// `None` when it is no IP packet, or shorter than it says.
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Self> {
        Self::parse_part(packet, false)
    }

    /// The same of a packet that an ICMP error quotes: its end may be missing.
    pub(crate) fn parse_quoted(packet: &'a [u8]) -> Option<Self> {
        Self::parse_part(packet, true)
    }

    fn parse_part(packet: &'a [u8], quoted: bool) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet, quoted),
            6 => Self::parse_v6(packet, quoted),
            _ => None,
        }
    }

    fn parse_v4(packet: &'a [u8], quoted: bool) -> Option<Self> {
        let head: &[u8; 20] = packet.first_chunk()?;
        let at = usize::from(head[0] & 15) * 4;
        let total = usize::from(word(head, 2)?);
        if at < 20 || total < at {
            return None;
        }
        let part = word(head, 6)?;
        let fragment = Fragment {
            identification: word(head, 4)?.into(),
            offset: usize::from(part & 0x1fff) * 8,
            more: part & 0x2000 != 0,
        };
        Some(Self {
            packet: cut(packet, total, quoted).filter(|p| p.len() >= at)?,
            source: Ipv4Addr::from(*head[12..].first_chunk()?).into(),
            destination: Ipv4Addr::from(*head[16..].first_chunk()?).into(),
            protocol: head[9],
            protocol_at: 9,
            at,
            fragment: (fragment.more || fragment.offset > 0).then_some(fragment),
        })
    }

    fn parse_v6(packet: &'a [u8], quoted: bool) -> Option<Self> {
        let head: &[u8; 40] = packet.first_chunk()?;
        let packet = cut(packet, 40 + usize::from(word(head, 4)?), quoted)?;
        let mut view = Self {
            packet,
            source: Ipv6Addr::from(*head[8..].first_chunk()?).into(),
            destination: Ipv6Addr::from(*head[24..].first_chunk()?).into(),
            protocol: head[6],
            protocol_at: 6,
            at: 40,
            fragment: None,
        };
        for _ in 0..EXTENSIONS {
            let length = match view.protocol {
                // Hop-by-hop options, routing, destination options (RFC 8200, 4).
                0 | 43 | 60 => 8 + 8 * usize::from(*packet.get(view.at + 1)?),
                FRAGMENT => {
                    let part = word(packet, view.at + 2)?;
                    let fragment = Fragment {
                        identification: u32::from_be_bytes(*packet.get(view.at + 4..)?.first_chunk()?),
                        offset: usize::from(part & 0xfff8),
                        more: part & 1 != 0,
                    };
                    view.fragment = Some(fragment);
                    8
                }
                _ => return Some(view),
            };
            view.protocol = *packet.get(view.at)?;
            view.protocol_at = view.at;
            view.at += length;
            if view.at > packet.len() {
                return None;
            }
            // What follows a fragment header is only there in the first fragment.
            if view.fragment.is_some_and(|f| f.offset > 0) {
                return Some(view);
            }
        }
        None
    }

    /// What follows the headers.
    pub(crate) fn body(&self) -> &'a [u8] {
        &self.packet[self.at..]
    }

    /// Whether both ends are single hosts, so that an answer can be sent.
    pub(crate) fn is_unicast(&self) -> bool {
        let one = |ip: IpAddr| !ip.is_multicast() && !ip.is_unspecified() && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
        one(self.source) && one(self.destination)
    }
}

fn cut(packet: &[u8], total: usize, quoted: bool) -> Option<&[u8]> {
    packet.get(..if quoted { total.min(packet.len()) } else { total })
}

/// A TCP segment, looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    flags: u8,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// `None` when it is shorter than it says.
    pub(crate) fn parse(view: &View<'a>) -> Option<Self> {
        let body = view.body();
        let head: &[u8; 20] = body.first_chunk()?;
        let at = usize::from(head[12] >> 4) * 4;
        Some(Self {
            source: word(head, 0)?,
            destination: word(head, 2)?,
            sequence: u32::from_be_bytes(*head[4..].first_chunk()?),
            acknowledgement: u32::from_be_bytes(*head[8..].first_chunk()?),
            flags: head[13],
            options: body.get(20..at)?,
            payload: body.get(at..)?,
        })
    }

    pub(crate) fn is_fin(&self) -> bool {
        self.flags & 0x01 != 0
    }

    pub(crate) fn is_syn(&self) -> bool {
        self.flags & 0x02 != 0
    }

    pub(crate) fn is_rst(&self) -> bool {
        self.flags & 0x04 != 0
    }

    pub(crate) fn is_ack(&self) -> bool {
        self.flags & 0x10 != 0
    }

    /// Where in `options` the value of the maximum segment size stands.
    pub(crate) fn mss_at(&self) -> Option<usize> {
        let mut at = 0;
        loop {
            match *self.options.get(at)? {
                0 => return None,
                1 => at += 1,
                2 if self.options.get(at + 1) == Some(&4) && self.options.len() >= at + 4 => return Some(at + 2),
                _ => at += usize::from(*self.options.get(at + 1)?).max(2),
            }
        }
    }

    /// The largest segment that its sender takes, if it says.
    pub(crate) fn mss(&self) -> Option<u16> {
        word(self.options, self.mss_at()?)
    }
}

/// Both ends with their ports; of TCP or UDP.
pub(crate) fn ends(view: &View<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let body = view.body();
    Some(((view.source, word(body, 0)?).into(), (view.destination, word(body, 2)?).into()))
}

/// The 16-bit number at a place.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{TCP, UDP, datagram, fragments},
        *,
    };

    #[test]
    fn extension_headers_are_walked() {
        let (a, b) = ("[fd00::1]:9".parse().unwrap(), "[fd96::a]:53".parse().unwrap());
        let mut p = datagram(a, b, b"name?").unwrap();
        // Destination options of 16 bytes, then hop-by-hop of 8, then UDP.
        p[6] = 60;
        p[5] += 24;
        p.splice(40..40, [0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, UDP, 0, 1, 4, 0, 0, 0, 0]);
        let view = View::parse(&p).unwrap();
        assert_eq!((view.protocol, view.protocol_at, view.at), (UDP, 56, 64));
        assert_eq!(ends(&view), Some((a, b)));
        assert!(view.fragment.is_none());
    }

    #[test]
    fn the_segment_size_is_found_behind_other_options() {
        let mut p = vec![0x45, 0, 0, 52, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        p.extend_from_slice(&[0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x80, 2, 0, 0, 0, 0, 0, 0]);
        p.extend_from_slice(&[1, 1, 4, 2, 3, 3, 7, 2, 4, 0x05, 0xb4, 0]);
        let view = View::parse(&p).unwrap();
        let segment = Segment::parse(&view).unwrap();
        assert_eq!(segment.mss(), Some(1460));
        assert!(segment.is_syn() && !segment.is_ack());
        assert_eq!((segment.sequence, segment.acknowledgement), (3, 4));
    }

    #[test]
    fn fragments_say_which_part_they_are() {
        for (a, b) in [("10.0.0.1:9", "10.0.0.2:53"), ("[fd00::1]:9", "[fd96::a]:53")] {
            let whole = datagram(a.parse().unwrap(), b.parse().unwrap(), &[7; 3000]).unwrap();
            let parts: Vec<_> =
                fragments(whole, 1280, 77).iter().map(|p| View::parse(p).unwrap().fragment.unwrap()).collect();
            assert_eq!(parts.len(), 3);
            assert!(parts[0].offset == 0 && parts[0].more && parts[1].more && !parts[2].more);
            assert!(parts.iter().all(|f| f.identification == 77));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0u8..16) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 15;
            }
            if let Some(view) = View::parse(&bytes) {
                prop_assert!(view.at <= view.packet.len());
                let _ = (view.body(), ends(&view));
                if let Some(segment) = Segment::parse(&view) {
                    let _ = (segment.mss(), super::super::reset(view.packet, &segment));
                }
            }
        }
    }
}
