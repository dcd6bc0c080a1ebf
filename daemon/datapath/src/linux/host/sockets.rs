//! The sockets that need privilege to be made, but none to be used.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tpx_ebpf_abi::{
    maps::{DATAGRAMS4, DATAGRAMS6, LISTENER4, LISTENER6},
    mark,
    slot::{DNS_PORTS, NAMES, Slot},
};

use super::{programs::Programs, system};
use crate::{
    HostError,
    linux::{DnsSockets, sys},
};

/// Connections that wait for accept(); net.core.somaxconn is the kernel's own bound.
const BACKLOG: i32 = 4096;
const DNS_BACKLOG: i32 = 256;
/// Bytes of datagrams that wait for the daemon, with the kernel's overhead.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Ports that are tried.
const PORT_TRIES: u32 = 16;

/// The transparent listeners for both families, with the filter that holds SYNs, registered with the programs.
pub(super) fn listeners(slot: Slot, ipv6: bool, programs: &mut Programs) -> Result<[OwnedFd; 2], HostError> {
    let mut make = |index, own: IpAddr| -> Result<OwnedFd, HostError> {
        let socket = listener(own).map_err(|e| system(format!("prepare the listener at {own}"), e))?;
        // The filter comes before listen(): no SYN may slip through.
        programs.hold(&socket)?;
        socket.listen(BACKLOG).map_err(|e| system(format!("listen at {own}"), e))?;
        programs.set_socket(index, &socket)?;
        Ok(OwnedFd::from(socket))
    };
    Ok([make(LISTENER4, slot.ipv4().into())?, make(LISTENER6, six_or_four(slot, ipv6))?])
}

/// Without IPv6 the second socket of a pair is one that nothing ever reaches.
fn six_or_four(slot: Slot, ipv6: bool) -> IpAddr {
    if ipv6 { slot.ipv6().into() } else { slot.ipv4().into() }
}

fn listener(own: IpAddr) -> io::Result<Socket> {
    let at = SocketAddr::new(own, 0);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Accepted sockets have cluster addresses as their own.
    if own.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(at))?;
    sys::set_fast_open(&socket, BACKLOG)?;
    Ok(socket)
}

/// The UDP sockets that datagrams for the cluster arrive at.
#[derive(Debug)]
pub(super) struct Datagrams {
    sockets: [Socket; 2],
    /// Both have it.
    pub(super) port: u16,
}

impl Datagrams {
    /// Makes them, at the device's own addresses: what else comes there is for nobody. The port is any free one, so that
    /// no program of the laptop's is in the way, and sockets from before a restart do not find the new ones.
    pub(super) fn open(slot: Slot, ipv6: bool) -> Result<Self, HostError> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            match datagrams(slot, ipv6) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = Some(e),
                other => return other.map_err(|e| system("prepare the sockets for datagrams", e)),
            }
        }
        let e = last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
        Err(system("find a port that is free for both families", e))
    }

    /// Registers them with the programs.
    pub(super) fn register(&self, programs: &mut Programs) -> Result<(), HostError> {
        programs.set_socket(DATAGRAMS4, &self.sockets[0])?;
        programs.set_socket(DATAGRAMS6, &self.sockets[1])
    }

    /// Copies for the user daemon.
    pub(super) fn copies(&self) -> io::Result<[OwnedFd; 2]> {
        let [four, six] = &self.sockets;
        Ok([four.try_clone()?.into(), six.try_clone()?.into()])
    }
}

fn datagrams(slot: Slot, ipv6: bool) -> io::Result<Datagrams> {
    let four = datagram_socket(slot, SocketAddr::new(slot.ipv4().into(), 0))?;
    let port = four.local_addr()?.as_socket().map_or(0, |a| a.port());
    // A second one at the same IPv4 address needs a port of its own.
    let at = six_or_four(slot, ipv6);
    let six = datagram_socket(slot, SocketAddr::new(at, if ipv6 { port } else { 0 }))?;
    Ok(Datagrams { sockets: [four, six], port })
}

fn datagram_socket(slot: Slot, at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if at.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        // Answers come from addresses that no device has.
        socket.set_freebind_v6(true)?;
    }
    // A burst waits here while the daemon does something else.
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    // What the daemon sends is never steered, wherever the application's address lies.
    socket.set_mark(mark::reinject(slot))?;
    socket.bind(&SockAddr::from(at))?;
    Ok(socket)
}

/// Raw sockets that send whole packets, marked so that the filter lets them pass and the rule leads them right.
pub(super) fn raws(slot: Slot, ipv6: bool) -> Result<[OwnedFd; 2], HostError> {
    let make = |domain| -> io::Result<OwnedFd> {
        // IPPROTO_RAW: the IP header is part of what is sent (raw(7)), and nothing is received.
        let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.set_mark(mark::reinject(slot))?;
        Ok(socket.into())
    };
    let six = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let both = || Ok([make(Domain::IPV4)?, make(six)?]);
    both().map_err(|e| system("prepare the raw sockets", e))
}

/// The sockets that answer for one name server, at an address of tpx's own.
pub(super) fn dns(name_server: IpAddr, address: SocketAddr) -> Result<DnsSockets, HostError> {
    dns_pair(name_server, address, |socket, kind| {
        // Connections of the datapath before may linger in TIME_WAIT. For UDP the option would let any other user have
        // the port as well.
        if kind == Type::STREAM { socket.set_reuse_address(true) } else { Ok(()) }
    })
}

/// The first port that nobody has taken at all of the host's addresses.
///
/// # Errors
/// When somebody has them all.
pub(super) fn free_names_port(slot: Slot, ipv6: bool) -> Result<u16, HostError> {
    // The last to be used, so that nothing of a datapath before is there.
    let own = [slot.dns4(NAMES - 1).map(IpAddr::V4), slot.dns6(NAMES - 1).map(IpAddr::V6).filter(|_| ipv6)];
    let bind = |address: SocketAddr, kind: Type| -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?
        } else {
            socket.set_freebind_v6(true)?
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SockAddr::from(address))
    };
    let take = |port: u16| {
        let addresses = own.iter().flatten().map(|ip| SocketAddr::new(*ip, port));
        addresses.flat_map(|a| [(a, Type::DGRAM), (a, Type::STREAM)]).try_for_each(|(a, kind)| bind(a, kind))
    };
    let mut last = io::ErrorKind::AddrInUse.into();
    for port in DNS_PORTS {
        match take(port) {
            Ok(()) => return Ok(port),
            Err(e) => last = e,
        }
    }
    Err(system(format!("find a port for names ({DNS_PORTS:?})"), last))
}

/// The same at the name server's own address, which this host does not have. Needs CAP_NET_BIND_SERVICE.
pub(super) fn transparent_dns(name_server: IpAddr) -> Result<DnsSockets, HostError> {
    dns_pair(name_server, SocketAddr::new(name_server, tpx_ebpf_abi::DNS_PORT), |socket, _| {
        // Both binds and answers; without it the kernel refuses to send from a foreign address.
        if name_server.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }?;
        // A user daemon that lingers may still have the sockets of the datapath before; questions go to the newest.
        // Nobody without privilege gets this port of that address.
        socket.set_reuse_address(true)
    })
}

fn dns_pair(
    name_server: IpAddr,
    address: SocketAddr,
    prepare: impl Fn(&Socket, Type) -> io::Result<()>,
) -> Result<DnsSockets, HostError> {
    let make = |kind: Type, protocol| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
        prepare(&socket, kind)?;
        socket.bind(&SockAddr::from(address))?;
        Ok(socket)
    };
    let both = || {
        let udp = make(Type::DGRAM, Protocol::UDP)?;
        let tcp = make(Type::STREAM, Protocol::TCP)?;
        tcp.listen(DNS_BACKLOG)?;
        Ok(DnsSockets { name_server, address, udp: udp.into(), tcp: tcp.into() })
    };
    both().map_err(|e| system(format!("answer DNS at {address}"), e))
}
