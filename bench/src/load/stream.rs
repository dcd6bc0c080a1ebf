//! One-stream throughput without a protocol: from a server that sends endlessly (chargen, RFC 864), to one that takes
//! everything (discard, RFC 863).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tpx_bench::said::Bulk;

const BUFFER: usize = 256 * 1024;
/// What warms the connection up, untimed.
const WARM: u64 = 8 << 20;

/// Reads for `seconds`.
pub(super) fn take(address: SocketAddr, seconds: f64) -> Result<Bulk> {
    let mut stream = super::connect(address)?;
    let mut buffer = vec![0; BUFFER];
    let mut some = |stream: &mut TcpStream| {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the connection ended");
        Ok(count as u64)
    };
    let mut warm = 0;
    while warm < WARM {
        warm += some(&mut stream)?;
    }
    let (begin, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut bytes = 0;
    while begin.elapsed() < limit {
        bytes += some(&mut stream)?;
    }
    Ok(Bulk { bytes, seconds: begin.elapsed().as_secs_f64(), total: bytes + warm })
}

/// Writes for `seconds`; timed until the server has read it all and closed in its turn.
pub(super) fn give(address: SocketAddr, seconds: f64) -> Result<Bulk> {
    let mut stream = super::connect(address)?;
    let buffer: Vec<u8> = (0..BUFFER).map(|i| (i % 251) as u8).collect();
    let some = |stream: &mut TcpStream| -> Result<u64> {
        stream.write_all(&buffer)?;
        Ok(BUFFER as u64)
    };
    let mut warm = 0;
    while warm < WARM {
        warm += some(&mut stream)?;
    }
    let (begin, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut bytes = 0;
    while begin.elapsed() < limit {
        bytes += some(&mut stream)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let end = stream.read(&mut [0]).context("no end")?;
    ensure!(end == 0, "a server that takes everything has sent something");
    Ok(Bulk { bytes, seconds: begin.elapsed().as_secs_f64(), total: bytes + warm })
}
