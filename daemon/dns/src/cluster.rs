//! Asking the cluster: candidates in turn, answers kept for their TTL.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use hickory_proto::{
    ProtoError,
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
    serialize::binary::{BinDecodable, BinDecoder},
};
use hickory_server::server::Request;
use tpx_core::dns::{self, Cache, Question};

use crate::reply;

/// The payload size offered to the cluster's server; its answer comes back through the tunnel, not as a datagram.
const CLUSTER_PAYLOAD: u16 = 4096;
/// An answer is not kept longer than this, whatever it says.
const MAX_LIFE: Duration = Duration::from_secs(60);

/// The cluster's own name server, however it is reached.
#[async_trait]
pub trait ClusterResolver: Send + Sync + 'static {
    /// Asks it one DNS message and returns its answer. The answer must be whole: what is cut off (TC) must have been
    /// asked again over TCP. The server gives it a few seconds and then drops the future.
    ///
    /// # Errors
    /// There was no answer; the client is told SERVFAIL.
    async fn resolve(&self, query: &[u8]) -> Result<Vec<u8>, ResolveError>;
}

/// Why the cluster did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The tunnel or the manager is not there.
    #[error("the cluster cannot be asked: {0}")]
    Unavailable(String),
    /// It took too long.
    #[error("the cluster did not answer in time")]
    TimedOut,
}

/// What became of a question.
pub(crate) enum Lookup {
    /// A candidate exists, or the cluster refuses in words of its own (REFUSED, NOTIMP, ...).
    Exists(Answered),
    /// No candidate exists; the last one's NXDOMAIN.
    Missing(Answered),
    /// No usable answer.
    Failed(String),
}

pub(crate) struct Answered {
    pub(crate) message: Arc<Message>,
    pub(crate) asked: Name,
    pub(crate) age: Duration,
}

impl Answered {
    /// How much longer it may be used.
    pub(crate) fn life(&self) -> Duration {
        reply::life(&self.message).min(MAX_LIFE).saturating_sub(self.age)
    }
}

type Key = (dns::Name, u16, u16, bool);

pub(crate) struct Cluster {
    resolver: Arc<dyn ClusterResolver>,
    timeout: Duration,
    started: Instant,
    cache: Mutex<Cache<Key, Arc<Message>>>,
}

impl Cluster {
    pub(crate) fn new(resolver: Arc<dyn ClusterResolver>, timeout: Duration, cache_entries: usize) -> Self {
        Self { resolver, timeout, started: Instant::now(), cache: Mutex::new(Cache::new(cache_entries)) }
    }

    pub(crate) async fn look_up(&self, request: &Request, question: &Question, candidates: &[dns::Name]) -> Lookup {
        match tokio::time::timeout(self.timeout, self.in_turn(request, question, candidates)).await {
            Ok(Ok(lookup)) => lookup,
            Ok(Err(why)) => Lookup::Failed(why),
            Err(_) => Lookup::Failed(ResolveError::TimedOut.to_string()),
        }
    }

    async fn in_turn(
        &self,
        request: &Request,
        question: &Question,
        candidates: &[dns::Name],
    ) -> Result<Lookup, String> {
        let mut missing = None;
        for candidate in candidates {
            let answered = self.one(request, question, candidate).await?;
            match answered.message.metadata.response_code {
                ResponseCode::NXDomain => missing = Some(answered),
                ResponseCode::ServFail => return Err("the cluster's name server failed".to_owned()),
                _ => return Ok(Lookup::Exists(answered)),
            }
        }
        missing.map(Lookup::Missing).ok_or_else(|| "there was nothing to ask".to_owned())
    }

    async fn one(&self, request: &Request, question: &Question, candidate: &dns::Name) -> Result<Answered, String> {
        let dnssec_ok = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let asked = wire_name(candidate).map_err(|error| error.to_string())?;
        let key = (candidate.clone(), question.record_type.0, question.class, dnssec_ok);
        if let Some((message, age)) = self.cache().get(&key, self.started.elapsed()) {
            return Ok(Answered { message, asked, age });
        }
        let query = query(&asked, question, dnssec_ok, request.metadata.checking_disabled)
            .map_err(|error| format!("the question cannot be written: {error}"))?;
        let bytes = self.resolver.resolve(&query).await.map_err(|error| error.to_string())?;
        let message = Message::from_vec(&bytes).map_err(|error| format!("the cluster's answer is broken: {error}"))?;
        let fits = message.metadata.message_type == hickory_proto::op::MessageType::Response
            && message.queries.first().is_none_or(|query| query.name == asked);
        if !fits {
            return Err("the cluster answered another question".to_owned());
        }
        let message = Arc::new(message);
        let life = reply::life(&message).min(MAX_LIFE);
        self.cache().insert(key, message.clone(), life, self.started.elapsed());
        Ok(Answered { message, asked, age: Duration::ZERO })
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache<Key, Arc<Message>>> {
        // A panic inside cannot leave an entry half written that a reader would misread.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn wire_name(name: &dns::Name) -> Result<Name, hickory_proto::serialize::binary::DecodeError> {
    let wire = name.to_wire();
    Name::read(&mut BinDecoder::new(&wire))
}

pub(crate) fn query(
    name: &Name,
    question: &Question,
    dnssec_ok: bool,
    checking_disabled: bool,
) -> Result<Vec<u8>, ProtoError> {
    let mut query = Query::query(name.clone(), RecordType::from(question.record_type.0));
    query.set_query_class(DNSClass::from(question.class));
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(CLUSTER_PAYLOAD).set_version(0).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message.to_vec()
}
