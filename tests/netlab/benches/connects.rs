//! `cargo test --release -p tpx-netlab --bench connects`: what a connection costs beside its way, as ratios of rounds that
//! take turns.
//!
//! Owners: CPU time of everything (application, kernel, daemon's half: all in this process) per short connection, with and
//! without the owners of connections. Denied: how long a denied `connect()` takes, next to a refused one to loopback.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::task::JoinSet;
use tpx_core::plan::Plan;
use tpx_datapath::{
    Arrival, FlowSource as _, Host as _, Knock,
    linux::{
        ExpressFiles, Handover, LinuxHost, Slot,
        express::{ExpressLane, ExpressParts},
    },
};
use tpx_netlab::{Case, World};

const CASES: &[Case] = &[("owners_of_short_connections", owners), ("denied_connects", denied)];
const ROUNDS: usize = 7;
const CONNECTIONS: u32 = 1000;

fn main() -> std::process::ExitCode {
    tpx_netlab::run(CASES)
}

/// An express lane that ends each connection at once.
struct Lane {
    host: LinuxHost,
    handover: (std::os::fd::OwnedFd, JoinSet<()>),
}

impl Lane {
    fn start(world: &World, mut host: LinuxHost, plan: &Plan) -> Result<Self> {
        world.block_on(async {
            let Handover { device, express, .. } = host.apply(plan).await?;
            let files = express.context("no express lane")?;
            let ExpressFiles { listeners, raws, syns, held, datagrams, targets, owners, .. } = files;
            let parts = ExpressParts { listeners, raws, syns, held, datagrams, targets, owners };
            let (mut lane, mut tasks) = (ExpressLane::new(parts)?, JoinSet::new());
            tasks.spawn(async move {
                let mut flows = JoinSet::new();
                while let Some(arrival) = lane.next().await {
                    if let Arrival::Connection(knock) = arrival {
                        flows.spawn(end(knock));
                    }
                    while flows.try_join_next().is_some() {}
                }
            });
            Ok(Self { host, handover: (device, tasks) })
        })
    }

    fn stop(mut self, world: &World) -> Result<()> {
        world.block_on(async {
            self.host.revert().await?;
            self.handover.1.shutdown().await;
            Ok(())
        })
    }
}

async fn end(knock: Box<dyn Knock>) {
    std::hint::black_box(knock.caller());
    drop(knock.release().await);
}

fn plan(world: &World) -> Result<Plan> {
    Ok(Plan { scope: world.scope(), steer: vec!["10.96.0.0/16".parse()?], ..Plan::default() })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// CPU time of this process, the kernel's included.
fn spent() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let all = usage.user_time() + usage.system_time();
    Ok(Duration::from_secs(u64::try_from(all.tv_sec())?) + Duration::from_micros(u64::try_from(all.tv_usec())?))
}

fn owners(world: &World) -> Result<()> {
    let to: SocketAddr = "10.96.3.7:80".parse()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        let host = LinuxHost::new(Slot::FIRST);
        let counted = round % 2 == 0;
        let lane = Lane::start(world, if counted { host } else { host.without_owners() }, &plan(world)?)?;
        let before = spent()?;
        for _ in 0..CONNECTIONS {
            TcpStream::connect(to)?.read_to_end(&mut Vec::new())?;
        }
        let each = (spent()? - before).as_secs_f64() * 1e6 / f64::from(CONNECTIONS);
        lane.stop(world)?;
        if counted { &mut with } else { &mut without }.push(each);
    }
    let added: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let (with, without, added) = (median(with), median(without), median(added));
    // Microseconds each, a thousand times a second: a tenth of a per cent of a core.
    println!(
        "\nCPU per short connection: {with:.1} us, {without:.1} us without owners (x {:.2}); {:.2} % of a core at 1000/s",
        with / without,
        added / 10.0
    );
    Ok(())
}

fn denied(world: &World) -> Result<()> {
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let lane =
        Lane::start(world, LinuxHost::new(Slot::FIRST), &Plan { deny: vec!["10.96.7.0/24".parse()?], ..plan(world)? })?;
    let each = |to: SocketAddr, error: std::io::ErrorKind| -> Result<f64> {
        let began = Instant::now();
        for _ in 0..CONNECTIONS {
            ensure!(TcpStream::connect(to).is_err_and(|e| e.kind() == error), "{to} did not fail as expected");
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(CONNECTIONS))
    };
    let (mut denied, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        denied.push(each("10.96.7.7:80".parse()?, std::io::ErrorKind::PermissionDenied)?);
        refused.push(each(closed, std::io::ErrorKind::ConnectionRefused)?);
    }
    let (denied, refused) = (median(denied), median(refused));
    println!("\na denied connect(): {denied:.1} us; refused by loopback: {refused:.1} us (x {:.2})", denied / refused);
    lane.stop(world)
}
