//! The name server of one connection: the policy follows the cluster's facts, the cluster is asked through the manager,
//! and what is not the cluster's goes to the original servers by sockets that nothing steers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use socket2::Socket;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::AbortHandle,
};
use tonic::{Code, Status};
use tpx_api::{Facts, proto};
use tpx_core::{
    config::Config,
    dns::{Name, NameServer, PolicyConfig},
    vnat::Exhausted,
};
use tpx_datapath::linux::{Bypass, DnsSockets};
use tpx_dns::{Asker, BoundSockets, ClusterResolver, Limits, ResolveError, Server, ServerHandle, Translate};

use super::{
    addresses::Addresses,
    session::{Manager, Session},
    status::Dns,
};

/// Port of name servers (RFC 1035, 4.2).
const PORT: u16 = 53;

/// The user's part of the policy.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// The namespace of single labels.
    pub namespace: String,
    /// `--mapped-namespaces`; empty: all.
    pub mapped_namespaces: Vec<String>,
    /// Suffixes, mappings and limits.
    pub config: Arc<Config>,
}

impl Wanted {
    /// The policy for the cluster as it is now.
    pub(crate) fn policy(&self, facts: &Facts) -> PolicyConfig {
        // A domain that is no name leaves only what needs none.
        let mut policy = PolicyConfig::new(facts.cluster_domain.parse().unwrap_or_else(|_| Name::root()));
        policy.namespaces = facts.namespaces.iter().cloned().collect();
        policy.connected_namespace = Some(self.namespace.clone());
        policy.mapped_namespaces =
            (!self.mapped_namespaces.is_empty()).then(|| self.mapped_namespaces.iter().cloned().collect());
        policy.subnets = facts.service_subnets.iter().chain(&facts.pod_subnets).copied().collect();
        let routing = self.config.routing();
        policy.virtual_subnets = vec![routing.virtual4.into(), routing.virtual6.into()];
        self.config.rule_names(&mut policy);
        policy
    }
}

/// A running name server. Ends when dropped.
pub(crate) struct Serving {
    server: Arc<ServerHandle>,
    policy: AbortHandle,
    cluster: Arc<dyn ClusterResolver>,
}

impl Serving {
    /// Answers on `sockets` in place of `name_servers`.
    pub(crate) fn start(
        sockets: Vec<DnsSockets>,
        name_servers: &[NameServer],
        wanted: Wanted,
        session: &Session,
        bypass: Bypass,
        addresses: Addresses,
    ) -> io::Result<Self> {
        let limits = Limits { lookup_timeout: wanted.config.lookup_timeout.value.0, ..Limits::default() };
        let bound = sockets.into_iter().map(|own| bind(own, name_servers)).collect::<io::Result<Vec<_>>>()?;
        let mut facts = session.facts.clone();
        let first = wanted.policy(&facts.borrow_and_update());
        let (sender, receiver) = watch::channel(Arc::new(first));
        let follower = tokio::spawn(async move {
            while facts.changed().await.is_ok() {
                let now = wanted.policy(&facts.borrow_and_update());
                sender.send_replace(Arc::new(now));
            }
        });
        let resolver: Arc<dyn ClusterResolver> =
            Arc::new(ThroughManager { manager: session.manager.clone(), session: session.id.clone() });
        let cluster = Arc::clone(&resolver);
        let server = Server::start(bound, receiver, resolver, Arc::new(addresses), Arc::new(Outside(bypass)), limits)
            .map_err(io::Error::other)?;
        Ok(Self { server: Arc::new(server), policy: follower.abort_handle(), cluster })
    }

    /// For whoever learns of other name servers.
    pub(crate) fn stand_in(&self) -> StandIn {
        StandIn(Arc::clone(&self.server))
    }

    /// The server without sockets, for questions that arrive as flows. Only the cluster's names are asked there.
    pub(crate) fn asker(&self) -> Asker {
        self.server.asker(None)
    }

    /// The server as processes ask it that see the cluster: what is not the cluster's goes to the first name server.
    pub(crate) fn usual_asker(&self) -> Asker {
        self.server.asker(self.server.name_servers().first().copied())
    }

    /// The cluster's own name server.
    pub(crate) fn cluster(&self) -> Arc<dyn ClusterResolver> {
        Arc::clone(&self.cluster)
    }

    /// What `tpx status` shows.
    pub(crate) fn status(&self, cluster_domain: &str, unanswered: &[IpAddr], systemd_resolved: bool) -> Dns {
        let counts = self.server.counts();
        Dns {
            name_servers: self.server.name_servers().iter().map(|server| server.ip().to_string()).collect(),
            unanswered: unanswered.iter().map(IpAddr::to_string).collect(),
            systemd_resolved,
            cluster_domain: cluster_domain.into(),
            queries: counts.queries,
            cluster: counts.cluster,
            forwarded: counts.forwarded,
            failed: counts.failed,
        }
    }
}

/// Stands in for other name servers than before.
pub(crate) struct StandIn(Arc<ServerHandle>);

impl StandIn {
    /// Answers on `sockets` in place of `name_servers`, and nowhere else any more.
    pub(crate) fn serve(&self, sockets: Vec<DnsSockets>, name_servers: &[NameServer]) -> io::Result<()> {
        let bound = sockets.into_iter().map(|own| bind(own, name_servers)).collect::<io::Result<Vec<_>>>()?;
        self.0.serve(bound).map_err(io::Error::other)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.policy.abort();
    }
}

fn bind(own: DnsSockets, name_servers: &[NameServer]) -> io::Result<BoundSockets> {
    let scope = name_servers.iter().find(|server| server.address == own.name_server).and_then(|s| s.scope.as_deref());
    let mut name_server = SocketAddr::new(own.name_server, PORT);
    if let (SocketAddr::V6(v6), Some(scope)) = (&mut name_server, scope) {
        v6.set_scope_id(scope_id(scope));
    }
    let udp = UdpSocket::from_std(own.udp.into())?;
    let tcp = TcpListener::from_std(own.tcp.into())?;
    Ok(BoundSockets { name_server, udp, tcp })
}

/// The index of an IPv6 scope: a number, or a device's name. 0, which means none, when there is no such device.
fn scope_id(scope: &str) -> u32 {
    scope.parse().unwrap_or_else(|_| {
        let index = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", scope.replace('/', "")));
        index.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    })
}

/// Asks the cluster's name server through the manager.
struct ThroughManager {
    manager: watch::Receiver<Manager>,
    session: watch::Receiver<String>,
}

#[async_trait]
impl ClusterResolver for ThroughManager {
    async fn resolve(&self, query: &[u8]) -> Result<Vec<u8>, ResolveError> {
        let mut managers = self.manager.clone();
        loop {
            let mut manager = managers.borrow_and_update().clone();
            let request = proto::ResolveRequest { session_id: self.session.borrow().clone(), query: query.to_vec() };
            match manager.resolve(request).await {
                Ok(reply) => return Ok(reply.into_inner().answer),
                // Whoever asked has a limit of his own; until then the next control lane may come.
                Err(status) if is_lost(&status) && managers.changed().await.is_ok() => {}
                Err(status) if status.code() == Code::DeadlineExceeded => return Err(ResolveError::TimedOut),
                Err(status) => return Err(ResolveError::Unavailable(status.message().to_owned())),
            }
        }
    }
}

/// Whether it was the control lane that failed, or the session that is over, and not the cluster's name server: what the
/// manager itself says has no cause here.
fn is_lost(status: &Status) -> bool {
    status.code() == Code::NotFound || std::error::Error::source(status).is_some()
}

/// Takes the daemon's own questions out of what is steered.
struct Outside(Bypass);

impl tpx_dns::Bypass for Outside {
    fn exempt(&self, socket: &Socket, server: SocketAddr) -> io::Result<()> {
        self.0.exempt(socket, server)
    }
}

impl Translate for Addresses {
    fn virtual_for(&self, real: IpAddr) -> Result<IpAddr, Exhausted> {
        self.reachable(real)
    }

    fn real_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.vnat().real_for(address)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::fake_manager::FakeManager, *};

    #[tokio::test]
    async fn questions_outlast_a_restart_of_the_manager_and_hear_what_the_cluster_says() {
        let manager = FakeManager::new();
        let session = manager.session().await;
        let cluster = ThroughManager { manager: session.manager.clone(), session: session.id.clone() };
        assert_eq!(cluster.resolve(b"before").await, Ok(b"before".to_vec()));
        // The lane is lost, and when there is another one, arriving takes its time.
        manager.answer_arrivals(false);
        manager.restart();
        let early = tokio::time::timeout(Duration::from_millis(50), cluster.resolve(b"early"));
        assert!(early.await.is_err(), "failed at once");
        let (answer, ()) = tokio::join!(cluster.resolve(b"during"), async { manager.answer_arrivals(true) });
        assert_eq!(answer, Ok(b"during".to_vec()));
        let said = ResolveError::Unavailable("the cluster's name server does not answer".into());
        assert_eq!(cluster.resolve(b"").await, Err(said));
    }
}
