//! Process trees: each in a cluster of its own, the innermost one wins, and nothing of them stays.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
};
use socket2::{Domain, Protocol, Socket, Type};
use tpx_core::plan::{Plan, Scope};
use tpx_datapath::{
    Host as _, HostError,
    linux::{LinuxHost, Process, Slot, enter, sweep},
};
use tpx_ebpf_abi::mark;
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    floor,
    neighbour::{ip, route_get},
    relay::{Relay, answered, plan},
};

const RP_FILTER: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";
const TARGETS: [&str; 3] = ["10.96.3.7:80", "[fd96::7]:80", "[::ffff:10.96.3.7]:80"];

fn slot(index: u32) -> Slot {
    Slot::new(index).unwrap()
}

fn tree_plan(world: &World) -> Plan {
    Plan { scope: Scope::Tree, ..plan(world) }
}

/// A cluster for `scope` at a slot, and where its tree is.
fn start(world: &World, index: u32, scope: Scope) -> Result<(Relay, Option<PathBuf>)> {
    let mut host = LinuxHost::new(slot(index));
    let handover = world.block_on(host.apply(&Plan { scope, ..plan(world) }))?;
    ensure!(handover.slot == index);
    let scope = handover.scope.clone();
    Ok((Relay::serve(world, host, handover)?, scope))
}

fn tree(world: &World, index: u32) -> Result<(Relay, PathBuf)> {
    let (relay, scope) = start(world, index, Scope::Tree)?;
    Ok((relay, scope.context("no cgroup")?))
}

fn go_to(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("enter {}", group.display()))
}

/// Does something inside a tree.
fn inside<T>(world: &World, tree: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    enter(tree, &Process::open(std::process::id())?, 0)?;
    let done = work();
    go_to(&world.tree().join("in"))?;
    done
}

/// What each cluster has seen: connections, associations, questions.
fn seen(relays: &[&Relay]) -> Result<Vec<(usize, usize, u64)>> {
    relays.iter().map(|relay| Ok((relay.knocks(), relay.associations(), relay.count("names_asked")?))).collect()
}

/// Everything that a process does reaches the cluster of `own`, under its source address, and no other one.
fn ensure_in(own: usize, relays: &[&Relay]) -> Result<()> {
    let before = seen(relays)?;
    let index = relays[own].slot;
    for to in TARGETS.map(addr) {
        let stream = app::connect(to).with_context(|| to.to_string())?;
        let source = stream.local_addr()?.ip().to_canonical();
        ensure!([IpAddr::from(slot(index).ipv4()), slot(index).ipv6().into()].contains(&source), "{to}: {source}");
        app::ensure_echo(&stream, b"whose?")?;
    }
    let udp = UdpSocket::bind("0.0.0.0:0")?;
    udp.set_read_timeout(Some(app::PATIENCE))?;
    let to = addr("10.96.3.7:5000");
    let mut answer = [0; 100];
    udp.send_to(b"whose?", to)?;
    let (n, from) = udp.recv_from(&mut answer)?;
    ensure!(from == to && answer[..n] == *b"10.96.3.7:5000 whose?");
    for server in ["192.0.2.53", "127.0.0.53"] {
        udp.send_to(b"a?", (server, 53))?;
        let (n, _) = udp.recv_from(&mut answer).with_context(|| server.to_owned())?;
        ensure!(answer[..n] == *answered(server, "a?").as_bytes());
    }
    ping(relays[own], Ipv4Addr::new(10, 96, 3, 7))?;
    for (at, (before, after)) in before.into_iter().zip(seen(relays)?).enumerate() {
        let expected = if at == own { (before.0 + 3, before.1 + 1, before.2 + 2) } else { before };
        ensure!(after == expected, "cluster {at}: {before:?}, then {after:?}, while it was {own}'s turn");
    }
    Ok(())
}

/// Asks for an echo from a raw socket, which no other program than that at its making sees; the device of the cluster's
/// floor gets it, and the answer comes back.
fn ping(relay: &Relay, to: Ipv4Addr) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(app::PATIENCE))?;
    // Type, code, sum, identifier, number.
    let question = [8, 0, 0xf7, 0xd4, 0, 42, 0, 1];
    socket.send_to(&question, &SocketAddr::new(to.into(), 0).into())?;
    let mut device = File::from(relay.device.try_clone()?);
    let start = Instant::now();
    let mut packet = [0; 2000];
    let length = loop {
        ensure!(start.elapsed() < app::PATIENCE, "no ping came through the device");
        let mut readable = [PollFd::new(&device, PollFlags::IN)];
        if poll(&mut readable, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }))? == 0 {
            continue;
        }
        let n = device.read(&mut packet)?;
        // Behind the device's own header of ten bytes.
        if packet[10] == 0x45 && packet[19] == 1 && packet[30..n] == question {
            break n;
        }
    };
    let source: [u8; 4] = packet[22..26].try_into()?;
    ensure!(Ipv4Addr::from(source) == slot(relay.slot).ipv4(), "{source:?}");
    packet[..10].fill(0);
    packet.copy_within(26..30, 22);
    packet[26..30].copy_from_slice(&source);
    let answer = [0, 0, 0xff, 0xd4, 0, 42, 0, 1];
    packet[30..38].copy_from_slice(&answer);
    device.write_all(&packet[..length])?;
    let mut got = [0; 100];
    loop {
        // The socket hears of all pings of this host.
        let n = (&socket).read(&mut got).context("the answer to a ping")?;
        if got[20..n] == answer {
            return Ok(());
        }
    }
}

/// No cluster is there, and sockets have this mark.
fn ensure_nothing(mark: u32) -> Result<()> {
    for to in TARGETS.map(addr) {
        app::ensure_left(&app::stream_for(to)?, to, mark)?;
    }
    let asked = UdpSocket::bind("0.0.0.0:0")?.send_to(b"?", "192.0.2.53:53");
    ensure!(asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "DNS");
    Ok(())
}

/// Three clusters with the same subnets and name servers at once, with strict reverse path filtering.
pub(crate) fn clusters(world: &World) -> Result<()> {
    fs::write(RP_FILTER, "1")?;
    let done = (|| {
        let (one, first) = tree(world, 1)?;
        let (all, everywhere) = start(world, 0, Scope::Workstation)?;
        ensure!(everywhere.is_none());
        let (two, second) = tree(world, 2)?;
        {
            let relays = [&all, &one, &two];
            for _ in 0..2 {
                ensure_in(0, &relays).context("outside")?;
                inside(world, &first, || ensure_in(1, &relays).context("in the first tree"))?;
                inside(world, &second, || ensure_in(2, &relays).context("in the second tree"))?;
            }
        }
        all.stop(world)?;
        ensure_nothing(0)?;
        inside(world, &first, || ensure_in(0, &[&one, &two]))?;
        inside(world, &second, || ensure_in(1, &[&one, &two]))?;
        one.stop(world)?;
        ensure!(!first.exists());
        inside(world, &second, || ensure_in(0, &[&two]))?;
        two.stop(world)
    })();
    fs::write(RP_FILTER, "0")?;
    done
}

/// A source that the application has chosen says nothing about the slot.
pub(crate) fn bound_sources(world: &World) -> Result<()> {
    let own = [("192.168.77.5", TARGETS[0]), ("fd77::5", TARGETS[1])];
    let change = |verb: &str| -> Result<()> {
        ip(&format!("address {verb} 192.168.77.5 dev lo"))?;
        ip(&format!("address {verb} fd77::5 dev lo nodad")).map(drop)
    };
    change("add")?;
    let done = (|| {
        let (all, _) = start(world, 0, Scope::Workstation)?;
        let (one, first) = tree(world, 1)?;
        let (two, second) = tree(world, 2)?;
        let bound = |own: &str, to: &str| -> Result<()> {
            let to = addr(to);
            let socket = app::stream_for(to)?;
            socket.bind(&SocketAddr::new(own.parse()?, 0).into())?;
            socket.connect(&to.into()).with_context(|| to.to_string())?;
            app::ensure_echo(&socket.into(), b"bound")
        };
        for (own, to) in own {
            inside(world, &second, || bound(own, to).context("in the second tree"))?;
            inside(world, &first, || bound(own, to).context("in the first tree"))?;
            bound(own, to).context("outside")?;
        }
        let knocks = [&all, &one, &two].map(Relay::knocks);
        ensure!(knocks == [2; 3], "{knocks:?}");
        one.stop(world)?;
        two.stop(world)?;
        all.stop(world)
    })();
    change("del")?;
    done
}

/// A tree inside a tree; that around it ends first.
pub(crate) fn nested(world: &World) -> Result<()> {
    let (outer, around) = tree(world, 1)?;
    let (inner, within) = inside(world, &around, || tree(world, 2))?;
    ensure!(within.parent() == Some(&around), "{}", within.display());
    let relays = [&outer, &inner];
    inside(world, &around, || ensure_in(0, &relays).context("around"))?;
    inside(world, &within, || ensure_in(1, &relays).context("within"))?;
    // What the inner plan does not know is nobody else's either.
    let narrow = Plan { steer: vec!["10.97.0.0/16".parse()?], name_servers: vec![], ..tree_plan(world) };
    let mut inner = inner;
    drop(inner.apply(world, &narrow)?);
    inside(world, &within, || ensure_nothing(mark::member(slot(2))).context("what the outer cluster has"))?;
    for sockets in inner.apply(world, &tree_plan(world))?.dns {
        inner.serve_names(world, sockets)?;
    }
    let mut child = in_tree(&within)?;
    outer.stop(world)?;
    ensure!(within.exists(), "the outer tree took the inner one with it");
    inside(world, &within, || ensure_in(0, &[&inner]))?;
    inner.stop(world)?;
    ensure!(!around.exists() && !within.exists());
    ensure_moved(&mut child)
}

/// Sockets that are older than the scope are the scope's from their first call on.
pub(crate) fn older_sockets(world: &World) -> Result<()> {
    let (stream, udp) = (app::stream_for(addr(TARGETS[0]))?, UdpSocket::bind("0.0.0.0:0")?);
    udp.set_read_timeout(Some(app::PATIENCE))?;
    let (all, _) = start(world, 0, Scope::Workstation)?;
    let refused = app::stream_for(addr(TARGETS[0]))?;
    ensure!(refused.connect(&addr("10.96.3.7:81").into()).is_err() && all.knocks() == 1);
    let scoped = Plan { steer: vec!["10.96.3.0/24".parse()?], name_servers: vec![], ..plan(world) };
    let mut host = LinuxHost::new(slot(1));
    let handover = world.block_on(host.apply(&scoped))?;
    let one = Relay::serve(world, host, handover)?;
    for socket in [stream, refused] {
        socket.connect(&addr(TARGETS[0]).into())?;
        ensure!(mark::is(socket.mark()?, mark::steer(slot(1))), "{:#x}", socket.mark()?);
        app::ensure_echo(&socket.into(), b"new")?;
    }
    // In the workstation's plan, but not in the scope's: it goes where the host's routes lead. The mark comes too late
    // for the first one, which is the workstation's floor's.
    udp.send_to(b"?", "10.96.200.1:5000")?;
    let away = udp.send_to(b"?", "10.96.200.1:5000");
    ensure!(away.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)));
    ensure!(mark::is(socket2::SockRef::from(&udp).mark()?, mark::member(slot(1))));
    let mut answer = [0; 100];
    udp.send_to(b"!", "10.96.3.9:5000")?;
    ensure!(udp.recv(&mut answer)? == 16);
    let counts = seen(&[&all, &one])?;
    ensure!(counts == [(1, 0, 0), (2, 1, 0)], "{counts:?}");
    one.stop(world)?;
    all.stop(world)
}

/// Also where a VPN of the workstation's has the cluster's subnet.
pub(crate) fn beside_a_vpn(world: &World) -> Result<()> {
    fs::write(RP_FILTER, "1")?;
    let done = (|| {
        let vpn = floor::vpn()?;
        let peer = vpn.run(|| {
            ip("address add 10.96.3.7/32 dev lo")?;
            let peer = UdpSocket::bind("10.96.3.7:5000")?;
            peer.set_read_timeout(Some(app::PATIENCE))?;
            Ok(peer)
        })?;
        let before = route_get("10.96.3.7");
        let (one, first) = tree(world, 1)?;
        inside(world, &first, || ensure_in(0, &[&one]))?;
        ensure!(route_get("10.96.3.7") == before && before.contains("dev vpn0"), "{before}");
        let outside = UdpSocket::bind("0.0.0.0:0")?;
        outside.send_to(b"to the office", "10.96.3.7:5000")?;
        let mut got = [0; 100];
        let (n, from) = peer.recv_from(&mut got)?;
        ensure!(&got[..n] == b"to the office" && from.ip() == addr("192.168.77.1:0").ip(), "{from}");
        drop((peer, vpn));
        one.stop(world)
    })();
    fs::write(RP_FILTER, "0")?;
    done
}

fn in_tree(tree: &Path) -> Result<Child> {
    let child = Command::new("sleep").arg("1000").spawn()?;
    enter(tree, &Process::open(child.id())?, 0)?;
    Ok(child)
}

fn cgroup_of(child: &Child) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", child.id()))?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned).context("no cgroup2")
}

/// It was moved to the cgroup around its tree, and lives. Ends it.
fn ensure_moved(child: &mut Child) -> Result<()> {
    let at = cgroup_of(child);
    let ended = child.try_wait()?;
    child.kill()?;
    child.wait()?;
    ensure!(ended.is_none(), "it has ended: {ended:?}");
    ensure!(at? == "/in");
    Ok(())
}

pub(crate) fn fifty(world: &World) -> Result<()> {
    for n in 0..50 {
        let mut host = LinuxHost::new(slot(1 + n % (Slot::COUNT - 1)));
        let handover = world.block_on(host.apply(&tree_plan(world)))?;
        let scope = handover.scope.context("no cgroup")?;
        let mut child = in_tree(&scope)?;
        ensure!(cgroup_of(&child)?.starts_with("/in/tpx-tree-"), "{}", cgroup_of(&child)?);
        // A cgroup that somebody has made in there goes as well.
        let deeper = scope.join("deeper");
        fs::create_dir(&deeper)?;
        fs::write(deeper.join("cgroup.procs"), child.id().to_string())?;
        if n % 2 == 0 {
            world.block_on(host.revert())?
        } else {
            drop(host)
        }
        ensure!(!scope.exists(), "{} is still there", scope.display());
        ensure_moved(&mut child)?;
    }
    Ok(())
}

/// What a killed daemon has left is removed by the next one, and what a live one has is not.
pub(crate) fn swept(world: &World) -> Result<()> {
    let group = world.tree().join("in");
    let [dead, around, live] = ["tpx-tree-3-0", "tpx-tree-4-0", "tpx-tree-4-0/tpx-tree-5-0"].map(|g| group.join(g));
    let others = group.join("tpx-tree-x");
    for path in [&dead, &around, &live, &others] {
        fs::create_dir(path)?;
    }
    let mut child = in_tree(&dead)?;
    let lock = File::open(&live)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    world.block_on(sweep())?;
    let there = [&dead, &around, &live, &others].map(|path| path.exists());
    drop(lock);
    world.block_on(sweep())?;
    let then = [&dead, &around, &live, &others].map(|path| path.exists());
    fs::remove_dir(&others)?;
    ensure_moved(&mut child)?;
    ensure!((there, then) == ([false, true, true, true], [false, false, false, true]), "{there:?} {then:?}");
    Ok(())
}

/// The kind of a datapath stays what it is, and a tree needs its programs.
pub(crate) fn kinds(world: &World) -> Result<()> {
    let (mut relay, scope) = tree(world, 1)?;
    let again = relay.apply(world, &tree_plan(world))?;
    ensure!(again.scope.as_ref() == Some(&scope), "another cgroup: {:?}", again.scope);
    let workstation = relay.apply(world, &Plan { scope: Scope::Workstation, ..plan(world) });
    ensure!(matches!(workstation, Err(HostError::Refused(why)) if why.contains("revert first")));
    // From a new tree to a cgroup that is there: the new one goes.
    ensure!(relay.apply(world, &plan(world))?.scope == Some(world.tree().join("in")));
    ensure!(!scope.exists());
    ensure_in(0, &[&relay])?;
    let lane = relay.apply(world, &tree_plan(world))?.scope.context("no cgroup")?;
    inside(world, &lane, || ensure_in(0, &[&relay]))?;
    ensure_nothing(0)?;
    relay.stop(world)?;
    if lane.exists() {
        bail!("{} is still there", lane.display());
    }
    Ok(())
}
