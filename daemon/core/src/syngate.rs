//! What becomes of the first packet of a connection: one machine for every road.
//!
//! The kernel listener on Linux and the netstack on the floor both park a SYN, ask the session to dial, and then release
//! the packet, answer it with an error or stay silent. This machine holds the states and the deadlines of that; it sends
//! nothing and reads no clock. All times are durations since one moment of the caller's choice.
//!
//! An attempt is known by its addresses *and* its initial sequence number: a retransmitted SYN repeats the number, a new
//! `connect()` from the same port has another.

mod key;
#[cfg(test)]
mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub use key::{Attempt, FlowKey, Proto};

use crate::dial::DialFailure;

/// Bounds and periods.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most attempts that are held or released at one time. Further SYNs are [`SynAction::Full`].
    pub open: usize,
    /// Most refusals that are remembered; the oldest is forgotten first.
    pub remembered: usize,
    /// After this time without a verdict the application must have given up. Linux: 127 s with `tcp_syn_retries` 6.
    pub undecided: Duration,
    /// How long a released attempt may take until it is accepted.
    pub accept: Duration,
    /// How often a released SYN is sent again until it is accepted.
    pub resend: Duration,
    /// How long a refusal is remembered, to repeat the answer when it was missed. Silence is remembered for `undecided`
    /// since the first SYN.
    pub refused: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open: 16_384,
            remembered: 16_384,
            undecided: Duration::from_secs(130),
            accept: Duration::from_secs(3),
            resend: Duration::from_millis(500),
            refused: Duration::from_secs(5),
        }
    }
}

/// What to do with a SYN that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynAction {
    /// A new attempt: hold the SYN and ask for a verdict. An older attempt on the same addresses is over; its verdict
    /// will be [`Answer::Stale`].
    Announce,
    /// A repeated SYN of an attempt that waits for its verdict: drop it.
    Ignore,
    /// The attempt was released already: let the SYN through.
    Pass,
    /// The attempt was refused already: give the same answer again.
    Repeat(DialFailure),
    /// Too many attempts are open: drop the SYN and forget it, so that the next retransmission is a new try.
    Full,
}

/// What the session decided about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The cluster's side is connected.
    Release,
    /// It cannot be.
    Refuse(DialFailure),
}

/// What to do after a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Let the held SYN through and wait for [`SynGate::handle_accepted`].
    Send,
    /// Make the application's `connect()` fail like this. [`DialFailure::TimedOut`]: say nothing.
    Refuse(DialFailure),
    /// Nobody waits for this attempt any more.
    Stale,
}

/// What ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Released but not accepted yet: send the SYN again.
    Resend(Attempt),
    /// Released and never accepted: the application is gone. The attempt is forgotten.
    Unaccepted(Attempt),
    /// Never decided, and the application has given up by now. The attempt is forgotten.
    Undecided(Attempt),
    /// A refusal needs no more remembering.
    Forgotten(Attempt),
}

/// How often things happened since the gate was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// New attempts.
    pub announced: u64,
    /// SYNs of attempts that were known already.
    pub repeated: u64,
    /// Attempts whose addresses were taken over by a newer one before they ended.
    pub superseded: u64,
    /// SYNs that found the gate full.
    pub full: u64,
    /// Verdicts that let a connection through.
    pub released: u64,
    /// Verdicts that did not.
    pub refused: u64,
    /// Verdicts about attempts that were over.
    pub stale: u64,
    /// Released attempts that became connections.
    pub accepted: u64,
    /// Connections nobody had released.
    pub unknown: u64,
    /// Released attempts that never became connections.
    pub unaccepted: u64,
    /// Attempts that were never decided.
    pub undecided: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Held,
    Released { until: Duration },
    Decided(DialFailure),
}

#[derive(Debug)]
struct Entry {
    isn: u32,
    first: Duration,
    /// Where the entry stands in `open` or `decided`.
    deadline: Duration,
    state: State,
}

/// The machine. See the module's description.
#[derive(Debug)]
pub struct SynGate {
    limits: Limits,
    entries: BTreeMap<FlowKey, Entry>,
    /// Held and released attempts by deadline.
    open: BTreeSet<(Duration, FlowKey)>,
    /// Refused ones by deadline.
    decided: BTreeSet<(Duration, FlowKey)>,
    counters: Counters,
}

impl SynGate {
    /// An empty gate.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            open: BTreeSet::new(),
            decided: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    /// A SYN arrived. After [`SynAction::Announce`] look at [`poll_timeout`](Self::poll_timeout) again.
    pub fn handle_syn(&mut self, now: Duration, attempt: Attempt) -> SynAction {
        match self.entries.get(&attempt.key) {
            Some(entry) if entry.isn == attempt.isn => {
                self.counters.repeated += 1;
                return match entry.state {
                    State::Held => SynAction::Ignore,
                    State::Released { .. } => SynAction::Pass,
                    State::Decided(why) => SynAction::Repeat(why),
                };
            }
            Some(entry) => {
                if !matches!(entry.state, State::Decided(_)) {
                    self.counters.superseded += 1;
                }
                self.remove(&attempt.key);
            }
            None => {}
        }
        if self.open.len() >= self.limits.open {
            self.counters.full += 1;
            return SynAction::Full;
        }
        self.counters.announced += 1;
        let deadline = now + self.limits.undecided;
        self.insert(attempt.key, Entry { isn: attempt.isn, first: now, deadline, state: State::Held });
        SynAction::Announce
    }

    /// The session decided. Look at [`poll_timeout`](Self::poll_timeout) again unless the answer is [`Answer::Stale`].
    pub fn handle_verdict(&mut self, now: Duration, attempt: Attempt, verdict: Verdict) -> Answer {
        let waiting = |e: &&Entry| e.isn == attempt.isn && matches!(e.state, State::Held);
        let Some(first) = self.entries.get(&attempt.key).filter(waiting).map(|e| e.first) else {
            self.counters.stale += 1;
            return Answer::Stale;
        };
        self.remove(&attempt.key);
        let (deadline, state, answer) = match verdict {
            Verdict::Release => {
                self.counters.released += 1;
                let until = now + self.limits.accept;
                ((now + self.limits.resend).min(until), State::Released { until }, Answer::Send)
            }
            Verdict::Refuse(why) => {
                self.counters.refused += 1;
                let mut deadline = now + self.limits.refused;
                if why == DialFailure::TimedOut {
                    deadline = deadline.max(first + self.limits.undecided);
                }
                (deadline, State::Decided(why), Answer::Refuse(why))
            }
        };
        self.insert(attempt.key, Entry { isn: attempt.isn, first, deadline, state });
        if self.decided.len() > self.limits.remembered
            && let Some(&(_, oldest)) = self.decided.first()
        {
            self.remove(&oldest);
        }
        answer
    }

    /// A connection was established on these addresses. `None`: nobody released it, close it. Otherwise the attempt has
    /// ended well and is forgotten.
    pub fn handle_accepted(&mut self, key: FlowKey) -> Option<Attempt> {
        let released = |e: &&Entry| matches!(e.state, State::Released { .. });
        let Some(isn) = self.entries.get(&key).filter(released).map(|e| e.isn) else {
            self.counters.unknown += 1;
            return None;
        };
        self.remove(&key);
        self.counters.accepted += 1;
        Some(Attempt { key, isn })
    }

    /// The next thing that ran out by `now`. Call it again until it returns `None`, and then when the time of
    /// [`poll_timeout`](Self::poll_timeout) has come.
    pub fn poll_expired(&mut self, now: Duration) -> Option<Expired> {
        let due = |set: &BTreeSet<(Duration, FlowKey)>| set.first().copied().filter(|(at, _)| *at <= now);
        let (_, key) = due(&self.open).or_else(|| due(&self.decided))?;
        let mut entry = self.remove(&key)?;
        let attempt = Attempt { key, isn: entry.isn };
        Some(match entry.state {
            State::Held => {
                self.counters.undecided += 1;
                Expired::Undecided(attempt)
            }
            State::Released { until } if now < until => {
                entry.deadline = (now + self.limits.resend).min(until);
                self.insert(key, entry);
                Expired::Resend(attempt)
            }
            State::Released { .. } => {
                self.counters.unaccepted += 1;
                Expired::Unaccepted(attempt)
            }
            State::Decided(_) => Expired::Forgotten(attempt),
        })
    }

    /// When to call [`poll_expired`](Self::poll_expired) next; `None` while nothing is known. Any `handle_` call may
    /// move it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let first = |set: &BTreeSet<(Duration, FlowKey)>| set.first().map(|(at, _)| *at);
        first(&self.open).into_iter().chain(first(&self.decided)).min()
    }

    /// Attempts that are held or released.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Refusals that are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.decided.len()
    }

    /// How often things happened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn index(&mut self, state: &State) -> &mut BTreeSet<(Duration, FlowKey)> {
        match state {
            State::Decided(_) => &mut self.decided,
            State::Held | State::Released { .. } => &mut self.open,
        }
    }

    fn insert(&mut self, key: FlowKey, entry: Entry) {
        self.index(&entry.state).insert((entry.deadline, key));
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &FlowKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.index(&entry.state).remove(&(entry.deadline, *key));
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(port: u16, isn: u32) -> Attempt {
        let key = FlowKey::new(Proto::Tcp, ([198, 18, 0, 1], port).into(), ([10, 96, 0, 1], 80).into());
        Attempt { key, isn }
    }

    fn gate() -> SynGate {
        SynGate::new(Limits { open: 2, remembered: 2, ..Limits::default() })
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn announces_once_and_releases() {
        let (mut g, a) = (gate(), attempt(1, 7));
        assert_eq!(g.handle_syn(s(0), a), SynAction::Announce);
        assert_eq!(g.handle_syn(s(1), a), SynAction::Ignore);
        assert_eq!(g.handle_accepted(a.key), None);
        assert_eq!(g.handle_verdict(s(2), a, Verdict::Release), Answer::Send);
        assert_eq!(g.handle_syn(s(2), a), SynAction::Pass);
        assert_eq!(g.handle_verdict(s(2), a, Verdict::Release), Answer::Stale);
        assert_eq!(g.handle_accepted(a.key), Some(a));
        assert_eq!(g.handle_accepted(a.key), None);
        assert_eq!((g.poll_timeout(), g.open()), (None, 0));
    }

    #[test]
    fn a_released_syn_is_sent_again_until_the_application_is_given_up() {
        let (mut g, a) = (gate(), attempt(1, 7));
        g.handle_syn(s(0), a);
        g.handle_verdict(s(0), a, Verdict::Release);
        let mut resent = 0;
        while let Some(at) = g.poll_timeout() {
            match g.poll_expired(at) {
                Some(Expired::Resend(b)) if b == a => resent += 1,
                other => assert_eq!((at, other), (s(3), Some(Expired::Unaccepted(a)))),
            }
        }
        assert_eq!(resent, 5);
    }

    #[test]
    fn a_refusal_is_repeated_to_the_same_attempt_only() {
        let (mut g, a) = (gate(), attempt(1, 7));
        g.handle_syn(s(0), a);
        let refuse = Verdict::Refuse(DialFailure::Refused);
        assert_eq!(g.handle_verdict(s(0), a, refuse), Answer::Refuse(DialFailure::Refused));
        assert_eq!(g.handle_syn(s(1), a), SynAction::Repeat(DialFailure::Refused));
        assert_eq!(g.handle_syn(s(1), attempt(1, 8)), SynAction::Announce);
        assert_eq!(g.counters().superseded, 0);
    }

    #[test]
    fn silence_outlives_the_retransmissions() {
        let (mut g, a) = (gate(), attempt(1, 7));
        g.handle_syn(s(0), a);
        g.handle_verdict(s(30), a, Verdict::Refuse(DialFailure::TimedOut));
        assert_eq!(g.poll_expired(s(129)), None);
        assert_eq!(g.handle_syn(s(129), a), SynAction::Repeat(DialFailure::TimedOut));
        assert_eq!(g.poll_expired(s(130)), Some(Expired::Forgotten(a)));
        assert_eq!(g.poll_timeout(), None);
    }

    #[test]
    fn a_newer_attempt_takes_the_addresses_over() {
        let (mut g, old, new) = (gate(), attempt(1, 7), attempt(1, 8));
        g.handle_syn(s(0), old);
        assert_eq!(g.handle_syn(s(1), new), SynAction::Announce);
        assert_eq!(g.handle_verdict(s(1), old, Verdict::Release), Answer::Stale);
        assert_eq!(g.handle_verdict(s(1), new, Verdict::Release), Answer::Send);
        assert_eq!((g.open(), g.counters().superseded), (1, 1));
    }

    #[test]
    fn undecided_attempts_are_collected_and_bounded() {
        let mut g = gate();
        assert_eq!(g.handle_syn(s(0), attempt(1, 7)), SynAction::Announce);
        assert_eq!(g.handle_syn(s(1), attempt(2, 7)), SynAction::Announce);
        assert_eq!(g.handle_syn(s(2), attempt(3, 7)), SynAction::Full);
        assert_eq!(g.poll_timeout(), Some(s(130)));
        assert_eq!(g.poll_expired(s(130)), Some(Expired::Undecided(attempt(1, 7))));
        assert_eq!(g.poll_expired(s(130)), None);
        assert_eq!(g.handle_syn(s(130), attempt(3, 7)), SynAction::Announce);
    }

    #[test]
    fn the_oldest_refusal_is_forgotten_first() {
        let mut g = gate();
        for (at, port) in [(0, 1), (1, 2), (2, 3)] {
            g.handle_syn(s(at), attempt(port, 7));
            g.handle_verdict(s(at), attempt(port, 7), Verdict::Refuse(DialFailure::Tunnel));
        }
        assert_eq!(g.remembered(), 2);
        assert_eq!(g.handle_syn(s(3), attempt(1, 7)), SynAction::Announce);
        assert_eq!(g.handle_syn(s(3), attempt(3, 7)), SynAction::Repeat(DialFailure::Tunnel));
    }
}
