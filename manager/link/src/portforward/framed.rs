//! One byte stream out of a connection that carries frames, whatever their protocol.
//!
//! Everything happens inside `poll_read` and `poll_write`: no task, no queue, so reading and writing never wait for each
//! other and what is not read is not fetched. Outgoing bytes are copied once, into their frame; large incoming frames go
//! straight into the reader's buffer. Meant for one task that both reads and writes, as h2's is.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Data of one outgoing frame at most; holds one HTTP/2 frame with its header.
const MAX_DATA: usize = 128 << 10;
/// Outgoing bytes that may wait here.
pub(super) const MAX_OUT: usize = 160 << 10;
/// How much is read at once when it is not known yet what comes.
const READ_AHEAD: usize = 16 << 10;
/// Shorter rests of a frame are read together with what follows.
const DIRECT: usize = 4 << 10;
/// Slices of one write at most.
const MAX_PARTS: usize = 16;

/// A protocol, pure.
pub(super) trait Framing {
    /// Takes from `read` what is not data, and says what comes next. Answers of the protocol's own go to `out`, at most
    /// until [`MAX_OUT`].
    fn next(&mut self, read: &mut BytesMut, out: &mut BytesMut) -> Next;
    /// So many bytes of data, at most as many as [`Next::Data`] said, went to the reader.
    fn taken(&mut self, length: usize);
    /// The connection has ended; `clean`: nothing was left in `read`.
    fn cut_off(&mut self, clean: bool) -> End;
    /// Appends one frame with `parts` as its data, `length` bytes in all.
    fn data(&mut self, out: &mut BytesMut, parts: &[&[u8]], length: usize);
    /// Appends what says that no more data follows.
    fn finish(&mut self, out: &mut BytesMut);
}

/// What comes next.
pub(super) enum Next {
    /// So many bytes of data, more than none.
    Data(usize),
    /// It takes more bytes to tell.
    More,
    /// Nothing.
    End(End),
}

/// Why nothing more comes.
pub(super) enum End {
    Eof,
    Error(io::ErrorKind, String),
}

impl End {
    /// The other end broke the protocol.
    pub(super) fn protocol(words: &'static str) -> Self {
        Self::Error(io::ErrorKind::InvalidData, words.to_owned())
    }

    /// The connection ended before its time.
    pub(super) fn unexpected(words: &str) -> Self {
        let words = if words.is_empty() { "the port-forward was cut off" } else { words };
        Self::Error(io::ErrorKind::UnexpectedEof, words.to_owned())
    }
}

pub(super) struct Framed<S, F> {
    io: S,
    framing: F,
    read: BytesMut,
    out: BytesMut,
    end: Option<End>,
    finished: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin, F: Framing + Unpin> Framed<S, F> {
    /// `out`: what is sent before anything else.
    pub(super) fn new(io: S, framing: F, out: BytesMut) -> Self {
        Self { io, framing, read: BytesMut::new(), out, end: None, finished: false }
    }

    /// Takes in what is there until data for the reader is next; `None` at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        loop {
            match &self.end {
                Some(End::Eof) => return Poll::Ready(Ok(None)),
                Some(End::Error(kind, words)) => return Poll::Ready(Err(io::Error::new(*kind, words.clone()))),
                None => {}
            }
            let waiting = self.out.len();
            let next = self.framing.next(&mut self.read, &mut self.out);
            if self.out.len() > waiting {
                let _ = self.poll_out(cx)?;
            }
            match next {
                Next::Data(length) => return Poll::Ready(Ok(Some(length))),
                Next::More => ready!(self.poll_fill(cx))?,
                Next::End(end) => self.end = Some(end),
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.read.reserve(READ_AHEAD);
        if ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))? == 0 {
            self.end = Some(self.framing.cut_off(self.read.is_empty()));
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

impl<S: AsyncRead + AsyncWrite + Unpin, F: Framing + Unpin> AsyncRead for Framed<S, F> {
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
                // The reader's buffer may be uninitialised; `limit` keeps the next frame's header out of it.
                let mut part = (&mut *buf).limit(limit);
                let taken = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut part))?;
                if taken == 0 {
                    this.end = Some(this.framing.cut_off(true));
                    continue;
                }
                taken
            } else {
                ready!(this.poll_fill(cx))?;
                continue;
            };
            this.framing.taken(taken);
            return Poll::Ready(Ok(()));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, F: Framing + Unpin> AsyncWrite for Framed<S, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut parts: [&[u8]; MAX_PARTS] = [&[]; MAX_PARTS];
        let (mut count, mut length) = (0, 0);
        for buf in bufs {
            let take = buf.len().min(MAX_DATA - length);
            if take > 0 && count < MAX_PARTS {
                parts[count] = &buf[..take];
                count += 1;
                length += take;
            }
            if take < buf.len() || count == MAX_PARTS {
                break;
            }
        }
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if !this.out.is_empty() && this.out.len() + length > MAX_OUT {
            ready!(this.poll_out(cx))?;
        }
        this.framing.data(&mut this.out, &parts[..count], length);
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
        if !this.finished {
            this.finished = true;
            this.framing.finish(&mut this.out);
        }
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
