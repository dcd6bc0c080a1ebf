//! Streams: check the session, dial, relay, and end when the session does.

use std::sync::Arc;

use async_trait::async_trait;
use tpx_link::{
    proxy_status::Refusal,
    relay::relay,
    server::{Connect, Handler},
};

use crate::{dial, sessions::Sessions};

/// Carries laptops' streams.
#[derive(Debug)]
pub struct Streams {
    sessions: Arc<Sessions>,
}

impl Streams {
    /// Only for laptops with one of these sessions.
    #[must_use]
    pub fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions }
    }
}

#[async_trait]
impl Handler for Streams {
    async fn handle(&self, mut request: Connect) {
        let Some(over) = self.sessions.end(request.session()) else {
            return request.refuse(Refusal::Session);
        };
        let target = request.target().clone();
        let dialled = tokio::select! {
            dialled = dial::dial(&target) => dialled,
            () = request.cancelled() => return,
            () = over.cancelled() => return request.refuse(Refusal::Session),
        };
        let socket = match dialled {
            Ok(socket) => socket,
            Err(refusal) => {
                tracing::debug!(%target, ?refusal, "not connected");
                return request.refuse(refusal);
            }
        };
        let Ok(stream) = request.accept() else { return };
        tokio::select! {
            moved = relay(socket, stream) => tracing::trace!(%target, ?moved, "stream ended"),
            // Dropping the relay resets both ends.
            () = over.cancelled() => {}
        }
    }
}
