//! Carries steps out. Needs an administrator, and `wintun.dll` beside the program.

use std::{
    io,
    net::IpAddr,
    os::windows::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use async_trait::async_trait;
use ipnet::IpNet;
use route_manager::{Route, RouteManager};
use tpx_core::plan::Plan;
use tpx_ebpf_abi::slot::Slot;
use tun_rs::{AsyncDevice, DeviceBuilder};
use winreg::{
    HKLM, RegKey,
    enums::{KEY_READ, KEY_WRITE},
};

use super::{
    Desired, Effect, FLUSH, Found, REFRESH_POLICY, Rule, Step, Store, Tun, Value, back, device_guid, own_address,
    steps, sweep, sys,
};
use crate::{Host, HostError};

/// Of the device, in bytes.
const MTU: u16 = 1500;
/// The smallest: where somebody else has the same prefix, ours wins.
const METRIC: u16 = 1;
/// ERROR_NOT_FOUND: no such route.
const NOT_FOUND: i32 = 1168;
/// CREATE_NO_WINDOW.
const NO_WINDOW: u32 = 0x0800_0000;

/// Does the privileged work. Dropping it reverts.
#[derive(Debug)]
pub struct WindowsHost {
    slot: Slot,
    applied: Option<Applied>,
}

/// What an applied plan hands to whoever serves the flows, in the same process.
pub struct Handover {
    /// The wintun device.
    pub device: Tun,
    /// Its name.
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
    device: Arc<AsyncDevice>,
    index: u32,
    state: Desired,
}

impl std::fmt::Debug for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applied").field("index", &self.index).field("state", &self.state).finish_non_exhaustive()
    }
}

impl WindowsHost {
    /// Changes nothing yet.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self { slot, applied: None }
    }
}

#[async_trait]
impl Host for WindowsHost {
    type Handover = Handover;

    async fn apply(&mut self, plan: &Plan) -> Result<Handover, HostError> {
        let want = Desired::of(self.slot, plan, &rules()?)?;
        let applied = match &mut self.applied {
            Some(applied) => applied,
            none => none.insert(Applied::install(self.slot)?),
        };
        let done = applied.converge(want).and_then(|()| applied.handover());
        if done.is_err() && applied.state == Desired::default() {
            self.applied = None;
        }
        done
    }

    async fn revert(&mut self) -> Result<(), HostError> {
        match self.applied.take() {
            Some(mut applied) => applied.converge(Desired::default()),
            None => Ok(()),
        }
    }
}

impl Applied {
    fn install(slot: Slot) -> Result<Self, HostError> {
        let wintun = std::env::current_exe().map(|program| program.with_file_name("wintun.dll"));
        let wintun = wintun.map_err(|e| system("find this program", e))?;
        let addresses = addresses(slot);
        let device = DeviceBuilder::new()
            .name(slot.device())
            .mtu(MTU)
            .ipv4(addresses[0], 32, None)
            .ipv6(addresses[1], 128)
            .with(|device| {
                device.mtu_v6(MTU).metric(METRIC).device_guid(device_guid(slot)).description("tpx");
                device.wintun_file(wintun.display().to_string());
            })
            .build_async()
            .map_err(|e| system(format!("create {} with {}", slot.device(), wintun.display()), e))?;
        let index = device.if_index().map_err(|e| system(format!("find {}", slot.device()), e))?;
        let applied = Self { slot, device: Arc::new(device), index, state: Desired::default() };
        for step in sweep(slot, &rules()?) {
            applied.carry_out(&step)?;
        }
        Ok(applied)
    }

    /// After a failure the state is what it was before.
    fn converge(&mut self, want: Desired) -> Result<(), HostError> {
        for (done, step) in steps(self.slot, &self.state, &want).iter().enumerate() {
            if let Err(e) = self.carry_out(step) {
                for step in back(self.slot, &self.state, &want, done) {
                    if let Err(e) = self.carry_out(&step) {
                        tracing::warn!("go back to the plan before: {e}");
                    }
                }
                return Err(e);
            }
        }
        self.state = want;
        Ok(())
    }

    fn carry_out(&self, step: &Step) -> Result<(), HostError> {
        match step {
            Step::AddRoute(net) => self.route(net, RouteManager::add),
            Step::RemoveRoute(net) => match self.route(net, RouteManager::delete) {
                Err(e) if e.raw_os_error() == Some(NOT_FOUND) => Ok(()),
                done => done,
            },
            Step::WriteRule(store, rule) => write(*store, rule),
            Step::RemoveRule(store, id) => remove(*store, id),
            Step::SetSearchList(domains) => sys::set_search_list(device_guid(self.slot), domains),
            Step::RefreshPolicy => run(REFRESH_POLICY),
            Step::FlushCache => run(FLUSH),
        }
        .map_err(|e| system(step.to_string(), e))
    }

    fn route(&self, net: &IpNet, change: fn(&mut RouteManager, &Route) -> io::Result<()>) -> io::Result<()> {
        let route = Route::new(net.network(), net.prefix_len()).with_if_index(self.index).with_metric(0);
        change(&mut RouteManager::new()?, &route)
    }

    fn handover(&self) -> Result<Handover, HostError> {
        Ok(Handover {
            device: Tun(self.device.clone()),
            name: self.device.name().map_err(|e| system("name the device", e))?,
            mtu: MTU,
            addresses: addresses(self.slot),
            servers: self.state.routed.names.servers.clone(),
        })
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Err(e) = self.converge(Desired::default()) {
            tracing::warn!("clean up: {e}");
        }
    }
}

fn addresses(slot: Slot) -> [IpAddr; 2] {
    [slot.ipv4().into(), slot.ipv6().into()].map(own_address)
}

/// The rules of both stores.
fn rules() -> Result<Vec<Found>, HostError> {
    let mut found = Vec::new();
    for store in Store::ALL {
        let key = match HKLM.open_subkey(store.key()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            key => key.map_err(|e| system(format!("open {}", store.key()), e))?,
        };
        for id in key.enum_keys() {
            let id = id.map_err(|e| system(format!("list {}", store.key()), e))?;
            let comment = key.open_subkey(&id).and_then(|rule| rule.get_value("Comment")).unwrap_or_default();
            found.push(Found { store, id, comment });
        }
    }
    Ok(found)
}

fn write(store: Store, rule: &Rule) -> io::Result<()> {
    let (key, _) = HKLM.create_subkey(path(store, &rule.id))?;
    for (name, value) in rule.values() {
        match value {
            Value::Number(number) => key.set_value(name, &number),
            Value::Text(text) => key.set_value(name, &text),
            Value::List(list) => key.set_value(name, &list),
        }?;
    }
    Ok(())
}

fn remove(store: Store, id: &str) -> io::Result<()> {
    match HKLM.delete_subkey_all(path(store, id)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }?;
    if store == Store::Local {
        return Ok(());
    }
    match HKLM.open_subkey_with_flags(store.key(), KEY_READ | KEY_WRITE) {
        Ok(key) if is_empty(&key)? => HKLM.delete_subkey(store.key()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn is_empty(key: &RegKey) -> io::Result<bool> {
    let info = key.query_info()?;
    Ok(info.sub_keys == 0 && info.values == 0)
}

fn path(store: Store, id: &str) -> PathBuf {
    Path::new(store.key()).join(id)
}

/// Old answers are a nuisance, not a failure.
fn run(effect: Effect) -> io::Result<()> {
    // Where the system is comes from the registry: whoever starts a program chooses its environment.
    let root: String = HKLM.open_subkey(r"SOFTWARE\Microsoft\Windows NT\CurrentVersion")?.get_value("SystemRoot")?;
    let program = Path::new(&root).join("System32").join(effect.program);
    let mut command = Command::new(&program);
    command.args(effect.arguments).creation_flags(NO_WINDOW);
    match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!("{}: {status}", program.display()),
        Err(e) => tracing::warn!("{}: {e}", program.display()),
    }
    Ok(())
}

fn system(what: impl Into<String>, source: io::Error) -> HostError {
    HostError::System { what: what.into(), source }
}
