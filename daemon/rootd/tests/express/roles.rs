//! The user daemon and the applications.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Gid, Resource, Rlimit, Uid, setrlimit},
    thread::{set_thread_gid, set_thread_uid},
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tpx_core::{
    dial::DialFailure,
    plan::{Plan, Road, Scope},
};
use tpx_datapath::{
    Arrival, FlowSource as _, FlowStream, Host as _, Knock,
    linux::{
        Maps,
        express::{ExpressLane, ExpressParts},
    },
    remote::{RemoteHost, enter},
};

/// What the pretended cluster does, by port. The rest connects at once.
pub(crate) const REFUSED: u16 = 81;
pub(crate) const HOST_UNREACHABLE: u16 = 82;
pub(crate) const NETWORK_UNREACHABLE: u16 = 83;
pub(crate) const PROHIBITED: u16 = 84;
pub(crate) const SILENT: u16 = 85;
pub(crate) const TUNNEL: u16 = 86;
pub(crate) const HOLD_1200_MS: u16 = 87;
pub(crate) const HOLD_300_MS: u16 = 88;
pub(crate) const FORGOTTEN: u16 = 89;
pub(crate) const HOLD_3500_MS: u16 = 90;

pub(crate) fn play(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["user", uid, socket, cgroup, scope] => user(uid, Path::new(socket), Path::new(cgroup), scope),
        ["enter", uid, socket, from, tree, ref rest @ ..] => {
            enter_tree(uid, Path::new(socket), from, Path::new(tree), rest)
        }
        ["app", cgroup, ref rest @ ..] => app(Path::new(cgroup), rest),
        _ => Err(anyhow::anyhow!("unknown role {words:?}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives up root, while there is only one thread.
fn become_user(uid: u32) -> Result<()> {
    set_thread_gid(Gid::from_raw(uid))?;
    Ok(set_thread_uid(Uid::from_raw(uid))?)
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn user(uid: &str, socket: &Path, cgroup: &Path, scope: &str) -> Result<()> {
    if scope == "tree" {
        // Its tree is made below.
        fs::write(cgroup.join("cgroup.procs"), "0").context("cannot join the cgroup")?;
    }
    // Few, so that a burst finds it without files for a while.
    let few = Some(1024);
    setrlimit(Resource::Nofile, Rlimit { current: few, maximum: few })?;
    become_user(uid.parse()?)?;
    let runtime = event_loop()?;
    let result = runtime.block_on(serve(socket, cgroup, scope));
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    result
}

async fn serve(socket: &Path, cgroup: &Path, scope: &str) -> Result<()> {
    let mut host = RemoteHost::connect(socket).await?;
    let (scope, road) = match scope {
        "cgroup" => (Scope::Cgroup(cgroup.into()), Road::Express),
        "tree" => (Scope::Tree, Road::Express),
        "floor" => (Scope::Workstation, Road::Tun),
        _ => bail!("unknown scope {scope}"),
    };
    let steer = vec!["10.96.0.0/16".parse()?, "fd96::/112".parse()?];
    let handover = host.apply(&Plan { scope, road, steer, ..Plan::default() }).await?;
    if road == Road::Tun {
        println!("ready");
        host.closed().await;
        bail!("tpx-rootd is gone");
    }
    let group = handover.scope.context("no scope")?;
    let express = handover.express.context("no express lane")?;
    let maps = Maps::of(&express)?;
    let _device = handover.device;
    let mut lane = ExpressLane::new(ExpressParts {
        listeners: express.listeners,
        raws: express.raws,
        syns: express.syns,
        held: express.held,
        owners: express.owners,
        datagrams: express.datagrams,
        targets: express.targets,
    })?;
    let gauge = lane.gauge();
    let closed = host.closed();
    tokio::pin!(closed);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    println!("ready {}", group.display());
    loop {
        tokio::select! {
            knock = lane.next() => {
                let Arrival::Connection(knock) = knock.context("the lane ended")? else { bail!("no connection") };
                println!("knock {}", knock.destination().port());
                tokio::spawn(answer(knock));
            }
            line = lines.next_line() => match line?.as_deref() {
                Some("gauge") => println!("gauge: {:?}", gauge.read()),
                Some("held") => println!("held: {}", maps.dump()?.held.len()),
                Some("lost") => {
                    let counters = maps.dump()?.counters;
                    let lost = counters.iter().find(|c| c.name == "syns_lost").map(|c| c.value);
                    println!("lost: {}", lost.context("no such counter")?);
                }
                Some(other) => bail!("{other}?"),
                None => std::future::pending().await,
            },
            () = &mut closed => bail!("tpx-rootd is gone"),
        }
    }
}

async fn answer(knock: Box<dyn Knock>) {
    let hold = match knock.destination().port() {
        REFUSED => return knock.refuse(DialFailure::Refused),
        HOST_UNREACHABLE => return knock.refuse(DialFailure::HostUnreachable),
        NETWORK_UNREACHABLE => return knock.refuse(DialFailure::NetworkUnreachable),
        PROHIBITED => return knock.refuse(DialFailure::Prohibited),
        SILENT => return knock.refuse(DialFailure::TimedOut),
        TUNNEL => return knock.refuse(DialFailure::Tunnel),
        FORGOTTEN => return drop(knock),
        HOLD_1200_MS => 1200,
        HOLD_300_MS => 300,
        HOLD_3500_MS => 3500,
        _ => 0,
    };
    sleep(Duration::from_millis(hold)).await;
    match knock.release().await {
        Ok(FlowStream::Socket(stream)) => echo(stream).await,
        Ok(FlowStream::Netstack(_)) => println!("gone: it came by the floor"),
        Err(e) => println!("gone: {e}"),
    }
}

async fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

fn app(cgroup: &Path, words: &[&str]) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).context("cannot join the cgroup")?;
    let many = Some(20_000);
    setrlimit(Resource::Nofile, Rlimit { current: many, maximum: many })?;
    become_user(crate::lab::STRANGER)?;
    match words {
        ["connect", address] => connect(address.parse()?, None),
        ["connect", address, seconds] => connect(address.parse()?, Some(seconds.parse()?)),
        ["impatient", address, ms] => impatient(address.parse()?, Duration::from_millis(ms.parse()?)),
        ["again", address] => again(address.parse()?),
        ["burst", counts @ ..] => event_loop()?.block_on(burst(counts)),
        _ => bail!("unknown application {words:?}"),
    }
}

/// Enters a process tree from the cgroup `from`; from where it was started, if that is empty.
fn enter_tree(uid: &str, socket: &Path, from: &str, tree: &Path, words: &[&str]) -> Result<()> {
    if !from.is_empty() {
        fs::write(Path::new(from).join("cgroup.procs"), "0").context("cannot join the cgroup")?;
    }
    become_user(uid.parse()?)?;
    event_loop()?.block_on(enter(socket, tree))?;
    match words {
        ["connect", address] => connect(address.parse()?, None),
        ["sit"] => {
            println!("sitting");
            Ok(io::stdin().read_to_end(&mut Vec::new()).map(drop)?)
        }
        _ => bail!("unknown words {words:?}"),
    }
}

/// Connects and says how it went: `ok MS PEER` after an echo, or `errno N MS`.
fn connect(to: SocketAddr, give_up: Option<u32>) -> Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(seconds) = give_up {
        socket.set_tcp_user_timeout(Some(Duration::from_secs(seconds.into())))?;
    }
    let start = Instant::now();
    let connected = socket.connect(&SockAddr::from(to));
    let ms = start.elapsed().as_millis();
    match connected {
        Ok(()) => {
            let mut stream = std::net::TcpStream::from(socket);
            println!("ok {ms} {} {}", stream.peer_addr()?, repeated(&mut stream)?);
        }
        Err(e) => println!("errno {} {ms}", e.raw_os_error().context("no errno")?),
    }
    Ok(())
}

fn repeated(stream: &mut std::net::TcpStream) -> io::Result<&'static str> {
    let mut back = [0; 5];
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"hello")?;
    stream.read_exact(&mut back)?;
    Ok(if &back == b"hello" { "echoed" } else { "garbled" })
}

/// Gives up before the cluster answers.
fn impatient(to: SocketAddr, patience: Duration) -> Result<()> {
    let e = match std::net::TcpStream::connect_timeout(&to, patience) {
        Ok(_) => bail!("connected"),
        Err(e) => e,
    };
    println!("gave up: {:?}", e.kind());
    Ok(())
}

/// Gives up, and calls once more from the same port.
fn again(to: SocketAddr) -> Result<()> {
    let from: SocketAddr = "[::]:0".parse()?;
    let from = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { from };
    let socket = |from: SocketAddr| -> io::Result<Socket> {
        let s = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        s.set_reuse_address(true)?;
        s.bind(&from.into())?;
        Ok(s)
    };
    let first = socket(from)?;
    let mine = first.local_addr()?.as_socket().context("no address")?;
    let _ = first.connect_timeout(&to.into(), Duration::from_millis(200));
    drop(first);
    let second = socket(SocketAddr::new(from.ip(), mine.port()))?;
    let start = Instant::now();
    second.connect(&to.into())?;
    println!("ok {} {}", start.elapsed().as_millis(), repeated(&mut second.into())?);
    Ok(())
}

/// Many at once: words are `ADDRESS COUNT`, repeated. Says `N ok, N refused, N other, MS`.
async fn burst(words: &[&str]) -> Result<()> {
    let mut all = JoinSet::new();
    let start = Instant::now();
    for pair in words.chunks_exact(2) {
        let to: SocketAddr = pair[0].parse()?;
        for _ in 0..pair[1].parse()? {
            all.spawn(async move {
                let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                let mut stream = timeout(Duration::from_secs(30), socket.connect(to)).await??;
                let mut back = [0; 5];
                stream.write_all(b"hello").await?;
                timeout(Duration::from_secs(30), stream.read_exact(&mut back)).await??;
                if &back == b"hello" { Ok(()) } else { Err(io::Error::other("garbled")) }
            });
        }
    }
    let (mut ok, mut refused, mut other) = (0, 0, 0);
    while let Some(one) = all.join_next().await {
        match one? {
            Ok(()) => ok += 1,
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
            Err(e) => {
                eprintln!("{e}");
                other += 1;
            }
        }
    }
    println!("{ok} ok, {refused} refused, {other} other, {}", start.elapsed().as_millis());
    Ok(())
}
