//! UDP over the floor.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;
use tpx_core::dial::DialFailure;

use super::{
    associations::{Associations, Quote},
    shared::{Shared, lock},
};
use crate::{
    Arrival, DatagramFlow, DatagramReturn,
    packet::{self, View, ends, quotable, word},
};

pub(super) type Datagrams = Associations<(SocketAddr, SocketAddr), Bytes>;

impl Shared {
    pub(super) fn handle_datagram(self: &Arc<Self>, view: &View<'_>, announce: &mpsc::Sender<Arrival>) {
        let body = view.body();
        let (Some((source, destination)), Some(length)) = (ends(view), word(body, 4)) else {
            return;
        };
        // Length 0 belongs to jumbograms (RFC 2675).
        let Some(payload) = body.get(8..usize::from(length)) else {
            return;
        };
        if source.port() == 0 {
            return; // nobody to answer to (RFC 768)
        }
        let key = (source, destination);
        let fresh = lock(&self.datagrams).offer(&key, Bytes::copy_from_slice(payload), quotable(view.packet));
        if let Some(fresh) = fresh {
            let back = Back { shared: Arc::clone(self), key, id: fresh.id, quote: fresh.quote };
            let flow = DatagramFlow { source, destination, incoming: fresh.incoming, back: Box::new(back) };
            if announce.try_send(Arrival::Datagrams(flow)).is_err() {
                tracing::warn!("datagrams were dropped: too many flows wait");
            }
        }
    }

    /// Nobody takes the answers any more.
    pub(super) fn handle_unheard(&self, quoted: &View<'_>) {
        if let Some((destination, source)) = ends(quoted) {
            lock(&self.datagrams).remove(&(source, destination), None);
        }
    }
}

struct Back {
    shared: Arc<Shared>,
    key: (SocketAddr, SocketAddr),
    id: u64,
    quote: Quote,
}

impl DatagramReturn for Back {
    fn send(&self, payload: &[u8]) {
        let (source, destination) = self.key;
        if let Some(packet) = packet::datagram(destination, source, payload) {
            self.shared.emit_large(packet);
        }
    }

    fn unreachable(&self, why: DialFailure) {
        let error = packet::unreachable(&lock(&self.quote), why);
        if let Some(error) = error {
            self.shared.emit(&error);
        }
    }

    fn too_big(&self, mtu: u32) {
        let error = packet::too_big(&lock(&self.quote), mtu);
        self.shared.emit(&error);
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        lock(&self.shared.datagrams).remove(&self.key, Some(self.id));
    }
}
