//! Who is steered, and who is not.

use std::thread;

use anyhow::{Result, ensure};
use nix::sched::{CloneFlags, unshare};
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
        relay.bypass.exempt(&socket)?;
        app::ensure_untouched(&socket, to)?;
    }
    let udp = std::net::UdpSocket::bind("0.0.0.0:0")?;
    relay.bypass.exempt(&udp)?;
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
    ensure!(relay.count("bypassed")? == 5, "{}", relay.count("bypassed")?);
    ensure!(relay.count("names_asked")? + relay.count("names_answered")? == 0);
    relay.stop(world)
}

/// The widest scope reaches both groups, but not beyond the tree that is visible here.
pub(crate) fn workstation(world: &World) -> Result<()> {
    let features = tpx_datapath::linux::probe();
    ensure!(features.cgroup2.as_deref() == Some(world.tree()), "{features:?}");
    let relay = Relay::start(world, &Plan { scope: Scope::Workstation, ..plan(world) })?;
    for to in TARGETS.map(addr) {
        let socket = world.outside(|| app::stream_for(to))?;
        socket.connect(&to.into())?;
        app::ensure_echo(&socket.into(), b"everybody")?;
    }
    relay.stop(world)
}
