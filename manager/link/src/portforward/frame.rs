//! RFC 6455 frames, pure: headers in, masked frames out.

use std::hash::{BuildHasher, RandomState};

use bytes::{Buf, BufMut, BytesMut};

/// What a frame is (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The header of a frame from the server, which never masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) length: u64,
}

impl Header {
    /// Takes a header from the front of `buf`; `None` when more bytes are needed.
    pub(super) fn parse(buf: &mut BytesMut) -> Result<Option<Self>, &'static str> {
        let [first, second, rest @ ..] = &buf[..] else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err("the server used a WebSocket extension that was not agreed on");
        }
        if second & 0x80 != 0 {
            return Err("the server masked a WebSocket frame");
        }
        let opcode = Opcode::from_bits(first & 0x0f).ok_or("unknown WebSocket opcode")?;
        let fin = first & 0x80 != 0;
        let (length, size) = match second & 0x7f {
            126 => match rest.first_chunk::<2>() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 4),
                None => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 10),
                None => return Ok(None),
            },
            length => (u64::from(length), 2),
        };
        if opcode.is_control() && (length > 125 || !fin) {
            return Err("malformed WebSocket control frame");
        }
        if length > u64::MAX >> 1 {
            return Err("impossible WebSocket frame length");
        }
        buf.advance(size);
        Ok(Some(Self { fin, opcode, length }))
    }
}

/// Makes frames with keys that nobody can predict (RFC 6455 section 5.3).
pub(super) struct Mask {
    keys: RandomState,
    count: u64,
}

impl Mask {
    pub(super) fn new() -> Self {
        Self { keys: RandomState::new(), count: 0 }
    }

    /// Appends one final frame whose payload is `first` and then `parts`.
    pub(super) fn append(&mut self, out: &mut BytesMut, opcode: Opcode, first: &[u8], parts: &[&[u8]]) {
        self.count += 1;
        let key = self.keys.hash_one(self.count) as u32;
        append_with(key.to_ne_bytes(), out, opcode, first, parts);
    }
}

fn append_with(key: [u8; 4], out: &mut BytesMut, opcode: Opcode, first: &[u8], parts: &[&[u8]]) {
    let length = first.len() + parts.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(14 + length);
    out.put_u8(0x80 | opcode.bits());
    match length {
        0..126 => out.put_u8(0x80 | length as u8),
        126..0x1_0000 => {
            out.put_u8(0x80 | 126);
            out.put_u16(length as u16);
        }
        _ => {
            out.put_u8(0x80 | 127);
            out.put_u64(length as u64);
        }
    }
    out.put_slice(&key);
    let mut at = 0;
    for part in std::iter::once(&first).chain(parts) {
        let start = out.len();
        out.put_slice(part);
        let mut turned = key;
        turned.rotate_left(at % 4);
        xor(&mut out[start..], turned);
        at += part.len();
    }
}

/// In whole words: the compiler makes vector code of it.
fn xor(bytes: &mut [u8], key: [u8; 4]) {
    let wide = u64::from(u32::from_ne_bytes(key));
    let wide = wide | wide << 32;
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Payload of our own close: 1000, "normal closure".
pub(super) const NORMAL_CLOSE: [u8; 2] = 1000_u16.to_be_bytes();

/// What the server says with its close; `None` when it is an ordinary end (1000, 1001 or no code).
pub(super) fn close_reason(payload: &[u8]) -> Option<String> {
    let (code, words) = payload.split_first_chunk::<2>()?;
    let code = u16::from_be_bytes(*code);
    if matches!(code, 1000 | 1001) {
        return None;
    }
    let words = String::from_utf8_lossy(words);
    Some(format!("the port-forward was closed with code {code} {words}").trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn masked_frames_read_back(key: [u8; 4], first in proptest::collection::vec(any::<u8>(), 0..9), parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4)) {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let payload = [first.clone(), parts.concat()].concat();
            let mut out = BytesMut::new();
            append_with(key, &mut out, Opcode::Binary, &first, &slices);
            // A client's frame is a server's frame plus the mask bit and the key.
            prop_assert_eq!(out[1] & 0x80, 0x80);
            out[1] &= 0x7f;
            let header = Header::parse(&mut out).unwrap().unwrap();
            prop_assert_eq!(header, Header { fin: true, opcode: Opcode::Binary, length: payload.len() as u64 });
            prop_assert_eq!(&out[..4], &key[..]);
            let plain: Vec<u8> = out[4..].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            prop_assert_eq!(plain, payload);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut buf = BytesMut::from(&bytes[..]);
            if let Ok(Some(header)) = Header::parse(&mut buf) {
                prop_assert!(!header.opcode.is_control() || header.length <= 125);
            }
            let _ = close_reason(&bytes);
        }
    }

    #[test]
    fn headers_wait_for_all_their_bytes() {
        let whole = [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        for length in 0..whole.len() {
            assert_eq!(Header::parse(&mut BytesMut::from(&whole[..length])), Ok(None), "{length}");
        }
        let header = Header { fin: true, opcode: Opcode::Binary, length: 65536 };
        assert_eq!(Header::parse(&mut BytesMut::from(&whole[..])), Ok(Some(header)));
    }
}
