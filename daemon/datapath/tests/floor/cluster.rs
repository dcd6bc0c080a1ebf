//! What is behind the floor: hosts that do what the port says.

use std::{
    future::poll_fn,
    io,
    io::IoSlice,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use tokio::time::sleep;
use tpx_core::dial::DialFailure;
use tpx_datapath::{Arrival, DatagramFlow, EchoFlow, Floor, FlowSource as _, FlowStream, Knock, NetStream};

use crate::sum::Sum;

pub(crate) const ECHO: u16 = 80;
pub(crate) const REFUSED: u16 = 81;
pub(crate) const HOST_UNREACHABLE: u16 = 82;
pub(crate) const NETWORK_UNREACHABLE: u16 = 83;
pub(crate) const SILENT: u16 = 84;
pub(crate) const HELD: u16 = 85;
/// Takes everything up to the end, then answers with its checksum.
pub(crate) const SINK: u16 = 86;
/// Says its length as a decimal line, sends that many bytes and their checksum, and closes.
pub(crate) const SOURCE: u16 = 87;
/// Reads one byte, then resets.
pub(crate) const RESETS: u16 = 88;
/// Ends its half first, and then echoes.
pub(crate) const ENDS_FIRST: u16 = 89;
/// Never reads; counts when the connection [breaks].
pub(crate) const STALLS: u16 = 90;
/// Reports every datagram as too big for a path of 1280 bytes.
pub(crate) const NARROW: u16 = 92;
/// Sends bytes for as long as it can, and counts when the connection [breaks].
pub(crate) const POURS: u16 = 93;

/// Answers datagrams after half a second.
pub(crate) const LATE: u16 = 94;

/// The hold of [`HELD`].
pub(crate) const HOLD: Duration = Duration::from_secs(1);
/// The host that does not answer.
pub(crate) const NOBODY: u8 = 99;

static BREAKS: AtomicU32 = AtomicU32::new(0);

/// How many connections broke that should.
pub(crate) fn breaks() -> u32 {
    BREAKS.load(SeqCst)
}

pub(crate) async fn serve(mut floor: Floor) {
    while let Some(arrival) = floor.next().await {
        match arrival {
            Arrival::Connection(knock) => drop(tokio::spawn(connection(knock))),
            Arrival::Datagrams(flow) => drop(tokio::spawn(datagrams(flow))),
            Arrival::Echo(flow) => drop(tokio::spawn(echoes(flow))),
        }
    }
}

async fn connection(knock: Box<dyn Knock>) {
    let port = knock.destination().port();
    match port {
        REFUSED => return knock.refuse(DialFailure::Refused),
        HOST_UNREACHABLE => return knock.refuse(DialFailure::HostUnreachable),
        NETWORK_UNREACHABLE => return knock.refuse(DialFailure::NetworkUnreachable),
        SILENT => return knock.refuse(DialFailure::TimedOut),
        HELD => sleep(HOLD).await,
        _ => {}
    }
    let stream = match knock.release().await {
        Ok(FlowStream::Netstack(stream)) => stream,
        Ok(other) => panic!("{other:?}"),
        Err(_) => return,
    };
    // Breaking is part of some tests.
    let _ = match port {
        SINK => sink(&stream).await,
        SOURCE => source(&stream).await,
        RESETS => resets(&stream).await,
        ENDS_FIRST => ends_first(&stream).await,
        STALLS => stalls(&stream).await,
        POURS => pours(&stream).await,
        _ => echo(&stream).await,
    };
}

async fn echo(stream: &NetStream) -> io::Result<()> {
    let mut bytes = vec![0; 128 << 10];
    loop {
        match read(stream, &mut bytes).await? {
            0 => return stream.shutdown_write(),
            n => write(stream, &bytes[..n]).await?,
        }
    }
}

async fn sink(stream: &NetStream) -> io::Result<()> {
    let (mut bytes, mut sum) = (vec![0; 128 << 10], Sum::default());
    loop {
        match read(stream, &mut bytes).await? {
            0 => break,
            n => sum.update(&bytes[..n]),
        }
    }
    write(stream, &sum.finish()).await?;
    stream.shutdown_write()
}

async fn source(stream: &NetStream) -> io::Result<()> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut bytes = [0; 32];
        let n = read(stream, &mut bytes).await?;
        line.extend_from_slice(&bytes[..n]);
    }
    let length: usize = String::from_utf8_lossy(&line).trim().parse().map_err(io::Error::other)?;
    let (mut left, mut sum) = (length, Sum::default());
    let mut part: Vec<u8> = (0..100_001u32).map(|i| (i ^ i >> 8) as u8).collect();
    while left > 0 {
        part[..8].copy_from_slice(&left.to_be_bytes());
        let part = &part[..left.min(100_001)];
        left -= part.len();
        sum.update(part);
        write(stream, part).await?;
    }
    write(stream, &sum.finish()).await?;
    stream.shutdown_write()?;
    let n = read(stream, &mut [0; 1]).await?;
    assert_eq!(n, 0);
    Ok(())
}

async fn resets(stream: &NetStream) -> io::Result<()> {
    read(stream, &mut [0; 1]).await?;
    stream.reset_on_close();
    Ok(())
}

async fn ends_first(stream: &NetStream) -> io::Result<()> {
    stream.shutdown_write()?;
    let (mut bytes, mut all) = (vec![0; 64 << 10], 0);
    loop {
        match read(stream, &mut bytes).await? {
            0 => break,
            n => all += n,
        }
    }
    assert_eq!(all, 1 << 20);
    Ok(())
}

async fn stalls(stream: &NetStream) -> io::Result<()> {
    let error = poll_fn(|cx| stream.poll_broken(cx)).await;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    BREAKS.fetch_add(1, SeqCst);
    Ok(())
}

async fn pours(stream: &NetStream) -> io::Result<()> {
    loop {
        if let Err(e) = write(stream, &[7; 64 << 10]).await {
            assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
            BREAKS.fetch_add(1, SeqCst);
            return Err(e);
        }
    }
}

async fn read(stream: &NetStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        poll_fn(|cx| stream.poll_read_ready(cx)).await?;
        match stream.try_read(into) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write(stream: &NetStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        poll_fn(|cx| stream.poll_write_ready(cx)).await?;
        match stream.try_write_vectored(&[IoSlice::new(bytes)]) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn datagrams(mut flow: DatagramFlow) {
    while let Some(payload) = flow.incoming.recv().await {
        match flow.destination.port() {
            ECHO => flow.back.send(&payload),
            LATE => {
                sleep(Duration::from_millis(500)).await;
                flow.back.send(&payload);
            }
            NARROW => flow.back.too_big(1280),
            HOST_UNREACHABLE => flow.back.unreachable(DialFailure::HostUnreachable),
            _ => flow.back.unreachable(DialFailure::Refused),
        }
    }
}

async fn echoes(mut flow: EchoFlow) {
    let last = match flow.destination {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(ip) => ip.octets()[15],
    };
    while let Some(request) = flow.incoming.recv().await {
        if last == NOBODY {
            flow.back.unreachable(request, DialFailure::HostUnreachable);
        } else {
            flow.back.reply(request);
        }
    }
}
