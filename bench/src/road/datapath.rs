//! The user daemon's part: a plan, and what arrives because of it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tpx_core::plan::{Plan, Road};
use tpx_datapath::linux::express::{ExpressLane, ExpressParts};
use tpx_datapath::linux::{ExpressFiles, Handover, Tun};
use tpx_datapath::remote::RemoteHost;
use tpx_datapath::{Arrival, Floor, FlowSource, FlowStream, Host as _, Knock};
use tpx_link::relay::Socket as _;

use crate::{ready, serve};

/// A subnet that nothing in the lab has.
const STEERED: &str = "10.99.0.0/16";
/// Where the other rules begin.
const OTHERS: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 0);
/// Longer than anything takes that works.
const LIMIT: Duration = Duration::from_secs(10);

/// Serves what comes by `road` until dropped, with so many `rules` beside the one that matters.
pub(super) async fn serve(road: Road, rules: u16) -> Result<()> {
    let socket = PathBuf::from(format!("/run/tpx-road-{}.sock", std::process::id()));
    let mut rootd = rootd(&socket)?;
    let mut host = connect(&socket, &mut rootd).await?;
    let mut plan = Plan { road, steer: vec![STEERED.parse()?], ..Plan::default() };
    // Every other address: no two of them make a wider subnet.
    let other = (0..u32::from(rules)).map(|n| IpAddr::from(Ipv4Addr::from(u32::from(OTHERS) + 2 * n)));
    plan.steer.extend(other.map(IpNet::from));
    let Handover { device, vnet_hdr, mtu, express, .. } = host.apply(&plan).await?;
    let floor = Floor::new(Tun::new(device, vnet_hdr)?, u16::try_from(mtu)?);
    let mut roads = JoinSet::new();
    roads.spawn(carry(floor));
    match (road, express) {
        (Road::Tun, None) => {}
        (Road::Express, Some(files)) => {
            let ExpressFiles { listeners, raws, syns, held, datagrams, targets, .. } = files;
            let parts = ExpressParts { listeners, raws, syns, held, datagrams, targets };
            roads.spawn(carry(ExpressLane::new(parts)?));
        }
        (road, _) => bail!("what came is not what {road:?} needs"),
    }
    let gone = host.closed();
    ready();
    tokio::select! {
        _ = roads.join_next() => bail!("the road ended"),
        () = gone => bail!("tpx-rootd is gone"),
    }
}

/// The privileged daemon that lies beside this program; it ends with its only connection.
fn rootd(socket: &Path) -> Result<Child> {
    let program = std::env::current_exe()?.with_file_name("tpx-rootd");
    let mut command = Command::new(&program);
    command.args(["serve", "--exit-when-idle", "--owner", "0", "--log", "warn", "--socket"]).arg(socket);
    // Standard output is this program's, and says when it is ready.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

async fn connect(socket: &Path, rootd: &mut Child) -> Result<RemoteHost> {
    let begin = Instant::now();
    loop {
        match RemoteHost::connect(socket).await {
            Ok(host) => return Ok(host),
            Err(error) if begin.elapsed() > LIMIT => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        if let Some(status) = rootd.try_wait()? {
            bail!("tpx-rootd ended: {status}");
        }
    }
}

/// Serves all flows of a road until it ends.
async fn carry(mut source: impl FlowSource) {
    while let Some(arrival) = source.next().await {
        match arrival {
            Arrival::Connection(knock) => drop(tokio::spawn(connection(knock))),
            Arrival::Datagrams(flow) => drop(tokio::spawn(serve::datagrams(flow))),
            Arrival::Echo(_) => {}
        }
    }
}

async fn connection(knock: Box<dyn Knock>) {
    let port = knock.destination().port();
    match knock.release().await {
        Ok(FlowStream::Socket(tcp)) => {
            tcp.prepare();
            serve::stream(tcp, port).await;
        }
        Ok(FlowStream::Netstack(stream)) => serve::stream(stream, port).await,
        Err(error) => eprintln!("a connection to port {port}: {error}"),
    }
}
