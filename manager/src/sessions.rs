//! Sessions, carried out: random ids, and tokens that end what belongs to a session.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::state::sessions::{Id, LEASE, Refused, Sessions as State};

/// All sessions of this manager.
#[derive(Debug)]
pub struct Sessions {
    lease: Duration,
    inner: Mutex<Inner>,
    changed: Notify,
    stopping: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// Cancelled when the session is over.
    ends: HashMap<Id, CancellationToken>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { lease: LEASE, inner: Mutex::default(), changed: Notify::new(), stopping: CancellationToken::new() }
    }
}

impl Sessions {
    /// How long a session lives without being renewed.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Opens a session and returns its id.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn arrive(&self, user: String, namespace: String) -> Result<Id, Refused> {
        let id = random_id();
        let mut inner = self.lock();
        inner.state.handle_arrive(id.clone(), user, namespace, Instant::now())?;
        inner.ends.insert(id.clone(), CancellationToken::new());
        drop(inner);
        self.changed.notify_one();
        Ok(id)
    }

    /// Renews a session; false when it is over.
    pub fn remain(&self, id: &str) -> bool {
        self.lock().state.handle_remain(id, Instant::now())
    }

    /// Ends a session with its streams; false when it was over already.
    pub fn depart(&self, id: &str) -> bool {
        let mut inner = self.lock();
        if let Some(end) = inner.ends.remove(id) {
            end.cancel();
        }
        inner.state.handle_depart(id)
    }

    /// Cancelled when the session is over; `None` when it is over now.
    #[must_use]
    pub fn end(&self, id: &str) -> Option<CancellationToken> {
        let inner = self.lock();
        inner.state.get(id, Instant::now())?;
        inner.ends.get(id).cloned()
    }

    /// Ends sessions that are not renewed, for ever.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            let next = self.expire(Instant::now());
            match next {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Ends what is over at `now`; returns when to look again.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        let mut inner = self.lock();
        let (over, next) = inner.state.poll_expired(now);
        for (id, session) in over {
            tracing::info!(user = session.user, "a session was not renewed");
            if let Some(end) = inner.ends.remove(&id) {
                end.cancel();
            }
        }
        next
    }

    /// Ends what would never end by itself, so that laptops reconnect elsewhere.
    pub(crate) fn stop_watches(&self) {
        self.stopping.cancel();
    }

    /// Cancelled when the manager stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock; if one did, the maps are still sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 128 bits from the system's random numbers.
fn random_id() -> Id {
    let mut bytes = [0; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).expect("the system has random numbers");
    format!("{:032x}", u128::from_be_bytes(bytes))
}
