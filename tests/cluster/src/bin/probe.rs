//! An application that connects and says, as one JSON document, what it saw. Most tests run it as a process of its own,
//! because what tpx does depends on the process: its user, its cgroup, the system call it connects with.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};

#[derive(Parser)]
struct Args {
    /// Where to connect.
    address: SocketAddr,
    /// How to connect.
    #[arg(long, value_enum, default_value_t = How::Blocking)]
    how: How,
    /// GET this path and report the body's first kilobyte.
    #[arg(long)]
    get: Option<String>,
    /// Give up after this many milliseconds.
    #[arg(long, default_value_t = 10_000)]
    patience: u64,
    /// Connect this often before, by a thread that has a name of its own, and end each connection at once.
    #[arg(long, default_value_t = 0)]
    before: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    Blocking,
    NonBlocking,
    IoUring,
}

#[derive(Serialize)]
struct Saw {
    connected: bool,
    errno: Option<i32>,
    error: Option<String>,
    milliseconds: u128,
    peer: Option<SocketAddr>,
    uid: u32,
    effective_uid: u32,
    body: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let patience = Duration::from_millis(args.patience);
    briefly(args.address, args.before, patience)?;
    let socket = Socket::new(Domain::for_address(args.address), Type::STREAM, None)?;
    let began = Instant::now();
    let result = match args.how {
        How::Blocking => blocking(&socket, args.address, patience),
        How::NonBlocking => non_blocking(&socket, args.address, patience),
        How::IoUring => io_uring_connect(&socket, args.address)?,
    };
    let milliseconds = began.elapsed().as_millis();
    let mut saw = Saw {
        connected: result.is_ok(),
        errno: result.as_ref().err().and_then(std::io::Error::raw_os_error),
        error: result.as_ref().err().map(ToString::to_string),
        milliseconds,
        peer: None,
        uid: rustix::process::getuid().as_raw(),
        effective_uid: rustix::process::geteuid().as_raw(),
        body: None,
    };
    if result.is_ok() {
        saw.peer = socket.peer_addr().ok().and_then(|address| address.as_socket());
        if let Some(path) = &args.get {
            socket.set_nonblocking(false)?;
            saw.body = Some(get(socket.into(), path, patience)?);
        }
    }
    println!("{}", serde_json::to_string(&saw)?);
    Ok(())
}

fn briefly(address: SocketAddr, times: u32, patience: Duration) -> Result<()> {
    let all = move || (0..times).try_for_each(|_| TcpStream::connect_timeout(&address, patience).map(drop));
    let thread = std::thread::Builder::new().name("brief".into()).spawn(all)?;
    let Ok(done) = thread.join() else { bail!("the thread died") };
    done.context("a connection before")
}

fn blocking(socket: &Socket, address: SocketAddr, patience: Duration) -> std::io::Result<()> {
    // The kernel's own limit, so that connect() itself ends with ETIMEDOUT.
    socket.set_tcp_user_timeout(Some(patience))?;
    socket.connect(&SockAddr::from(address))
}

fn non_blocking(socket: &Socket, address: SocketAddr, patience: Duration) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(address)) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        // Nobody can have answered yet: an early result would be a lie.
        other => return other.and(Err(std::io::Error::other("connect() did not say EINPROGRESS"))),
    }
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    let limit = Timespec { tv_sec: i64::try_from(patience.as_secs()).unwrap_or(60), tv_nsec: 0 };
    if poll(&mut polled, Some(&limit))? == 0 {
        return Err(rustix::io::Errno::TIMEDOUT.into());
    }
    socket.take_error()?.map_or(Ok(()), Err)
}

#[expect(unsafe_code, reason = "io_uring's queue takes raw pointers")]
fn io_uring_connect(socket: &Socket, address: SocketAddr) -> Result<std::io::Result<()>> {
    let mut ring = io_uring::IoUring::new(2).context("io_uring_setup")?;
    let address = SockAddr::from(address);
    let entry =
        io_uring::opcode::Connect::new(io_uring::types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len())
            .build();
    // SAFETY: the address and the socket outlive the completion, which is awaited right here.
    unsafe { ring.submission().push(&entry).context("push")? };
    ring.submit_and_wait(1)?;
    let Some(done) = ring.completion().next() else { bail!("no completion") };
    Ok(if done.result() < 0 { Err(std::io::Error::from_raw_os_error(-done.result())) } else { Ok(()) })
}

fn get(mut stream: TcpStream, path: &str, patience: Duration) -> Result<String> {
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")?;
    let mut body = Vec::new();
    stream.take(1024).read_to_end(&mut body).context("read the answer")?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}
