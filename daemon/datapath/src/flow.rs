//! Where flows come from. Nothing above this module knows which road a flow took.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{net::TcpStream, sync::mpsc};
use tpx_core::dial::DialFailure;

/// A road that yields flows.
#[async_trait]
pub trait FlowSource: Send {
    /// The next flow; `None` when the road is closed for good. Cancel safe.
    async fn next(&mut self) -> Option<Arrival>;
}

/// A new flow of an application.
pub enum Arrival {
    /// A TCP connection attempt.
    Connection(Box<dyn Knock>),
    /// A UDP association: all datagrams between two addresses and ports.
    Datagrams(DatagramFlow),
    /// Echo requests (ping) of one sender to one target.
    Echo(EchoFlow),
}

/// Who called `connect()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The process.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// The process's name.
    pub name: String,
}

/// One connection attempt whose first packet is held: the application still waits in `connect()`.
///
/// Exactly one of [`release`](Knock::release) and [`refuse`](Knock::refuse) answers it. Dropping it is the same as
/// refusing with [`DialFailure::TimedOut`]: the application hears nothing.
#[async_trait]
pub trait Knock: Send {
    /// Where the application connects from.
    fn source(&self) -> SocketAddr;
    /// The address that the application asked for: a cluster address, or a virtual one.
    fn destination(&self) -> SocketAddr;
    /// Whose it is, where the road knows; reads a file of /proc. Ask while the application waits: later it may be gone.
    fn caller(&self) -> Option<Caller> {
        None
    }
    /// Lets the application's `connect()` succeed and returns the connection to it.
    ///
    /// # Errors
    /// When the application has given up meanwhile, or the packet could not be sent.
    async fn release(self: Box<Self>) -> io::Result<FlowStream>;
    /// Makes `connect()` fail the way the cluster said.
    fn refuse(self: Box<Self>, why: DialFailure);
}

/// The laptop's end of an established connection, on whichever road.
#[derive(Debug)]
pub enum FlowStream {
    /// A socket of the kernel's.
    Socket(TcpStream),
    /// A connection of the floor's.
    Netstack(crate::NetStream),
}

/// A UDP association. Ends when `incoming` does, or when it is dropped.
pub struct DatagramFlow {
    /// Where the application sends from.
    pub source: SocketAddr,
    /// Where it sends to: a cluster address, or a virtual one.
    pub destination: SocketAddr,
    /// Payloads from the application, in order. Bounded; what does not fit is lost, as on any network. Ends when the road
    /// does.
    pub incoming: mpsc::Receiver<Bytes>,
    /// The way back.
    pub back: Box<dyn DatagramReturn>,
}

/// The way back to the sender of datagrams. Never waits: what cannot be delivered is lost.
pub trait DatagramReturn: Send + Sync {
    /// Delivers a payload, from the association's destination to its source.
    fn send(&self, payload: &[u8]);
    /// Tells the sender that its last datagram did not arrive, as an ICMP error: [`DialFailure::Refused`] becomes "port
    /// unreachable".
    fn unreachable(&self, why: DialFailure);
    /// Tells the sender that datagrams of more than `mtu` bytes, IP header included, do not fit (RFC 1191, RFC 8201).
    fn too_big(&self, mtu: u32);
}

/// Echo requests from one sender to one target. Ends as [`DatagramFlow`] does.
pub struct EchoFlow {
    /// Who asks.
    pub source: IpAddr,
    /// Who should answer: a cluster address, or a virtual one.
    pub destination: IpAddr,
    /// The requests, in order; bounded as [`DatagramFlow::incoming`].
    pub incoming: mpsc::Receiver<Echo>,
    /// The way back.
    pub back: Box<dyn EchoReturn>,
}

/// An echo request or its answer; the identifier is the road's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// ICMP's sequence number.
    pub sequence: u16,
    /// What follows the header.
    pub payload: Bytes,
}

/// The way back to who pings.
pub trait EchoReturn: Send + Sync {
    /// Delivers an answer.
    fn reply(&self, echo: Echo);
    /// Answers a request with "unreachable".
    fn unreachable(&self, request: Echo, why: DialFailure);
}
