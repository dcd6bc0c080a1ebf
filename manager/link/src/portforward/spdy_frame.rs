//! SPDY/3.1 frames, pure: as much as a port-forward needs.
//!
//! Headers are zlib streams with a preset dictionary in SPDY. The few that are sent here are "compressed" into stored
//! blocks, which refer to no dictionary; those that come are not needed and skipped.

use bytes::{Buf, BufMut, BytesMut};

/// The stream on which the kubelet says what is wrong.
pub(super) const ERROR_STREAM: u32 = 1;
/// The stream of the bytes themselves.
pub(super) const DATA_STREAM: u32 = 3;
/// Longest payload of a data frame (24 bits).
pub(super) const MAX_DATA: usize = (1 << 24) - 1;
/// Bytes before each frame's payload.
pub(super) const HEADER: usize = 8;

const FIN: u8 = 0x01;
const CONTROL: u32 = 1 << 31;
const VERSION_3: u32 = 3 << 16;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) fin: bool,
    /// Bytes of payload.
    pub(super) length: usize,
}

/// Kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of this stream.
    Data(u32),
    Reset,
    Ping,
    GoAway,
    /// Replies, settings, window updates: nothing to do with.
    Other,
}

impl Header {
    /// Takes a header from the front of `buf`; `None` when more bytes are needed.
    pub(super) fn parse(buf: &mut BytesMut) -> Result<Option<Self>, &'static str> {
        let Some(bytes) = buf.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, flags, lengths @ ..] = *bytes;
        let (word, [x, y, z]) = (u32::from_be_bytes([a, b, c, d]), lengths);
        let kind = if word & CONTROL == 0 {
            Kind::Data(word)
        } else {
            if word & 0x7fff_0000 != VERSION_3 {
                return Err("the port-forward does not speak SPDY/3");
            }
            match word & 0xffff {
                3 => Kind::Reset,
                6 => Kind::Ping,
                7 => Kind::GoAway,
                _ => Kind::Other,
            }
        };
        buf.advance(HEADER);
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        Ok(Some(Self { kind, fin: matches!(kind, Kind::Data(_)) && flags & FIN != 0, length }))
    }
}

/// Opens both streams of a port-forward to `port`. Nothing is ever sent on the error stream: its half ends at once.
pub(super) fn open(out: &mut BytesMut, port: u16) {
    let port = port.to_string();
    for (stream, kind, flags) in [(ERROR_STREAM, "error", FIN), (DATA_STREAM, "data", 0)] {
        let headers = [("streamtype", kind), ("port", &port), ("requestid", "0")];
        syn_stream(out, stream, flags, &headers);
    }
}

fn syn_stream(out: &mut BytesMut, stream: u32, flags: u8, headers: &[(&str, &str)]) {
    let mut block = BytesMut::new();
    block.put_u32(headers.len() as u32);
    for (name, value) in headers {
        for text in [name, value] {
            block.put_u32(text.len() as u32);
            block.put_slice(text.as_bytes());
        }
    }
    let mut compressed = BytesMut::new();
    // One zlib stream goes through all header blocks of the connection, and starts with the first.
    if stream == ERROR_STREAM {
        compressed.put_slice(&[0x78, 0x01]);
    }
    // A stored block (RFC 1951 section 3.2.4), then an empty one, which makes the reader hand out what it has.
    for part in [&block[..], &[]] {
        let length = part.len() as u16;
        compressed.put_u8(0);
        compressed.put_u16_le(length);
        compressed.put_u16_le(!length);
        compressed.put_slice(part);
    }
    control(out, 1, flags, 10 + compressed.len());
    out.put_u32(stream);
    // Associated stream, priority, slot: none.
    out.put_slice(&[0; 6]);
    out.put_slice(&compressed);
}

/// Answers a ping with itself.
pub(super) fn pong(out: &mut BytesMut, id: &[u8]) {
    control(out, 6, 0, id.len());
    out.put_slice(id);
}

/// The header of `length` bytes of data.
pub(super) fn data(out: &mut BytesMut, length: usize, fin: bool) {
    debug_assert!(length <= MAX_DATA);
    out.put_u32(DATA_STREAM);
    out.put_u32(u32::from(if fin { FIN } else { 0 }) << 24 | length as u32);
}

fn control(out: &mut BytesMut, kind: u32, flags: u8, length: usize) {
    out.put_u32(CONTROL | VERSION_3 | kind);
    out.put_u32(u32::from(flags) << 24 | length as u32);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_streams_are_opened() {
        let mut out = BytesMut::new();
        open(&mut out, 8081);
        assert_eq!(out[..4], [0x80, 3, 0, 1]);
        for (flags, stream, zlib) in [(FIN, 1, 2), (0, 3, 0)] {
            assert_eq!(out[4], flags);
            let header = Header::parse(&mut out).unwrap().unwrap();
            assert_eq!(header.kind, Kind::Other);
            let payload = out.split_to(header.length);
            assert_eq!(payload[..4], [0, 0, 0, stream]);
            let stored = &payload[10 + zlib..];
            let length = u16::from_le_bytes([stored[1], stored[2]]);
            assert_eq!(u16::from_le_bytes([stored[3], stored[4]]), !length);
            let (block, flush) = stored[5..].split_at(usize::from(length));
            assert_eq!(block[..4], [0, 0, 0, 3]);
            assert_eq!(flush, [0, 0, 0, 0xff, 0xff]);
        }
        assert!(out.is_empty());
    }

    #[test]
    fn data_has_a_short_header() {
        let mut out = BytesMut::new();
        data(&mut out, 70_000, false);
        data(&mut out, 0, true);
        let header = Header { kind: Kind::Data(DATA_STREAM), fin: false, length: 70_000 };
        assert_eq!(Header::parse(&mut out), Ok(Some(header)));
        let header = Header { kind: Kind::Data(DATA_STREAM), fin: true, length: 0 };
        assert_eq!(Header::parse(&mut out), Ok(Some(header)));
        assert_eq!(Header::parse(&mut out), Ok(None));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = Header::parse(&mut BytesMut::from(&bytes[..]));
        }
    }
}
