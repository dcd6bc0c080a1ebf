//! Capsules both ways on one HTTP/2 stream. Nothing waits for room: what does not fit is lost, as datagrams are.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::HeaderName;
use tpx_core::dial::DialFailure;

use crate::{
    capsule::{Capsule, Decoder},
    proxy_status,
    stream::Open,
};

/// Says that a stream carries capsules (RFC 9297 section 3.4).
pub(crate) const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static("capsule-protocol");

/// One end of an extended `CONNECT`.
#[derive(Debug)]
pub(crate) struct Exchange {
    send: SendStream<Bytes>,
    recv: Recv,
    decoder: Decoder,
    _open: Open,
}

#[derive(Debug)]
enum Recv {
    /// The other end has not answered the request yet.
    Asked(ResponseFuture),
    Stream(RecvStream),
    Over,
}

/// What comes from the other end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Capsule(Capsule),
    /// The request was refused; nothing follows.
    Refused(DialFailure),
}

impl Exchange {
    /// The asking end; capsules may be sent before the answer has come.
    pub(crate) fn asked(send: SendStream<Bytes>, response: ResponseFuture, open: Open) -> Self {
        Self { send, recv: Recv::Asked(response), decoder: Decoder::default(), _open: open }
    }

    /// The answering end.
    pub(crate) fn accepted(send: SendStream<Bytes>, recv: RecvStream, open: Open) -> Self {
        Self { send, recv: Recv::Stream(recv), decoder: Decoder::default(), _open: open }
    }

    /// Sends the bytes of a whole capsule if there is room for all of them now.
    pub(crate) fn try_send(&mut self, capsule: Bytes) -> bool {
        if matches!(self.recv, Recv::Over) {
            return false;
        }
        self.send.reserve_capacity(capsule.len());
        if self.send.capacity() < capsule.len() {
            // The lane's window is shared: nothing is held while nothing is sent.
            self.send.reserve_capacity(0);
            return false;
        }
        self.send.send_data(capsule, false).is_ok()
    }

    /// What comes next; `None` when the other end has ended, or is gone. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<Heard> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        loop {
            match self.decoder.poll() {
                Ok(Some(capsule)) => return Poll::Ready(Some(Heard::Capsule(capsule))),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "the other end broke the capsule protocol");
                    self.send.send_reset(Reason::PROTOCOL_ERROR);
                    self.decoder = Decoder::default();
                    self.recv = Recv::Over;
                }
            }
            match &mut self.recv {
                Recv::Over => return Poll::Ready(None),
                Recv::Asked(response) => match ready!(Pin::new(response).poll(cx)) {
                    Ok(response) if response.status().is_success() => self.recv = Recv::Stream(response.into_body()),
                    Ok(response) => {
                        self.recv = Recv::Over;
                        let why = proxy_status::failure(response.status(), response.headers());
                        return Poll::Ready(Some(Heard::Refused(why)));
                    }
                    Err(_) => self.recv = Recv::Over,
                },
                Recv::Stream(stream) => match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        self.decoder.push(&data);
                        // Fails only when the stream is over, which the next poll says.
                        let _ = stream.flow_control().release_capacity(data.len());
                    }
                    Some(Err(_)) | None => self.recv = Recv::Over,
                },
            }
        }
    }

    /// Ends the stream behind what was sent.
    pub(crate) fn finish(mut self) {
        // Fails only when it is over.
        let _ = self.send.send_data(Bytes::new(), true);
    }
}
