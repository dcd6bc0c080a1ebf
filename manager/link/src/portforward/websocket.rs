//! The WebSocket side of a port-forward: RFC 6455 framing and Kubernetes' channels, as one byte stream.
//!
//! Everything happens inside `poll_read` and `poll_write`: no task, no queue, so reading and writing never wait for each
//! other and what is not read is not fetched. Outgoing bytes are copied once, masked on the way; large incoming
//! messages go straight into the reader's buffer. Meant for one task that both reads and writes, as h2's is.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    channels::{Channels, Piece},
    frame::{self, Header, Mask, Opcode},
};

/// Data of one outgoing message at most; holds one HTTP/2 frame with its header.
const MAX_MESSAGE: usize = 128 << 10;
/// Outgoing bytes that may wait here.
const MAX_OUT: usize = 160 << 10;
/// How much is read at once when it is not known yet what comes.
const READ_AHEAD: usize = 16 << 10;
/// Shorter rests of a message are read together with what follows.
const DIRECT: usize = 4 << 10;

pub(super) struct WebSocket<S> {
    io: S,
    read: BytesMut,
    /// The frame whose payload is being read, and how much of it is left.
    frame: Option<(Header, u64)>,
    /// Payload of a ping or a close, until it is complete.
    control: BytesMut,
    channels: Channels,
    end: Option<End>,
    out: BytesMut,
    mask: Mask,
    close_sent: bool,
}

/// Why nothing more comes.
enum End {
    Eof,
    Error(io::ErrorKind, String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    pub(super) fn new(io: S) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            frame: None,
            control: BytesMut::new(),
            channels: Channels::default(),
            end: None,
            out: BytesMut::new(),
            mask: Mask::new(),
            close_sent: false,
        }
    }

    /// Takes in what is there until data for the reader is next; `None` at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u64>>> {
        loop {
            match &self.end {
                Some(End::Eof) => return Poll::Ready(Ok(None)),
                Some(End::Error(kind, words)) => return Poll::Ready(Err(io::Error::new(*kind, words.clone()))),
                None => {}
            }
            let Some((header, left)) = self.frame else {
                match Header::parse(&mut self.read).map_err(protocol)? {
                    Some(header) => {
                        self.channels.start(header.opcode).map_err(protocol)?;
                        self.frame = Some((header, header.length));
                    }
                    None => ready!(self.poll_fill(cx))?,
                }
                continue;
            };
            if header.opcode.is_control() {
                ready!(self.poll_control(cx, header, left))?;
                continue;
            }
            if left == 0 {
                self.frame = None;
                if let Some(words) = self.channels.finish(header.fin) {
                    self.end = Some(End::Error(io::ErrorKind::ConnectionRefused, words));
                }
                continue;
            }
            let available = usize::try_from(left).unwrap_or(usize::MAX).min(self.read.len());
            match self.channels.piece(&self.read[..available]).map_err(protocol)? {
                Piece::Data => return Poll::Ready(Ok(Some(left))),
                Piece::Taken(0) => ready!(self.poll_fill(cx))?,
                Piece::Taken(length) => {
                    self.read.advance(length);
                    self.frame = Some((header, left - length as u64));
                }
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.read.reserve(READ_AHEAD);
        if ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))? == 0 {
            self.end = Some(match self.frame {
                None if self.read.is_empty() => End::Eof,
                _ => End::Error(io::ErrorKind::UnexpectedEof, "the port-forward was cut off".to_owned()),
            });
        }
        Poll::Ready(Ok(()))
    }

    fn poll_control(&mut self, cx: &mut Context<'_>, header: Header, left: u64) -> Poll<io::Result<()>> {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(self.read.len());
        self.control.extend_from_slice(&self.read.split_to(take));
        let left = left - take as u64;
        self.frame = Some((header, left));
        if left > 0 {
            return self.poll_fill(cx);
        }
        self.frame = None;
        let payload = self.control.split();
        match header.opcode {
            // A pong may be left out when it would have to wait: the next one answers as well (RFC 6455 5.5.3).
            Opcode::Ping if self.out.len() < MAX_OUT => {
                self.mask.append(&mut self.out, Opcode::Pong, &[&payload]);
                let _ = self.poll_out(cx)?;
            }
            Opcode::Close => {
                let words = frame::close_reason(&payload);
                self.end = Some(words.map_or(End::Eof, |words| End::Error(io::ErrorKind::ConnectionAborted, words)));
            }
            _ => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        // Keeps the allocation.
        self.out.clear();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let Some(left) = ready!(this.poll_data(cx))? else { return Poll::Ready(Ok(())) };
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(buf.remaining());
            let taken = if !this.read.is_empty() {
                let taken = limit.min(this.read.len());
                buf.put_slice(&this.read.split_to(taken));
                taken
            } else if limit >= DIRECT {
                // The reader's buffer may be uninitialised; `limit` keeps the next frame's header out of it.
                let mut part = (&mut *buf).limit(limit);
                let taken = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut part))?;
                if taken == 0 {
                    this.end =
                        Some(End::Error(io::ErrorKind::UnexpectedEof, "the port-forward was cut off".to_owned()));
                    continue;
                }
                taken
            } else {
                ready!(this.poll_fill(cx))?;
                continue;
            };
            if let Some((_, left)) = &mut this.frame {
                *left -= taken as u64;
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut parts: [&[u8]; 17] = [&[]; 17];
        parts[0] = &[Channels::DATA];
        let (mut count, mut length) = (1, 0);
        for buf in bufs {
            let take = buf.len().min(MAX_MESSAGE - length);
            if take == 0 || count == parts.len() {
                continue;
            }
            parts[count] = &buf[..take];
            count += 1;
            length += take;
            if take < buf.len() {
                break;
            }
        }
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if !this.out.is_empty() && this.out.len() + length > MAX_OUT {
            ready!(this.poll_out(cx))?;
        }
        this.mask.append(&mut this.out, Opcode::Binary, &parts[..count]);
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.close_sent {
            this.close_sent = true;
            this.mask.append(&mut this.out, Opcode::Close, &[&frame::NORMAL_CLOSE]);
        }
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

fn protocol(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}
