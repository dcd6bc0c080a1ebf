//! Ping over the floor.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;
use tpx_core::dial::DialFailure;

use super::{
    associations::Associations,
    shared::{Shared, lock},
};
use crate::{
    Arrival, Echo, EchoFlow, EchoReturn,
    packet::{self, EchoText, View, word},
};

/// Who pings whom, under which identifier.
type Key = (IpAddr, IpAddr, u16);
pub(super) type Echoes = Associations<Key, Echo>;

impl Shared {
    pub(super) fn handle_echo(self: &Arc<Self>, view: &View<'_>, announce: &mpsc::Sender<Arrival>) {
        let body = view.body();
        let (Some(identifier), Some(sequence), Some(payload)) = (word(body, 4), word(body, 6), body.get(8..)) else {
            return;
        };
        let key = (view.source, view.destination, identifier);
        let request = Echo { sequence, payload: Bytes::copy_from_slice(payload) };
        // Errors are about one request, which is named then.
        let fresh = lock(&self.echoes).offer(&key, request, &[]);
        if let Some(fresh) = fresh {
            let back = Back { shared: Arc::clone(self), key, id: fresh.id };
            let (source, destination, _) = key;
            let flow = EchoFlow { source, destination, incoming: fresh.incoming, back: Box::new(back) };
            if announce.try_send(Arrival::Echo(flow)).is_err() {
                tracing::warn!("pings were dropped: too many flows wait");
            }
        }
    }
}

struct Back {
    shared: Arc<Shared>,
    key: Key,
    id: u64,
}

impl EchoReturn for Back {
    fn reply(&self, echo: Echo) {
        let (source, destination, identifier) = self.key;
        let text = EchoText { request: false, identifier, sequence: echo.sequence, payload: &echo.payload };
        if let Some(packet) = packet::echo(destination, source, text) {
            self.shared.emit_large(packet);
        }
    }

    fn unreachable(&self, request: Echo, why: DialFailure) {
        let (source, destination, identifier) = self.key;
        let text = EchoText { request: true, identifier, sequence: request.sequence, payload: &request.payload };
        let error = packet::echo(source, destination, text).and_then(|asked| packet::unreachable(&asked, why));
        if let Some(error) = error {
            self.shared.emit(&error);
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        lock(&self.shared.echoes).remove(&self.key, Some(self.id));
    }
}
