//! Whose held connections are: what the kernel noted when the application called `connect()`.

use std::{
    fs, io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use aya::maps::{HashMap, Map, MapData, MapError};
use tpx_core::syngate::FlowKey;
use tpx_ebpf_abi::{Flow, Owner};

use super::gate::flow;
use crate::Caller;

/// The kernel's notes.
pub(super) struct Owners(Mutex<HashMap<MapData, Flow, Owner>>);

impl Owners {
    pub(super) fn new(map: OwnedFd) -> io::Result<Self> {
        let map = MapData::from_fd(map).and_then(Map::from_map_data).map_err(io::Error::other)?;
        Ok(Self(Mutex::new(map.try_into().map_err(|e: MapError| io::Error::other(e))?)))
    }

    /// Whose `key` is; makes room for the next one. There is no note of what the kernel's hooks did not see, and of what
    /// waited too long in a crowd.
    pub(super) fn take(&self, key: &FlowKey) -> Option<Owner> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let flow = flow(key);
        let owner = map.get(&flow, 0).ok()?;
        // At worst a newer note takes its place.
        let _ = map.remove(&flow);
        Some(owner)
    }
}

/// The caller, by the name of its process. `None` when that is gone already: whoever waits in `connect()` is not.
pub(super) fn caller(owner: &Owner) -> Option<Caller> {
    let name = fs::read_to_string(format!("/proc/{}/comm", owner.pid)).ok()?;
    Some(Caller { pid: owner.pid, uid: owner.uid, name: name.trim_end_matches('\n').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_its_own_name_while_it_lives() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let here = caller(&Owner { pid: std::process::id(), uid: 7 }).unwrap();
        assert_eq!((here.pid, here.uid, here.name.as_str()), (std::process::id(), 7, own.trim_end()));
        // No process has this number (PID_MAX_LIMIT of the kernel is 2^22).
        assert_eq!(caller(&Owner { pid: u32::MAX, uid: 0 }), None);
    }
}
