//! Names for flows and for the attempts to begin one.

use std::net::{SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

/// The transport of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The addresses of a flow, seen from the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    proto: Proto,
    source: SocketAddr,
    destination: SocketAddr,
}

impl FlowKey {
    /// Two spellings of an address (flow labels, scope identifiers, IPv4 inside IPv6) give the same key.
    #[must_use]
    pub fn new(proto: Proto, source: SocketAddr, destination: SocketAddr) -> Self {
        Self { proto, source: plain(source), destination: plain(destination) }
    }

    /// The transport.
    #[must_use]
    pub fn proto(&self) -> Proto {
        self.proto
    }

    /// Where the application connects from.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// What it asked for.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }
}

/// One `connect()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// Its addresses.
    pub key: FlowKey,
    /// The initial sequence number of its SYN (RFC 9293 section 3.4.1), the same in every retransmission.
    pub isn: u32,
}

fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => (v4, v6.port()).into(),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_one_key() {
        let to = SocketAddr::from(([10, 0, 0, 1], 80));
        let mapped = "[::ffff:192.0.2.1]:9".parse().unwrap();
        assert_eq!(
            FlowKey::new(Proto::Tcp, mapped, to),
            FlowKey::new(Proto::Tcp, SocketAddr::from(([192, 0, 2, 1], 9)), to)
        );
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 5, 2).into();
        assert_eq!(FlowKey::new(Proto::Tcp, scoped, to), FlowKey::new(Proto::Tcp, "[fe80::1]:9".parse().unwrap(), to));
    }
}
