//! Name servers: who answers, and under which name.

use std::{
    io::Read as _,
    net::{SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    relay::{Relay, answered, plan},
};

const SERVERS: [&str; 3] = ["192.0.2.53", "127.0.0.53", "2001:db8::53"];

fn port_53(server: &str) -> SocketAddr {
    SocketAddr::new(server.parse().unwrap(), 53)
}

fn udp(at: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(at)?;
    socket.set_read_timeout(Some(app::PATIENCE))?;
    Ok(socket)
}

fn for_server(server: &str) -> Result<UdpSocket> {
    udp(if port_53(server).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
}

pub(crate) fn udp_connected(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for server in SERVERS {
        let socket = for_server(server)?;
        socket.connect(port_53(server))?;
        ensure!(socket.peer_addr()? == port_53(server), "{server}: getpeername() says {}", socket.peer_addr()?);
        socket.send(b"a?")?;
        let mut answer = [0; 100];
        let (n, from) = socket.recv_from(&mut answer).with_context(|| server.to_owned())?;
        ensure!(from == port_53(server), "{server}: the answer came from {from}");
        ensure!(answer[..n] == *answered(server, "a?").as_bytes(), "{server}");
    }
    relay.stop(world)
}

/// musl's resolver: one socket asks all servers and checks where each answer comes from.
pub(crate) fn udp_unconnected(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for family in ["0.0.0.0:0", "[::]:0"] {
        let socket = udp(family)?;
        let mine = |s: &&str| port_53(s).is_ipv4() == socket.local_addr().is_ok_and(|a| a.is_ipv4());
        let servers: Vec<_> = SERVERS.into_iter().filter(mine).collect();
        for round in 0..50 {
            for server in &servers {
                socket.send_to(format!("q{round}").as_bytes(), port_53(server))?;
            }
            for _ in &servers {
                let mut answer = [0; 100];
                let (n, from) = socket.recv_from(&mut answer)?;
                ensure!(servers.iter().any(|s| port_53(s) == from), "an answer came from {from}");
                let expected = answered(&from.ip().to_string(), &format!("q{round}"));
                ensure!(answer[..n] == *expected.as_bytes(), "{from} gave another one's answer");
            }
        }
    }
    ensure!(relay.count("names_asked")? == 150 && relay.count("names_answered")? == 150);
    relay.stop(world)
}

/// A dual-stack socket writes IPv4 servers as IPv4-mapped addresses.
pub(crate) fn udp_mapped(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let both = || -> Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_read_timeout(Some(app::PATIENCE))?;
        Ok(socket.into())
    };
    for server in ["192.0.2.53", "127.0.0.53"] {
        let mapped = addr(&format!("[::ffff:{server}]:53"));
        for connected in [false, true] {
            let what = || format!("{mapped} connected: {connected}");
            let socket = both()?;
            if connected {
                socket.connect(mapped)?;
                ensure!(socket.peer_addr()? == mapped, "{}: getpeername() says {}", what(), socket.peer_addr()?);
                socket.send(b"six?")?;
            } else {
                socket.send_to(b"six?", mapped)?;
            }
            let mut answer = [0; 100];
            let (n, from) = socket.recv_from(&mut answer).with_context(what)?;
            ensure!(from == mapped, "{}: the answer came from {from}", what());
            ensure!(answer[..n] == *answered(server, "six?").as_bytes(), "{}", what());
        }
    }
    relay.stop(world)
}

pub(crate) fn tcp(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let mapped = addr("[::ffff:192.0.2.53]:53");
    for (server, to) in SERVERS.map(|s| (s, port_53(s))).into_iter().chain([("192.0.2.53", mapped)]) {
        let mut stream = app::connect(to).with_context(|| to.to_string())?;
        ensure!(stream.peer_addr()? == to, "{to}: getpeername() says {}", stream.peer_addr()?);
        let mut hello = vec![0; answered(server, "").len()];
        stream.read_exact(&mut hello)?;
        ensure!(hello == answered(server, "").as_bytes(), "{to}");
        app::ensure_echo(&stream, b"big question")?;
    }
    relay.stop(world)
}

/// Other ports of the servers, other servers, and sockets tied to a device.
pub(crate) fn others(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let socket = udp("0.0.0.0:0")?;
    for to in ["192.0.2.53:5353", "192.0.2.54:53"] {
        let asked = socket.send_to(b"?", to);
        ensure!(asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "{to}");
    }
    let tied = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    tied.bind_device(Some(b"lo"))?;
    tied.connect(&port_53("192.0.2.53").into())?;
    let peer = tied.peer_addr()?.as_socket();
    ensure!(peer == Some(port_53("192.0.2.53")), "{peer:?}");
    ensure!(relay.count("names_asked")? == 0, "{}", relay.count("names_asked")?);
    // A laptop's own name server on all addresses keeps its port.
    let own = UdpSocket::bind("0.0.0.0:53")?;
    let asker = udp("0.0.0.0:0")?;
    asker.send_to(b"mine", "127.0.0.1:53")?;
    own.set_read_timeout(Some(app::PATIENCE))?;
    ensure!(own.recv_from(&mut [0; 16])?.1.port() == asker.local_addr()?.port());
    relay.stop(world)
}
