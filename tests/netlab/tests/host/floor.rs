//! The floor: what is routed to the device, for whom, and what comes back through it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tpx_core::plan::{Plan, ResolverLink, Road, Scope};
use tpx_datapath::{
    Host as _,
    linux::{Handover, LinuxHost, Slot},
};
use tpx_ebpf_abi::mark;
use tpx_netlab::World;

use crate::{
    app,
    neighbour::{Neighbour, ip, route_get},
    relay,
};

/// `virtio_net_hdr` in front of each packet.
const HEADER: usize = 10;

/// A plan for everybody.
pub(crate) fn plan(road: Road) -> Plan {
    Plan {
        scope: Scope::Workstation,
        road,
        steer: vec!["10.96.0.0/16".parse().unwrap(), "fd96::/112".parse().unwrap()],
        virtual_subnets: vec!["246.246.0.0/17".parse().unwrap()],
        hidden: vec!["10.244.0.0/16".parse().unwrap()],
        except: vec!["10.96.9.0/24".parse().unwrap(), "10.244.9.9/32".parse().unwrap()],
        ..Plan::default()
    }
}

/// The other end routes everything that comes.
pub(crate) fn vpn() -> Result<Neighbour> {
    let vpn = Neighbour::plug("vpn", &["192.168.77.1/24", "fd77::1/64"], &["192.168.77.2/24", "fd77::2/64"])?;
    ip("route add 10.0.0.0/8 via 192.168.77.2 dev vpn0")?;
    Ok(vpn)
}

fn apply(world: &World, plan: &Plan) -> Result<(LinuxHost, Handover)> {
    let mut host = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(host.apply(plan))?;
    if let Some(express) = &handover.express {
        world.expect_gone(&express.counters)?;
    }
    Ok((host, handover))
}

/// The whole tables, in iproute2's words.
fn table(number: u32) -> Result<String> {
    let v4 = ip(&format!("-4 route show table {number}")).unwrap_or_default();
    let v6 = ip(&format!("-6 route show table {number}")).unwrap_or_default();
    let words = |line: &str| line.split(" metric ").next().unwrap_or_default().trim().to_owned();
    Ok(v4.lines().chain(v6.lines()).map(words).collect::<Vec<_>>().join("\n"))
}

pub(crate) fn routes_and_rules(world: &World) -> Result<()> {
    let vpn = vpn()?;
    let untouched = ["10.50.0.1", "10.244.7.7", "192.168.77.2", "198.51.100.1", "fd77::2", "10.96.9.7"];
    let before = untouched.map(route_get);
    ensure!(before[0] == "10.50.0.1 via 192.168.77.2 dev vpn0 src 192.168.77.1", "{before:?}");
    let mut wanted = plan(Road::Express);
    wanted.resolver = Some(ResolverLink {
        servers: vec![Slot::FIRST.resolver4().into(), Slot::FIRST.resolver6().into()],
        ..ResolverLink::default()
    });
    for road in [Road::Express, Road::Tun] {
        let (mut host, handover) = apply(world, &Plan { road, ..wanted.clone() })?;
        ensure!(handover.vnet_hdr && handover.mtu == 1500, "{} {}", handover.vnet_hdr, handover.mtu);
        let link = ip("-d link show tpx0")?;
        ensure!(link.contains("mtu 1500") && link.contains("vnet_hdr on"), "{link}");
        for to in ["10.96.3.7", "10.96.8.255", "10.96.10.0", "246.246.3.7", "246.246.255.200"] {
            let way = route_get(to);
            ensure!(way == format!("{to} dev tpx0 table 7171 src 246.246.255.1"), "{way}");
        }
        let way = route_get("fd96::7");
        ensure!(way.contains("dev tpx0 table 7171 ") && way.contains(" src fd74:7078:6e65:7400::1"), "{way}");
        ensure!(untouched.map(route_get) == before, "{:?}", untouched.map(route_get));
        let own = route_get("10.244.7.7 from 246.246.255.1");
        ensure!(own == "10.244.7.7 from 246.246.255.1 dev tpx0 table 7271", "{own}");
        let hole = route_get("10.244.9.9 from 246.246.255.1");
        ensure!(hole.contains("dev vpn0"), "{hole}");

        let rules = ip("rule")?.replace('\t', " ");
        let ours: Vec<&str> = rules.lines().filter(|line| line.contains("lookup 7")).collect();
        let mut expected = vec![
            "90: from all fwmark 0x70000000/0xfe000000 lookup 7071",
            "98: from 246.246.255.1 lookup 7271",
            "122: from all fwmark 0/0xff000000 lookup 7171",
        ];
        if road == Road::Tun {
            expected.remove(0);
        }
        ensure!(ours == expected, "{rules}");
        // One hole of /24 in a /16 leaves eight prefixes.
        let floor = table(7171)?;
        ensure!(floor.lines().filter(|line| line.starts_with("10.96.")).count() == 8, "{floor}");
        ensure!(floor.lines().all(|line| line.contains("dev tpx0")) && floor.lines().count() == 8 + 4, "{floor}");
        let marked = table(7071)?;
        ensure!(marked.lines().count() == if road == Road::Tun { 0 } else { 4 }, "{marked}");
        ensure!(marked.lines().all(|line| line.starts_with("local ")), "{marked}");
        let files = world.residue()?.files;
        ensure!((road == Road::Tun) != files.iter().any(|file| file.contains("bpf")), "{files:?}");

        // The cluster gets another subnet, another is allowed to be direct, one goes.
        let mut next = Plan { road, ..wanted.clone() };
        next.steer = vec!["10.244.0.0/16".parse()?, "10.97.0.0/16".parse()?];
        next.hidden.clear();
        drop(world.block_on(host.apply(&next))?);
        ensure!(route_get("10.244.7.7").contains("dev tpx0") && route_get("10.97.1.1").contains("dev tpx0"));
        ensure!(route_get("10.244.9.9").contains("dev vpn0") && route_get("10.96.3.7").contains("dev vpn0"));
        ensure!(table(7271)?.is_empty(), "{}", table(7271)?);
        world.block_on(host.revert())?;
        drop(handover);
        ensure!(untouched.map(route_get) == before, "{:?}", untouched.map(route_get));
    }
    drop(vpn);
    Ok(())
}

/// The device as the netstack sees it.
pub(crate) struct Tun(File);

impl Tun {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self(device.into())
    }

    /// The next packet of UDP to `to`: whole, without the header in front of it.
    pub(crate) fn udp_to(&mut self, to: SocketAddr) -> Result<Vec<u8>> {
        let start = Instant::now();
        let mut buffer = vec![0; HEADER + 65536];
        while start.elapsed() < app::PATIENCE {
            let mut readable = [PollFd::new(&self.0, PollFlags::IN)];
            if poll(&mut readable, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }))? == 0 {
                continue;
            }
            let n = self.0.read(&mut buffer)?;
            let packet = &buffer[HEADER..n];
            if udp_destination(packet) == Some(to) {
                return Ok(packet.to_vec());
            }
        }
        bail!("nothing for {to} came through the device")
    }

    /// Answers a packet of [`udp_to`](Self::udp_to) with the same payload.
    pub(crate) fn answer(&mut self, packet: &[u8]) -> Result<()> {
        let mut back = [vec![0; HEADER], packet.to_vec()].concat();
        let ip = &mut back[HEADER..];
        let (at, length) = if ip[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
        let (source, rest) = ip[at..].split_at_mut(length);
        source.swap_with_slice(&mut rest[..length]);
        let udp = udp_offset(ip);
        let (source, rest) = ip[udp..].split_at_mut(2);
        source.swap_with_slice(&mut rest[..2]);
        // Exchanging ends changes no sum; but the kernel left the sum to whoever needs it (VIRTIO_NET_HDR_F_NEEDS_CSUM).
        let start = u16::try_from(udp)?.to_ne_bytes();
        back[0] = 1;
        back[6..8].copy_from_slice(&start);
        back[8..10].copy_from_slice(&6u16.to_ne_bytes());
        self.0.write_all(&back)?;
        Ok(())
    }
}

fn udp_offset(ip: &[u8]) -> usize {
    if ip[0] >> 4 == 4 { usize::from(ip[0] & 15) * 4 } else { 40 }
}

fn udp_destination(ip: &[u8]) -> Option<SocketAddr> {
    let (protocol, to): (u8, IpAddr) = match ip.first()? >> 4 {
        4 => (*ip.get(9)?, <[u8; 4]>::try_from(ip.get(16..20)?).ok()?.into()),
        6 => (*ip.get(6)?, <[u8; 16]>::try_from(ip.get(24..40)?).ok()?.into()),
        _ => return None,
    };
    let port = ip.get(udp_offset(ip) + 2..)?;
    (protocol == 17).then(|| SocketAddr::new(to, u16::from_be_bytes([port[0], port[1]])))
}

/// A socket that gives up after a while.
fn udp(bind: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(bind)?;
    socket.set_read_timeout(Some(app::PATIENCE))?;
    Ok(socket)
}

fn ensure_carried(tun: &mut Tun, socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    socket.send_to(b"across", to).with_context(|| to.to_string())?;
    let packet = tun.udp_to(to)?;
    tun.answer(&packet)?;
    let mut answer = [0; 100];
    let (n, from) = socket.recv_from(&mut answer).with_context(|| format!("the answer of {to}"))?;
    ensure!(from == to && &answer[..n] == b"across", "{from} {:?}", &answer[..n]);
    Ok(())
}

/// Also with strict reverse path filtering (ip-sysctl.rst), with sources of other devices, and from outside the scope's
/// cgroup.
pub(crate) fn packets(world: &World) -> Result<()> {
    let vpn = vpn()?;
    let rp_filter = "/proc/sys/net/ipv4/conf/all/rp_filter";
    std::fs::write(rp_filter, "1")?;
    let (host, handover) = apply(world, &plan(Road::Tun))?;
    let mut tun = Tun::new(handover.device);
    for to in ["10.96.3.7:9", "246.246.3.7:9", "[fd96::7]:9"].map(app::addr) {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        ensure_carried(&mut tun, &udp(any)?, to)?;
        ensure_carried(&mut tun, &world.outside(|| udp(any))?, to)?;
        let other = if to.is_ipv4() { "192.168.77.1:0" } else { "[fd77::1]:0" };
        ensure_carried(&mut tun, &udp(other)?, to)?;
    }
    drop((tun, host, vpn));
    Ok(std::fs::write(rp_filter, "0")?)
}

/// Sockets that were connected before a subnet was hidden go on; later ones go where the host's routes lead.
pub(crate) fn hidden(world: &World) -> Result<()> {
    let vpn = vpn()?;
    let to = app::addr("10.244.7.7:9");
    let behind = vpn.run(move || {
        ip("address add 10.244.7.7/32 dev lo")?;
        udp("10.244.7.7:9")
    })?;
    let mut first = plan(Road::Tun);
    first.steer.push("10.244.0.0/16".parse()?);
    first.hidden.clear();
    let (mut host, handover) = apply(world, &first)?;
    let mut tun = Tun::new(handover.device);
    let open = udp("0.0.0.0:0")?;
    open.connect(to)?;
    open.send(b"before")?;
    ensure!(tun.udp_to(to)?.ends_with(b"before"));
    drop(world.block_on(host.apply(&plan(Road::Tun)))?);
    open.send(b"after")?;
    let packet = tun.udp_to(to)?;
    ensure!(packet.ends_with(b"after"));
    tun.answer(&packet)?;
    let mut answer = [0; 16];
    ensure!(open.recv(&mut answer)? == 5 && answer.starts_with(b"after"));
    let new = udp("0.0.0.0:0")?;
    new.send_to(b"new", to)?;
    let (n, from) = behind.recv_from(&mut answer)?;
    ensure!(&answer[..n] == b"new" && from.ip() == app::addr("192.168.77.1:0").ip(), "{from}");
    drop((tun, host, behind, vpn));
    Ok(())
}

/// Routes know no processes, but marks: a plan for one tree leaves the main roads alone.
pub(crate) fn tree(world: &World) -> Result<()> {
    let vpn = vpn()?;
    let (mut host, handover) = apply(world, &relay::plan(world))?;
    let way = route_get("10.96.3.7");
    ensure!(way.contains("dev vpn0"), "{way}");
    let member = route_get(&format!("10.96.3.7 mark {:#x}", mark::member(Slot::FIRST)));
    ensure!(member.contains("dev tpx0 table 7171 src 246.246.255.1"), "{member}");
    let other = route_get(&format!("10.96.3.7 mark {:#x}", mark::member(Slot::masked(1))));
    ensure!(other.contains("dev vpn0"), "{other}");
    let hole = route_get(&format!("10.96.9.7 mark {:#x}", mark::member(Slot::FIRST)));
    ensure!(hole.contains("dev vpn0"), "{hole}");
    // The tree does not become everybody.
    let refused = world.block_on(host.apply(&Plan { scope: Scope::Workstation, ..relay::plan(world) }));
    ensure!(refused.is_err_and(|e| e.to_string().contains("revert first")));
    ensure!(route_get("10.96.3.7") == way);
    let refused = world.block_on(host.apply(&Plan { road: Road::Tun, ..relay::plan(world) }));
    ensure!(refused.is_err_and(|e| e.to_string().contains("express lane")));
    drop((host, handover, vpn));
    Ok(())
}

/// wg-quick's way: everything unmarked goes to a table of its own, unless main knows better than a default route.
pub(crate) fn wg_quick(world: &World) -> Result<()> {
    let vpn = Neighbour::plug("wg", &["192.168.78.1/24"], &["192.168.78.2/24"])?;
    let quick = [
        "route add default via 192.168.78.2 dev wg0 table 51820",
        "rule add not fwmark 0xca6c table 51820",
        "rule add table main suppress_prefixlength 0",
    ];
    let result = quick.iter().try_for_each(|words| ip(words).map(drop)).and_then(|()| {
        let before = route_get("198.51.100.1");
        ensure!(before.contains("dev wg0 table 51820"), "{before}");
        let (host, handover) = apply(world, &plan(Road::Tun))?;
        ensure!(route_get("10.96.3.7").contains("dev tpx0"), "{}", route_get("10.96.3.7"));
        ensure!(route_get("10.96.9.7").contains("dev wg0") && route_get("198.51.100.1") == before);
        // The VPN's own packets have its mark, whatever tpx does.
        let marked = route_get("198.51.100.1 mark 0xca6c");
        ensure!(!marked.contains("wg0"), "{marked}");
        drop((host, handover));
        Ok(())
    });
    for words in ["rule del not fwmark 0xca6c table 51820", "rule del table main suppress_prefixlength 0"] {
        ip(words)?;
    }
    drop(vpn);
    result
}
