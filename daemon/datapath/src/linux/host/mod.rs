//! The privileged half on Linux: makes the host look like a plan and takes everything back.
//!
//! All that is installed hangs on file descriptors (device, links, sockets), so the kernel removes it when the process
//! dies. Policy rules do not; one that is left over leads to an empty table. Nor do cgroups of process trees and, before
//! Linux 6.6, filters on bridges. The next start sweeps them away.

mod cgroup;
mod containers;
mod denials;
mod desired;
mod device;
mod links;
mod mend;
mod names;
mod network;
mod pids;
mod probe;
mod process;
mod programs;
mod resolved;
mod rules;
mod sockets;
mod tables;
mod tc;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::watch;
use tpx_core::plan::{Plan, Road, Scope};
use tpx_ebpf_abi::{Action, slot::Slot};

pub use probe::{Features, needs_perfmon, probe};
pub use process::Process;
pub use programs::Ahead;
pub use tree::enter;

use self::{
    containers::Containers,
    desired::{Desired, Table},
    device::Device,
    names::Name,
    network::{Footprint, Network},
    pids::PidNamespace,
    programs::{Globals, Programs},
    resolved::Resolved,
    rules::Rule,
    sockets::Datagrams,
    tree::Tree,
};
use super::{Bridges, DnsSockets, ExpressFiles, Feature, Handover, Hook};
use crate::{Host, HostError, Tables};

/// Bound on the routes of all tables of a slot.
const ROUTES_MAX: usize = 4 * tpx_ebpf_abi::maps::RULES_MAX as usize;
/// Longest that what was left behind is looked for: anybody can make cgroups that take long.
const SWEEPING: Duration = Duration::from_secs(3);

/// Does the privileged work in the network namespace of the calling thread. Needs CAP_NET_ADMIN, CAP_NET_RAW and a tokio
/// runtime, CAP_BPF for the express lane, and CAP_NET_BIND_SERVICE to stand in for name servers without it.
///
/// Dropping it reverts.
#[derive(Debug)]
pub struct LinuxHost {
    slot: Slot,
    caller: Option<Arc<Process>>,
    without: Vec<Feature>,
    bus: Option<String>,
    ahead: Option<Ahead>,
    owners: bool,
    hook: Hook,
    bridges: watch::Sender<Bridges>,
    applied: Option<Applied>,
}

/// What is installed. Fields are dropped in this order: first new connections are let alone, then the roads go.
#[derive(Debug)]
struct Applied {
    express: Option<Express>,
    /// The last plan that was applied as a whole.
    plan: Plan,
    state: State,
    names: BTreeMap<IpAddr, Name>,
    resolved: Resolved,
    ipv6: bool,
    footprint: Footprint,
    device: Device,
    /// The last to go: processes leave it when nothing is steered any more.
    group: Group,
}

/// The processes that see the cluster.
#[derive(Debug)]
struct Group {
    scope: Scope,
    /// The cgroup, unless it is all of them.
    path: Option<PathBuf>,
    /// Its inode, where tpx has not made it: one of that name may be made anew.
    inode: Option<u64>,
    /// It was made for this.
    tree: Option<Tree>,
}

/// What only the express lane has.
#[derive(Debug)]
struct Express {
    containers: Containers,
    programs: Programs,
    listeners: [OwnedFd; 2],
    raws: [OwnedFd; 2],
    datagrams: Datagrams,
    /// Port of the addresses that stand for name servers.
    names_port: u16,
}

/// What maps and tables hold now.
#[derive(Debug, Default)]
struct State {
    routes: BTreeSet<(Table, IpNet)>,
    rules: BTreeMap<IpNet, Action>,
    senders: BTreeSet<IpAddr>,
}

impl LinuxHost {
    /// Changes nothing yet.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            caller: None,
            without: Vec::new(),
            bus: None,
            ahead: None,
            owners: true,
            hook: Hook::of(probe::has(Feature::Tcx)),
            bridges: watch::Sender::default(),
            applied: None,
        }
    }

    /// Makes cgroups for process trees below that of another process than this one.
    #[must_use]
    pub fn for_process(self, caller: Arc<Process>) -> Self {
        Self { caller: Some(caller), ..self }
    }

    /// Does as if the kernel lacked these features.
    #[must_use]
    pub fn without(self, features: impl Into<Vec<Feature>>) -> Self {
        let without = features.into();
        let hook = if without.contains(&Feature::Tcx) { Hook::Clsact } else { self.hook };
        Self { without, hook, ..self }
    }

    /// The bridges whose containers are served, as they come and go.
    #[must_use]
    pub fn bridges(&self) -> watch::Receiver<Bridges> {
        self.bridges.subscribe()
    }

    /// What stands in the programs' maps now; nothing where there are none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn tables(&self) -> Result<Tables, HostError> {
        let express = self.applied.as_ref().and_then(|applied| applied.express.as_ref());
        let read = express.map(|express| express.programs.tables()).transpose();
        Ok(read.map_err(|e| system("read the programs' maps", e))?.unwrap_or_default())
    }

    /// Looks for systemd-resolved at another D-Bus (an address as in `DBUS_SYSTEM_BUS_ADDRESS`) than the system's.
    #[must_use]
    pub fn with_bus(self, address: impl Into<String>) -> Self {
        Self { bus: Some(address.into()), ..self }
    }

    /// Has been prepared for.
    #[must_use]
    pub fn with_ahead(self, ahead: Ahead) -> Self {
        Self { ahead: Some(ahead), ..self }
    }

    /// Does without the owners of connections: what they cost can be measured so.
    #[must_use]
    pub fn without_owners(self) -> Self {
        Self { owners: false, ..self }
    }

    async fn install(&mut self, plan: &Plan) -> Result<Applied, HostError> {
        let express = plan.road == Road::Express;
        if express {
            probe::programs().map_err(|why| HostError::Unsupported(why.into()))?;
            // Root's needs are those of the programs themselves; who else asks has been told before.
            if let Some(missing) = self.without.iter().find(|feature| feature.is_needed(0)) {
                return Err(HostError::Unsupported(format!("the kernel has no {}", missing.about())));
            }
        }
        let network = Network::open()?;
        // Whoever has the device has the slot: what else is there then was left behind.
        let device = Device::create(self.slot).await?;
        network.sweep(self.slot).await?;
        if express && self.hook == Hook::Clsact {
            containers::sweep(&[self.slot]).await?;
        }
        let footprint = Footprint::of(self.slot);
        let ipv6 = device.has_ipv6();
        network.bring_up(&device, self.slot, ipv6).await?;
        let express = if express {
            network.add_blocks(&device, self.slot, ipv6).await?;
            Some(self.express(&device, &plan.scope, ipv6)?)
        } else {
            // Megabytes that nobody is going to ask for.
            self.ahead = None;
            None
        };
        for rule in Rule::standing(express.is_some(), plan.scope.is_tree(), ipv6) {
            network.add_rule(self.slot, rule).await?;
        }
        let mut applied = Applied {
            express,
            plan: plan.clone(),
            state: State::default(),
            names: BTreeMap::new(),
            resolved: Resolved::at(self.bus.clone()),
            ipv6,
            footprint,
            device,
            group: Group { scope: Scope::Workstation, path: None, inode: None, tree: None },
        };
        applied.converge(&network, self.slot, plan).await?;
        applied.enlist(&plan.scope, self.slot, self.caller.as_deref())?;
        applied.serve_containers(plan).await;
        Ok(applied)
    }

    fn express(&mut self, device: &Device, scope: &Scope, ipv6: bool) -> Result<Express, HostError> {
        let datagrams = Datagrams::open(self.slot, ipv6)?;
        let pids = if self.owners { PidNamespace::own() } else { PidNamespace::NONE };
        let outlives = self.hook == Hook::Clsact;
        let names_errors = !self.without.contains(&Feature::SetRetval) && probe::has(Feature::SetRetval);
        let (slot, device, port) = (self.slot, device.index, datagrams.port);
        let (tree, of_senders) = (scope.is_tree(), scope.is_containers());
        let names_port = sockets::free_names_port(self.slot, ipv6)?;
        let globals = Globals { slot, tree, device, port, names_port, pids, names_errors, outlives, of_senders };
        let mut programs = Programs::load(globals, self.ahead.take())?;
        datagrams.register(&mut programs)?;
        let listeners = sockets::listeners(self.slot, ipv6, &mut programs)?;
        let raws = sockets::raws(self.slot, ipv6)?;
        let containers = Containers::new(programs.shared(), self.hook, self.slot, self.bridges.clone());
        Ok(Express { containers, programs, listeners, raws, datagrams, names_port })
    }
}

#[async_trait]
impl Host for LinuxHost {
    type Handover = Handover;

    async fn apply(&mut self, plan: &Plan) -> Result<Handover, HostError> {
        plan.check().map_err(|e| HostError::Refused(e.to_string()))?;
        few_routes(plan, self.slot)?;
        let Some(applied) = &mut self.applied else {
            let applied = self.install(plan).await?;
            let handover = applied.handover(plan, self.slot)?;
            self.applied = Some(applied);
            return Ok(handover);
        };
        if plan.road != applied.plan.road {
            return Err(HostError::Refused("the datapath cannot be changed while it is in use; revert first".into()));
        }
        let kind = |scope: &Scope| (scope.is_tree(), scope.is_containers());
        if kind(&plan.scope) != kind(&applied.plan.scope) {
            let why = "a scope cannot be exchanged for one of another kind while it is in use; revert first";
            return Err(HostError::Refused(why.into()));
        }
        if *plan == applied.plan
            && let Err(e) = applied.mend(self.slot, self.caller.as_deref()).await
        {
            self.revert().await?;
            return Err(e);
        }
        let network = Network::open()?;
        let changed = match applied.converge(&network, self.slot, plan).await {
            Ok(()) => applied
                .rescope(&plan.scope, self.slot, self.caller.as_deref())
                .and_then(|()| applied.handover(plan, self.slot)),
            Err(e) => Err(e),
        };
        match &changed {
            Ok(_) => {
                applied.serve_containers(plan).await;
                applied.plan = plan.clone();
            }
            Err(e) => {
                tracing::warn!("the plan could not be applied ({e}); going back to the one before");
                let before = applied.plan.clone();
                let back = applied.converge(&network, self.slot, &before).await;
                if back.and_then(|()| applied.rescope(&before.scope, self.slot, self.caller.as_deref())).is_err() {
                    self.revert().await?;
                }
            }
        }
        changed
    }

    async fn revert(&mut self) -> Result<(), HostError> {
        let Some(applied) = self.applied.take() else {
            return Ok(());
        };
        let Applied { express, names, footprint, device, group, .. } = applied;
        drop(express);
        drop(names);
        footprint.remove().await?;
        drop(device);
        drop(group);
        Ok(())
    }
}

impl Applied {
    /// Changes maps, routes and names from what they are to what `plan` wants. Keeps account after each step, so that a
    /// failure in between leaves a known state. Roads come before the rules that lead to them, and go after them.
    async fn converge(&mut self, network: &Network, slot: Slot, plan: &Plan) -> Result<(), HostError> {
        let want = Desired::of(plan, slot, self.ipv6);
        for server in want.names.iter().filter(|server| !self.names.contains_key(server)).copied().collect::<Vec<_>>() {
            self.add_name(network, slot, server).await?;
        }
        for (table, net) in want.routes.difference(&self.state.routes.clone()) {
            network.add_route(&self.device, slot, *table, *net).await?;
            self.state.routes.insert((*table, *net));
        }
        if let Some(express) = &mut self.express {
            // What is denied is so before it is steered.
            express.programs.deny(&want.denials)?;
            // Who has left goes first: his address may be another's by now.
            for address in self.state.senders.clone().difference(&want.senders) {
                express.programs.remove_sender(*address)?;
                self.state.senders.remove(address);
            }
            for address in want.senders.difference(&self.state.senders.clone()) {
                express.programs.add_sender(*address)?;
                self.state.senders.insert(*address);
            }
            for (net, action) in &want.rules {
                if self.state.rules.get(net) != Some(action) {
                    express.programs.set_rule(*net, *action)?;
                    self.state.rules.insert(*net, *action);
                }
            }
            for net in self.state.rules.clone().into_keys().filter(|net| !want.rules.contains_key(net)) {
                express.programs.remove_rule(net)?;
                self.state.rules.remove(&net);
            }
        }
        for (table, net) in self.state.routes.clone().difference(&want.routes) {
            network.remove_route(&self.device, slot, *table, *net).await?;
            self.state.routes.remove(&(*table, *net));
        }
        for server in self.names.keys().filter(|server| !want.names.contains(server)).copied().collect::<Vec<_>>() {
            self.remove_name(network, slot, server).await?;
        }
        // It answers every process: a process tree asks its own name servers, which the programs exchange.
        let resolver = plan.resolver.as_ref().filter(|_| !plan.scope.is_tree());
        self.resolved.tell(&self.device, resolver, self.ipv6).await;
        Ok(())
    }

    /// Changes to another scope of the same kind.
    fn rescope(&mut self, scope: &Scope, slot: Slot, caller: Option<&Process>) -> Result<(), HostError> {
        if self.group.scope == *scope { Ok(()) } else { self.enlist(scope, slot, caller) }
    }

    /// Finds or makes the scope's cgroup and attaches the hooks, where there are some.
    fn enlist(&mut self, scope: &Scope, slot: Slot, caller: Option<&Process>) -> Result<(), HostError> {
        let mut group = Group { scope: scope.clone(), path: None, inode: None, tree: None };
        if let Some(express) = &mut self.express {
            match scope {
                Scope::Workstation => {
                    let (path, directory) = cgroup::open_root()?;
                    express.programs.attach(&path, directory)?;
                }
                Scope::Cgroup(path) => {
                    let (path, directory) = cgroup::open(path)?;
                    express.programs.attach(&path, &directory)?;
                    group.inode = cgroup::inode(&directory);
                    group.path = Some(path);
                }
                Scope::Tree => {
                    let tree = Tree::create(slot, caller)?;
                    express.programs.attach(&tree.path, &tree.directory)?;
                    group.path = Some(tree.path.clone());
                    group.tree = Some(tree);
                }
                // Their sockets are in network namespaces of their own: their packets are what is seen of them.
                Scope::Containers(_) => {}
            }
        }
        self.group = group;
        Ok(())
    }

    /// Containers see the cluster as the workstation does, or because they are the scope; a process tree is none of theirs.
    async fn serve_containers(&mut self, plan: &Plan) {
        if let Some(express) = &mut self.express {
            let patterns = match plan.scope {
                Scope::Workstation | Scope::Containers(_) => &plan.container_devices[..],
                Scope::Cgroup(_) | Scope::Tree => &[],
            };
            express.containers.serve(patterns).await;
        }
    }

    fn handover(&self, plan: &Plan, slot: Slot) -> Result<Handover, HostError> {
        let copy = |fd: &OwnedFd| fd.try_clone();
        let (served, unserved): (Vec<_>, Vec<_>) = plan
            .name_servers
            .iter()
            .filter(|server| server.is_ipv4() || self.ipv6)
            .partition(|server| self.names.contains_key(server));
        let copies = || -> io::Result<Handover> {
            let dns = served.iter().filter_map(|server: &IpAddr| self.names.get(server)).map(|name| {
                let s = &name.sockets;
                Ok(DnsSockets { udp: copy(&s.udp)?, tcp: copy(&s.tcp)?, ..*s })
            });
            Ok(Handover {
                slot: slot.index(),
                scope: self.group.path.clone(),
                device: self.device.file()?,
                vnet_hdr: self.device.vnet_hdr,
                mtu: device::MTU,
                express: self.express.as_ref().map(Express::files).transpose()?,
                dns: dns.collect::<io::Result<_>>()?,
                unsteered_name_servers: unserved,
                resolved: self.resolved.is_told(),
            })
        };
        copies().map_err(|e| system("duplicate the files that are handed over", e))
    }
}

impl Express {
    fn files(&self) -> io::Result<ExpressFiles> {
        let maps = self.programs.maps()?;
        let pair = |[a, b]: &[OwnedFd; 2]| Ok::<_, io::Error>([a.try_clone()?, b.try_clone()?]);
        Ok(ExpressFiles {
            listeners: pair(&self.listeners)?,
            raws: pair(&self.raws)?,
            syns: maps.syns,
            held: maps.held,
            owners: maps.owners,
            bypass: maps.bypass,
            datagrams: self.datagrams.copies()?,
            targets: maps.targets,
            virtual4: maps.virtual4,
            virtual6: maps.virtual6,
            real4: maps.real4,
            real6: maps.real6,
            counters: maps.counters,
        })
    }
}

/// Exceptions cut a subnet into many: a plan that is short enough can still mean millions of routes.
fn few_routes(plan: &Plan, slot: Slot) -> Result<(), HostError> {
    let routes = Desired::of(plan, slot, true).routes.len();
    if routes <= ROUTES_MAX {
        return Ok(());
    }
    Err(HostError::Refused(format!("the plan means {routes} routes, but at most {ROUTES_MAX} are possible")))
}

/// Removes what killed daemons have left behind: policy rules of slots that nobody has, filters on bridges, and process
/// trees.
///
/// # Errors
/// [`HostError`]; what comes after the failed step is still there.
pub async fn sweep() -> Result<(), HostError> {
    let network = Network::open()?;
    let mut free = Vec::new();
    for slot in Slot::all() {
        if !network.has_device(slot).await {
            network.sweep(slot).await?;
            free.push(slot);
        }
    }
    containers::sweep(&free).await?;
    match tree::sweep(Instant::now() + SWEEPING) {
        // Then there are no process trees either.
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(system("look for process trees of killed sessions", e)),
        _ => Ok(()),
    }
}

/// A failed step.
fn system(what: impl Into<String>, source: io::Error) -> HostError {
    HostError::System { what: what.into(), source }
}

/// A failed step of a library whose errors hide the operating system's word in their sources.
fn failed(what: impl Into<String>, error: &dyn std::error::Error) -> HostError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let next = e.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = e.source();
    }
    system(what, io::Error::other(text))
}
