//! A kube client whose connections are fit to carry a lane.
//!
//! kube's own leaves Nagle's algorithm on, and does not give the socket out: a small write behind an unacknowledged one
//! would wait for the peer's delayed acknowledgement, 40 ms.

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use kube::{Client, Config, client::ConfigExt};
use tokio::net::TcpStream;
use tower::{BoxError, ServiceBuilder, ServiceExt};

/// A client as `Client::try_from(config)` makes it, with socket options for a lane.
///
/// Through a proxy the socket is the proxy connector's own business: kube's client is used as it is then.
///
/// # Errors
/// What kube finds wrong with the configuration.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let http = http.map_response(|io: TokioIo<TcpStream>| {
        // It is slower without, not wrong.
        let _ = crate::carrier::prepare(io.inner());
        io
    });
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(http)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Http::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}
