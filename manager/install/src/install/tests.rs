//! Against an API server that is a map of objects by path.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// What is in the cluster, and what may not be listed.
#[derive(Default)]
struct Cluster {
    objects: BTreeMap<String, Value>,
    forbidden: Option<&'static str>,
    /// The next look at a namespace that is being removed finds it gone.
    leaving: bool,
}

type Shared = Arc<Mutex<Cluster>>;

const PLATFORM: &str = "/api/v1/namespaces/platform";

impl Cluster {
    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let (parent, kind) = path.rsplit_once('/').unwrap();
        match *method {
            Method::GET => match self.objects.get(path) {
                Some(object) => {
                    let object = object.clone();
                    if self.leaving && object["metadata"]["deletionTimestamp"].is_string() {
                        self.objects.remove(path);
                    }
                    (StatusCode::OK, object)
                }
                None if self.forbidden == Some(kind) => failure(StatusCode::FORBIDDEN),
                // A list: `pods`, `secrets`; names of single objects are none of these.
                None if parent.contains("/namespaces/") && kind.ends_with('s') => {
                    let ours = |object: &Value| object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tpx";
                    let inside = self.objects.iter().filter(|(at, _)| at.starts_with(&format!("{path}/")));
                    let items: Vec<&Value> = inside.map(|(_, object)| object).filter(|object| !ours(object)).collect();
                    let list = "meta.k8s.io/v1";
                    (
                        StatusCode::OK,
                        json!({ "apiVersion": list, "kind": "PartialObjectMetadataList", "metadata": {}, "items": items }),
                    )
                }
                None => failure(StatusCode::NOT_FOUND),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                self.objects.insert(format!("{path}/{name}"), body.clone());
                (StatusCode::CREATED, body)
            }
            Method::PATCH => {
                let mut object = body;
                if kind == "traffic-manager" && parent.ends_with("deployments") {
                    object["metadata"]["generation"] = json!(1);
                    object["status"] =
                        json!({ "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1 });
                }
                self.objects.insert(path.to_owned(), object.clone());
                (StatusCode::OK, object)
            }
            Method::DELETE => match self.objects.remove(path) {
                Some(object) => (StatusCode::OK, object),
                None => failure(StatusCode::NOT_FOUND),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED),
        }
    }
}

fn failure(code: StatusCode) -> (StatusCode, Value) {
    let status = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(),
                         "message": "no",
                         "reason": code.canonical_reason().unwrap_or_default().replace(' ', "") });
    (code, status)
}

fn client(cluster: &Shared) -> Client {
    let cluster = Arc::clone(cluster);
    let serve = move |request: Request<Body>| {
        let cluster = Arc::clone(&cluster);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = cluster.lock().unwrap().answer(&head.method, head.uri.path(), body);
            let answer = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok::<_, tower::BoxError>(Response::builder().status(code).body(answer).unwrap())
        }
    };
    Client::new(tower::service_fn(serve), "default")
}

/// A cluster with these objects, as paths with labels.
fn cluster(objects: &[(&str, Value)]) -> Shared {
    let mut cluster = Cluster::default();
    for (path, metadata) in objects {
        let name = path.rsplit_once('/').unwrap().1;
        let mut metadata = metadata.clone();
        metadata["name"] = json!(name);
        cluster.objects.insert((*path).to_owned(), json!({ "apiVersion": "v1", "kind": "X", "metadata": metadata }));
    }
    Arc::new(Mutex::new(cluster))
}

fn options() -> Options {
    Options { namespace: "platform".to_owned(), ..Options::default() }
}

async fn installed(cluster: &Shared) -> Result<Installed, InstallError> {
    install(&client(cluster), &options(), &mut |_| {}).await
}

async fn removed(cluster: &Shared) -> Removed {
    uninstall(&client(cluster), &options(), &mut |_| {}).await.unwrap()
}

fn left(cluster: &Shared) -> Vec<String> {
    cluster.lock().unwrap().objects.keys().cloned().collect()
}

#[tokio::test]
async fn what_was_made_goes_again() {
    let cluster = cluster(&[]);
    let done = installed(&cluster).await.unwrap();
    assert_eq!(done.objects.len(), left(&cluster).len());
    let account = format!("{PLATFORM}/serviceaccounts/default");
    cluster.lock().unwrap().objects.insert(account.clone(), json!({ "metadata": { "name": "default" } }));
    let removed = removed(&cluster).await;
    assert_eq!((removed.objects.len(), removed.kept), (done.objects.len(), Vec::new()));
    assert_eq!(left(&cluster), [account]);
}

#[tokio::test]
async fn a_namespace_of_others_is_neither_labelled_nor_deleted() {
    let cluster = cluster(&[(PLATFORM, json!({ "labels": { "team": "platform" } }))]);
    let before = cluster.lock().unwrap().objects[PLATFORM].clone();
    installed(&cluster).await.unwrap();
    assert_eq!(cluster.lock().unwrap().objects[PLATFORM], before);
    let removed = removed(&cluster).await;
    assert_eq!(removed.kept.len(), 1);
    assert_eq!(removed.kept[0].object, "Namespace platform");
    assert_eq!(left(&cluster), [PLATFORM]);
}

#[tokio::test]
async fn a_namespace_with_things_of_others_stays() {
    for (inside, name) in [
        ("api/v1/namespaces/platform/secrets", "db"),
        ("api/v1/namespaces/platform/configmaps", "tpx-client"),
        ("api/v1/namespaces/platform/persistentvolumeclaims", "data"),
        ("apis/apps/v1/namespaces/platform/deployments", "scaled-down"),
        ("apis/batch/v1/namespaces/platform/cronjobs", "backup"),
    ] {
        let cluster = cluster(&[(&format!("/{inside}/{name}"), json!({}))]);
        installed(&cluster).await.unwrap();
        let kept = removed(&cluster).await.kept;
        assert_eq!(kept.len(), 1, "{inside}");
        assert!(kept[0].object == "Namespace platform" && kept[0].because.contains(name), "{kept:?}");
        assert_eq!(left(&cluster).len(), 2, "{inside}");
    }
}

#[tokio::test]
async fn what_cannot_be_looked_for_keeps_the_namespace() {
    let cluster = cluster(&[]);
    installed(&cluster).await.unwrap();
    cluster.lock().unwrap().forbidden = Some("secrets");
    let kept = removed(&cluster).await.kept;
    assert!(kept[0].because.contains("may not list secrets"), "{kept:?}");
    assert_eq!(left(&cluster), [PLATFORM]);
}

#[tokio::test]
async fn what_others_call_the_same_is_not_replaced() {
    let path = format!("{PLATFORM}/serviceaccounts/traffic-manager");
    let cluster = cluster(&[(&path, json!({ "labels": { "app": "other" } }))]);
    let error = installed(&cluster).await.unwrap_err();
    assert_eq!(error.to_string(), "ServiceAccount traffic-manager is there already, and tpx did not make it");
    assert_eq!(left(&cluster), [path]);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_going_is_waited_for() {
    let cluster = cluster(&[(PLATFORM, json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }))]);
    // It has been deleted before: neither removed now nor kept.
    assert_eq!(removed(&cluster).await, Removed::default());
    let error = installed(&cluster).await.unwrap_err();
    assert!(matches!(error, InstallError::Leaving { .. }), "{error}");
    assert_eq!(left(&cluster), [PLATFORM]);
    cluster.lock().unwrap().leaving = true;
    installed(&cluster).await.unwrap();
    assert!(is_ours(&serde_json::from_value(cluster.lock().unwrap().objects[PLATFORM]["metadata"].clone()).unwrap()));
}
