//! TCP.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::SockRef;

use crate::{
    cluster::{self, HOLD},
    sum::Sum,
    world::World,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub(crate) fn truth(world: &World) -> Result<()> {
    let errors = [
        (cluster::REFUSED, libc::ECONNREFUSED),
        (cluster::HOST_UNREACHABLE, libc::EHOSTUNREACH),
        (cluster::NETWORK_UNREACHABLE, libc::ENETUNREACH),
    ];
    for (port, errno) in errors {
        world.everywhere(port, |_, to| {
            let start = Instant::now();
            let Err(e) = TcpStream::connect(to) else { bail!("connected") };
            ensure!(e.raw_os_error() == Some(errno), "{e}");
            ensure!(start.elapsed() < Duration::from_millis(500), "late: {:?}", start.elapsed());
            Ok(())
        })?;
    }
    world.everywhere(cluster::SILENT, |_, to| {
        let Err(e) = TcpStream::connect_timeout(&to, Duration::from_millis(1500)) else { bail!("connected") };
        ensure!(e.kind() == io::ErrorKind::TimedOut, "{e}");
        Ok(())
    })
}

pub(crate) fn held(world: &World) -> Result<()> {
    world.everywhere(cluster::HELD, |road, to| {
        let announced = || road.gauge.read().counters.announced;
        let (before, start) = (announced(), Instant::now());
        let mut stream = connect(to)?;
        let took = start.elapsed();
        ensure!(took >= HOLD && took < HOLD + Duration::from_millis(500), "{took:?}");
        // The SYN was repeated after a second; that is no second attempt.
        ensure!(announced() == before + 1);
        stream.write_all(b"hello")?;
        let mut back = [0; 5];
        stream.read_exact(&mut back)?;
        ensure!(&back == b"hello");
        Ok(())
    })
}

pub(crate) fn volume(world: &World) -> Result<()> {
    const MUCH: usize = 64 << 20;
    world.everywhere(cluster::SINK, |_, to| {
        let mut stream = connect(to)?;
        let mut sum = Sum::default();
        let mut part: Vec<u8> = (0..1u32 << 20).map(|i| (i ^ i >> 8) as u8).collect();
        for number in 0..MUCH >> 20 {
            part[..8].copy_from_slice(&(number as u64).to_be_bytes());
            sum.update(&part);
            stream.write_all(&part).context("write")?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("read the sum")?;
        ensure!(answer == sum.finish(), "garbled");
        Ok(())
    })?;
    world.everywhere(cluster::SOURCE, |_, to| {
        let mut stream = connect(to)?;
        writeln!(stream, "{MUCH}")?;
        let (mut sum, mut left, mut bytes) = (Sum::default(), MUCH, vec![0; 256 << 10]);
        while left > 0 {
            let most = left.min(bytes.len());
            let n = stream.read(&mut bytes[..most]).context("read")?;
            ensure!(n > 0, "ended {left} bytes early");
            sum.update(&bytes[..n]);
            left -= n;
        }
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        ensure!(said == sum.finish(), "garbled");
        Ok(())
    })
}

pub(crate) fn halves(world: &World) -> Result<()> {
    // The application first: volume() does that too, with more bytes.
    world.everywhere(cluster::ECHO, |_, to| {
        let mut stream = connect(to)?;
        stream.write_all(b"last words")?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        ensure!(back == b"last words");
        Ok(())
    })?;
    world.everywhere(cluster::ENDS_FIRST, |_, to| {
        let mut stream = connect(to)?;
        ensure!(stream.read(&mut [0; 1])? == 0, "the other end spoke");
        thread::sleep(Duration::from_millis(50));
        stream.write_all(&vec![1; 1 << 20]).context("write after the other end's end")?;
        stream.shutdown(Shutdown::Write)?;
        ensure!(stream.take_error()?.is_none());
        Ok(())
    })
}

pub(crate) fn resets(world: &World) -> Result<()> {
    world.everywhere(cluster::RESETS, |_, to| {
        let mut stream = connect(to)?;
        stream.write_all(b"x")?;
        let Err(e) = stream.read(&mut [0; 1]) else { bail!("no reset") };
        ensure!(e.kind() == io::ErrorKind::ConnectionReset, "{e}");
        Ok(())
    })?;
    // The application's reset is seen by somebody who only waits, and by somebody who only writes.
    for port in [cluster::STALLS, cluster::POURS] {
        world.everywhere(port, |_, to| {
            let before = cluster::breaks();
            let mut stream = connect(to)?;
            stream.write_all(&[1; 1000])?;
            thread::sleep(Duration::from_millis(100));
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            drop(stream);
            let start = Instant::now();
            while cluster::breaks() == before && start.elapsed() < Duration::from_secs(3) {
                thread::sleep(Duration::from_millis(5));
            }
            ensure!(cluster::breaks() == before + 1, "the reset was not seen");
            Ok(())
        })?;
    }
    Ok(())
}

pub(crate) fn many(world: &World) -> Result<()> {
    for road in &world.roads {
        let (good, start) = (AtomicUsize::new(0), Instant::now());
        thread::scope(|scope| {
            for number in 0..500usize {
                let to = road.both(if number % 5 == 0 { cluster::REFUSED } else { cluster::ECHO })[number % 2];
                let good = &good;
                scope.spawn(move || {
                    let right = match TcpStream::connect_timeout(&to, PATIENCE) {
                        Ok(mut stream) => {
                            let mut back = [0; 4];
                            to.port() == cluster::ECHO
                                && stream.write_all(&(number as u32).to_be_bytes()).is_ok()
                                && stream.read_exact(&mut back).is_ok()
                                && back == (number as u32).to_be_bytes()
                        }
                        Err(e) => to.port() == cluster::REFUSED && e.kind() == io::ErrorKind::ConnectionRefused,
                    };
                    good.fetch_add(usize::from(right), SeqCst);
                });
            }
        });
        ensure!(good.load(SeqCst) == 500, "{}: {} of 500", road.name, good.load(SeqCst));
        ensure!(start.elapsed() < Duration::from_secs(5), "{}: {:?}", road.name, start.elapsed());
        road.settle()?;
    }
    Ok(())
}
