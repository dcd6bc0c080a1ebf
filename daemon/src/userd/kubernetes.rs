//! Reading kubeconfig and naming what can go wrong with the API server.

use std::{net::IpAddr, path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use tpx_core::config::Partial;

use crate::{
    config,
    failure::{Failure, Kind, chain},
};

/// Longest that opening a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(8);

/// A cluster that kubeconfig names.
pub(crate) struct Cluster {
    /// Talks to its API server.
    pub client: Client,
    /// The context's name.
    pub context: String,
    /// The API server's URL.
    pub server: String,
    /// The context's namespace, or `default`.
    pub namespace: String,
    /// What kubeconfig's extension `tpx.io` sets for this cluster.
    pub settings: Partial,
    /// The host to reach for all of that: the API server's, or its proxy's.
    host: (String, u16),
}

impl Cluster {
    /// Reads kubeconfig; connects to nothing yet.
    ///
    /// # Errors
    /// When the file, the context or its credentials cannot be used.
    pub(crate) async fn load(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, Failure> {
        let file = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
        .map_err(|e| unreadable(&e))?;
        let Some(context) = context.map(str::to_owned).or_else(|| file.current_context.clone()) else {
            return Err(Failure::new(
                Kind::Kubernetes,
                "kubeconfig has no current context",
                "choose one with --context or `kubectl config use-context`",
            ));
        };
        let known: Vec<String> = file.contexts.iter().map(|c| c.name.clone()).collect();
        if !known.contains(&context) {
            return Err(Failure::new(
                Kind::Kubernetes,
                format!("kubeconfig has no context {context:?}"),
                format!("choose one of {} with --context", list(&known)),
            ));
        }
        let settings = config::extension(&file, &context)?;
        let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
        let mut config = Config::from_custom_kubeconfig(file, &options).await.map_err(|e| unreadable(&e))?;
        config.connect_timeout = Some(CONNECT);
        let (server, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let road = config.proxy_url.as_ref().unwrap_or(&config.cluster_url);
        let port = road.port_u16().unwrap_or(if road.scheme_str() == Some("http") { 80 } else { 443 });
        let host = (road.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(), port);
        let client = tpx_link::portforward::client(config).map_err(|e| failure(&e, &server))?;
        Ok(Self { client, context, server, namespace, settings, host })
    }

    /// The addresses that must stay outside the tunnel, because the tunnel itself runs over them.
    ///
    /// # Errors
    /// When the host's name does not resolve.
    pub(crate) async fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let found = tokio::net::lookup_host((self.host.0.as_str(), self.host.1)).await.map_err(|e| {
            Failure::new(
                Kind::Kubernetes,
                format!("cannot resolve the API server's host {}: {e}", self.host.0),
                "check the network, or choose another cluster with --context",
            )
        })?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// What an error of the Kubernetes client means to its user.
pub(crate) fn failure(error: &kube::Error, server: &str) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 401 => Failure::new(
            Kind::Kubernetes,
            format!("the API server {server} does not accept your credentials: {}", status.message),
            "log in again; `kubectl auth whoami` shows whether it worked",
        ),
        kube::Error::Api(status) if status.code == 403 => Failure::new(
            Kind::Kubernetes,
            format!("the API server forbids it: {}", status.message),
            "ask your cluster's administrator for these rights, or use another context with --context",
        ),
        kube::Error::Api(status) => Failure::new(
            Kind::Kubernetes,
            format!("the API server {server} answered {}: {}", status.code, status.message),
            "see whether `kubectl get pods` works with this context",
        ),
        kube::Error::Auth(e) => Failure::new(
            Kind::Kubernetes,
            format!("cannot get credentials for {server}: {}", chain(e)),
            "check the credential plugin that kubeconfig names; `kubectl auth whoami` runs it too",
        ),
        other => Failure::new(
            Kind::Kubernetes,
            format!("cannot reach the API server {server}: {}", chain(other)),
            "check that `kubectl version` works with this context, or choose another with --context",
        ),
    }
}

/// What is wrong with a kubeconfig.
pub(crate) fn unreadable(error: &KubeconfigError) -> Failure {
    Failure::new(
        Kind::Kubernetes,
        format!("cannot use kubeconfig: {}", chain(error)),
        "name a good file with --kubeconfig or $KUBECONFIG; `kubectl config view` shows the one in use",
    )
}

/// Names for a message, not too many.
fn list(names: &[String]) -> String {
    match names {
        [] => "none (the file names no context at all)".into(),
        names if names.len() > 8 => format!("{}, … ({} in all)", names[..8].join(", "), names.len()),
        names => names.join(", "),
    }
}
