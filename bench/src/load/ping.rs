//! The round trip of 64 bytes over a connection that is warm, alone or beside a download.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tpx_bench::said::{Bulk, Ping};
use tpx_bench::stats::quantile;

const SIZE: usize = 64;
/// Round trips that are not timed.
const WARM: usize = 20;

/// `count` round trips, or as many as fit into `seconds`.
pub(super) fn run(address: SocketAddr, count: usize, seconds: f64) -> Result<Ping> {
    let mut stream = super::connect(address)?;
    let (sent, mut got) = ([0x5a; SIZE], [0; SIZE]);
    let mut times = Vec::with_capacity(count);
    let (begin, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
    for turn in 0..WARM + count {
        let start = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut got).context("no echo")?;
        if turn >= WARM {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        if begin.elapsed() > limit {
            break;
        }
    }
    ensure!(got == sent, "the echo is not what was sent");
    let at = |part| quantile(&times, part).context("too slow to time");
    Ok(Ping { count: times.len(), p50: at(0.5)?, p99: at(0.99)?, beside: None })
}

/// The same while another connection downloads.
pub(super) fn run_beside(address: SocketAddr, count: usize, seconds: f64, web: SocketAddr) -> Result<Ping> {
    let (begun, enough) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| super::bulk::down_until(web, &begun, &enough));
        while !begun.load(Ordering::Acquire) && !bulk.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let ping = run(address, count, seconds);
        enough.store(true, Ordering::Release);
        let bulk: Bulk = bulk.join().map_err(|_| anyhow::anyhow!("the download panicked"))?.context("the download")?;
        Ok(Ping { beside: Some(bulk.rate()), ..ping? })
    })
}
