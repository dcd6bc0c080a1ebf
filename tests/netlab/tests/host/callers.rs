//! Whose connections are: every one has its process, however short it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tpx_datapath::{
    Caller, Host as _,
    linux::{LinuxHost, Slot},
};
use tpx_netlab::World;

use crate::{
    app::{self, addr},
    relay::{AT_ONCE, REFUSED, Relay, plan},
    translations::virtual_plan,
};

/// Set in a program that connects to these addresses: one thread for each, this often each.
const CALLS: &str = "TPX_NETLAB_CALLS";
const TIMES: usize = 250;
/// The programs, by the names that they have.
const PROGRAMS: [&str; 2] = ["alpha", "beta"];

/// Whether this process is such a program.
pub(crate) fn asked() -> bool {
    env::var_os(CALLS).is_some()
}

/// The program: says the two ends of each connection.
pub(crate) fn run() -> ExitCode {
    let calls = env::var(CALLS).unwrap_or_default();
    let threads: Vec<_> = calls
        .split(' ')
        .enumerate()
        .map(|(n, to)| {
            let to = addr(to);
            thread::Builder::new()
                .name(format!("thread-{n}"))
                .spawn(move || (0..TIMES).try_for_each(|_| once(to).map(|source| println!("{source} {to}"))))
        })
        .collect();
    for thread in threads {
        match thread.map(thread::JoinHandle::join) {
            Ok(Ok(Ok(()))) => {}
            other => {
                println!("failed: {other:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// A connection that the other side ends at once; where it came from.
fn once(to: SocketAddr) -> io::Result<SocketAddr> {
    let mut stream = app::connect(to)?;
    stream.read(&mut [0]).map(drop)?;
    stream.local_addr()
}

/// Source and destination as they are in the packets, and who called.
type Seen = BTreeMap<(SocketAddr, SocketAddr), Option<Caller>>;

fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// Thousands of short connections by the threads of two programs at once.
pub(crate) fn short(world: &World) -> Result<()> {
    let relay = Relay::start(world, &virtual_plan(world))?;
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let pairs = [("246.246.0.5", "10.97.3.7"), ("fd99::5", "fd97::7")].map(|(v, real)| (ip(v), ip(real)));
    for (virtual_ip, real) in pairs {
        relay.translations.insert(virtual_ip, real)?;
    }
    let hosts = ["10.96.3.7", "[fd96::7]", "[::ffff:10.96.3.8]", "246.246.0.5", "[::ffff:246.246.0.5]", "[fd99::5]"];
    let calls = hosts.map(|host| format!("{host}:{AT_ONCE}")).join(" ");
    let mut programs = Vec::new();
    for name in PROGRAMS {
        let file = Path::new("/mnt").join(name);
        symlink(env::current_exe()?, &file)?;
        let program = Command::new(&file).env(CALLS, &calls).stdout(Stdio::piped()).spawn()?;
        programs.push((name, file, program));
    }
    let mut expected = Vec::new();
    for (name, file, program) in programs {
        let pid = program.id();
        let said = thread::spawn(|| program.wait_with_output());
        let said = said.join().map_err(|_| anyhow::anyhow!("the thread died"))??;
        std::fs::remove_file(file)?;
        let said = String::from_utf8(said.stdout)?;
        ensure!(!said.contains("failed"), "{name}: {said}");
        let ends = said.lines().map(|line| line.split_once(' ').context("no two ends"));
        for ends in ends.collect::<Result<Vec<_>>>()? {
            let (source, to) = (canonical(addr(ends.0)), canonical(addr(ends.1)));
            let real = pairs.iter().find(|(virtual_ip, _)| *virtual_ip == to.ip()).map_or(to.ip(), |(_, real)| *real);
            expected.push(((source, SocketAddr::new(real, to.port())), Caller { pid, uid: 0, name: name.into() }));
        }
    }
    let seen: Seen = relay.callers();
    ensure!(expected.len() == 2 * TIMES * hosts.len() && seen.len() == expected.len(), "{}", seen.len());
    let wrong: Vec<_> =
        expected.iter().filter(|(ends, caller)| seen.get(ends) != Some(&Some(caller.clone()))).collect();
    let first = wrong.first().map(|(ends, _)| (ends, seen.get(ends)));
    ensure!(wrong.is_empty(), "{} of {} have another process, first {first:?}", wrong.len(), expected.len());
    relay.stop(world)
}

/// However it connects.
pub(crate) fn odd(world: &World) -> Result<()> {
    let relay = Relay::start(world, &plan(world))?;
    let to = addr(&format!("10.96.3.7:{AT_ONCE}"));
    let ended = |socket: Socket| TcpStream::from(socket).read(&mut [0]).map(drop);

    let patient = app::stream_for(to)?;
    patient.set_nonblocking(true)?;
    let begun = patient.connect(&to.into());
    ensure!(begun.is_err_and(|e| e.raw_os_error() == Some(libc::EINPROGRESS)));
    patient.set_nonblocking(false)?;
    ended(patient).context("without waiting")?;

    let bound = app::stream_for(to)?;
    bound.bind(&SocketAddr::new(Slot::FIRST.ipv4().into(), 0).into())?;
    bound.connect(&to.into())?;
    ended(bound).context("from a bound source")?;

    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "519")?;
    let early = app::stream_for(to)?;
    // What it sends is not read: the end may be a reset.
    let _ = early.send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN).and_then(|_| ended(early));

    let again = app::stream_for(to)?;
    ensure!(again.connect(&addr(&format!("10.96.3.7:{REFUSED}")).into()).is_err());
    again.connect(&to.into())?;
    ended(again).context("at the second try")?;

    let seen = relay.callers();
    let callers: BTreeSet<_> = seen.values().map(|caller| caller.as_ref().map(|caller| caller.pid)).collect();
    ensure!(seen.len() == 5 && callers == [Some(std::process::id())].into(), "{seen:?}");

    // The kernel's hook sees the socket of the application, TCP that of a path: nobody is better than a wrong one.
    let multipath = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP)))?;
    multipath.connect(&to.into())?;
    let source = multipath.local_addr()?.as_socket().context("no address")?;
    ended(multipath).context("MPTCP")?;
    let caller = relay.callers().remove(&(source, to)).context("it did not come")?;
    ensure!(caller.is_none_or(|caller| caller.pid == std::process::id()));
    relay.stop(world)
}

/// What it costs can be measured against a datapath without.
pub(crate) fn left_out(world: &World) -> Result<()> {
    let mut host = LinuxHost::new(Slot::FIRST).without_owners();
    let handover = world.block_on(host.apply(&plan(world)))?;
    let relay = Relay::serve(world, host, handover)?;
    once(addr(&format!("10.96.3.7:{AT_ONCE}")))?;
    ensure!(relay.callers().values().eq([&None]), "{:?}", relay.callers());
    relay.stop(world)
}
