//! The floor's transport: what the far end of the applications' packets says and does, as machines without effects.
//!
//! Every TCP connection has a stack of its own ([`tcp::TcpFlow`]): a shared one would look at every socket for each
//! packet. Machines take `now` as the time since one moment of the caller's choice, and write at most one packet at a
//! time into the caller's buffer.

mod outgoing;
mod segments;
pub(crate) mod tcp;

pub use outgoing::Offload;
pub(crate) use outgoing::Outgoing;
pub(crate) use segments::Segments;

/// Most bytes of an IP packet, and of a segment that the device cuts up.
pub(crate) const PACKET_MAX: usize = 65_535;
