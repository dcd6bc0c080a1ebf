//! The Kubernetes port-forward as a carrier: one upgraded connection of the kube client per carrier.
//!
//! Two protocols lead there. SPDY/3.1 is tried first: measured, it costs the container runtime a quarter of the CPU. Where
//! something on the way does not let it through, WebSocket with the subprotocol `v4.channel.k8s.io` does. In both,
//! beside the data there is a channel for the kubelet's words when something is wrong. kube's own port-forwarder is not
//! used: it sends one WebSocket message per 4 KiB, and one loop serves both directions.

mod channels;
mod client;
mod frame;
mod framed;
mod spdy;
mod spdy_frame;
mod websocket;

use async_trait::async_trait;
use bytes::BytesMut;
use http::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};

pub use self::client::client;
use self::{framed::Framed, spdy::Spdy, websocket::WebSocket};
use crate::carrier::{Carrier, CarrierError, Connector};

/// Opens port-forwards to one port of one pod.
#[derive(Clone)]
pub struct PortForward {
    client: Client,
    namespace: String,
    pod: String,
    port: u16,
}

impl PortForward {
    /// `client` had better be one of [`client`](fn@client).
    /// `namespace` and `pod` are used as they are in a URL path: they must be Kubernetes names.
    #[must_use]
    pub fn new(client: Client, namespace: impl Into<String>, pod: impl Into<String>, port: u16) -> Self {
        Self { client, namespace: namespace.into(), pod: pod.into(), port }
    }
}

impl PortForward {
    fn request(&self, method: Method) -> http::request::Builder {
        let Self { namespace, pod, port, .. } = self;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}");
        Request::builder().method(method).uri(path)
    }

    /// `None`: not this way, WebSocket may work.
    async fn spdy(&self) -> Result<Option<Box<dyn Carrier>>, CarrierError> {
        let request = self
            .request(Method::POST)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "SPDY/3.1")
            .header("x-stream-protocol-version", "portforward.k8s.io")
            .body(Body::empty())
            .map_err(|error| CarrierError::Refused(error.to_string()))?;
        let response = self.client.send(request).await.map_err(refusal)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            tracing::debug!(status = %response.status(), "no SPDY");
            return Ok(None);
        }
        match hyper::upgrade::on(response).await {
            Ok(upgraded) => {
                Ok(Some(Box::new(Framed::new(TokioIo::new(upgraded), Spdy::default(), Spdy::open(self.port)))))
            }
            Err(error) => Err(CarrierError::Refused(chain(&error))),
        }
    }

    async fn websocket(&self) -> Result<Box<dyn Carrier>, CarrierError> {
        let request = self.request(Method::GET).body(Vec::new());
        let request = request.map_err(|error| CarrierError::Refused(error.to_string()))?;
        let connection = self.client.connect(request).await.map_err(refusal)?;
        Ok(Box::new(Framed::new(connection.into_stream().into_inner(), WebSocket::new(), BytesMut::new())))
    }
}

#[async_trait]
impl Connector for PortForward {
    async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError> {
        match self.spdy().await? {
            Some(carrier) => Ok(carrier),
            None => self.websocket().await,
        }
    }

    fn describe(&self) -> String {
        format!("port-forward to {}/{}:{}", self.namespace, self.pod, self.port)
    }
}

fn refusal(error: kube::Error) -> CarrierError {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => CarrierError::NotFound(status.message),
            401 | 403 => CarrierError::Forbidden(status.message),
            _ => CarrierError::Refused(status.message),
        },
        error => CarrierError::Refused(chain(&error)),
    }
}

/// The error with its causes: the outer words alone ("client error (Connect)") help nobody.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
