//! What is in a namespace besides the manager: with it there, the namespace is not ours to delete.

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, ReplicationController, Secret, Service, ServiceAccount},
        networking::v1::{Ingress, NetworkPolicy},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams},
};

use crate::{InstallError, MANAGED_BY, objects::LABEL};

/// Most objects of a kind that are asked for: more than a cluster makes in each namespace by itself.
const MOST: u32 = 100;
/// The annotation of a Secret that was made for a ServiceAccount, with that one's name.
const TOKEN_OF: &str = "kubernetes.io/service-account.name";
/// What a cluster makes in every namespace: Kubernetes, OpenShift, Istio.
const MADE_BY_CLUSTER: [(&str, &str); 6] = [
    ("ConfigMap", "kube-root-ca.crt"),
    ("ConfigMap", "openshift-service-ca.crt"),
    ("ConfigMap", "istio-ca-root-cert"),
    ("ServiceAccount", "default"),
    ("ServiceAccount", "builder"),
    ("ServiceAccount", "deployer"),
];

/// The kinds that are looked for: what people put into namespaces, and what holds data. Custom resources are not: which there
/// are would have to be asked of each group.
fn kinds() -> [ApiResource; 15] {
    fn kind<K: Resource<DynamicType = ()>>() -> ApiResource {
        ApiResource::erase::<K>(&())
    }
    [
        kind::<Pod>(),
        kind::<PersistentVolumeClaim>(),
        kind::<Secret>(),
        kind::<ConfigMap>(),
        kind::<Service>(),
        kind::<ServiceAccount>(),
        kind::<Deployment>(),
        kind::<StatefulSet>(),
        kind::<DaemonSet>(),
        kind::<Job>(),
        kind::<CronJob>(),
        kind::<ReplicaSet>(),
        kind::<ReplicationController>(),
        kind::<Ingress>(),
        kind::<NetworkPolicy>(),
    ]
}

/// Why the namespace has to stay, if it has to: what of others is in it, or what cannot be looked for.
pub(crate) async fn foreign(client: &Client, namespace: &str) -> Result<Option<String>, InstallError> {
    let query = ListParams::default().labels(&format!("{LABEL}!={MANAGED_BY}")).limit(MOST);
    for resource in kinds() {
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
        let found = match api.list_metadata(&query).await {
            Ok(found) => found.items,
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Ok(Some(format!("you may not list {} in it", resource.plural)));
            }
            // A cluster without this kind.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(other) = found.iter().find(|object| is_foreign(&resource.kind, &object.metadata)) {
            let name = other.metadata.name.as_deref().unwrap_or_default();
            return Ok(Some(format!("{} {name} is in it", resource.kind)));
        }
    }
    Ok(None)
}

/// Whether somebody has made it, rather than the cluster by itself.
fn is_foreign(kind: &str, metadata: &ObjectMeta) -> bool {
    let name = metadata.name.as_deref().unwrap_or_default();
    let made_by_cluster = |kind: &str, name: &str| MADE_BY_CLUSTER.contains(&(kind, name));
    let account = metadata.annotations.as_ref().and_then(|annotations| annotations.get(TOKEN_OF));
    // Tokens of these ServiceAccounts and of ours, which clusters before Kubernetes 1.24 and OpenShift make.
    let is_token = kind == "Secret"
        && account.is_some_and(|account| account == crate::NAME || made_by_cluster("ServiceAccount", account));
    !is_token && !made_by_cluster(kind, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cluster_makes_is_nobodys() {
        let named = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let token = |account: &str| ObjectMeta {
            annotations: Some([(TOKEN_OF.to_owned(), account.to_owned())].into()),
            ..named("a-token-x7x7x")
        };
        assert!(!is_foreign("ConfigMap", &named("kube-root-ca.crt")));
        assert!(!is_foreign("ServiceAccount", &named("default")));
        assert!(!is_foreign("Secret", &token("default")) && !is_foreign("Secret", &token("traffic-manager")));
        assert!(is_foreign("Secret", &token("shop")) && is_foreign("Secret", &named("default")));
        // An administrator has written it.
        assert!(is_foreign("ConfigMap", &named(tpx_api::CLIENT_CONFIG_MAP)));
        assert!(is_foreign("PersistentVolumeClaim", &named("data")));
    }
}
