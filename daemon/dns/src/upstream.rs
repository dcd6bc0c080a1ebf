//! Sockets toward the original name servers.
//!
//! tpx sits on port 53 of those servers for every process of the scope, itself included: what it forwards would come
//! straight back. A [`Bypass`] exempts each socket before it is connected.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tpx_core::dns::Header;

const MAX_MESSAGE: usize = 65_535;

/// Lets a socket reach the original name servers while their port 53 is steered to tpx.
pub trait Bypass: Send + Sync + 'static {
    /// Exempts `socket`. Called after `socket()` and before `connect()` to `server`.
    ///
    /// # Errors
    /// The socket cannot be exempted; it is then closed unused, and the query fails.
    fn exempt(&self, socket: &Socket, server: SocketAddr) -> io::Result<()>;

    /// Whether exempted sockets reach the original server even where the server's own sockets have its address.
    fn escapes(&self) -> bool {
        true
    }
}

/// For hosts where nothing is steered.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBypass;

impl Bypass for NoBypass {
    fn exempt(&self, _socket: &Socket, _server: SocketAddr) -> io::Result<()> {
        Ok(())
    }

    fn escapes(&self) -> bool {
        false
    }
}

/// One original name server.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    sockets: Semaphore,
}

impl Upstream {
    /// At most so many sockets for datagrams are open at once.
    pub(crate) fn new(address: SocketAddr, sockets: usize) -> Self {
        Self { address, sockets: Semaphore::new(sockets) }
    }

    /// Sends `query` as it is and waits for its answer. Datagrams with another id are not it (RFC 5452, 9.1).
    pub(crate) async fn exchange(&self, bypass: &dyn Bypass, query: &[u8]) -> io::Result<Vec<u8>> {
        let _permit = self.sockets.acquire().await.map_err(io::Error::other)?;
        let socket = udp(self.address, bypass)?;
        socket.send(query).await?;
        let id = Header::parse(query).map(|header| header.id);
        let mut answer = vec![0; MAX_MESSAGE];
        loop {
            let length = socket.recv(&mut answer).await?;
            let header = Header::parse(&answer[..length]);
            if header.is_some_and(|header| header.is_response && Some(header.id) == id) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    }

    /// The same over a connection for this one query.
    pub(crate) async fn exchange_over_tcp(
        &self,
        bypass: &dyn Bypass,
        query: &[u8],
        patience: Duration,
    ) -> io::Result<Vec<u8>> {
        let mut stream = tcp(self.address, bypass, patience).await?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    /// The whole answer, over TCP where it does not fit into a datagram.
    pub(crate) async fn whole(&self, bypass: &dyn Bypass, query: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
        let answer = self.exchange(bypass, query).await?;
        match Header::parse(&answer) {
            Some(header) if header.is_truncated => self.exchange_over_tcp(bypass, query, patience).await,
            _ => Ok(answer),
        }
    }
}

/// A UDP socket connected to `server`. The kernel picks a random source port (RFC 5452, 9.2) and drops datagrams from
/// other addresses.
fn udp(server: SocketAddr, bypass: &dyn Bypass) -> io::Result<UdpSocket> {
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
