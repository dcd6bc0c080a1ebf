//! Sockets toward the original name servers.
//!
//! tpx sits on port 53 of those servers for every process of the scope, itself included: what it forwards would come
//! straight back. A [`Bypass`] exempts each socket before it is connected.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// Lets a socket reach the original name servers while their port 53 is steered to tpx.
pub trait Bypass: Send + Sync + 'static {
    /// Exempts `socket`. Called after `socket()` and before `connect()` to `server`.
    ///
    /// # Errors
    /// The socket cannot be exempted; it is then closed unused, and the query fails.
    fn exempt(&self, socket: &Socket, server: SocketAddr) -> io::Result<()>;
}

/// For hosts where nothing is steered.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBypass;

impl Bypass for NoBypass {
    fn exempt(&self, _socket: &Socket, _server: SocketAddr) -> io::Result<()> {
        Ok(())
    }
}

/// A UDP socket connected to `server`. The kernel picks a random source port (RFC 5452, 9.2) and drops datagrams from
/// other addresses.
pub(crate) fn udp(server: SocketAddr, bypass: &dyn Bypass) -> io::Result<UdpSocket> {
    let socket = open(server, Type::DGRAM, Protocol::UDP, bypass)?;
    socket.connect(&server.into())?;
    UdpSocket::from_std(socket.into())
}

/// A TCP connection to `server`.
pub(crate) async fn tcp(server: SocketAddr, bypass: &dyn Bypass, patience: Duration) -> io::Result<TcpStream> {
    let socket = open(server, Type::STREAM, Protocol::TCP, bypass)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(server);
    let stream = tokio::time::timeout(patience, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn open(server: SocketAddr, kind: Type, protocol: Protocol, bypass: &dyn Bypass) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    bypass.exempt(&socket, server)?;
    Ok(socket)
}
