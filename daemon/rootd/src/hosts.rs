//! The real hosts of sessions.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tpx_datapath::{
    HostError, Tables,
    linux::{Ahead, Bridges, Feature, LinuxHost, Process, Slot, enter},
};

use crate::sessions::Hosts;

/// Hosts of this machine.
pub(crate) struct LinuxHosts {
    /// For the first one.
    ahead: Mutex<Option<Ahead>>,
    without: Vec<Feature>,
}

impl LinuxHosts {
    /// `ahead` serves the first session; all do as if the kernel lacked the features `without`.
    pub(crate) fn new(ahead: Option<Ahead>, without: Vec<Feature>) -> Self {
        Self { ahead: Mutex::new(ahead), without }
    }
}

impl Hosts for LinuxHosts {
    type Host = LinuxHost;

    fn make(&self, slot: Slot, caller: Option<Arc<Process>>) -> LinuxHost {
        let host = LinuxHost::new(slot).without(self.without.clone());
        let host = if let Some(caller) = caller { host.for_process(caller) } else { host };
        match self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(ahead) => host.with_ahead(ahead),
            None => host,
        }
    }

    fn bridges(&self, host: &LinuxHost) -> watch::Receiver<Bridges> {
        host.bridges()
    }

    fn tables(host: &LinuxHost) -> Result<Tables, HostError> {
        host.tables()
    }

    fn enter(&self, cgroup: &Path, process: &Process, uid: u32) -> Result<(), HostError> {
        enter(cgroup, process, uid)
    }
}
