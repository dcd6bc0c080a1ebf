//! Which datagrams belong together: everything between one source and one destination.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};

/// Associations of one socket that are open at once.
pub(super) const OPEN_MAX: usize = 16_384;
/// Payloads of one association that wait for whoever carries them.
pub(super) const WAITING_MAX: usize = 256;

/// The open associations of one socket, by source and index of the destination.
#[derive(Debug, Default)]
pub(super) struct Associations {
    open: BTreeMap<(SocketAddr, u32), mpsc::Sender<Bytes>>,
}

/// What became of a datagram.
#[derive(Debug)]
pub(super) enum Arrived {
    /// It belongs to an association that somebody carries.
    Known,
    /// It is the first of a new one, and waits in here.
    New(mpsc::Receiver<Bytes>),
    /// It is lost: whoever carries the association does not keep up, or there are too many of them.
    Lost,
}

impl Associations {
    /// A datagram came. An association whose receiver is gone begins anew.
    pub(super) fn handle_datagram(&mut self, source: SocketAddr, index: u32, payload: Bytes) -> Arrived {
        let key = (source, index);
        let payload = match self.open.get(&key) {
            None => payload,
            Some(known) => match known.try_send(payload) {
                Ok(()) => return Arrived::Known,
                Err(TrySendError::Full(_)) => return Arrived::Lost,
                Err(TrySendError::Closed(payload)) => payload,
            },
        };
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&key) {
            self.sweep();
            if self.open.len() >= OPEN_MAX {
                return Arrived::Lost;
            }
        }
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        if sender.try_send(payload).is_err() {
            return Arrived::Lost;
        }
        self.open.insert(key, sender);
        Arrived::New(receiver)
    }

    /// Forgets those that nobody carries any more.
    pub(super) fn sweep(&mut self) {
        self.open.retain(|_, sender| !sender.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, 1], n))
    }

    fn new(arrived: Arrived) -> mpsc::Receiver<Bytes> {
        match arrived {
            Arrived::New(receiver) => receiver,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn source_and_destination_make_an_association() {
        let mut all = Associations::default();
        let mut a = new(all.handle_datagram(source(1), 7, Bytes::from_static(b"a1")));
        let mut b = new(all.handle_datagram(source(1), 8, Bytes::from_static(b"b1")));
        let mut c = new(all.handle_datagram(source(2), 7, Bytes::from_static(b"c1")));
        assert!(matches!(all.handle_datagram(source(1), 7, Bytes::from_static(b"a2")), Arrived::Known));
        assert_eq!([a.try_recv().unwrap(), a.try_recv().unwrap()], ["a1", "a2"]);
        assert_eq!([b.try_recv().unwrap(), c.try_recv().unwrap()], ["b1", "c1"]);
        assert!(a.try_recv().is_err() && b.try_recv().is_err() && c.try_recv().is_err());
    }

    #[test]
    fn who_does_not_keep_up_loses_the_newest() {
        let mut all = Associations::default();
        let mut a = new(all.handle_datagram(source(1), 7, Bytes::from_static(b"first")));
        for _ in 1..WAITING_MAX {
            assert!(matches!(all.handle_datagram(source(1), 7, Bytes::new()), Arrived::Known));
        }
        assert!(matches!(all.handle_datagram(source(1), 7, Bytes::from_static(b"lost")), Arrived::Lost));
        assert_eq!(a.try_recv().unwrap(), "first");
        assert!(matches!(all.handle_datagram(source(1), 7, Bytes::new()), Arrived::Known));
    }

    #[test]
    fn a_dropped_one_begins_anew_and_makes_room() {
        let mut all = Associations::default();
        drop(new(all.handle_datagram(source(1), 7, Bytes::new())));
        let mut again = new(all.handle_datagram(source(1), 7, Bytes::from_static(b"again")));
        assert_eq!(again.try_recv().unwrap(), "again");
        let mut kept: Vec<_> =
            (2..=OPEN_MAX as u32).map(|n| new(all.handle_datagram(source(2), n, Bytes::new()))).collect();
        assert!(matches!(all.handle_datagram(source(3), 1, Bytes::new()), Arrived::Lost));
        kept.pop();
        new(all.handle_datagram(source(3), 1, Bytes::new()));
        all.sweep();
        assert_eq!(all.open.len(), OPEN_MAX - 1);
    }
}
