//! Socket options, and why each is set.

use std::io;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Unsent bytes that the kernel may hold for a socket. Measured: without it, a small request waits behind megabytes
/// that a bulk stream has already handed to the kernel.
const NOTSENT_LOWAT: u32 = 128 << 10;

/// Unread bytes that the kernel may hold for a flow's socket. Measured: left to itself it grows to 6 MiB at each end, and
/// a reader that stalls after a bulk transfer then held 19 MiB in all. The kernel caps it at `net.core.rmem_max`.
const RECV_BUFFER: usize = 1 << 20;

/// Sets up a TCP connection that carries a lane.
///
/// The send buffer is left to the kernel: it follows the road's bandwidth and delay.
pub(crate) fn prepare_carrier(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    set_notsent_lowat(tcp)
}

/// Sets up one flow's own connection, on the laptop or in the cluster.
///
/// The peer reads at its own pace; what it has not read stays in the lane's window, not in this socket's buffers. Both
/// peers of such a socket are near (the same machine, the same cluster), so that a small receive buffer costs nothing.
pub(crate) fn prepare_flow(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_recv_buffer_size(RECV_BUFFER)?;
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
