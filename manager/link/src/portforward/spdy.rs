//! A port-forward over SPDY/3.1.
//!
//! Old, and still what kubelets speak best: measured, the container runtime needs a quarter of the CPU that WebSocket
//! messages cost it, because it unmasks those byte by byte.

use std::io;

use bytes::{BufMut, BytesMut};

use super::{
    framed::{End, Framing, MAX_OUT, Next},
    spdy_frame::{self as frame, DATA_STREAM, ERROR_STREAM, Header, Kind},
};

/// More of the kubelet's words than this are cut off.
const MAX_WORDS: usize = 4096;
/// Payloads of control frames that are looked at have a few bytes.
const MAX_CONTROL: usize = 64;

#[derive(Default)]
pub(super) struct Spdy {
    /// The frame whose payload is being read, and how much of it is left.
    frame: Option<(Header, usize)>,
    control: BytesMut,
    words: Vec<u8>,
}

impl Spdy {
    /// What opens a port-forward to `port`.
    pub(super) fn open(port: u16) -> BytesMut {
        let mut out = BytesMut::new();
        frame::open(&mut out, port);
        out
    }

    /// Takes a piece of a payload that is no data.
    fn take(&mut self, header: Header, piece: &[u8]) {
        match header.kind {
            Kind::Data(ERROR_STREAM) => {
                let room = MAX_WORDS - self.words.len();
                self.words.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            _ => {
                let room = MAX_CONTROL - self.control.len();
                self.control.extend_from_slice(&piece[..piece.len().min(room)]);
            }
        }
    }

    /// A frame is complete.
    fn complete(&mut self, header: Header, out: &mut BytesMut) -> Option<End> {
        let control = self.control.split();
        match header.kind {
            Kind::Data(ERROR_STREAM) if header.fin && !self.words.is_empty() => {
                return Some(End::Error(io::ErrorKind::ConnectionRefused, self.words()));
            }
            // With the end of the data come words about it, if there are any, on the other stream.
            Kind::Data(DATA_STREAM) if header.fin => return Some(End::Eof),
            Kind::Ping if out.len() < MAX_OUT => frame::pong(out, &control),
            Kind::Reset => {
                let words = "the cluster reset the port-forward".to_owned();
                return Some(End::Error(io::ErrorKind::ConnectionReset, words));
            }
            Kind::GoAway => return Some(End::Eof),
            _ => {}
        }
        None
    }

    fn words(&self) -> String {
        String::from_utf8_lossy(&self.words).trim().to_owned()
    }
}

impl Framing for Spdy {
    fn next(&mut self, read: &mut BytesMut, out: &mut BytesMut) -> Next {
        loop {
            let Some((header, left)) = self.frame else {
                match Header::parse(read) {
                    Ok(Some(header)) => self.frame = Some((header, header.length)),
                    Ok(None) => return Next::More,
                    Err(words) => return Next::End(End::protocol(words)),
                }
                continue;
            };
            if left == 0 {
                self.frame = None;
                if let Some(end) = self.complete(header, out) {
                    return Next::End(end);
                }
            } else if header.kind == Kind::Data(DATA_STREAM) {
                return Next::Data(left);
            } else if read.is_empty() {
                return Next::More;
            } else {
                let piece = read.split_to(left.min(read.len()));
                self.frame = Some((header, left - piece.len()));
                self.take(header, &piece);
            }
        }
    }

    fn taken(&mut self, length: usize) {
        if let Some((_, left)) = &mut self.frame {
            *left -= length;
        }
    }

    fn cut_off(&mut self, _clean: bool) -> End {
        // SPDY says when it ends.
        End::unexpected(&self.words())
    }

    fn data(&mut self, out: &mut BytesMut, parts: &[&[u8]], length: usize) {
        out.reserve(frame::HEADER + length);
        frame::data(out, length, false);
        for part in parts {
            out.put_slice(part);
        }
    }

    fn finish(&mut self, out: &mut BytesMut) {
        frame::data(out, 0, true);
    }
}
