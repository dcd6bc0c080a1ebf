//! TCP: what reaches the cluster and how it fails.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tpx_core::plan::Road;
use tpx_datapath::{
    Host as _,
    linux::{Feature, LinuxHost, Slot, probe},
};
use tpx_ebpf_abi::mark;
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    neighbour,
    relay::{ECHO, REFUSED, Relay, SILENT, UNREACHABLE, plan},
};

const V4: &str = "10.96.3.7:80";

/// The programs pass the verifier, and the probe promises no less.
pub(crate) fn loads(world: &World) -> Result<()> {
    let features = probe(&[]);
    ensure!(features.express_lane(1000) == Ok(()), "{features:?}");
    let new = aya::util::KernelVersion::current()? >= aya::util::KernelVersion::new(6, 6, 0);
    ensure!(features.missing == if new { vec![] } else { vec![Feature::Tcx] }, "{features:?}");
    Relay::start(world, &plan(world))?.stop(world)
}

/// Without what the express lane needs it says so, and the floor carries; without anything else it goes on.
pub(crate) fn features(world: &World) -> Result<()> {
    for missing in [Feature::ConnectHooks, Feature::SkLookup, Feature::SocketFilter] {
        let why = probe(&[missing]).express_lane(1000);
        ensure!(why.as_ref().is_err_and(|why| why.contains(missing.about())), "{missing}: {why:?}");
        let mut host = LinuxHost::new(Slot::FIRST).without([missing]);
        let refused = world.block_on(host.apply(&plan(world))).err();
        ensure!(refused.as_ref().is_some_and(|e| Some(e.to_string()) == why.err()), "{missing}: {refused:?}");
        let floor = crate::floor::plan(Road::Tun);
        let handover = world.block_on(host.apply(&floor)).with_context(|| missing.to_string())?;
        ensure!(handover.express.is_none() && neighbour::route_get("10.96.3.7").contains("dev tpx0"));
        drop(handover);
        world.block_on(host.revert())?;
    }
    let maps = Feature::UserMaps;
    ensure!(probe(&[maps]).express_lane(0).is_ok() && probe(&[maps]).express_lane(1000).is_err());
    let mut host = LinuxHost::new(Slot::FIRST).without([Feature::Tcx, maps]);
    let handover = world.block_on(host.apply(&plan(world)))?;
    Relay::serve(world, host, handover)?.stop(world)
}

pub(crate) fn reach(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in [V4, "[fd96::7]:80", "[::ffff:10.96.3.7]:80"].map(addr) {
        let stream = app::connect(to).with_context(|| to.to_string())?;
        ensure!(stream.peer_addr()? == to, "{to}: the peer is {}", stream.peer_addr()?);
        let own = stream.local_addr()?.ip().to_canonical();
        let expected: std::net::IpAddr =
            if to.ip().to_canonical().is_ipv4() { Slot::FIRST.ipv4().into() } else { Slot::FIRST.ipv6().into() };
        ensure!(own == expected, "{to}: the source is {own}");
        app::ensure_echo(&stream, &vec![7; 300_000]).with_context(|| to.to_string())?;
    }
    ensure!(relay.count("steered")? == 3 && relay.count("syns_held")? == 3, "counters");
    relay.stop(world)
}

pub(crate) fn failures(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for host in ["10.96.3.7", "[fd96::7]"] {
        ensure!(app::refused_with(addr(&format!("{host}:{REFUSED}")))? == Some(libc::ECONNREFUSED), "{host}: refused");
        ensure!(
            app::refused_with(addr(&format!("{host}:{UNREACHABLE}")))? == Some(libc::EHOSTUNREACH),
            "{host}: unreachable"
        );
        let start = Instant::now();
        let waited = TcpStream::connect_timeout(&addr(&format!("{host}:{SILENT}")), Duration::from_millis(1300));
        ensure!(waited.is_err() && start.elapsed() > Duration::from_millis(1250), "{host}: silent");
    }
    // The silent ones were repeated after a second; nobody was asked again.
    ensure!(relay.count("syns_held")? + relay.count("syns_repeated")? > 6, "no SYN was repeated");
    ensure!(relay.knocks() == 6, "{} attempts instead of 6", relay.knocks());
    relay.stop(world)
}

/// IP options, MPTCP, TCP Fast Open with little and much data.
pub(crate) fn odd_syns(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let to = addr(V4);

    let socket = app::stream_for(to)?;
    // Router alert (RFC 2113): four bytes of IP options on every packet.
    setsockopt(&socket, libc::SOL_IP, libc::IP_OPTIONS, &[0x94u8, 4, 0, 0])?;
    socket.connect(&to.into()).context("IP options")?;
    app::ensure_echo(&TcpStream::from(socket), b"options")?;

    let multipath = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP)))?;
    multipath.set_read_timeout(Some(app::PATIENCE))?;
    multipath.connect(&to.into()).context("MPTCP")?;
    ensure!(multipath.peer_addr()? == SockAddr::from(to));
    app::ensure_echo(&TcpStream::from(multipath), b"multipath")?;

    // Send and accept data on the SYN without cookies (tcp_fastopen of networking/ip-sysctl.rst); this namespace only.
    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "519")?;
    for (to, size) in [(V4, 100), (V4, 1400), (V4, 20_000), ("[fd96::7]:80", 100), ("[fd96::7]:80", 20_000)] {
        let to = addr(to);
        let socket = app::stream_for(to)?;
        let data = vec![5u8; size];
        let sent =
            socket.send_to_with_flags(&data, &to.into(), libc::MSG_FASTOPEN).with_context(|| format!("{to} {size}"))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(&data[sent..])?;
        let mut back = vec![0; size];
        std::io::Read::read_exact(&mut stream, &mut back)
            .with_context(|| format!("{to}: {size} bytes with the SYN"))?;
        ensure!(back == data, "{to}: {size} bytes came back different");
    }
    ensure!(relay.count("syns_cut")? == 2, "two SYNs were too long to carry: {}", relay.count("syns_cut")?);
    ensure!(relay.count("syns_lost")? == 0, "SYNs were lost");
    relay.stop(world)
}

fn setsockopt(socket: &Socket, level: i32, name: i32, value: &[u8]) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the kernel reads `value`, which outlives the call.
    #[expect(unsafe_code, reason = "no safe crate sets IP options")]
    let r = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    ensure!(r == 0, "setsockopt: {}", std::io::Error::last_os_error());
    Ok(())
}

pub(crate) fn many(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let outcomes = world.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for n in 0..500u16 {
            let port = if n % 10 == 0 { REFUSED } else { ECHO };
            let to = addr(&format!("10.96.{}.{}:{port}", n / 200 + 1, n % 200 + 1));
            all.spawn(async move { (port, tokio::net::TcpStream::connect(to).await.map(drop)) });
        }
        all.join_all().await
    });
    for (port, outcome) in outcomes {
        match (port, outcome) {
            (ECHO, Ok(())) => {}
            (REFUSED, Err(e)) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {}
            (port, other) => anyhow::bail!("port {port}: {other:?}"),
        }
    }
    ensure!(relay.count("syns_lost")? == 0, "{} SYNs found no room", relay.count("syns_lost")?);
    ensure!(relay.knocks() == 500, "{} attempts instead of 500", relay.knocks());
    relay.stop(world)
}

pub(crate) fn marks(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let local = TcpListener::bind("127.0.0.1:0")?;
    let foreign = 0x0005_ca6c;
    let socket = app::stream_for(addr(V4))?;
    socket.set_mark(foreign)?;
    let refused = socket.connect(&addr("10.96.3.7:81").into());
    ensure!(refused.is_err_and(|e| e.raw_os_error() == Some(libc::ECONNREFUSED)));
    ensure!(socket.mark()? == foreign | mark::steer(Slot::FIRST), "steered: {:#x}", socket.mark()?);
    // The same socket somewhere else.
    socket.connect(&local.local_addr()?.into())?;
    ensure!(socket.mark()? == foreign | mark::member(Slot::FIRST), "elsewhere: {:#x}", socket.mark()?);
    ensure!(relay.count("unmarked")? == 1);

    // A mark that a VPN compares as a whole is neither steered by the rule nor changed.
    let other = app::stream_for(addr(V4))?;
    other.set_mark(0x6d6f_6c65)?;
    other.connect(&local.local_addr()?.into())?;
    ensure!(other.mark()? == 0x6d6f_6c65, "{:#x}", other.mark()?);
    relay.stop(world)
}

pub(crate) fn bound_to_device(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in [V4, "[fd96::7]:80"].map(addr) {
        let socket = app::stream_for(to)?;
        socket.bind_device(Some(b"lo"))?;
        socket.connect(&to.into()).with_context(|| to.to_string())?;
        ensure!(socket.device()?.is_none(), "still bound");
        app::ensure_echo(&TcpStream::from(socket), b"unbound")?;
    }
    relay.stop(world)
}

pub(crate) fn exceptions(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let to = addr("10.96.9.7:80");
    app::ensure_left(&app::stream_for(to)?, to, mark::member(Slot::FIRST))?;
    ensure!(relay.count("steered")? == 0);
    relay.stop(world)
}

/// The listener's own address is no way in.
pub(crate) fn stray(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let mut listening = Vec::new();
    for line in std::fs::read_to_string("/proc/self/net/tcp")?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields[3] == "0A" && fields[1].starts_with("01FFF6F6:") {
            listening.push(u16::from_str_radix(&fields[1][9..], 16)?);
        }
    }
    ensure!(listening.len() == 1, "listeners at {}: {listening:?}", Slot::FIRST.ipv4());
    let to = (Slot::FIRST.ipv4(), listening[0]).into();
    ensure!(TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err(), "{to} answered");
    ensure!(relay.count("syns_stray")? >= 1);
    ensure!(relay.count("syns_held")? == 0);
    relay.stop(world)
}
