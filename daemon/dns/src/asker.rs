//! The server without sockets: for whoever has the bytes of a question already.

use std::{net::SocketAddr, sync::Arc};

use hickory_proto::op::ResponseCode;
use tokio::time::timeout;

use crate::{
    reply::{self, Transport},
    server::{Shared, Verdict},
    udp::is_success,
    upstream::Upstream,
};

/// Answers questions as the server does. Cheap to clone; works as long as the server runs.
#[derive(Debug, Clone)]
pub struct Asker {
    shared: Arc<Shared>,
    upstream: Option<Arc<Upstream>>,
}

impl Asker {
    pub(crate) fn new(shared: Arc<Shared>, upstream: Option<Arc<Upstream>>) -> Self {
        Self { shared, upstream }
    }

    /// The same for questions that were meant for `server`: what is not the cluster's goes there.
    #[must_use]
    pub fn towards(&self, server: SocketAddr) -> Self {
        let upstream = Upstream::new(server, self.shared.limits.forward_sockets);
        Self::new(Arc::clone(&self.shared), Some(Arc::new(upstream)))
    }

    /// The answer to one DNS message, or `None` where the server would say nothing. Over UDP it is at most as long as the
    /// question allows. Cancel safe.
    pub async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if transport == Transport::Udp
            && let Some(reply) = self.shared.quick(query)
        {
            return Some(reply);
        }
        let _permit = self.shared.in_flight.acquire().await.ok()?;
        let (unless_found, missing) = match self.shared.judge(query, self.upstream.as_deref(), transport).await {
            Verdict::Reply(reply) => return Some(reply),
            Verdict::Silence => return None,
            Verdict::Forward { unless_found, missing } => (unless_found, missing),
        };
        let Some(upstream) = &self.upstream else {
            let denied = unless_found.or(missing);
            return Some(denied.unwrap_or_else(|| reply::refusal_of_bytes(query, ResponseCode::Refused)));
        };
        self.shared.counters.forwarded();
        let (bypass, patience) = (&*self.shared.bypass, self.shared.limits.forward_timeout);
        let answer = match transport {
            Transport::Udp => timeout(patience, upstream.exchange(bypass, query)).await,
            Transport::Tcp => timeout(patience, upstream.exchange_over_tcp(bypass, query, patience)).await,
        };
        match answer {
            Ok(Ok(answer)) => Some(match unless_found {
                Some(failure) if !is_success(&answer) => failure,
                _ => answer,
            }),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the name server cannot be asked");
                self.shared.counters.failed();
                Some(reply::refusal_of_bytes(query, ResponseCode::ServFail))
            }
            Err(_) => {
                self.shared.counters.failed();
                None
            }
        }
    }
}
