//! Flows that stay open: each is proved by a byte that comes back, and then does nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tpx_bench::files;
use tpx_bench::said::{Held, Touched};

use super::PATIENCE;

/// Threads that open flows.
const AT_ONCE: usize = 16;
/// A datagram may be lost where so many come at once.
const TRIES: usize = 10;

/// Opens `connections` and `associations`, spread over `addresses`, says so, and keeps them until this process is ended.
pub(super) fn run(addresses: &[SocketAddr], connections: usize, associations: usize) -> Result<()> {
    ensure!(!addresses.is_empty(), "no address");
    files::allow_all();
    let begin = Instant::now();
    let address = |n: usize| *addresses.get(n % addresses.len()).unwrap_or(&addresses[0]);
    let tcp = open(connections, |n| connection(address(n)))?;
    let udp = open(associations, |n| association(address(n)))?;
    let held = Held { connections: tcp.len(), associations: udp.len(), seconds: begin.elapsed().as_secs_f64() };
    super::print(&held)?;
    loop {
        std::thread::park();
    }
}

/// Does `one` so many times, some of them at once.
fn open<T: Send>(count: usize, one: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let some = || {
        let mut open = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return anyhow::Ok(open);
            }
            open.push(one(n).with_context(|| format!("flow {n}"))?);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(some)).collect();
        let mut all = Vec::with_capacity(count);
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        Ok(all)
    })
}

fn connection(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = super::connect(address)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0]).context("no echo")?;
    Ok(stream)
}

fn association(address: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE / TRIES as u32))?;
    for _ in 0..TRIES {
        socket.send(b"x")?;
        if socket.recv(&mut [0]).is_ok() {
            return Ok(socket);
        }
    }
    anyhow::bail!("no echo of a datagram")
}

/// Connects a datagram socket to an address again and again: what the system call costs, and nothing behind it.
pub(super) fn touch(address: SocketAddr, seconds: f64) -> Result<Touched> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (limit, begin) = (Duration::from_secs_f64(seconds), Instant::now());
    let mut count = 0;
    while begin.elapsed() < limit {
        for _ in 0..256 {
            socket.connect(address)?;
        }
        count += 256;
    }
    Ok(Touched { count, nanoseconds: begin.elapsed().as_nanos() as f64 / count as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_opened_once() {
        let mut all = open(100, Ok).unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert!(open(3, |n| if n == 2 { Err(anyhow::anyhow!("no")) } else { Ok(n) }).is_err());
    }
}
