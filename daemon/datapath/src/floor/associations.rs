//! Pairs of ends that exchange packets without connections.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use tokio::sync::mpsc::{self, error::TrySendError};

/// The packet that an error would quote.
pub(super) type Quote = Arc<Mutex<Vec<u8>>>;

/// Who sends `T`s under which name. Bounded: the one that was longest idle makes room.
pub(super) struct Associations<K, T> {
    known: HashMap<K, Entry<T>>,
    most: usize,
    queue: usize,
    tick: u64,
}

struct Entry<T> {
    sender: mpsc::Sender<T>,
    quote: Quote,
    id: u64,
    used: u64,
}

/// An association that begins.
pub(super) struct Fresh<T> {
    pub(super) incoming: mpsc::Receiver<T>,
    pub(super) quote: Quote,
    /// For [`Associations::remove`].
    pub(super) id: u64,
}

impl<K: Hash + Eq + Clone, T> Associations<K, T> {
    pub(super) fn new(most: usize, queue: usize) -> Self {
        Self { known: HashMap::new(), most: most.max(1), queue: queue.max(1), tick: 0 }
    }

    /// Hands `item` to the association, which is returned when it is new. A full one loses the item.
    pub(super) fn offer(&mut self, key: &K, item: T, quote: &[u8]) -> Option<Fresh<T>> {
        self.tick += 1;
        let mut item = item;
        if let Some(entry) = self.known.get_mut(key) {
            entry.used = self.tick;
            let mut last = super::shared::lock(&entry.quote);
            last.clear();
            last.extend_from_slice(quote);
            drop(last);
            match entry.sender.try_send(item) {
                Ok(()) | Err(TrySendError::Full(_)) => return None,
                Err(TrySendError::Closed(back)) => item = back,
            }
        }
        if self.known.len() >= self.most {
            self.known.retain(|_, entry| !entry.sender.is_closed());
        }
        if self.known.len() >= self.most
            && let Some(idle) = self.known.iter().min_by_key(|(_, e)| e.used).map(|(key, _)| key.clone())
        {
            self.known.remove(&idle);
        }
        let (sender, incoming) = mpsc::channel(self.queue);
        let _ = sender.try_send(item);
        let quote: Quote = Arc::new(Mutex::new(quote.to_vec()));
        let entry = Entry { sender, quote: Arc::clone(&quote), id: self.tick, used: self.tick };
        self.known.insert(key.clone(), entry);
        Some(Fresh { incoming, quote, id: self.tick })
    }

    /// Ends an association; with an id only if it is still that one.
    pub(super) fn remove(&mut self, key: &K, id: Option<u64>) {
        if self.known.get(key).is_some_and(|entry| id.is_none_or(|id| entry.id == id)) {
            self.known.remove(key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_one_makes_room() {
        let mut all = Associations::<u8, u8>::new(2, 1);
        let mut first = all.offer(&1, 10, b"a").unwrap();
        let mut second = all.offer(&2, 20, b"b").unwrap();
        assert!(all.offer(&1, 11, b"c").is_none());
        assert_eq!(*first.quote.lock().unwrap(), b"c");
        let third = all.offer(&3, 30, b"d").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((first.incoming.try_recv(), second.incoming.try_recv()), (Ok(10), Ok(20)));
        assert!(second.incoming.try_recv().is_err_and(|e| e == mpsc::error::TryRecvError::Disconnected));
        // The queue had room for one.
        assert!(first.incoming.try_recv().is_err_and(|e| e == mpsc::error::TryRecvError::Empty));
        drop(third);
        assert!(all.offer(&3, 31, b"e").is_some());
    }

    #[test]
    fn only_the_same_one_is_removed() {
        let mut all = Associations::<u8, u8>::new(2, 1);
        let id = all.offer(&1, 10, b"").unwrap().id;
        let again = all.offer(&1, 11, b"").unwrap();
        all.remove(&1, Some(id));
        assert_eq!(all.len(), 1);
        all.remove(&1, Some(again.id));
        assert_eq!(all.len(), 0);
    }
}
