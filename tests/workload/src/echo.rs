//! Plain TCP and UDP: echo, discard and an endless source.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const SOURCE: u16 = 19;
/// Echo again; the node's rules lose the first SYN to one and every packet to the other.
const SLOW: u16 = 1007;
const BLACK_HOLE: u16 = 1008;
/// Ends its own direction at once and goes on reading.
const HALF: u16 = 1010;
/// Resets a connection at its first byte.
const RESET: u16 = 1011;
/// Reads nothing for a while, and then everything.
const STALLED: u16 = 1012;
/// Writes until nothing is taken any more, and ends.
const FLOOD: u16 = 1013;

/// UDP only: each answers with its own number in front of what came.
const MANY: std::ops::Range<u16> = 20_000..20_400;

const BUFFER: usize = 128 * 1024;
const SMALL: u32 = 128 * 1024;
/// How long the stalled reader does not read.
const STALL: Duration = Duration::from_secs(8);
/// A write that takes longer has found everything full.
const FULL: Duration = Duration::from_secs(2);

/// Serves all of them on every address, IPv4 and IPv6.
pub(crate) async fn serve_all() -> Result<()> {
    let any = |port| SocketAddr::from(([0u16; 8], port));
    tokio::try_join!(
        tcp(any(ECHO), echo),
        tcp(any(SLOW), echo),
        tcp(any(BLACK_HOLE), echo),
        tcp(any(DISCARD), discard),
        tcp(any(SOURCE), source),
        tcp(any(HALF), half),
        tcp(any(RESET), reset),
        serve(small_buffers(any(STALLED))?, stalled),
        serve(small_buffers(any(FLOOD))?, flood),
        udp(any(ECHO)),
        futures::future::try_join_all(MANY.map(|port| numbered(any(port)))),
    )?;
    Ok(())
}

/// Serves each connection with `talk`.
pub(crate) async fn tcp<F: Future<Output = io::Result<()>> + Send + 'static>(
    address: SocketAddr,
    talk: fn(TcpStream) -> F,
) -> Result<()> {
    serve(TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?, talk).await
}

/// A listener whose connections hold little themselves, so that what a stalled connection holds is held on the way.
fn small_buffers(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(SMALL)?;
    socket.set_send_buffer_size(SMALL)?;
    socket.bind(address)?;
    socket.listen(1024).with_context(|| format!("cannot listen on {address}"))
}

async fn serve<F: Future<Output = io::Result<()>> + Send + 'static>(
    listener: TcpListener,
    talk: fn(TcpStream) -> F,
) -> Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                stream.set_nodelay(true).ok();
                // What a client does to its connection is its own business.
                tokio::spawn(async move { talk(stream).await.ok() });
            }
            // Out of files for the moment: the next one may fit again.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

/// Sends everything back, then ends its own direction: half-close in both.
pub(crate) async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = read.read(&mut buffer).await?;
        if count == 0 {
            return write.shutdown().await;
        }
        write.write_all(buffer.get(..count).unwrap_or_default()).await?;
    }
}

/// Reads to the end and says nothing.
async fn discard(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while stream.read(&mut buffer).await? > 0 {}
    stream.shutdown().await
}

/// Sends until the other side has had enough.
async fn source(mut stream: TcpStream) -> io::Result<()> {
    let line: Vec<u8> = (b' '..=b'~').cycle().take(BUFFER).collect();
    loop {
        stream.write_all(&line).await?;
    }
}

/// Says a word, ends its own direction and reads until the other side ends too.
async fn half(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"half\n").await?;
    stream.shutdown().await?;
    let mut buffer = vec![0; BUFFER];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// A reader that stalls and recovers.
async fn stalled(stream: TcpStream) -> io::Result<()> {
    tokio::time::sleep(STALL).await;
    discard(stream).await
}

/// A writer whose reader stalls: how much it could write is how much the road holds.
async fn flood(mut stream: TcpStream) -> io::Result<()> {
    let block = vec![b'x'; BUFFER];
    while let Ok(written) = tokio::time::timeout(FULL, stream.write(&block)).await {
        written?;
    }
    stream.shutdown().await
}

/// Ends the connection the hard way, once the other side has said something: a reset right after the handshake may
/// arrive before connect() has returned.
async fn reset(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0]).await?;
    stream.set_zero_linger()
}

/// Sends each datagram back to where it came from.
pub(crate) async fn udp(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is the ICMP answer to an earlier reply.
        if let Ok((count, peer)) = socket.recv_from(&mut buffer).await {
            socket.send_to(buffer.get(..count).unwrap_or_default(), peer).await.ok();
        }
    }
}

/// Sends each datagram back behind the port's number and a space.
async fn numbered(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let mut buffer = vec![0; 2048];
    loop {
        if let Ok((count, peer)) = socket.recv_from(&mut buffer).await {
            let answer = [format!("{} ", address.port()).as_bytes(), buffer.get(..count).unwrap_or_default()].concat();
            socket.send_to(&answer, peer).await.ok();
        }
    }
}
