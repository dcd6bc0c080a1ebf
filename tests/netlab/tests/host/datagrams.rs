//! UDP: whom datagrams reach, and whom the answers come from.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use tpx_datapath::linux::Slot;
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    neighbour::{Neighbour, ip},
    relay::{NARROW, REFUSED, Relay, SILENT, TOO_BIG, UNREACHABLE, plan},
    translations::virtual_plan,
};

const TARGETS: [&str; 3] = ["10.96.3.7:5000", "[fd96::7]:5000", "[::ffff:10.96.3.7]:5000"];

/// A socket that can send to `to`.
pub(crate) fn for_target(to: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    if to.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_read_timeout(Some(app::PATIENCE))?;
    Ok(socket.into())
}

/// Sends on a connected socket and reads the answer, which names the destination as the daemon saw it.
pub(crate) fn ensure_answer(socket: &UdpSocket, to: SocketAddr, seen: &str) -> Result<()> {
    socket.send(b"hello")?;
    ensure_received(socket, to, seen, b"hello")
}

fn ensure_received(socket: &UdpSocket, from: SocketAddr, seen: &str, payload: &[u8]) -> Result<()> {
    let mut answer = vec![0; 65_536];
    let (n, actual) = socket.recv_from(&mut answer).with_context(|| format!("an answer from {from}"))?;
    ensure!(actual == from, "the answer came from {actual} instead of {from}");
    let expected = [seen.as_bytes(), b" ", payload].concat();
    ensure!(answer[..n] == expected, "{from} answered {} bytes instead of {}", n, expected.len());
    Ok(())
}

/// A destination as the daemon sees it.
fn seen(to: SocketAddr) -> String {
    SocketAddr::new(to.ip().to_canonical(), to.port()).to_string()
}

/// Must-show of the road: nothing is misattributed, whatever order sockets and destinations come in.
pub(crate) fn many(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let targets: Vec<SocketAddr> =
        (0..400).map(|n| addr(&format!("10.96.{}.{}:{}", n % 8, n / 2 % 200 + 1, 1000 + n % 2))).collect();
    ensure!(targets.iter().collect::<BTreeSet<_>>().len() == 400);
    let one = |seed: u64| -> Result<usize> {
        let socket = for_target(targets[0])?;
        // A linear congruential generator (Knuth's constants): the same order each time.
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut count = 0;
        for round in 0..134 {
            let mut wanted = BTreeSet::new();
            for n in 0..50 {
                let to = targets[next() % targets.len()];
                socket.send_to(format!("{seed} {round} {n} {to}").as_bytes(), to)?;
                wanted.insert((to, n));
            }
            for _ in 0..50 {
                let mut answer = [0; 200];
                let (length, from) = socket.recv_from(&mut answer)?;
                let text = std::str::from_utf8(&answer[..length])?;
                let words: Vec<&str> = text.split(' ').collect();
                let [daemon_saw, mine, when, n, sent_to] = words[..] else { anyhow::bail!("{text}") };
                ensure!(mine == seed.to_string() && when == round.to_string(), "another one's: {text}");
                ensure!(daemon_saw == sent_to, "the daemon saw {daemon_saw}, sent was {sent_to}");
                ensure!(from.to_string() == sent_to, "the answer of {sent_to} came from {from}");
                ensure!(wanted.remove(&(from, n.parse()?)), "twice: {text}");
                count += 1;
            }
        }
        Ok(count)
    };
    let count = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=3).map(|seed| scope.spawn(move || one(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a thread died"))).sum::<Result<usize>>()
    })?;
    ensure!(count == 20_100, "{count} datagrams came back");
    ensure!(relay.dump()?.datagrams.len() == 400, "{} indices", relay.dump()?.datagrams.len());
    ensure!(relay.count("datagrams_encoded")? == 20_100 && relay.count("datagrams_decoded")? == 20_100);
    ensure!(relay.count("datagrams_unindexed")? == 0);
    ensure!(relay.associations() <= 1200);
    relay.stop(world)
}

pub(crate) fn connected(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in TARGETS.map(addr) {
        let socket = for_target(to)?;
        socket.connect(to)?;
        ensure!(socket.peer_addr()? == to, "{to}: the peer is {}", socket.peer_addr()?);
        let own = socket.local_addr()?.ip().to_canonical();
        let expected: IpAddr =
            if to.ip().to_canonical().is_ipv4() { Slot::FIRST.ipv4().into() } else { Slot::FIRST.ipv6().into() };
        ensure!(own == expected, "{to}: the source is {own}");
        for _ in 0..3 {
            ensure_answer(&socket, to, &seen(to))?;
        }
        // The same socket somewhere else.
        let other = SocketAddr::new(to.ip(), 5001);
        socket.connect(other)?;
        ensure_answer(&socket, other, &seen(other))?;
    }
    ensure!(relay.associations() == 6, "{}", relay.associations());
    relay.stop(world)
}

pub(crate) fn unconnected(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let socket = for_target(addr("[::1]:1"))?;
    let targets: Vec<_> = TARGETS.into_iter().map(addr).filter(SocketAddr::is_ipv6).collect();
    for round in 0..100u16 {
        for to in &targets {
            let to = SocketAddr::new(to.ip(), 5000 + round);
            socket.send_to(b"six?", to)?;
            ensure_received(&socket, to, &seen(to), b"six?")?;
        }
    }
    relay.stop(world)
}

pub(crate) fn errors(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for host in ["10.96.3.7", "[fd96::7]", "[::ffff:10.96.3.7]"] {
        for (port, errno) in [(REFUSED, libc::ECONNREFUSED), (UNREACHABLE, libc::EHOSTUNREACH)] {
            let to = addr(&format!("{host}:{port}"));
            let socket = for_target(to)?;
            if port == UNREACHABLE {
                hear_all(&socket)?;
            }
            socket.connect(to)?;
            socket.send(b"?")?;
            let heard = socket.recv(&mut [0; 10]);
            ensure!(heard.as_ref().is_err_and(|e| e.raw_os_error() == Some(errno)), "{to}: {heard:?}");
        }
        let to = addr(&format!("{host}:{SILENT}"));
        let socket = for_target(to)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.send(b"?")?;
        let heard = socket.recv(&mut [0; 10]);
        ensure!(heard.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock), "{to}: {heard:?}");
    }
    // Path MTU discovery (IP_PMTUDISC_DO of ip(7)): large ones are refused, each time, small ones pass.
    for host in ["10.96.3.7", "[fd96::7]"] {
        let to = addr(&format!("{host}:{TOO_BIG}"));
        let socket = for_target(to)?;
        discover(&socket)?;
        socket.connect(to)?;
        for _ in 0..3 {
            let sent = socket.send(&vec![1; NARROW as usize]);
            let heard = sent.and_then(|_| socket.recv(&mut [0; 10]));
            ensure!(heard.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE)), "{to}: {heard:?}");
        }
        ensure_answer(&socket, to, &seen(to))?;
        // The host has learned it: for another socket the kernel says so at once.
        let other = for_target(to)?;
        discover(&other)?;
        let sent = other.send_to(&vec![1; NARROW as usize], to);
        ensure!(sent.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE)), "{to}: {sent:?}");
    }
    relay.stop(world)
}

/// Datagrams of this socket are not fragmented.
fn discover(socket: &UdpSocket) -> Result<()> {
    if socket.local_addr()?.is_ipv6() {
        set(socket, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    } else {
        set(socket, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    }
}

/// Without this the kernel tells a socket of refused datagrams only (RFC 1122, 4.1.3.3; `fatal` in icmp_err_convert).
fn hear_all(socket: &UdpSocket) -> Result<()> {
    if socket.local_addr()?.is_ipv6() {
        set(socket, libc::SOL_IPV6, libc::IPV6_RECVERR, 1)?;
    }
    set(socket, libc::SOL_IP, libc::IP_RECVERR, 1)
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the kernel reads one integer, which outlives the call.
    #[expect(unsafe_code, reason = "no safe crate sets these options")]
    let r = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    ensure!(r == 0, "setsockopt: {}", io::Error::last_os_error());
    Ok(())
}

pub(crate) fn large(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in TARGETS.map(addr) {
        let socket = for_target(to)?;
        let payload: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
        for _ in 0..5 {
            socket.send_to(&payload, to)?;
            ensure_received(&socket, to, &seen(to), &payload)?;
        }
    }
    relay.stop(world)
}

/// QUIC implementations hand many datagrams over at once (UDP_SEGMENT of udp(7)).
pub(crate) fn segmented(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in TARGETS.map(addr) {
        let socket = for_target(to)?;
        set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 1200)?;
        let payload: Vec<u8> = (0..12_500u32).map(|n| (n % 251) as u8).collect();
        for connect in [false, true] {
            if connect {
                socket.connect(to)?;
                socket.send(&payload)?;
            } else {
                socket.send_to(&payload, to)?;
            }
            for part in payload.chunks(1200) {
                ensure_received(&socket, to, &seen(to), part)?;
            }
        }
    }
    relay.stop(world)
}

/// What finds no index is left to the floor; what has one keeps it.
pub(crate) fn full(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let first = addr(TARGETS[0]);
    let (known, socket) = (for_target(first)?, for_target(first)?);
    known.connect(first)?;
    ensure_answer(&known, first, &seen(first))?;
    for n in 1..tpx_ebpf_abi::maps::TARGETS_MAX {
        let ip = std::net::Ipv4Addr::new(10, 96, 16 + (n >> 12) as u8, (n >> 4) as u8);
        socket.send_to(b"?", (ip, 20_000 + (n & 15) as u16))?;
    }
    ensure!(relay.count("datagrams_unindexed")? == 0, "{}", relay.count("datagrams_unindexed")?);
    ensure!(relay.dump()?.datagrams.len() == tpx_ebpf_abi::maps::TARGETS_MAX as usize);
    // The floor takes it, from the same socket.
    socket.send_to(b"too many", "10.96.3.8:5000")?;
    crate::floor::Tun::new(relay.device.try_clone()?).udp_to(addr("10.96.3.8:5000"))?;
    ensure!(relay.count("datagrams_unindexed")? == 1);
    ensure_answer(&known, first, &seen(first)).context("a known destination")?;
    relay.stop(world)
}

/// The source is the application's affair, even where the laptop's own network is part of what is steered.
pub(crate) fn bound(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let own = ["192.168.77.5", "10.96.77.5", "fd77::5", "fd96::7705"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let change = |verb: &str| -> Result<()> {
        own.iter().try_for_each(|own| {
            let nodad = if own.is_ipv6() { "nodad" } else { "" };
            ip(&format!("address {verb} {own} dev lo {nodad}")).map(drop)
        })
    };
    change("add")?;
    let result = own.into_iter().try_for_each(|own| -> Result<()> {
        let to = addr(if own.is_ipv4() { TARGETS[0] } else { TARGETS[1] });
        for connect in [false, true] {
            let socket = UdpSocket::bind((own, 0))?;
            socket.set_read_timeout(Some(app::PATIENCE))?;
            if connect {
                socket.connect(to)?;
                ensure!(socket.local_addr()?.ip() == own);
                ensure_answer(&socket, to, &seen(to))?;
            } else {
                socket.send_to(b"bound", to)?;
                ensure_received(&socket, to, &seen(to), b"bound").with_context(|| format!("from {own}"))?;
            }
        }
        Ok(())
    });
    change("del")?;
    result?;
    relay.stop(world)
}

/// Virtual destinations reach the daemon as they are. Name servers come first, whatever the subnet they are in.
pub(crate) fn virtual_addresses(world: &World) -> Result<()> {
    let mut plan = virtual_plan(world);
    plan.except.push("10.96.0.10/32".parse()?);
    plan.name_servers.push("10.96.0.10".parse()?);
    let relay = Relay::start(world, &plan)?;
    relay.translations.insert("246.246.0.5".parse()?, "10.96.3.7".parse()?)?;
    for to in ["246.246.0.5:123", "246.246.0.99:123", "[fd99::5]:123", "[::ffff:246.246.0.5]:123"].map(addr) {
        let socket = for_target(to)?;
        socket.send_to(b"virtual", to)?;
        ensure_received(&socket, to, &seen(to), b"virtual")?;
        socket.connect(to)?;
        ensure!(socket.peer_addr()? == to);
        ensure_answer(&socket, to, &seen(to))?;
    }
    let socket = for_target(addr("10.96.0.10:53"))?;
    socket.send_to(b"a?", "10.96.0.10:53")?;
    let mut answer = [0; 100];
    let (n, from) = socket.recv_from(&mut answer)?;
    ensure!(from == addr("10.96.0.10:53") && answer[..n] == *b"10.96.0.10 says a?");
    // The cluster's DNS, which is no name server of this host.
    socket.send_to(b"a?", "10.96.0.11:53")?;
    ensure_received(&socket, addr("10.96.0.11:53"), "10.96.0.11:53", b"a?")?;
    relay.stop(world)
}

/// Sockets that are tied to a device, connected before, or exceptions.
pub(crate) fn left(world: &World) -> Result<()> {
    let to = addr(TARGETS[0]);
    let early = UdpSocket::bind("127.0.0.1:0")?;
    let peer = UdpSocket::bind("127.0.0.1:0")?;
    early.connect(peer.local_addr()?)?;
    let relay = Relay::start(world, &plan(world))?;
    let tied = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    tied.bind_device(Some(b"lo"))?;
    // The host's routes decide; there are none through this device.
    let _ = tied.send_to(b"?", &to.into());
    ensure!(relay.count("datagrams_bound")? == 1);
    early.send(b"as ever")?;
    peer.set_read_timeout(Some(app::PATIENCE))?;
    ensure!(peer.recv(&mut [0; 20])? == 7);
    let _ = for_target(to)?.send_to(b"?", "10.96.9.7:5000");
    ensure!(relay.count("datagrams_encoded")? == 0 && relay.associations() == 0);
    relay.stop(world)
}

/// Addresses that stand for destinations are good on this host only.
pub(crate) fn other_machines(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let mut targets = Vec::new();
    for to in [TARGETS[0], TARGETS[1]].map(addr) {
        let socket = for_target(to)?;
        socket.connect(to)?;
        ensure_answer(&socket, to, &seen(to))?;
        let rows = relay.dump()?.datagrams;
        let index = rows.iter().find(|row| row.destination == to).context("no index")?.index;
        let ip: IpAddr = match to {
            SocketAddr::V4(_) => Slot::FIRST.encode4(index).into(),
            SocketAddr::V6(_) => Slot::FIRST.encode6(index).into(),
        };
        targets.push(ip);
    }
    let table = std::fs::read_to_string("/proc/thread-self/net/udp")?;
    let port = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.strip_prefix("01FFF6F6:"))
        .find_map(|hex| u16::from_str_radix(hex, 16).ok())
        .context("the daemon's socket")?;
    // From this host it is possible: this is the way that steered datagrams take.
    ensure!(relay.associations() == 2);
    let inside = for_target(SocketAddr::new(targets[0], port))?;
    inside.send_to(b"inside", (targets[0], port))?;
    inside.recv(&mut [0; 100])?;
    ensure!(relay.associations() == 3 && relay.count("datagrams_assigned")? >= 3);

    let before = relay.count("datagrams_assigned")?;
    let own = [IpAddr::from(Slot::FIRST.ipv4()), IpAddr::from(Slot::FIRST.ipv6())];
    let here = ["198.51.100.1/24", "fd51::1/64"];
    let neighbour = Neighbour::plug("lan", &here, &["198.51.100.2/24", "fd51::2/64"])?;
    neighbour.run(move || {
        for to in targets.iter().chain(&own) {
            ip(&format!("route add {to} via {}", if to.is_ipv4() { "198.51.100.1" } else { "fd51::1" }))?;
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            socket.connect((*to, port))?;
            socket.send(b"from next door")?;
            ensure!(socket.recv(&mut [0; 100]).is_err(), "{to} answered");
        }
        Ok(())
    })?;
    drop(neighbour);
    ensure!(relay.count("datagrams_assigned")? == before, "the daemon's socket was given them");
    ensure!(relay.associations() == 3);
    relay.stop(world)
}
