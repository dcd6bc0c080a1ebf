//! Watches the cluster and keeps the facts.
//!
//! Only what the facts are made of is kept: each watcher reduces its objects to addresses and names at once. Changes are
//! gathered for a moment, so that a rollout of a hundred pods is one message to each laptop.

use std::{collections::BTreeMap, fmt::Debug, net::IpAddr, path::PathBuf, time::Duration};

use futures::{Stream, StreamExt, stream};
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        networking::v1::ServiceCIDR,
    },
    serde::de::DeserializeOwned,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, time::Instant};
use tpx_api::Facts;

use crate::{
    client_config,
    state::facts::{self, Seen},
};

/// Changes that come within this time are one.
const GATHER: Duration = Duration::from_millis(250);
/// Objects per answer of the first list: bounds the memory that a large cluster costs at the start.
const PAGE: u32 = 200;

/// What does not change while the manager runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// As in `cluster.local`.
    pub cluster_domain: String,
    /// The manager's own pod addresses.
    pub manager_addresses: Vec<IpAddr>,
    /// The file whose text laptops are configured with; it may come and go.
    pub client_config: PathBuf,
}

/// One object's part of what was seen.
enum Change {
    ServiceCidr(String, Option<Vec<IpNet>>),
    Service(String, Option<Vec<IpAddr>>),
    Node(String, Option<facts::Node>),
    Pod(String, Option<Vec<IpAddr>>),
    Namespace(String, bool),
}

/// A change, or a mark of a (re)list: what is not named between `Start` and `Done` is gone.
enum Update {
    Start(Kind),
    Change(Change),
    Done(Kind),
    /// The cluster has no such thing.
    Absent(Kind),
    /// The client configuration, at the start and when it changes.
    ClientConfig(Option<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    ServiceCidr,
    Service,
    Node,
    Pod,
    Namespace,
}

const KINDS: [Kind; 5] = [Kind::ServiceCidr, Kind::Service, Kind::Node, Kind::Pod, Kind::Namespace];

/// Keeps `known` current for ever. The first facts come when everything was listed once.
pub async fn watch_cluster(client: Client, fixed: Fixed, known: watch::Sender<Option<Facts>>) {
    let mut updates = stream::select_all([
        service_cidrs(client.clone()).boxed(),
        full::<Service>(&client, Kind::Service, |service| {
            let ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_deref()).unwrap_or_default();
            Change::Service(key(service), Some(parse(ips.iter())))
        })
        .boxed(),
        full::<Node>(&client, Kind::Node, |node| Change::Node(key(node), Some(reduce_node(node)))).boxed(),
        full::<Pod>(&client, Kind::Pod, |pod| Change::Pod(key(pod), Some(pod_addresses(pod)))).boxed(),
        namespaces(&client).boxed(),
        client_config::watch(fixed.client_config).map(Update::ClientConfig).boxed(),
    ]);
    let mut gathering = Gathering::default();
    let mut due: Option<Instant> = None;
    loop {
        let update = match due {
            None => updates.next().await,
            Some(at) => tokio::select! {
                update = updates.next() => update,
                () = tokio::time::sleep_until(at) => {
                    due = None;
                    let now = gathering.seen.facts(&fixed.cluster_domain, &fixed.manager_addresses);
                    known.send_if_modified(|before| {
                        let changed = before.as_ref() != Some(&now);
                        *before = Some(now);
                        changed
                    });
                    continue;
                }
            },
        };
        let Some(update) = update else { return };
        gathering.handle(update);
        if gathering.complete() && due.is_none() {
            // The first facts are waited for by somebody.
            let delay = if known.borrow().is_none() { Duration::ZERO } else { GATHER };
            due = Some(Instant::now() + delay);
        }
    }
}

/// What was seen, and lists that are under way.
#[derive(Default)]
struct Gathering {
    seen: Seen,
    listed: BTreeMap<Kind, bool>,
    /// Keys that a list under way has named.
    fresh: BTreeMap<Kind, std::collections::BTreeSet<String>>,
}

impl Gathering {
    fn complete(&self) -> bool {
        KINDS.iter().all(|kind| self.listed.get(kind) == Some(&true))
    }

    fn handle(&mut self, update: Update) {
        match update {
            Update::Start(kind) => {
                self.fresh.insert(kind, Default::default());
            }
            Update::Change(change) => self.change(change),
            Update::Done(kind) => {
                if let Some(fresh) = self.fresh.remove(&kind) {
                    self.retain(kind, &fresh);
                }
                self.listed.insert(kind, true);
            }
            Update::Absent(kind) => {
                self.listed.insert(kind, true);
            }
            Update::ClientConfig(text) => self.seen.client_config = text,
        }
    }

    fn change(&mut self, change: Change) {
        fn put<T>(map: &mut BTreeMap<String, T>, key: String, value: Option<T>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        let kind = match &change {
            Change::ServiceCidr(..) => Kind::ServiceCidr,
            Change::Service(..) => Kind::Service,
            Change::Node(..) => Kind::Node,
            Change::Pod(..) => Kind::Pod,
            Change::Namespace(..) => Kind::Namespace,
        };
        let (Change::ServiceCidr(key, _)
        | Change::Service(key, _)
        | Change::Node(key, _)
        | Change::Pod(key, _)
        | Change::Namespace(key, _)) = &change;
        if let Some(fresh) = self.fresh.get_mut(&kind) {
            fresh.insert(key.clone());
        }
        match change {
            Change::ServiceCidr(key, value) => put(self.seen.service_cidrs.get_or_insert_default(), key, value),
            Change::Service(key, value) => put(&mut self.seen.services, key, value),
            Change::Node(key, value) => put(&mut self.seen.nodes, key, value),
            Change::Pod(key, value) => put(&mut self.seen.pods, key, value),
            Change::Namespace(key, true) => drop(self.seen.namespaces.insert(key)),
            Change::Namespace(key, false) => drop(self.seen.namespaces.remove(&key)),
        }
    }

    fn retain(&mut self, kind: Kind, fresh: &std::collections::BTreeSet<String>) {
        match kind {
            Kind::ServiceCidr => self.seen.service_cidrs.get_or_insert_default().retain(|key, _| fresh.contains(key)),
            Kind::Service => self.seen.services.retain(|key, _| fresh.contains(key)),
            Kind::Node => self.seen.nodes.retain(|key, _| fresh.contains(key)),
            Kind::Pod => self.seen.pods.retain(|key, _| fresh.contains(key)),
            Kind::Namespace => self.seen.namespaces.retain(|key| fresh.contains(key)),
        }
    }
}

/// Watches whole objects: the addresses are not in their metadata.
fn full<K>(client: &Client, kind: Kind, reduce: fn(&K) -> Change) -> impl Stream<Item = Update> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default().page_size(PAGE));
    updates(events, kind, reduce)
}

fn namespaces(client: &Client) -> impl Stream<Item = Update> + Send + use<> {
    let config = watcher::Config::default().page_size(PAGE);
    let events = watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), config);
    updates(events, Kind::Namespace, |namespace| Change::Namespace(key(namespace), true))
}

/// Only where the cluster has the API.
fn service_cidrs(client: Client) -> impl Stream<Item = Update> + Send {
    let api = Api::<ServiceCIDR>::all(client.clone());
    let probe = async move {
        loop {
            match api.list_metadata(&ListParams::default().limit(1)).await {
                Ok(_) => return true,
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    tracing::info!(reason = status.message, "service subnets are learned from the Services");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, "the API server does not answer");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    stream::once(probe).flat_map(move |present| {
        if !present {
            return stream::iter([Update::Absent(Kind::ServiceCidr)]).boxed();
        }
        full::<ServiceCIDR>(&client, Kind::ServiceCidr, |cidr| {
            let cidrs = cidr.spec.as_ref().map(|spec| spec.cidrs.as_deref().unwrap_or_default()).unwrap_or_default();
            Change::ServiceCidr(key(cidr), Some(parse(cidrs.iter())))
        })
        .boxed()
    })
}

fn updates<K: Send + 'static>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
    kind: Kind,
    reduce: fn(&K) -> Change,
) -> impl Stream<Item = Update> + Send {
    events.default_backoff().filter_map(move |event| {
        let update = match event {
            Ok(Event::Init) => Some(Update::Start(kind)),
            Ok(Event::InitApply(object) | Event::Apply(object)) => Some(Update::Change(reduce(&object))),
            Ok(Event::Delete(object)) => Some(Update::Change(gone(reduce(&object)))),
            Ok(Event::InitDone) => Some(Update::Done(kind)),
            Err(error) => {
                tracing::warn!(?kind, %error, "watching failed, trying again");
                None
            }
        };
        std::future::ready(update)
    })
}

fn gone(change: Change) -> Change {
    match change {
        Change::ServiceCidr(key, _) => Change::ServiceCidr(key, None),
        Change::Service(key, _) => Change::Service(key, None),
        Change::Node(key, _) => Change::Node(key, None),
        Change::Pod(key, _) => Change::Pod(key, None),
        Change::Namespace(key, _) => Change::Namespace(key, false),
    }
}

fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// A headless Service has the ClusterIP `None`; what does not parse is left out.
fn parse<'a, T: std::str::FromStr>(texts: impl Iterator<Item = &'a String>) -> Vec<T> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn reduce_node(node: &Node) -> facts::Node {
    let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    // Host names are among them.
    let addresses = addresses.filter_map(|address| address.address.parse().ok()).collect();
    facts::Node { pod_cidrs: parse(cidrs.iter()), addresses }
}

fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return Vec::new();
    }
    let Some(status) = &pod.status else { return Vec::new() };
    // A finished pod's address may belong to somebody else by now.
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
}
