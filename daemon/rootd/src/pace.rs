//! How fast the host may be changed. Loading programs and writing routes take time in the kernel that everybody else
//! waits for, so one caller in a loop must not keep it busy. Honest callers never notice.

use std::time::{Duration, Instant};

/// A token bucket: so many at once, and then one each `interval`.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: u32,
    interval: Duration,
    /// When the bucket will be full again (or was).
    full: Instant,
}

impl Pace {
    /// A full bucket.
    pub(crate) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { burst, interval, full: now }
    }

    /// Takes a token, on credit if there is none: how long to wait before it may be used.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        self.full = self.full.max(now) + self.interval;
        self.full.saturating_duration_since(now + self.interval * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_passes_and_the_rest_is_spread() {
        let now = Instant::now();
        let mut pace = Pace::new(3, SECOND, now);
        let waits: Vec<u64> = (0..6).map(|_| pace.take(now).as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 1, 2, 3]);
    }

    #[test]
    fn idleness_refills_but_no_further_than_full() {
        let start = Instant::now();
        let mut pace = Pace::new(2, SECOND, start);
        let later = start + 100 * SECOND;
        assert_eq!([pace.take(later), pace.take(later), pace.take(later)], [Duration::ZERO, Duration::ZERO, SECOND]);
        let then = later + 2 * SECOND;
        assert_eq!([pace.take(then), pace.take(then)], [Duration::ZERO, SECOND]);
    }

    #[test]
    fn no_more_than_burst_and_rate_in_any_span() {
        let start = Instant::now();
        let mut pace = Pace::new(4, SECOND / 4, start);
        let (mut now, mut done) = (start, 0);
        while now < start + 10 * SECOND {
            now += pace.take(now);
            done += 1;
        }
        assert!((40..=45).contains(&done), "{done}");
    }
}
