//! What the host would do without tpx, as the kernel itself says it while tpx is not there.

use std::{net::IpAddr, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tokio::time::timeout;
use tpx_core::plan::Road;
use tpx_datapath::{
    Host as _,
    linux::{
        LinuxHost, Slot,
        routes::{self, HostNetwork, Monitor, Way},
    },
};
use tpx_netlab::World;

use crate::{
    app, floor,
    neighbour::{Neighbour, ip, route_get},
};

const PLACES: [&str; 12] = [
    "10.96.3.7",
    "10.244.7.7",
    "10.50.0.1",
    "10.66.1.1",
    "192.168.77.2",
    "192.168.77.1",
    "198.51.100.1",
    "127.0.0.1",
    "fd96::7",
    "fd77::2",
    "fd77::1",
    "2001:db8::1",
];

/// `ip route get`'s word for it: the device, "lo" for this host, "" for nowhere.
fn kernel(place: &str) -> String {
    let answer = route_get(place);
    if answer.starts_with("local ") || answer.contains(" dev lo ") {
        return "lo".into();
    }
    let mut words = answer.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).unwrap_or_default().to_owned()
}

fn ours(host: &HostNetwork, place: &str) -> String {
    match host.lookup(place.parse().unwrap()) {
        Way::Route(route) => route.device,
        Way::Local => "lo".into(),
        Way::Nowhere => String::new(),
    }
}

/// Whoever may look: this thread gives up all it could do, and looks.
fn read() -> Result<HostNetwork> {
    let look = || -> Result<HostNetwork> {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
        Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(routes::read())?)
    };
    thread::spawn(look).join().map_err(|_| anyhow!("the thread died"))?
}

fn ensure_agreed(what: &str) -> Result<()> {
    let host = read()?;
    for place in PLACES {
        ensure!(
            ours(&host, place) == kernel(place),
            "{what}: {place}: {} is not {}",
            ours(&host, place),
            kernel(place)
        );
    }
    Ok(())
}

/// The same with tpx in between as without it, through every way that VPNs route.
pub(crate) fn without_tpx(world: &World) -> Result<()> {
    ensure_agreed("an empty host")?;
    let vpn = floor::vpn()?;
    ip("route add unreachable 10.66.0.0/16")?;
    ip("route add default via 192.168.77.2 dev vpn0 metric 600")?;
    ensure_agreed("a VPN with routes")?;
    let wg = Neighbour::plug("wg", &["192.168.78.1/24"], &["192.168.78.2/24"])?;
    ip("route add default dev wg0 table 51820")?;
    ip("route add 10.50.0.0/16 dev wg0 table 52")?;
    let rules = [
        "not fwmark 0xca6c table 51820",
        "table main suppress_prefixlength 0",
        // Tailscale's.
        "pref 5210 fwmark 0x80000/0xff0000 lookup main",
        "pref 5230 fwmark 0x80000/0xff0000 lookup default",
        "pref 5250 fwmark 0x80000/0xff0000 unreachable",
        "pref 5270 lookup 52",
        "pref 6000 to 10.96.0.0/16 goto 32767",
        "pref 6001 uidrange 4000-4001 lookup 52",
        "pref 6002 to 198.51.100.0/24 ipproto udp dport 53 lookup 52",
    ];
    let result = (|| {
        for rule in rules {
            ip(&format!("rule add {rule}"))?;
        }
        ensure_agreed("VPNs with rules")?;
        let expected: Vec<String> = PLACES.iter().map(|place| kernel(place)).collect();
        ensure!(expected[2] == "wg0" && expected[3].is_empty() && expected[6] == "wg0", "{expected:?}");
        let before = read()?;
        let mut host = LinuxHost::new(Slot::FIRST);
        let handover = world.block_on(host.apply(&floor::plan(Road::Tun)))?;
        ensure!(kernel("10.96.3.7") == "tpx0");
        let during = read()?;
        ensure!(during == before, "{during:#?}\n{before:#?}");
        drop((handover, host));
        Ok(())
    })();
    for rule in rules {
        let _ = ip(&format!("rule del {rule}"));
    }
    let _ = ip("route del unreachable 10.66.0.0/16");
    drop((vpn, wg));
    result
}

/// News come when a VPN does, and not when tpx does.
pub(crate) fn followed(world: &World) -> Result<()> {
    let monitor = world.block_on(Monitor::start())?;
    let mut routes = monitor.watch();
    let mut next = |what: &str, wanted: &dyn Fn(&HostNetwork) -> bool| {
        world.block_on(async {
            let found = timeout(app::PATIENCE, routes.wait_for(|now| wanted(now))).await;
            found.with_context(|| what.to_owned())?.map(drop).context("the monitor ended")
        })
    };
    let to: ipnet::IpNet = "10.0.0.0/8".parse()?;
    let gateway: IpAddr = "192.168.77.2".parse()?;
    let has = |now: &HostNetwork| now.routes.iter().any(|r| r.destination == to);
    let vpn = floor::vpn()?;
    next("the VPN appears", &has)?;
    {
        let now = monitor.now();
        let route = now.routes.iter().find(|r| r.destination == to).context("the VPN's route")?;
        ensure!((route.device.as_str(), route.gateway, route.table) == ("vpn0", Some(gateway), 254), "{route:?}");
        ensure!(now.gateways.contains(&gateway));
        let own: Vec<String> = now.addresses.iter().map(ToString::to_string).collect();
        ensure!(own == ["192.168.77.1", "fd77::1"], "{own:?}");
    }
    let (mut quiet, mut losses) = (monitor.watch(), monitor.losses());
    losses.mark_unchanged();
    quiet.mark_unchanged();
    let mut host = LinuxHost::new(Slot::FIRST);
    let handover = world.block_on(host.apply(&floor::plan(Road::Tun)))?;
    thread::sleep(std::time::Duration::from_millis(700));
    ensure!(!quiet.has_changed()?, "tpx's own routes were news: {:#?}", quiet.borrow());
    ensure!(!losses.has_changed()?, "what tpx added was taken for a loss");
    for loss in [
        format!("route flush table {}", Slot::FIRST.floor_table()),
        format!("rule del pref {}", Slot::FIRST.floor_preference()),
        "link del tpx0".into(),
    ] {
        ip(&loss)?;
        world.block_on(async { timeout(app::PATIENCE, losses.changed()).await }).with_context(|| loss)??;
    }
    ip("rule add pref 7000 to 10.1.0.0/16 lookup 99")?;
    ip("route add 10.1.0.0/16 dev vpn0 table 99")?;
    next("a table of its own", &|now| now.routes.iter().any(|r| r.table == 99))?;
    ip("rule del pref 7000")?;
    drop(vpn);
    next("the VPN goes", &|now| !has(now) && now.addresses.is_empty())?;
    drop((handover, host, monitor));
    Ok(())
}
