//! The datapath with nothing behind it: this stands where the user daemon does, and the cluster is three services in
//! its memory. What a client measures through it is what the road into the tunnel costs, and nothing else.
//!
//! It steers addresses of whatever machine it runs on, so it runs in the lab's laptop only.

mod datapath;
mod serve;

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Serves echo (7, TCP and UDP), discard (9) and chargen (19) until it is told to end.
#[derive(Parser)]
#[command(name = "tpx-road")]
struct Cli {
    /// By which road
    road: Road,
    /// Steer so many other addresses as well
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=16_000))]
    rules: u16,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Road {
    /// At 127.0.0.1, by the kernel alone
    Loopback,
    /// At 10.99.0.1, by the express lane
    Express,
    /// At 10.99.0.1, by the floor
    Floor,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(&Cli { road, rules }: &Cli) -> Result<()> {
    ensure!(std::env::var_os("TPX_LAB").is_some(), "this is not the lab's laptop");
    // As the user daemon does.
    tpx_datapath::linux::return_large_blocks();
    tpx_bench::files::allow_all();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let [terminate, interrupt] = &mut ends;
        let served = async {
            match road {
                Road::Loopback => loopback().await,
                Road::Express => datapath::serve(tpx_core::plan::Road::Express, rules).await,
                Road::Floor => datapath::serve(tpx_core::plan::Road::Tun, rules).await,
            }
        };
        tokio::select! {
            served = served => served,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

/// What whoever started this waits for.
fn ready() {
    println!("ready");
}

async fn loopback() -> Result<()> {
    let mut services = JoinSet::new();
    for port in serve::PORTS {
        let at = ("127.0.0.1", port);
        let listener = TcpListener::bind(at).await.with_context(|| format!("listen at {at:?}"))?;
        services.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await?;
                tcp.set_nodelay(true)?;
                tokio::spawn(serve::stream(tcp, port));
            }
        });
    }
    let udp = UdpSocket::bind(("127.0.0.1", serve::ECHO)).await?;
    services.spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await?;
            udp.send_to(&buffer[..length], from).await?;
        }
    });
    ready();
    let ended: io::Result<()> = services.join_next().await.context("no service")??;
    ended.context("a service ended")
}
