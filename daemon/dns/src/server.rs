//! The server: what is shared by all sockets, and the road of one message.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record},
};
use hickory_server::{net::xfer::Protocol, server::Request};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tpx_core::dns::{
    self, Decision, Header, Opcode, PolicyConfig, Question, QuestionError, RecordType, decide, reverse_address,
    reverse_name,
};

use crate::{
    asker::Asker,
    cluster::{self, Answered, Cluster, ClusterResolver, Lookup},
    quick::{Origin, Quick},
    reply::{self, Found, Transport},
    tcp,
    translate::{Translate, Translation},
    udp,
    upstream::{Bypass, Upstream},
};

/// Lifetime, in seconds, of an address that the configuration gives a name: it may change at any time.
const MAPPED_TTL: u32 = 10;

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
    pub lookup_timeout: Duration,
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
            lookup_timeout: Duration::from_secs(4),
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
    /// The sockets are bound to the address they forward to, and nothing leads what is forwarded past them: every query
    /// would come back for ever.
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
    /// `policy` is read anew for every message, and `translate` asked for every address that is given out. `sockets` may
    /// be none at all: then only [`ServerHandle::asker`] answers.
    ///
    /// # Errors
    /// A socket would forward to itself, or is not usable.
    pub fn start(
        sockets: Vec<BoundSockets>,
        policy: watch::Receiver<Arc<PolicyConfig>>,
        resolver: Arc<dyn ClusterResolver>,
        translate: Arc<dyn Translate>,
        bypass: Arc<dyn Bypass>,
        limits: Limits,
    ) -> Result<ServerHandle, StartError> {
        let shared = Arc::new(Shared {
            cluster: Cluster::new(resolver, limits.lookup_timeout, limits.cache_entries),
            policy,
            translate,
            quick: Quick::new(limits.cache_entries),
            started: Instant::now(),
            bypass,
            in_flight: Arc::new(Semaphore::new(limits.in_flight)),
            limits,
            counters: Counters::default(),
        });
        let handle = ServerHandle { shared, serving: Mutex::default() };
        handle.serve(sockets)?;
        Ok(handle)
    }
}

/// A running server. Dropping it closes its sockets and ends all work at once.
#[derive(Debug)]
pub struct ServerHandle {
    shared: Arc<Shared>,
    /// What serves in place of which server.
    serving: Mutex<Vec<(SocketAddr, JoinSet<()>)>>,
}

impl ServerHandle {
    /// Serves these sockets and no others from now on. Those of a server that is served already are closed: the ones that
    /// are there go on, with what they are doing.
    ///
    /// # Errors
    /// As [`Server::start`]; then nothing has changed.
    pub fn serve(&self, sockets: Vec<BoundSockets>) -> Result<(), StartError> {
        for bound in &sockets {
            for address in [bound.udp.local_addr()?, bound.tcp.local_addr()?] {
                if address == bound.name_server && !self.shared.bypass.escapes() {
                    return Err(StartError::Loop(address));
                }
            }
        }
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before: BTreeMap<_, _> = serving.drain(..).collect();
        for bound in sockets {
            let tasks = before.remove(&bound.name_server).unwrap_or_else(|| {
                let upstream = Arc::new(Upstream::new(bound.name_server, self.shared.limits.forward_sockets));
                let mut tasks = JoinSet::new();
                tasks.spawn(udp::serve(self.shared.clone(), bound.udp, upstream.clone()));
                tasks.spawn(tcp::serve(self.shared.clone(), bound.tcp, upstream));
                tasks
            });
            serving.push((bound.name_server, tasks));
        }
        Ok(())
    }

    /// The servers that are served in place of, in the order in which their sockets came.
    pub fn name_servers(&self) -> Vec<SocketAddr> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.iter().map(|(server, _)| *server).collect()
    }

    /// What has been done so far.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// The same server for questions that come without a socket. What is not the cluster's goes to `name_server`; without
    /// one it is refused, and a single label that the cluster does not have does not exist.
    pub fn asker(&self, name_server: Option<SocketAddr>) -> Asker {
        let sockets = self.shared.limits.forward_sockets;
        Asker::new(self.shared.clone(), name_server.map(|address| Arc::new(Upstream::new(address, sockets))))
    }
}

/// What every message needs.
pub(crate) struct Shared {
    cluster: Cluster,
    policy: watch::Receiver<Arc<PolicyConfig>>,
    translate: Arc<dyn Translate>,
    quick: Quick,
    started: Instant,
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
    /// `missing` is the cluster's own answer, for clients that have no original server.
    Forward { unless_found: Option<Vec<u8>>, missing: Option<Vec<u8>> },
    /// Say nothing: this is no query.
    Silence,
}

impl Shared {
    /// The answer to a datagram that was answered before, if it still holds.
    pub(crate) fn quick(&self, message: &[u8]) -> Option<Vec<u8>> {
        let policy = self.policy.borrow().clone();
        let reply = self.quick.reply(message, &policy, &*self.translate, self.started.elapsed())?;
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        self.counters.cluster.fetch_add(1, Ordering::Relaxed);
        Some(reply)
    }

    /// Decides about one message from a client, asking the cluster where it must, and `upstream` about mapped names.
    pub(crate) async fn judge(&self, message: &[u8], upstream: Option<&Upstream>, transport: Transport) -> Verdict {
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
        let policy = self.policy.borrow().clone();
        let reverse =
            reverse_address(&question.name).and_then(|address| Some((address, self.translate.real_for(address)?)));
        let decision = match reverse {
            Some((_, real)) => Decision::Cluster { candidates: vec![reverse_name(real)] },
            None => decide(&policy, &question),
        };
        match (&decision, header.opcode) {
            (Decision::Elsewhere, _)
            | (Decision::ClusterThenElsewhere { .. } | Decision::ElsewhereAs(_), Opcode::Other(_)) => {
                return Verdict::Forward { unless_found: None, missing: None };
            }
            (_, Opcode::Other(_)) => return self.fail(message, ResponseCode::NotImp),
            (_, Opcode::Query) => {}
        }
        self.counters.cluster.fetch_add(1, Ordering::Relaxed);
        let protocol = match transport {
            Transport::Udp => Protocol::Udp,
            Transport::Tcp => Protocol::Tcp,
        };
        // Who asks makes no difference.
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let Ok(request) = Request::from_bytes(message.to_vec(), nobody, protocol) else {
            return self.fail(message, ResponseCode::FormErr);
        };
        if request.version() > 0 {
            self.counters.failed();
            return Verdict::Reply(reply::refusal(&request, ResponseCode::BADVERS));
        }
        let (candidates, alone) = match decision {
            Decision::Cluster { candidates } => (candidates, true),
            Decision::ClusterThenElsewhere { candidates } => (candidates, false),
            Decision::Address(address) => return self.mapped(&request, &question, address, transport),
            Decision::ElsewhereAs(name) => return self.renamed(&request, &question, &name, upstream, transport).await,
            Decision::NxDomain | Decision::Elsewhere => {
                return Verdict::Reply(reply::refusal(&request, ResponseCode::NXDomain));
            }
        };
        match self.cluster.look_up(&request, &question, &candidates).await {
            Lookup::Missing(answered) if !alone => {
                Verdict::Forward { unless_found: None, missing: Some(self.answer(&request, &answered, transport).0) }
            }
            Lookup::Exists(answered) | Lookup::Missing(answered) => {
                let (reply, given) = self.answer(&request, &answered, transport);
                if let Some(given) = given.filter(|_| transport == Transport::Udp) {
                    let now = self.started.elapsed();
                    let origin = Origin { policy, age: answered.age, given, reverse };
                    self.quick.keep(message, &reply, origin, answered.life(), now);
                }
                Verdict::Reply(reply)
            }
            Lookup::Failed(why) => {
                tracing::debug!(name = %question.name, why, "cluster lookup failed");
                let failure = reply::refusal(&request, ResponseCode::ServFail);
                if alone {
                    self.counters.failed();
                    Verdict::Reply(failure)
                } else {
                    Verdict::Forward { unless_found: Some(failure), missing: None }
                }
            }
        }
    }

    /// The reply, and unless it is an error of our own, the addresses it was translated with.
    fn answer(
        &self,
        request: &Request,
        answered: &Answered,
        transport: Transport,
    ) -> (Vec<u8>, Option<Vec<(IpAddr, IpAddr)>>) {
        let found = Found { message: &answered.message, asked: &answered.asked, age: answered.age };
        let mut translation = Translation::new(&*self.translate);
        match reply::answer(request, &found, transport, &mut translation) {
            Ok(reply) => (reply, Some(translation.given)),
            Err(error) => {
                tracing::warn!(%error, "a cluster's answer cannot be given");
                self.counters.failed();
                (reply::refusal(request, ResponseCode::ServFail), None)
            }
        }
    }

    /// A name that the configuration gives an address.
    fn mapped(&self, request: &Request, question: &Question, address: IpAddr, transport: Transport) -> Verdict {
        let Ok(asked) = cluster::wire_name(&question.name) else {
            return Verdict::Reply(reply::refusal(request, ResponseCode::ServFail));
        };
        let (data, own) = match address {
            IpAddr::V4(four) => (RData::A(four.into()), RecordType::A),
            IpAddr::V6(six) => (RData::AAAA(six.into()), RecordType::AAAA),
        };
        let mut message = Message::query();
        if [own, RecordType::ANY].contains(&question.record_type) {
            message.answers.push(Record::from_rdata(asked.clone(), MAPPED_TTL, data));
        }
        let answered = Answered { message: Arc::new(message), asked, age: Duration::ZERO };
        Verdict::Reply(self.answer(request, &answered, transport).0)
    }

    /// A name that the configuration maps to one that is not the cluster's.
    async fn renamed(
        &self,
        request: &Request,
        question: &Question,
        name: &dns::Name,
        upstream: Option<&Upstream>,
        transport: Transport,
    ) -> Verdict {
        let Some(upstream) = upstream else {
            return Verdict::Reply(reply::refusal(request, ResponseCode::Refused));
        };
        self.counters.forwarded();
        let patience = self.limits.forward_timeout;
        let asking = async {
            let asked = cluster::wire_name(name).map_err(|error| error.to_string())?;
            let query = cluster::query(&asked, question, false, request.metadata.checking_disabled)
                .map_err(|error| error.to_string())?;
            let answer = upstream.whole(&*self.bypass, &query, patience).await.map_err(|error| error.to_string())?;
            let message = Message::from_vec(&answer).map_err(|error| error.to_string())?;
            Ok::<_, String>(Answered { message: Arc::new(message), asked, age: Duration::ZERO })
        };
        let answered =
            tokio::time::timeout(patience, asking).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        match answered {
            Ok(answered) => Verdict::Reply(self.answer(request, &answered, transport).0),
            Err(why) => {
                tracing::debug!(%name, why, "a mapped name cannot be asked");
                self.counters.failed();
                Verdict::Reply(reply::refusal(request, ResponseCode::ServFail))
            }
        }
    }

    /// An error of our own.
    pub(crate) fn fail(&self, message: &[u8], code: ResponseCode) -> Verdict {
        self.counters.failed();
        Verdict::Reply(reply::refusal_of_bytes(message, code))
    }
}
