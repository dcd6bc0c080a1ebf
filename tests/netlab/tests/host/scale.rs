//! As many subnets as a plan may have.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use ipnet::IpNet;
use tpx_core::plan::{Plan, Road, Scope};
use tpx_datapath::{
    Host as _,
    linux::{LinuxHost, Slot},
};
use tpx_netlab::World;

use crate::neighbour::{ip, route_get};

/// Subnets of each family.
const EACH: u32 = 5000;

/// `10.<8 + turn>.x.y/32` and `fd97:<turn>::x`, no two of which make a wider prefix.
fn plan(turn: u8) -> Plan {
    let four = |n: u32| IpNet::from(std::net::IpAddr::from(Ipv4Addr::from(0x0a08_0000 + (u32::from(turn) << 16) + n)));
    let six = |n: u32| {
        let bits = (0xfd97_u128 << 112) | (u128::from(turn) << 96) | u128::from(n);
        IpNet::from(std::net::IpAddr::from(Ipv6Addr::from(bits)))
    };
    let odd = (0..EACH).map(|n| 2 * n + 1);
    Plan {
        scope: Scope::Workstation,
        road: Road::Express,
        steer: odd.clone().map(four).chain(odd.map(six)).collect(),
        ..Plan::default()
    }
}

fn count(table: u32) -> Result<usize> {
    let lines = |family: &str| anyhow::Ok(ip(&format!("{family} route show table {table}"))?.lines().count());
    Ok(lines("-4")? + lines("-6")?)
}

pub(crate) fn ten_thousand(world: &World) -> Result<()> {
    let mut host = LinuxHost::new(Slot::FIRST);
    let (first, second) = (plan(0), plan(1));
    ensure!(first.steer.len() == 10_000);
    for (plan, inside, outside) in [(&first, "10.8.39.15", "10.9.39.15"), (&second, "10.9.39.15", "10.8.39.15")] {
        let handover = world.block_on(host.apply(plan))?;
        for table in [Slot::FIRST.table(), Slot::FIRST.floor_table()] {
            ensure!(count(table)? == 10_000, "{} routes in table {table}", count(table)?);
        }
        ensure!(route_get(inside).contains("tpx0") && !route_get(outside).contains("tpx0"));
        if let Some(express) = handover.express {
            world.expect_gone(&express.counters)?;
        }
    }
    // What is there already costs nothing, and one that goes is one that goes.
    let mut fewer = second.clone();
    fewer.steer.pop();
    world.block_on(host.apply(&fewer))?;
    ensure!(count(Slot::FIRST.table())? == 9_999);
    Ok(world.block_on(host.revert())?)
}
