//! A manager in this process, and what a laptop needs to speak to it.
#![expect(dead_code, reason = "no test uses all of it")]

use std::{net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tpx_api::{
    Facts, VERSION,
    proto::{self, manager_client::ManagerClient},
};
use tpx_link::{
    Settings,
    carrier::Connector,
    lane::{Control as ControlLane, Lane, control},
};
use tpx_manager::{control::Control, resolve::Resolver, serve, sessions::Sessions, state::idle::Limits};

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) facts: watch::Sender<Option<Facts>>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with_name_servers(Vec::new()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        Self::with(Vec::new(), limits).await
    }

    pub(crate) async fn with_name_servers(servers: Vec<SocketAddr>) -> Self {
        Self::with(servers, Limits::default()).await
    }

    async fn with(servers: Vec<SocketAddr>, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (facts, seen) = watch::channel(None);
        let (sessions, stop) = (Arc::new(Sessions::default()), CancellationToken::new());
        let service = Control::new(Arc::clone(&sessions), seen, Resolver::new(servers));
        let served = tokio::spawn(serve(listener, service, limits, stop.clone()));
        Self { address, sessions, facts, stop, served }
    }

    pub(crate) async fn client(&self) -> ManagerClient<ControlLane> {
        let carrier = self.address.connect().await.unwrap();
        ManagerClient::new(control(carrier, &Settings::default()).await.unwrap())
    }

    pub(crate) async fn lane(&self) -> Lane {
        Lane::open(self.address.connect().await.unwrap(), &Settings::default()).await.unwrap()
    }
}

pub(crate) fn arrive() -> proto::ArriveRequest {
    proto::ArriveRequest { version: VERSION.into(), user: "dev@laptop".into(), namespace: "default".into() }
}

pub(crate) async fn session(client: &mut ManagerClient<ControlLane>) -> String {
    client.arrive(arrive()).await.unwrap().into_inner().session_id
}
