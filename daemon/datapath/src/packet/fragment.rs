//! Cutting packets that do not fit the device (RFC 791 2.3, RFC 8200 4.5).

use super::{finish_ipv4, is_v4};

const FRAGMENT: u8 = 44;

/// The packet, or its fragments when it has more than `mtu` bytes. It has no IP options or extension headers.
pub(crate) fn fragments(packet: Vec<u8>, mtu: usize, identification: u32) -> Vec<Vec<u8>> {
    if packet.len() <= mtu {
        return vec![packet];
    }
    let v4 = is_v4(&packet);
    let (head, body) = packet.split_at(if v4 { 20 } else { 40 });
    let header = head.len() + if v4 { 0 } else { 8 };
    // Every part but the last is a multiple of eight bytes long.
    let most = (mtu.saturating_sub(header) & !7).max(8);
    let parts = body.len().div_ceil(most);
    body.chunks(most)
        .enumerate()
        .map(|(index, part)| {
            let (offset, more) = (index * most, index + 1 < parts);
            let mut fragment = Vec::with_capacity(header + part.len());
            fragment.extend_from_slice(head);
            if v4 {
                fragment[2..4].copy_from_slice(&((header + part.len()) as u16).to_be_bytes());
                fragment[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
                let place = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
                fragment[6..8].copy_from_slice(&place.to_be_bytes());
                finish_ipv4(&mut fragment);
            } else {
                fragment[4..6].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
                fragment[6] = FRAGMENT;
                fragment.extend_from_slice(&[head[6], 0]);
                fragment.extend_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
                fragment.extend_from_slice(&identification.to_be_bytes());
            }
            fragment.extend_from_slice(part);
            fragment
        })
        .collect()
}
