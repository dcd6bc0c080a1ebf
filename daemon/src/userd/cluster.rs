//! The way to the manager: which pod it is now, and carriers to it.

use std::{io, time::Duration};

use async_trait::async_trait;
use tpx_api::MANAGER_PORT;
use tpx_install::{FindError, ManagerPod};
use tpx_link::{
    carrier::{Carrier, CarrierError, Connector},
    portforward::PortForward,
};

use super::kubernetes;
use crate::failure::{Failure, Kind};

/// Finds the manager anew for every carrier, because its pod may have been replaced.
pub(crate) struct ManagerRoad {
    client: kube::Client,
    namespace: String,
    server: String,
}

impl ManagerRoad {
    /// The manager in `namespace` of the cluster behind `client`.
    pub(crate) fn new(client: kube::Client, namespace: String, server: String) -> Self {
        Self { client, namespace, server }
    }

    /// The manager's pod.
    ///
    /// # Errors
    /// When there is none that is ready.
    pub(crate) async fn find(&self) -> Result<ManagerPod, Failure> {
        tpx_install::find_manager(&self.client, &self.namespace).await.map_err(|e| self.failure(e))
    }

    /// A connector to one pod.
    pub(crate) fn to(&self, pod: &ManagerPod) -> PortForward {
        PortForward::new(self.client.clone(), &self.namespace, &pod.name, MANAGER_PORT)
    }

    fn failure(&self, error: FindError) -> Failure {
        match error {
            FindError::Kubernetes(e) => kubernetes::failure(&e, &self.server),
            other => Failure::new(Kind::Manager, other.to_string(), other.next_step()),
        }
    }
}

#[async_trait]
impl Connector for ManagerRoad {
    async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError> {
        let pod = self.find().await.map_err(|failure| CarrierError::NotFound(failure.what))?;
        self.to(&pod).connect().await
    }

    fn describe(&self) -> String {
        format!("port-forward to {}/traffic-manager", self.namespace)
    }
}

/// Longest that a carrier may take to come up, before another attempt is made: an API server that takes the connection and
/// then says nothing would hold a single one for ever.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(20);

/// A new carrier by `connector`, unless that takes longer than `patience`.
///
/// # Errors
/// [`CarrierError`], also when it has taken too long.
pub(crate) async fn carrier(connector: &dyn Connector, patience: Duration) -> Result<Box<dyn Carrier>, CarrierError> {
    match tokio::time::timeout(patience, connector.connect()).await {
        Ok(connected) => connected,
        Err(_) => {
            let what = format!("no {} within {patience:?}", connector.describe());
            Err(io::Error::new(io::ErrorKind::TimedOut, what).into())
        }
    }
}

/// Growing pauses between attempts: 100 ms, doubled up to 5 s.
pub(crate) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// Begins with the shortest pause.
    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..10).map(|_| backoff.next()).collect();
        assert_eq!(pauses[..3], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(pauses[9], Duration::from_secs(5));
    }

    /// Takes connections and says nothing.
    struct Silent;

    #[async_trait]
    impl Connector for Silent {
        async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError> {
            std::future::pending().await
        }

        fn describe(&self) -> String {
            "port-forward to nobody".into()
        }
    }

    #[tokio::test]
    async fn an_attempt_ends() {
        let error = carrier(&Silent, Duration::from_millis(5)).await.err().unwrap();
        assert_eq!(error.to_string(), "no port-forward to nobody within 5ms");
    }
}
