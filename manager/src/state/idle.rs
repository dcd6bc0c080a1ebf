//! When a UDP association is over: nothing says so, it only falls silent.

use std::time::{Duration, Instant};

/// The port of name servers.
const DNS: u16 = 53;

/// How long silence lasts before an association is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In general. RFC 4787 section 4.3 asks for two minutes at least.
    pub silence: Duration,
    /// After a name server has answered: a question has one answer, and the next one brings its own port.
    pub answered_dns: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { silence: Duration::from_secs(120), answered_dns: Duration::from_secs(5) }
    }
}

/// Follows one association.
#[derive(Debug)]
pub struct Idle {
    limits: Limits,
    dns: bool,
    /// Questions that have no answer yet; only counted for DNS.
    unanswered: u64,
    last: Instant,
}

impl Idle {
    /// An association with `port` starts.
    #[must_use]
    pub fn new(port: u16, limits: Limits, now: Instant) -> Self {
        Self { limits, dns: port == DNS, unanswered: 0, last: now }
    }

    /// A datagram went to the target.
    pub fn handle_sent(&mut self, now: Instant) {
        self.unanswered += 1;
        self.last = now;
    }

    /// A datagram came from the target.
    pub fn handle_received(&mut self, now: Instant) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.last = now;
    }

    /// When it is over, unless something happens before.
    #[must_use]
    pub fn poll_over(&self) -> Instant {
        let answered = self.dns && self.unanswered == 0;
        self.last + if answered { self.limits.answered_dns } else { self.limits.silence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_last_datagram() {
        let (start, limits) = (Instant::now(), Limits::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut idle = Idle::new(443, limits, start);
        assert_eq!(idle.poll_over(), after(120));
        idle.handle_sent(after(10));
        assert_eq!(idle.poll_over(), after(130));
        idle.handle_received(after(20));
        assert_eq!(idle.poll_over(), after(140));
    }

    #[test]
    fn an_answered_question_is_soon_over() {
        let (start, limits) = (Instant::now(), Limits::default());
        let mut idle = Idle::new(53, limits, start);
        idle.handle_sent(start);
        idle.handle_sent(start);
        idle.handle_received(start);
        assert_eq!(idle.poll_over(), start + limits.silence, "one is still waited for");
        idle.handle_received(start);
        assert_eq!(idle.poll_over(), start + limits.answered_dns);
        idle.handle_sent(start);
        assert_eq!(idle.poll_over(), start + limits.silence);
    }
}
