//! A manager in this process, for tests: its carriers are pipes. It can be restarted, hold dials and arrivals back, and refuse
//! to take laptops in.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use futures::{Stream, StreamExt as _};
use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tpx_api::{
    Facts,
    proto::{
        self,
        manager_client::ManagerClient,
        manager_server::{Manager, ManagerServer},
    },
};
use tpx_core::dial::DialFailure;
use tpx_link::{
    Settings,
    carrier::{Carrier, CarrierError, Connector},
    lane::{Lane, control},
    proxy_status::Refusal,
    server::{Connect, Handler, Udp, serve},
};

use super::session::{Open, Session, Visitor};

/// Where nobody listens, as this manager has it.
pub(super) const CLOSED: u16 = 9;

/// Clones are the same manager.
#[derive(Clone)]
pub(super) struct FakeManager(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Whether dials are answered.
    dials: watch::Sender<bool>,
    /// Dials so far.
    dialled: watch::Sender<usize>,
    /// Whether arrivals are answered.
    arrivals: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// The one session that it knows.
    session: Option<String>,
    arrived: usize,
    refusal: Option<String>,
    carriers: Vec<AbortHandle>,
}

impl FakeManager {
    pub(super) fn new() -> Self {
        let [dials, arrivals] = [(); 2].map(|()| watch::channel(true).0);
        Self(Arc::new(Inner { state: Mutex::default(), dials, dialled: watch::channel(0).0, arrivals }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// A lane to it.
    pub(super) async fn lane(&self) -> Lane {
        Lane::open(self.connect().await.unwrap(), &Settings::default()).await.unwrap()
    }

    /// A laptop's stay with it.
    pub(super) async fn session(&self) -> Session {
        let manager = ManagerClient::new(control(self.connect().await.unwrap(), &Settings::default()).await.unwrap());
        let visitor = Visitor { user: String::new(), namespace: "default".into(), addresses_of: Vec::new() };
        let open = Open::new(manager, None, &visitor).await.unwrap();
        Session::keep(open, visitor, Arc::new(self.clone()))
    }

    /// All carriers break; it remembers the session.
    pub(super) fn lose_carriers(&self) {
        self.state().carriers.drain(..).for_each(|carrier| carrier.abort());
    }

    /// All carriers break, and the session is forgotten.
    pub(super) fn restart(&self) {
        self.state().session = None;
        self.lose_carriers();
    }

    /// From now on dials are answered, or not.
    pub(super) fn answer_dials(&self, answer: bool) {
        self.0.dials.send_replace(answer);
    }

    /// Waits for the dial of this number.
    pub(super) async fn dialled(&self, number: usize) {
        self.0.dialled.subscribe().wait_for(|dialled| *dialled >= number).await.unwrap();
    }

    /// From now on arrivals are answered, or not.
    pub(super) fn answer_arrivals(&self, answer: bool) {
        self.0.arrivals.send_replace(answer);
    }

    /// From now on nobody is taken in, for this reason.
    pub(super) fn refuse(&self, why: Option<&str>) {
        self.state().refusal = why.map(str::to_owned);
    }

    fn knows(&self, session: &str) -> bool {
        self.state().session.as_deref() == Some(session)
    }
}

#[async_trait]
impl Connector for FakeManager {
    async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let manager = self.clone();
        let served = tokio::spawn(async move {
            let (handler, service) = (Arc::new(manager.clone()), ManagerServer::new(manager));
            serve(theirs, &Settings::default(), handler, service, CancellationToken::new()).await;
        });
        self.state().carriers.push(served.abort_handle());
        Ok(Box::new(ours))
    }

    fn describe(&self) -> String {
        "a pipe".into()
    }
}

#[async_trait]
impl Handler for FakeManager {
    async fn handle(&self, request: Connect) {
        self.0.dialled.send_modify(|dialled| *dialled += 1);
        let mut dials = self.0.dials.subscribe();
        if dials.wait_for(|answer| *answer).await.is_err() {
            return;
        }
        if !self.knows(request.session()) {
            return request.refuse(Refusal::Session);
        }
        if request.target().port() == CLOSED {
            return request.refuse(Refusal::Dial(DialFailure::Refused));
        }
        let _stream = request.accept();
        std::future::pending().await
    }

    /// Hears everything and says nothing. Pings are refused: nothing of this manager's answers them.
    async fn handle_udp(&self, request: Connect<Udp>) {
        let _association = request.accept();
        std::future::pending().await
    }
}

#[async_trait]
impl Manager for FakeManager {
    async fn version(&self, _: Request<proto::VersionRequest>) -> Result<Response<proto::VersionReply>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn arrive(&self, _: Request<proto::ArriveRequest>) -> Result<Response<proto::ArriveReply>, Status> {
        let mut arrivals = self.0.arrivals.subscribe();
        arrivals.wait_for(|answer| *answer).await.map_err(|e| Status::internal(e.to_string()))?;
        let mut state = self.state();
        if let Some(why) = &state.refusal {
            return Err(Status::failed_precondition(why));
        }
        state.arrived += 1;
        let session_id = format!("session {}", state.arrived);
        state.session = Some(session_id.clone());
        Ok(Response::new(proto::ArriveReply { session_id, lease_seconds: 30 }))
    }

    async fn remain(&self, request: Request<proto::RemainRequest>) -> Result<Response<proto::RemainReply>, Status> {
        match self.knows(&request.into_inner().session_id) {
            true => Ok(Response::new(proto::RemainReply {})),
            false => Err(Status::not_found("the session is over")),
        }
    }

    async fn depart(&self, _: Request<proto::DepartRequest>) -> Result<Response<proto::DepartReply>, Status> {
        Ok(Response::new(proto::DepartReply {}))
    }

    type WatchFactsStream = Pin<Box<dyn Stream<Item = Result<proto::Facts, Status>> + Send>>;

    async fn watch_facts(
        &self,
        _: Request<proto::WatchFactsRequest>,
    ) -> Result<Response<Self::WatchFactsStream>, Status> {
        let facts = proto::Facts::from(&Facts { cluster_domain: "cluster.local".into(), ..Facts::default() });
        let first = futures::stream::once(std::future::ready(Ok(facts)));
        Ok(Response::new(Box::pin(first.chain(futures::stream::pending()))))
    }

    /// Gives the question back.
    async fn resolve(&self, request: Request<proto::ResolveRequest>) -> Result<Response<proto::ResolveReply>, Status> {
        let request = request.into_inner();
        match self.knows(&request.session_id) {
            true if request.query.is_empty() => Err(Status::unavailable("the cluster's name server does not answer")),
            true => Ok(Response::new(proto::ResolveReply { answer: request.query })),
            false => Err(Status::not_found("the session is over")),
        }
    }
}

/// An address in the cluster.
pub(super) fn target(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 7], port))
}
