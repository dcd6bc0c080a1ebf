//! A network namespace with two TUN devices, a floor over each.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::Runtime;
use tpx_datapath::{Floor, FloorGauge, FloorReading, FloorSettings, linux::Tun};

use crate::{cluster, sys};

/// What the devices carry.
pub(crate) const MTU: u16 = 1500;

/// One floor, seen from applications.
pub(crate) struct Road {
    pub(crate) name: &'static str,
    pub(crate) gauge: FloorGauge,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

pub(crate) struct World {
    /// Carries the floors.
    _runtime: Runtime,
    pub(crate) roads: Vec<Road>,
}

impl Road {
    /// Addresses that are routed to it, one per family, with this port.
    pub(crate) fn both(&self, port: u16) -> [SocketAddr; 2] {
        [(self.v4, port).into(), (self.v6, port).into()]
    }

    /// Waits until no connection is left.
    pub(crate) fn settle(&self) -> Result<()> {
        self.wait_for("connections end", |reading| reading.connections == 0)
    }

    /// Waits until the floor is as it should be.
    pub(crate) fn wait_for(&self, what: &str, right: impl Fn(&FloorReading) -> bool) -> Result<()> {
        let start = Instant::now();
        while !right(&self.gauge.read()) && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(5));
        }
        let reading = self.gauge.read();
        ensure!(right(&reading), "{}: {what}: {reading:?}", self.name);
        Ok(())
    }
}

/// Leaves the machine's network for one of its own. Has to happen before there are threads.
pub(crate) fn leave() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return unshare(CloneFlags::CLONE_NEWNET).context("a network namespace");
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("a user and a network namespace")?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(())
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        // So that unprivileged ICMP sockets may be used.
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let roads = runtime.block_on(async {
            let (connection, netlink, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            netlink.link().change(LinkUnspec::new_with_index(1).up().build()).execute().await?;
            let mut roads = Vec::new();
            for (index, (name, vnet_hdr)) in [("offload", true), ("plain", false)].into_iter().enumerate() {
                roads.push(road(&netlink, name, vnet_hdr, 96 + index as u8).await.context(name)?);
            }
            anyhow::Ok(roads)
        })?;
        Ok(Self { _runtime: runtime, roads })
    }

    /// Runs something on both roads, over both families.
    pub(crate) fn everywhere(&self, port: u16, case: impl Fn(&Road, SocketAddr) -> Result<()>) -> Result<()> {
        for road in &self.roads {
            for address in road.both(port) {
                case(road, address).with_context(|| format!("{}, {address}", road.name))?;
            }
            road.settle()?;
        }
        Ok(())
    }
}

async fn road(netlink: &Handle, name: &'static str, vnet_hdr: bool, number: u8) -> Result<Road> {
    let file = sys::tun(name, vnet_hdr).context("TUN device")?;
    let index = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
    let index = match index {
        Ok(text) => text.trim().parse()?,
        // sysfs shows the namespace that it was mounted in.
        Err(_) => rustix::net::netdevice::name_to_index(
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
            name,
        )?,
    };
    let own4 = Ipv4Addr::new(198, 18, number, 1);
    let own6 = Ipv6Addr::new(0xfd18, 0, 0, number.into(), 0, 0, 0, 1);
    netlink.link().change(LinkUnspec::new_with_index(index).mtu(MTU.into()).up().build()).execute().await?;
    netlink.address().add(index, IpAddr::V4(own4), 32).execute().await?;
    netlink.address().add(index, IpAddr::V6(own6), 128).execute().await?;
    let net4 = Ipv4Addr::new(10, number, 0, 0);
    let net6 = Ipv6Addr::new(0xfd96, 0, 0, number.into(), 0, 0, 0, 0);
    let to4 = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net4, 16).output_interface(index);
    netlink.route().add(to4.pref_source(own4).build()).execute().await?;
    let to6 = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net6, 64).output_interface(index);
    let to6 = to6.pref_source(own6).build();
    // The kernel makes an address of IPv6 useful some moments after it was added, in a task of its own.
    let start = Instant::now();
    while let Err(e) = netlink.route().add(to6.clone()).execute().await {
        ensure!(start.elapsed() < Duration::from_secs(5), "route: {e}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let floor = Floor::with_settings(Tun::new(file, vnet_hdr)?, MTU, FloorSettings::default());
    let gauge = floor.gauge();
    tokio::spawn(cluster::serve(floor));
    let mut v6 = net6.octets();
    v6[15] = 10;
    Ok(Road { name, gauge, v4: Ipv4Addr::new(10, number, 0, 10), v6: v6.into() })
}
