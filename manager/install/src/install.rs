//! Applies the objects and waits; deletes them again.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use tokio::time::{Instant, sleep};

use crate::{
    Installed, MANAGED_BY, NAME, Options, Removed,
    objects::{Item, items},
    state::{State, state},
};

/// How often the cluster is asked while waiting.
const PAUSE: Duration = Duration::from_millis(250);
/// A pod that looks stuck may still recover for this long: a first failed pull is often followed by a good one.
const STUCK_FOR: Duration = Duration::from_secs(15);

/// Why installing or uninstalling failed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The caller may not do this.
    #[error("you may not change {what}: {words}")]
    Forbidden {
        /// The object, as `Kind name`.
        what: String,
        /// The API server's words.
        words: String,
    },
    /// The API server refused an object.
    #[error("the cluster refused {what}: {words}")]
    Refused {
        /// The object, as `Kind name`.
        what: String,
        /// The API server's words.
        words: String,
    },
    /// The manager was installed and does not start.
    #[error("the traffic manager ({image}) does not start: {reason}")]
    Stuck {
        /// Its image.
        image: String,
        /// Its namespace.
        namespace: String,
        /// What the cluster says.
        reason: String,
    },
    /// It did not get ready in time.
    #[error("the traffic manager was not ready after {} s: {reason}", after.as_secs())]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
        /// Its namespace.
        namespace: String,
        /// How far it got.
        reason: String,
    },
    /// The API server could not be asked.
    #[error(transparent)]
    Kubernetes(#[from] kube::Error),
}

impl InstallError {
    /// What the user can do about it.
    #[must_use]
    pub fn next_step(&self) -> String {
        match self {
            Self::Forbidden { .. } => {
                "ask a cluster administrator to run `tpx manager install`: it makes a ClusterRole".to_owned()
            }
            Self::Refused { .. } => "see what an admission policy or quota asks for".to_owned(),
            Self::Stuck { reason, .. } if reason.contains("Image") => {
                "check that the nodes can pull the image, or name another with `--image`".to_owned()
            }
            Self::Stuck { namespace, .. } | Self::TimedOut { namespace, .. } => {
                format!(
                    "look at it with `kubectl -n {namespace} describe pods` and `kubectl -n {namespace} logs deployment/{NAME}`"
                )
            }
            Self::Kubernetes(_) => "check that the cluster can be reached: `kubectl version`".to_owned(),
        }
    }
}

/// Applies all objects and waits until the manager is ready. `progress` is told each step in one line.
///
/// # Errors
/// [`InstallError`]. What was applied stays: installing again goes on from there.
pub async fn install(
    client: &Client,
    options: &Options,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Installed, InstallError> {
    let mut done = Vec::new();
    let mut generation = None;
    let apply = PatchParams::apply(MANAGED_BY).force();
    for item in items(options) {
        let title = item.title();
        progress(&format!("applying {title}"));
        let name = item.object.metadata.name.clone().unwrap_or_default();
        let api = api(client, &item);
        let mut result = api.patch(&name, &apply, &Patch::Apply(&item.object)).await;
        let mut attempts = 0;
        // A namespace that is still being removed refuses what goes into it.
        while let Err(kube::Error::Api(status)) = &result
            && matches!(status.code, 403 | 409)
            && status.message.contains("being terminated")
            && attempts < 120
        {
            progress(&format!("waiting until namespace {} is gone", options.namespace));
            attempts += 1;
            sleep(PAUSE * 2).await;
            result = match api.patch(&name, &apply, &Patch::Apply(&item.object)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    // It is gone now, and has to be made again.
                    let namespace = &items(options)[0];
                    let all = Api::<DynamicObject>::all_with(client.clone(), &namespace.resource);
                    all.patch(&options.namespace, &apply, &Patch::Apply(&namespace.object))
                        .await
                        .map_err(|error| refusal(error, &title))?;
                    api.patch(&name, &apply, &Patch::Apply(&item.object)).await
                }
                result => result,
            };
        }
        let object = result.map_err(|error| refusal(error, &title))?;
        if item.resource.kind == "Deployment" {
            generation = object.metadata.generation;
        }
        done.push(title);
    }
    wait(client, options, generation, progress).await?;
    Ok(Installed {
        version: options.version.clone(),
        namespace: options.namespace.clone(),
        image: options.image(),
        objects: done,
    })
}

async fn wait(
    client: &Client,
    options: &Options,
    generation: Option<i64>,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), InstallError> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), &options.namespace);
    let pods = Api::<Pod>::namespaced(client.clone(), &options.namespace);
    let selector = format!("app.kubernetes.io/name={NAME},app.kubernetes.io/part-of={MANAGED_BY}");
    let (start, mut stuck, mut said) = (Instant::now(), None, String::new());
    loop {
        let deployment = deployments.get(NAME).await?;
        if rolled_out(&deployment, generation) {
            return Ok(());
        }
        let found = pods.list(&ListParams::default().labels(&selector)).await?.items;
        let reason = match newest(&found, &options.image()).map(state) {
            Some(State::Stuck(words)) => {
                if stuck.get_or_insert_with(Instant::now).elapsed() >= STUCK_FOR {
                    let (image, namespace) = (options.image(), options.namespace.clone());
                    return Err(InstallError::Stuck { image, namespace, reason: words });
                }
                words
            }
            Some(State::Starting(words)) => {
                stuck = None;
                words
            }
            Some(State::Ready) => "ready, the Deployment follows".to_owned(),
            Some(State::Leaving) => "the former pod is leaving".to_owned(),
            None => replica_failure(&deployment).unwrap_or_else(|| "no pod yet".to_owned()),
        };
        if said != reason {
            progress(&format!("waiting for the traffic manager: {reason}"));
            said.clone_from(&reason);
        }
        if start.elapsed() >= options.patience {
            let namespace = options.namespace.clone();
            return Err(InstallError::TimedOut { after: options.patience, namespace, reason });
        }
        sleep(PAUSE).await;
    }
}

/// Whether the Deployment as it was applied is ready.
fn rolled_out(deployment: &Deployment, generation: Option<i64>) -> bool {
    let Some(status) = &deployment.status else { return false };
    let wanted = deployment.spec.replicas.unwrap_or(1);
    status.observed_generation >= generation
        && status.updated_replicas.unwrap_or(0) >= wanted
        && status.ready_replicas.unwrap_or(0) >= wanted
        && status.replicas.unwrap_or(0) == wanted
}

/// The pod to talk about: the youngest with the wanted image, else any.
fn newest<'a>(pods: &'a [Pod], image: &str) -> Option<&'a Pod> {
    let wanted = |pod: &Pod| {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        containers.iter().any(|container| container.image.as_deref() == Some(image))
    };
    pods.iter().max_by_key(|pod| (wanted(pod), pod.metadata.creation_timestamp.clone()))
}

/// Why no pod could be made: quotas and admission speak here.
fn replica_failure(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_deref()?;
    let failure = conditions.iter().find(|condition| condition.type_.as_deref() == Some("ReplicaFailure"))?;
    failure.message.clone()
}

/// Deletes what [`install`] made: the objects of those names that carry tpx's label, the namespace last.
///
/// # Errors
/// [`InstallError`].
pub async fn uninstall(
    client: &Client,
    options: &Options,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Removed, InstallError> {
    let (mut objects, mut kept) = (Vec::new(), Vec::new());
    for item in items(options).into_iter().rev() {
        let title = item.title();
        let name = item.object.metadata.name.clone().unwrap_or_default();
        let api = api(client, &item);
        let Some(existing) = api.get_opt(&name).await.map_err(|error| refusal(error, &title))? else { continue };
        if existing.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let ours = existing.metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/managed-by"));
        if ours.is_none_or(|value| value != MANAGED_BY) {
            kept.push(title);
            continue;
        }
        if item.resource.kind == "Namespace" && !foreign(client, options).await?.is_empty() {
            kept.push(title);
            continue;
        }
        progress(&format!("deleting {title}"));
        match api.delete(&name, &DeleteParams::background()).await {
            Ok(_) => objects.push(title),
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(refusal(error, &title)),
        }
    }
    Ok(Removed { objects, kept })
}

/// Workloads of others in the manager's namespace: it is not ours to delete then.
async fn foreign(client: &Client, options: &Options) -> Result<Vec<String>, InstallError> {
    let pods = Api::<Pod>::namespaced(client.clone(), &options.namespace);
    let selector = format!("app.kubernetes.io/part-of!={MANAGED_BY}");
    let pods = pods.list_metadata(&ListParams::default().labels(&selector)).await?;
    Ok(pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
}

fn api(client: &Client, item: &Item) -> Api<DynamicObject> {
    let resource: &ApiResource = &item.resource;
    match &item.object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

fn refusal(error: kube::Error, what: &str) -> InstallError {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            InstallError::Forbidden { what: what.to_owned(), words: status.message }
        }
        kube::Error::Api(status) if status.code != 401 && status.code < 500 => {
            InstallError::Refused { what: what.to_owned(), words: status.message }
        }
        error => error.into(),
    }
}
