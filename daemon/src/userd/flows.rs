//! Carries flows: asks the cluster for each held connection, then lets it in or turns it away.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tpx_core::{dial::DialFailure, explain::Way};
use tpx_datapath::{Arrival, FlowSource, FlowStream, Knock};
use tpx_dns::Asker;
use tpx_link::{lane::Lane, relay::relay_counted};

use super::{
    addresses::Addresses,
    datagrams::{carry_datagrams, carry_echoes, refuse_echoes},
    flow_table::FlowTable,
    lanes::{Lanes, PATIENCE},
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
            let open = |lane: Lane, target: SocketAddr, session: String| async move {
                lane.datagrams(&target.into(), &session).await
            };
            let (stream, target) = match carrying.open(flow.destination, open).await {
                Ok(found) => found,
                Err(why) => return flow.back.unreachable(why),
            };
            let _open = carrying.counters.open();
            let listed = carrying.table.list("udp", road, flow.source, flow.destination, target, None);
            let traffic = listed.traffic();
            carry_datagrams(flow, stream, carrying.addresses.denied(target), traffic).await;
            carrying.counters.moved(traffic.up(), traffic.down());
        }
        Arrival::Echo(flow) => {
            let (from, to) = (SocketAddr::new(flow.source, 0), SocketAddr::new(flow.destination, 0));
            let open = |lane: Lane, target: SocketAddr, session: String| async move {
                lane.echoes(target.ip(), &session).await
            };
            let (stream, target) = match carrying.open(to, open).await {
                Ok(found) => found,
                Err(why) => return refuse_echoes(flow, why),
            };
            let listed = carrying.table.list("icmp", road, from, to, target, None);
            carry_echoes(flow, stream, carrying.addresses.denied(target), listed.traffic()).await;
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
    let open =
        |lane: Lane, target: SocketAddr, session: String| async move { lane.connect(&target.into(), &session).await };
    let counters = &carrying.counters;
    let (stream, target) = match carrying.open(destination, open).await {
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
    /// A stream that `open` opens to where a flow to `destination` leads, and where that is. Where the tunnel fails, not the
    /// cluster, another lane or another session may do better: it is waited for as long as for a lost carrier.
    async fn open<T, F>(
        &self,
        destination: SocketAddr,
        open: impl Fn(Lane, SocketAddr, String) -> F,
    ) -> Result<(T, SocketAddr), DialFailure>
    where
        F: Future<Output = Result<T, DialFailure>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Anew each time: what was allowed may be denied by now.
            let target = self.addresses.target(destination)?;
            let lane = self.lanes.lane(deadline).await.ok_or(DialFailure::Tunnel)?;
            let session = self.session.borrow().clone();
            match open(lane.clone(), target, session.clone()).await {
                Err(DialFailure::Tunnel) => {}
                other => return other.map(|stream| (stream, target)),
            }
            // A lane is used before anybody knows that it is lost, and after a restart of the manager the next one is there before
            // the control lane has arrived anew.
            let mut sessions = self.session.clone();
            let another = async { sessions.wait_for(|id| *id != session).await.is_ok() };
            let may_try_again = tokio::select! {
                _ = lane.closed() => true,
                changed = another => changed,
                () = sleep_until(deadline) => false,
            };
            if !may_try_again {
                return Err(DialFailure::Tunnel);
            }
        }
    }

    /// The name server, if a flow is a question for it.
    fn answers(&self, source: SocketAddr, destination: SocketAddr) -> Option<Asker> {
        match question_flows::whose(source.ip(), destination, |ip| self.addresses.steers(ip))? {
            Question::Resolved => Some(self.asker.clone()),
            Question::MeantFor(server) => Some(self.asker.towards(server)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;
    use tpx_core::{
        dns::{Name, PolicyConfig},
        plan::{self, Road},
        policy::{DenyWith, Policy},
        subnets::{Inputs, RoutingPolicy, decide},
        vnat::Vnat,
    };
    use tpx_dns::{ClusterResolver, Limits, NoBypass, NoTranslation, ResolveError, Server};

    use super::{
        super::{
            fake_manager::{CLOSED, FakeManager, target},
            routing::Decided,
            session::Session,
        },
        *,
    };

    struct NoNames;

    #[async_trait::async_trait]
    impl ClusterResolver for NoNames {
        async fn resolve(&self, _: &[u8]) -> Result<Vec<u8>, ResolveError> {
            Err(ResolveError::TimedOut)
        }
    }

    fn decided(policy: Policy) -> Decided {
        let subnets = Arc::new(decide(&Inputs::default()).unwrap());
        let plan = subnets.plan(plan::Scope::Workstation, Road::Tun, &[]);
        Decided { subnets, plan, policy: Arc::new(policy), unanswered: Vec::new(), problem: None }
    }

    async fn carrying(manager: &FakeManager) -> (Carrying, Session, watch::Sender<Decided>) {
        let (decided, decisions) = watch::channel(decided(Policy::default()));
        let (_, policy) = watch::channel(Arc::new(PolicyConfig::new(Name::root())));
        let (none, outside) = (Arc::new(NoNames), Arc::new(NoBypass));
        let names = Server::start(vec![], policy, none, Arc::new(NoTranslation), outside, Limits::default()).unwrap();
        let session = manager.session().await;
        let vnat = Vnat::new("a cluster", RoutingPolicy::VIRTUAL4, RoutingPolicy::VIRTUAL6);
        let carrying = Carrying {
            lanes: Lanes::keep(manager.lane().await, Arc::new(manager.clone())),
            session: session.id.clone(),
            addresses: Addresses::new(vnat, None, decisions),
            asker: names.asker(None),
            table: FlowTable::default(),
            counters: Arc::default(),
        };
        (carrying, session, decided)
    }

    async fn dial(carrying: &Carrying, port: u16) -> Result<SocketAddr, DialFailure> {
        let open = |lane: Lane, target: SocketAddr, session: String| async move {
            lane.connect(&target.into(), &session).await
        };
        carrying.open(target(port), open).await.map(|(_, target)| target)
    }

    #[tokio::test]
    async fn a_dial_outlasts_its_lane() {
        let manager = FakeManager::new();
        let (carrying, _session, _decided) = carrying(&manager).await;
        manager.answer_dials(false);
        let dialling = tokio::spawn(async move { dial(&carrying, 80).await });
        manager.dialled(1).await;
        manager.lose_carriers();
        manager.dialled(2).await;
        manager.answer_dials(true);
        assert_eq!(dialling.await.unwrap(), Ok(target(80)));
    }

    #[tokio::test]
    async fn a_dial_waits_for_the_session_that_the_manager_knows() {
        let manager = FakeManager::new();
        let (carrying, session, _decided) = carrying(&manager).await;
        manager.answer_arrivals(false);
        manager.restart();
        let early = timeout(Duration::from_millis(50), dial(&carrying, 80)).await;
        assert!(early.is_err(), "failed at once: {early:?}");
        let (dialled, ()) = tokio::join!(dial(&carrying, 80), async { manager.answer_arrivals(true) });
        assert_eq!(dialled, Ok(target(80)));
        assert_eq!(*session.id.borrow(), "session 2");
    }

    #[tokio::test]
    async fn what_the_cluster_says_is_said_at_once() {
        let manager = FakeManager::new();
        let (carrying, _session, _decided) = carrying(&manager).await;
        assert_eq!(dial(&carrying, CLOSED).await, Err(DialFailure::Refused));
        assert_eq!(dial(&carrying, 80).await, Ok(target(80)));
    }

    #[tokio::test]
    async fn what_is_carried_hears_when_it_comes_to_be_denied() {
        let (carrying, _session, decisions) = carrying(&FakeManager::new()).await;
        let mut denied = std::pin::pin!(carrying.addresses.denied(target(53)));
        let rule = |text: &str| Policy::new(vec![text.parse().unwrap()], DenyWith::Access, &Default::default());
        for other in [Policy::default(), rule("port:54"), rule("10.97.0.0/16")] {
            decisions.send_replace(decided(other));
            assert!(timeout(Duration::from_millis(5), &mut denied).await.is_err());
        }
        decisions.send_replace(decided(rule("10.96.0.0/16")));
        assert_eq!(timeout(Duration::from_secs(5), denied).await, Ok(DialFailure::Prohibited));
        // What was decided before anybody asked counts as well.
        let denied = carrying.addresses.denied(target(80));
        assert_eq!(timeout(Duration::from_secs(5), denied).await, Ok(DialFailure::Prohibited));
    }

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
