//! Much, many, and for long: nothing is lost, nothing leaks, nobody buffers without bound.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest as _, Sha256};
use socket2::SockRef;

use super::{Case, semantics::no_held};
use crate::{
    cluster, laptop,
    laptop::at,
    process::{eventually, sh},
};

pub(super) const CASES: &[Case] = &[
    ("volume::one_gibibyte_down_and_up_with_checksums", gibibyte),
    ("volume::half_close_by_the_laptop", half_close_here),
    ("volume::half_close_by_the_cluster", half_close_there),
    ("volume::a_reset_arrives_as_a_reset", reset),
    ("volume::a_stalled_reader_holds_little", stalled),
    ("volume::two_thousand_at_once", two_thousand),
    ("volume::a_hundred_thousand_short_ones", hundred_thousand),
];

const GIB: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

fn open(ip: IpAddr, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at(ip, port), Duration::from_secs(20))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads an HTTP head; returns it and whether the server promised to close.
fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 16 << 10, "an endless head");
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

fn gibibyte() -> Result<()> {
    laptop::connect()?;
    let ip = cluster::service("emojivoto", "web-app")?.v4;

    let mut down = open(ip, 80)?;
    write!(down, "GET /bytes?n={GIB} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let promised = head(&mut down)?;
    let promised =
        promised.lines().find_map(|l| l.strip_prefix("x-sha256: ")).context("no checksum")?.trim().to_owned();
    let (mut hash, mut got, mut buffer) = (Sha256::new(), 0u64, vec![0; 1 << 18]);
    loop {
        match down.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                got += n as u64;
            }
        }
    }
    ensure!(got == GIB && hex(hash) == promised, "{got} bytes, or other ones than were sent");

    let mut up = open(ip, 80)?;
    write!(up, "PUT /sink HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {GIB}\r\n\r\n")?;
    let block: Vec<u8> = (0..1u32 << 18).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut hash = Sha256::new();
    for _ in 0..GIB / block.len() as u64 {
        hash.update(&block);
        up.write_all(&block)?;
    }
    let mut answer = String::new();
    up.read_to_string(&mut answer)?;
    ensure!(answer.contains(&hex(hash)) && answer.contains(&GIB.to_string()), "{answer}");
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The laptop ends its direction; the other goes on until all has come back.
fn half_close_here() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for ip in [pod.v4, pod.v6] {
        let mut stream = open(ip, 7)?;
        let sent: Vec<u8> = (0..10u32 << 20).map(|i| (i.wrapping_mul(48_271) >> 7) as u8).collect();
        let mut writer = stream.try_clone()?;
        let bytes = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&bytes).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        writing.join().ok().context("the writer panicked")??;
        ensure!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    }
    Ok(())
}

/// The cluster ends its direction at once; the laptop's goes on. Were the connection ended with it, writing more than
/// all buffers hold would fail.
fn half_close_there() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for ip in [pod.v4, pod.v6] {
        let mut stream = open(ip, 1010)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        ensure!(said == "half\n", "{said:?}");
        let block = vec![7; 1 << 20];
        for _ in 0..64 {
            stream.write_all(&block).context("the cluster still reads, but writing failed")?;
        }
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(())
}

/// An application that resets its connection resets the pod's, and the other way round.
fn reset() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    let mut stream = open(pod.v4, 1011)?;
    stream.write_all(b"x")?;
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => bail!("the pod's reset arrived as {other:?}"),
    }
    let before = flows_open()?;
    let stream = open(pod.v4, 19)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    eventually(Duration::from_secs(5), || {
        ensure!(flows_open()? <= before, "the flow is still open after its application reset it");
        Ok(())
    })
}

/// What a connection takes while its reader stalls is held somewhere, in any process or kernel. The application's socket is
/// as the system makes it; the pod's buffers are small, because a pod's own are its own business.
fn stalled() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    let up = held_up(pod.v4)?;
    let down = held_down(pod.v4)?;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("held by a stalled reader: {:.1} MiB up, {:.1} MiB down", mib(up), mib(down));
    ensure!(up < 16 << 20 && down < 16 << 20, "{up} bytes up, {down} bytes down");
    Ok(())
}

/// The pod does not read: what the laptop's application can write.
fn held_up(ip: IpAddr) -> Result<usize> {
    let mut stream = open(ip, 1012)?;
    stream.set_nonblocking(true)?;
    let block = vec![1; 64 << 10];
    let (mut accepted, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_secs(2) {
        match stream.write(&block) {
            Ok(n) => (accepted, last) = (accepted + n, Instant::now()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.into()),
        }
        ensure!(accepted < 256 << 20, "no end: nothing holds the writer back");
    }
    // The others do not wait for it.
    let mut other = open(ip, 7)?;
    other.write_all(b"ping")?;
    other.read_exact(&mut [0; 4])?;
    // And it goes on when the pod reads again.
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    for _ in 0..512 {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0);
    Ok(accepted)
}

/// The application does not read: what the pod could write until nothing was taken any more.
fn held_down(ip: IpAddr) -> Result<usize> {
    let mut stream = open(ip, 1013)?;
    thread::sleep(Duration::from_secs(5));
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all.len())
}

fn two_thousand() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    let mut streams = Vec::new();
    for batch in 0..20 {
        let opening: Vec<_> = (0..100).map(|_| thread::spawn(move || open(pod.v4, 7))).collect();
        for opened in opening {
            streams.push(opened.join().ok().context("panicked")?.with_context(|| format!("batch {batch}"))?);
        }
    }
    let word = |n: usize| format!("{n:064}");
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(word(n).as_bytes())?;
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 64];
        stream.read_exact(&mut back).with_context(|| format!("stream {n}"))?;
        ensure!(back == word(n).as_bytes(), "stream {n} got another one's bytes");
    }
    ensure!(flows_open()? >= 2000);
    drop(streams);
    all_closed(2000)
}

fn hundred_thousand() -> Result<()> {
    laptop::connect()?;
    let (service, pod) = (cluster::service("default", "echo")?, cluster::pod("default", "app=echo")?);
    let userd = laptop::daemon(" userd")?;
    let files = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{userd}/fd"))?.count());
    // Once round, so that lasting files are open.
    short(pod.v4, 0)?;
    let before = files()?;
    let (next, resets) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let workers: Vec<_> = (0..24)
        .map(|_| {
            let (next, resets) = (Arc::clone(&next), Arc::clone(&resets));
            thread::spawn(move || -> Result<()> {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= 100_000 {
                        return Ok(());
                    }
                    // Four destinations, and every other one ends by reset: the ports would not suffice otherwise.
                    let ip = [service.v4, pod.v4, service.v6, pod.v6][n as usize % 4];
                    match short(ip, n) {
                        Err(e) if is_reset(&e) => {
                            resets.fetch_add(1, Ordering::Relaxed);
                            println!("connection {n}: {e:#}");
                        }
                        other => other.with_context(|| format!("connection {n} to {ip}"))?,
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().ok().context("a worker panicked")??;
    }
    let resets = resets.load(Ordering::Relaxed);
    // How often the kernel's own race between two CPUs was met; without the programs' care each one is a reset.
    let crossed = sh("tpx maps dump | grep crossed")?.stdout;
    println!(
        "reset by nobody's wish: {resets} of 100,000; {}",
        crossed.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    ensure!(resets == 0, "{resets} connections were reset");
    all_closed(100_000)?;
    no_held(&[7])?;
    eventually(Duration::from_secs(10), || {
        let now = files()?;
        ensure!(now <= before + 8, "the user daemon had {before} files open, now {now}");
        Ok(())
    })
}

fn short(ip: IpAddr, n: u32) -> Result<()> {
    let mut stream = open(ip, 7)?;
    let said = (|| {
        stream.write_all(&n.to_be_bytes())?;
        let mut back = [0; 4];
        stream.read_exact(&mut back)?;
        Ok::<_, std::io::Error>(back)
    })();
    let back = said.with_context(|| format!("from {:?} to {ip}", stream.local_addr()))?;
    ensure!(back == n.to_be_bytes(), "other bytes came back");
    if (n / 4).is_multiple_of(2) {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

fn is_reset(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

fn flows_open() -> Result<u64> {
    laptop::status()?.context("not connected")?["flows"]["open"].as_u64().context("no count")
}

fn all_closed(of: u64) -> Result<()> {
    eventually(Duration::from_secs(30), || {
        let open = flows_open()?;
        ensure!(open < 8, "{open} of {of} flows are still open");
        Ok(())
    })
}
