//! What the kernel hears about datagrams that did not arrive: the socket's error queue (ip(7), `IP_RECVERR`).
//!
//! Without the option a connected socket hears of refusals only; with it also of hosts and networks that cannot be reached
//! and of paths that are too narrow, each with the head of the packet that it is about.

use std::{
    io::{self, IoSliceMut},
    os::fd::AsRawFd,
};

use libc::sock_extended_err;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, recvmsg, setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use socket2::Socket;
use tokio::{io::Interest, net::UdpSocket};
use tpx_core::dial::DialFailure;
use tpx_link::{datagrams::Report, proxy_status::Refusal};

use crate::dial;

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    errno: i32,
    origin: u8,
    /// ICMP's type and code.
    icmp: (u8, u8),
    info: u32,
    quoted: [u8; Self::QUOTED],
}

impl Trouble {
    /// Bytes of the packet that are kept, from behind its IP header for ICMP and from its payload for UDP.
    const QUOTED: usize = 8;

    fn new(error: &sock_extended_err, quoted: [u8; Self::QUOTED]) -> Self {
        Self {
            errno: error.ee_errno as i32,
            origin: error.ee_origin,
            icmp: (error.ee_type, error.ee_code),
            info: error.ee_info,
            quoted,
        }
    }

    /// What the laptop should hear of it.
    pub(crate) fn report(&self) -> Report {
        if self.errno == libc::EMSGSIZE {
            return Report::TooBig { mtu: self.info };
        }
        // The kernel's errno for these is EHOSTUNREACH (RFC 1812 section 5.2.7.1: codes 9, 10 and 13 are a policy's).
        if self.origin == libc::SO_EE_ORIGIN_ICMP && matches!(self.icmp, (3, 9 | 10 | 13)) {
            return Report::Unreachable(DialFailure::Prohibited);
        }
        report(&io::Error::from_raw_os_error(self.errno))
    }

    /// The head of the packet.
    pub(crate) fn quoted(&self) -> [u8; Self::QUOTED] {
        self.quoted
    }
}

/// What the laptop should hear when sending fails at once.
pub(crate) fn report(error: &io::Error) -> Report {
    match error.raw_os_error() {
        // Longer than any packet can be.
        Some(libc::EMSGSIZE) => Report::TooBig { mtu: 65_535 },
        Some(libc::ENOPROTOOPT) => Report::Unreachable(DialFailure::Refused),
        Some(libc::ENONET | libc::EPROTO) => Report::Unreachable(DialFailure::HostUnreachable),
        _ => Report::Unreachable(dial::failure(error)),
    }
}

/// Connects `socket` to `address`, with its errors on.
///
/// # Errors
/// Why not, as the laptop should hear it.
pub(crate) fn connect(socket: Socket, address: std::net::SocketAddr) -> Result<UdpSocket, Refusal> {
    let connect = || {
        socket.set_nonblocking(true)?;
        match address {
            std::net::SocketAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
            std::net::SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
        }
        socket.connect(&address.into())
    };
    connect().map_err(|error| dial::refusal(&error))?;
    UdpSocket::from_std(socket.into()).map_err(|error| dial::refusal(&error))
}

/// The next error.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]: there is none now.
pub(crate) fn next(socket: &UdpSocket) -> io::Result<Trouble> {
    let mut space = nix::cmsg_space!(sock_extended_err, libc::sockaddr_in6);
    socket.try_io(Interest::ERROR, || {
        let mut quoted = [0; Trouble::QUOTED];
        let mut slices = [IoSliceMut::new(&mut quoted)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let error = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error),
            _ => None,
        });
        // Every message of this queue has one.
        let error = error.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Trouble::new(&error, quoted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(errno: i32, origin: u8, icmp: (u8, u8)) -> Trouble {
        Trouble { errno, origin, icmp, info: 1280, quoted: [0; 8] }
    }

    #[test]
    fn what_icmp_said_is_kept_apart() {
        let (v4, v6) = (libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6);
        for (errno, origin, icmp, why) in [
            (libc::ECONNREFUSED, v4, (3, 3), DialFailure::Refused),
            (libc::ECONNREFUSED, v6, (1, 4), DialFailure::Refused),
            (libc::ENOPROTOOPT, v4, (3, 2), DialFailure::Refused),
            (libc::EHOSTUNREACH, v4, (3, 1), DialFailure::HostUnreachable),
            (libc::EHOSTUNREACH, v4, (11, 0), DialFailure::HostUnreachable),
            (libc::EHOSTUNREACH, v4, (3, 13), DialFailure::Prohibited),
            (libc::EACCES, v6, (1, 1), DialFailure::Prohibited),
            (libc::ENETUNREACH, v4, (3, 0), DialFailure::NetworkUnreachable),
            (libc::EHOSTUNREACH, v6, (1, 3), DialFailure::HostUnreachable),
        ] {
            assert_eq!(trouble(errno, origin, icmp).report(), Report::Unreachable(why), "{errno} {icmp:?}");
        }
        assert_eq!(trouble(libc::EMSGSIZE, v4, (3, 4)).report(), Report::TooBig { mtu: 1280 });
    }
}
