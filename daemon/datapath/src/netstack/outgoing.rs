//! A packet on its way to the device, and what the device may do for it.

use super::PACKET_MAX;
use crate::packet::{self, TCP, View};

/// Work that is left to the device: the checksum, and cutting a large segment (checksum and TCP segmentation offload).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// Bytes of payload in each of the segments that the packet stands for; 0 when it is one already.
    pub segment: u16,
    /// Bytes of IP and TCP header.
    pub headers: u16,
    /// Where the checksum's range begins: the bytes of IP header.
    pub checksum_from: u16,
    /// Where in that range the checksum stands. It holds the sum of the pseudo header.
    pub checksum_at: u16,
}

/// Room for one packet of the largest size.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: Box<[u8]>,
    len: usize,
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; PACKET_MAX + 1].into_boxed_slice(), len: 0 }
    }

    /// The packet; empty when there is none.
    pub(crate) fn packet(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Room for a packet of `len` bytes, at most [`PACKET_MAX`].
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        &mut self.bytes[..len]
    }

    /// Leaves the rest of a TCP packet to the device, which shall cut it into segments of `mss` bytes.
    pub(crate) fn offload(&mut self, mss: u16) -> Option<Offload> {
        let view = View::parse(self.packet())?;
        let (at, body) = (view.at, view.body());
        let headers = at + usize::from(body.get(12)? >> 4) * 4;
        let payload = self.len.checked_sub(headers)?;
        let sum = packet::fold(packet::pseudo(self.packet(), TCP, (self.len - at) as u16));
        // The pseudo header's sum itself, not its complement.
        let sum = (!u16::from_be_bytes(sum)).to_be_bytes();
        self.bytes.get_mut(at + 16..at + 18)?.copy_from_slice(&sum);
        Some(Offload {
            segment: if payload > usize::from(mss) { mss } else { 0 },
            headers: headers as u16,
            checksum_from: at as u16,
            checksum_at: 16,
        })
    }
}
