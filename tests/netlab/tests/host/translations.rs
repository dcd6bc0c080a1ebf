//! Virtual addresses: what connects to them reaches the address behind, and never learns of it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use tpx_core::plan::Plan;
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    datagrams,
    neighbour::{Neighbour, ip as iproute},
    relay::{Relay, UNREACHABLE, plan},
};

/// The usual plan, with virtual addresses and a subnet behind them.
pub(crate) fn virtual_plan(world: &World) -> Plan {
    let nets = |list: [&str; 2]| -> Vec<IpNet> { list.map(|n| n.parse().unwrap()).into() };
    Plan {
        virtual_subnets: nets(["246.246.0.0/17", "fd99::/112"]),
        hidden: nets(["10.97.0.0/16", "fd97::/112"]),
        ..plan(world)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Whether the kernel's table (proc_net_tcp) has a connection to `peer` from a port.
fn has_peer(peer: SocketAddr, port: u16) -> Result<bool> {
    let words = |octets: &[u8]| -> String {
        octets.chunks(4).map(|w| format!("{:08X}", u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))).collect()
    };
    let (table, text) = match peer.ip() {
        IpAddr::V4(v4) => ("tcp", words(&v4.octets())),
        IpAddr::V6(v6) => ("tcp6", words(&v6.octets())),
    };
    let (own, peer) = (format!(":{port:04X}"), format!("{text}:{:04X}", peer.port()));
    let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
    Ok(table
        .lines()
        .filter_map(|l| Some((l.split_whitespace().nth(1)?, l.split_whitespace().nth(2)?)))
        .any(|(local, remote)| local.ends_with(&own) && remote == peer))
}

pub(crate) fn reach(world: &World) -> Result<()> {
    let relay = Relay::start(world, &virtual_plan(world))?;
    // The first into a subnet that is steered as well, the second into a hidden one.
    let pairs =
        [("246.246.0.5", "10.96.3.7"), ("246.246.0.6", "10.97.3.7"), ("fd99::5", "fd96::7"), ("fd99::6", "fd97::7")];
    for (virtual_ip, real) in pairs {
        relay.translations.insert(ip(virtual_ip), ip(real))?;
        let mut tried = vec![SocketAddr::new(ip(virtual_ip), 80)];
        if let IpAddr::V4(four) = ip(virtual_ip) {
            tried.push(SocketAddr::new(four.to_ipv6_mapped().into(), 80));
        }
        for to in tried {
            let stream = app::connect(to).with_context(|| to.to_string())?;
            ensure!(stream.peer_addr()? == to, "{to}: the peer is {}", stream.peer_addr()?);
            let real = match (to, ip(real)) {
                (SocketAddr::V6(_), IpAddr::V4(four)) => IpAddr::V6(four.to_ipv6_mapped()),
                (_, real) => real,
            };
            let port = stream.local_addr()?.port();
            ensure!(has_peer(SocketAddr::new(real, 80), port)?, "{to}: the kernel knows another peer");
            ensure!(!has_peer(to, port)?, "{to}: the kernel knows the virtual address");
            app::ensure_echo(&stream, &vec![7; 300_000]).with_context(|| to.to_string())?;
        }
    }
    // Who connects to the address itself is told so.
    let direct = app::connect(addr("10.96.4.7:80"))?;
    ensure!(direct.peer_addr()? == addr("10.96.4.7:80"));
    ensure!(relay.count("translated")? == 6, "{}", relay.count("translated")?);
    ensure!(relay.count("untranslated")? == 0);
    let rows: Vec<_> = relay.dump()?.translations.iter().map(|r| (r.virtual_ip, r.real)).collect();
    ensure!(rows == pairs.map(|(v, r)| (ip(v), ip(r))), "{rows:?}");
    relay.stop(world)
}

/// The daemon is asked about those that the kernel does not know.
pub(crate) fn come_and_go(world: &World) -> Result<()> {
    let relay = Relay::start(world, &virtual_plan(world))?;
    for host in ["246.246.0.9", "fd99::9"] {
        let to = addr(&SocketAddr::new(ip(host), UNREACHABLE).to_string());
        ensure!(app::refused_with(to)? == Some(libc::EHOSTUNREACH), "{to}");
    }
    ensure!(relay.count("untranslated")? == 2 && relay.knocks() == 2);

    let all = &relay.translations;
    all.insert(ip("246.246.0.9"), ip("10.96.3.7"))?;
    all.insert(ip("246.246.0.9"), ip("10.96.3.8"))?;
    all.insert(ip("246.246.0.10"), ip("10.96.3.7"))?;
    let peers = |to: &str| -> Result<SocketAddr> { Ok(app::connect(addr(to))?.peer_addr()?) };
    ensure!(peers("246.246.0.9:80")? == addr("246.246.0.9:80"));
    ensure!(peers("246.246.0.10:80")? == addr("246.246.0.10:80"));
    all.remove(ip("246.246.0.10"))?;
    all.remove(ip("246.246.0.10"))?;
    ensure!(all.all()? == [(ip("246.246.0.9"), ip("10.96.3.8"))], "{:?}", all.all()?);
    ensure!(peers("10.96.3.7:80")? == addr("10.96.3.7:80"), "the way back was not forgotten");
    ensure!(all.insert(ip("246.246.0.9"), ip("fd96::7")).is_err());

    // An address that the listener is not given (an exception, such as one of the laptop's own) is left to the daemon.
    let translated = relay.count("translated")?;
    all.insert(ip("246.246.0.11"), ip("10.96.9.7"))?;
    ensure!(app::refused_with(addr(&format!("246.246.0.11:{UNREACHABLE}")))? == Some(libc::EHOSTUNREACH));
    ensure!(relay.count("translated")? == translated);

    // As many as fit, and one more.
    let max = tpx_ebpf_abi::maps::VIRTUAL_MAX;
    let there = all.all()?.len() as u32;
    let first = u32::from(Ipv4Addr::new(246, 240, 0, 0));
    for n in 0..max - there {
        all.insert(Ipv4Addr::from(first + n).into(), Ipv4Addr::from(first + (1 << 18) + n).into())?;
    }
    let full = all.insert(ip("246.246.0.12"), ip("10.96.3.12"));
    ensure!(matches!(full, Err(tpx_datapath::linux::TranslationError::Full)), "{full:?}");
    ensure!(peers("246.246.0.9:80")? == addr("246.246.0.9:80"));
    relay.stop(world)
}

/// A subnet moves behind virtual addresses because the host has a route of its own into it.
pub(crate) fn hidden(world: &World) -> Result<()> {
    let mut before = plan(world);
    before.steer.push("10.97.0.0/16".parse()?);
    let mut relay = Relay::start(world, &before)?;
    let to = addr("10.97.3.7:80");
    let open = app::connect(to)?;
    let open_udp = datagrams::for_target(to)?;
    open_udp.connect(to)?;
    datagrams::ensure_answer(&open_udp, to, "10.97.3.7:80")?;

    let vpn = Neighbour::plug("vpn", &["198.51.100.1/24"], &["198.51.100.2/24", "10.97.3.7/32"])?;
    iproute("route add 10.97.0.0/16 dev vpn0")?;
    let (listener, their_udp) =
        vpn.run(|| Ok((TcpListener::bind("10.97.3.7:80")?, UdpSocket::bind("10.97.3.7:80")?)))?;
    let serving = std::thread::spawn(move || -> Result<()> {
        their_udp.set_read_timeout(Some(app::PATIENCE))?;
        // Also bounds accept().
        socket2::SockRef::from(&listener).set_read_timeout(Some(app::PATIENCE))?;
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"vpn")?;
        let (_, from) = their_udp.recv_from(&mut [0; 100])?;
        their_udp.send_to(b"vpn", from)?;
        Ok(())
    });
    drop(relay.apply(world, &virtual_plan(world))?);
    relay.translations.insert(ip("246.246.0.7"), ip("10.97.3.7"))?;

    let mut said = [0; 3];
    app::connect(to)?.read_exact(&mut said).context("the VPN's host")?;
    ensure!(&said == b"vpn");
    let udp = datagrams::for_target(to)?;
    udp.send_to(b"who?", to)?;
    let (n, from) = udp.recv_from(&mut said).context("the VPN's host by UDP")?;
    ensure!((&said[..n], from) == (b"vpn".as_slice(), to), "{from}");

    let stream = app::connect(addr("246.246.0.7:80")).context("the virtual address")?;
    ensure!(stream.peer_addr()? == addr("246.246.0.7:80"));
    app::ensure_echo(&stream, b"cluster")?;
    datagrams::ensure_answer(&open_udp, to, "10.97.3.7:80").context("the association from before")?;
    app::ensure_echo(&open, b"all the time").context("the connection from before")?;
    serving.join().map_err(|_| anyhow::anyhow!("the neighbour died"))??;
    drop(vpn);
    relay.stop(world)
}
