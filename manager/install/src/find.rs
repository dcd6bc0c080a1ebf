//! Finds the manager's pod.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};

use crate::{
    MANAGED_BY, NAME,
    state::{State, state},
};

/// A manager that can be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerPod {
    /// Name of the pod.
    pub name: String,
    /// Version that it is labelled with; empty when it has no such label.
    pub version: String,
    /// Always true from [`find_manager`]; another pod may be ready by the time this one is used.
    pub ready: bool,
}

/// Why there is no manager to connect to.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("no traffic manager is installed in namespace {0}")]
    NotInstalled(String),
    /// There is one, and it does not answer.
    #[error("the traffic manager in namespace {namespace} is not ready: {reason}")]
    NotReady {
        /// Its namespace.
        namespace: String,
        /// What the pod says.
        reason: String,
    },
    /// The caller may not look.
    #[error("you may not list pods in namespace {namespace}: {words}")]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// The API server's words.
        words: String,
    },
    /// The API server could not be asked.
    #[error(transparent)]
    Kubernetes(#[from] kube::Error),
}

impl FindError {
    /// What the user can do about it.
    #[must_use]
    pub fn next_step(&self) -> String {
        match self {
            Self::NotInstalled(namespace) if namespace == crate::DEFAULT_NAMESPACE => {
                "install it with `tpx manager install`".to_owned()
            }
            Self::NotInstalled(namespace) => {
                format!("install it with `tpx manager install --manager-namespace {namespace}`")
            }
            Self::NotReady { namespace, .. } => {
                format!("look at it with `kubectl -n {namespace} describe deployment {NAME}`")
            }
            Self::Forbidden { namespace, .. } => {
                format!("ask for the right to list pods and create pods/portforward in namespace {namespace}")
            }
            Self::Kubernetes(_) => "check that the cluster can be reached: `kubectl version`".to_owned(),
        }
    }
}

/// Picks a ready pod of the manager in `namespace`, the youngest where there are several.
///
/// # Errors
/// [`FindError`].
pub async fn find_manager(client: &Client, namespace: &str) -> Result<ManagerPod, FindError> {
    let selector = format!("app.kubernetes.io/name={NAME},app.kubernetes.io/part-of={MANAGED_BY}");
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    match pods.list(&ListParams::default().labels(&selector)).await {
        Ok(pods) => choose(&pods.items, namespace),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Err(FindError::Forbidden { namespace: namespace.to_owned(), words: status.message })
        }
        Err(error) => Err(error.into()),
    }
}

fn choose(pods: &[Pod], namespace: &str) -> Result<ManagerPod, FindError> {
    let states = || pods.iter().map(|pod| (pod, state(pod)));
    let ready = states().filter(|(_, state)| *state == State::Ready);
    if let Some((pod, _)) = ready.max_by_key(|(pod, _)| pod.metadata.creation_timestamp.clone()) {
        let labels = pod.metadata.labels.as_ref();
        let version = labels.and_then(|labels| labels.get("app.kubernetes.io/version"));
        return Ok(ManagerPod {
            name: pod.metadata.name.clone().unwrap_or_default(),
            version: version.cloned().unwrap_or_default().replace('_', "+"),
            ready: true,
        });
    }
    let reason = states().fold(None, |found, (_, state)| match (state, found) {
        (State::Stuck(words), _) | (State::Starting(words), None) => Some(words),
        (State::Leaving, None) => Some("it is being removed".to_owned()),
        (_, found) => found,
    });
    match reason {
        Some(reason) => Err(FindError::NotReady { namespace: namespace.to_owned(), reason }),
        None => Err(FindError::NotInstalled(namespace.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ready: bool, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": { "name": name, "labels": { "app.kubernetes.io/version": "0.1.0_abc" } },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
        });
        for (key, value) in more.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_youngest_ready_pod() {
        let pods = [
            pod("old", true, json!({ "creationTimestamp": "2026-01-01T00:00:00Z" })),
            pod("new", true, json!({ "creationTimestamp": "2026-01-02T00:00:00Z" })),
            pod("leaving", true, json!({ "deletionTimestamp": "2026-01-03T00:00:00Z" })),
            pod("starting", false, json!({})),
        ];
        let expected = ManagerPod { name: "new".to_owned(), version: "0.1.0+abc".to_owned(), ready: true };
        assert_eq!(choose(&pods, "n").unwrap(), expected);
    }

    #[test]
    fn none_that_is_ready() {
        let error = choose(&[], "tpx-system").unwrap_err();
        assert!(matches!(error, FindError::NotInstalled(_)));
        assert_eq!(error.next_step(), "install it with `tpx manager install`");
        let error = choose(&[pod("a", false, json!({}))], "n").unwrap_err();
        let words = "the traffic manager in namespace n is not ready: running, not ready yet";
        assert_eq!(error.to_string(), words);
    }
}
