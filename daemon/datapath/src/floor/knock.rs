//! An attempt to connect whose SYN is held by the floor.

use std::{io, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use tpx_core::dial::DialFailure;

use super::{NetStream, shared::Shared};
use crate::{FlowStream, Knock, packet::Syn};

pub(super) struct HeldKnock {
    shared: Arc<Shared>,
    syn: Syn,
    answered: bool,
}

impl HeldKnock {
    pub(super) fn new(shared: Arc<Shared>, syn: Syn) -> Self {
        Self { shared, syn, answered: false }
    }
}

#[async_trait]
impl Knock for HeldKnock {
    fn source(&self) -> SocketAddr {
        self.syn.attempt().key.source()
    }

    fn destination(&self) -> SocketAddr {
        self.syn.attempt().key.destination()
    }

    async fn release(mut self: Box<Self>) -> io::Result<FlowStream> {
        self.answered = true;
        let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "the application has given up");
        let (flow, opened) = self.shared.release(&self.syn).ok_or_else(gone)?;
        // Should nobody wait any more, dropping it resets the connection.
        let stream = NetStream::new(Arc::clone(&self.shared), flow);
        opened.await.map_err(|_| gone())?;
        Ok(FlowStream::Netstack(stream))
    }

    fn refuse(mut self: Box<Self>, why: DialFailure) {
        self.answered = true;
        self.shared.decline(&self.syn, why);
    }
}

impl Drop for HeldKnock {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.decline(&self.syn, DialFailure::TimedOut);
        }
    }
}
