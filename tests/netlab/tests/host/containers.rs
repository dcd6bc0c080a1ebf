//! Containers beside the firewall that a host puts around them.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tpx_core::plan::{Plan, Road};
use tpx_datapath::linux::{Bridges, Feature, Hook, LinuxHost, Slot};
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    bridge::{Bridge, Switch, ask, datagram, echo, ping},
    floor,
    neighbour::{Neighbour, ip},
    owner,
    relay::{REFUSED, Relay, UNREACHABLE},
};

/// What a host does that lets no packet in or through but what finds neighbours: as strict as ufw, firewalld and Docker
/// together.
const CLOSED: &str = "
table inet host {
    chain input {
        type filter hook input priority 0; policy drop;
        iifname lo accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    }
    chain forward { type filter hook forward priority 0; policy drop; }
    chain output { type filter hook output priority 0; policy accept; }
}
table inet docker {
    chain postrouting { type nat hook postrouting priority 100; ip saddr 172.17.0.0/16 oifname != docker0 masquerade; }
}";

/// What Docker does, with counters: containers may go out, under the host's address, and one of their ports is published.
const OPEN: &str = "
table inet docker {
    counter out { }
    counter hidden { }
    counter published { }
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname docker0 ct state new counter name out accept
        iifname wan0 ct status dnat counter name published accept
    }
    chain prerouting { type nat hook prerouting priority -100; iifname wan0 tcp dport 8080 dnat ip to 172.17.0.2:80; }
    chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 172.17.0.0/16 oifname != docker0 counter name hidden masquerade
    }
}";

/// Rules of the host, until they are dropped.
struct Firewall;

impl Firewall {
    fn set(rules: &str) -> Result<Self> {
        nft(&["-f", "-"], rules)?;
        Ok(Self)
    }

    /// Packets that a named counter has seen.
    fn count(&self, counter: &str) -> Result<u64> {
        let text = nft(&["list", "counter", "inet", "docker", counter], "")?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|count| count.parse().ok()).context(text)
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        let _ = nft(&["flush", "ruleset"], "");
    }
}

fn nft(words: &[&str], input: &str) -> Result<String> {
    let mut nft = Command::new("nft")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("nftables is missing")?;
    nft.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let out = nft.wait_with_output()?;
    ensure!(out.status.success(), "nft {words:?} failed");
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Serves the usual bridges.
pub(crate) fn plan() -> Plan {
    let patterns = ["docker0", "br-*"].map(|pattern| pattern.parse().unwrap());
    Plan { container_devices: patterns.into(), ..floor::plan(Road::Express) }
}

fn serve(world: &World, host: LinuxHost) -> Result<Relay> {
    Relay::start_with_floor(world, host, &plan())
}

fn served(host: &LinuxHost) -> Bridges {
    host.bridges().borrow().clone()
}

/// Waits until the bridges are served that should be.
pub(crate) fn wait_for(host: &LinuxHost, names: &[&str]) -> Result<()> {
    let start = Instant::now();
    loop {
        let now = served(host);
        if now.bridges.iter().map(|bridge| bridge.name.as_str()).eq(names.iter().copied()) {
            ensure!(now.problem.is_none() && now.bridges.iter().all(|bridge| bridge.problem.is_none()), "{now:?}");
            return Ok(());
        }
        ensure!(start.elapsed() < app::PATIENCE, "{now:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn reach(world: &World) -> Result<()> {
    reach_by(world, LinuxHost::new(Slot::FIRST), Hook::Tcx)
}

pub(crate) fn reach_by_clsact(world: &World) -> Result<()> {
    reach_by(world, LinuxHost::new(Slot::FIRST).without([Feature::Tcx]), Hook::Clsact)
}

/// The host forwards nothing, lets nothing in, and checks sources.
fn reach_by(world: &World, host: LinuxHost, hook: Hook) -> Result<()> {
    let _strict = Switch::set("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?;
    let bridge = Bridge::docker()?;
    let container = bridge.first()?;
    let _firewall = Firewall::set(CLOSED)?;
    let relay = serve(world, host)?;
    wait_for(&relay.host, &["docker0"])?;
    ensure!(served(&relay.host).hook == Some(hook), "{:?}", served(&relay.host));
    container.run(|| {
        let megabyte: Vec<u8> = (0..1u32 << 20).map(|i| (i ^ i >> 8) as u8).collect();
        for ip in ["10.96.3.7", "fd96::7", "246.246.3.7"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
            let at = |port| SocketAddr::new(ip, port);
            echo(at(80), megabyte.clone()).with_context(|| format!("TCP {ip}"))?;
            ensure!(app::refused_with(at(REFUSED))? == Some(libc::ECONNREFUSED), "{ip}: refused");
            ensure!(app::refused_with(at(UNREACHABLE))? == Some(libc::EHOSTUNREACH), "{ip}: unreachable");
            for size in [10, 1_400, 5_000, 60_000] {
                datagram(at(9), size).with_context(|| format!("{size} bytes to {ip}"))?;
            }
            let refused = datagram(at(REFUSED), 10).unwrap_err();
            let errno = refused.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
            ensure!(errno == Some(libc::ECONNREFUSED), "{ip}: UDP refused: {refused:?}");
            ping(ip)?;
        }
        Ok(())
    })?;
    let (steered, answered) = (relay.count("containers_steered")?, relay.count("containers_answered")?);
    ensure!(steered > 100 && answered > 100, "{steered} {answered}");
    ensure!(relay.count("containers_foreign")? + relay.count("containers_asked")? == 0);
    relay.stop(world)?;
    ensure!(bridge.is_bare()?, "something is left on the bridge");
    // Nothing leads anywhere any more.
    container.run(|| {
        let silent = TcpStream::connect_timeout(&addr("10.96.3.7:80"), Duration::from_millis(300));
        ensure!(silent.is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut));
        Ok(())
    })
}

/// Answers one question.
fn name_server(socket: UdpSocket) -> thread::JoinHandle<Result<SocketAddr>> {
    thread::spawn(move || {
        socket.set_read_timeout(Some(app::PATIENCE))?;
        let (_, from) = socket.recv_from(&mut [0; 100])?;
        socket.send_to(b"the real one", from)?;
        Ok(from)
    })
}

fn joined<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the thread died"))?
}

/// The network beyond the host: everything that is not nearer.
pub(crate) fn internet() -> Result<Neighbour> {
    let wan = Neighbour::plug(
        "wan",
        &["192.168.80.1/24", "fd80::1/64"],
        &["192.168.80.2/24", "203.0.113.53/32", "fd80::2/64", "2001:db8::53/128"],
    )?;
    ip("route add default via 192.168.80.2")?;
    ip("-6 route add default via fd80::2")?;
    Ok(wan)
}

pub(crate) fn names(world: &World) -> Result<()> {
    let _router = Switch::router()?;
    let wan = internet()?;
    let bridge = Bridge::docker()?;
    let container = bridge.first()?;
    let relay = serve(world, LinuxHost::new(Slot::FIRST))?;
    // Servers elsewhere are stood in for, whichever they are.
    container.run(|| {
        for server in ["203.0.113.53", "8.8.8.8", "2001:db8::53"] {
            let answer = ask(server)?;
            ensure!(answer == format!("{} name?", SocketAddr::new(server.parse()?, 53)), "{answer}");
            echo(SocketAddr::new(server.parse()?, 53), b"a long question".to_vec())?;
        }
        Ok(())
    })?;
    ensure!(relay.count("containers_asked")? > 12, "{}", relay.count("containers_asked")?);
    // One on the host answers itself.
    let asked = relay.count("containers_asked")?;
    for own in ["172.17.0.1:53", "[fd17::1]:53", "192.168.80.1:53"].map(addr) {
        let server = name_server(UdpSocket::bind(own)?);
        let answer = container.run(move || ask(&own.ip().to_string()))?;
        ensure!(answer == "the real one", "{own}: {answer}");
        joined(server)?;
    }
    ensure!(relay.count("containers_asked")? == asked, "questions to the host were taken");
    relay.stop(world)?;
    // Without tpx the real one is asked.
    let real = name_server(wan.run(|| Ok(UdpSocket::bind("203.0.113.53:53")?))?);
    wan.run(|| ip("route add 172.17.0.0/16 via 192.168.80.1"))?;
    ensure!(container.run(|| ask("203.0.113.53"))? == "the real one");
    joined(real)?;
    ensure!(bridge.is_bare()?);
    Ok(())
}

/// A connection to the internet, one from there to a published port, one between containers: who saw whom.
fn other_traffic(wan: &Neighbour, one: &Neighbour, other: &Neighbour) -> Result<[SocketAddr; 3]> {
    fn meet(server: &Neighbour, at: &'static str, client: &Neighbour, to: &'static str) -> Result<SocketAddr> {
        let listener = server.run(move || Ok(TcpListener::bind(at)?))?;
        let accepting = thread::spawn(move || {
            socket2::SockRef::from(&listener).set_read_timeout(Some(app::PATIENCE))?;
            let (stream, from) = listener.accept()?;
            std::io::copy(&mut &stream, &mut &stream)?;
            anyhow::Ok(SocketAddr::new(from.ip(), 0))
        });
        client.run(move || echo(addr(to), vec![7; 100_000])).with_context(|| to.to_owned())?;
        joined(accepting)
    }
    Ok([
        meet(wan, "203.0.113.53:80", one, "203.0.113.53:80")?,
        meet(one, "172.17.0.2:80", wan, "192.168.80.1:8080")?,
        meet(one, "172.17.0.2:80", other, "172.17.0.2:80")?,
    ])
}

pub(crate) fn untouched(world: &World) -> Result<()> {
    let _router = Switch::router()?;
    let wan = internet()?;
    let bridge = Bridge::docker()?;
    let one = bridge.first()?;
    let other = bridge.second()?;
    let counters = ["out", "hidden", "published"];
    let firewall = Firewall::set(OPEN)?;
    let look = || -> Result<_> {
        let before = counters.map(|counter| firewall.count(counter).unwrap_or_default());
        let met = other_traffic(&wan, &one, &other)?;
        let after = counters.map(|counter| firewall.count(counter).unwrap_or_default());
        Ok((met, [0, 1, 2].map(|at| after[at] - before[at])))
    };
    let without = look()?;
    ensure!(without.0 == ["192.168.80.1:0", "192.168.80.2:0", "172.17.0.3:0"].map(addr), "{without:?}");
    ensure!(without.1.iter().all(|count| *count > 0), "{without:?}");
    let relay = serve(world, LinuxHost::new(Slot::FIRST))?;
    wait_for(&relay.host, &["docker0"])?;
    let with = look()?;
    ensure!(with == without, "{with:?} instead of {without:?}");
    for counter in ["containers_steered", "containers_asked", "containers_answered", "containers_foreign"] {
        ensure!(relay.count(counter)? == 0, "{counter}");
    }
    // Beside all that the cluster is there.
    one.run(|| echo(addr("10.96.3.7:80"), vec![1; 1000]))?;
    relay.stop(world)
}

pub(crate) fn come_and_go(world: &World) -> Result<()> {
    let mut relay = serve(world, LinuxHost::new(Slot::FIRST))?;
    wait_for(&relay.host, &[])?;
    let first = Bridge::docker()?;
    let second = Bridge::create("br-0123456789ab", ["172.18.0.1/16", "fd18::1/64"])?;
    wait_for(&relay.host, &["br-0123456789ab", "docker0"])?;
    // Neither another kind of device nor another name.
    ip("link add br-veth type veth peer name other2")?;
    ip("link add other0 type bridge")?;
    let container = second.container("ctr", ["172.18.0.2/16", "fd18::2/64"], ["172.18.0.1", "fd18::1"])?;
    let visit = || {
        container.run(|| {
            echo(addr("10.96.3.7:80"), vec![2; 100_000])?;
            datagram(addr("[fd96::7]:9"), 5_000)
        })
    };
    visit()?;
    // The next plan leaves what is served as it is.
    drop(relay.apply(world, &plan())?);
    wait_for(&relay.host, &["br-0123456789ab", "docker0"])?;
    visit()?;
    // Renamed to what nobody asked for, and back.
    ip("link set br-0123456789ab down")?;
    ip("link set br-0123456789ab name other1")?;
    wait_for(&relay.host, &["docker0"])?;
    ip("link set other1 name br-0123456789ab")?;
    ip("link set br-0123456789ab up")?;
    wait_for(&relay.host, &["br-0123456789ab", "docker0"])?;
    container.run(|| echo(addr("10.96.3.7:80"), vec![2; 1000]))?;
    drop(container);
    drop(second);
    wait_for(&relay.host, &["docker0"])?;
    for words in ["link del br-veth", "link del other0"] {
        ip(words)?;
    }
    // A plan without patterns serves none.
    drop(relay.apply(world, &Plan { container_devices: Vec::new(), ..plan() })?);
    wait_for(&relay.host, &[])?;
    ensure!(first.is_bare()?);
    drop(relay.apply(world, &plan())?);
    wait_for(&relay.host, &["docker0"])?;
    ensure!(!first.is_bare()?);
    relay.stop(world)?;
    ensure!(first.is_bare()?);
    // A process tree serves none either.
    let tree = Plan { scope: world.scope(), ..plan() };
    let relay = Relay::start_with_floor(world, LinuxHost::new(Slot::FIRST), &tree)?;
    wait_for(&relay.host, &[])?;
    ensure!(first.is_bare()?);
    relay.stop(world)
}

/// An address that lives elsewhere, or on the host itself: whoever has it keeps its answers.
pub(crate) fn foreign(world: &World) -> Result<()> {
    let _router = Switch::router()?;
    let bridge = Bridge::docker()?;
    let container = bridge.first()?;
    let relay = serve(world, LinuxHost::new(Slot::FIRST))?;
    container.run(|| {
        ip("address add 198.51.100.7/32 dev ctr1")?;
        ip("address add 172.17.0.1/32 dev lo")?;
        for own in ["198.51.100.7:0", "172.17.0.1:0"] {
            let socket = UdpSocket::bind(own)?;
            socket.send_to(b"whose?", "10.96.3.7:9")?;
        }
        datagram(addr("10.96.3.7:9"), 10)
    })?;
    ensure!(relay.count("containers_foreign")? == 2, "{}", relay.count("containers_foreign")?);
    // What the host routes into the tunnel by itself is not handed to the bridge on its way back.
    ensure!(relay.count("containers_answered")? == 1, "{}", relay.count("containers_answered")?);
    relay.stop(world)
}

pub(crate) fn few_capabilities(world: &World) -> Result<()> {
    let bridge = Bridge::docker()?;
    let mut owner = owner::start(world, &plan(), true)?;
    ensure!(!bridge.is_bare()?, "the bridge is not served");
    drop(owner.stdin.take());
    ensure!(owner.wait()?.success());
    ensure!(bridge.is_bare()?, "something is left on the bridge");
    Ok(())
}

/// Filters stay when their process is killed; they take nothing any more, and the next start removes them.
pub(crate) fn killed(world: &World) -> Result<()> {
    let _router = Switch::router()?;
    let wan = internet()?;
    let bridge = Bridge::docker()?;
    let container = bridge.first()?;
    wan.run(|| ip("route add 172.17.0.0/16 via 192.168.80.1"))?;
    let mut owner = owner::start_with_clsact(world, &plan())?;
    owner.kill()?;
    owner.wait()?;
    ensure!(!bridge.is_bare()?, "the filter went with its process: then it needs no care");
    let start = Instant::now();
    while ip("link show tpx0").is_ok() {
        ensure!(start.elapsed() < app::PATIENCE, "the device stays");
        thread::sleep(Duration::from_millis(10));
    }
    let real = name_server(wan.run(|| Ok(UdpSocket::bind("203.0.113.53:53")?))?);
    ensure!(container.run(|| ask("203.0.113.53"))? == "the real one");
    joined(real)?;
    let relay = serve(world, LinuxHost::new(Slot::FIRST).without([Feature::Tcx]))?;
    container.run(|| echo(addr("10.96.3.7:80"), vec![3; 1000]))?;
    relay.stop(world)?;
    ensure!(bridge.is_bare()?, "something is left on the bridge");
    Ok(())
}
