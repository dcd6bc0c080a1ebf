//! Scopes that are made of containers: these see their own cluster, and everybody else what they saw before.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tpx_core::plan::{Plan, Scope};
use tpx_datapath::linux::{Feature, LinuxHost, Slot};
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    bridge::{Bridge, Switch, ask, datagram, echo, ping},
    containers::{plan, wait_for},
    neighbour::Neighbour,
    relay::Relay,
};

const FIRST: [&str; 2] = ["172.17.0.2", "fd17::2"];
const SECOND: [&str; 2] = ["172.17.0.3", "fd17::3"];

fn scoped(addresses: &[&str]) -> Plan {
    let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    Plan { scope: Scope::Containers(addresses), container_devices: vec!["docker0".parse().unwrap()], ..plan() }
}

/// A cluster at a slot.
fn start(world: &World, index: u32, without: &[Feature], plan: &Plan) -> Result<Relay> {
    let host = LinuxHost::new(Slot::new(index).unwrap()).without(without);
    let relay = Relay::start_with_floor(world, host, plan)?;
    wait_for(&relay.host, &["docker0"])?;
    Ok(relay)
}

/// What each cluster was asked and sent by containers.
fn seen(relays: &[&Relay]) -> Result<Vec<[u64; 2]>> {
    relays.iter().map(|relay| Ok([relay.count("containers_steered")?, relay.count("containers_asked")?])).collect()
}

/// Everything that a container does reaches the cluster `own`, and no other.
fn ensure_in(own: usize, relays: &[&Relay], container: &Neighbour) -> Result<()> {
    let before = seen(relays)?;
    container.run(|| {
        for ip in ["10.96.3.7", "fd96::7", "246.246.3.7"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
            echo(SocketAddr::new(ip, 80), vec![4; 50_000]).with_context(|| format!("TCP {ip}"))?;
            datagram(SocketAddr::new(ip, 9), 5_000).with_context(|| format!("UDP {ip}"))?;
            ping(ip)?;
        }
        for server in ["203.0.113.53", "2001:db8::53"] {
            ensure!(ask(server)? == format!("{} name?", SocketAddr::new(server.parse()?, 53)));
        }
        Ok(())
    })?;
    for (at, (before, after)) in before.into_iter().zip(seen(relays)?).enumerate() {
        let (grew, stayed) = (after[0] > before[0] && after[1] == before[1] + 2, after == before);
        ensure!(if at == own { grew } else { stayed }, "cluster {at}: {before:?}, then {after:?}, instead of {own}");
    }
    Ok(())
}

/// It sees no cluster.
fn ensure_outside(relays: &[&Relay], container: &Neighbour) -> Result<()> {
    let before = seen(relays)?;
    container.run(|| {
        let silent = TcpStream::connect_timeout(&addr("10.96.3.7:80"), Duration::from_millis(300));
        ensure!(silent.is_err(), "{silent:?}");
        Ok(())
    })?;
    ensure!(seen(relays)? == before, "{before:?}, then {:?}", seen(relays)?);
    Ok(())
}

pub(crate) fn beside_the_workstation(world: &World) -> Result<()> {
    beside(world, &[])
}

pub(crate) fn by_clsact(world: &World) -> Result<()> {
    beside(world, &[Feature::Tcx])
}

/// Whichever was there first.
fn beside(world: &World, without: &[Feature]) -> Result<()> {
    let _router = Switch::router()?;
    let _wan = crate::containers::internet()?;
    let bridge = Bridge::docker()?;
    let (first, second) = (bridge.first()?, bridge.second()?);
    for scope_comes_first in [true, false] {
        let early = scope_comes_first.then(|| start(world, 1, without, &scoped(&FIRST))).transpose()?;
        let all = start(world, 0, without, &plan())?;
        let mut one = early.map_or_else(|| start(world, 1, without, &scoped(&FIRST)), Ok)?;
        ensure_in(1, &[&all, &one], &first).context("the container of the scope")?;
        ensure_in(0, &[&all, &one], &second).context("another container")?;
        // This machine's own processes are the workstation's.
        let knocks = [all.knocks(), one.knocks()];
        app::ensure_echo(&app::connect(addr("10.96.3.7:80"))?, b"whose?")?;
        ensure!([all.knocks(), one.knocks()] == [knocks[0] + 1, knocks[1]]);
        // What its plan does not know is not the workstation's either.
        drop(one.apply(world, &Plan { steer: vec!["10.97.0.0/16".parse()?], ..scoped(&FIRST) })?);
        ensure_outside(&[&all, &one], &first).context("what only the workstation has")?;
        // It moves, and stops.
        drop(one.apply(world, &scoped(&SECOND))?);
        ensure_in(1, &[&all, &one], &second).context("after it moved")?;
        ensure_in(0, &[&all, &one], &first).context("who has its old place")?;
        drop(one.apply(world, &scoped(&[]))?);
        ensure_in(0, &[&all, &one], &second).context("after it stopped")?;
        drop(one.apply(world, &scoped(&FIRST))?);
        all.stop(world)?;
        ensure_in(0, &[&one], &first).context("alone")?;
        ensure_outside(&[&one], &second)?;
        ensure!(app::connect(addr("10.96.3.7:80")).is_err(), "a process of this machine is in the scope");
        one.stop(world)?;
        ensure_outside(&[], &first)?;
        ensure!(bridge.is_bare()?, "something is left on the bridge");
    }
    Ok(())
}

/// Two containers on one bridge, each in a cluster of its own with the same subnets.
pub(crate) fn two(world: &World) -> Result<()> {
    let _router = Switch::router()?;
    let _wan = crate::containers::internet()?;
    let bridge = Bridge::docker()?;
    let (first, second) = (bridge.first()?, bridge.second()?);
    let one = start(world, 1, &[], &scoped(&FIRST))?;
    let two = start(world, 2, &[], &scoped(&SECOND))?;
    for _ in 0..2 {
        ensure_in(0, &[&one, &two], &first)?;
        ensure_in(1, &[&one, &two], &second)?;
    }
    one.stop(world)?;
    ensure_in(0, &[&two], &second)?;
    ensure_outside(&[&two], &first)?;
    two.stop(world)?;
    ensure!(bridge.is_bare()?, "something is left on the bridge");
    Ok(())
}
