//! The far end of lanes: streams and gRPC on one connection.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::AtomicUsize},
};

use async_trait::async_trait;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use tpx_api::SESSION_HEADER;

use crate::{
    Settings, Stream, Target, body,
    carrier::Carrier,
    heartbeat::{Counted, Heartbeat, watch as watch_heartbeat},
    lane::{Incoming, LaneClosed, describe},
    proxy_status::{PROXY_STATUS, Refusal},
    stream::{Open, StreamError},
};

/// Decides about streams and carries them.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Runs as a task of its own. Dropping `request` unanswered resets the stream.
    async fn handle(&self, request: Connect);
}

/// A laptop asks for a stream.
#[derive(Debug)]
pub struct Connect {
    target: Target,
    session: String,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    open: Open,
}

impl Connect {
    /// Where it should lead.
    #[must_use]
    pub fn target(&self) -> &Target {
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

    /// Answers 200: the target is connected.
    ///
    /// # Errors
    /// When the laptop is gone.
    pub fn accept(mut self) -> Result<Stream, StreamError> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok(Stream::new(send, self.recv, self.open))
    }

    /// Answers why not.
    pub fn refuse(mut self, why: Refusal) {
        refuse(&mut self.respond, why);
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
    let Some(target) = head.uri.authority().and_then(|authority| Target::from_authority(authority).ok()) else {
        return refuse(&mut respond, Refusal::BadRequest);
    };
    let session = head.headers.get(SESSION_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let session = session.to_owned();
    let request = Connect { target, session, respond, recv, open: Open::new(streams) };
    let handler = Arc::clone(handler);
    tokio::spawn(async move { handler.handle(request).await });
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
