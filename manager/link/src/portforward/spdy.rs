//! A port-forward over SPDY/3.1, as one byte stream.
//!
//! Old, and still what kubelets speak best: measured, the container runtime needs a quarter of the CPU that WebSocket
//! messages cost it, because it unmasks those byte by byte. As with the WebSocket there is no task and no queue here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::spdy_frame::{self as frame, DATA_STREAM, ERROR_STREAM, Header, Kind};

/// Data of one frame at most; holds one HTTP/2 frame with its header.
const MAX_FRAME: usize = 128 << 10;
/// Outgoing bytes that may wait here.
const MAX_OUT: usize = 160 << 10;
/// How much is read at once when it is not known yet what comes.
const READ_AHEAD: usize = 16 << 10;
/// Shorter rests of a frame are read together with what follows.
const DIRECT: usize = 4 << 10;
/// More of the kubelet's words than this are cut off.
const MAX_WORDS: usize = 4096;
/// Payloads of control frames that are looked at have a few bytes.
const MAX_CONTROL: usize = 64;

pub(super) struct Spdy<S> {
    io: S,
    read: BytesMut,
    /// The frame whose payload is being read, and how much of it is left.
    frame: Option<(Header, usize)>,
    control: BytesMut,
    words: Vec<u8>,
    end: Option<End>,
    out: BytesMut,
    fin_sent: bool,
}

/// Why nothing more comes.
enum End {
    Eof,
    Error(io::ErrorKind, String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Spdy<S> {
    pub(super) fn new(io: S, port: u16) -> Self {
        let mut out = BytesMut::new();
        frame::open(&mut out, port);
        Self {
            io,
            read: BytesMut::new(),
            frame: None,
            control: BytesMut::new(),
            words: Vec::new(),
            end: None,
            out,
            fin_sent: false,
        }
    }

    /// Takes in what is there until data for the reader is next; `None` at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        loop {
            match &self.end {
                Some(End::Eof) => return Poll::Ready(Ok(None)),
                Some(End::Error(kind, words)) => return Poll::Ready(Err(io::Error::new(*kind, words.clone()))),
                None => {}
            }
            let Some((header, left)) = self.frame else {
                match Header::parse(&mut self.read)
                    .map_err(|words| io::Error::new(io::ErrorKind::InvalidData, words))?
                {
                    Some(header) => self.frame = Some((header, header.length)),
                    None => ready!(self.poll_fill(cx))?,
                }
                continue;
            };
            if left == 0 {
                self.frame = None;
                self.finish(header);
                let _ = self.poll_out(cx)?;
            } else if header.kind == Kind::Data(DATA_STREAM) {
                return Poll::Ready(Ok(Some(left)));
            } else if self.read.is_empty() {
                ready!(self.poll_fill(cx))?;
            } else {
                let taken = self.read.split_to(left.min(self.read.len()));
                self.frame = Some((header, left - taken.len()));
                match header.kind {
                    Kind::Data(ERROR_STREAM) => {
                        let room = MAX_WORDS - self.words.len();
                        self.words.extend_from_slice(&taken[..taken.len().min(room)]);
                    }
                    _ => {
                        let room = MAX_CONTROL - self.control.len();
                        self.control.extend_from_slice(&taken[..taken.len().min(room)]);
                    }
                }
            }
        }
    }

    /// A frame is complete.
    fn finish(&mut self, header: Header) {
        let control = self.control.split();
        match header.kind {
            Kind::Data(ERROR_STREAM) if header.fin && !self.words.is_empty() => {
                let words = String::from_utf8_lossy(&self.words).trim().to_owned();
                self.end = Some(End::Error(io::ErrorKind::ConnectionRefused, words));
            }
            // With the end of the data come words about it, if there are any, on the other stream.
            Kind::Data(DATA_STREAM) if header.fin => self.end = Some(End::Eof),
            Kind::Ping if self.out.len() < MAX_OUT => frame::pong(&mut self.out, &control),
            Kind::Reset => {
                let words = "the cluster reset the port-forward".to_owned();
                self.end = Some(End::Error(io::ErrorKind::ConnectionReset, words));
            }
            Kind::GoAway => self.end = Some(End::Eof),
            _ => {}
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.read.reserve(READ_AHEAD);
        if ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))? == 0 {
            self.cut_off();
        }
        Poll::Ready(Ok(()))
    }

    fn cut_off(&mut self) {
        let words = match &self.words[..] {
            [] => "the port-forward was cut off".to_owned(),
            words => String::from_utf8_lossy(words).trim().to_owned(),
        };
        self.end = Some(End::Error(io::ErrorKind::UnexpectedEof, words));
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Spdy<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let Some(left) = ready!(this.poll_data(cx))? else { return Poll::Ready(Ok(())) };
            let limit = left.min(buf.remaining());
            let taken = if !this.read.is_empty() {
                let taken = limit.min(this.read.len());
                buf.put_slice(&this.read[..taken]);
                this.read.advance(taken);
                taken
            } else if limit >= DIRECT {
                // `limit` keeps the next frame's header out of the reader's buffer.
                let mut part = (&mut *buf).limit(limit);
                let taken = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut part))?;
                if taken == 0 {
                    this.cut_off();
                    continue;
                }
                taken
            } else {
                ready!(this.poll_fill(cx))?;
                continue;
            };
            if let Some((_, left)) = &mut this.frame {
                *left -= taken;
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Spdy<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.fin_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MAX_FRAME);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if !this.out.is_empty() && this.out.len() + length > MAX_OUT {
            ready!(this.poll_out(cx))?;
        }
        this.out.reserve(frame::HEADER + length);
        frame::data(&mut this.out, length, false);
        let mut left = length;
        for buf in bufs {
            let take = buf.len().min(left);
            this.out.put_slice(&buf[..take]);
            left -= take;
        }
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
        if !this.fin_sent {
            this.fin_sent = true;
            frame::data(&mut this.out, 0, true);
        }
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
