//! The application: the kernel's sockets, blocking.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::serve::{ECHO, SINK, SOURCE};

/// Round trips of one measurement.
const TRIPS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes per second, and seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) trip: f64,
}

impl Sample {
    pub(crate) fn median(all: &[Self]) -> Self {
        let median = |value: fn(&Self) -> f64| {
            let mut values: Vec<f64> = all.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self { up: median(|s| s.up), down: median(|s| s.down), trip: median(|s| s.trip) }
    }
}

pub(crate) fn measure(host: IpAddr, time: Duration) -> Result<Sample> {
    Ok(Sample {
        up: up(host, time).context("up")?,
        down: down(host, time).context("down")?,
        trip: trip(host).context("round trip")?,
    })
}

fn connect(host: IpAddr, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&(host, port).into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn up(host: IpAddr, time: Duration) -> Result<f64> {
    let mut stream = connect(host, SINK)?;
    let bytes = vec![7; 256 << 10];
    let (start, mut sent) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        sent += stream.write(&bytes)? as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut said = [0; 8];
    stream.read_exact(&mut said)?;
    ensure!(u64::from_be_bytes(said) == sent, "the sink got something else");
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

fn down(host: IpAddr, time: Duration) -> Result<f64> {
    let mut stream = connect(host, SOURCE)?;
    let mut bytes = vec![0; 256 << 10];
    let (start, mut got) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        let n = stream.read(&mut bytes)?;
        ensure!(n > 0, "the source ended");
        got += n as u64;
    }
    Ok(got as f64 / start.elapsed().as_secs_f64())
}

fn trip(host: IpAddr) -> Result<f64> {
    let mut stream = connect(host, ECHO)?;
    let mut times = Vec::with_capacity(TRIPS);
    let mut bytes = [1; 64];
    for _ in 0..TRIPS {
        let start = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TRIPS / 2])
}
