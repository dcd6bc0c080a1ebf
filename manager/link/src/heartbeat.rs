//! Notices a dead carrier: nothing was heard for a while, a ping was sent, and still nothing.
//!
//! Any byte counts as a sign of life, so a pong that waits behind a bulk transfer is no reason to give up. Asking only
//! after silence also keeps both ends from having pings on their way at once under load: h2 stops reading while a
//! ping or pong of its own waits for the carrier, and two ends doing so would wait for each other.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use crate::carrier::Carrier;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look again then.
    Wait(Instant),
    /// Ask the other end.
    Ping,
    /// Nothing was heard for this long.
    Dead(Duration),
}

/// The decision.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    patience: Duration,
    asked: Option<Instant>,
}

impl Heartbeat {
    pub(crate) fn new(interval: Duration, patience: Duration) -> Self {
        Self { interval, patience, asked: None }
    }

    /// `heard` is when a byte last arrived.
    pub(crate) fn poll(&mut self, now: Instant, heard: Instant) -> Step {
        if self.asked.is_some_and(|asked| heard > asked) {
            self.asked = None;
        }
        let due = match self.asked {
            Some(asked) if now >= asked + self.patience => return Step::Dead(now - heard),
            Some(asked) => asked + self.patience,
            None if now >= heard + self.interval => {
                self.asked = Some(now);
                return Step::Ping;
            }
            None => heard + self.interval,
        };
        Step::Wait(due)
    }
}

/// Returns when the other end is dead, and for how long it has been silent.
pub(crate) async fn watch(mut beat: Heartbeat, mut pings: PingPong, traffic: Arc<Traffic>) -> Duration {
    loop {
        match beat.poll(Instant::now(), traffic.heard()) {
            Step::Dead(silence) => return silence,
            // One may be on its way already; its answer serves as well.
            Step::Ping => drop(pings.send_ping(Ping::opaque())),
            Step::Wait(until) => tokio::select! {
                () = sleep_until(until) => {}
                pong = poll_fn(|cx| pings.poll_pong(cx)) => if pong.is_err() {
                    // The connection is over, and whoever drives it knows.
                    std::future::pending::<()>().await;
                },
            },
        }
    }
}

/// What went over one carrier.
#[derive(Debug)]
pub(crate) struct Traffic {
    start: Instant,
    /// Nanoseconds after `start`.
    heard: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Number of the current slice of time, and the bytes of that and of the one before.
    slice: AtomicU64,
    current: AtomicU64,
    previous: AtomicU64,
}

impl Traffic {
    /// Length of a slice, for [`recent`](Self::recent).
    const SLICE: Duration = Duration::from_millis(128);

    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            start: Instant::now(),
            heard: zero(),
            received: zero(),
            sent: zero(),
            slice: zero(),
            current: zero(),
            previous: zero(),
        }
    }

    pub(crate) fn heard(&self) -> Instant {
        self.start + Duration::from_nanos(self.heard.load(Relaxed))
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Bytes of the last one to two slices. Approximate: the counters are not read as one.
    pub(crate) fn recent(&self) -> u64 {
        self.turn(self.start.elapsed());
        self.current.load(Relaxed) + self.previous.load(Relaxed)
    }

    fn count(&self, received: usize, sent: usize) {
        let elapsed = self.start.elapsed();
        if received > 0 {
            self.heard.store(nanos(elapsed), Relaxed);
            self.received.fetch_add(received as u64, Relaxed);
        }
        self.sent.fetch_add(sent as u64, Relaxed);
        self.turn(elapsed);
        self.current.fetch_add((received + sent) as u64, Relaxed);
    }

    fn turn(&self, elapsed: Duration) {
        let slice = nanos(elapsed) / nanos(Self::SLICE);
        let before = self.slice.swap(slice, Relaxed);
        if slice != before {
            let bytes = self.current.swap(0, Relaxed);
            self.previous.store(if slice == before + 1 { bytes } else { 0 }, Relaxed);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A carrier whose bytes are counted.
pub(crate) struct Counted<C> {
    carrier: C,
    traffic: Arc<Traffic>,
}

impl<C: Carrier> Counted<C> {
    pub(crate) fn new(carrier: C) -> (Self, Arc<Traffic>) {
        let traffic = Arc::new(Traffic::new());
        (Self { carrier, traffic: Arc::clone(&traffic) }, traffic)
    }
}

impl<C: Carrier> AsyncRead for Counted<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.carrier).poll_read(cx, buf))?;
        self.traffic.count(buf.filled().len() - before, 0);
        Poll::Ready(Ok(()))
    }
}

impl<C: Carrier> AsyncWrite for Counted<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.carrier).poll_write(cx, buf))?;
        self.traffic.count(0, sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.carrier).poll_write_vectored(cx, bufs))?;
        self.traffic.count(0, sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.carrier.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(3);
    const PATIENCE: Duration = Duration::from_secs(6);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn silence_is_asked_about_once_and_then_fatal() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(INTERVAL, PATIENCE);
        assert_eq!(beat.poll(start, start), Step::Wait(start + INTERVAL));
        assert_eq!(beat.poll(start + seconds(3), start), Step::Ping);
        assert_eq!(beat.poll(start + seconds(3), start), Step::Wait(start + seconds(9)));
        assert_eq!(beat.poll(start + seconds(8), start), Step::Wait(start + seconds(9)));
        assert_eq!(beat.poll(start + seconds(9), start), Step::Dead(seconds(9)));
    }

    #[test]
    fn any_byte_is_a_sign_of_life() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(INTERVAL, PATIENCE);
        assert_eq!(beat.poll(start + seconds(3), start), Step::Ping);
        let heard = start + seconds(8);
        assert_eq!(beat.poll(start + seconds(9), heard), Step::Wait(heard + INTERVAL));
        assert_eq!(beat.poll(start + seconds(11), heard), Step::Ping);
        assert_eq!(beat.poll(start + seconds(17), heard), Step::Dead(seconds(9)));
    }
}
