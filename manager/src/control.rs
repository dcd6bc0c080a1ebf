//! The control service, as laptops call it.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, async_trait};
use tpx_api::{
    Facts, VERSION, compatible,
    proto::{self, manager_server::Manager},
};

use crate::{
    resolve::{ResolveError, Resolver},
    sessions::Sessions,
};

/// Text for people (user, namespace) is cut off here.
const MAX_TEXT: usize = 253;

/// Answers laptops.
#[derive(Debug, Clone)]
pub struct Control {
    sessions: Arc<Sessions>,
    /// `None` until the cluster was seen for the first time.
    facts: watch::Receiver<Option<Facts>>,
    resolver: Arc<Resolver>,
}

impl Control {
    /// A service over these.
    #[must_use]
    pub fn new(sessions: Arc<Sessions>, facts: watch::Receiver<Option<Facts>>, resolver: Resolver) -> Self {
        Self { sessions, facts, resolver: Arc::new(resolver) }
    }

    /// The sessions it opens.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    fn over() -> Status {
        Status::not_found("the session is over")
    }
}

#[async_trait]
impl Manager for Control {
    async fn version(&self, _: Request<proto::VersionRequest>) -> Result<Response<proto::VersionReply>, Status> {
        Ok(Response::new(proto::VersionReply { version: VERSION.to_owned() }))
    }

    async fn arrive(&self, request: Request<proto::ArriveRequest>) -> Result<Response<proto::ArriveReply>, Status> {
        let request = request.into_inner();
        if let Err(mismatch) = compatible(&request.version, VERSION) {
            return Err(Status::failed_precondition(format!("{mismatch}; {}", mismatch.next_step())));
        }
        let text = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect::<String>();
        let (user, namespace) = (text(request.user), text(request.namespace));
        tracing::info!(user, namespace, "a laptop arrived");
        let arrived = self.sessions.arrive(user, namespace);
        let session_id = arrived.map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        let lease_seconds = u32::try_from(self.sessions.lease().as_secs()).unwrap_or(u32::MAX);
        Ok(Response::new(proto::ArriveReply { session_id, lease_seconds }))
    }

    async fn remain(&self, request: Request<proto::RemainRequest>) -> Result<Response<proto::RemainReply>, Status> {
        if !self.sessions.remain(&request.into_inner().session_id) {
            return Err(Self::over());
        }
        Ok(Response::new(proto::RemainReply {}))
    }

    async fn depart(&self, request: Request<proto::DepartRequest>) -> Result<Response<proto::DepartReply>, Status> {
        if !self.sessions.depart(&request.into_inner().session_id) {
            return Err(Self::over());
        }
        Ok(Response::new(proto::DepartReply {}))
    }

    type WatchFactsStream = Pin<Box<dyn Stream<Item = Result<proto::Facts, Status>> + Send>>;

    async fn watch_facts(
        &self,
        request: Request<proto::WatchFactsRequest>,
    ) -> Result<Response<Self::WatchFactsStream>, Status> {
        let proto::WatchFactsRequest { session_id, addresses_of } = request.into_inner();
        if addresses_of.len() > Facts::MAX_ASKED {
            return Err(Status::invalid_argument(format!("addresses of more than {} namespaces", Facts::MAX_ASKED)));
        }
        let over = self.sessions.end(&session_id).ok_or_else(Self::over)?;
        let stopping = self.sessions.stopping();
        let facts = WatchStream::new(self.facts.clone());
        // Most changes are about addresses that this laptop has not asked for.
        let mut last = None;
        let facts = facts.filter_map(move |facts| {
            let new = facts.map(|facts| facts.for_laptop(&addresses_of)).filter(|new| last.as_ref() != Some(new));
            last = new.clone().or(last.take());
            let answer = new.map(|new| match new {
                Ok(facts) => Ok(proto::Facts::from(&facts)),
                Err(e) => Err(Status::resource_exhausted(e.to_string())),
            });
            std::future::ready(answer)
        });
        let end = async move {
            tokio::select! {
                () = over.cancelled_owned() => {}
                () = stopping.cancelled_owned() => {}
            }
        };
        Ok(Response::new(Box::pin(facts.take_until(Box::pin(end)))))
    }

    async fn resolve(&self, request: Request<proto::ResolveRequest>) -> Result<Response<proto::ResolveReply>, Status> {
        let request = request.into_inner();
        if self.sessions.end(&request.session_id).is_none() {
            return Err(Self::over());
        }
        match self.resolver.resolve(&request.query).await {
            Ok(answer) => Ok(Response::new(proto::ResolveReply { answer })),
            Err(error @ ResolveError::Malformed) => Err(Status::invalid_argument(error.to_string())),
            Err(error @ ResolveError::Unanswered(_)) => Err(Status::unavailable(error.to_string())),
        }
    }
}
