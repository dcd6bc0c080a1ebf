//! What the relay needs of a flow's socket, so that it serves the kernel's sockets and a netstack's alike.

use std::{
    future::Future,
    io::{self, IoSlice},
    task::{Context, Poll},
};

use bytes::BufMut;
use tokio::{io::Interest, net::TcpStream};

use crate::tcp;

/// One end of an established connection, used by readiness: wait until ready, then try.
///
/// Readiness may be wrong: a try that finds nothing fails with [`io::ErrorKind::WouldBlock`], and only after that does
/// the next wait really wait. Reads and writes are each waited for by one task, the same one.
pub trait Socket: Send + Sync + Unpin + 'static {
    /// Whether [`try_read`](Self::try_read) is worth a try: bytes, end of file or an error.
    ///
    /// # Errors
    /// When the socket's event loop is gone.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads what is there, at most `buffer`'s room, without waiting. 0: end of file.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`], or why the connection is broken.
    fn try_read(&self, buffer: &mut impl BufMut) -> io::Result<usize>;

    /// Whether [`try_write_vectored`](Self::try_write_vectored) is worth a try.
    ///
    /// # Errors
    /// When the socket's event loop is gone.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Writes as much as there is room for, without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`], or why the connection is broken.
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends end of file behind all that was written. Not an error when the connection is over already.
    ///
    /// # Errors
    /// When the connection is broken.
    fn shutdown_write(&self) -> io::Result<()>;

    /// Waits until the connection is broken, for while nobody reads. Never ready for an orderly end.
    fn broken(&self) -> impl Future<Output = io::Error> + Send;

    /// Makes the coming drop a reset (RST) that forgets what is unsent.
    fn reset_on_close(&self);

    /// Sets the socket up for being relayed: no delays, small buffers.
    fn prepare(&self);
}

impl Socket for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn try_read(&self, buffer: &mut impl BufMut) -> io::Result<usize> {
        self.try_read_buf(buffer)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::try_write_vectored(self, slices)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match socket2::SockRef::from(self).shutdown(std::net::Shutdown::Write) {
            // It is gone already, and nothing was lost: all was written.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    async fn broken(&self) -> io::Error {
        if self.ready(Interest::ERROR).await.is_ok()
            && let Ok(Some(error)) = self.take_error()
        {
            return error;
        }
        // Whatever it was, reading and writing will show it.
        std::future::pending().await
    }

    fn reset_on_close(&self) {
        // Fails only when the connection is over.
        let _ = tcp::reset_on_close(self);
    }

    fn prepare(&self) {
        // Only latency is at stake: a socket that refuses options shows its trouble when it is used.
        let _ = tcp::prepare_flow(self);
    }
}
