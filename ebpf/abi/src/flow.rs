//! One connection attempt and what is known about it.

/// A connection attempt. IPv4 addresses are IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// Where the application connects from.
    pub src: [u8; 16],
    /// The cluster address it asked for.
    pub dst: [u8; 16],
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
}

impl Flow {
    /// Source address and port.
    #[must_use]
    pub fn source(&self) -> core::net::SocketAddr {
        socket_addr(self.src, self.sport)
    }

    /// Destination address and port.
    #[must_use]
    pub fn destination(&self) -> core::net::SocketAddr {
        socket_addr(self.dst, self.dport)
    }
}

fn socket_addr(ip: [u8; 16], port: [u8; 2]) -> core::net::SocketAddr {
    core::net::SocketAddr::new(core::net::Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
}

/// What the daemon has decided about a flow. The kernel swallows the flow's SYNs until `pass` is set.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Not zero: SYNs of this flow reach the listener.
    pub pass: u32,
    /// SYNs seen, the first one included.
    pub syns: u32,
}

impl Verdict {
    /// The first SYN was announced; nothing is decided.
    pub const HELD: Self = Self { pass: 0, syns: 1 };
    /// SYNs may pass.
    pub const PASS: Self = Self { pass: 1, syns: 1 };
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(size_of::<Flow>(), 36);
        assert_eq!(align_of::<Flow>(), 1);
        assert_eq!([offset_of!(Flow, dst), offset_of!(Flow, sport), offset_of!(Flow, dport)], [16, 32, 34]);
        assert_eq!((size_of::<Verdict>(), offset_of!(Verdict, syns)), (8, 4));
    }

    #[test]
    fn addresses_are_canonical() {
        let f = Flow {
            src: crate::v4_mapped([192, 0, 2, 1]),
            dst: core::net::Ipv6Addr::LOCALHOST.octets(),
            sport: [0x9c, 0x40],
            dport: [0, 80],
        };
        assert_eq!(f.source(), "192.0.2.1:40000".parse().unwrap());
        assert_eq!(f.destination(), "[::1]:80".parse().unwrap());
    }
}
