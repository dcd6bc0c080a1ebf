//! A port-forward over WebSocket: RFC 6455 framing and Kubernetes' channels.

use std::io;

use bytes::{Buf, BytesMut};

use super::{
    channels::{Channels, Piece},
    frame::{self, Header, Mask, Opcode},
    framed::{End, Framing, MAX_OUT, Next},
};

pub(super) struct WebSocket {
    /// The frame whose payload is being read, and how much of it is left.
    frame: Option<(Header, u64)>,
    /// Payload of a ping or a close, until it is complete.
    control: BytesMut,
    channels: Channels,
    mask: Mask,
}

impl WebSocket {
    pub(super) fn new() -> Self {
        Self { frame: None, control: BytesMut::new(), channels: Channels::default(), mask: Mask::new() }
    }

    /// A control frame is complete.
    fn complete(&mut self, opcode: Opcode, out: &mut BytesMut) -> Option<End> {
        let payload = self.control.split();
        match opcode {
            // A pong may be left out when it would have to wait: the next one answers as well (RFC 6455 5.5.3).
            Opcode::Ping if out.len() < MAX_OUT => self.mask.append(out, Opcode::Pong, &payload, &[]),
            Opcode::Close => {
                let words = frame::close_reason(&payload);
                return Some(words.map_or(End::Eof, |words| End::Error(io::ErrorKind::ConnectionAborted, words)));
            }
            _ => {}
        }
        None
    }

    fn try_next(&mut self, read: &mut BytesMut, out: &mut BytesMut) -> Result<Next, &'static str> {
        loop {
            let Some((header, left)) = self.frame else {
                let Some(header) = Header::parse(read)? else { return Ok(Next::More) };
                self.channels.start(header.opcode)?;
                self.frame = Some((header, header.length));
                continue;
            };
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
            if header.opcode.is_control() {
                self.control.extend_from_slice(&read.split_to(here));
                let left = left - here as u64;
                self.frame = Some((header, left));
                if left > 0 {
                    return Ok(Next::More);
                }
                self.frame = None;
                if let Some(end) = self.complete(header.opcode, out) {
                    return Ok(Next::End(end));
                }
            } else if left == 0 {
                self.frame = None;
                if let Some(words) = self.channels.finish(header.fin) {
                    return Ok(Next::End(End::Error(io::ErrorKind::ConnectionRefused, words)));
                }
            } else {
                match self.channels.piece(&read[..here])? {
                    Piece::Data => return Ok(Next::Data(usize::try_from(left).unwrap_or(usize::MAX))),
                    Piece::Taken(0) => return Ok(Next::More),
                    Piece::Taken(length) => {
                        read.advance(length);
                        self.frame = Some((header, left - length as u64));
                    }
                }
            }
        }
    }
}

impl Framing for WebSocket {
    fn next(&mut self, read: &mut BytesMut, out: &mut BytesMut) -> Next {
        self.try_next(read, out).unwrap_or_else(|words| Next::End(End::protocol(words)))
    }

    fn taken(&mut self, length: usize) {
        if let Some((_, left)) = &mut self.frame {
            *left -= length as u64;
        }
    }

    fn cut_off(&mut self, clean: bool) -> End {
        if self.frame.is_none() && clean { End::Eof } else { End::unexpected("") }
    }

    fn data(&mut self, out: &mut BytesMut, parts: &[&[u8]], _length: usize) {
        self.mask.append(out, Opcode::Binary, &[Channels::DATA], parts);
    }

    fn finish(&mut self, out: &mut BytesMut) {
        self.mask.append(out, Opcode::Close, &frame::NORMAL_CLOSE, &[]);
    }
}
