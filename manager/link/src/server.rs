//! The far end of lanes: streams and gRPC on one connection.

use std::{
    future::poll_fn,
    net::IpAddr,
    sync::{Arc, atomic::AtomicUsize},
};

use async_trait::async_trait;
use bytes::Bytes;
use h2::{RecvStream, ext::Protocol, server::SendResponse};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use tpx_api::SESSION_HEADER;

use crate::{
    Settings, Stream, Target, body,
    carrier::Carrier,
    datagrams::{self, Association},
    echoes::{self, Series},
    exchange::{CAPSULE_PROTOCOL, Exchange},
    heartbeat::{Counted, Heartbeat, watch as watch_heartbeat},
    lane::{Incoming, LaneClosed, describe},
    proxy_status::{PROXY_STATUS, Refusal},
    stream::{Open, StreamError},
};

/// Decides about streams and carries them.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// A TCP connection. Runs as a task of its own. Dropping `request` unanswered resets the stream.
    async fn handle(&self, request: Connect);

    /// A UDP association, in the same way.
    async fn handle_udp(&self, request: Connect<Udp>) {
        request.refuse(Refusal::BadRequest);
    }

    /// Echo requests to one address, in the same way.
    async fn handle_echo(&self, request: Connect<IpAddr>) {
        request.refuse(Refusal::BadRequest);
    }
}

/// Where a UDP association should lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp(pub Target);

/// A laptop asks for a stream: to a [`Target`] by TCP, by [`Udp`], or for echo requests to an [`IpAddr`].
#[derive(Debug)]
pub struct Connect<T = Target> {
    target: T,
    session: String,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    open: Open,
}

impl<T> Connect<T> {
    /// Where it should lead.
    #[must_use]
    pub fn target(&self) -> &T {
        &self.target
    }

    /// The session it belongs to, as the laptop says; empty when it says nothing.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Waits until the laptop no longer wants it, or is gone.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers why not.
    pub fn refuse(mut self, why: Refusal) {
        refuse(&mut self.respond, why);
    }

    /// Answers 200 to an extended `CONNECT`.
    fn exchange(mut self) -> Result<Exchange, StreamError> {
        let mut response = Response::new(());
        response.headers_mut().insert(CAPSULE_PROTOCOL, HeaderValue::from_static("?1"));
        let send = self.respond.send_response(response, false)?;
        Ok(Exchange::accepted(send, self.recv, self.open))
    }
}

impl Connect {
    /// Answers 200: the target is connected.
    ///
    /// # Errors
    /// When the laptop is gone.
    pub fn accept(mut self) -> Result<Stream, StreamError> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok(Stream::new(send, self.recv, self.open))
    }
}

impl Connect<Udp> {
    /// Answers 200: there is a socket for the target.
    ///
    /// # Errors
    /// When the laptop is gone.
    pub fn accept(self) -> Result<Association, StreamError> {
        Ok(Association::new(self.exchange()?))
    }
}

impl Connect<IpAddr> {
    /// Answers 200: there is a socket for the target.
    ///
    /// # Errors
    /// When the laptop is gone.
    pub fn accept(self) -> Result<Series, StreamError> {
        Ok(Series::new(self.exchange()?))
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, why: Refusal) {
    let mut response = Response::new(());
    *response.status_mut() = why.status();
    response.headers_mut().insert(PROXY_STATUS, why.header());
    // Fails only when nobody waits for it.
    let _ = respond.send_response(response, true);
}

/// Serves one carrier until it ends: `CONNECT` goes to `handler`, everything else to `service` (gRPC).
///
/// After `stop` no new stream is taken, those that are open may end.
pub async fn serve<C, S, B>(
    carrier: C,
    settings: &Settings,
    handler: Arc<dyn Handler>,
    service: S,
    stop: CancellationToken,
) -> LaneClosed
where
    C: Carrier,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: std::fmt::Display + Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
{
    let (carrier, traffic) = Counted::new(carrier);
    let handshake = tokio::time::timeout(settings.patience, settings.server().handshake(carrier));
    let mut connection = match handshake.await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return LaneClosed::Broken(describe(&error)),
        Err(_) => return LaneClosed::Silent(settings.patience),
    };
    let pings = connection.ping_pong().expect("taken once");
    let heartbeat = watch_heartbeat(Heartbeat::new(settings.heartbeat, settings.patience), pings, traffic);
    let mut heartbeat = std::pin::pin!(heartbeat);
    let streams = Arc::new(AtomicUsize::new(0));
    let mut stopping = false;
    loop {
        let (request, respond) = tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok(accepted)) => accepted,
                Some(Err(error)) => return LaneClosed::Broken(describe(&error)),
                None => return LaneClosed::Done,
            },
            silence = &mut heartbeat => return LaneClosed::Silent(silence),
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        if request.method() == Method::CONNECT {
            take(&handler, &streams, request, respond);
        } else {
            tokio::spawn(answer(service.clone(), request, respond));
        }
    }
}

fn take(
    handler: &Arc<dyn Handler>,
    streams: &Arc<AtomicUsize>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, recv) = request.into_parts();
    let session = head.headers.get(SESSION_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let session = session.to_owned();
    let protocol = head.extensions.get::<Protocol>().map(Protocol::as_str);
    let target = match protocol {
        None => head.uri.authority().and_then(|authority| Target::from_authority(authority).ok()).map(Asked::Tcp),
        Some(datagrams::PROTOCOL) => datagrams::from_path(head.uri.path()).map(|target| Asked::Udp(Udp(target))),
        Some(echoes::PROTOCOL) => echoes::from_path(head.uri.path()).map(Asked::Echo),
        Some(_) => {
            let mut response = Response::new(());
            // What RFC 9220 section 3 asks for.
            *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
            let _ = respond.send_response(response, true);
            return;
        }
    };
    let Some(target) = target else {
        return refuse(&mut respond, Refusal::BadRequest);
    };
    let (handler, open) = (Arc::clone(handler), Open::new(streams));
    tokio::spawn(async move {
        match target {
            Asked::Tcp(target) => handler.handle(Connect { target, session, respond, recv, open }).await,
            Asked::Udp(target) => handler.handle_udp(Connect { target, session, respond, recv, open }).await,
            Asked::Echo(target) => handler.handle_echo(Connect { target, session, respond, recv, open }).await,
        }
    });
}

enum Asked {
    Tcp(Target),
    Udp(Udp),
    Echo(IpAddr),
}

async fn answer<S, B>(service: S, request: Request<RecvStream>, mut respond: SendResponse<Bytes>)
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: std::fmt::Display,
    B: Body,
    B::Data: Send,
    B::Error: Send,
{
    let response = tokio::select! {
        response = service.oneshot(request.map(Incoming::new)) => response,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let (head, body) = match response {
        Ok(response) => response.into_parts(),
        Err(error) => {
            tracing::warn!(%error, "a request failed");
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            let _ = respond.send_response(response, true);
            return;
        }
    };
    if let Ok(stream) = respond.send_response(Response::from_parts(head, ()), false) {
        body::send(body, stream).await;
    }
}
