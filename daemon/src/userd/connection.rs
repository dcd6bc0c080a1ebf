//! A connection that is up: what it is made of, what can be asked of it, and how it ends.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Instant};

use tokio::{
    sync::{Mutex, watch},
    task::{JoinHandle, JoinSet},
};
use tpx_api::{Facts, VERSION};
use tpx_core::{
    config::Config,
    dns::ResolvConf,
    plan::{Road, Scope},
};
use tpx_datapath::{
    Host as _, MapsDump,
    linux::{Maps, routes::Monitor},
    remote::{
        RemoteHost,
        protocol::{Missing, Welcome},
    },
};

use super::{
    addresses::Addresses,
    container::Container,
    directory::Directory,
    flow_table::FlowTable,
    flows::FlowCounters,
    insight::Insight,
    lanes::Lanes,
    names::{Serving, Wanted},
    resolv_conf,
    routing::{Decided, News, Routing, follow},
    service_names::ServiceNames,
    session::Session,
    status::{self, Containers, Datapath, Kubernetes, Manager, Policy, RootDaemon, State, Status, Subnet, UserDaemon},
    tree::Tree,
};
use crate::{
    failure::{Failure, Kind},
    ipc::{Exchange, NamespaceRow, Reply, Request},
    paths,
};

/// What never changes while connected.
pub(crate) struct Identity {
    /// The connection's name.
    pub name: String,
    /// kubeconfig's context.
    pub context: String,
    /// The API server's URL.
    pub server: String,
    /// The namespace of single labels.
    pub namespace: String,
    /// `--mapped-namespaces`.
    pub mapped_namespaces: Option<Vec<String>>,
    /// Where the manager runs.
    pub manager_namespace: String,
    /// Its version.
    pub manager_version: String,
    /// How streams reach it.
    pub carrier: String,
    /// The privileged daemon's version.
    pub rootd_version: String,
    /// Its socket.
    pub rootd_socket: PathBuf,
    /// What all layers of the configuration say.
    pub config: Arc<Config>,
    /// Whether systemd-resolved was told.
    pub systemd_resolved: bool,
    /// Why flows take the road that they take.
    pub road_because: String,
    /// What the kernel lacks.
    pub missing: Vec<Missing>,
    /// Since when.
    pub since: Instant,
    /// Whose processes see the cluster.
    pub scope: status::Scope,
}

/// Why a connection is over.
pub(crate) enum Ended {
    /// It cannot go on.
    Lost(String),
    /// Nobody needs it any more.
    Done(&'static str),
}

/// What carries flows; ends with the connection.
pub(crate) struct Tasks {
    flows: JoinSet<()>,
    /// The device lives as long as any copy of its file.
    _device: OwnedFd,
}

impl Tasks {
    /// Holds the device that the flows' routes hang on.
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self { flows: JoinSet::new(), _device: device }
    }

    /// Carries the flows of one more road.
    pub(crate) fn carry(&mut self, road: impl Future<Output = ()> + Send + 'static) {
        self.flows.spawn(road);
    }
}

/// What a connection is made of.
pub(crate) struct Parts {
    /// What never changes.
    pub identity: Identity,
    /// The privileged daemon.
    pub host: RemoteHost,
    /// What decides about subnets.
    pub routing: Routing,
    /// The host's name servers as they were.
    pub resolv_conf: ResolvConf,
    /// The container that the scope is.
    pub container: Option<Container>,
    /// What was decided first.
    pub decided: watch::Sender<Decided>,
    /// The host's routes.
    pub network: Monitor,
    /// Where streams are opened.
    pub lanes: Lanes,
    /// The stay with the manager.
    pub session: Session,
    /// The name server.
    pub names: Serving,
    /// The kernel's maps, on the express lane.
    pub maps: Option<Maps>,
    /// Virtual addresses.
    pub addresses: Addresses,
    /// What is carried.
    pub table: FlowTable,
    /// Counters of flows.
    pub counters: Arc<FlowCounters>,
    /// What carries flows.
    pub tasks: Tasks,
}

/// A connection that is up. Dropping it ends everything; [`close`](Connection::close) does so in good order.
pub(crate) struct Connection {
    identity: Identity,
    host: Arc<Mutex<RemoteHost>>,
    follower: JoinHandle<String>,
    decided: watch::Receiver<Decided>,
    network: Monitor,
    lanes: Lanes,
    session: Session,
    names: Serving,
    maps: Option<Maps>,
    addresses: Addresses,
    table: FlowTable,
    service_names: ServiceNames,
    wanted: Wanted,
    counters: Arc<FlowCounters>,
    tasks: Tasks,
    /// The process tree that it is for.
    tree: Option<Tree>,
}

impl Connection {
    /// Puts the parts together and begins to follow the changes of cluster and host.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            identity,
            host,
            routing,
            resolv_conf,
            container,
            decided,
            network,
            lanes,
            session,
            names,
            maps,
            addresses,
            table,
            counters,
            mut tasks,
        } = parts;
        let gone = host.closed();
        let (service_names, wanted) = (ServiceNames::new(names.cluster()), routing.wanted.clone());
        let host = Arc::new(Mutex::new(host));
        let now = decided.subscribe();
        let place = container.map(|container| {
            let (place, following) = container.follow(network.looks());
            tasks.carry(following);
            place
        });
        let news = News {
            facts: session.facts.clone(),
            network: network.watch(),
            losses: network.losses(),
            container: place,
            directory: Directory::of(&routing.scope),
            resolv_conf: resolv_conf::Following::from(resolv_conf),
        };
        let stand_in = names.stand_in();
        let follower = tokio::spawn(follow(Arc::clone(&host), gone, routing, decided, news, stand_in));
        Self {
            identity,
            host,
            follower,
            decided: now,
            network,
            lanes,
            session,
            names,
            maps,
            addresses,
            table,
            service_names,
            wanted,
            counters,
            tasks,
            tree: None,
        }
    }

    /// Whose processes see the cluster.
    pub(crate) fn scope(&self) -> &status::Scope {
        &self.identity.scope
    }

    /// From now on the connection ends with its process tree, if it is for one.
    ///
    /// # Errors
    /// When the tree cannot be watched, in words.
    pub(crate) fn watch_tree(&mut self) -> Result<(), String> {
        if let status::Scope::Tree { cgroup } = self.scope() {
            let tree = Tree::watch(cgroup).map_err(|e| format!("cannot watch the process tree: {e}"))?;
            self.tree = Some(tree);
        }
        Ok(())
    }

    /// The cluster's facts now.
    pub(crate) fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.session.facts.borrow())
    }

    /// Resolves when the connection cannot go on, or nobody needs it any more. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        let over = async {
            match &mut self.tree {
                Some(tree) => tree.over().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = &mut self.follower => Ended::Lost(why.unwrap_or_else(|e| e.to_string())),
            why = over => Ended::Done(why),
        }
    }

    /// Whether it makes sense to connect again after a loss: the privileged daemon is there, or somebody starts it again. Not
    /// for a process tree, whose processes have moved out of it.
    pub(crate) async fn may_come_back(&self) -> bool {
        let host = self.host.lock().await;
        self.tree.is_none() && (!host.is_gone() || host.welcome().features.iter().any(|f| f == Welcome::STAYS))
    }

    /// Answers a request of the command line.
    pub(crate) fn answer(&self, request: Request, mut exchange: Exchange) {
        let reply = match request {
            Request::Status => {
                let status = self.status();
                tokio::spawn(async move { exchange.send(&Reply::Status(Box::new(status.await))).await });
                return;
            }
            Request::ListNamespaces => Reply::Namespaces(self.namespaces()),
            Request::ConfigView => Reply::Config(Box::new(Config::clone(&self.identity.config))),
            Request::Connect(_) => Reply::Failed(Failure::new(
                Kind::AlreadyConnected,
                format!("already connected to context {}", self.identity.context),
                "run `tpx quit` first, or `tpx status` to see it",
            )),
            Request::Quit => return,
            other => {
                let (insight, maps) = (self.insight(), self.dump(matches!(other, Request::MapsDump)));
                tokio::spawn(async move {
                    let reply = insight.answer(other, maps.await).await;
                    exchange.send(&reply).await
                });
                return;
            }
        };
        tokio::spawn(async move { exchange.send(&reply).await });
    }

    /// What the kernel's maps hold, if there are some and that is `wanted`.
    fn dump(&self, wanted: bool) -> impl Future<Output = Result<Option<MapsDump>, String>> + Send + use<> {
        let maps = self.maps.as_ref().filter(|_| wanted).map(Maps::dump).transpose();
        let host = Arc::clone(&self.host);
        async move {
            let Some(maps) = maps.map_err(|e| e.to_string())? else { return Ok(None) };
            let tables = host.lock().await.tables().await.map_err(|e| e.to_string())?;
            Ok(Some(maps.with(tables)))
        }
    }

    /// Which containers see the cluster, by the word of the privileged daemon.
    fn containers(&self) -> impl Future<Output = Containers> + Send + use<> {
        let (host, plan) = (Arc::clone(&self.host), self.decided.borrow().plan.clone());
        let wanted = plan.scope.is_containers() || !self.identity.config.served_devices().is_empty();
        async move {
            match plan.road {
                _ if matches!(plan.scope, Scope::Cgroup(_) | Scope::Tree) => Containers::none("outside of the scope"),
                _ if !wanted => Containers::none("left out by the configuration (containers)"),
                Road::Tun => Containers::none(
                    "without eBPF they reach the cluster by address only, and only where this machine forwards for them",
                ),
                Road::Express => match host.lock().await.status().await {
                    Ok(status) => status.bridges.into(),
                    Err(e) => Containers::none(e.to_string()),
                },
            }
        }
    }

    fn insight(&self) -> Insight {
        let (facts, network) = (self.facts(), self.network.now());
        Insight {
            name: self.identity.name.clone(),
            scope: self.identity.scope.clone(),
            plan: self.decided.borrow().plan.clone(),
            unsteered_name_servers: self.decided.borrow().unanswered.clone(),
            addresses: self.addresses.clone(),
            without: Arc::new(move |ip| network.lookup(ip).into_route()),
            policy: self.wanted.policy(&facts),
            cluster_domain: facts.cluster_domain.clone(),
            names: self.service_names.clone(),
            asker: (*self.scope() != status::Scope::Workstation).then(|| self.names.usual_asker()),
            flows: self.table.clone(),
        }
    }

    /// Ends everything; afterwards the host is as it was before.
    pub(crate) async fn close(self) {
        let Self { host, follower, lanes, session, names, tasks, .. } = self;
        follower.abort();
        // New connections first, then the ones that are carried, then the session.
        if let Err(e) = host.lock().await.revert().await {
            tracing::warn!("the privileged daemon could not undo everything: {e}");
        }
        drop(tasks);
        drop(names);
        session.depart().await;
        drop(lanes);
    }

    /// What `tpx status` shows: most of it as it is now, the containers as the privileged daemon tells.
    pub(crate) fn status(&self) -> impl Future<Output = Status> + Send + use<> {
        let (mut status, containers) = (self.without_containers(), self.containers());
        async move {
            status.datapath.containers = containers.await;
            status
        }
    }

    fn without_containers(&self) -> Status {
        let facts = self.facts();
        let id = &self.identity;
        let decided = self.decided.borrow();
        Status {
            name: id.name.clone(),
            state: State::of(self.lanes.is_up(), self.session.problem.borrow().is_none()),
            scope: match (&id.scope, &decided.plan.scope) {
                (status::Scope::Container { name, .. }, Scope::Containers(addresses)) => {
                    status::Scope::Container { name: name.clone(), addresses: addresses.clone() }
                }
                (scope, _) => scope.clone(),
            },
            kubernetes: Kubernetes { context: id.context.clone(), server: id.server.clone() },
            namespace: id.namespace.clone(),
            mapped_namespaces: id.mapped_namespaces.clone(),
            manager: Manager {
                namespace: id.manager_namespace.clone(),
                version: id.manager_version.clone(),
                carrier: id.carrier.clone(),
                session: self.session.id.borrow().clone(),
                problem: self.session.problem.borrow().clone(),
            },
            datapath: Datapath {
                road: if decided.plan.road == Road::Tun { "tun" } else { "ebpf" }.into(),
                because: id.road_because.clone(),
                subnets: decided.subnets.subnets.iter().map(Subnet::from).collect(),
                except: decided.subnets.exceptions.iter().map(|exception| exception.cidr).collect(),
                policy: Policy {
                    deny: decided.policy.rules().to_vec(),
                    deny_with: decided.policy.with(),
                    subnets: decided.plan.deny.len(),
                },
                containers: Containers::default(),
                missing: id.missing.clone(),
                problem: decided.problem.clone(),
            },
            dns: self.names.status(&facts.cluster_domain, &decided.unanswered, id.systemd_resolved),
            flows: self.counters.read(),
            user_daemon: UserDaemon {
                version: VERSION.into(),
                pid: std::process::id(),
                log: paths::log_file(&id.name).map(|path| path.display().to_string()).unwrap_or_default(),
                connected_seconds: id.since.elapsed().as_secs(),
            },
            root_daemon: RootDaemon {
                version: id.rootd_version.clone(),
                socket: id.rootd_socket.display().to_string(),
            },
        }
    }

    fn namespaces(&self) -> Vec<NamespaceRow> {
        let mapped = self.identity.mapped_namespaces.as_ref();
        let row = |name: &String| NamespaceRow {
            mapped: mapped.is_none_or(|mapped| mapped.contains(name)),
            connected: *name == self.identity.namespace,
            name: name.clone(),
        };
        self.facts().namespaces.iter().map(row).collect()
    }
}
