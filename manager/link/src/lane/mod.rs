//! A lane: HTTP/2 over one carrier, and streams over that.
//!
//! Later a lane outlives its carrier (sequence numbers and a replay buffer between HTTP/2 and the carrier); nothing
//! above this module will notice.

mod control;
mod extended;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Uri};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tpx_api::SESSION_HEADER;
use tpx_core::dial::DialFailure;

pub use self::control::{Control, control};
pub use crate::body::Incoming;
use crate::{
    Settings, Stream, Target,
    carrier::Carrier,
    heartbeat::{Counted, Heartbeat, Traffic, watch as watch_heartbeat},
    proxy_status,
    stream::Open,
};

/// The laptop's end of a lane. Clones are the same lane; it closes when all clones and streams are dropped.
#[derive(Debug, Clone)]
pub struct Lane {
    requests: SendRequest<Bytes>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    closed: watch::Receiver<Option<LaneClosed>>,
    close: mpsc::Sender<()>,
    traffic: Arc<Traffic>,
    streams: Arc<AtomicUsize>,
    /// Told whenever the carrier may have brought something, for whoever waits for the other end's settings.
    moved: Arc<Notify>,
    /// When the other end's settings are overdue.
    settled_by: Instant,
}

/// A lane could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the other end does not speak HTTP/2: {0}")]
pub struct LaneError(#[from] h2::Error);

/// Why a lane is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneClosed {
    /// Nobody used it any more, or [`Lane::close`] was called.
    #[error("closed")]
    Done,
    /// The other end went silent.
    #[error("no sign of life for {0:.1?}")]
    Silent(Duration),
    /// The carrier broke, or the other end ended it; in its words.
    #[error("{0}")]
    Broken(String),
}

/// What a lane has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Streams open now.
    pub streams: usize,
    /// Bytes that came over the carrier, framing included.
    pub received: u64,
    /// Bytes that went over the carrier, framing included.
    pub sent: u64,
}

impl Lane {
    /// Traffic of the last quarter of a second above which a lane counts as busy: about 4 MiB/s.
    const BUSY: u64 = 1 << 20;

    /// Starts HTTP/2 over `carrier`.
    ///
    /// # Errors
    /// When the carrier breaks at once.
    pub async fn open(carrier: Box<dyn Carrier>, settings: &Settings) -> Result<Self, LaneError> {
        let (carrier, traffic) = Counted::new(carrier);
        let settled_by = Instant::now() + settings.patience;
        let (requests, mut connection) = settings.client().handshake(carrier).await?;
        let pings = connection.ping_pong().expect("taken once");
        let beat = Heartbeat::new(settings.heartbeat, settings.patience);
        let heartbeat = watch_heartbeat(beat, pings, Arc::clone(&traffic));
        let (closed_tx, closed) = watch::channel(None);
        let (close, mut close_rx) = mpsc::channel(1);
        let moved = Arc::new(Notify::new());
        let told = Arc::clone(&moved);
        tokio::spawn(async move {
            let connection = poll_fn(|cx| {
                let result = Pin::new(&mut connection).poll(cx);
                told.notify_waiters();
                result
            });
            let reason = tokio::select! {
                biased;
                result = connection => match result {
                    Ok(()) if close_rx.is_closed() => LaneClosed::Done,
                    Ok(()) => LaneClosed::Broken("the other end closed it".to_owned()),
                    Err(error) => LaneClosed::Broken(describe(&error)),
                },
                silence = heartbeat => LaneClosed::Silent(silence),
                // Without senders nobody can ask any more; the connection ends with its last stream.
                Some(()) = close_rx.recv() => LaneClosed::Done,
            };
            tracing::debug!(%reason, "lane closed");
            closed_tx.send_replace(Some(reason));
        });
        let state = State { closed, close, traffic, streams: Arc::default(), moved, settled_by };
        Ok(Self { requests, state: Arc::new(state) })
    }

    /// Opens a stream: returns when the far side's dial has succeeded or failed. Dropping the future cancels the dial.
    ///
    /// # Errors
    /// What the far side's dial ran into, or [`DialFailure::Tunnel`].
    pub async fn connect(&self, target: &Target, session: &str) -> Result<Stream, DialFailure> {
        let tunnel = |error: &dyn std::fmt::Display| {
            tracing::debug!(%target, %error, "no stream");
            DialFailure::Tunnel
        };
        let uri = Uri::builder().authority(target.to_string()).build().map_err(|error| tunnel(&error))?;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .header(SESSION_HEADER, session)
            .body(())
            .map_err(|error| tunnel(&error))?;
        let open = Open::new(&self.state.streams);
        let mut requests = self.requests.clone();
        poll_fn(|cx| requests.poll_ready(cx)).await.map_err(|error| tunnel(&error))?;
        let (response, send) = requests.send_request(request, false).map_err(|error| tunnel(&error))?;
        let (head, recv) = response.await.map_err(|error| tunnel(&error))?.into_parts();
        if head.status.is_success() {
            Ok(Stream::new(send, recv, open))
        } else {
            Err(proxy_status::failure(head.status, &head.headers))
        }
    }

    /// Waits until the lane is over.
    pub async fn closed(&self) -> LaneClosed {
        let mut closed = self.state.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("waited for"),
            Err(_) => LaneClosed::Broken("the runtime is shutting down".to_owned()),
        }
    }

    /// Whether the lane is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.closed.borrow().is_some()
    }

    /// Drops the carrier now, with all streams.
    pub fn close(&self) {
        // Full: it was asked already.
        let _ = self.state.close.try_send(());
    }

    /// Whether a bulk transfer is going on, so that a new flow had better take another lane.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.state.traffic.recent() > Self::BUSY
    }

    /// What it carries and has carried.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            streams: self.state.streams.load(Relaxed),
            received: self.state.traffic.received(),
            sent: self.state.traffic.sent(),
        }
    }
}

/// h2 hides the carrier's own words one level down.
pub(crate) fn describe(error: &h2::Error) -> String {
    match error.get_io() {
        Some(io) => io.to_string(),
        None => error.to_string(),
    }
}
