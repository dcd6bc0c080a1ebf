//! Carries out what the gate decides: verdicts into the kernel's map, packets out of the raw sockets.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    time::Instant,
};
use tpx_core::{
    dial::DialFailure,
    syngate::{Answer, Attempt, Counters, Expired, FlowKey, Limits, SynAction, SynGate, Verdict},
};
use tpx_ebpf_abi::{Flow, v4_mapped};

use super::raw::Raws;
use crate::packet::Syn;

/// How long to wait for `accept()` before looking at the deadlines again.
const CATCH_UP: Duration = Duration::from_millis(50);

/// The gate and everything that its decisions touch.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    raws: Arc<Raws>,
    listeners: [Arc<TcpListener>; 2],
    /// The moment that the gate's times count from.
    start: Instant,
    /// Rings when a deadline has come that is earlier than the one waited for.
    earlier: Notify,
}

struct Inner {
    machine: SynGate,
    held: HashMap<MapData, Flow, tpx_ebpf_abi::Verdict>,
    released: BTreeMap<FlowKey, Released>,
    /// What the clock waits for.
    armed: Option<Duration>,
}

/// A SYN on its second trip.
struct Released {
    syn: Arc<Syn>,
    waiter: oneshot::Sender<TcpStream>,
}

impl Gate {
    pub(super) fn new(
        limits: Limits,
        listeners: [Arc<TcpListener>; 2],
        raws: Arc<Raws>,
        held: OwnedFd,
    ) -> io::Result<Self> {
        let map = MapData::from_fd(held).and_then(Map::from_map_data).map_err(io::Error::other)?;
        let held = map.try_into().map_err(|e: MapError| io::Error::other(e))?;
        let inner = Inner { machine: SynGate::new(limits), held, released: BTreeMap::new(), armed: None };
        Ok(Self { inner: Mutex::new(inner), raws, listeners, start: Instant::now(), earlier: Notify::new() })
    }

    /// A SYN came through the ring buffer. True: it is a new attempt, announce it.
    pub(super) fn syn(&self, syn: &Syn) -> bool {
        let mut inner = self.lock();
        let attempt = syn.attempt();
        let action = inner.machine.handle_syn(self.now(), attempt);
        match action {
            SynAction::Announce => {
                // What an older attempt on these addresses waited for will not come.
                inner.released.remove(&attempt.key);
                return true;
            }
            SynAction::Ignore => {}
            // The kernel has lost the entry of a released attempt: let this very SYN through.
            SynAction::Pass => {
                inner.let_pass(&attempt.key);
                drop(inner);
                self.send(syn);
            }
            SynAction::Repeat(why) => {
                inner.forget(&attempt.key);
                drop(inner);
                self.refuse(syn, why);
            }
            SynAction::Full => inner.forget(&attempt.key),
        }
        false
    }

    /// The cluster's side is connected. What arrives is the application's side; an error means that it is gone.
    pub(super) fn release(&self, syn: &Arc<Syn>) -> Option<oneshot::Receiver<TcpStream>> {
        let attempt = syn.attempt();
        let mut inner = self.lock();
        if inner.machine.handle_verdict(self.now(), attempt, Verdict::Release) != Answer::Send {
            return None;
        }
        inner.let_pass(&attempt.key);
        let (waiter, stream) = oneshot::channel();
        inner.released.insert(attempt.key, Released { syn: Arc::clone(syn), waiter });
        self.rearm(&inner);
        drop(inner);
        self.send(syn);
        Some(stream)
    }

    /// The cluster's side cannot be connected, or nobody wants it any more.
    pub(super) fn decline(&self, syn: &Syn, why: DialFailure) {
        let mut inner = self.lock();
        if inner.machine.handle_verdict(self.now(), syn.attempt(), Verdict::Refuse(why)) == Answer::Stale {
            return;
        }
        // Before the answer: the application may try again at once. Repeated SYNs come here and get the same answer.
        inner.forget(&syn.attempt().key);
        self.rearm(&inner);
        drop(inner);
        self.refuse(syn, why);
    }

    /// A connection was established; whoever released it takes it.
    pub(super) fn accepted(&self, key: FlowKey) -> Option<oneshot::Sender<TcpStream>> {
        let mut inner = self.lock();
        inner.machine.handle_accepted(key)?;
        inner.forget(&key);
        inner.released.remove(&key).map(|r| r.waiter)
    }

    /// Does what has become due, and says when to look again.
    pub(super) fn expire(&self) -> Option<Instant> {
        let mut again = Vec::new();
        let mut inner = self.lock();
        let now = self.now();
        if inner.machine.poll_timeout().is_some_and(|at| at <= now) && self.is_behind() {
            // Who waits to be accepted has not given up.
            inner.armed = Some(now + CATCH_UP);
            return Some(self.start + now + CATCH_UP);
        }
        while let Some(expired) = inner.machine.poll_expired(self.now()) {
            match expired {
                Expired::Resend(Attempt { key, .. }) => {
                    again.extend(inner.released.get(&key).map(|r| Arc::clone(&r.syn)));
                }
                Expired::Unaccepted(Attempt { key, .. }) | Expired::Undecided(Attempt { key, .. }) => {
                    inner.forget(&key);
                    inner.released.remove(&key);
                }
                Expired::Forgotten(_) => {}
            }
        }
        inner.armed = inner.machine.poll_timeout();
        let armed = inner.armed;
        drop(inner);
        for syn in again {
            self.send(&syn);
        }
        armed.map(|at| self.start + at)
    }

    /// Ends when [`expire`](Self::expire) has to be called earlier than it said.
    pub(super) async fn earlier(&self) {
        self.earlier.notified().await;
    }

    /// Counters, open attempts, remembered refusals.
    pub(super) fn numbers(&self) -> (Counters, usize, usize) {
        let inner = self.lock();
        (inner.machine.counters(), inner.machine.open(), inner.machine.remembered())
    }

    /// Whether connections are established that nobody has accepted yet: for want of time, or of files.
    fn is_behind(&self) -> bool {
        let mut waiting = self.listeners.each_ref().map(|l| PollFd::new(l, PollFlags::IN));
        poll(&mut waiting, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    fn rearm(&self, inner: &Inner) {
        let next = inner.machine.poll_timeout();
        if next.is_some_and(|at| inner.armed.is_none_or(|armed| at < armed)) {
            self.earlier.notify_one();
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lost packets heal: a released SYN is sent again by the clock, a refusal when the application repeats its SYN.
    fn send(&self, syn: &Syn) {
        self.raws.emit(syn.bytes(), syn.attempt().key.destination().ip());
    }

    fn refuse(&self, syn: &Syn, why: DialFailure) {
        if let Some(packet) = syn.refusal(why) {
            self.raws.emit(&packet, syn.attempt().key.source().ip());
        }
    }
}

impl Inner {
    fn let_pass(&mut self, key: &FlowKey) {
        if let Err(e) = self.held.insert(flow(key), tpx_ebpf_abi::Verdict::PASS, 0) {
            // The SYN that is sent passes by its mark; only repetitions of the application's own stay held.
            tracing::debug!("verdict for {}: {e}", key.destination());
        }
    }

    fn forget(&mut self, key: &FlowKey) {
        match self.held.remove(&flow(key)) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(e) => tracing::debug!("entry of {}: {e}", key.destination()),
        }
    }
}

/// The kernel's name for a flow.
pub(super) fn flow(key: &FlowKey) -> Flow {
    let octets = |a: SocketAddr| match a {
        SocketAddr::V4(a) => v4_mapped(a.ip().octets()),
        SocketAddr::V6(a) => a.ip().octets(),
    };
    let (source, destination) = (key.source(), key.destination());
    Flow {
        src: octets(source),
        dst: octets(destination),
        sport: source.port().to_be_bytes(),
        dport: destination.port().to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use tpx_core::syngate::Proto;

    use super::*;

    #[test]
    fn the_kernels_name_and_back() {
        for (a, b) in [("198.18.7.1:40000", "10.96.0.10:80"), ("[fd00::1]:40000", "[fd96::10]:443")] {
            let key = FlowKey::new(Proto::Tcp, a.parse().unwrap(), b.parse().unwrap());
            let f = flow(&key);
            assert_eq!(FlowKey::new(Proto::Tcp, f.source(), f.destination()), key);
        }
    }
}
