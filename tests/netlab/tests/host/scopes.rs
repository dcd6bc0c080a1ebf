//! Who is steered, and who is not.

use std::{fs::File, net::SocketAddr, os::fd::AsRawFd as _, sync::mpsc, thread};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use netlink_packet_route::address::AddressHeaderFlags;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use tpx_core::plan::{Plan, Scope};
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    relay::{Relay, plan},
};

const TARGETS: [&str; 2] = ["10.96.3.7:80", "[fd96::7]:80"];

pub(crate) fn foreign_netns(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let elsewhere = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        for to in TARGETS.map(addr) {
            app::ensure_untouched(&app::stream_for(to)?, to)?;
        }
        let udp = std::net::UdpSocket::bind("0.0.0.0:0")?;
        let asked = udp.send_to(b"?", "192.0.2.53:53");
        ensure!(asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "DNS");
        Ok(())
    };
    match thread::spawn(elsewhere).join() {
        Ok(done) => done?,
        Err(_) => anyhow::bail!("the thread died"),
    }
    ensure!(relay.count("foreign_netns")? == 3, "{}", relay.count("foreign_netns")?);
    relay.stop(world)
}

/// The laptop's own network is part of what is steered, and a neighbour connects to a service of the laptop.
pub(crate) fn other_machines(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let (neighbour, laptop) = (["10.96.77.2", "fd96::7702"], ["10.96.77.1", "fd96::7701"]);
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let elsewhere = move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        tell.send(File::open("/proc/thread-self/ns/net")?)?;
        wait.recv()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(address("lan1", neighbour))?;
        for to in laptop {
            app::ensure_echo(&app::connect(SocketAddr::new(to.parse()?, 80))?, b"from next door")?;
        }
        Ok(())
    };
    let thread = thread::spawn(elsewhere);
    let netns = told.recv()?;
    world.block_on(async {
        with_netlink(async |handle| {
            let peer = LinkUnspec::new_with_name("lan1").setns_by_fd(netns.as_raw_fd()).build();
            handle.link().add(LinkVeth::new("lan0", "lan1").build()).execute().await?;
            Ok(handle.link().change(peer).execute().await?)
        })
        .await?;
        address("lan0", laptop).await
    })?;
    let services = laptop.map(|ip| std::net::TcpListener::bind((ip, 80)));
    go.send(())?;
    for service in services {
        let service = service?;
        // Also bounds accept().
        socket2::SockRef::from(&service).set_read_timeout(Some(app::PATIENCE))?;
        let (stream, _) = service.accept()?;
        std::io::copy(&mut &stream, &mut &stream)?;
    }
    match thread.join() {
        Ok(done) => done?,
        Err(_) => anyhow::bail!("the thread died"),
    }
    ensure!(relay.count("assigned")? == 0, "the listener got them");
    relay.stop(world)
}

/// Gives a device addresses and sets it up.
async fn address(device: &str, ips: [&str; 2]) -> Result<()> {
    with_netlink(async |handle| {
        let mut found = Box::pin(handle.link().get().match_name(device).execute());
        let index = found.next().await.context("no such device")??.header.index;
        for (ip, prefix) in ips.into_iter().zip([24, 120]) {
            let mut request = handle.address().add(index, ip.parse()?, prefix);
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
            request.execute().await?;
        }
        Ok(handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?)
    })
    .await
}

async fn with_netlink(work: impl AsyncFnOnce(Handle) -> Result<()>) -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let done = work(handle).await;
    connection.abort();
    done
}

pub(crate) fn outside(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in TARGETS.map(addr) {
        let socket = world.outside(|| app::stream_for(to))?;
        app::ensure_untouched(&socket, to)?;
    }
    let udp = world.outside(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
    let asked = udp.send_to(b"?", "192.0.2.53:53");
    ensure!(asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "DNS");
    ensure!(relay.count("steered")? == 0);
    relay.stop(world)
}

pub(crate) fn bypass(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    for to in TARGETS.map(addr) {
        let socket = app::stream_for(to)?;
        relay.bypass.exempt(&socket, to)?;
        app::ensure_untouched(&socket, to)?;
    }
    let udp = std::net::UdpSocket::bind("0.0.0.0:0")?;
    relay.bypass.exempt(&udp, addr("192.0.2.53:53"))?;
    for asked in [udp.send_to(b"?", "192.0.2.53:53").map(drop), udp.connect("192.0.2.53:53")] {
        ensure!(asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "DNS");
    }
    // A server on a loopback address is really asked.
    let server = std::net::UdpSocket::bind("127.0.0.53:53")?;
    udp.send_to(b"you?", "127.0.0.53:53")?;
    server.set_read_timeout(Some(app::PATIENCE))?;
    let mut question = [0; 16];
    let (n, from) = server.recv_from(&mut question)?;
    ensure!(&question[..n] == b"you?");
    server.send_to(b"me", from)?;
    udp.set_read_timeout(Some(app::PATIENCE))?;
    ensure!(udp.recv_from(&mut question)? == (2, addr("127.0.0.53:53")));
    // Another scope's daemon is not in this one's map. It ties its questions to the device that they take.
    let beside = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket2::SockRef::from(&beside).bind_device(Some(b"lo"))?;
    beside.connect("127.0.0.53:53")?;
    beside.send(b"and you?")?;
    let (n, from) = server.recv_from(&mut question)?;
    ensure!(&question[..n] == b"and you?");
    server.send_to(b"me too", from)?;
    beside.set_read_timeout(Some(app::PATIENCE))?;
    ensure!(beside.recv(&mut question)? == 6 && beside.peer_addr()? == addr("127.0.0.53:53"));
    ensure!(relay.count("bypassed")? == 5, "{}", relay.count("bypassed")?);
    ensure!(relay.count("names_asked")? + relay.count("names_answered")? == 0);
    relay.stop(world)
}

/// The widest scope reaches both groups, but not beyond the tree that is visible here.
pub(crate) fn workstation(world: &World) -> Result<()> {
    let features = tpx_datapath::linux::probe(&[]);
    ensure!(features.cgroup2.as_deref() == Some(world.tree()), "{features:?}");
    let relay = Relay::start(world, &Plan { scope: Scope::Workstation, ..plan(world) })?;
    for to in TARGETS.map(addr) {
        let socket = world.outside(|| app::stream_for(to))?;
        socket.connect(&to.into())?;
        app::ensure_echo(&socket.into(), b"everybody")?;
    }
    relay.stop(world)
}
