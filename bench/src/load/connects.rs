//! New connections per second, each proved by one byte that comes back.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tpx_bench::said::Connects;

/// `at_once` threads connect again and again, for `seconds` or until `most` connections were begun.
pub(super) fn run(address: SocketAddr, at_once: usize, seconds: f64, most: usize) -> Result<Connects> {
    ensure!(at_once > 0, "at least one at a time");
    let limit = Duration::from_secs_f64(seconds);
    let (begun, good, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let error = Mutex::new(None);
    one(address).context("the first connection")?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while begin.elapsed() < limit && begun.fetch_add(1, Ordering::Relaxed) < most {
                    match one(address) {
                        Ok(()) => good.fetch_add(1, Ordering::Relaxed),
                        Err(what) => {
                            if let Ok(mut error) = error.lock() {
                                error.get_or_insert(format!("{what:#}"));
                            }
                            failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
    });
    let seconds = begin.elapsed().as_secs_f64();
    let error = error.into_inner().unwrap_or_default();
    Ok(Connects { count: good.into_inner(), failed: failed.into_inner(), error, seconds })
}

fn one(address: SocketAddr) -> Result<()> {
    let mut stream = super::connect(address)?;
    let mut byte = [0];
    stream.write_all(b"x")?;
    stream.read_exact(&mut byte).context("no echo")?;
    ensure!(byte == *b"x", "the echo is not what was sent");
    Ok(())
}
