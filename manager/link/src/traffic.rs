//! How much a flow has moved so far, for who wants to look while it moves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one flow: the flow's task adds, anybody reads. The four are read one by one, not at one moment.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes: Ways,
    datagrams: Ways,
}

/// Up is from the laptop into the cluster, wherever this runs on the laptop's side of a stream.
#[derive(Debug, Default)]
struct Ways {
    up: AtomicU64,
    down: AtomicU64,
}

impl Traffic {
    /// Bytes that were taken from the socket, or datagrams' payload that was sent into the stream.
    pub fn up(&self) -> u64 {
        self.bytes.up.load(Relaxed)
    }

    /// Bytes that came out of the stream and are in the socket.
    pub fn down(&self) -> u64 {
        self.bytes.down.load(Relaxed)
    }

    /// Datagrams that were sent into the stream; 0 for a byte stream.
    pub fn datagrams_up(&self) -> u64 {
        self.datagrams.up.load(Relaxed)
    }

    /// Datagrams that came out of the stream; 0 for a byte stream.
    pub fn datagrams_down(&self) -> u64 {
        self.datagrams.down.load(Relaxed)
    }

    /// Counts a datagram of `payload` bytes that was sent into the stream.
    pub fn datagram_up(&self, payload: usize) {
        self.add_up(payload);
        self.datagrams.up.fetch_add(1, Relaxed);
    }

    /// Counts a datagram of `payload` bytes that came out of the stream.
    pub fn datagram_down(&self, payload: usize) {
        self.add_down(payload);
        self.datagrams.down.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_up(&self, bytes: usize) {
        self.bytes.up.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn add_down(&self, bytes: usize) {
        self.bytes.down.fetch_add(bytes as u64, Relaxed);
    }
}
