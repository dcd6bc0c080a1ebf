//! Answers kept for as long as they may be.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A bounded map whose entries run out. When it is full, the entry that runs out first makes room.
///
/// Time comes in as `now`, counted from any fixed moment; the cache never looks at a clock.
#[derive(Debug)]
pub struct Cache<K, V> {
    capacity: usize,
    entries: BTreeMap<K, Entry<V>>,
    /// The same entries by the time they run out.
    expiry: BTreeSet<(Duration, K)>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    stored: Duration,
    expires: Duration,
}

impl<K: Ord + Clone, V: Clone> Cache<K, V> {
    /// A cache of at most `capacity` entries; zero keeps nothing.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, entries: BTreeMap::new(), expiry: BTreeSet::new() }
    }

    /// The value under `key` and its age, unless it has run out.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q, now: Duration) -> Option<(V, Duration)>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.get(key).filter(|entry| now < entry.expires)?;
        Some((entry.value.clone(), now.saturating_sub(entry.stored)))
    }

    /// Keeps `value` for `life` from `now`. A life of nothing is not kept, and forgets what was there.
    pub fn insert(&mut self, key: K, value: V, life: Duration, now: Duration) {
        self.remove(&key);
        let Some(expires) = now.checked_add(life).filter(|_| self.capacity > 0 && !life.is_zero()) else { return };
        while self.entries.len() >= self.capacity {
            let Some((_, first)) = self.expiry.pop_first() else { break };
            self.entries.remove(&first);
        }
        self.expiry.insert((expires, key.clone()));
        self.entries.insert(key, Entry { value, stored: now, expires });
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.expiry.clear();
    }

    /// How many entries are held, run out or not; never more than the capacity.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.expiry.remove(&(entry.expires, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn entries_run_out_and_know_their_age() {
        let start = 100 * SECOND;
        let mut cache = Cache::new(2);
        cache.insert("a", 1, 5 * SECOND, start);
        assert_eq!(cache.get(&"a", start + 4 * SECOND), Some((1, 4 * SECOND)));
        assert_eq!(cache.get(&"a", start + 5 * SECOND), None);
        cache.insert("a", 2, Duration::ZERO, start);
        assert_eq!(cache.get(&"a", start), None);
        assert!(cache.is_empty());
    }

    #[test]
    fn the_first_to_run_out_makes_room() {
        let start = 100 * SECOND;
        let mut cache = Cache::new(2);
        cache.insert("long", 1, 9 * SECOND, start);
        cache.insert("short", 2, SECOND, start);
        cache.insert("new", 3, 5 * SECOND, start);
        assert_eq!(cache.get(&"short", start), None);
        assert!(cache.get(&"long", start).is_some() && cache.get(&"new", start).is_some());
        assert_eq!(cache.len(), 2);
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_map_with_deadlines(
            capacity in 0usize..8,
            steps in proptest::collection::vec((0u8..6, 0u32..6, 0u32..3), 0..80),
        ) {
            let mut now = Duration::ZERO;
            let mut cache = Cache::new(capacity);
            let mut last = BTreeMap::new();
            for (index, (key, life, pause)) in steps.into_iter().enumerate() {
                now += pause * SECOND;
                cache.insert(key, index, life * SECOND, now);
                last.insert(key, (index, now + life * SECOND));
                prop_assert!(cache.len() <= capacity);
                prop_assert_eq!(cache.entries.len(), cache.expiry.len());
                for key in 0..6 {
                    if let Some((value, _)) = cache.get(&key, now) {
                        let (expected, expires) = last[&key];
                        prop_assert!(value == expected && now < expires, "stale entry");
                    }
                }
            }
        }
    }
}
