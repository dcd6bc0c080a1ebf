//! Socket options, and why each is set.

use std::io;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Unsent bytes that the kernel may hold for a socket. Measured: without it, a small request waits behind megabytes
/// that a bulk stream has already handed to the kernel.
const NOTSENT_LOWAT: u32 = 128 << 10;

/// Sets up a TCP connection that carries a lane.
pub(crate) fn prepare_carrier(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    set_notsent_lowat(tcp)
}

/// Sets up one flow's own connection, on the laptop or in the cluster.
///
/// The peer reads at its own pace; what it has not read stays in the lane's window, not in this socket's send buffer.
pub(crate) fn prepare_flow(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    set_notsent_lowat(tcp)
}

/// Makes the coming close a reset (RST) and drops what is unsent.
pub(crate) fn reset_on_close(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO))
}

fn set_notsent_lowat(tcp: &TcpStream) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(tcp).set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (tcp, NOTSENT_LOWAT);
    Ok(())
}
