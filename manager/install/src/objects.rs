//! The objects of an installation, pure.

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Service, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    serde::de::DeserializeOwned,
};
use kube::{
    Resource,
    api::{ApiResource, DynamicObject},
};
use serde_json::{Value, json};
use tpx_api::{CLIENT_CONFIG_FOLDER, CLIENT_CONFIG_MAP, MANAGER_PORT};

use crate::{MANAGED_BY, NAME, Options};

/// Who made an object; the value is [`MANAGED_BY`] for what is ours.
pub(crate) const LABEL: &str = "app.kubernetes.io/managed-by";

/// The label with the version of what was applied.
const VERSION: &str = "app.kubernetes.io/version";

/// One object, and where it goes.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) resource: ApiResource,
    pub(crate) object: DynamicObject,
}

impl Item {
    fn new<K>(value: &Value) -> Self
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        debug_assert!(serde_json::from_value::<K>(value.clone()).is_ok());
        let mut value = value.clone();
        value["apiVersion"] = json!(K::api_version(&()));
        value["kind"] = json!(K::kind(&()));
        let object = serde_json::from_value(value).expect("every object has metadata");
        Self { resource: ApiResource::erase::<K>(&()), object }
    }

    pub(crate) fn name(&self) -> String {
        self.object.metadata.name.clone().unwrap_or_default()
    }

    /// `Kind name`, for people.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.resource.kind, self.name())
    }
}

/// Everything that [`install`](crate::install) puts into a cluster, in that order; the first is the namespace.
#[must_use]
pub fn objects(options: &Options) -> Vec<DynamicObject> {
    std::iter::once(namespace(options)).chain(items(options)).map(|item| item.object).collect()
}

/// Whether tpx has made it.
pub(crate) fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(LABEL)).is_some_and(|value| value == MANAGED_BY)
}

/// The namespace: made where there is none, and never changed, so that it bears no version.
pub(crate) fn namespace(options: &Options) -> Item {
    let mut metadata = metadata(options, &options.namespace, None);
    metadata["labels"].as_object_mut().expect("labels are an object").remove(VERSION);
    Item::new::<Namespace>(&json!({ "metadata": metadata }))
}

/// What is applied: in the namespace, and what belongs to it.
pub(crate) fn items(options: &Options) -> Vec<Item> {
    let cluster_name = cluster_name(options);
    let namespaced = |name: &str| metadata(options, name, Some(&options.namespace));
    let cluster_wide = |name: &str| metadata(options, name, None);
    vec![
        Item::new::<ServiceAccount>(&json!({ "metadata": namespaced(NAME) })),
        // Read-only, and only what the laptops' facts are made of.
        Item::new::<ClusterRole>(&json!({
            "metadata": cluster_wide(&cluster_name),
            "rules": [
                { "apiGroups": [""], "resources": ["namespaces", "nodes", "pods", "services"], "verbs": ["list", "watch"] },
                { "apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["list", "watch"] },
            ],
        })),
        Item::new::<ClusterRoleBinding>(&json!({
            "metadata": cluster_wide(&cluster_name),
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_name },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": options.namespace }],
        })),
        Item::new::<Deployment>(&json!({ "metadata": namespaced(NAME), "spec": deployment(options) })),
        Item::new::<Service>(&json!({
            "metadata": namespaced(NAME),
            "spec": {
                "selector": selector(),
                "ports": [{ "name": "api", "port": MANAGER_PORT, "targetPort": "api", "protocol": "TCP", "appProtocol": "kubernetes.io/h2c" }],
            },
        })),
    ]
}

/// Cluster-wide objects carry the namespace in their name: two managers do not share them.
fn cluster_name(options: &Options) -> String {
    format!("tpx-{NAME}-{}", options.namespace)
}

pub(crate) fn selector() -> Value {
    json!({ "app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": MANAGED_BY })
}

fn metadata(options: &Options, name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({ "name": name, "labels": labels(options) });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn labels(options: &Options) -> Value {
    let mut labels = selector();
    labels[LABEL] = json!(MANAGED_BY);
    // A label allows no `+`, which build metadata of a version starts with.
    labels[VERSION] = json!(options.version.replace('+', "_"));
    labels
}

fn deployment(options: &Options) -> Value {
    json!({
        "replicas": 1,
        // Sessions live in one process: never two at once.
        "strategy": { "type": "Recreate" },
        "selector": { "matchLabels": selector() },
        "template": {
            "metadata": { "labels": labels(options) },
            "spec": {
                "serviceAccountName": NAME,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 10,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "seccompProfile": { "type": "RuntimeDefault" },
                    // Ping by ICMP sockets, without a capability; one of the sysctls that every cluster allows.
                    "sysctls": [{ "name": "net.ipv4.ping_group_range", "value": "0 2147483647" }],
                },
                "containers": [{
                    "name": NAME,
                    "image": options.image(),
                    "imagePullPolicy": "IfNotPresent",
                    "env": [
                        { "name": "TPX_POD_IPS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIPs" } } },
                    ],
                    "ports": [{ "name": "api", "containerPort": MANAGER_PORT, "protocol": "TCP" }],
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": { "drop": ["ALL"] },
                    },
                    "volumeMounts": [{ "name": "client", "mountPath": CLIENT_CONFIG_FOLDER, "readOnly": true }],
                    "startupProbe": { "tcpSocket": { "port": "api" }, "periodSeconds": 1, "failureThreshold": 60 },
                    "readinessProbe": { "tcpSocket": { "port": "api" }, "periodSeconds": 5 },
                    "livenessProbe": { "tcpSocket": { "port": "api" }, "periodSeconds": 20, "failureThreshold": 3 },
                    // No CPU limit: throttling would be felt in every round trip. Memory is taken by what pods and laptops
                    // do not read, up to a window a laptop (`manager/src/lib.rs`).
                    "resources": {
                        "requests": { "cpu": "50m", "memory": "32Mi" },
                        "limits": { "memory": "1Gi" },
                    },
                }],
                // What an administrator wants laptops to be configured with, if anything. Mounted, so that it takes no right
                // to read ConfigMaps.
                "volumes": [{ "name": "client", "configMap": { "name": CLIENT_CONFIG_MAP, "optional": true } }],
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(kind: &str) -> DynamicObject {
        let object =
            objects(&Options::default()).into_iter().find(|object| object.types.as_ref().unwrap().kind == kind);
        object.unwrap()
    }

    #[test]
    fn everything_says_whose_it_is() {
        for object in objects(&Options::default()) {
            let labels = object.metadata.labels.clone().unwrap();
            assert_eq!(labels[LABEL], "tpx", "{object:?}");
            let has_version = labels.get(VERSION).is_some_and(|version| version == tpx_api::VERSION);
            assert_eq!(has_version, object.types.unwrap().kind != "Namespace");
        }
    }

    /// Values parsed into the typed objects and back lose nothing: no field is misspelt.
    #[test]
    fn every_field_is_known_to_kubernetes() {
        fn known<K: DeserializeOwned + serde::Serialize>(object: &DynamicObject) {
            let value = serde_json::to_value(object).unwrap();
            let typed: K = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(serde_json::to_value(typed).unwrap(), value);
        }
        known::<Namespace>(&find("Namespace"));
        known::<ServiceAccount>(&find("ServiceAccount"));
        known::<ClusterRole>(&find("ClusterRole"));
        known::<ClusterRoleBinding>(&find("ClusterRoleBinding"));
        known::<Deployment>(&find("Deployment"));
        known::<Service>(&find("Service"));
    }

    #[test]
    fn the_manager_may_only_read() {
        for rule in find("ClusterRole").data["rules"].as_array().unwrap() {
            for verb in rule["verbs"].as_array().unwrap() {
                assert!(["list", "watch"].contains(&verb.as_str().unwrap()));
            }
        }
    }

    /// The restricted Pod Security Standard, and nothing of the node.
    #[test]
    fn the_pod_is_restricted() {
        let pod = &find("Deployment").data["spec"]["template"]["spec"];
        for shared in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[shared].is_null());
        }
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], json!(true));
        assert_eq!(context["sysctls"], json!([{ "name": "net.ipv4.ping_group_range", "value": "0 2147483647" }]));
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], json!(false));
        assert_eq!(context["readOnlyRootFilesystem"], json!(true));
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
        // A cluster without the ConfigMap starts the pod all the same.
        assert_eq!(pod["volumes"][0]["configMap"]["optional"], json!(true));
    }

    #[test]
    fn the_service_finds_the_pods() {
        let template = &find("Deployment").data["spec"]["template"]["metadata"]["labels"];
        for (key, value) in find("Service").data["spec"]["selector"].as_object().unwrap() {
            assert_eq!(&template[key], value);
        }
    }

    #[test]
    fn two_managers_share_nothing() {
        let other = Options { namespace: "elsewhere".to_owned(), ..Options::default() };
        let names = |options: &Options| -> Vec<_> {
            let all = items(options).into_iter().chain([namespace(options)]);
            all.map(|item| (item.object.metadata.namespace.clone(), item.title())).collect()
        };
        let first = names(&Options::default());
        assert!(names(&other).iter().all(|name| !first.contains(name)));
    }

    #[test]
    fn the_image_follows_the_version() {
        let mut options = Options { version: "1.2.3".to_owned(), ..Options::default() };
        assert_eq!(options.image(), "ghcr.io/tpx-dev/tpx-manager:1.2.3");
        options.image = Some("registry.example/m:1".to_owned());
        assert_eq!(options.image(), "registry.example/m:1");
    }
}
