//! Applies the objects and waits; deletes them again.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use tokio::time::{Instant, sleep};

use crate::{
    Installed, Kept, MANAGED_BY, NAME, Options, Removed, contents,
    objects::{Item, is_ours, items, namespace},
    state::{State, state},
};

/// How often the cluster is asked while waiting.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a namespace that is being removed is waited for. Longer, and something holds it up.
const LEAVING: Duration = Duration::from_secs(60);
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
    /// An object of the same name is somebody else's. Nothing was changed.
    #[error("{what} is there already, and tpx did not make it")]
    Foreign {
        /// The object, as `Kind name`.
        what: String,
        /// The manager's namespace.
        namespace: String,
    },
    /// The namespace was deleted before, and stays.
    #[error("namespace {namespace} is still being removed after {} s", after.as_secs())]
    Leaving {
        /// The namespace.
        namespace: String,
        /// How long it was waited for.
        after: Duration,
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
            Self::Foreign { namespace, .. } => {
                format!("choose another namespace than {namespace} with `--manager-namespace`")
            }
            Self::Leaving { namespace, .. } => {
                format!("`kubectl get namespace {namespace} -o yaml` says what holds it up, in its conditions")
            }
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

/// Applies all objects and waits until the manager is ready. A namespace that is there already is used as it is. `progress`
/// is told each step in one line.
///
/// # Errors
/// [`InstallError`]. What was applied stays: installing again goes on from there.
pub async fn install(
    client: &Client,
    options: &Options,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Installed, InstallError> {
    check_free(client, options).await?;
    let namespace = namespace(options);
    progress(&format!("applying {}", namespace.title()));
    let mut done = Vec::new();
    if make_namespace(client, &namespace, progress).await? {
        done.push(namespace.title());
    }
    let mut generation = None;
    for item in items(options) {
        progress(&format!("applying {}", item.title()));
        let object = match apply(client, &item).await {
            // Somebody has just deleted it.
            Err(InstallError::Forbidden { words, .. } | InstallError::Refused { words, .. }) if is_leaving(&words) => {
                make_namespace(client, &namespace, progress).await?;
                apply(client, &item).await?
            }
            applied => applied?,
        };
        if item.resource.kind == "Deployment" {
            generation = object.metadata.generation;
        }
        done.push(item.title());
    }
    wait(client, options, generation, progress).await?;
    Ok(Installed {
        version: options.version.clone(),
        namespace: options.namespace.clone(),
        image: options.image(),
        objects: done,
    })
}

/// Finds out whether an object that would be applied is somebody else's: another program may call its own the same.
async fn check_free(client: &Client, options: &Options) -> Result<(), InstallError> {
    for item in items(options) {
        let existing = api(client, &item).get_opt(&item.name()).await.map_err(|error| refusal(error, &item.title()))?;
        if existing.is_some_and(|existing| !is_ours(&existing.metadata)) {
            return Err(InstallError::Foreign { what: item.title(), namespace: options.namespace.clone() });
        }
    }
    Ok(())
}

async fn apply(client: &Client, item: &Item) -> Result<DynamicObject, InstallError> {
    let how = PatchParams::apply(MANAGED_BY).force();
    let applied = api(client, item).patch(&item.name(), &how, &Patch::Apply(&item.object)).await;
    applied.map_err(|error| refusal(error, &item.title()))
}

/// Makes the namespace unless there is one. One that tpx has not made gets no label of tpx's: [`uninstall`] would take it
/// for its own. One that is being removed is waited for, because nothing can be put into it. Whether it was made.
async fn make_namespace(
    client: &Client,
    item: &Item,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<bool, InstallError> {
    let (api, name, start) = (api(client, item), item.name(), Instant::now());
    let how = PostParams { field_manager: Some(MANAGED_BY.to_owned()), ..PostParams::default() };
    let mut waits = false;
    loop {
        match api.get_opt(&name).await.map_err(|error| refusal(error, &item.title()))? {
            None => match api.create(&how, &item.object).await {
                Ok(_) => return Ok(true),
                // Somebody else was faster.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(refusal(error, &item.title())),
            },
            Some(existing) if existing.metadata.deletion_timestamp.is_none() => return Ok(false),
            Some(_) if start.elapsed() >= LEAVING => {
                return Err(InstallError::Leaving { namespace: name, after: LEAVING });
            }
            Some(_) => {
                if !waits {
                    progress(&format!("waiting until namespace {name} is gone"));
                    waits = true;
                }
                sleep(PAUSE * 2).await;
            }
        }
    }
}

/// Whether the API server refused an object because its namespace is being removed.
fn is_leaving(words: &str) -> bool {
    words.contains("being terminated")
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

/// Deletes what [`install`] made: the objects of those names that carry tpx's label, the namespace last, and that only
/// when nothing of others is in it.
///
/// # Errors
/// [`InstallError`].
pub async fn uninstall(
    client: &Client,
    options: &Options,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Removed, InstallError> {
    let mut removed = Removed::default();
    let namespace = std::iter::once(namespace(options));
    for item in items(options).into_iter().rev().chain(namespace) {
        let title = item.title();
        let api = api(client, &item);
        let existing = api.get_opt(&item.name()).await.map_err(|error| refusal(error, &title))?;
        // One that is going has been deleted before.
        let Some(existing) = existing.filter(|existing| existing.metadata.deletion_timestamp.is_none()) else {
            continue;
        };
        if !is_ours(&existing.metadata) {
            removed.kept.push(Kept { object: title, because: "tpx did not make it".to_owned() });
            continue;
        }
        if item.resource.kind == "Namespace"
            && let Some(because) = contents::foreign(client, &options.namespace).await?
        {
            removed.kept.push(Kept { object: title, because });
            continue;
        }
        progress(&format!("deleting {title}"));
        match api.delete(&item.name(), &DeleteParams::background()).await {
            Ok(_) => removed.objects.push(title),
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(refusal(error, &title)),
        }
    }
    Ok(removed)
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

#[cfg(test)]
mod tests;
