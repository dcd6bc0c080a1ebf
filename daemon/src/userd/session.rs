//! This laptop's stay with the manager: arrives, renews the lease, follows the cluster's facts. A lost control lane is
//! made anew under the same session; a session that the manager has forgotten is replaced by another.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
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

use super::cluster::{ATTEMPT, Backoff, carrier};
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
    /// Why it cannot be used now: how the control lane was lost, then why there is no other one yet.
    pub problem: watch::Receiver<Option<String>>,
    keeper: AbortHandle,
}

impl Session {
    /// Keeps `open` alive, with new control lanes by `connector`.
    pub(crate) fn keep(open: Open, visitor: Visitor, connector: Arc<dyn Connector>) -> Self {
        let (id, id_watch) = watch::channel(open.id.clone());
        let (facts, facts_watch) = watch::channel(Arc::clone(&open.facts));
        let (manager, manager_watch) = watch::channel(open.manager.clone());
        let (problem, problem_watch) = watch::channel(None);
        let keeper = tokio::spawn(async move {
            let mut open = open;
            loop {
                let why = stay(&mut open, &facts).await;
                let why = format!("the control lane was lost: {}", chain(why.as_ref()));
                tracing::warn!("{why}");
                problem.send_replace(Some(why));
                open = again(&*connector, &open.id, &visitor, &problem).await;
                id.send_if_modified(|old| {
                    let changed = *old != open.id;
                    old.clone_from(&open.id);
                    changed
                });
                manager.send_replace(open.manager.clone());
                facts.send_replace(Arc::clone(&open.facts));
                problem.send_replace(None);
            }
        });
        let keeper = keeper.abort_handle();
        Self { id: id_watch, facts: facts_watch, manager: manager_watch, problem: problem_watch, keeper }
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

/// A new control lane and the session on it, however long it takes; says in `problem` why the last attempt has failed.
async fn again(
    connector: &dyn Connector,
    id: &str,
    visitor: &Visitor,
    problem: &watch::Sender<Option<String>>,
) -> Open {
    let mut backoff = Backoff::new();
    loop {
        let attempt = async {
            let manager = ManagerClient::new(control(carrier(connector, ATTEMPT).await?, &Settings::default()).await?);
            // A status shows all of itself; its message is what people can read.
            let refused = |status: Status| anyhow!("the traffic manager refused: {}", status.message());
            Open::new(manager, Some(id), visitor).await.map_err(refused)
        };
        match attempt.await {
            Ok(open) => {
                tracing::info!("a new control lane is up");
                return open;
            }
            Err(e) => {
                let (pause, why) = (backoff.next(), chain(e.as_ref()));
                tracing::warn!("no control lane yet, next try in {pause:?}: {why}");
                problem.send_replace(Some(why));
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

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::{super::fake_manager::FakeManager, *};

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_session_that_cannot_arrive_again_says_why() {
        let manager = FakeManager::new();
        let session = manager.session().await;
        assert_eq!(*session.problem.borrow(), None);
        manager.refuse(Some("the manager is 9.0.0, this is 0.1.0"));
        manager.restart();
        let mut problem = session.problem.clone();
        let said = |why: &Option<String>| why.as_ref().is_some_and(|why| why.contains("refused"));
        let why = timeout(LONG, problem.wait_for(said)).await.unwrap().unwrap().clone();
        assert_eq!(why.as_deref(), Some("the traffic manager refused: the manager is 9.0.0, this is 0.1.0"));
        manager.refuse(None);
        timeout(LONG, problem.wait_for(Option::is_none)).await.unwrap().unwrap();
        assert_eq!(*session.id.borrow(), "session 2");
    }
}
