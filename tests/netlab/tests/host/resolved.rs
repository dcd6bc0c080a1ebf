//! Debian's systemd-resolved, with a D-Bus of its own, in this network namespace and a mount namespace of its own.

use std::{
    env, fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::task::JoinSet;
use tpx_core::plan::{Plan, ResolverLink, Road};
use tpx_datapath::{
    Arrival, Floor, FlowSource as _, Host as _,
    linux::{LinuxHost, Slot, Tun},
};
use tpx_netlab::World;

use crate::{app, floor};

const STUB: &str = "127.0.0.53:53";
const BUS: &str = "unix:path=/mnt/resolved/bus";
const CONFIG: &str = r#"<busconfig>
<type>system</type>
<listen>unix:path=/mnt/resolved/bus</listen>
<auth>EXTERNAL</auth>
<policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow send_type="*"/><allow receive_sender="*"/><allow receive_type="*"/>
</policy>
</busconfig>
"#;
/// Its user (with the number of "nobody", which the bus knows too), its own /run, and a configuration that knows no name server.
const SCRIPT: &str = r#"set -e
cp /etc/passwd passwd && echo 'systemd-resolve:x:65534:65534::/:/usr/sbin/nologin' >> passwd
cp /etc/group group && echo 'systemd-resolve:x:65534:' >> group
: > resolv.conf
mount --bind passwd /etc/passwd && mount --bind group /etc/group
mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)"
mount -t tmpfs resolved /run && mkdir /run/systemd
exec "$@"
"#;

/// Both processes. They end when it is dropped.
struct Running {
    directory: PathBuf,
    children: Vec<Child>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where setup unpacks Debian's packages, or what the machine itself has.
fn program() -> Result<(PathBuf, PathBuf)> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("TPX_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|c| c.join("tpx")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/tpx")));
    for root in cache.map(|c| c.join("lab/root")).into_iter().chain(["/".into()]) {
        for place in ["usr/lib/systemd/systemd-resolved", "lib/systemd/systemd-resolved"] {
            let program = root.join(place);
            if program.is_file() {
                let library = root.join(format!("usr/lib/{}-linux-gnu/systemd", env::consts::ARCH));
                return Ok((program, library));
            }
        }
    }
    bail!("systemd-resolved is missing; run `cargo xtask setup`")
}

impl Running {
    fn start() -> Result<Self> {
        let (program, library) = program()?;
        let directory = PathBuf::from("/mnt/resolved");
        fs::create_dir_all(&directory)?;
        let mut running = Self { directory, children: Vec::new() };
        let config = running.directory.join("bus.conf");
        fs::write(&config, CONFIG)?;
        let mut bus = Command::new("dbus-daemon");
        bus.arg("--nofork").arg(format!("--config-file={}", config.display()));
        running.spawn(bus).context("dbus-daemon is missing")?;
        let socket = running.directory.join("bus");
        until("the bus", || Ok(Path::exists(&socket)))?;
        let mut resolved = Command::new("unshare");
        resolved.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]).arg(program);
        resolved.current_dir(&running.directory);
        resolved.env("DBUS_SYSTEM_BUS_ADDRESS", BUS).env("LD_LIBRARY_PATH", library);
        running.spawn(resolved)?;
        until("systemd-resolved", || Ok(ask("localhost")?.is_some()))?;
        Ok(running)
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        self.children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        Ok(())
    }
}

fn until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if reached()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("{what} does not get ready")
}

/// A question for an IPv4 address (RFC 1035, 4).
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// The name in a question.
fn asked(message: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            return Some((labels.join("."), at + 5));
        }
        labels.push(String::from_utf8_lossy(message.get(at + 1..=at + length)?).to_ascii_lowercase());
        at += length + 1;
    }
}

/// Asks systemd-resolved's own name server: the last four bytes of an answer that has some.
fn ask(name: &str) -> Result<Option<[u8; 4]>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(1500)))?;
    socket.connect(STUB)?;
    let question = question(name);
    let mut answer = [0; 512];
    let n = match socket.send(&question).and_then(|_| socket.recv(&mut answer)) {
        Ok(n) => n,
        // Not there yet, or it waits for somebody who does not answer.
        Err(_) => return Ok(None),
    };
    let records = u16::from_be_bytes([answer[6], answer[7]]);
    ensure!(answer[..2] == question[..2] && n >= question.len(), "{:?}", &answer[..n]);
    Ok(answer[..n].last_chunk().filter(|_| records > 0).copied())
}

/// Names in the order in which they were asked.
type Asked = Arc<Mutex<Vec<String>>>;

/// What arrives at the device is answered with this address.
const ANSWER: [u8; 4] = [10, 96, 1, 2];

/// Serves the device's names until the tasks are dropped; which ones were asked.
fn serve(world: &World, device: std::os::fd::OwnedFd, vnet_hdr: bool) -> Result<(Asked, JoinSet<()>)> {
    let names = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&names);
    let mut tasks = JoinSet::new();
    world.block_on(async {
        let mut floor = Floor::new(Tun::new(device, vnet_hdr)?, 1500);
        tasks.spawn(async move {
            let mut flows = JoinSet::new();
            while let Some(arrival) = floor.next().await {
                let Arrival::Datagrams(mut flow) = arrival else { continue };
                if flow.destination != (Slot::FIRST.resolver4(), 53).into() {
                    continue;
                }
                let seen = Arc::clone(&seen);
                flows.spawn(async move {
                    while let Some(message) = flow.incoming.recv().await {
                        let Some((name, end)) = asked(&message) else { continue };
                        seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name);
                        let mut answer = message[..end].to_vec();
                        // A response without errors: one question, one answer of 60 seconds, nothing else.
                        answer[2..12].copy_from_slice(&[0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
                        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                        answer.extend_from_slice(&ANSWER);
                        flow.back.send(&answer);
                    }
                });
            }
        });
        anyhow::Ok(())
    })?;
    Ok((names, tasks))
}

fn plan() -> Plan {
    let resolver = ResolverLink {
        servers: vec![Slot::FIRST.resolver4().into()],
        routing_domains: vec!["cluster.local".into(), "emojivoto".into()],
        search_domains: vec!["emojivoto.svc.cluster.local".into()],
    };
    Plan { resolver: Some(resolver), name_servers: vec!["127.0.0.53".parse().unwrap()], ..floor::plan(Road::Tun) }
}

pub(crate) fn told(world: &World) -> Result<()> {
    let running = Running::start()?;
    ensure!(ask("web-app.emojivoto")?.is_none());
    let mut host = LinuxHost::new(Slot::FIRST).with_bus(BUS);
    // It takes its name on the bus a little later than port 53.
    until("the bus knows it", || Ok(world.block_on(host.apply(&plan()))?.resolved))?;
    let handover = world.block_on(host.apply(&plan()))?;
    ensure!(handover.resolved && handover.unsteered_name_servers.len() == 1, "it was not told");
    let (names, mut tasks) = serve(world, handover.device, handover.vnet_hdr)?;
    for name in ["web-app.emojivoto", "web-app.emojivoto.svc.cluster.local", "a.b.CLUSTER.local"] {
        until(name, || Ok(ask(name)? == Some(ANSWER)))?;
    }
    // Nobody else's names come to the cluster.
    ensure!(ask("www.example.com")?.is_none() && ask("emojivoto.example")?.is_none());
    let seen = names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    ensure!(seen.iter().any(|n| n == "web-app.emojivoto") && seen.iter().all(|n| !n.contains("example")), "{seen:?}");

    // The plan changes: other domains, then none.
    let mut other = plan();
    other.resolver = other.resolver.map(|link| ResolverLink { routing_domains: vec!["other".into()], ..link });
    ensure!(world.block_on(host.apply(&other))?.resolved);
    until("the other domain", || Ok(ask("x.other")? == Some(ANSWER)))?;
    ensure!(ask("web-app.emojivoto")?.is_none(), "the domain that was taken back");
    ensure!(!world.block_on(host.apply(&Plan { resolver: None, ..plan() }))?.resolved);
    ensure!(ask("x.other")?.is_none(), "it was not told to forget");
    ensure!(world.block_on(host.apply(&plan()))?.resolved);
    until("told again", || Ok(ask("web-app.emojivoto")? == Some(ANSWER)))?;

    // It forgets everything with the device.
    drop(host);
    until("forgotten", || Ok(ask("web-app.emojivoto")?.is_none()))?;
    world.block_on(tasks.shutdown());
    drop(running);
    Ok(())
}

/// A cluster with a thousand namespaces: it has room for fewer, and what comes first is what it is told.
pub(crate) fn many(world: &World) -> Result<()> {
    let running = Running::start()?;
    let mut many = plan();
    if let Some(link) = &mut many.resolver {
        let namespaces = (link.routing_domains.len()..Plan::MAX_DOMAINS).map(|n| format!("namespace-{n}"));
        link.routing_domains.extend(namespaces);
    }
    let mut host = LinuxHost::new(Slot::FIRST).with_bus(BUS);
    until("it was told", || Ok(world.block_on(host.apply(&many))?.resolved))?;
    let handover = world.block_on(host.apply(&many))?;
    let (_names, mut tasks) = serve(world, handover.device, handover.vnet_hdr)?;
    for name in ["web-app.emojivoto", "a.b.cluster.local", "web.namespace-2", "web.namespace-100"] {
        until(name, || Ok(ask(name)? == Some(ANSWER)))?;
    }
    drop(host);
    world.block_on(tasks.shutdown());
    drop(running);
    Ok(())
}

/// Without a bus, and with one where nobody is.
pub(crate) fn absent(world: &World) -> Result<()> {
    let start = Instant::now();
    for bus in ["unix:path=/mnt/nowhere", "not an address"] {
        let mut host = LinuxHost::new(Slot::FIRST).with_bus(bus);
        ensure!(!world.block_on(host.apply(&plan()))?.resolved);
    }
    let mut running = Running::start()?;
    if let Some(mut resolved) = running.children.pop() {
        resolved.kill()?;
        resolved.wait()?;
    }
    let mut host = LinuxHost::new(Slot::FIRST).with_bus(BUS);
    ensure!(!world.block_on(host.apply(&plan()))?.resolved);
    ensure!(start.elapsed() < 4 * app::PATIENCE, "it took {:?}", start.elapsed());
    Ok(())
}
