//! What stays and what goes: applying again, failing, reverting, dying.

use std::{fs, net::UdpSocket, os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tpx_core::plan::{Plan, Scope};
use tpx_datapath::{
    Host as _,
    linux::{LinuxHost, Slot},
};
use tpx_ebpf_abi::{
    mark,
    slot::{DNS_PORTS, NAMES},
};
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    neighbour::ip,
    owner,
    relay::{Relay, answered, express, plan},
};

const V4: &str = "10.96.3.7:80";

/// Which open file a descriptor stands for.
fn inode(fd: &impl std::os::fd::AsFd) -> Result<u64> {
    Ok(fs::File::from(fd.as_fd().try_clone_to_owned()?).metadata()?.ino())
}

pub(crate) fn again(world: &World) -> Result<()> {
    let mut host = LinuxHost::new(Slot::FIRST);
    let first = world.block_on(host.apply(&plan(world)))?;
    let before = (inode(&express(&first)?.listeners[0])?, inode(&first.dns[1].udp)?);
    let mut relay = Relay::serve(world, host, first)?;
    let open = app::connect(addr(V4))?;

    let mut other = plan(world);
    other.steer = vec!["10.97.0.0/16".parse()?, "10.96.0.0/17".parse()?, "fd96::/112".parse()?];
    other.except = vec!["10.97.1.0/24".parse()?];
    other.name_servers = vec!["127.0.0.53".parse()?, "198.51.100.53".parse()?];
    let mut second = relay.apply(world, &other)?;
    ensure!(before == (inode(&express(&second)?.listeners[0])?, inode(&second.dns[0].udp)?), "other files");
    ensure!(relay.rules()? == ["10.96.0.0/17", "10.97.0.0/16", "10.97.1.0/24", "fd96::/112"], "{:?}", relay.rules()?);
    // 10.97.0.0/16 less a /24 takes eight prefixes, in the table of the floor and in that for answers.
    ensure!(world.residue()?.routes.len() == 3 + 2 * (2 + 8), "{:?}", world.residue()?.routes);
    app::connect(addr("10.97.3.7:80")).context("the new subnet")?;
    let gone = addr("10.96.200.7:80");
    app::ensure_left(&app::stream_for(gone)?, gone, mark::member(Slot::FIRST))?;

    let new = second.dns.remove(1);
    ensure!(new.name_server == "198.51.100.53".parse::<std::net::IpAddr>()?);
    relay.serve_names(world, new)?;
    let asker = UdpSocket::bind("0.0.0.0:0")?;
    asker.set_read_timeout(Some(app::PATIENCE))?;
    for server in ["198.51.100.53", "127.0.0.53"] {
        asker.send_to(b"a?", (server, 53))?;
        let mut answer = [0; 100];
        let (n, _) = asker.recv_from(&mut answer).with_context(|| server.to_owned())?;
        ensure!(answer[..n] == *answered(server, "a?").as_bytes());
    }
    let old = asker.send_to(b"a?", "192.0.2.53:53");
    ensure!(old.is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH)), "the old server");

    // Out of the scope and back in again.
    let outside = Scope::Cgroup(world.tree().join("out"));
    drop(relay.apply(world, &Plan { scope: outside, ..other.clone() })?);
    app::ensure_untouched(&app::stream_for(addr(V4))?, addr(V4))?;
    drop(relay.apply(world, &other)?);
    app::connect(addr(V4)).context("back in the scope")?;

    app::ensure_echo(&open, b"all the time").context("the connection from before")?;
    drop(second);
    relay.stop(world)
}

/// What whoever has the right can take away, and the same plan brings back.
pub(crate) fn mended(world: &World) -> Result<()> {
    let mut relay = Relay::start(world, &plan(world))?;
    let whole = world.residue()?;
    // Not the one that the kernel makes itself for the link.
    let addresses = || anyhow::Ok(ip("-o address show dev tpx0 scope global")?.lines().count());
    let all = addresses()?;
    let preference = Slot::FIRST.preference();
    for damage in [
        vec!["route flush table 7071".to_owned(), "-6 route flush table 7071".to_owned()],
        vec![format!("rule del pref {preference}"), format!("-6 rule del pref {preference}")],
        vec!["address flush dev tpx0".to_owned()],
        vec!["link set tpx0 down".to_owned()],
    ] {
        for command in &damage {
            ip(command)?;
        }
        // Marked, but with nowhere to go. Local routes stay while their device is down.
        if !damage[0].starts_with("link") {
            ensure!(app::refused_with(addr(V4))? == Some(libc::ENETUNREACH), "{damage:?} did no harm");
        }
        drop(relay.apply(world, &plan(world)).with_context(|| format!("{damage:?}"))?);
        let now = world.residue()?;
        let sorted = |rules: &[String]| rules.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        ensure!(sorted(&now.rules) == sorted(&whole.rules), "{damage:?}: {:#?}", now.rules);
        ensure!(sorted(&now.routes) == sorted(&whole.routes), "{damage:?}: {:#?}", now.routes);
        ensure!(addresses()? == all, "{damage:?}: {}", ip("address show tpx0")?);
        for to in [V4, "[fd96::7]:80"] {
            app::ensure_echo(&app::connect(addr(to))?, b"again").with_context(|| format!("{damage:?}: {to}"))?;
        }
    }
    relay.stop(world)
}

/// A device cannot be mended: all is taken back, and the next plan begins anew.
pub(crate) fn device_deleted(world: &World) -> Result<()> {
    let before = world.residue()?;
    let mut relay = Relay::start(world, &plan(world))?;
    ip("link del tpx0")?;
    let Err(e) = relay.apply(world, &plan(world)) else {
        anyhow::bail!("mended");
    };
    ensure!(e.to_string().contains("tpx0") && e.to_string().contains("removed"), "{e}");
    let after = world.residue()?;
    ensure!(
        (&after.links, &after.rules, &after.routes) == (&before.links, &before.rules, &before.routes),
        "{after:#?}"
    );
    app::ensure_untouched(&app::stream_for(addr(V4))?, addr(V4))?;
    relay.stop(world)?;
    Relay::start(world, &plan(world))?.stop(world)
}

/// The scope's cgroup may go while it is served, and come back.
pub(crate) fn cgroup_removed(world: &World) -> Result<()> {
    let group = world.tree().join("brief");
    let brief = Plan { scope: Scope::Cgroup(group.clone()), ..plan(world) };
    fs::create_dir(&group)?;
    let mut relay = Relay::start(world, &brief)?;
    let inside = |work: &dyn Fn() -> Result<()>| -> Result<()> {
        fs::write(group.join("cgroup.procs"), "0")?;
        let done = work();
        fs::write(world.tree().join("in/cgroup.procs"), "0")?;
        done
    };
    let reached = || app::ensure_echo(&app::connect(addr(V4))?, b"inside");
    let untouched = || app::ensure_untouched(&app::stream_for(addr(V4))?, addr(V4));
    inside(&reached)?;
    fs::remove_dir(&group)?;
    untouched()?;
    // Nobody is in it: there is nothing to do until it is there again.
    drop(relay.apply(world, &brief)?);
    untouched()?;
    fs::create_dir(&group)?;
    inside(&untouched).context("a directory of that name is not the one that had the hooks")?;
    drop(relay.apply(world, &brief)?);
    inside(&reached).context("made anew")?;
    // As it was, it keeps its hooks.
    drop(relay.apply(world, &brief)?);
    inside(&reached)?;
    untouched()?;
    relay.stop(world)?;
    fs::remove_dir(&group)?;
    Ok(())
}

pub(crate) fn goes_back(world: &World) -> Result<()> {
    let mut relay = Relay::start(world, &plan(world))?;
    let (rules, routes) = (relay.rules()?, world.residue()?.routes);
    // Taken: the port at all addresses that the next name server could get.
    let mut taken = Vec::new();
    for nth in plan(world).name_servers.len()..NAMES {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_freebind_v4(true)?;
        let own = Slot::FIRST.dns4(nth).context("an address")?;
        socket.bind(&std::net::SocketAddr::from((own, DNS_PORTS[0])).into())?;
        taken.push(socket);
    }
    let mut other = plan(world);
    other.steer.push("10.98.0.0/16".parse()?);
    other.name_servers.push("198.51.100.53".parse()?);
    ensure!(relay.apply(world, &other).is_err());
    taken.pop();
    let handover = relay.apply(world, &other).context("one address is free")?;
    ensure!(Some(handover.dns[3].address.ip()) == Slot::FIRST.dns4(NAMES - 1).map(Into::into), "{:?}", handover.dns);
    drop((handover, taken));
    drop(relay.apply(world, &plan(world))?);
    other.name_servers.pop();
    other.scope = Scope::Cgroup(world.tree().join("nowhere"));
    ensure!(relay.apply(world, &other).is_err());
    other.scope = world.scope();
    other.steer.push("0.0.0.0/0".parse()?);
    ensure!(matches!(relay.apply(world, &other), Err(tpx_datapath::HostError::Refused(_))));
    ensure!(relay.rules()? == rules && world.residue()?.routes == routes, "{:?}", relay.rules()?);
    app::ensure_echo(&app::connect(addr(V4))?, b"as before")?;
    relay.stop(world)
}

/// Each plan fails at another step.
pub(crate) fn failing(world: &World) -> Result<()> {
    let before = world.residue()?;
    let try_it = |what: &str, plan: &Plan| -> Result<()> {
        let mut host = LinuxHost::new(Slot::FIRST);
        let Err(e) = world.block_on(host.apply(plan)) else {
            anyhow::bail!("{what}: applied");
        };
        settled(world, &before).with_context(|| format!("{what}: {e}"))
    };
    let scoped = |scope| Plan { scope, ..plan(world) };
    try_it("no such cgroup", &scoped(Scope::Cgroup(world.tree().join("nowhere"))))?;
    try_it("no cgroup", &scoped(Scope::Cgroup("/mnt".into())))?;
    // Every process, in the place of the workstation's slot.
    try_it("the whole tree", &scoped(Scope::Cgroup(world.tree().into())))?;
    try_it("the whole tree, by dots", &scoped(Scope::Cgroup(world.tree().join("in/.."))))?;
    try_it("a default route", &Plan { steer: vec!["::/0".parse()?], ..plan(world) })?;
    // Anybody may have one of the ports that questions arrive at, at all addresses.
    let mut taken = vec![UdpSocket::bind(("0.0.0.0", DNS_PORTS[0]))?];
    let mut host = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(host.apply(&plan(world)))?;
    ensure!(handover.dns.iter().all(|sockets| sockets.address.port() == DNS_PORTS[1]), "{:?}", handover.dns);
    drop(handover);
    world.block_on(host.revert())?;
    for port in &DNS_PORTS[1..] {
        taken.push(UdpSocket::bind(("0.0.0.0", *port))?);
    }
    let before_taken = world.residue()?;
    ensure!(world.block_on(LinuxHost::new(Slot::FIRST).apply(&plan(world))).is_err());
    settled(world, &before_taken).context("the port is taken")?;
    drop(taken);

    // The device belongs to somebody: it stays theirs.
    let mut first = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(first.apply(&plan(world)))?;
    let owned = world.residue()?;
    let Err(e) = world.block_on(LinuxHost::new(Slot::FIRST).apply(&plan(world))) else {
        anyhow::bail!("two datapaths in one slot");
    };
    ensure!(e.to_string().contains("another tpx"), "{e}");
    settled(world, &owned).context("the first owner's things")?;
    drop(handover);
    world.block_on(first.revert())?;
    Ok(())
}

/// Steps that open files fail, all over the way.
pub(crate) fn out_of_files(world: &World) -> Result<()> {
    let before = world.residue()?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let mut failures = 0;
    // The descriptors in use are not dense: begin where even the first new one is too many. Later ones are mostly maps
    // and programs, of which some will do.
    for limit in (3..200).filter(|n| *n < 16 || n % 4 == 0) {
        let mut host = LinuxHost::new(Slot::FIRST);
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
        let applied = world.block_on(host.apply(&plan(world)));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        match applied {
            Ok(handover) => {
                drop(handover);
                world.block_on(host.revert())?;
                ensure!(failures > 12, "only {failures} steps failed");
                return Ok(());
            }
            Err(e) => {
                failures += 1;
                settled(world, &before).with_context(|| format!("with {limit} files: {e}"))?;
            }
        }
    }
    anyhow::bail!("200 files do not suffice")
}

fn settled(world: &World, expected: &tpx_netlab::Residue) -> Result<()> {
    for _ in 0..200 {
        if world.residue()? == *expected {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("expected {expected:#?}\nfound {:#?}", world.residue()?)
}

/// The user daemon may be slow to close its copies: routes and device go all the same.
pub(crate) fn files_are_out(world: &World) -> Result<()> {
    let before = world.residue()?;
    let mut host = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(host.apply(&plan(world)))?;
    world.block_on(host.revert())?;
    let after = world.residue()?;
    ensure!(
        (&after.links, &after.rules, &after.routes) == (&before.links, &before.rules, &before.routes),
        "{after:#?}"
    );
    app::ensure_untouched(&app::stream_for(addr(V4))?, addr(V4))?;
    // And a new start does not stumble over them.
    let second = world.block_on(host.apply(&plan(world)))?;
    drop((handover, second));
    world.block_on(host.revert())?;
    Ok(())
}

pub(crate) fn dropped(world: &World) -> Result<()> {
    let mut host = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(host.apply(&plan(world)))?;
    world.expect_gone(&express(&handover)?.counters)?;
    drop(handover);
    drop(host);
    Ok(())
}

pub(crate) fn killed(world: &World) -> Result<()> {
    let before = world.residue()?;
    let mut owner = owner::start(world, &plan(world), false)?;
    ensure!(world.residue()?.links.contains("tpx0"));
    app::ensure_echo(&app::connect(addr(V4))?, b"alive")?;
    owner.kill()?;
    owner.wait()?;
    std::thread::sleep(Duration::from_millis(300));
    let left = world.residue()?;
    ensure!(
        (&left.links, &left.routes, &left.programs) == (&before.links, &before.routes, &before.programs),
        "{left:#?}"
    );
    app::ensure_untouched(&app::stream_for(addr(V4))?, addr(V4))?;
    // A rule over an empty table may be left; the next start sweeps it away.
    ensure!(left.rules.len() == before.rules.len() + 6, "{:#?}", left.rules);
    Relay::start(world, &plan(world))?.stop(world)
}

pub(crate) fn few_capabilities(world: &World) -> Result<()> {
    let mut owner = owner::start(world, &plan(world), true)?;
    for to in [V4, "[fd96::7]:80"].map(addr) {
        app::ensure_echo(&app::connect(to)?, b"enough")?;
    }
    // The end of its input is the end of its owner: everything is removed.
    drop(owner.stdin.take());
    ensure!(owner.wait()?.success());
    Ok(())
}

pub(crate) fn without_ipv6(world: &World) -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    fs::write(SWITCH, "1")?;
    let result = (|| {
        let relay = Relay::start(world, &plan(world))?;
        app::ensure_echo(&app::connect(addr(V4))?, b"four")?;
        app::ensure_echo(&app::connect(addr("[::ffff:10.96.3.7]:80"))?, b"four in six")?;
        let six = addr("[fd96::7]:80");
        app::ensure_left(&app::stream_for(six)?, six, mark::member(Slot::FIRST))?;
        ensure!(relay.rules()?.iter().all(|r| !r.contains(':')), "{:?}", relay.rules()?);
        relay.stop(world)
    })();
    fs::write(SWITCH, "0")?;
    result
}
