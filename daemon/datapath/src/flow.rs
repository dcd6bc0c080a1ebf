//! Where connections come from. Nothing above this module knows which road a flow took.

use std::{io, net::SocketAddr};

use async_trait::async_trait;
use tokio::net::TcpStream;
use tpx_core::dial::DialFailure;

/// A road that yields connection attempts.
#[async_trait]
pub trait FlowSource: Send {
    /// The next attempt; `None` when the road is closed for good. Cancel safe.
    async fn next(&mut self) -> Option<Box<dyn Knock>>;
}

/// One connection attempt whose first packet is held: the application still waits in `connect()`.
///
/// Exactly one of [`release`](Knock::release) and [`refuse`](Knock::refuse) answers it. Dropping it is the same as
/// refusing with [`DialFailure::TimedOut`]: the application hears nothing.
#[async_trait]
pub trait Knock: Send {
    /// Where the application connects from.
    fn source(&self) -> SocketAddr;
    /// The cluster address that the application asked for.
    fn destination(&self) -> SocketAddr;
    /// Lets the application's `connect()` succeed and returns the connection to it.
    ///
    /// # Errors
    /// When the application has given up meanwhile, or the packet could not be sent.
    async fn release(self: Box<Self>) -> io::Result<TcpStream>;
    /// Makes `connect()` fail the way the cluster said.
    fn refuse(self: Box<Self>, why: DialFailure);
}
