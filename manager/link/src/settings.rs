//! The numbers of a lane, measured.

use std::time::Duration;

/// HTTP/2 and heartbeat settings of one end. The default is the laptop's; windows are what the other end may send, so the
/// manager, which serves many laptops with little memory, has one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Unread bytes that one stream may send ahead. Bounds what a stalled reader holds in the receiving process.
    pub stream_window: u32,
    /// Unread bytes of all streams together. Hundreds of [`stream_window`](Self::stream_window)s: streams whose readers
    /// stall must not starve the others, and all streams of a laptop share one lane. Takes memory only for bytes that are
    /// there and that nobody reads.
    pub connection_window: u32,
    /// Largest DATA frame, bytes. A small request waits behind at most one frame of each busy stream. With its headers it
    /// should fit into one write of the TLS layer, which takes 64 KiB.
    pub frame: u32,
    /// Bytes of one stream that may wait for the carrier in the sending process.
    pub send_buffer: usize,
    /// Streams that may be open at once: more than a process may have files, so that these are what runs out.
    pub streams: u32,
    /// How often to ask whether the other end is alive.
    pub heartbeat: Duration,
    /// With nothing received for this long after asking, the carrier is dead.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: 2 << 20,
            connection_window: 512 << 20,
            frame: (56 << 10) - 64,
            send_buffer: 256 << 10,
            streams: 65_536,
            heartbeat: Duration::from_secs(3),
            patience: Duration::from_secs(6),
        }
    }
}

impl Settings {
    /// Streams that were reset and may still receive frames on their way; past that they would count as errors.
    pub(crate) const RESET_STREAMS: usize = 4096;
    /// How long a reset stream is remembered.
    pub(crate) const RESET_MEMORY: Duration = Duration::from_secs(5);
    /// Bookkeeping bytes that tiny unread frames may cost before h2 ends the connection. The relay takes frames out at
    /// once and packs them, so an honest peer stays far below.
    pub(crate) const FRAME_OVERHEAD: usize = 64 << 20;

    pub(crate) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.frame)
            .max_send_buffer_size(self.send_buffer)
            .initial_max_send_streams(self.streams as usize)
            .max_concurrent_reset_streams(Self::RESET_STREAMS)
            .reset_stream_duration(Self::RESET_MEMORY)
            .max_local_error_reset_streams(None)
            .data_frame_budget(Self::FRAME_OVERHEAD)
            .enable_push(false);
        builder
    }

    pub(crate) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.frame)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_streams(self.streams)
            .enable_connect_protocol()
            .max_concurrent_reset_streams(Self::RESET_STREAMS)
            .max_pending_accept_reset_streams(self.streams as usize)
            .reset_stream_duration(Self::RESET_MEMORY)
            .max_local_error_reset_streams(None)
            .data_frame_budget(Self::FRAME_OVERHEAD);
        builder
    }
}
