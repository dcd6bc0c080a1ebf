//! Cutting a large TCP segment where the device does not: what TCP segmentation offload would do.

use crate::packet::{TCP, View, finish};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;

/// The segments that a packet stands for, each in a buffer that is used again.
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    ip_header: usize,
    headers: usize,
    sequence: u32,
    mss: usize,
    next: usize,
    done: bool,
    buffer: Vec<u8>,
}

impl<'a> Segments<'a> {
    /// `None` when `packet` is no TCP packet.
    pub(crate) fn new(packet: &'a [u8], mss: u16) -> Option<Self> {
        let view = View::parse(packet)?;
        let tcp = view.body();
        let headers = view.at + usize::from(tcp.get(12)? >> 4) * 4;
        let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
        packet.get(headers..)?;
        let mss = usize::from(mss).max(1);
        Some(Self {
            packet,
            ip_header: view.at,
            headers,
            sequence,
            mss,
            next: 0,
            done: false,
            buffer: Vec::with_capacity(headers + mss),
        })
    }

    /// The next one, with all lengths and checksums right.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        if self.done {
            return None;
        }
        let payload = &self.packet[self.headers..];
        let end = (self.next + self.mss).min(payload.len());
        self.done = end == payload.len();
        self.buffer.clear();
        self.buffer.extend_from_slice(&self.packet[..self.headers]);
        self.buffer.extend_from_slice(&payload[self.next..end]);
        let tcp = &mut self.buffer[self.ip_header..];
        tcp[4..8].copy_from_slice(&self.sequence.wrapping_add(self.next as u32).to_be_bytes());
        if !self.done {
            tcp[13] &= !(FIN | PSH);
        }
        finish(&mut self.buffer, self.ip_header, TCP);
        self.next = end;
        Some(&self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Segment, check::assert_sound};

    #[test]
    fn segments_add_up() {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(&[0, 80, 1, 2, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x50, 0x19, 1, 1, 0, 0, 0, 0]);
        packet.extend((0..2500).map(|i| i as u8));
        finish(&mut packet, 20, TCP);
        let mut segments = Segments::new(&packet, 1000).unwrap();
        let (mut got, mut lengths) = (Vec::new(), Vec::new());
        while let Some(segment) = segments.next() {
            assert_sound(segment);
            let view = View::parse(segment).unwrap();
            let tcp = Segment::parse(&view).unwrap();
            assert_eq!(tcp.sequence, 0xffff_ff00_u32.wrapping_add(got.len() as u32));
            lengths.push((tcp.payload.len(), tcp.is_fin()));
            got.extend_from_slice(tcp.payload);
        }
        assert_eq!(lengths, [(1000, false), (1000, false), (500, true)]);
        assert_eq!(got, packet[40..]);
    }

    #[test]
    fn an_empty_segment_stays_one() {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(&[0, 80, 1, 2, 0, 0, 0, 9, 0, 0, 0, 1, 0x50, 0x11, 1, 1, 0, 0, 0, 0]);
        finish(&mut packet, 20, TCP);
        let mut segments = Segments::new(&packet, 1000).unwrap();
        assert_eq!(segments.next(), Some(&packet[..]));
        assert_eq!(segments.next(), None);
    }
}
