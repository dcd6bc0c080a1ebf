//! Keeps a lane to the manager open: when its carrier is lost, another one is made, and whoever wants to open a stream
//! waits for it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout_at},
};
use tpx_link::{Settings, carrier::Connector, lane::Lane};

use super::cluster::{ATTEMPT, Backoff, carrier};
use crate::failure::chain;

/// Longest that a new connection waits for a lost carrier to be replaced.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// The lane of this connection. Ends with its last clone.
#[derive(Clone)]
pub(crate) struct Lanes {
    current: watch::Receiver<Option<Lane>>,
    _keeper: Arc<Keeper>,
}

struct Keeper(AbortHandle);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lanes {
    /// Starts with an open lane and keeps replacing it by `connector`.
    pub(crate) fn keep(first: Lane, connector: Arc<dyn Connector>) -> Self {
        let (sender, current) = watch::channel(Some(first));
        let task = tokio::spawn(keep(sender, connector));
        Self { current, _keeper: Arc::new(Keeper(task.abort_handle())) }
    }

    /// Whether a stream could be opened now.
    pub(crate) fn is_up(&self) -> bool {
        is_open(&self.current.borrow())
    }

    /// The lane, as soon as there is one; `None` when there is none until `deadline`.
    pub(crate) async fn lane(&self, deadline: Instant) -> Option<Lane> {
        let mut current = self.current.clone();
        timeout_at(deadline, current.wait_for(is_open)).await.ok()?.ok()?.clone()
    }
}

/// A lane that is over stays here for the moment until it is replaced.
fn is_open(lane: &Option<Lane>) -> bool {
    lane.as_ref().is_some_and(|lane| !lane.is_closed())
}

async fn keep(sender: watch::Sender<Option<Lane>>, connector: Arc<dyn Connector>) {
    loop {
        let lane = sender.borrow().clone();
        if let Some(lane) = lane {
            let why = lane.closed().await;
            tracing::warn!("the carrier was lost: {why}");
            sender.send_replace(None);
        }
        let mut backoff = Backoff::new();
        loop {
            match open(&*connector).await {
                Ok(lane) => {
                    tracing::info!("a new carrier is up");
                    sender.send_replace(Some(lane));
                    break;
                }
                Err(e) => {
                    let pause = backoff.next();
                    tracing::warn!("no new carrier yet, next try in {pause:?}: {}", chain(e.as_ref()));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

async fn open(connector: &dyn Connector) -> anyhow::Result<Lane> {
    Ok(Lane::open(carrier(connector, ATTEMPT).await?, &Settings::default()).await?)
}
