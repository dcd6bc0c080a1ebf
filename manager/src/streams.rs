//! Streams: check the session, open a socket, carry, and end when the session does.

use std::{future::Future, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tpx_link::{
    proxy_status::Refusal,
    relay::relay,
    server::{Connect, Handler, Udp},
};

use crate::{datagrams, dial, ping, sessions::Sessions, state::idle::Limits};

/// Carries laptops' streams.
#[derive(Debug)]
pub struct Streams {
    sessions: Arc<Sessions>,
    limits: Limits,
}

impl Streams {
    /// Only for laptops with one of these sessions.
    #[must_use]
    pub fn new(sessions: Arc<Sessions>, limits: Limits) -> Self {
        Self { sessions, limits }
    }

    /// The socket that `opening` makes for `request`, unless laptop or session end before; refuses otherwise.
    async fn open<T: std::fmt::Debug + Send, S>(
        &self,
        mut request: Connect<T>,
        opening: impl Future<Output = Result<S, Refusal>>,
    ) -> Option<(Connect<T>, S, CancellationToken)> {
        let Some(over) = self.sessions.end(request.session()) else {
            request.refuse(Refusal::Session);
            return None;
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = request.cancelled() => return None,
            () = over.cancelled() => Err(Refusal::Session),
        };
        match opened {
            Ok(socket) => Some((request, socket, over)),
            Err(refusal) => {
                tracing::debug!(target = ?request.target(), ?refusal, "not connected");
                request.refuse(refusal);
                None
            }
        }
    }
}

#[async_trait]
impl Handler for Streams {
    async fn handle(&self, request: Connect) {
        let target = request.target().clone();
        let Some((request, socket, over)) = self.open(request, dial::dial(&target)).await else { return };
        let Ok(stream) = request.accept() else { return };
        tokio::select! {
            moved = relay(socket, stream) => tracing::trace!(%target, ?moved, "stream ended"),
            // Dropping the relay resets both ends.
            () = over.cancelled() => {}
        }
    }

    async fn handle_udp(&self, request: Connect<Udp>) {
        let Udp(target) = request.target().clone();
        let Some((request, socket, over)) = self.open(request, datagrams::open(&target)).await else { return };
        let Ok(association) = request.accept() else { return };
        tokio::select! {
            () = datagrams::carry(socket, target.port(), association, self.limits) => {}
            () = over.cancelled() => {}
        }
    }

    async fn handle_echo(&self, request: Connect<IpAddr>) {
        let target = *request.target();
        let Some((request, socket, over)) = self.open(request, async { ping::open(target) }).await else { return };
        let Ok(series) = request.accept() else { return };
        tokio::select! {
            () = ping::carry(socket, target, series) => {}
            () = over.cancelled() => {}
        }
    }
}
