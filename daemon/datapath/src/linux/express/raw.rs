//! Whole packets out of the raw sockets.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use socket2::{SockAddr, Socket};

/// The raw sockets for IPv4 and IPv6.
#[derive(Debug)]
pub(super) struct Raws([Socket; 2]);

impl Raws {
    pub(super) fn new(files: [OwnedFd; 2]) -> Self {
        Self(files.map(Socket::from))
    }

    /// Sends a packet to a local address. What is lost heals: who hears nothing asks again.
    pub(super) fn emit(&self, packet: &[u8], to: IpAddr) {
        let raw = &self.0[usize::from(to.is_ipv6())];
        // Raw sockets know no ports.
        if let Err(e) = raw.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))) {
            tracing::debug!("raw packet to {to}: {e}");
        }
    }
}
