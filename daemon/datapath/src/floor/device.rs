//! What a floor needs of a TUN device; each platform has its own.

use std::{
    io,
    task::{Context, Poll},
};

use crate::Offload;

/// A device that carries IP packets.
pub trait PacketDevice: Send + Sync + 'static {
    /// Reads the next packet into `into`, which has room for one of the largest size, and returns its length. Checksums
    /// need not be right, and a TCP packet may be one that stands for many segments.
    ///
    /// # Errors
    /// When the device is gone. Anything that may pass is [`Poll::Pending`].
    fn poll_recv(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends a packet. Never waits; what cannot be sent is lost. `offload` is only there if
    /// [`offloads`](Self::offloads).
    ///
    /// # Errors
    /// What the system says.
    fn send(&self, packet: &[u8], offload: Option<&Offload>) -> io::Result<()>;

    /// Whether it computes checksums and cuts large segments.
    fn offloads(&self) -> bool;
}
