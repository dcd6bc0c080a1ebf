//! UDP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cluster,
    world::{MTU, World},
};

const PATIENCE: Duration = Duration::from_secs(5);

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub(crate) fn sizes(world: &World) -> Result<()> {
    world.everywhere(cluster::ECHO, |_, to| {
        let socket = socket(to)?;
        let mut back = vec![0; 70_000];
        for size in [0, 1, 1000, 1452, 1472, 1473, 9000, 60_000, 65_507] {
            let sent: Vec<u8> = (0..size).map(|i: u32| (i ^ i >> 8 ^ size) as u8).collect();
            socket.send_to(&sent, to).with_context(|| format!("send {size} bytes"))?;
            let (n, from) = socket.recv_from(&mut back).with_context(|| format!("receive {size} bytes"))?;
            ensure!(from == to, "from {from}");
            ensure!(back[..n] == sent, "{size} bytes came back as {n}, or garbled");
        }
        Ok(())
    })
}

pub(crate) fn errors(world: &World) -> Result<()> {
    for (port, errno) in [(cluster::REFUSED, libc::ECONNREFUSED), (cluster::HOST_UNREACHABLE, libc::EHOSTUNREACH)] {
        world.everywhere(port, |_, to| {
            let socket = socket(to)?;
            // What may pass by itself is only said to those who ask (ip(7)).
            if errno == libc::EHOSTUNREACH {
                tell_errors(&socket, to)?;
            }
            socket.connect(to)?;
            socket.send(b"anybody?")?;
            let Err(e) = socket.recv(&mut [0; 8]) else { bail!("somebody") };
            ensure!(e.raw_os_error() == Some(errno), "{e}");
            Ok(())
        })?;
    }
    // A path that carries less: the kernel learns it, says so once, and then sends fragments.
    world.everywhere(cluster::NARROW, |_, to| {
        let socket = socket(to)?;
        socket.connect(to)?;
        let (level, name) = if to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        };
        crate::sys::set_option(&socket, level, name, libc::IP_PMTUDISC_DO)?;
        socket.send(&[0; 1400])?;
        let start = Instant::now();
        loop {
            match socket.send(&[0; 1400]) {
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(()),
                Err(e) => bail!("{e}"),
                Ok(_) if start.elapsed() > PATIENCE => bail!("the path's size was not learned"),
                Ok(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    })
}

/// Many pairs of ends at once: nobody gets another one's answer.
pub(crate) fn many(world: &World) -> Result<()> {
    for road in &world.roads {
        let sockets: Vec<_> = (0..20).map(|i| socket(road.both(1)[i % 2])).collect::<Result<_>>()?;
        for (index, socket) in sockets.iter().enumerate() {
            for host in 1..=20u8 {
                let to = at(road.both(cluster::ECHO)[index % 2], host);
                socket.send_to(&[index as u8, host], to)?;
            }
        }
        for (index, socket) in sockets.iter().enumerate() {
            for _ in 1..=20 {
                let mut back = [0; 2];
                let (_, from) = socket.recv_from(&mut back).context("an answer is missing")?;
                ensure!(back[0] == index as u8 && from == at(from, back[1]), "{back:?} from {from}");
            }
        }
        ensure!(road.gauge.read().datagrams >= 400);
        // A closed socket is noticed when an answer comes for it.
        let to = at(road.both(cluster::LATE)[0], 77);
        let before = road.gauge.read().datagrams;
        // No more than the kernel says to one host at once (icmp_ratelimit).
        for _ in 0..5 {
            let closed = socket(to)?;
            closed.send_to(b"bye", to)?;
            drop(closed);
        }
        road.wait_for("associations begin", |reading| reading.datagrams == before + 5)?;
        road.wait_for("associations of closed sockets end", |reading| reading.datagrams == before)?;
    }
    Ok(())
}

/// The same with another host.
fn at(address: SocketAddr, host: u8) -> SocketAddr {
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            [a, b, c, host].into()
        }
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            octets[15] = host;
            octets.into()
        }
    };
    (ip, address.port()).into()
}

fn tell_errors(socket: &impl AsRawFd, to: SocketAddr) -> io::Result<()> {
    let (level, name) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_RECVERR) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) };
    crate::sys::set_option(socket, level, name, 1)
}

/// A datagram socket that pings (icmp(7)).
fn pinger(to: SocketAddr) -> Result<socket2::Socket> {
    let (domain, protocol) = if to.is_ipv4() {
        (socket2::Domain::IPV4, socket2::Protocol::ICMPV4)
    } else {
        (socket2::Domain::IPV6, socket2::Protocol::ICMPV6)
    };
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    tell_errors(&socket, to)?;
    socket.connect(&to.into())?;
    Ok(socket)
}

pub(crate) fn pings(world: &World) -> Result<()> {
    world.everywhere(0, |_, to| {
        let socket = pinger(to)?;
        let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        for (sequence, size) in [(1u8, 0usize), (2, 56), (3, usize::from(MTU)), (4, 8000)] {
            let mut message = vec![request, 0, 0, 0, 0, 0, 0, sequence];
            message.extend((0..size).map(|i| i as u8));
            socket.send(&message)?;
            let mut back = vec![0; 10_000];
            let n = io::Read::read(&mut &socket, &mut back).with_context(|| format!("ping with {size} bytes"))?;
            ensure!(n == message.len() && back[0] == reply && back[6..n] == message[6..], "garbled");
        }
        let nobody = pinger(at(to, cluster::NOBODY))?;
        nobody.send(&[request, 0, 0, 0, 0, 0, 0, 1])?;
        let Err(e) = io::Read::read(&mut &nobody, &mut [0; 100]) else { bail!("nobody answered") };
        ensure!(e.raw_os_error() == Some(libc::EHOSTUNREACH), "{e}");
        Ok(())
    })
}

/// Protocols that nobody here speaks.
pub(crate) fn strangers(world: &World) -> Result<()> {
    const EXPERIMENT: i32 = 253; // RFC 3692
    world.everywhere(0, |_, to| {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(to),
            socket2::Type::RAW,
            Some(socket2::Protocol::from(EXPERIMENT)),
        )?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(&to.into())?;
        // The kernel ignores errors about less than eight bytes.
        socket.send(b"anybody?")?;
        let Err(e) = io::Read::read(&mut &socket, &mut [0; 100]) else { bail!("somebody speaks it") };
        let expected = if to.is_ipv4() { libc::ENOPROTOOPT } else { libc::EPROTO };
        ensure!(e.raw_os_error() == Some(expected), "{e}");
        Ok(())
    })
}
