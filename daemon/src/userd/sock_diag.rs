//! Asks the kernel for one TCP socket (sock_diag(7)): a few microseconds, however many sockets there are.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use super::processes::Socket;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `TCP_LISTEN` of net/tcp_states.h: the kernel answers with a listener where there is no connection.
const LISTEN: u8 = 10;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`, without header.
const QUESTION: usize = 56;
/// `struct inet_diag_msg`, without header.
const ANSWER: usize = 72;
/// What the kernel owes us at most: it answers before `send` returns.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(100);

/// A netlink socket for questions.
#[derive(Debug)]
pub(super) struct SockDiag {
    socket: OwnedFd,
    sequence: u32,
}

impl SockDiag {
    /// Opens the socket; no privilege is needed.
    ///
    /// # Errors
    /// When the kernel has no sock_diag.
    pub(super) fn open() -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The connection from `own` to `peer` in this network namespace, seen from `own`; `None` when there is none.
    pub(super) fn connection(&mut self, own: SocketAddr, peer: SocketAddr) -> Option<Socket> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.socket, &question(self.sequence, own, peer), SendFlags::empty()).ok()?;
        let mut buffer = [0; 1024];
        // An answer to an earlier question that was too late is passed over.
        for _ in 0..4 {
            let (length, _) = recv(&self.socket, &mut buffer, RecvFlags::empty()).ok()?;
            let said = buffer.get(..length)?;
            if u32::from_ne_bytes(array(said, 8)?) == self.sequence {
                return answer(said).filter(|socket| (socket.own, socket.peer) == (own, peer));
            }
        }
        None
    }
}

/// `inet_diag_req_v2` with an exact address and no cookie.
fn question(sequence: u32, own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    const IPPROTO_TCP: u8 = 6;
    let mut message = Vec::with_capacity(HEADER + QUESTION);
    message.extend(((HEADER + QUESTION) as u32).to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    message.extend([family.as_raw() as u8, IPPROTO_TCP, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(own.port().to_be_bytes());
    message.extend(peer.port().to_be_bytes());
    message.extend(octets(own.ip()));
    message.extend(octets(peer.ip()));
    message.extend(0u32.to_ne_bytes());
    // INET_DIAG_NOCOOKIE, twice.
    message.extend(u64::MAX.to_ne_bytes());
    message
}

/// Reads `inet_diag_msg`; `None` for errors, listeners, and connections that no file holds any more.
fn answer(message: &[u8]) -> Option<Socket> {
    if message.len() < HEADER + ANSWER || u16::from_ne_bytes(array(message, 4)?) != BY_FAMILY {
        return None;
    }
    let body = &message[HEADER..];
    let (family, state) = (body[0], body[1]);
    let address = |ip: usize, port: usize| {
        let ip: IpAddr = if u16::from(family) == AddressFamily::INET.as_raw() {
            Ipv4Addr::from(array::<4>(body, ip)?).into()
        } else {
            Ipv6Addr::from(array::<16>(body, ip)?).to_canonical()
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(array(body, port)?)))
    };
    let (own, peer) = (address(8, 4)?, address(24, 6)?);
    let (uid, inode) = (u32::from_ne_bytes(array(body, 64)?), u64::from(u32::from_ne_bytes(array(body, 68)?)));
    (state != LISTEN && inode != 0).then_some(Socket { own, peer, uid, inode })
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&ip.octets());
            all
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::linux::fs::MetadataExt as _,
    };

    use super::*;

    fn inode(stream: &TcpStream) -> u64 {
        use std::os::fd::AsRawFd as _;
        std::fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap().st_ino()
    }

    #[test]
    fn a_connection_is_found_from_both_ends_and_a_listener_is_none() {
        let mut diag = SockDiag::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let found = diag.connection(own, peer).unwrap();
            assert_eq!((found.own, found.peer, found.inode), (own, peer, inode(&stream)));
            assert_eq!(found.uid, rustix::process::geteuid().as_raw());
            assert_eq!(diag.connection(peer, own).map(|socket| socket.inode), Some(inode(&accepted)));
            // Nobody's connection: the kernel finds the listener.
            let other = SocketAddr::new(own.ip(), 1);
            assert_eq!(diag.connection(peer, other), None);
        }
    }

    #[test]
    fn an_ipv6_socket_that_speaks_ipv4_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let IpAddr::V4(ip) = peer.ip() else { unreachable!() };
        let stream = TcpStream::connect((ip.to_ipv6_mapped(), peer.port())).unwrap();
        let own = SocketAddr::new(peer.ip(), stream.local_addr().unwrap().port());
        let found = SockDiag::open().unwrap().connection(own, peer).unwrap();
        assert_eq!(found.inode, inode(&stream));
    }

    #[test]
    fn short_and_foreign_answers_are_none() {
        assert_eq!(answer(&[]), None);
        assert_eq!(answer(&[0; HEADER + ANSWER]), None);
        assert_eq!(answer(&question(1, "127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap())), None);
    }
}
