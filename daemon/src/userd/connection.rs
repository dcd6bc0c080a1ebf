//! A connection that is up: what it is made of, what can be asked of it, and how it ends.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Instant};

use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tpx_api::{Facts, VERSION};
use tpx_core::{
    config::Config,
    plan::{Plan, Road, Scope},
    subnets::{self, decide_again},
};
use tpx_datapath::{Host as _, linux::Maps, remote::RemoteHost};

use super::{
    flows::FlowCounters,
    lanes::Lanes,
    names::Serving,
    session::Session,
    status::{Datapath, Kubernetes, Manager, RootDaemon, State, Status, Subnet, UserDaemon},
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
    pub config: Config,
    /// Since when.
    pub since: Instant,
}

/// What carries flows; ends with the connection.
pub(crate) struct Tasks {
    flows: JoinHandle<()>,
    /// The device lives as long as any copy of its file.
    _device: OwnedFd,
}

impl Tasks {
    /// Holds the task that carries flows, and the device that their routes hang on.
    pub(crate) fn new(flows: JoinHandle<()>, device: OwnedFd) -> Self {
        Self { flows, _device: device }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.flows.abort();
    }
}

/// A connection that is up. Dropping it ends everything; [`close`](Connection::close) does so in good order.
pub(crate) struct Connection {
    identity: Identity,
    host: Arc<Mutex<RemoteHost>>,
    follower: JoinHandle<String>,
    plan: watch::Receiver<Plan>,
    lanes: Lanes,
    session: Session,
    names: Serving,
    maps: Maps,
    counters: Arc<FlowCounters>,
    tasks: Tasks,
}

impl Connection {
    /// Puts the parts together and begins to follow the cluster's changes.
    #[expect(clippy::too_many_arguments, reason = "called once, by the steps that made the parts")]
    pub(crate) fn new(
        identity: Identity,
        host: RemoteHost,
        (inputs, first): (subnets::Inputs, Plan),
        lanes: Lanes,
        session: Session,
        names: Serving,
        maps: Maps,
        counters: Arc<FlowCounters>,
        tasks: Tasks,
    ) -> Self {
        let gone = host.closed();
        let host = Arc::new(Mutex::new(host));
        let (applied, plan) = watch::channel(first);
        let follower = tokio::spawn(follow(Arc::clone(&host), gone, inputs, applied, session.facts.clone()));
        Self { identity, host, follower, plan, lanes, session, names, maps, counters, tasks }
    }

    /// The cluster's facts now.
    pub(crate) fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.session.facts.borrow())
    }

    /// Resolves, with the reason, when the connection cannot go on. Cancel safe.
    pub(crate) async fn lost(&mut self) -> String {
        (&mut self.follower).await.unwrap_or_else(|e| e.to_string())
    }

    /// Answers a request of the command line.
    pub(crate) fn answer(&self, request: Request, mut exchange: Exchange) {
        let reply = match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::ListNamespaces => Reply::Namespaces(self.namespaces()),
            Request::ConfigView => Reply::Config(Box::new(self.identity.config.clone())),
            Request::MapsDump => match self.maps.dump() {
                Ok(maps) => Reply::Maps(Box::new(maps)),
                Err(e) => Reply::Failed(Failure::new(Kind::Host, format!("cannot read the maps: {e}"), "try again")),
            },
            Request::Connect(_) => Reply::Failed(Failure::new(
                Kind::AlreadyConnected,
                format!("already connected to context {}", self.identity.context),
                "run `tpx quit` first, or `tpx status` to see it",
            )),
            Request::Quit => return,
        };
        tokio::spawn(async move { exchange.send(&reply).await });
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

    /// What `tpx status` shows.
    pub(crate) fn status(&self) -> Status {
        let facts = self.facts();
        let id = &self.identity;
        let subnet = |role: &'static str| {
            move |cidr: &ipnet::IpNet| Subnet { cidr: *cidr, role: role.into(), mode: "direct".into() }
        };
        Status {
            name: id.name.clone(),
            state: if self.lanes.is_up() { State::Connected } else { State::Reconnecting },
            kubernetes: Kubernetes { context: id.context.clone(), server: id.server.clone() },
            namespace: id.namespace.clone(),
            mapped_namespaces: id.mapped_namespaces.clone(),
            manager: Manager {
                namespace: id.manager_namespace.clone(),
                version: id.manager_version.clone(),
                carrier: id.carrier.clone(),
                session: self.session.id.borrow().clone(),
            },
            datapath: Datapath {
                road: "ebpf".into(),
                subnets: (facts.service_subnets.iter().map(subnet("services")))
                    .chain(facts.pod_subnets.iter().map(subnet("pods")))
                    .collect(),
                except: self.plan.borrow().except.clone(),
            },
            dns: self.names.status(&facts.cluster_domain),
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

/// Keeps the host in step with the cluster's subnets. Ends, with the reason, when the privileged daemon has gone.
async fn follow(
    host: Arc<Mutex<RemoteHost>>,
    gone: impl Future<Output = ()>,
    mut inputs: subnets::Inputs,
    applied: watch::Sender<Plan>,
    mut facts: watch::Receiver<Arc<Facts>>,
) -> String {
    let mut gone = std::pin::pin!(gone);
    loop {
        tokio::select! {
            () = &mut gone => return "the privileged daemon has gone".into(),
            changed = facts.changed() => if changed.is_err() {
                return "the session has ended".into();
            },
        }
        let now = Arc::clone(&facts.borrow_and_update());
        if (&now.service_subnets, &now.pod_subnets) == (&inputs.service_subnets, &inputs.pod_subnets) {
            continue;
        }
        inputs.service_subnets.clone_from(&now.service_subnets);
        inputs.pod_subnets.clone_from(&now.pod_subnets);
        tracing::info!("the cluster's subnets have changed");
        let wanted = match decide_again(&inputs) {
            Ok(decided) => decided.plan(Scope::Workstation, Road::Express, &inputs.name_servers),
            Err(e) => {
                tracing::warn!("the plan stays as it is: {e}");
                continue;
            }
        };
        // The files are those that we already hold; the copies are closed.
        match host.lock().await.apply(&wanted).await {
            Ok(_) => drop(applied.send_replace(wanted)),
            Err(e) => tracing::warn!("the changed plan could not be applied: {e}"),
        }
    }
}
