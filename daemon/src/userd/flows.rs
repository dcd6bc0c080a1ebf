//! Carries flows: asks the cluster for each held connection, then lets it in or turns it away.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{sync::watch, task::JoinSet};
use tpx_core::{dial::DialFailure, explain::Way};
use tpx_datapath::{Arrival, FlowSource, FlowStream, Knock};
use tpx_dns::Asker;
use tpx_link::{lane::Lane, relay::relay_counted};

use super::{
    addresses::Addresses,
    datagrams::{carry_datagrams, carry_echoes, refuse_echoes},
    flow_table::FlowTable,
    lanes::Lanes,
    netstream::Relayed,
    question_flows::{self, Question},
    status::Flows,
};

/// Counters of one connection's flows.
#[derive(Default)]
pub(crate) struct FlowCounters {
    open: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

/// A flow that is being carried; counted until it is dropped.
struct Open<'a>(&'a FlowCounters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl FlowCounters {
    fn open(&self) -> Open<'_> {
        self.opened.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Open(self)
    }

    /// Counts one that is not carried; `is_denied` by the policy.
    fn turned_away(&self, why: DialFailure, is_denied: bool) {
        let counter = match why {
            _ if is_denied => &self.denied,
            DialFailure::Tunnel => &self.failed,
            _ => &self.refused,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn moved(&self, up: u64, down: u64) {
        self.bytes_up.fetch_add(up, Relaxed);
        self.bytes_down.fetch_add(down, Relaxed);
    }

    /// Their values now.
    pub(crate) fn read(&self) -> Flows {
        Flows {
            open: self.open.load(Relaxed),
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            denied: self.denied.load(Relaxed),
            failed: self.failed.load(Relaxed),
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
    /// Where flows to virtual addresses lead.
    pub addresses: Addresses,
    /// The name server, for questions that arrive as flows.
    pub asker: Asker,
    /// What is carried, for who wants to look.
    pub table: FlowTable,
    /// Where to count.
    pub counters: Arc<FlowCounters>,
}

/// Carries all flows of `source`, which is the road `road`, until it ends. Dropping the future ends them all.
pub(crate) async fn carry_all(road: Way, mut source: Box<dyn FlowSource>, carrying: Carrying) {
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            arrival = source.next() => match arrival {
                Some(arrival) => { flows.spawn(carry(road, arrival, carrying.clone())); }
                None => return,
            },
            Some(_) = flows.join_next() => {}
        }
    }
}

async fn carry(road: Way, arrival: Arrival, carrying: Carrying) {
    match arrival {
        Arrival::Connection(knock) => carry_connection(road, knock, carrying).await,
        Arrival::Datagrams(flow) => {
            if let Some(asker) = carrying.answers(flow.source, flow.destination) {
                return question_flows::answer_datagrams(flow, asker).await;
            }
            let (lane, target) = match carrying.road_to(flow.destination).await {
                Ok(found) => found,
                Err(why) => return flow.back.unreachable(why),
            };
            let _open = carrying.counters.open();
            let listed = carrying.table.list("udp", road, flow.source, flow.destination, target, None);
            let traffic = listed.traffic();
            carry_datagrams(flow, lane, &target.into(), &carrying.session(), traffic).await;
            carrying.counters.moved(traffic.up(), traffic.down());
        }
        Arrival::Echo(flow) => {
            if let Ok((lane, target)) = carrying.road_to(SocketAddr::new(flow.destination, 0)).await {
                let (from, to) = (SocketAddr::new(flow.source, 0), SocketAddr::new(flow.destination, 0));
                let listed = carrying.table.list("icmp", road, from, to, target, None);
                carry_echoes(flow, lane, target.ip(), &carrying.session(), listed.traffic()).await;
            } else {
                refuse_echoes(flow).await;
            }
        }
    }
}

async fn carry_connection(road: Way, knock: Box<dyn Knock>, carrying: Carrying) {
    let (source, destination) = (knock.source(), knock.destination());
    if let Some(asker) = carrying.answers(source, destination) {
        if let Ok(FlowStream::Netstack(stream)) = knock.release().await
            && let Err(e) = question_flows::answer_stream(stream, asker).await
        {
            tracing::debug!("{source} asked over TCP: {e}");
        }
        return;
    }
    // The application waits: its process is still there.
    let caller = knock.caller();
    let dialled = match carrying.road_to(destination).await {
        Ok((lane, target)) => lane.connect(&target.into(), &carrying.session()).await.map(|stream| (stream, target)),
        Err(why) => Err(why),
    };
    let counters = &carrying.counters;
    let (stream, target) = match dialled {
        Ok(found) => found,
        Err(why) => {
            tracing::debug!("{source} -> {destination}: {why}");
            counters.turned_away(why, carrying.addresses.is_denied(destination));
            return knock.refuse(why);
        }
    };
    let own = match knock.release().await {
        Ok(own) => own,
        Err(e) => return tracing::debug!("{source} -> {destination}: {e}"),
    };
    let _open = counters.open();
    let listed = carrying.table.list("tcp", road, source, destination, target, caller);
    let traffic = Arc::clone(listed.traffic());
    let transferred = match own {
        FlowStream::Socket(tcp) => relay_counted(tcp, stream, traffic).await,
        FlowStream::Netstack(own) => relay_counted(Relayed(own), stream, traffic).await,
    };
    counters.moved(transferred.up, transferred.down);
    tracing::debug!("{source} -> {destination}: {transferred:?}");
}

impl Carrying {
    /// The lane, and where on it a flow to `destination` leads.
    async fn road_to(&self, destination: SocketAddr) -> Result<(Lane, SocketAddr), DialFailure> {
        let target = self.addresses.target(destination)?;
        let lane = self.lanes.lane().await.ok_or(DialFailure::Tunnel)?;
        Ok((lane, target))
    }

    /// The name server, if a flow is a question for it.
    fn answers(&self, source: SocketAddr, destination: SocketAddr) -> Option<Asker> {
        match question_flows::whose(source.ip(), destination, |ip| self.addresses.steers(ip))? {
            Question::Resolved => Some(self.asker.clone()),
            Question::MeantFor(server) => Some(self.asker.towards(server)),
        }
    }

    fn session(&self) -> String {
        self.session.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_turned_a_connection_away_is_counted_apart() {
        let counters = FlowCounters::default();
        for (why, is_denied) in [
            (DialFailure::Refused, false),
            (DialFailure::TimedOut, false),
            (DialFailure::Prohibited, false),
            (DialFailure::Refused, true),
            (DialFailure::Prohibited, true),
            (DialFailure::Tunnel, false),
        ] {
            counters.turned_away(why, is_denied);
        }
        let read = counters.read();
        assert_eq!((read.refused, read.denied, read.failed), (3, 2, 1));
    }
}
