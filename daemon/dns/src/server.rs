//! The server: what is shared by all sockets, and the road of one message.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use hickory_server::{net::xfer::Protocol, server::Request};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tpx_core::dns::{Decision, Header, Opcode, PolicyConfig, Question, QuestionError, decide};

use crate::{
    cluster::{Answered, Cluster, ClusterResolver, Lookup},
    reply::{self, Found, Transport},
    tcp, udp,
    upstream::Bypass,
};

/// Sockets that stand for one original name server.
#[derive(Debug)]
pub struct BoundSockets {
    /// Where that server is, port and IPv6 scope included; what is not the cluster's goes there.
    pub name_server: SocketAddr,
    /// Takes its queries over UDP.
    pub udp: UdpSocket,
    /// Takes its queries over TCP.
    pub tcp: TcpListener,
}

/// Bounds on time and number. The defaults fit a workstation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For one question to the cluster; then SERVFAIL. Less than the five seconds of a resolver library.
    pub cluster_timeout: Duration,
    /// For the original server's answer to a datagram; then silence, as that server's own.
    pub forward_timeout: Duration,
    /// A TCP connection with nothing said for so long is closed.
    pub tcp_idle: Duration,
    /// Messages worked on at once, in all; more wait in the sockets' buffers.
    pub in_flight: usize,
    /// Sockets open at once toward one original server for datagrams; more queries wait.
    pub forward_sockets: usize,
    /// TCP connections at once for one original server; more wait to be accepted.
    pub tcp_connections: usize,
    /// Cluster answers kept.
    pub cache_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cluster_timeout: Duration::from_secs(4),
            forward_timeout: Duration::from_secs(5),
            tcp_idle: Duration::from_secs(20),
            in_flight: 4096,
            forward_sockets: 192,
            tcp_connections: 128,
            cache_entries: 1024,
        }
    }
}

/// What the server has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Messages received.
    pub queries: u64,
    /// Of these, decided here: asked in the cluster or denied.
    pub cluster: u64,
    /// Handed to an original server. A single label that the cluster does not have counts here and in `cluster`.
    pub forwarded: u64,
    /// Answered with an error of our own (FORMERR, SERVFAIL, NOTIMP), or dropped.
    pub failed: u64,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sockets are bound to the address they forward to: every query would come back for ever.
    #[error("the socket is bound to the name server's own address {0}")]
    Loop(SocketAddr),
    /// A socket is not usable.
    #[error("a socket cannot be used")]
    Socket(#[from] io::Error),
}

/// The name server; see [`Server::start`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Serves all `sockets` until the handle is dropped. Must be called inside a tokio runtime.
    ///
    /// `policy` is read anew for every message.
    ///
    /// # Errors
    /// A socket would forward to itself, or is not usable.
    pub fn start(
        sockets: Vec<BoundSockets>,
        policy: watch::Receiver<Arc<PolicyConfig>>,
        resolver: Arc<dyn ClusterResolver>,
        bypass: Arc<dyn Bypass>,
        limits: Limits,
    ) -> Result<ServerHandle, StartError> {
        for bound in &sockets {
            for address in [bound.udp.local_addr()?, bound.tcp.local_addr()?] {
                if address == bound.name_server {
                    return Err(StartError::Loop(address));
                }
            }
        }
        let shared = Arc::new(Shared {
            cluster: Cluster::new(resolver, limits.cluster_timeout, limits.cache_entries),
            policy,
            bypass,
            in_flight: Arc::new(Semaphore::new(limits.in_flight)),
            limits,
            counters: Counters::default(),
        });
        let mut tasks = JoinSet::new();
        for bound in sockets {
            tasks.spawn(udp::serve(shared.clone(), bound.udp, bound.name_server));
            tasks.spawn(tcp::serve(shared.clone(), bound.tcp, bound.name_server));
        }
        Ok(ServerHandle { shared, _tasks: tasks })
    }
}

/// A running server. Dropping it closes its sockets and ends all work at once.
#[derive(Debug)]
pub struct ServerHandle {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl ServerHandle {
    /// What has been done so far.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }
}

/// What every message needs.
pub(crate) struct Shared {
    cluster: Cluster,
    policy: watch::Receiver<Arc<PolicyConfig>>,
    pub(crate) bypass: Arc<dyn Bypass>,
    pub(crate) in_flight: Arc<Semaphore>,
    pub(crate) limits: Limits,
    pub(crate) counters: Counters,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).field("counters", &self.counters).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    queries: AtomicU64,
    cluster: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    pub(crate) fn forwarded(&self) {
        self.forwarded.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        Counts {
            queries: self.queries.load(Ordering::Relaxed),
            cluster: self.cluster.load(Ordering::Relaxed),
            forwarded: self.forwarded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// What to do with a message.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Send this.
    Reply(Vec<u8>),
    /// Hand the message to the original server and its answer to the client, both as they are. `unless_found` stands
    /// in for every answer but a success: the cluster could not be asked, so nobody may say that the name is missing.
    Forward { unless_found: Option<Vec<u8>> },
    /// Say nothing: this is no query.
    Silence,
}

impl Shared {
    /// Decides about one message from a client, asking the cluster where it must.
    pub(crate) async fn judge(&self, message: &[u8], client: SocketAddr, transport: Transport) -> Verdict {
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        let Some(header) = Header::parse(message).filter(|header| !header.is_response) else {
            self.counters.failed();
            return Verdict::Silence;
        };
        let question = match Question::parse(message) {
            Ok(question) => question,
            Err(QuestionError::Count(_)) if header.opcode != Opcode::Query => {
                return self.fail(message, ResponseCode::NotImp);
            }
            Err(_) => return self.fail(message, ResponseCode::FormErr),
        };
        let decision = decide(&self.policy.borrow(), &question);
        let (candidates, alone) = match (decision, header.opcode) {
            (Decision::Elsewhere, _) | (Decision::ClusterThenElsewhere { .. }, Opcode::Other(_)) => {
                return Verdict::Forward { unless_found: None };
            }
            (Decision::Cluster { .. } | Decision::NxDomain, Opcode::Other(_)) => {
                return self.fail(message, ResponseCode::NotImp);
            }
            (Decision::NxDomain, Opcode::Query) => (Vec::new(), true),
            (Decision::Cluster { candidates }, Opcode::Query) => (candidates, true),
            (Decision::ClusterThenElsewhere { candidates }, Opcode::Query) => (candidates, false),
        };
        self.counters.cluster.fetch_add(1, Ordering::Relaxed);
        let protocol = match transport {
            Transport::Udp => Protocol::Udp,
            Transport::Tcp => Protocol::Tcp,
        };
        let Ok(request) = Request::from_bytes(message.to_vec(), client, protocol) else {
            return self.fail(message, ResponseCode::FormErr);
        };
        if request.version() > 0 {
            self.counters.failed();
            return Verdict::Reply(reply::refusal(&request, ResponseCode::BADVERS));
        }
        if candidates.is_empty() {
            return Verdict::Reply(reply::refusal(&request, ResponseCode::NXDomain));
        }
        match self.cluster.look_up(&request, &question, &candidates).await {
            Lookup::Exists(answered) => self.answer(&request, &answered, transport),
            Lookup::Missing(answered) if alone => self.answer(&request, &answered, transport),
            Lookup::Missing(_) => Verdict::Forward { unless_found: None },
            Lookup::Failed(why) => {
                tracing::debug!(name = %question.name, why, "cluster lookup failed");
                let failure = reply::refusal(&request, ResponseCode::ServFail);
                if alone {
                    self.counters.failed();
                    Verdict::Reply(failure)
                } else {
                    Verdict::Forward { unless_found: Some(failure) }
                }
            }
        }
    }

    fn answer(&self, request: &Request, answered: &Answered, transport: Transport) -> Verdict {
        let found = Found { message: &answered.message, asked: &answered.asked, age: answered.age };
        Verdict::Reply(reply::answer(request, &found, transport).unwrap_or_else(|error| {
            tracing::debug!(%error, "the cluster's answer cannot be written");
            self.counters.failed();
            reply::refusal(request, ResponseCode::ServFail)
        }))
    }

    /// An error of our own.
    pub(crate) fn fail(&self, message: &[u8], code: ResponseCode) -> Verdict {
        self.counters.failed();
        Verdict::Reply(reply::refusal_of_bytes(message, code))
    }
}
