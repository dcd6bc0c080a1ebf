//! A connection of the floor's as the relay's socket.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    task::{Context, Poll},
};

use bytes::BufMut;
use tpx_datapath::NetStream;
use tpx_link::relay::Socket;

/// A flow of the netstack, to be relayed.
pub(crate) struct Relayed(pub NetStream);

impl Socket for Relayed {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx)
    }

    fn try_read(&self, buffer: &mut impl BufMut) -> io::Result<usize> {
        self.0.try_read_buf(buffer)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown_write()
    }

    async fn broken(&self) -> io::Error {
        poll_fn(|cx| self.0.poll_broken(cx)).await
    }

    fn reset_on_close(&self) {
        self.0.reset_on_close();
    }

    fn prepare(&self) {}
}
