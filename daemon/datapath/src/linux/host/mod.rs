//! The privileged half on Linux: makes the host look like a plan and takes everything back.
//!
//! All that is installed hangs on file descriptors (device, links, sockets), so the kernel removes it when the process
//! dies. Policy rules do not; one that is left over leads to an empty table, and the next start sweeps it away.

mod cgroup;
mod desired;
mod device;
mod mend;
mod names;
mod network;
mod probe;
mod programs;
mod resolved;
mod rules;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
};

use async_trait::async_trait;
use ipnet::IpNet;
use tpx_core::plan::{Plan, Road, Scope};
use tpx_ebpf_abi::{Action, slot::Slot};

pub use probe::{Features, probe};

use self::{
    desired::{Desired, Table},
    device::Device,
    names::Name,
    network::{Footprint, Network},
    programs::{Ahead, Programs},
    resolved::Resolved,
    rules::Rule,
    sockets::Datagrams,
};
use super::{DnsSockets, ExpressFiles, Handover};
use crate::{Host, HostError};

/// Does the privileged work in the network namespace of the calling thread. Needs CAP_NET_ADMIN, CAP_NET_RAW and a tokio
/// runtime, CAP_BPF for the express lane, and CAP_NET_BIND_SERVICE to stand in for name servers without it.
///
/// Dropping it reverts.
#[derive(Debug)]
pub struct LinuxHost {
    slot: Slot,
    bus: Option<String>,
    ahead: Option<Ahead>,
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
}

/// What only the express lane has.
#[derive(Debug)]
struct Express {
    programs: Programs,
    /// What the hooks are attached to.
    scope: Option<Scope>,
    listeners: [OwnedFd; 2],
    raws: [OwnedFd; 2],
    datagrams: Datagrams,
}

/// What maps and tables hold now.
#[derive(Debug, Default)]
struct State {
    routes: BTreeSet<(Table, IpNet)>,
    rules: BTreeMap<IpNet, Action>,
}

impl LinuxHost {
    /// Changes nothing yet.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self { slot, bus: None, ahead: None, applied: None }
    }

    /// Looks for systemd-resolved at another D-Bus (an address as in `DBUS_SYSTEM_BUS_ADDRESS`) than the system's.
    #[must_use]
    pub fn with_bus(self, address: impl Into<String>) -> Self {
        Self { bus: Some(address.into()), ..self }
    }

    /// Says that a first plan will come soon: what can be read ahead is read while the caller goes on.
    pub fn prepare(&mut self) {
        self.ahead = Some(Ahead::start());
    }

    async fn install(&mut self, plan: &Plan) -> Result<Applied, HostError> {
        let express = plan.road == Road::Express;
        if express {
            probe::programs().map_err(|why| HostError::Unsupported(why.into()))?;
        }
        let network = Network::open()?;
        // Whoever has the device has the slot: what else is there then was left behind.
        let device = Device::create(self.slot).await?;
        network.sweep(self.slot).await?;
        let footprint = Footprint::of(self.slot);
        let ipv6 = device.has_ipv6();
        network.bring_up(&device, self.slot, ipv6).await?;
        let express = if express {
            network.add_blocks(&device, self.slot, ipv6).await?;
            Some(self.express(&device, ipv6)?)
        } else {
            // Megabytes that nobody is going to ask for.
            self.ahead = None;
            None
        };
        for rule in Rule::standing(express.is_some(), ipv6) {
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
        };
        applied.converge(&network, self.slot, plan).await?;
        applied.rescope(&plan.scope)?;
        Ok(applied)
    }

    fn express(&mut self, device: &Device, ipv6: bool) -> Result<Express, HostError> {
        let datagrams = Datagrams::open(self.slot, ipv6)?;
        let mut programs = Programs::load(self.slot, device.index, datagrams.port, self.ahead.take())?;
        datagrams.register(&mut programs)?;
        let listeners = sockets::listeners(self.slot, ipv6, &mut programs)?;
        let raws = sockets::raws(self.slot, ipv6)?;
        Ok(Express { programs, scope: None, listeners, raws, datagrams })
    }
}

#[async_trait]
impl Host for LinuxHost {
    type Handover = Handover;

    async fn apply(&mut self, plan: &Plan) -> Result<Handover, HostError> {
        plan.check().map_err(|e| HostError::Refused(e.to_string()))?;
        let Some(applied) = &mut self.applied else {
            let applied = self.install(plan).await?;
            let handover = applied.handover(plan)?;
            self.applied = Some(applied);
            return Ok(handover);
        };
        if plan.road != applied.plan.road {
            return Err(HostError::Refused("the datapath cannot be changed while it is in use; revert first".into()));
        }
        if *plan == applied.plan {
            if let Err(e) = applied.mend(self.slot).await {
                self.revert().await?;
                return Err(e);
            }
        }
        let network = Network::open()?;
        let changed = match applied.converge(&network, self.slot, plan).await {
            Ok(()) => applied.rescope(&plan.scope).and_then(|()| applied.handover(plan)),
            Err(e) => Err(e),
        };
        match &changed {
            Ok(_) => applied.plan = plan.clone(),
            Err(e) => {
                tracing::warn!("the plan could not be applied ({e}); going back to the one before");
                let before = applied.plan.clone();
                let back = applied.converge(&network, self.slot, &before).await;
                if back.and_then(|()| applied.rescope(&before.scope)).is_err() {
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
        let Applied { express, names, footprint, device, .. } = applied;
        drop(express);
        drop(names);
        footprint.remove().await?;
        drop(device);
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
        self.resolved.tell(&self.device, plan.resolver.as_ref(), self.ipv6).await;
        Ok(())
    }

    /// Attaches the hooks, where there are some, to `scope`.
    fn rescope(&mut self, scope: &Scope) -> Result<(), HostError> {
        if let Some(express) = &mut self.express
            && express.scope.as_ref() != Some(scope)
        {
            express.programs.attach(scope)?;
            express.scope = Some(scope.clone());
        }
        Ok(())
    }

    fn handover(&self, plan: &Plan) -> Result<Handover, HostError> {
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
            bypass: maps.bypass,
            rules4: maps.rules4,
            rules6: maps.rules6,
            names4: maps.names4,
            names6: maps.names6,
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
