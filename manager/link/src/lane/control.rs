//! Control (gRPC) over a carrier of its own, so that no bulk transfer delays it.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response, uri};
use http_body::Body;
use tower::Service;

use super::{Incoming, Lane, LaneClosed, LaneError};
use crate::{Settings, body, carrier::Carrier};

/// What tonic's clients need: `ManagerClient::new(control(carrier, &settings).await?)`.
#[derive(Debug, Clone)]
pub struct Control {
    lane: Lane,
}

/// Starts a control lane over `carrier`.
///
/// # Errors
/// When the carrier breaks at once.
pub async fn control(carrier: Box<dyn Carrier>, settings: &Settings) -> Result<Control, LaneError> {
    Ok(Control { lane: Lane::open(carrier, settings).await? })
}

impl Control {
    /// Waits until the lane is over.
    pub async fn closed(&self) -> LaneClosed {
        self.lane.closed().await
    }

    /// Drops the carrier now.
    pub fn close(&self) {
        self.lane.close();
    }
}

impl<B> Service<Request<B>> for Control
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
{
    type Response = Response<Incoming>;
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, h2::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut requests = self.lane.requests.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            // tonic leaves scheme and authority to the channel; HTTP/2 wants both.
            let mut uri = head.uri.into_parts();
            uri.scheme.get_or_insert(uri::Scheme::HTTP);
            uri.authority.get_or_insert(uri::Authority::from_static("traffic-manager"));
            head.uri = http::Uri::from_parts(uri).expect("scheme, authority and path are there");
            poll_fn(|cx| requests.poll_ready(cx)).await?;
            let (response, stream) = requests.send_request(Request::from_parts(head, ()), false)?;
            tokio::spawn(body::send(body, stream));
            Ok(response.await?.map(Incoming::new))
        })
    }
}
