//! What stands for the cluster: an express lane whose ports answer in fixed ways.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io::{ErrorKind, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};
use tpx_core::{dial::DialFailure, plan::Plan};
use tpx_datapath::{
    Arrival, Caller, DatagramFlow, EchoFlow, Floor, FlowSource, FlowStream, Host as _, HostError, Knock, MapsDump,
    NetStream,
    linux::{
        Bypass, DnsSockets, ExpressFiles, Handover, LinuxHost, Maps, Slot, Translations, Tun,
        express::{ExpressLane, ExpressParts},
    },
};
use tpx_netlab::World;

/// Answers a connection and echoes what it gets.
pub(crate) const ECHO: u16 = 80;
/// Refuses.
pub(crate) const REFUSED: u16 = 81;
/// No such host.
pub(crate) const UNREACHABLE: u16 = 82;
/// Says nothing.
pub(crate) const SILENT: u16 = 84;

/// Answers a connection and ends it at once.
pub(crate) const AT_ONCE: u16 = 86;

/// Takes small datagrams only.
pub(crate) const TOO_BIG: u16 = 85;

/// Who called, by source and destination.
type Callers = BTreeMap<(SocketAddr, SocketAddr), Option<Caller>>;

/// What has reached the lane's owner.
#[derive(Clone, Default)]
struct Seen {
    knocks: Arc<AtomicUsize>,
    associations: Arc<AtomicUsize>,
    callers: Arc<Mutex<Callers>>,
}

/// An applied plan with the lane behind it.
pub(crate) struct Relay {
    pub(crate) host: LinuxHost,
    pub(crate) bypass: Bypass,
    pub(crate) translations: Translations,
    maps: Maps,
    seen: Seen,
    /// Number of its slot.
    pub(crate) slot: u32,
    pub(crate) device: OwnedFd,
    lane: JoinSet<()>,
}

/// The usual plan of these tests.
pub(crate) fn plan(world: &World) -> Plan {
    Plan {
        scope: world.scope(),
        steer: vec!["10.96.0.0/16".parse().unwrap(), "fd96::/112".parse().unwrap()],
        except: vec!["10.96.9.0/24".parse().unwrap()],
        name_servers: ["192.0.2.53", "127.0.0.53", "2001:db8::53"].map(|s| s.parse().unwrap()).into(),
        ..Plan::default()
    }
}

/// The express lane's files.
pub(crate) fn express(handover: &Handover) -> Result<&ExpressFiles> {
    handover.express.as_ref().context("no express lane")
}

impl Relay {
    /// Applies a plan and serves it.
    pub(crate) fn start(world: &World, plan: &Plan) -> Result<Self> {
        let mut host = LinuxHost::new(Slot::FIRST);
        let handover = world.block_on(host.apply(plan))?;
        Self::serve(world, host, handover)
    }

    pub(crate) fn serve(world: &World, host: LinuxHost, handover: Handover) -> Result<Self> {
        world.expect_gone(&express(&handover)?.counters)?;
        world.block_on(async { Self::spawn(host, handover) })
    }

    /// Serves on the current runtime.
    pub(crate) fn spawn(host: LinuxHost, handover: Handover) -> Result<Self> {
        let Handover { slot, device, express, dns, .. } = handover;
        let express = express.context("no express lane")?;
        let maps = Maps::of(&express)?;
        let translations = Translations::of(&express)?;
        let ExpressFiles { listeners, raws, syns, held, bypass, datagrams, targets, owners, .. } = express;
        let source = ExpressLane::new(ExpressParts { listeners, raws, syns, held, datagrams, targets, owners })?;
        let mut lane = JoinSet::new();
        let seen = Seen::default();
        lane.spawn(carry(source, seen.clone()));
        for sockets in dns {
            serve_names(&mut lane, sockets)?;
        }
        let bypass = Bypass::new(bypass)?;
        Ok(Self { host, bypass, translations, maps, seen, slot, device, lane })
    }

    /// The same with a floor beside the lane; the two are told apart by nothing.
    pub(crate) fn start_with_floor(world: &World, mut host: LinuxHost, plan: &Plan) -> Result<Self> {
        let handover = world.block_on(host.apply(plan))?;
        let (device, vnet_hdr, mtu) = (handover.device.try_clone()?, handover.vnet_hdr, u16::try_from(handover.mtu)?);
        let mut relay = Self::serve(world, host, handover)?;
        world.block_on(async {
            let floor = Floor::new(Tun::new(device, vnet_hdr)?, mtu);
            relay.lane.spawn(carry(floor, relay.seen.clone()));
            anyhow::Ok(())
        })?;
        Ok(relay)
    }

    /// Applies another plan; the lane goes on with the files it has.
    pub(crate) fn apply(&mut self, world: &World, plan: &Plan) -> Result<Handover, HostError> {
        world.block_on(self.host.apply(plan))
    }

    /// Serves another name server.
    pub(crate) fn serve_names(&mut self, world: &World, sockets: DnsSockets) -> Result<()> {
        world.block_on(async { serve_names(&mut self.lane, sockets) })
    }

    /// A counter of the programs.
    pub(crate) fn count(&self, name: &str) -> Result<u64> {
        self.maps.counters()?.iter().find(|row| row.name == name).map(|row| row.value).context("no such counter")
    }

    /// Attempts that reached the lane's owner.
    pub(crate) fn knocks(&self) -> usize {
        self.seen.knocks.load(Ordering::Relaxed)
    }

    /// UDP associations that reached the lane's owner.
    pub(crate) fn associations(&self) -> usize {
        self.seen.associations.load(Ordering::Relaxed)
    }

    /// Who called, by source and destination of each attempt.
    pub(crate) fn callers(&self) -> Callers {
        self.seen.callers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the maps hold.
    pub(crate) fn dump(&self) -> Result<MapsDump> {
        Ok(self.maps.dump()?.with(self.host.tables()?))
    }

    /// Prefixes in the rules' maps.
    pub(crate) fn rules(&self) -> Result<Vec<String>> {
        Ok(self.host.tables()?.rules.iter().map(|row| row.cidr.to_string()).collect())
    }

    /// Reverts and stops.
    pub(crate) fn stop(mut self, world: &World) -> Result<()> {
        world.block_on(async {
            self.host.revert().await?;
            self.lane.shutdown().await;
            drop(self.device);
            Ok(())
        })
    }
}

async fn carry(mut source: impl FlowSource, seen: Seen) {
    let mut flows = JoinSet::new();
    while let Some(arrival) = source.next().await {
        match arrival {
            Arrival::Connection(knock) => {
                seen.knocks.fetch_add(1, Ordering::Relaxed);
                let ends = (knock.source(), knock.destination());
                seen.callers.lock().unwrap_or_else(PoisonError::into_inner).insert(ends, knock.caller());
                flows.spawn(answer(knock));
            }
            Arrival::Datagrams(flow) => {
                seen.associations.fetch_add(1, Ordering::Relaxed);
                flows.spawn(answer_datagrams(flow));
            }
            Arrival::Echo(flow) => {
                flows.spawn(answer_echoes(flow));
            }
        }
    }
}

async fn answer(knock: Box<dyn Knock>) {
    match knock.destination().port() {
        REFUSED => knock.refuse(DialFailure::Refused),
        UNREACHABLE => knock.refuse(DialFailure::HostUnreachable),
        SILENT => knock.refuse(DialFailure::TimedOut),
        AT_ONCE => drop(knock.release().await),
        _ => {
            // As long as a dial into a cluster takes.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = match knock.release().await {
                Ok(FlowStream::Socket(stream)) => echo(stream).await,
                Ok(FlowStream::Netstack(stream)) => echo_netstack(&stream).await,
                Err(e) => Err(e),
            };
        }
    }
}

/// Datagrams of more than this do not fit, IP header included.
pub(crate) const NARROW: u32 = 1280;

/// Answers each datagram with its destination, a space and the datagram itself.
async fn answer_datagrams(mut flow: DatagramFlow) {
    while let Some(payload) = flow.incoming.recv().await {
        match flow.destination.port() {
            REFUSED => flow.back.unreachable(DialFailure::Refused),
            UNREACHABLE => flow.back.unreachable(DialFailure::HostUnreachable),
            SILENT => {}
            TOO_BIG if payload.len() as u32 > NARROW - 28 => flow.back.too_big(NARROW),
            _ => flow.back.send(&[format!("{} ", flow.destination).as_bytes(), &payload].concat()),
        }
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn echo_netstack(stream: &NetStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        poll_fn(|cx| stream.poll_read_ready(cx)).await?;
        let mut rest = match stream.try_read(&mut buffer) {
            Ok(0) => return stream.shutdown_write(),
            Ok(n) => &buffer[..n],
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        while !rest.is_empty() {
            poll_fn(|cx| stream.poll_write_ready(cx)).await?;
            match stream.try_write_vectored(&[IoSlice::new(rest)]) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

async fn answer_echoes(mut flow: EchoFlow) {
    while let Some(request) = flow.incoming.recv().await {
        flow.back.reply(request);
    }
}

/// Answers each question with the name server it was meant for.
pub(crate) fn serve_names(lane: &mut JoinSet<()>, sockets: DnsSockets) -> Result<()> {
    let word: Arc<str> = format!("{} says ", sockets.name_server).into();
    let udp = UdpSocket::from_std(sockets.udp.into())?;
    let said = Arc::clone(&word);
    lane.spawn(async move {
        let mut question = vec![0; 1500];
        while let Ok((n, from)) = udp.recv_from(&mut question).await {
            let _ = udp.send_to(&[said.as_bytes(), &question[..n]].concat(), from).await;
        }
    });
    let tcp = TcpListener::from_std(sockets.tcp.into())?;
    lane.spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let _ = stream.write_all(word.as_bytes()).await;
            let _ = echo(stream).await;
        }
    });
    Ok(())
}

/// What [`serve_names`] answers.
pub(crate) fn answered(server: &str, question: &str) -> String {
    let server: IpAddr = server.parse().unwrap();
    format!("{server} says {question}")
}
