//! The laptop's end of a connection of the floor.

use std::{
    fmt, io,
    io::IoSlice,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::BufMut;

use super::{
    flow::{Event, Flow},
    shared::Shared,
};

/// An established connection of an application over the floor. Its methods are those of a non-blocking socket.
///
/// Dropping it after both halves have ended closes it in order; dropping it earlier resets it.
pub struct NetStream {
    shared: Arc<Shared>,
    flow: Arc<Flow>,
    reset: AtomicBool,
}

impl NetStream {
    pub(super) fn new(shared: Arc<Shared>, flow: Arc<Flow>) -> Self {
        Self { shared, flow, reset: AtomicBool::new(false) }
    }

    /// Waits until [`try_read`](Self::try_read) has something to say. One task can wait at a time.
    ///
    /// # Errors
    /// None; errors come with the read.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.lock().poll(cx, Event::Readable).map(Ok)
    }

    /// Takes bytes that the application sent; 0 when it has ended its half.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) while there are none; otherwise why the connection broke, after all that
    /// was received before.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.shared.with(&self.flow, |tcp| tcp.recv(into))
    }

    /// The same into a buffer that may grow: takes all that is there and fits.
    ///
    /// # Errors
    /// Those of [`try_read`](Self::try_read).
    pub fn try_read_buf(&self, into: &mut impl BufMut) -> io::Result<usize> {
        self.shared.with(&self.flow, |tcp| tcp.recv_buf(into))
    }

    /// Waits until [`try_write_vectored`](Self::try_write_vectored) has room, or an error to tell. One task can wait at a
    /// time.
    ///
    /// # Errors
    /// None; errors come with the write.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.lock().poll(cx, Event::Writable).map(Ok)
    }

    /// Sends bytes to the application, as many as there is room for.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) while there is no room; otherwise why the connection broke.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.shared.with(&self.flow, |tcp| {
            let mut written = 0;
            for slice in slices.iter().filter(|s| !s.is_empty()) {
                match tcp.send(slice) {
                    Ok(n) => written += n,
                    Err(e) if written == 0 => return Err(e),
                    Err(_) => break,
                }
            }
            Ok(written)
        })
    }

    /// Ends this half after what was written; the application reads end of file.
    ///
    /// # Errors
    /// Why the connection broke earlier.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.shared.with(&self.flow, |tcp| match tcp.broken() {
            Some(why) => Err(why.into()),
            None => {
                tcp.close();
                Ok(())
            }
        })
    }

    /// Waits until the connection is broken (reset by the application, or it stopped answering), whether or not somebody
    /// reads. One task can wait at a time.
    pub fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.flow.lock();
        ready!(state.poll(cx, Event::Broken));
        Poll::Ready(state.tcp.broken().map_or_else(|| io::ErrorKind::ConnectionAborted.into(), Into::into))
    }

    /// Makes dropping it a reset in any case.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Relaxed);
    }
}

impl Drop for NetStream {
    fn drop(&mut self) {
        let reset = self.reset.load(Relaxed);
        self.shared.with(&self.flow, |tcp| {
            if reset || !tcp.is_finished() {
                tcp.abort();
            }
        });
    }
}

impl fmt::Debug for NetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.flow.key;
        f.debug_struct("NetStream").field("source", &key.source()).field("destination", &key.destination()).finish()
    }
}
