//! Carries flows: asks the cluster for each held connection, then lets it in or turns it away.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::{sync::watch, task::JoinSet};
use tpx_core::dial::DialFailure;
use tpx_datapath::{Arrival, FlowSource, FlowStream, Knock};
use tpx_link::{Target, relay::relay};

use super::{lanes::Lanes, status::Flows};

/// Counters of one connection's flows.
#[derive(Default)]
pub(crate) struct FlowCounters {
    open: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

impl FlowCounters {
    /// Their values now.
    pub(crate) fn read(&self) -> Flows {
        Flows {
            open: self.open.load(Relaxed),
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
        }
    }
}

/// What every flow needs.
#[derive(Clone)]
pub(crate) struct Carrying {
    /// Where streams are opened.
    pub lanes: Lanes,
    /// The session's id, which changes when the manager had to be asked for another one.
    pub session: watch::Receiver<String>,
    /// Where to count.
    pub counters: Arc<FlowCounters>,
}

/// Carries all flows of `source` until it ends. Dropping the future ends them all.
pub(crate) async fn carry_all(mut source: impl FlowSource, carrying: Carrying) {
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            knock = source.next() => match knock {
                Some(Arrival::Connection(knock)) => { flows.spawn(carry(knock, carrying.clone())); }
                Some(Arrival::Datagrams(_) | Arrival::Echo(_)) => {}
                None => return,
            },
            Some(_) = flows.join_next() => {}
        }
    }
}

async fn carry(knock: Box<dyn Knock>, carrying: Carrying) {
    let (source, destination) = (knock.source(), knock.destination());
    let counters = &carrying.counters;
    let dialled = match carrying.lanes.lane().await {
        Some(lane) => {
            let session = carrying.session.borrow().clone();
            lane.connect(&Target::from(destination), &session).await
        }
        None => Err(DialFailure::Tunnel),
    };
    let stream = match dialled {
        Ok(stream) => stream,
        Err(why) => {
            tracing::debug!("{source} -> {destination}: {why}");
            counters.refused.fetch_add(1, Relaxed);
            return knock.refuse(why);
        }
    };
    let tcp = match knock.release().await {
        Ok(FlowStream::Socket(tcp)) => tcp,
        Err(e) => return tracing::debug!("{source} -> {destination}: {e}"),
    };
    counters.opened.fetch_add(1, Relaxed);
    counters.open.fetch_add(1, Relaxed);
    let transferred = relay(tcp, stream).await;
    counters.open.fetch_sub(1, Relaxed);
    counters.bytes_up.fetch_add(transferred.up, Relaxed);
    counters.bytes_down.fetch_add(transferred.down, Relaxed);
    tracing::debug!("{source} -> {destination}: {transferred:?}");
}
