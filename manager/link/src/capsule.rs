//! Capsules (RFC 9297 section 3), pure: how datagrams travel on a byte stream.
//!
//! Known are the DATAGRAM capsule with context 0 (a UDP payload, RFC 9298 section 5) and one of tpx's own, [`REPORT`],
//! which says what became of a datagram. Everything else is skipped, however long it is, as the RFC demands.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A datagram (RFC 9297 section 3.5).
pub const DATAGRAM: u64 = 0;

/// What became of a datagram; see [`Report`](crate::datagrams::Report).
///
/// Chosen at random above the part of the space that is assigned by standards (RFC 9297 section 5.4), so that nobody
/// else means something by it; ends that do not know it skip it.
pub const REPORT: u64 = 0x2f8c_61d5;

/// Longest payload of a datagram: what fits into a UDP length field (RFC 9298 section 5).
pub const MAX_PAYLOAD: usize = 65_527;

/// Longest [`REPORT`].
const MAX_REPORT: u64 = 64;

/// Longest DATAGRAM capsule: a context and a payload.
const MAX_DATAGRAM: u64 = 8 + MAX_PAYLOAD as u64;

/// One capsule that means something here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capsule {
    /// The payload of a datagram with context 0.
    Datagram(Bytes),
    /// The value of a [`REPORT`].
    Report(Bytes),
}

/// Bytes that are no capsules; the stream has to be aborted (RFC 9297 section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A known capsule is longer than any that makes sense.
    #[error("a capsule of type {kind:#x} with {length} bytes")]
    TooLong {
        /// Its type.
        kind: u64,
        /// Its length, bytes.
        length: u64,
    },
    /// A datagram without a complete context.
    #[error("a datagram without a context")]
    NoContext,
}

impl Capsule {
    /// Its bytes on the stream.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Datagram(payload) => datagram(&[payload]),
            Self::Report(value) => encode(REPORT, None, &[value]),
        }
    }
}

/// The bytes of a datagram with context 0 whose payload is `parts`, one behind the other.
#[must_use]
pub fn datagram(parts: &[&[u8]]) -> Bytes {
    encode(DATAGRAM, Some(0), parts)
}

/// Bytes that [`datagram`] adds to a payload, at most.
pub const DATAGRAM_OVERHEAD: usize = 1 + 4 + 1;

fn encode(kind: u64, context: Option<u64>, parts: &[&[u8]]) -> Bytes {
    let length = context.map_or(0, varint_length) + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = BytesMut::with_capacity(varint_length(kind) + 8 + length);
    put_varint(&mut bytes, kind);
    put_varint(&mut bytes, length as u64);
    if let Some(context) = context {
        put_varint(&mut bytes, context);
    }
    for part in parts {
        bytes.put_slice(part);
    }
    bytes.freeze()
}

/// Finds capsules in a byte stream, however it is cut. Holds at most one known capsule and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes of an unknown capsule that are still to come.
    skip: u64,
}

impl Decoder {
    /// Takes in the next bytes of the stream. [`poll`](Self::poll) until it says `None` before the next ones.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.skip_in(&mut bytes);
        self.buffer.extend_from_slice(bytes);
    }

    /// The next capsule that means something; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`Malformed`]; nothing after it can be trusted.
    pub fn poll(&mut self) -> Result<Option<Capsule>, Malformed> {
        loop {
            let mut rest = &self.buffer[..];
            let before = rest.len();
            let (Some(kind), Some(length)) = (take_varint(&mut rest), take_varint(&mut rest)) else {
                return Ok(None);
            };
            let header = before - rest.len();
            let limit = match kind {
                DATAGRAM => MAX_DATAGRAM,
                REPORT => MAX_REPORT,
                _ => {
                    self.buffer.advance(header);
                    self.skip = length;
                    let mut rest = std::mem::take(&mut self.buffer);
                    self.skip_in(&mut rest);
                    self.buffer = rest;
                    continue;
                }
            };
            if length > limit {
                return Err(Malformed::TooLong { kind, length });
            }
            // Below the limit, so it fits.
            let length = length as usize;
            if rest.len() < length {
                self.buffer.reserve(header + length - self.buffer.len());
                return Ok(None);
            }
            self.buffer.advance(header);
            let mut value = self.buffer.split_to(length).freeze();
            if kind == REPORT {
                return Ok(Some(Capsule::Report(value)));
            }
            match take_varint(&mut value) {
                None => return Err(Malformed::NoContext),
                Some(0) if value.len() > MAX_PAYLOAD => {
                    return Err(Malformed::TooLong { kind, length: length as u64 });
                }
                Some(0) => return Ok(Some(Capsule::Datagram(value))),
                // A context that nobody registered: dropped (RFC 9298 section 4).
                Some(_) => {}
            }
        }
    }

    fn skip_in(&mut self, bytes: &mut impl Buf) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.remaining());
        bytes.advance(skipped);
        self.skip -= skipped as u64;
    }
}

/// Largest number that a variable-length integer holds (RFC 9000 section 16).
const MAX_VARINT: u64 = (1 << 62) - 1;

fn varint_length(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

fn put_varint(bytes: &mut BytesMut, value: u64) {
    debug_assert!(value <= MAX_VARINT);
    match varint_length(value) {
        1 => bytes.put_u8(value as u8),
        2 => bytes.put_u16(value as u16 | 1 << 14),
        4 => bytes.put_u32(value as u32 | 2 << 30),
        _ => bytes.put_u64(value | 3 << 62),
    }
}

/// Takes a whole variable-length integer, or nothing.
fn take_varint(bytes: &mut impl Buf) -> Option<u64> {
    let first = *bytes.chunk().first()?;
    let length = 1 << (first >> 6);
    if bytes.remaining() < length {
        return None;
    }
    Some(bytes.get_uint(length) & (u64::MAX >> (66 - 8 * length)))
}

#[cfg(test)]
mod tests;
