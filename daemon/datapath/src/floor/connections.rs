//! All TCP connections of the floor, from the first SYN to the last acknowledgement.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tpx_core::{
    dial::DialFailure,
    syngate::{Answer, Attempt, Expired, FlowKey, Proto, SynAction, SynGate, Verdict},
};

use super::{flow::Flow, knock::HeldKnock, shared::Shared};
use crate::{
    Arrival,
    netstack::tcp::{Broken, TcpFlow},
    packet::{self, Segment, Syn, View, word},
};

/// How long the last packet of a connection is kept, to be repeated.
const LINGER: Duration = Duration::from_secs(5);
/// Most such packets.
const LINGERING: usize = 4096;
/// Pause before a flow that says "now" without doing anything is asked again.
const BREATH: Duration = Duration::from_millis(5);

/// What is known of connections.
pub(super) struct Table {
    pub(super) gate: SynGate,
    pub(super) flows: HashMap<FlowKey, Arc<Flow>>,
    farewells: HashMap<FlowKey, (Duration, Vec<u8>)>,
    /// Farewells by age.
    ages: VecDeque<(Duration, FlowKey)>,
}

impl Table {
    pub(super) fn new(gate: SynGate) -> Self {
        Self { gate, flows: HashMap::new(), farewells: HashMap::new(), ages: VecDeque::new() }
    }

    fn linger(&mut self, now: Duration, key: FlowKey, packet: Vec<u8>) {
        let until = now + LINGER;
        self.farewells.insert(key, (until, packet));
        self.ages.push_back((until, key));
        while self.ages.front().is_some_and(|(until, _)| *until <= now || self.ages.len() > LINGERING) {
            if let Some((until, key)) = self.ages.pop_front()
                && self.farewells.get(&key).is_some_and(|(at, _)| *at == until)
            {
                self.farewells.remove(&key);
            }
        }
    }
}

impl Shared {
    /// A TCP segment. The flow it belongs to is returned, if it has to be serviced.
    pub(super) fn handle_segment(
        self: &Arc<Self>,
        view: &View<'_>,
        segment: &Segment<'_>,
        announce: &mpsc::Sender<Arrival>,
    ) -> Option<Arc<Flow>> {
        let ends = ((view.source, segment.source).into(), (view.destination, segment.destination).into());
        let key = FlowKey::new(Proto::Tcp, ends.0, ends.1);
        if segment.is_syn() && !segment.is_ack() {
            if let Some(syn) = Syn::new(ends.0, ends.1, &view.packet[..view.at], view.body()) {
                self.handle_syn(syn, announce);
            }
            return None;
        }
        let Some(flow) = self.table().flows.get(&key).cloned() else {
            self.handle_stray(view, segment, &key);
            return None;
        };
        let mut state = flow.lock();
        self.scratch(|out| {
            if state.tcp.handle_packet(self.now(), view.packet, segment, out) {
                self.transmit(out, state.tcp.mss());
            }
        });
        drop(state);
        flow.touch().then_some(flow)
    }

    fn handle_syn(self: &Arc<Self>, syn: Syn, announce: &mpsc::Sender<Arrival>) {
        let attempt = syn.attempt();
        let mut table = self.table();
        let old = match table.flows.get(&attempt.key) {
            // Repeated; the flow repeats its answer by itself.
            Some(flow) if flow.isn == attempt.isn => return,
            // The application's system has forgotten the old connection: it would not use the port again otherwise.
            Some(_) => table.flows.remove(&attempt.key),
            None => None,
        };
        table.farewells.remove(&attempt.key);
        let action = table.gate.handle_syn(self.now(), attempt);
        let due = table.gate.poll_timeout();
        drop(table);
        if let Some(old) = old {
            self.with(&old, |tcp| tcp.forget(Broken::Reset));
        }
        match action {
            SynAction::Announce => {
                due.inspect(|at| self.clock.remind(*at));
                let knock = HeldKnock::new(Arc::clone(self), syn);
                // When there is no room after all, dropping the knock cleans up.
                if announce.try_send(Arrival::Connection(Box::new(knock))).is_err() {
                    tracing::warn!("a connection was dropped: too many wait");
                }
            }
            SynAction::Repeat(why) => self.refuse(&syn, why),
            SynAction::Ignore | SynAction::Pass | SynAction::Full => {}
        }
    }

    /// A segment of no connection.
    fn handle_stray(&self, view: &View<'_>, segment: &Segment<'_>, key: &FlowKey) {
        if segment.is_rst() || !view.is_unicast() {
            return;
        }
        let table = self.table();
        if let Some((_, farewell)) = table.farewells.get(key) {
            if segment.is_fin() || !segment.payload.is_empty() {
                self.emit(farewell);
            }
            return;
        }
        drop(table);
        self.emit(&packet::reset(view.packet, segment));
    }

    /// The cluster's side is connected. What comes is the flow and the end of its handshake; `None`: nobody waits for it.
    pub(super) fn release(&self, syn: &Syn) -> Option<(Arc<Flow>, oneshot::Receiver<()>)> {
        let (attempt, now) = (syn.attempt(), self.now());
        let mut table = self.table();
        if table.gate.handle_verdict(now, attempt, Verdict::Release) != Answer::Send {
            return None;
        }
        let tcp = TcpFlow::new(now, syn.bytes(), self.seed(&attempt), &self.tcp)?;
        let (opened, wait) = oneshot::channel();
        let flow = Arc::new(Flow::new(attempt.key, tcp, opened));
        table.flows.insert(attempt.key, Arc::clone(&flow));
        let due = table.gate.poll_timeout();
        drop(table);
        due.inspect(|at| self.clock.remind(*at));
        self.with(&flow, |_| ());
        Some((flow, wait))
    }

    /// The cluster's side cannot be connected, or nobody wants it any more.
    pub(super) fn decline(&self, syn: &Syn, why: DialFailure) {
        let mut table = self.table();
        let answer = table.gate.handle_verdict(self.now(), syn.attempt(), Verdict::Refuse(why));
        let due = table.gate.poll_timeout();
        drop(table);
        due.inspect(|at| self.clock.remind(*at));
        if let Answer::Refuse(why) = answer {
            self.refuse(syn, why);
        }
    }

    /// Changes a flow, sends what it then has to say, and wakes whom it concerns.
    pub(super) fn with<R>(&self, flow: &Arc<Flow>, change: impl FnOnce(&mut TcpFlow) -> R) -> R {
        let mut state = flow.lock();
        let result = change(&mut state.tcp);
        let now = self.now();
        self.scratch(|out| {
            while state.tcp.poll_transmit(now, out) {
                self.transmit(out, state.tcp.mss());
            }
        });
        let over = state.tcp.is_over();
        let due = state.tcp.poll_timeout(now).map(|at| at.max(now + BREATH));
        let arm = due.filter(|at| state.armed.is_none_or(|armed| *at < armed));
        if arm.is_some() {
            state.armed = arm;
        }
        let opened = if state.tcp.is_open() || over { state.opened.take() } else { None };
        let open = state.tcp.is_open();
        let wakers = state.wakers();
        drop(state);
        if let Some(at) = arm {
            self.clock.arm(at, flow.key);
        }
        if let Some(opened) = opened
            && open
        {
            self.table().gate.handle_accepted(flow.key);
            // Whoever released it may have lost interest: then its stream is dropped, too.
            let _ = opened.send(());
        }
        if over {
            self.retire(flow, now);
        }
        wakers.into_iter().flatten().for_each(std::task::Waker::wake);
        result
    }

    fn retire(&self, flow: &Arc<Flow>, now: Duration) {
        let mut table = self.table();
        if table.flows.get(&flow.key).is_some_and(|known| Arc::ptr_eq(known, flow)) {
            table.flows.remove(&flow.key);
            let farewell = flow.lock().tcp.farewell().map(<[u8]>::to_vec);
            if let Some(packet) = farewell {
                table.linger(now, flow.key, packet);
            }
        }
    }

    /// Does all that is due and says when to come again.
    pub(super) fn expire(&self) -> Option<tokio::time::Instant> {
        let now = self.now();
        while let Some((at, key)) = self.clock.pop(now) {
            let flow = self.table().flows.get(&key).cloned();
            if let Some(flow) = flow {
                let mut state = flow.lock();
                // Entries of an earlier flow, or later ones of this flow, mean nothing.
                let due = state.armed == Some(at);
                if due {
                    state.armed = None;
                }
                drop(state);
                if due {
                    self.with(&flow, |_| ());
                }
            }
        }
        let mut gone = Vec::new();
        let mut table = self.table();
        while let Some(expired) = table.gate.poll_expired(now) {
            match expired {
                Expired::Unaccepted(Attempt { key, isn }) => {
                    gone.extend(table.flows.get(&key).filter(|f| f.isn == isn).cloned());
                }
                // The flow repeats its SYN and ACK by itself.
                Expired::Resend(_) | Expired::Undecided(_) | Expired::Forgotten(_) => {}
            }
        }
        let gate = table.gate.poll_timeout();
        drop(table);
        for flow in gone {
            self.with(&flow, TcpFlow::abort);
        }
        self.clock.next(gate).map(|at| self.start + at)
    }

    /// Resets everything.
    pub(super) fn abort_all(&self) {
        let flows: Vec<_> = self.table().flows.values().cloned().collect();
        for flow in flows {
            self.with(&flow, TcpFlow::abort);
        }
    }

    /// An ICMP error says that packets to `key`'s source are too big for some link.
    pub(super) fn handle_path_mtu(&self, quoted: &View<'_>, mtu: u32) {
        let body = quoted.body();
        let (Some(from), Some(to)) = (word(body, 0), word(body, 2)) else {
            return;
        };
        let key = FlowKey::new(Proto::Tcp, (quoted.destination, to).into(), (quoted.source, from).into());
        let flow = self.table().flows.get(&key).cloned();
        if let Some(flow) = flow {
            flow.lock().tcp.handle_path_mtu(mtu.try_into().unwrap_or(u16::MAX));
        }
    }

    fn refuse(&self, syn: &Syn, why: DialFailure) {
        if let Some(packet) = syn.refusal(why) {
            self.emit(&packet);
        }
    }
}
