//! What applications do.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A TCP socket for `to`.
pub(crate) fn stream_for(to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// connect() with a time limit; the operating system's word.
pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The errno of a connect() that must fail.
pub(crate) fn refused_with(to: SocketAddr) -> Result<Option<i32>> {
    match connect(to) {
        Ok(_) => anyhow::bail!("{to} answered"),
        Err(e) => Ok(e.raw_os_error()),
    }
}

/// The host has no route there: nothing of ours touched this connection.
pub(crate) fn ensure_untouched(socket: &Socket, to: SocketAddr) -> Result<()> {
    ensure_left(socket, to, 0)
}

/// The host has no route there, and the socket has this mark.
pub(crate) fn ensure_left(socket: &Socket, to: SocketAddr, mark: u32) -> Result<()> {
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => anyhow::bail!("{to} answered"),
        // Without any IPv6 address the kernel looks for a source before it looks for a route.
        Err(e) => ensure!(matches!(e.raw_os_error(), Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL)), "{to}: {e}"),
    }
    ensure!(socket.mark()? == mark, "{to}: marked {:#x}", socket.mark()?);
    Ok(())
}

/// Sends `text` and reads it back; then half-close, then the other side's end.
pub(crate) fn ensure_echo(mut stream: &TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    ensure!(back == text, "the echo differs");
    stream.shutdown(std::net::Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "more came than was sent");
    Ok(())
}
