//! Measures what user-space TCP stacks cost, next to plain loopback: one stream each way, and a 64-byte round trip.
//!
//! All roads end in the same servers in this process; the client uses the kernel's sockets. Everything happens in a
//! network namespace of its own. Rounds are interleaved, so that a slow moment of the machine meets every road, and
//! medians are compared with loopback's.

mod client;
mod roads;
mod serve;
mod shared;
#[expect(unsafe_code, reason = "making a TUN device")]
#[path = "../../../daemon/datapath/tests/floor/sys/tun.rs"]
mod sys;

use std::{net::TcpStream, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use nix::sched::{CloneFlags, unshare};

use crate::client::Sample;

/// Measures user-space TCP stacks over a TUN device. Needs root, for a network namespace.
#[derive(Parser)]
struct Arguments {
    /// How often each road is measured.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long each direction of a round takes, in milliseconds.
    #[arg(long, default_value_t = 700)]
    ms: u64,
    /// Connections that are open and idle on the road meanwhile.
    #[arg(long, default_value_t = 0)]
    idle: usize,
    /// Only these roads (and loopback).
    #[arg(long)]
    only: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (needs root)")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut roads = runtime.block_on(roads::all())?;
    roads.retain(|r| {
        r.name == roads::LOOPBACK || arguments.only.is_empty() || arguments.only.iter().any(|o| o == r.name)
    });
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); roads.len()];
    for round in 0..=arguments.rounds {
        for (road, samples) in roads.iter().zip(&mut samples) {
            let idle = (0..arguments.idle)
                .map(|_| TcpStream::connect((road.host, serve::ECHO)))
                .collect::<Result<Vec<_>, _>>()
                .with_context(|| format!("{}: idle connections", road.name))?;
            let sample = client::measure(road.name, road.host, Duration::from_millis(arguments.ms));
            drop(idle);
            // The first round warms up.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let medians: Vec<_> = samples.iter().map(|s| Sample::median(s)).collect();
    let plain = medians[0];
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header([
        "road",
        "up Gbit/s",
        "x",
        "down Gbit/s",
        "x",
        "64 B round trip",
        "x",
    ]);
    for (road, sample) in roads.iter().zip(&medians) {
        table.add_row([
            road.name.to_owned(),
            format!("{:.2}", sample.up * 8.0 / 1e9),
            format!("{:.3}", sample.up / plain.up),
            format!("{:.2}", sample.down * 8.0 / 1e9),
            format!("{:.3}", sample.down / plain.down),
            format!("{:.1} us", sample.trip * 1e6),
            format!("{:.2}", sample.trip / plain.trip),
        ]);
    }
    println!("{table}");
    println!("{} rounds, {} idle connections", arguments.rounds, arguments.idle);
    // Servers may still be busy with what was cut off.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(())
}
