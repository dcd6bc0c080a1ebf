//! The road without programs: names by policy rules, and nothing left behind.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;
use tpx_core::plan::{Plan, Road};
use tpx_datapath::{
    Host as _,
    linux::{Bypass, LinuxHost, Slot},
};
use tpx_netlab::World;

use crate::{
    app, floor,
    neighbour::{Neighbour, ip, route_get},
    owner,
    relay::{answered, serve_names},
};

/// ip-sysctl.rst; of this namespace.
const RP_FILTER: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";
const SERVERS: [&str; 2] = ["192.0.2.53", "2001:db8::53"];

fn plan() -> Plan {
    let servers = SERVERS.into_iter().chain(["127.0.0.53", "fe80::53"]);
    Plan { name_servers: servers.map(|s| s.parse().unwrap()).collect(), ..floor::plan(Road::Tun) }
}

fn port_53(server: &str) -> SocketAddr {
    SocketAddr::new(server.parse().unwrap(), 53)
}

/// Serves the names of a plan until it is dropped.
struct Serving {
    host: LinuxHost,
    lane: JoinSet<()>,
}

fn serve(world: &World, plan: &Plan, unsteered: &[&str]) -> Result<Serving> {
    let mut host = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(host.apply(plan))?;
    let unsteered: Vec<IpAddr> = unsteered.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
    ensure!(handover.unsteered_name_servers == unsteered, "{:?}", handover.unsteered_name_servers);
    let mut lane = JoinSet::new();
    world.block_on(async {
        for sockets in handover.dns {
            ensure!(sockets.address == SocketAddr::new(sockets.name_server, 53), "{}", sockets.address);
            serve_names(&mut lane, sockets)?;
        }
        Ok(())
    })?;
    Ok(Serving { host, lane })
}

impl Serving {
    fn stop(mut self, world: &World) -> Result<()> {
        world.block_on(async {
            self.host.revert().await?;
            self.lane.shutdown().await;
            Ok(())
        })
    }
}

/// A new socket asks, connected or not; who answered what.
fn ask_udp(server: &str, connected: bool) -> Result<String> {
    let to = port_53(server);
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(app::PATIENCE))?;
    if connected {
        socket.connect(to)?;
        socket.send(b"a?")?;
    } else {
        socket.send_to(b"a?", to)?;
    }
    said(&socket, to)
}

fn said(socket: &UdpSocket, to: SocketAddr) -> Result<String> {
    let mut answer = [0; 200];
    let (n, from) = socket.recv_from(&mut answer).with_context(|| to.to_string())?;
    ensure!(from == to, "{to}: the answer came from {from}");
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

fn ask_tcp(mut stream: &TcpStream, word: &str) -> Result<()> {
    let mut hello = vec![0; word.len()];
    stream.read_exact(&mut hello)?;
    ensure!(hello == word.as_bytes(), "{}", String::from_utf8_lossy(&hello));
    Ok(())
}

pub(crate) fn names(world: &World) -> Result<()> {
    let serving = serve(world, &plan(), &["127.0.0.53", "fe80::53"])?;
    for server in SERVERS {
        for connected in [false, true] {
            ensure!(ask_udp(server, connected)? == answered(server, "a?"), "{server} {connected}");
        }
        let stream = app::connect(port_53(server)).with_context(|| server.to_owned())?;
        ensure!(stream.peer_addr()? == port_53(server));
        ask_tcp(&stream, &answered(server, ""))?;
        app::ensure_echo(&stream, b"big question")?;
    }
    // Everybody is asked, from everywhere; only port 53 is.
    let outside = world.outside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    outside.set_read_timeout(Some(app::PATIENCE))?;
    outside.send_to(b"a?", port_53(SERVERS[0]))?;
    ensure!(said(&outside, port_53(SERVERS[0]))? == answered(SERVERS[0], "a?"));
    for other in ["192.0.2.53:5353", "192.0.2.54:53"].map(app::addr) {
        ensure!(outside.send_to(b"?", other).is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "{other}");
    }
    serving.stop(world)
}

/// The daemon's own questions leave by the real device and do not come back.
pub(crate) fn forwards(world: &World) -> Result<()> {
    let lan = Neighbour::plug(
        "lan",
        &["192.168.79.1/24", "fd79::1/64"],
        &["192.168.79.2/24", "fd79::2/64", "192.0.2.53/32", "2001:db8::53/128"],
    )?;
    // As strict as it gets: an answer whose source would be routed elsewhere is dropped.
    fs::write(RP_FILTER, "1")?;
    lan.run(|| ip("route add default via 192.168.79.1").and_then(|_| ip("-6 route add default via fd79::1")))?;
    ip("route add default via 192.168.79.2 dev lan0")?;
    ip("-6 route add default via fd79::2 dev lan0")?;
    // Hears everything at once, so that the namespace's thread stays free.
    let heard: Vec<(UdpSocket, TcpListener)> = lan
        .run(|| SERVERS.iter().map(|s| Ok((UdpSocket::bind(port_53(s))?, TcpListener::bind(port_53(s))?))).collect())?;
    let serving = serve(world, &plan(), &["127.0.0.53", "fe80::53"])?;
    let bypass = Bypass::by_device();
    for (server, (real_udp, real_tcp)) in SERVERS.iter().zip(&heard) {
        let to = port_53(server);
        ensure!(ask_udp(server, true)? == answered(server, "a?"), "{server}: steered");
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_read_timeout(Some(app::PATIENCE))?;
        bypass.exempt(&socket, to)?;
        socket.connect(to)?;
        socket.send(b"forwarded")?;
        real_udp.set_read_timeout(Some(app::PATIENCE))?;
        let mut question = [0; 16];
        let (n, from) = real_udp.recv_from(&mut question).with_context(|| format!("{server} hears nothing"))?;
        ensure!(
            &question[..n] == b"forwarded"
                && [app::addr("192.168.79.1:0").ip(), app::addr("[fd79::1]:0").ip()].contains(&from.ip()),
            "{from}"
        );
        real_udp.send_to(b"the real one", from)?;
        ensure!(said(&socket, to)? == "the real one");

        let stream = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        bypass.exempt(&stream, to)?;
        stream.connect_timeout(&to.into(), app::PATIENCE)?;
        real_tcp.accept()?;
    }
    // A server of this host needs no way out, one without a route has none.
    let local = UdpSocket::bind("0.0.0.0:0")?;
    bypass.exempt(&local, app::addr("127.0.0.53:53"))?;
    ensure!(socket2::SockRef::from(&local).device()?.is_none());
    let steered = bypass.exempt(&local, app::addr("10.96.3.7:53"));
    ensure!(steered.is_err_and(|e| e.to_string().contains("tpx0")));
    ip("route del default via 192.168.79.2 dev lan0")?;
    let nowhere = bypass.exempt(&local, app::addr("198.51.100.53:53"));
    ensure!(nowhere.is_err_and(|e| e.kind() == std::io::ErrorKind::NetworkUnreachable));
    serving.stop(world)?;
    drop((heard, lan));
    Ok(fs::write(RP_FILTER, "0")?)
}

/// Somebody on this host has port 53 of all addresses: that server's name stays out, the rest works.
pub(crate) fn own_name_server(world: &World) -> Result<()> {
    let own = UdpSocket::bind("0.0.0.0:53")?;
    let serving = serve(world, &plan(), &["192.0.2.53", "127.0.0.53", "fe80::53"])?;
    ensure!(ask_udp("2001:db8::53", true)? == answered("2001:db8::53", "a?"));
    let rules = ip("rule")?;
    ensure!(!rules.contains("192.0.2.53"), "{rules}");
    // It goes, and the next plan takes its place.
    drop(own);
    let Serving { mut host, mut lane } = serving;
    let handover = world.block_on(host.apply(&plan()))?;
    ensure!(handover.dns.len() == 2 && handover.dns[0].name_server == port_53("192.0.2.53").ip());
    world.block_on(async {
        for sockets in handover.dns.into_iter().take(1) {
            serve_names(&mut lane, sockets)?;
        }
        anyhow::Ok(())
    })?;
    ensure!(ask_udp("192.0.2.53", false)? == answered("192.0.2.53", "a?"));
    let mut fewer = plan();
    fewer.name_servers = vec!["2001:db8::53".parse()?];
    drop(world.block_on(host.apply(&fewer))?);
    let rules = ip("rule")?;
    ensure!(!rules.contains("192.0.2.53") && ip("-6 rule")?.contains("2001:db8::53"), "{rules}");
    Serving { host, lane }.stop(world)
}

pub(crate) fn killed(world: &World) -> Result<()> {
    let before = world.residue()?;
    let mut owner = owner::start(world, &plan(), false)?;
    ensure!(route_get("10.96.3.7").contains("dev tpx0"));
    owner.kill()?;
    owner.wait()?;
    std::thread::sleep(Duration::from_millis(300));
    let left = world.residue()?;
    ensure!((&left.links, &left.routes) == (&before.links, &before.routes), "{left:#?}");
    // Rules over empty tables: two for each family, four for an IPv4 name server and two for an IPv6 one.
    ensure!(left.rules.len() == before.rules.len() + 10, "{:#?}", left.rules);
    for to in ["10.96.3.7:80", "192.0.2.53:53"].map(app::addr) {
        app::ensure_untouched(&app::stream_for(to)?, to)?;
    }
    serve(world, &plan(), &["127.0.0.53", "fe80::53"])?.stop(world)
}
