//! The application: the kernel's sockets, blocking.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::serve::{ECHO, SINK, SOURCE};

/// Round trips of one measurement.
const TRIPS: usize = 1000;
/// Bytes that the sink acknowledges at once.
const PART: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes per second, and seconds; not a number where the road failed.
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
            values.retain(|v| v.is_finite());
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self { up: median(|s| s.up), down: median(|s| s.down), trip: median(|s| s.trip) }
    }
}

/// One round; what fails is said and left out.
pub(crate) fn measure(name: &str, host: IpAddr, time: Duration) -> Sample {
    let number = |what: &str, measured: Result<f64>| {
        measured.unwrap_or_else(|e| {
            eprintln!("{name}, {what}: {e:#}");
            f64::NAN
        })
    };
    Sample {
        up: number("up", up(host, time)),
        down: number("down", down(host, time)),
        trip: number("round trip", trip(host)),
    }
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
    // In parts that are acknowledged, and not up to an end of file: not every stack answers after that.
    while start.elapsed() < time {
        stream.write_all(&PART.to_be_bytes())?;
        for _ in 0..PART / bytes.len() as u64 {
            stream.write_all(&bytes)?;
        }
        let mut said = [0; 8];
        stream.read_exact(&mut said)?;
        ensure!(said == PART.to_be_bytes(), "the sink got something else");
        sent += PART;
    }
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
