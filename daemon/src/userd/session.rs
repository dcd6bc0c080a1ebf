//! This laptop's stay with the manager: arrives, renews the lease, follows the cluster's facts. A lost control lane is
//! made anew under the same session; a session that the manager has forgotten is replaced by another.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tonic::{Code, Status, Streaming};
use tpx_api::{
    Facts, VERSION,
    proto::{self, manager_client::ManagerClient},
};
use tpx_link::{
    Settings,
    carrier::Connector,
    lane::{Control, control},
};

use super::cluster::Backoff;
use crate::failure::chain;

/// Longest that a control request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// The control lane's client.
pub(crate) type Manager = ManagerClient<Control>;

/// Who arrives.
#[derive(Clone)]
pub(crate) struct Visitor {
    /// user@host, for people.
    pub user: String,
    /// The namespace of single labels.
    pub namespace: String,
    /// Namespaces whose addresses have to be known.
    pub addresses_of: Vec<String>,
}

/// What the rest of the daemon sees of the session.
pub(crate) struct Session {
    /// Its id.
    pub id: watch::Receiver<String>,
    /// What the cluster looks like.
    pub facts: watch::Receiver<Arc<Facts>>,
    /// The client to use for requests; replaced with the control lane.
    pub manager: watch::Receiver<Manager>,
    keeper: AbortHandle,
}

impl Session {
    /// Keeps `open` alive, with new control lanes by `connector`.
    pub(crate) fn keep(open: Open, visitor: Visitor, connector: Arc<dyn Connector>) -> Self {
        let (id, id_watch) = watch::channel(open.id.clone());
        let (facts, facts_watch) = watch::channel(Arc::clone(&open.facts));
        let (manager, manager_watch) = watch::channel(open.manager.clone());
        let keeper = tokio::spawn(async move {
            let mut open = open;
            loop {
                let why = stay(&mut open, &facts).await;
                tracing::warn!("the control lane was lost: {}", chain(why.as_ref()));
                open = again(&*connector, &open.id, &visitor).await;
                id.send_if_modified(|old| {
                    let changed = *old != open.id;
                    old.clone_from(&open.id);
                    changed
                });
                manager.send_replace(open.manager.clone());
                facts.send_replace(Arc::clone(&open.facts));
            }
        });
        Self { id: id_watch, facts: facts_watch, manager: manager_watch, keeper: keeper.abort_handle() }
    }

    /// Tells the manager that this was all; waits a second at most.
    pub(crate) async fn depart(&self) {
        self.keeper.abort();
        let mut manager = self.manager.borrow().clone();
        let request = proto::DepartRequest { session_id: self.id.borrow().clone() };
        let _ = tokio::time::timeout(Duration::from_secs(1), manager.depart(request)).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A session on one control lane.
pub(crate) struct Open {
    /// The control lane.
    pub manager: Manager,
    /// The session.
    pub id: String,
    lease: Duration,
    /// The first facts.
    pub facts: Arc<Facts>,
    changes: Streaming<proto::Facts>,
}

impl Open {
    /// Arrives, or stays as `known`, on a new control lane.
    ///
    /// # Errors
    /// When the manager does not answer or refuses.
    pub(crate) async fn new(mut manager: Manager, known: Option<&str>, visitor: &Visitor) -> Result<Self, Status> {
        let id = match known {
            Some(id) => match within(manager.remain(proto::RemainRequest { session_id: id.into() })).await {
                Ok(_) => Some(id.to_owned()),
                Err(status) if status.code() == Code::NotFound => None,
                Err(status) => return Err(status),
            },
            None => None,
        };
        let arrive = proto::ArriveRequest {
            version: VERSION.into(),
            user: visitor.user.clone(),
            namespace: visitor.namespace.clone(),
        };
        // A session that stays keeps its lease; ten seconds are safe for any.
        let (id, lease) = match id {
            Some(id) => (id, Duration::from_secs(10)),
            None => {
                let arrived = within(manager.arrive(arrive)).await?;
                (arrived.session_id, Duration::from_secs(arrived.lease_seconds.clamp(3, 3600).into()))
            }
        };
        let (facts, changes) = watch_facts(&mut manager, &id, visitor).await?;
        Ok(Self { manager, id, lease, facts, changes })
    }

    /// Asks for the facts once more, because `visitor` wants to know about other namespaces.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) async fn ask_again(&mut self, visitor: &Visitor) -> Result<(), Status> {
        (self.facts, self.changes) = watch_facts(&mut self.manager, &self.id, visitor).await?;
        Ok(())
    }
}

/// The facts now, and their changes.
async fn watch_facts(
    manager: &mut Manager,
    id: &str,
    visitor: &Visitor,
) -> Result<(Arc<Facts>, Streaming<proto::Facts>), Status> {
    let addresses_of = visitor.addresses_of.clone();
    let request = proto::WatchFactsRequest { session_id: id.to_owned(), addresses_of };
    let mut changes = within(manager.watch_facts(request)).await?;
    let first = tokio::time::timeout(REQUEST, changes.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the manager tells nothing about the cluster"))??
        .ok_or_else(|| Status::unavailable("the manager ended the watch"))?;
    let facts = Facts::try_from(first).map_err(|e| Status::internal(e.to_string()))?;
    if let Some(name) = visitor.addresses_of.iter().find(|name| !facts.addresses.contains_key(*name)) {
        return Err(Status::unimplemented(format!("it does not tell the addresses of namespace {name}")));
    }
    Ok((Arc::new(facts), changes))
}

/// Renews the lease and follows the facts until one of them fails.
async fn stay(open: &mut Open, facts: &watch::Sender<Arc<Facts>>) -> anyhow::Error {
    let mut renewals = JoinSet::new();
    let (mut manager, id, lease) = (open.manager.clone(), open.id.clone(), open.lease);
    renewals.spawn(async move {
        loop {
            tokio::time::sleep(lease / 3).await;
            if let Err(e) = within(manager.remain(proto::RemainRequest { session_id: id.clone() })).await {
                return e;
            }
        }
    });
    loop {
        tokio::select! {
            Some(ended) = renewals.join_next() => return match ended {
                Ok(status) => anyhow::Error::new(status).context("renew the lease"),
                Err(e) => e.into(),
            },
            change = open.changes.message() => match parse(change) {
                Ok(new) => { facts.send_replace(Arc::new(new)); }
                Err(e) => return e,
            },
        }
    }
}

fn parse(change: Result<Option<proto::Facts>, Status>) -> Result<Facts> {
    match change.context("follow the cluster's facts")? {
        Some(facts) => Facts::try_from(facts).context("the manager's facts"),
        None => bail!("the manager ended the watch"),
    }
}

/// A new control lane and the session on it, however long it takes.
async fn again(connector: &dyn Connector, id: &str, visitor: &Visitor) -> Open {
    let mut backoff = Backoff::new();
    loop {
        let attempt = async {
            let manager = ManagerClient::new(control(connector.connect().await?, &Settings::default()).await?);
            anyhow::Ok(Open::new(manager, Some(id), visitor).await?)
        };
        match attempt.await {
            Ok(open) => {
                tracing::info!("a new control lane is up");
                return open;
            }
            Err(e) => {
                let pause = backoff.next();
                tracing::warn!("no control lane yet, next try in {pause:?}: {}", chain(e.as_ref()));
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Bounds a request's time.
async fn within<T>(request: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the manager did not answer in time")),
    }
}
