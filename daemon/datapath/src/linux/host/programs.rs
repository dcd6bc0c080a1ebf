//! The kernel programs: loading, filling their maps, attaching them.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    panic::resume_unwind,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, LpmTrie, Map, MapData, SockMap, lpm_trie::Key},
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, SkLookup, SockOps, SocketFilter,
        cgroup_sock::CgroupSockLink, cgroup_sock_addr::CgroupSockAddrLink, sock_ops::SockOpsLink,
    },
};
use ipnet::IpNet;
use tokio::task::JoinHandle;
use tpx_ebpf_abi::{
    Action, Pids, Rule,
    maps::{self, program},
    slot::Slot,
};

use super::{
    denials::{Denials, Denied},
    failed,
    pids::PidNamespace,
    system,
};
use crate::{HostError, linux::sys};

/// Loaded programs. Dropping it detaches and unloads them.
pub(super) struct Programs {
    hooks: Hooks,
    /// Whether they serve a process tree.
    tree: bool,
    /// Whether connections are looked at when their addresses are known.
    owned: bool,
    bpf: Shared,
    pub(super) rules4: LpmTrie<MapData, [u8; 4], Rule>,
    pub(super) rules6: LpmTrie<MapData, [u8; 16], Rule>,
    pub(super) names4: Names<[u8; 4]>,
    pub(super) names6: Names<[u8; 16]>,
    senders: HashMap<MapData, [u32; 4], u8>,
    pub(super) denied: Denied,
    _log: Option<Log>,
}

/// What is attached to the scope's cgroup.
#[derive(Default)]
struct Hooks {
    calls: Vec<CgroupSockAddrLink>,
    create: Option<CgroupSockLink>,
    owner: Option<SockOpsLink>,
}

/// The programs and maps, for whoever attaches some of them. They are unloaded with the last copy.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Ebpf>>);

impl Shared {
    /// Looks at them; nobody waits while holding this.
    pub(super) fn lock(&self) -> MutexGuard<'_, Ebpf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both directions of the exchange of name servers.
pub(super) struct Names<K: aya::Pod> {
    pub(super) own: HashMap<MapData, K, K>,
    server: HashMap<MapData, K, K>,
}

/// Copies of the map files that the user daemon gets: all can be written to, so rules are not among them.
pub(super) struct MapFiles {
    pub(super) syns: OwnedFd,
    pub(super) held: OwnedFd,
    pub(super) owners: OwnedFd,
    pub(super) bypass: OwnedFd,
    pub(super) virtual4: OwnedFd,
    pub(super) virtual6: OwnedFd,
    pub(super) real4: OwnedFd,
    pub(super) real6: OwnedFd,
    pub(super) targets: OwnedFd,
    pub(super) counters: OwnedFd,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("hooks", &self.hooks.calls.len()).finish_non_exhaustive()
    }
}

/// What the programs are loaded for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Globals {
    pub(super) slot: Slot,
    /// Whether the scope is a process tree.
    pub(super) tree: bool,
    /// Index of the slot's device.
    pub(super) device: u32,
    /// Where datagrams arrive.
    pub(super) port: u16,
    /// Where questions for names arrive.
    pub(super) names_port: u16,
    /// Whose numbers processes have.
    pub(super) pids: PidNamespace,
    /// Whether a hook may say which error a refused call ends with; elsewhere it is EPERM.
    pub(super) names_errors: bool,
    /// Whether programs on devices outlive a crash.
    pub(super) outlives: bool,
    /// Whether the scope is made of containers.
    pub(super) of_senders: bool,
}

/// Passes on what the programs log, until it is dropped.
struct Log(JoinHandle<()>);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What can be done before a host's first plan comes, by a thread of its own: reading the kernel's type information, 5 MB.
#[derive(Debug)]
pub struct Ahead(std::thread::JoinHandle<EbpfLoader<'static>>);

impl Ahead {
    /// Begins.
    #[must_use]
    pub fn start() -> Self {
        Self(std::thread::spawn(EbpfLoader::new))
    }

    fn finish(self) -> EbpfLoader<'static> {
        self.0.join().unwrap_or_default()
    }
}

impl Programs {
    /// Loads the programs that a slot needs, but those for containers, and attaches the one that steers packets: without
    /// rules it does nothing.
    pub(super) fn load(globals: Globals, ahead: Option<Ahead>) -> Result<Self, HostError> {
        let mut bpf = object(globals, ahead.map_or_else(EbpfLoader::new, Ahead::finish))?;
        let log = read_log(&mut bpf);
        // Without owners it still knows a tree's connections from sources that applications have chosen.
        let owned = globals.tree || globals.pids.kind != Pids::Off;
        let mut wanted = [&program::CGROUP[..], &[program::HOLD, program::LOOKUP]].concat();
        wanted.extend(globals.tree.then_some(program::SOCK_CREATE));
        wanted.extend(owned.then_some(program::OWNER));
        load_all(&mut bpf, &wanted)?;
        let netns = File::open("/proc/thread-self/ns/net").map_err(|e| system("open the network namespace", e))?;
        let lookup: &mut SkLookup = get(&mut bpf, program::LOOKUP)?;
        lookup.attach(netns).map_err(|e| failed("attach to the network namespace", &e))?;
        let rules4 = take(&mut bpf, maps::RULES4)?;
        let rules6 = take(&mut bpf, maps::RULES6)?;
        let names4 = Names { own: take(&mut bpf, maps::NAMES4)?, server: take(&mut bpf, maps::SERVERS4)? };
        let names6 = Names { own: take(&mut bpf, maps::NAMES6)?, server: take(&mut bpf, maps::SERVERS6)? };
        let senders = take(&mut bpf, maps::SENDERS)?;
        let denied = Denied::new(
            take(&mut bpf, maps::DENY4)?,
            take(&mut bpf, maps::DENY6)?,
            take(&mut bpf, maps::DENY_PORTS)?,
            take(&mut bpf, maps::POLICY)?,
        );
        let (hooks, tree, bpf) = (Hooks::default(), globals.tree, Shared(Arc::new(Mutex::new(bpf))));
        Ok(Self { hooks, tree, owned, bpf, rules4, rules6, names4, names6, senders, denied, _log: log })
    }

    /// Attaches the hooks to the cgroup at `path`, then detaches them from the one before.
    pub(super) fn attach(&mut self, path: &Path, group: impl AsFd) -> Result<(), HostError> {
        let what = |name: &str| format!("attach {name} to {}", path.display());
        let mut hooks = Hooks::default();
        let mut bpf = self.bpf.lock();
        for name in program::CGROUP {
            let hook: &mut CgroupSockAddr = get(&mut bpf, name)?;
            // "Single" is the only mode that links take; links of others stay beside ours all the same.
            let id = hook.attach(&group, CgroupAttachMode::Single).map_err(|e| failed(what(name), &e))?;
            hooks.calls.push(hook.take_link(id).map_err(|e| failed(what(name), &e))?);
        }
        if self.tree {
            let name = program::SOCK_CREATE;
            let hook: &mut CgroupSock = get(&mut bpf, name)?;
            let id = hook.attach(&group, CgroupAttachMode::Single).map_err(|e| failed(what(name), &e))?;
            hooks.create = Some(hook.take_link(id).map_err(|e| failed(what(name), &e))?);
        }
        if self.owned {
            let name = program::OWNER;
            let hook: &mut SockOps = get(&mut bpf, name)?;
            let id = hook.attach(&group, CgroupAttachMode::Single).map_err(|e| failed(what(name), &e))?;
            hooks.owner = Some(hook.take_link(id).map_err(|e| failed(what(name), &e))?);
        }
        drop(bpf);
        self.hooks = hooks;
        Ok(())
    }

    /// Sets the filter that holds SYNs.
    pub(super) fn hold(&mut self, listener: &socket2::Socket) -> Result<(), HostError> {
        let mut bpf = self.bpf.lock();
        let hold: &mut SocketFilter = get(&mut bpf, program::HOLD)?;
        hold.attach(listener).map_err(|e| failed("attach the filter to a listener", &e))
    }

    /// Makes `socket` the one that packets are handed to; `index` is one of [`maps`]'s, a bound UDP socket or a listener.
    pub(super) fn set_socket(&mut self, index: u32, socket: &impl AsRawFd) -> Result<(), HostError> {
        let mut bpf = self.bpf.lock();
        let map = bpf.map_mut(maps::SOCKETS).ok_or_else(|| missing(maps::SOCKETS))?;
        let mut map = SockMap::try_from(map).map_err(|e| failed("open the map of sockets", &e))?;
        map.set(index, socket, 0).map_err(|e| failed("register a socket", &e))
    }

    /// Adds or replaces a rule.
    pub(super) fn set_rule(&mut self, net: IpNet, action: Action) -> Result<(), HostError> {
        let rule = Rule::new(action);
        match net {
            IpNet::V4(n) => self.rules4.insert(&Key::new(n.prefix_len().into(), n.addr().octets()), rule, 0),
            IpNet::V6(n) => self.rules6.insert(&Key::new(n.prefix_len().into(), n.addr().octets()), rule, 0),
        }
        .map_err(|e| failed(format!("add the rule for {net}"), &e))
    }

    /// Removes a rule.
    pub(super) fn remove_rule(&mut self, net: IpNet) -> Result<(), HostError> {
        match net {
            IpNet::V4(n) => self.rules4.remove(&Key::new(n.prefix_len().into(), n.addr().octets())),
            IpNet::V6(n) => self.rules6.remove(&Key::new(n.prefix_len().into(), n.addr().octets())),
        }
        .map_err(|e| failed(format!("remove the rule for {net}"), &e))
    }

    /// Makes `want` all that is denied.
    pub(super) fn deny(&mut self, want: &Denials) -> Result<(), HostError> {
        self.denied.become_like(want).map_err(|e| failed("change what is denied", &e))
    }

    /// Adds a container's address to the scope.
    pub(super) fn add_sender(&mut self, address: IpAddr) -> Result<(), HostError> {
        self.senders.insert(sender(address), 1, 0).map_err(|e| failed(format!("serve the container at {address}"), &e))
    }

    /// Undoes [`add_sender`](Self::add_sender).
    pub(super) fn remove_sender(&mut self, address: IpAddr) -> Result<(), HostError> {
        self.senders.remove(&sender(address)).map_err(|e| failed(format!("forget the container at {address}"), &e))
    }

    /// Exchanges a name server for tpx's own address of the same family.
    pub(super) fn set_name(&mut self, server: IpAddr, own: IpAddr) -> Result<(), HostError> {
        match (server, own) {
            (IpAddr::V4(s), IpAddr::V4(o)) => self.names4.set(s.octets(), o.octets()),
            (IpAddr::V6(s), IpAddr::V6(o)) => self.names6.set(s.octets(), o.octets()),
            _ => return Err(HostError::Refused(format!("{own} cannot stand for {server}"))),
        }
        .map_err(|e| failed(format!("exchange the name server {server}"), &e))
    }

    /// Undoes [`set_name`](Self::set_name).
    pub(super) fn remove_name(&mut self, server: IpAddr, own: IpAddr) -> Result<(), HostError> {
        match (server, own) {
            (IpAddr::V4(s), IpAddr::V4(o)) => self.names4.remove(s.octets(), o.octets()),
            (IpAddr::V6(s), IpAddr::V6(o)) => self.names6.remove(s.octets(), o.octets()),
            _ => Ok(()),
        }
        .map_err(|e| failed(format!("forget the name server {server}"), &e))
    }

    /// The programs themselves.
    pub(super) fn shared(&self) -> Shared {
        self.bpf.clone()
    }

    /// Copies of the map files for the user daemon.
    pub(super) fn maps(&self) -> io::Result<MapFiles> {
        let copy = |data: &MapData| data.fd().as_fd().try_clone_to_owned();
        let bpf = self.bpf.lock();
        let named = |name: &str| match bpf.map(name) {
            Some(Map::RingBuf(d) | Map::HashMap(d) | Map::LruHashMap(d) | Map::PerCpuArray(d)) => copy(d),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, format!("no map {name}"))),
        };
        Ok(MapFiles {
            syns: named(maps::SYNS)?,
            held: named(maps::HELD)?,
            owners: named(maps::OWNERS)?,
            bypass: named(maps::BYPASS)?,
            virtual4: named(maps::VIRTUAL4)?,
            virtual6: named(maps::VIRTUAL6)?,
            real4: named(maps::REAL4)?,
            real6: named(maps::REAL6)?,
            targets: named(maps::TARGETS)?,
            counters: named(maps::COUNTERS)?,
        })
    }
}

impl<K: aya::Pod> Names<K> {
    fn set(&mut self, server: K, own: K) -> Result<(), aya::maps::MapError> {
        // The way back first: an answer must not arrive before its name can be put back.
        self.server.insert(own, server, 0)?;
        self.own.insert(server, own, 0)
    }

    fn remove(&mut self, server: K, own: K) -> Result<(), aya::maps::MapError> {
        self.own.remove(&server)?;
        self.server.remove(&own)
    }
}

/// An address as the programs for containers compare it: in words, an IPv4 one as IPv4-mapped.
fn sender(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
        IpAddr::V6(six) => six.octets(),
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// Loads the maps, and the programs as far as memory.
fn object(globals: Globals, loader: EbpfLoader<'static>) -> Result<Ebpf, HostError> {
    let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .map_err(|e| system("open a socket", e.into()))?;
    let cookie = sys::netns_cookie(&any).map_err(|e| system("read the network namespace's cookie", e))?;
    let Globals { slot, tree, device, port, names_port, pids, names_errors, outlives, of_senders } = globals;
    let (index, tree, kind) = (slot.index(), u8::from(tree), pids.kind as u32);
    let (retval, outlives, of_senders) = (u32::from(names_errors), u32::from(outlives), u32::from(of_senders));
    // It borrows what is above from here on.
    let mut loader: EbpfLoader<'_> = loader;
    loader
        .override_global(maps::global::NETNS_COOKIE, &cookie, true)
        .override_global(maps::global::DEVICE, &device, true)
        .override_global(maps::global::SLOT, &index, true)
        .override_global(maps::global::TREE, &tree, true)
        .override_global(maps::global::DATAGRAM_PORT, &port, true)
        .override_global(maps::global::NAMES_PORT, &names_port, true)
        .override_global(maps::global::RETVAL, &retval, true)
        .override_global(maps::global::PIDS, &kind, true)
        .override_global(maps::global::PID_DEVICE, &pids.device, true)
        .override_global(maps::global::PID_INODE, &pids.inode, true)
        .override_global(maps::global::OUTLIVES, &outlives, true)
        .override_global(maps::global::OF_SENDERS, &of_senders, true)
        .load(super::probe::programs().map_err(|why| HostError::Unsupported(why.into()))?)
        .map_err(|e| failed("load the kernel programs' maps", &e))
}

/// Threads that load programs; what the verifier does for one takes up to 30 ms.
const LOADERS: usize = 4;

/// Loads programs, several at a time: who may load any is not made to wait for others by the kernel.
fn load_all(bpf: &mut Ebpf, names: &[&str]) -> Result<(), HostError> {
    let programs: Vec<(&str, &mut Program)> = bpf.programs_mut().filter(|(name, _)| names.contains(name)).collect();
    if let Some(lacking) = names.iter().find(|name| !programs.iter().any(|(there, _)| there == *name)) {
        return Err(missing(lacking));
    }
    let loaders = thread::available_parallelism().map_or(1, usize::from).min(LOADERS);
    let queue = Mutex::new(programs);
    let work = || loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some((name, program)) = next else { return Ok(()) };
        let loaded = match program {
            Program::CgroupSockAddr(hook) => hook.load(),
            Program::CgroupSock(hook) => hook.load(),
            Program::SockOps(hook) => hook.load(),
            Program::SocketFilter(filter) => filter.load(),
            Program::SkLookup(lookup) => lookup.load(),
            _ => return Err(missing(name)),
        };
        loaded.map_err(|e| load_failed(name, &e))?;
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..loaders).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().fold(own, |done, other| done.and(other.join().unwrap_or_else(|e| resume_unwind(e))))
    })
}

/// Starts reading what the programs log, if they were built to.
fn read_log(bpf: &mut Ebpf) -> Option<Log> {
    bpf.map("AYA_LOGS")?;
    let logger = match aya_log::EbpfLogger::init(bpf) {
        Ok(logger) => logger,
        Err(e) => {
            tracing::warn!("the kernel programs' log cannot be read: {e}");
            return None;
        }
    };
    let mut logger = sys::watch_log(logger).ok()?;
    Some(Log(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })))
}

/// A program of the object.
pub(super) fn get<'a, P>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, HostError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    bpf.program_mut(name).and_then(|p| p.try_into().ok()).ok_or_else(|| missing(name))
}

fn take<M: TryFrom<Map>>(bpf: &mut Ebpf, name: &str) -> Result<M, HostError> {
    bpf.take_map(name).and_then(|m| m.try_into().ok()).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> HostError {
    HostError::Unsupported(format!("the built-in kernel programs lack {name}; build again"))
}

/// The verifier's words are long: they go to the log, and its verdict to the user.
pub(super) fn load_failed(name: &str, error: &aya::programs::ProgramError) -> HostError {
    if let aya::programs::ProgramError::LoadError { io_error, verifier_log } = error {
        tracing::debug!("the verifier refused {name}:\n{verifier_log}");
        return failed(format!("load the kernel program {name}"), io_error);
    }
    failed(format!("load the kernel program {name}"), error)
}
