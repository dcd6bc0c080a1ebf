//! What must not be reached: refused in the call itself, and nothing is sent.

use std::{io, net::UdpSocket};

use anyhow::{Context as _, Result, ensure};
use tpx_core::{plan::Plan, policy::DenyWith};
use tpx_datapath::linux::Slot;
use tpx_ebpf_abi::mark;
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    datagrams,
    relay::{ECHO, Relay, plan},
    translations::virtual_plan,
};

/// Denied and allowed by address, in each family and form; the port is [`ECHO`].
const DENIED: [&str; 3] = ["10.96.7.7", "[fd96::7:7]", "[::ffff:10.96.7.7]"];
const ALLOWED: [&str; 3] = ["10.96.8.7", "[fd96::8:7]", "[::ffff:10.96.8.7]"];
/// Denied everywhere.
const PORT: u16 = 25;

fn denying(plan: Plan) -> Plan {
    Plan {
        deny: ["10.96.7.0/24", "fd96::7:0/112"].map(|net| net.parse().unwrap()).into(),
        deny_ports: vec![PORT],
        ..plan
    }
}

/// The usual plan with more of IPv6 in it.
fn wide(world: &World) -> Plan {
    Plan { steer: vec!["10.96.0.0/16".parse().unwrap(), "fd96::/64".parse().unwrap()], ..plan(world) }
}

fn errno<T>(done: io::Result<T>) -> Option<i32> {
    done.err().and_then(|e| e.raw_os_error())
}

/// All ways into the cluster end with `errno`, and allowed ones go on; nothing of what was denied came to the daemon.
fn ensure_denied(relay: &Relay, expected: i32) -> Result<()> {
    let before = (relay.count("denied")?, relay.count("steered")?, relay.count("datagrams_encoded")?, relay.knocks());
    let port = ALLOWED.map(|host| format!("{host}:{PORT}"));
    let all: Vec<String> = DENIED.iter().map(|host| format!("{host}:{ECHO}")).chain(port).collect();
    for to in all.iter().map(|to| addr(to)) {
        ensure!(errno(app::connect(to)) == Some(expected), "{to}: TCP says {:?}", app::connect(to));
        let udp = datagrams::for_target(to)?;
        ensure!(errno(udp.send_to(b"?", to)) == Some(expected), "{to}: sendto says {:?}", udp.send_to(b"?", to));
        ensure!(errno(udp.connect(to)) == Some(expected), "{to}: UDP's connect says {:?}", udp.connect(to));
    }
    ensure!(relay.count("denied")? == before.0 + 3 * all.len() as u64, "{} denied", relay.count("denied")?);
    let nothing = (relay.count("steered")?, relay.count("datagrams_encoded")?, relay.knocks());
    ensure!(nothing == (before.1, before.2, before.3), "something was sent: {nothing:?} after {before:?}");
    for to in ALLOWED.map(|host| addr(&format!("{host}:{ECHO}"))) {
        app::ensure_echo(&app::connect(to).with_context(|| to.to_string())?, b"allowed")?;
        let udp = datagrams::for_target(to)?;
        udp.send_to(b"allowed", to).with_context(|| format!("{to} by UDP"))?;
        ensure!(udp.recv_from(&mut [0; 100])?.0 > 7);
    }
    Ok(())
}

pub(crate) fn denies(world: &World) -> Result<()> {
    let relay = Relay::start(world, &denying(wide(world)))?;
    ensure_denied(&relay, libc::EACCES)?;
    let dump = relay.dump()?;
    let denied: Vec<_> = dump.rules.iter().filter(|row| row.action == "deny").map(|row| row.cidr.to_string()).collect();
    ensure!(denied == ["10.96.7.0/24", "fd96::7:0/112"] && dump.denied_ports == [PORT], "{denied:?}");
    // A socket that was denied can go elsewhere.
    let socket = app::stream_for(addr("10.96.8.7:80"))?;
    ensure!(errno(socket.connect(&addr("10.96.7.7:80").into())) == Some(libc::EACCES));
    ensure!(socket.mark()? == 0, "it was marked");
    socket.connect(&addr("10.96.8.7:80").into())?;
    app::ensure_echo(&socket.into(), b"elsewhere")?;
    relay.stop(world)
}

pub(crate) fn refuses(world: &World) -> Result<()> {
    let relay = Relay::start(world, &Plan { deny_with: DenyWith::Refused, ..denying(wide(world)) })?;
    ensure_denied(&relay, libc::ECONNREFUSED)?;
    relay.stop(world)
}

/// The virtual address does not matter; a rule for it does nothing.
pub(crate) fn behind(world: &World) -> Result<()> {
    let mut plan = virtual_plan(world);
    plan.deny =
        ["10.96.7.7/32", "10.97.7.0/24", "fd97::7/128", "246.246.0.9/32"].map(|net| net.parse().unwrap()).into();
    let relay = Relay::start(world, &plan)?;
    let pairs = [
        ("246.246.0.5", "10.96.7.7", true),
        ("246.246.0.6", "10.97.7.7", true),
        ("fd99::5", "fd97::7", true),
        ("246.246.0.9", "10.97.8.7", false),
        ("fd99::9", "fd97::8", false),
    ];
    for (virtual_ip, real, denied) in pairs {
        relay.translations.insert(virtual_ip.parse()?, real.parse()?)?;
        let ip: std::net::IpAddr = virtual_ip.parse()?;
        let mapped = match ip {
            std::net::IpAddr::V4(four) => vec![ip, four.to_ipv6_mapped().into()],
            std::net::IpAddr::V6(_) => vec![ip],
        };
        for to in mapped.into_iter().map(|ip| std::net::SocketAddr::new(ip, ECHO)) {
            let expected = denied.then_some(libc::EACCES);
            ensure!(errno(app::connect(to)) == expected, "{to}: {:?}", app::connect(to));
            ensure!(errno(datagrams::for_target(to)?.send_to(b"?", to)) == expected, "{to} by UDP");
        }
    }
    ensure!(relay.knocks() == 3, "{} connections", relay.knocks());
    relay.stop(world)
}

/// Rules follow the plan, under open connections.
pub(crate) fn come_and_go(world: &World) -> Result<()> {
    let mut relay = Relay::start(world, &wide(world))?;
    let to = addr("10.96.7.7:80");
    let open = app::connect(to)?;
    drop(relay.apply(world, &denying(wide(world)))?);
    ensure!(errno(app::connect(to)) == Some(libc::EACCES));
    let other = Plan { deny: vec!["10.96.0.0/16".parse()?], deny_with: DenyWith::Refused, ..wide(world) };
    drop(relay.apply(world, &other)?);
    ensure!(errno(app::connect(to)) == Some(libc::ECONNREFUSED));
    ensure!(errno(app::connect(addr("10.96.8.7:25"))) == Some(libc::ECONNREFUSED), "the wider rule");
    ensure!(errno(app::connect(addr("[fd96::7:7]:25"))).is_none(), "the port is not denied any more");
    drop(relay.apply(world, &wide(world))?);
    app::ensure_echo(&app::connect(to)?, b"again")?;
    app::ensure_echo(&open, b"all the time")?;
    ensure!(relay.dump()?.rules.iter().all(|row| row.action != "deny") && relay.dump()?.denied_ports.is_empty());
    relay.stop(world)
}

/// Everything is denied: still the host's own connections, exceptions, and sockets outside the scope are untouched.
pub(crate) fn tunnel_only(world: &World) -> Result<()> {
    let deny = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
    let relay = Relay::start(world, &Plan { deny, deny_ports: vec![53], ..wide(world) })?;
    for host in ALLOWED {
        ensure!(errno(app::connect(addr(&format!("{host}:{ECHO}")))) == Some(libc::EACCES), "{host}");
    }
    let local = std::net::TcpListener::bind("127.0.0.1:0")?;
    app::connect(local.local_addr()?).context("loopback")?;
    let exception = addr("10.96.9.7:80");
    app::ensure_left(&app::stream_for(exception)?, exception, mark::member(Slot::FIRST))?;
    let outside = world.outside(|| app::stream_for(addr("10.96.8.7:80")))?;
    app::ensure_untouched(&outside, addr("10.96.8.7:80"))?;
    // The cluster's names still resolve.
    let udp = UdpSocket::bind("0.0.0.0:0")?;
    udp.set_read_timeout(Some(app::PATIENCE))?;
    udp.send_to(b"who", "192.0.2.53:53")?;
    ensure!(udp.recv_from(&mut [0; 100])?.1 == addr("192.0.2.53:53"));
    relay.stop(world)
}
