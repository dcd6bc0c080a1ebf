//! Serving containers: the program that takes their packets is on every bridge that the plan's patterns match, also on
//! those that appear later; the program that hands answers back is on the TUN device.
//!
//! A bridge that cannot be served is no reason to refuse a plan: it is listed with the reason.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::HashMap,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
};
use tokio::{sync::watch, task::JoinHandle};
use tpx_core::devices::DevicePattern;
use tpx_ebpf_abi::{
    Station,
    maps::{self, program},
    slot::Slot,
};

use super::{
    failed,
    links::{BridgeLink, Links},
    programs::{Shared, get, load_failed},
    tc::{self, Clsact},
};
use crate::{
    HostError,
    linux::bridges::{Bridge, Bridges, Hook},
};

/// Pause after netlink failed.
const AGAIN: Duration = Duration::from_millis(500);

/// Serves containers until it is dropped.
pub(super) struct Containers {
    serving: Arc<Mutex<Serving>>,
    follower: Option<JoinHandle<()>>,
}

struct Serving {
    programs: Shared,
    hook: Hook,
    slot: Slot,
    /// The TUN device's name.
    device: &'static str,
    patterns: Vec<DevicePattern>,
    /// On the TUN device.
    answers: Option<SchedClassifierLink>,
    served: BTreeMap<u32, Served>,
    tell: watch::Sender<Bridges>,
}

/// A bridge that matches.
struct Served {
    name: String,
    attached: Result<Attached, String>,
}

/// The program on a device; off when it is dropped, in this order.
struct Attached {
    _link: SchedClassifierLink,
    _clsact: Option<Clsact>,
}

impl std::fmt::Debug for Containers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Containers").field("bridges", &*self.lock().tell.borrow()).finish_non_exhaustive()
    }
}

impl Containers {
    /// Serves none yet. What is served is told to `tell`.
    pub(super) fn new(programs: Shared, hook: Hook, slot: Slot, tell: watch::Sender<Bridges>) -> Self {
        let (device, patterns, served) = (slot.device(), Vec::new(), BTreeMap::new());
        let serving = Serving { programs, hook, slot, device, patterns, answers: None, served, tell };
        Self { serving: Arc::new(Mutex::new(serving)), follower: None }
    }

    /// Serves all bridges that match `patterns`, from now on, and no others.
    pub(super) async fn serve(&mut self, patterns: &[DevicePattern]) {
        if patterns.is_empty() {
            return self.stop();
        }
        if let Err(e) = self.begin(patterns).await {
            tracing::warn!("containers do not see the cluster: {e}");
            self.stop();
            self.lock().tell.send_replace(Bridges { problem: Some(e.to_string()), ..Bridges::default() });
        }
    }

    async fn begin(&mut self, patterns: &[DevicePattern]) -> Result<(), HostError> {
        // Whoever follows already must not hear of an older look after a newer one.
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        let mut links = Links::open()?;
        let bridges = links.bridges().await?;
        let mut serving = self.lock();
        serving.prepare()?;
        serving.patterns = patterns.to_vec();
        serving.see(&bridges);
        drop(serving);
        if self.follower.as_ref().is_none_or(JoinHandle::is_finished) {
            self.follower = Some(tokio::spawn(follow(links, Arc::clone(&self.serving))));
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        let mut serving = self.lock();
        // The task may be waiting for the lock right now: it finds nothing to do.
        serving.patterns.clear();
        serving.see(&[]);
        serving.answers = None;
        serving.report();
    }

    fn lock(&self) -> MutexGuard<'_, Serving> {
        lock(&self.serving)
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(serving: &Mutex<Serving>) -> MutexGuard<'_, Serving> {
    serving.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at the bridges again whenever a device has changed.
async fn follow(mut links: Links, serving: Arc<Mutex<Serving>>) {
    loop {
        while links.changed().await {
            match links.bridges().await {
                Ok(bridges) => lock(&serving).see(&bridges),
                Err(e) => {
                    tracing::warn!("bridges cannot be followed: {e}");
                    break;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
        let again = async {
            let mut new = Links::open()?;
            let bridges = new.bridges().await?;
            lock(&serving).see(&bridges);
            Ok::<_, HostError>(new)
        };
        match again.await {
            Ok(new) => links = new,
            Err(e) => tracing::warn!("bridges cannot be followed: {e}"),
        }
    }
}

impl Serving {
    /// Loads the programs and makes answers find their way, once.
    fn prepare(&mut self) -> Result<(), HostError> {
        if self.answers.is_some() {
            return Ok(());
        }
        let mut bpf = self.programs.lock();
        for name in [program::FROM_CONTAINER, program::TO_CONTAINER] {
            let classifier: &mut SchedClassifier = get(&mut bpf, name)?;
            if classifier.fd().is_err() {
                classifier.load().map_err(|e| load_failed(name, &e))?;
            }
        }
        if self.hook == Hook::Clsact {
            qdisc_add_clsact(self.device).map_err(|e| failed("prepare the device for filters", &e))?;
        }
        self.answers = Some(attach(&mut bpf, program::TO_CONTAINER, self.device, self.hook, self.slot)?);
        Ok(())
    }

    /// Takes up bridges that match, and forgets those that have gone.
    fn see(&mut self, bridges: &[BridgeLink]) {
        let patterns = &self.patterns;
        let wanted: BTreeMap<u32, &str> = bridges
            .iter()
            .filter(|bridge| patterns.iter().any(|pattern| pattern.matches(&bridge.name)))
            .map(|bridge| (bridge.index, bridge.name.as_str()))
            .collect();
        let gone: Vec<u32> = self.served.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        for index in &gone {
            if let Some(Served { name, .. }) = self.served.remove(index) {
                tracing::info!("the containers of {name} are not served any more");
            }
        }
        if !gone.is_empty() {
            self.forget(&gone);
        }
        for (index, name) in wanted {
            if let Some(known) = self.served.get_mut(&index).filter(|known| known.attached.is_ok()) {
                name.clone_into(&mut known.name);
                continue;
            }
            let attached = self.take_up(index, name).map_err(|e| e.to_string());
            match &attached {
                // It is tried again at every change.
                Err(_) if self.served.contains_key(&index) => {}
                Ok(_) => tracing::info!("the containers of {name} are served ({})", self.hook),
                Err(e) => tracing::warn!("the containers of {name} do not see the cluster: {e}"),
            }
            self.served.insert(index, Served { name: name.to_owned(), attached });
        }
        self.report();
    }

    fn report(&self) {
        let row =
            |served: &Served| Bridge { name: served.name.clone(), problem: served.attached.as_ref().err().cloned() };
        let mut rows: Vec<Bridge> = self.served.values().map(row).collect();
        rows.sort();
        let now = Bridges { bridges: rows, hook: self.answers.is_some().then_some(self.hook), problem: None };
        self.tell.send_if_modified(|told| {
            let new = *told != now;
            *told = now;
            new
        });
    }

    fn take_up(&self, index: u32, name: &str) -> Result<Attached, HostError> {
        let clsact = (self.hook == Hook::Clsact).then(|| Clsact::on(index, name));
        let link = attach(&mut self.programs.lock(), program::FROM_CONTAINER, name, self.hook, self.slot)?;
        Ok(Attached { _link: link, _clsact: clsact })
    }

    /// Answers for containers behind these devices have nowhere to go.
    fn forget(&self, devices: &[u32]) {
        let mut bpf = self.programs.lock();
        let Some(map) = bpf.map_mut(maps::STATIONS) else { return };
        let Ok(mut stations) = HashMap::<_, [u8; 16], Station>::try_from(map) else { return };
        let behind = |entry: Result<([u8; 16], Station), _>| {
            entry.ok().filter(|(_, station)| devices.contains(&station.device)).map(|(address, _)| address)
        };
        let addresses: Vec<[u8; 16]> = stations.iter().filter_map(behind).collect();
        for address in addresses {
            // The oldest may have gone by themselves.
            let _ = stations.remove(&address);
        }
    }
}

/// Removes the filters that runs of these slots left behind which were killed. Their devices are gone: they let everything
/// pass.
pub(super) async fn sweep(slots: &[Slot]) -> Result<(), HostError> {
    for bridge in Links::open()?.bridges().await? {
        for slot in slots {
            let swept = tc::remove_filters(bridge.index, preference(*slot))
                .and_then(|found| if found { tc::remove_idle_clsact(bridge.index) } else { Ok(()) });
            if let Err(e) = swept {
                tracing::debug!("filters of an earlier run stay on {}: {e}", bridge.name);
            }
        }
    }
    Ok(())
}

/// A preference that only this slot uses, so that its filters can be told from all others. Scopes come before the
/// workstation, whose program leaves alone what one of theirs has marked.
fn preference(slot: Slot) -> u16 {
    (Slot::FIRST.floor_table() + Slot::COUNT - 1 - slot.index()) as u16
}

fn attach(
    bpf: &mut Ebpf,
    program: &str,
    device: &str,
    hook: Hook,
    slot: Slot,
) -> Result<SchedClassifierLink, HostError> {
    let options = match hook {
        Hook::Tcx if slot == Slot::FIRST => TcAttachOptions::TcxOrder(LinkOrder::last()),
        Hook::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
        Hook::Clsact => TcAttachOptions::Netlink(NlOptions {
            priority: preference(slot),
            handle: TcHandle::AUTO_ASSIGN,
            classid: None,
        }),
    };
    let what = || format!("attach {program} to {device}");
    let classifier: &mut SchedClassifier = get(bpf, program)?;
    let id = classifier.attach_with_options(device, TcAttachType::Ingress, options).map_err(|e| failed(what(), &e))?;
    classifier.take_link(id).map_err(|e| failed(what(), &e))
}
