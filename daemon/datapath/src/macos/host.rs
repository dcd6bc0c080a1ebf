//! Carries steps out. Needs root.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use async_trait::async_trait;
use ipnet::IpNet;
use route_manager::{Route, RouteManager};
use tpx_core::plan::Plan;
use tpx_ebpf_abi::slot::Slot;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{FLUSH, RESOLVER_DIRECTORY, Step, back, steps, sweep};
use crate::{Host, HostError, routed::Routed};

const PLATFORM: &str = "macOS";
/// Of the device, in bytes.
const MTU: u16 = 1500;
/// errno(2): no such route.
const ESRCH: i32 = 3;

/// Does the privileged work. Dropping it reverts.
#[derive(Debug)]
pub struct MacHost {
    slot: Slot,
    applied: Option<Applied>,
}

/// What an applied plan hands to the user daemon.
#[derive(Debug)]
pub struct Handover {
    /// The utun device, for [`Tun::new`](super::Tun::new).
    pub device: OwnedFd,
    /// Its name, `utunN`.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Its own addresses.
    pub addresses: [IpAddr; 2],
    /// Where names are asked, at port 53: addresses that are routed to the device and answered from it.
    pub servers: Vec<IpAddr>,
}

struct Applied {
    slot: Slot,
    device: SyncDevice,
    index: u32,
    taken: BTreeSet<IpNet>,
    state: Routed,
}

impl std::fmt::Debug for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applied").field("index", &self.index).field("state", &self.state).finish_non_exhaustive()
    }
}

impl MacHost {
    /// Changes nothing yet.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self { slot, applied: None }
    }
}

#[async_trait]
impl Host for MacHost {
    type Handover = Handover;

    async fn apply(&mut self, plan: &Plan) -> Result<Handover, HostError> {
        let want = Routed::of(plan, PLATFORM)?;
        let applied = match &mut self.applied {
            Some(applied) => applied,
            none => none.insert(Applied::install(self.slot)?),
        };
        let done = applied.converge(want).and_then(|()| applied.handover());
        if done.is_err() && applied.state == Routed::default() {
            self.applied = None;
        }
        done
    }

    async fn revert(&mut self) -> Result<(), HostError> {
        match self.applied.take() {
            Some(mut applied) => applied.converge(Routed::default()),
            None => Ok(()),
        }
    }
}

impl Applied {
    fn install(slot: Slot) -> Result<Self, HostError> {
        for step in sweep(slot, left_behind()?.iter().map(|(name, text)| (name.as_str(), text.as_str()))) {
            carry_out(&step, 0)?;
        }
        let device = DeviceBuilder::new()
            .mtu(MTU)
            .ipv4(slot.ipv4(), 32, Some(slot.ipv4()))
            .ipv6(slot.ipv6(), 128)
            .with(|device| {
                device.associate_route(false).packet_information(false);
            })
            .build_sync()
            .map_err(|e| system("create a utun device", e))?;
        let index = device.if_index().map_err(|e| system("find the utun device", e))?;
        let routes = RouteManager::new().and_then(|mut routes| routes.list());
        let taken = (routes.map_err(|e| system("list the routes", e))?.iter())
            .filter(|route| route.if_index() != Some(index) && !route.if_scope())
            .filter_map(|route| IpNet::new(route.destination(), route.prefix()).ok())
            .map(|net| net.trunc())
            .collect();
        Ok(Self { slot, device, index, taken, state: Routed::default() })
    }

    /// After a failure the state is what it was before.
    fn converge(&mut self, want: Routed) -> Result<(), HostError> {
        for (done, step) in steps(self.slot, &self.state, &want, &self.taken).iter().enumerate() {
            if let Err(e) = carry_out(step, self.index) {
                for step in back(self.slot, &self.state, &want, &self.taken, done) {
                    if let Err(e) = carry_out(&step, self.index) {
                        tracing::warn!("go back to the plan before: {e}");
                    }
                }
                return Err(e);
            }
        }
        self.state = want;
        Ok(())
    }

    fn handover(&self) -> Result<Handover, HostError> {
        Ok(Handover {
            device: self.device.as_fd().try_clone_to_owned().map_err(|e| system("duplicate the device", e))?,
            name: self.device.name().map_err(|e| system("name the device", e))?,
            mtu: MTU,
            addresses: [self.slot.ipv4().into(), self.slot.ipv6().into()],
            servers: self.state.names.servers.clone(),
        })
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Err(e) = self.converge(Routed::default()) {
            tracing::warn!("clean up: {e}");
        }
    }
}

fn carry_out(step: &Step, index: u32) -> Result<(), HostError> {
    let path = |name: &str| Path::new(RESOLVER_DIRECTORY).join(name);
    match step {
        Step::AddRoute(net) => route(net, index, false, RouteManager::add),
        Step::AddScopedRoute(net) => route(net, index, true, RouteManager::add),
        Step::RemoveRoute(net) => gone(route(net, index, false, RouteManager::delete)),
        Step::RemoveScopedRoute(net) => gone(route(net, index, true, RouteManager::delete)),
        Step::WriteResolver { name, text } => fs::create_dir_all(RESOLVER_DIRECTORY).and_then(|()| {
            // One that has the mark and can be read at any time: nobody sees half a file.
            let new = path(".tpx.new");
            fs::write(&new, text).and_then(|()| fs::rename(&new, path(name)))
        }),
        Step::RemoveResolver { name } => match fs::remove_file(path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        },
        Step::FlushCaches => {
            flush();
            Ok(())
        }
    }
    .map_err(|e| system(step.to_string(), e))
}

fn route(
    net: &IpNet,
    index: u32,
    scoped: bool,
    change: fn(&mut RouteManager, &Route) -> io::Result<()>,
) -> io::Result<()> {
    let route = Route::new(net.network(), net.prefix_len()).with_if_index(index).with_if_scope(scoped);
    change(&mut RouteManager::new()?, &route)
}

/// What is gone already need not be removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(ESRCH) => Ok(()),
        done => done,
    }
}

/// Old answers are a nuisance, not a failure.
fn flush() {
    for effect in FLUSH {
        let mut command = Command::new(effect.program);
        command.args(effect.arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!("{}: {status}", effect.program),
            Err(e) => tracing::warn!("{}: {e}", effect.program),
        }
    }
}

/// The readable files among the resolvers.
fn left_behind() -> Result<Vec<(String, String)>, HostError> {
    let entries = match fs::read_dir(RESOLVER_DIRECTORY) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| system(format!("list {RESOLVER_DIRECTORY}"), e))?,
    };
    let read =
        |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, fs::read_to_string(entry.path()).ok()?));
    Ok(entries.filter_map(Result::ok).filter_map(read).collect())
}

fn system(what: impl Into<String>, source: io::Error) -> HostError {
    HostError::System { what: what.into(), source }
}
