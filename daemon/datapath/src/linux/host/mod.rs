//! The privileged half on Linux: makes the host look like a plan and takes everything back.
//!
//! All that is installed hangs on file descriptors (device, links, sockets), so the kernel removes it when the process
//! dies. Policy rules do not; one that is left over leads to an empty table, and the next start sweeps it away.

mod cgroup;
mod desired;
mod device;
mod network;
mod probe;
mod programs;
mod sockets;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use async_trait::async_trait;
use tpx_core::plan::{Plan, Scope};
use tpx_ebpf_abi::slot::{DNS_PORT, NAMES, Slot};

pub use probe::{Features, probe};

use self::{
    desired::Desired,
    device::Device,
    network::Footprint,
    programs::{Ahead, Programs},
};
use super::{DnsSockets, ExpressFiles, Handover};
use crate::{Host, HostError};

/// Does the privileged work in the network namespace of the calling thread. Needs CAP_BPF, CAP_NET_ADMIN and
/// CAP_NET_RAW, and a tokio runtime.
///
/// Dropping it reverts.
#[derive(Debug)]
pub struct LinuxHost {
    slot: Slot,
    ahead: Option<Ahead>,
    applied: Option<Applied>,
}

/// What is installed. Fields are dropped in this order: first new connections are let alone, then the roads go.
#[derive(Debug)]
struct Applied {
    programs: Programs,
    scope: Scope,
    state: Desired,
    names: BTreeMap<IpAddr, Name>,
    listeners: [OwnedFd; 2],
    raws: [OwnedFd; 2],
    ipv6: bool,
    footprint: Footprint,
    device: Device,
}

/// A name server that tpx stands in for.
#[derive(Debug)]
struct Name {
    /// Which of the slot's own addresses stands for it.
    nth: usize,
    sockets: DnsSockets,
}

impl Drop for Name {
    fn drop(&mut self) {
        // Frees the port, also while somebody else has a copy of the file.
        let _ = rustix::net::shutdown(&self.sockets.tcp, rustix::net::Shutdown::Both);
    }
}

impl LinuxHost {
    /// Changes nothing yet.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self { slot, ahead: None, applied: None }
    }

    /// Says that a first plan will come soon: what can be read ahead is read while the caller goes on.
    pub fn prepare(&mut self) {
        self.ahead = Some(Ahead::start());
    }

    async fn install(&mut self, plan: &Plan) -> Result<Applied, HostError> {
        probe::programs().map_err(|why| HostError::Unsupported(why.into()))?;
        let network = network::Network::open()?;
        // Whoever has the device has the slot: what else is there then was left behind.
        let device = Device::create(self.slot).await?;
        network.sweep(self.slot).await?;
        let footprint = Footprint::of(self.slot);
        let ipv6 = device.has_ipv6();
        network.bring_up(&device, self.slot, ipv6).await?;
        let mut programs = Programs::load(self.slot, device.index, self.ahead.take())?;
        let listeners = sockets::listeners(self.slot, ipv6, &mut programs)?;
        let raws = sockets::raws(self.slot, ipv6)?;
        network.add_rules(self.slot, ipv6).await?;
        let mut applied = Applied {
            programs,
            scope: plan.scope.clone(),
            state: Desired::default(),
            names: BTreeMap::new(),
            listeners,
            raws,
            ipv6,
            footprint,
            device,
        };
        applied.converge(&network, self.slot, plan).await?;
        applied.programs.attach(&plan.scope)?;
        Ok(applied)
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
        let before = applied.as_plan();
        let network = network::Network::open()?;
        let changed = match applied.converge(&network, self.slot, plan).await {
            Ok(()) => applied.rescope(&plan.scope).and_then(|()| applied.handover(plan)),
            Err(e) => Err(e),
        };
        if let Err(e) = &changed {
            tracing::warn!("the plan could not be applied ({e}); going back to the one before");
            let back = applied.converge(&network, self.slot, &before).await;
            if back.and_then(|()| applied.rescope(&before.scope)).is_err() {
                self.revert().await?;
            }
        }
        changed
    }

    async fn revert(&mut self) -> Result<(), HostError> {
        let Some(applied) = self.applied.take() else {
            return Ok(());
        };
        let Applied { programs, footprint, device, .. } = applied;
        drop(programs);
        footprint.remove().await?;
        drop(device);
        Ok(())
    }
}

impl Applied {
    /// Changes maps, routes and names from what they are to what `plan` wants. Keeps account after each step, so that a
    /// failure in between leaves a known state. Roads come before the rules that lead to them, and go after them.
    async fn converge(&mut self, network: &network::Network, slot: Slot, plan: &Plan) -> Result<(), HostError> {
        let want = Desired::of(plan, self.ipv6);
        for server in want.names.difference(&self.state.names.clone()) {
            self.add_name(network, slot, *server).await?;
        }
        for net in want.routes.difference(&self.state.routes.clone()) {
            network.add_route(&self.device, slot, *net).await?;
            self.state.routes.insert(*net);
        }
        for (net, action) in &want.rules {
            if self.state.rules.get(net) != Some(action) {
                self.programs.set_rule(*net, *action)?;
                self.state.rules.insert(*net, *action);
            }
        }
        for net in self.state.rules.clone().into_keys().filter(|net| !want.rules.contains_key(net)) {
            self.programs.remove_rule(net)?;
            self.state.rules.remove(&net);
        }
        for net in self.state.routes.clone().difference(&want.routes) {
            network.remove_route(&self.device, slot, *net).await?;
            self.state.routes.remove(net);
        }
        for server in self.state.names.clone().difference(&want.names) {
            self.remove_name(network, slot, *server).await?;
        }
        Ok(())
    }

    async fn add_name(&mut self, network: &network::Network, slot: Slot, server: IpAddr) -> Result<(), HostError> {
        let mut last = HostError::Refused(format!("no address is left for the name server {server}"));
        for nth in (0..NAMES).filter(|nth| self.names.values().all(|name| name.nth != *nth)).collect::<Vec<_>>() {
            let Some(own) = desired::own_address(slot, server, nth) else {
                break;
            };
            network.add_address(&self.device, own).await?;
            let made = sockets::dns(server, SocketAddr::new(own, DNS_PORT))
                .and_then(|sockets| self.programs.set_name(server, own).map(|()| sockets));
            match made {
                Ok(sockets) => {
                    self.names.insert(server, Name { nth, sockets });
                    self.state.names.insert(server);
                    return Ok(());
                }
                // A user daemon that lingers may still have the sockets of the datapath before: the next address is free.
                Err(e) => {
                    network.remove_address(&self.device, own).await?;
                    let taken =
                        matches!(&e, HostError::System { source, .. } if source.kind() == io::ErrorKind::AddrInUse);
                    last = e;
                    if !taken {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn remove_name(&mut self, network: &network::Network, slot: Slot, server: IpAddr) -> Result<(), HostError> {
        let Some(name) = self.names.get(&server) else {
            return Ok(());
        };
        if let Some(own) = desired::own_address(slot, server, name.nth) {
            self.programs.remove_name(server, own)?;
            network.remove_address(&self.device, own).await?;
        }
        self.names.remove(&server);
        self.state.names.remove(&server);
        Ok(())
    }

    fn rescope(&mut self, scope: &Scope) -> Result<(), HostError> {
        if self.scope != *scope {
            self.programs.attach(scope)?;
            self.scope = scope.clone();
        }
        Ok(())
    }

    /// The plan that describes the present state.
    fn as_plan(&self) -> Plan {
        self.state.to_plan(self.scope.clone())
    }

    fn handover(&self, plan: &Plan) -> Result<Handover, HostError> {
        let copy = |fd: &OwnedFd| fd.try_clone();
        let copies = || -> io::Result<Handover> {
            let maps = self.programs.maps()?;
            let dns = plan
                .name_servers
                .iter()
                .filter_map(|server| self.names.get(server))
                .map(|name| {
                    let s = &name.sockets;
                    Ok(DnsSockets { udp: copy(&s.udp)?, tcp: copy(&s.tcp)?, ..*s })
                })
                .collect::<io::Result<_>>()?;
            Ok(Handover {
                device: self.device.file()?,
                vnet_hdr: false,
                mtu: 1500,
                express: Some(ExpressFiles {
                    listeners: [copy(&self.listeners[0])?, copy(&self.listeners[1])?],
                    raws: [copy(&self.raws[0])?, copy(&self.raws[1])?],
                    syns: maps.syns,
                    held: maps.held,
                    bypass: maps.bypass,
                    rules4: maps.rules4,
                    rules6: maps.rules6,
                    names4: maps.names4,
                    names6: maps.names6,
                    counters: maps.counters,
                }),
                dns,
                unsteered_name_servers: Vec::new(),
                resolved: false,
            })
        };
        copies().map_err(|e| system("duplicate the files that are handed over", e))
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
