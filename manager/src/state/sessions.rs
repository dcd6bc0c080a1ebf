//! Sessions and their leases.
//!
//! A session lives until it departs or was not renewed for [`LEASE`]. Ids are never used twice.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long a session lives without being renewed.
pub const LEASE: Duration = Duration::from_secs(60);
/// Sessions at once; a laptop that crashes and comes back in a loop must not fill the memory.
pub const MAX_SESSIONS: usize = 10_000;

/// Identifies a session; who knows it may use it, so it is random.
pub type Id = String;

/// A laptop's stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Who, for people: user@host.
    pub user: String,
    /// The namespace it is connected to.
    pub namespace: String,
    /// When it ends unless it is renewed.
    pub until: Instant,
}

/// Why a session was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are too many.
    #[error("the traffic manager serves {MAX_SESSIONS} laptops already")]
    Full,
    /// The id is in use.
    #[error("the session id is in use")]
    Taken,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    sessions: BTreeMap<Id, Session>,
}

impl Sessions {
    /// Opens a session under a fresh random `id`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn handle_arrive(&mut self, id: Id, user: String, namespace: String, now: Instant) -> Result<(), Refused> {
        if self.sessions.len() >= MAX_SESSIONS {
            return Err(Refused::Full);
        }
        if self.sessions.contains_key(&id) {
            return Err(Refused::Taken);
        }
        self.sessions.insert(id, Session { user, namespace, until: now + LEASE });
        Ok(())
    }

    /// Renews a session; false when it is unknown or over.
    pub fn handle_remain(&mut self, id: &str, now: Instant) -> bool {
        match self.sessions.get_mut(id) {
            Some(session) if session.until > now => {
                session.until = now + LEASE;
                true
            }
            _ => false,
        }
    }

    /// Ends a session; false when it is unknown.
    pub fn handle_depart(&mut self, id: &str) -> bool {
        self.sessions.remove(id).is_some()
    }

    /// The session, unless it is over.
    #[must_use]
    pub fn get(&self, id: &str, now: Instant) -> Option<&Session> {
        self.sessions.get(id).filter(|session| session.until > now)
    }

    /// Takes out what is over and says when to look again; `None`: there are no sessions.
    pub fn poll_expired(&mut self, now: Instant) -> (Vec<(Id, Session)>, Option<Instant>) {
        let over = self.sessions.extract_if(.., |_, session| session.until <= now).collect();
        (over, self.sessions.values().map(|session| session.until).min())
    }

    /// How many there are, those included that are over and not taken out yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Arrive(u8),
        Remain(u8),
        Depart(u8),
        Sweep,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..6).prop_map(Step::Arrive),
            (0_u8..6).prop_map(Step::Remain),
            (0_u8..6).prop_map(Step::Depart),
            Just(Step::Sweep),
            (0_u64..40).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// A session is there exactly while its lease lasts, whatever happens and whenever it is looked for.
        #[test]
        fn leases_are_kept(steps in proptest::collection::vec(step(), 0..80)) {
            let mut now = Instant::now();
            let mut sessions = Sessions::default();
            let mut model: BTreeMap<String, Instant> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Arrive(n) => {
                        let arrived = sessions.handle_arrive(n.to_string(), "u".into(), "n".into(), now);
                        // An id stays taken until it is swept or departs.
                        prop_assert_eq!(arrived.is_ok(), !model.contains_key(&n.to_string()));
                        model.entry(n.to_string()).or_insert(now + LEASE);
                    }
                    Step::Remain(n) => {
                        let alive = model.get(&n.to_string()).is_some_and(|until| *until > now);
                        prop_assert_eq!(sessions.handle_remain(&n.to_string(), now), alive);
                        if alive {
                            model.insert(n.to_string(), now + LEASE);
                        }
                    }
                    Step::Depart(n) => {
                        prop_assert_eq!(sessions.handle_depart(&n.to_string()), model.remove(&n.to_string()).is_some());
                    }
                    Step::Sweep => {
                        let (over, next) = sessions.poll_expired(now);
                        let expected: Vec<_> = model.extract_if(.., |_, until| *until <= now).map(|(id, _)| id).collect();
                        prop_assert_eq!(over.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), expected);
                        prop_assert_eq!(next, model.values().min().copied());
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                for n in 0..6_u8 {
                    let alive = model.get(&n.to_string()).is_some_and(|until| *until > now);
                    prop_assert_eq!(sessions.get(&n.to_string(), now).is_some(), alive);
                }
            }
        }
    }

    #[test]
    fn sessions_are_bounded() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        for n in 0..MAX_SESSIONS {
            sessions.handle_arrive(n.to_string(), String::new(), String::new(), now).unwrap();
        }
        assert_eq!(sessions.handle_arrive("x".into(), String::new(), String::new(), now), Err(Refused::Full));
    }
}
