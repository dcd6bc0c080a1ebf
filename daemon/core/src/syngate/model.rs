//! The gate against a model that is too simple to be wrong: a list of attempts, searched from end to end.

use std::time::Duration;

use proptest::prelude::*;

use super::{Answer, Attempt, Expired, FlowKey, Limits, Proto, SynAction, SynGate, Verdict};
use crate::dial::DialFailure;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Held,
    Released { since: u64, resend: u64 },
    Decided { until: u64, why: DialFailure },
}

#[derive(Debug, Clone, Copy)]
struct Known {
    attempt: Attempt,
    first: u64,
    phase: Phase,
}

const OPEN: usize = 4;
const REMEMBERED: usize = 3;
const UNDECIDED: u64 = 50;
const ACCEPT: u64 = 10;
const RESEND: u64 = 4;
const REFUSED: u64 = 12;

#[derive(Default)]
struct Model(Vec<Known>);

impl Model {
    fn open(&self) -> usize {
        self.0.iter().filter(|k| !matches!(k.phase, Phase::Decided { .. })).count()
    }

    fn syn(&mut self, now: u64, attempt: Attempt) -> SynAction {
        if let Some(known) = self.0.iter().find(|k| k.attempt == attempt) {
            return match known.phase {
                Phase::Held => SynAction::Ignore,
                Phase::Released { .. } => SynAction::Pass,
                Phase::Decided { why, .. } => SynAction::Repeat(why),
            };
        }
        self.0.retain(|k| k.attempt.key != attempt.key);
        if self.open() == OPEN {
            return SynAction::Full;
        }
        self.0.push(Known { attempt, first: now, phase: Phase::Held });
        SynAction::Announce
    }

    fn verdict(&mut self, now: u64, attempt: Attempt, verdict: Verdict) -> Answer {
        let Some(known) = self.0.iter_mut().find(|k| k.attempt == attempt && k.phase == Phase::Held) else {
            return Answer::Stale;
        };
        match verdict {
            Verdict::Release => {
                known.phase = Phase::Released { since: now, resend: now + RESEND };
                Answer::Send
            }
            Verdict::Refuse(why) => {
                let silent = if why == DialFailure::TimedOut { known.first + UNDECIDED } else { 0 };
                known.phase = Phase::Decided { until: silent.max(now + REFUSED), why };
                let mut decided: Vec<_> = self.0.iter().filter_map(decided).collect();
                decided.sort();
                if decided.len() > REMEMBERED {
                    self.0.retain(|k| k.attempt.key != decided[0].1);
                }
                Answer::Refuse(why)
            }
        }
    }

    fn accepted(&mut self, key: FlowKey) -> Option<Attempt> {
        let released = |k: &Known| k.attempt.key == key && matches!(k.phase, Phase::Released { .. });
        let at = self.0.iter().position(released)?;
        Some(self.0.remove(at).attempt)
    }

    /// Everything due, in no order.
    fn expired(&mut self, now: u64) -> Vec<Expired> {
        let mut out = Vec::new();
        self.0.retain_mut(|k| {
            let (what, keep) = match &mut k.phase {
                Phase::Held if k.first + UNDECIDED <= now => (Expired::Undecided(k.attempt), false),
                Phase::Released { since, .. } if *since + ACCEPT <= now => (Expired::Unaccepted(k.attempt), false),
                Phase::Released { resend, .. } if *resend <= now => {
                    *resend = now + RESEND;
                    (Expired::Resend(k.attempt), true)
                }
                Phase::Decided { until, .. } if *until <= now => (Expired::Forgotten(k.attempt), false),
                _ => return true,
            };
            out.push(what);
            keep
        });
        out
    }
}

fn decided(known: &Known) -> Option<(u64, FlowKey)> {
    match known.phase {
        Phase::Decided { until, .. } => Some((until, known.attempt.key)),
        _ => None,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Syn(Attempt),
    Verdict(Attempt, Verdict),
    Accepted(FlowKey),
    Wait(u64),
}

fn key() -> impl Strategy<Value = FlowKey> {
    (1u16..7).prop_map(|p| FlowKey::new(Proto::Tcp, ([198, 18, 0, 1], p).into(), ([10, 96, 0, 1], 80).into()))
}

fn attempt() -> impl Strategy<Value = Attempt> {
    (key(), prop_oneof![4 => Just(1u32), 1 => Just(2u32)]).prop_map(|(key, isn)| Attempt { key, isn })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Release),
        Just(Verdict::Refuse(DialFailure::Refused)),
        Just(Verdict::Refuse(DialFailure::TimedOut)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => attempt().prop_map(Step::Syn),
        3 => (attempt(), verdict()).prop_map(|(a, v)| Step::Verdict(a, v)),
        2 => key().prop_map(Step::Accepted),
        3 => (1u64..20).prop_map(Step::Wait),
    ]
}

fn drain(gate: &mut SynGate, now: Duration) -> Vec<Expired> {
    std::iter::from_fn(|| gate.poll_expired(now)).collect()
}

fn sorted(mut all: Vec<Expired>) -> Vec<String> {
    let mut names: Vec<_> = all.drain(..).map(|e| format!("{e:?}")).collect();
    names.sort();
    names
}

proptest! {
    #[test]
    fn the_gate_does_what_the_model_does(steps in prop::collection::vec(step(), 0..200)) {
        let ms = Duration::from_millis;
        let mut gate = SynGate::new(Limits {
            open: OPEN,
            remembered: REMEMBERED,
            undecided: ms(UNDECIDED),
            accept: ms(ACCEPT),
            resend: ms(RESEND),
            refused: ms(REFUSED),
        });
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Syn(a) => prop_assert_eq!(gate.handle_syn(ms(now), a), model.syn(now, a)),
                Step::Verdict(a, v) => prop_assert_eq!(gate.handle_verdict(ms(now), a, v), model.verdict(now, a, v)),
                Step::Accepted(k) => prop_assert_eq!(gate.handle_accepted(k), model.accepted(k)),
                Step::Wait(more) => {
                    now += more;
                    let quiet = gate.poll_timeout().is_none_or(|at| at > ms(now));
                    let expired = drain(&mut gate, ms(now));
                    prop_assert_eq!(quiet, expired.is_empty());
                    prop_assert_eq!(sorted(expired), sorted(model.expired(now)));
                }
            }
            prop_assert_eq!(gate.open(), model.open());
            prop_assert_eq!(gate.open() + gate.remembered(), model.0.len());
            prop_assert!(gate.open() <= OPEN && gate.remembered() <= REMEMBERED);
            prop_assert_eq!(gate.poll_timeout().is_none(), model.0.is_empty());
        }
        // Left alone, the gate forgets everything in bounded time.
        for _ in 0..100 {
            let Some(at) = gate.poll_timeout() else { break };
            prop_assert!(at <= ms(now + 2 * UNDECIDED));
            drain(&mut gate, at);
        }
        prop_assert_eq!((gate.open(), gate.remembered(), gate.poll_timeout()), (0, 0, None));
    }
}
