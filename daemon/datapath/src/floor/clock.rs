//! When which flow wants to be looked at.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tpx_core::syngate::FlowKey;

#[derive(Default)]
pub(super) struct Clock {
    inner: Mutex<Inner>,
    earlier: Notify,
}

#[derive(Default)]
struct Inner {
    due: BTreeSet<(Duration, FlowKey)>,
    /// What the clock's task waits for.
    armed: Option<Duration>,
}

impl Clock {
    /// Notes that `key` wants to be looked at then.
    pub(super) fn arm(&self, at: Duration, key: FlowKey) {
        let mut inner = self.lock();
        inner.due.insert((at, key));
        self.ring(&inner, at);
    }

    /// Something other than a flow is due then.
    pub(super) fn remind(&self, at: Duration) {
        self.ring(&self.lock(), at);
    }

    /// The next flow that is due.
    pub(super) fn pop(&self, now: Duration) -> Option<(Duration, FlowKey)> {
        let mut inner = self.lock();
        inner.due.first().is_some_and(|(at, _)| *at <= now).then(|| inner.due.pop_first())?
    }

    /// What to wait for, when something else is due at `other`.
    pub(super) fn next(&self, other: Option<Duration>) -> Option<Duration> {
        let mut inner = self.lock();
        inner.armed = inner.due.first().map(|(at, _)| *at).into_iter().chain(other).min();
        inner.armed
    }

    /// Ends when something is due earlier than [`next`](Self::next) said.
    pub(super) async fn earlier(&self) {
        self.earlier.notified().await;
    }

    fn ring(&self, inner: &Inner, at: Duration) {
        if inner.armed.is_none_or(|armed| at < armed) {
            self.earlier.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
