//! One flow's road through the tunnel: an open HTTP/2 `CONNECT`.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

/// Why a stream ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other end reset it: the far socket was reset, or its session is over.
    #[error("the stream was reset")]
    Reset,
    /// The lane under it is gone.
    #[error("the lane was lost: {0}")]
    Lane(String),
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        if error.is_reset() && error.is_remote() { Self::Reset } else { Self::Lane(error.to_string()) }
    }
}

/// A byte stream with two halves that end on their own. Dropping it before both ended resets it.
#[derive(Debug)]
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    open: Open,
}

/// Counts open streams of a lane.
#[derive(Debug)]
pub(crate) struct Open(Arc<AtomicUsize>);

impl Open {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Stream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, open: Open) -> Self {
        Self { send, recv, open }
    }

    pub(crate) fn into_parts(self) -> (SendStream<Bytes>, RecvStream, Open) {
        (self.send, self.recv, self.open)
    }

    /// Sends `data`, waiting until the other end has room for it.
    ///
    /// # Errors
    /// [`StreamError`]; nothing more can be sent then.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        while !data.is_empty() {
            self.send.reserve_capacity(data.len());
            let mut room = self.send.capacity();
            if room == 0 {
                room = match poll_fn(|cx| self.send.poll_capacity(cx)).await {
                    Some(room) => room?,
                    None => return Err(StreamError::Reset),
                };
            }
            self.send.send_data(data.split_to(room.min(data.len())), false)?;
        }
        Ok(())
    }

    /// Ends this half; the other end reads end of file.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn finish(&mut self) -> Result<(), StreamError> {
        Ok(self.send.send_data(Bytes::new(), true)?)
    }

    /// The next bytes; `None` when the other end has finished.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        match poll_fn(|cx| self.recv.poll_data(cx)).await {
            None => Ok(None),
            Some(data) => {
                let data = data?;
                self.recv.flow_control().release_capacity(data.len())?;
                Ok(Some(data))
            }
        }
    }

    /// Ends both halves at once; the far socket is reset.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}
