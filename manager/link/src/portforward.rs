//! The Kubernetes port-forward as a carrier: one WebSocket per carrier on the kube client's own connection.
//!
//! Subprotocol `v4.channel.k8s.io`: every binary message starts with a channel number, 0 for data and 1 for the kubelet's
//! words when something is wrong; the first message of either is the port (two bytes) and is skipped. kube's own
//! port-forwarder is not used: it sends one message per 4 KiB and one loop serves both directions.

mod channels;
mod client;
mod frame;
mod websocket;

use async_trait::async_trait;
use http::Request;
use kube::Client;

pub use self::client::client;
use self::websocket::WebSocket;
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

#[async_trait]
impl Connector for PortForward {
    async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError> {
        let Self { client, namespace, pod, port } = self;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}");
        let request = Request::get(path).body(Vec::new()).map_err(|error| CarrierError::Refused(error.to_string()))?;
        let connection = client.connect(request).await.map_err(refusal)?;
        Ok(Box::new(WebSocket::new(connection.into_stream().into_inner())))
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
