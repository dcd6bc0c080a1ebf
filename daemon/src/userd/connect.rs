//! The steps of `tpx connect`, each with its own way to fail.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use tonic::Code;
use tpx_api::{Facts, MANAGER_PORT, VERSION, compatible, proto, proto::manager_client::ManagerClient};
use tpx_core::{
    config::{Config, Partial},
    plan::Scope,
    policy::Policy,
    subnets,
    vnat::Vnat,
};
use tpx_datapath::{
    Host as _,
    linux::{Slot, routes::Monitor},
    remote::{ConnectError, RemoteHost},
};
use tpx_link::{
    Settings,
    carrier::Connector,
    lane::{Lane, control},
};

use super::{
    addresses::Addresses,
    cluster::ManagerRoad,
    connection::{Connection, Identity, Parts, Tasks},
    container::Container,
    datapath::Datapath,
    flow_table::FlowTable,
    flows::{Carrying, FlowCounters, carry_all},
    kubernetes::Cluster,
    lanes::Lanes,
    logging,
    names::{Serving, Wanted},
    probe::Probe,
    resolv_conf, road,
    routing::Routing,
    session::{Open, Session, Visitor},
    status,
};
use crate::{
    config,
    failure::{Failure, Kind, chain},
    ipc::ConnectParams,
};

/// Connects. Dropping the future undoes everything.
pub(crate) async fn connect(
    name: &str,
    params: ConnectParams,
    progress: mpsc::UnboundedSender<String>,
) -> Result<Connection, Failure> {
    let step = |text: String| drop(progress.send(text));
    let cluster = Cluster::load(params.kubeconfig.as_deref(), params.context.as_deref()).await?;
    let namespace = params.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());

    let container = match &params.container {
        Some(name) => Some(Container::find(name).await?),
        None => None,
    };
    let scope = container.as_ref().map_or_else(|| Ok(params.scope.clone()), Container::scope)?;
    // Privilege first: it needs no network, and without it nothing else matters.
    let mut host = RemoteHost::connect(&params.rootd_socket).await.map_err(|e| no_rootd(&e))?;
    check_free(&scope, &host)?;
    let early = config::merged(Partial::clone(&params.settings), cluster.settings.clone(), None)?;
    choose(&early, &host, &scope)?;

    step(format!("Connecting to context {} ({})", cluster.context, cluster.server));
    let road =
        Arc::new(ManagerRoad::new(cluster.client.clone(), params.manager_namespace.clone(), cluster.server.clone()));
    let pod = road.find().await?;
    let port_forward = road.to(&pod);
    step(format!("Connecting to the traffic manager ({})", port_forward.describe()));
    let control_lane = async {
        let manager = ManagerClient::new(control(port_forward.connect().await?, &Settings::default()).await?);
        anyhow::Ok(manager)
    };
    let data_lane = async { anyhow::Ok(Lane::open(port_forward.connect().await?, &Settings::default()).await?) };
    let (mut manager, lane) = tokio::try_join!(control_lane, data_lane).map_err(|e| {
        Failure::new(
            Kind::Manager,
            format!("cannot open the {}: {}", port_forward.describe(), chain(e.as_ref())),
            "you need the right to create pods/portforward there; `kubectl port-forward` needs the same",
        )
    })?;

    let answered = manager.version(proto::VersionRequest {}).await.map_err(|e| refused(&e))?.into_inner();
    compatible(VERSION, &answered.version).map_err(|e| Failure::new(Kind::Manager, e.to_string(), e.next_step()))?;
    let mut visitor =
        Visitor { user: whoami(), namespace: namespace.clone(), addresses_of: denied_namespaces(&early)? };
    let mut open = Open::new(manager, None, &visitor).await.map_err(|e| refused(&e))?;
    check_namespaces(&open.facts, &namespace, &params.mapped_namespaces)?;

    // What the cluster pushes may change the road as well.
    let pushed = open.facts.client_config.as_deref();
    let config = Arc::new(config::merged(Partial::clone(&params.settings), cluster.settings.clone(), pushed)?);
    logging::set(config.log_user_daemon.value);
    let addresses_of = denied_namespaces(&config)?;
    if addresses_of != visitor.addresses_of {
        visitor.addresses_of = addresses_of;
        open.ask_again(&visitor).await.map_err(|e| refused(&e))?;
    }
    let mut chosen = choose(&config, &host, &scope)?;

    step("Steering the cluster's subnets into the tunnel".into());
    let resolv = resolv_conf::read()?;
    let network = Monitor::start().await.map_err(|e| {
        Failure::new(Kind::Host, format!("cannot read the host's routes: {e}"), "see the log that `tpx status` names")
    })?;
    let wanted = Wanted {
        namespace: namespace.clone(),
        mapped_namespaces: params.mapped_namespaces.clone(),
        config: Arc::clone(&config),
    };
    let mut routing = Routing {
        inputs: subnets::Inputs {
            api_server: cluster.addresses().await?,
            name_servers: resolv.name_servers.iter().map(|server| server.address).collect(),
            policy: config.routing(),
            scoped: scope.is_tree(),
            ..subnets::Inputs::default()
        },
        road: chosen.road,
        scope: scope.clone(),
        bridges: Vec::new(),
        name_servers: resolv.name_servers.clone(),
        wanted: wanted.clone(),
        denials: (config.denials(), config.deny_with.value),
        facts: Arc::clone(&open.facts),
    };
    routing.see_cluster(Arc::clone(&open.facts));
    routing.see_host(&network.now());
    if let Some(container) = &container {
        container.check(&routing.bridges)?;
    }
    let mut first = routing.decide().map_err(|e| refused_rule(&e))?;
    let mut applied = host.apply(&first.plan).await;
    if let Err(e) = &applied
        && let Some(instead) = chosen.instead(config.datapath.value, e)
    {
        road::check_scope(&scope, &instead)?;
        tracing::warn!("{}", instead.because);
        routing.road = instead.road;
        chosen = instead;
        first = routing.decide().map_err(|e| refused_rule(&e))?;
        applied = host.apply(&first.plan).await;
    }
    let handover = applied.map_err(|e| {
        Failure::new(Kind::Host, format!("the privileged daemon could not apply the plan: {e}"), "see its log")
    })?;
    first.unanswered.clone_from(&handover.unsteered_name_servers);
    let tree = handover.scope.clone().filter(|_| scope == Scope::Tree);
    let (decided, decisions) = watch::channel(first.clone());
    let internal = |e: std::io::Error| Failure::internal(format!("cannot use the datapath's files: {e}"));
    let datapath = Datapath::open(handover).map_err(internal)?;
    let vnat = Vnat::new(&cluster.server, first.subnets.virtual4, first.subnets.virtual6);
    let addresses = Addresses::new(vnat, datapath.translations, decisions.clone());

    let lanes = Lanes::keep(lane, Arc::clone(&road) as Arc<dyn Connector>);
    let session = Session::keep(open, visitor, Arc::clone(&road) as Arc<dyn Connector>);
    let bypass = match scope {
        Scope::Workstation => datapath.bypass,
        _ => datapath.bypass.from_all_scopes(),
    };
    let names = Serving::start(datapath.dns, &resolv.name_servers, wanted, &session, bypass, addresses.clone())
        .map_err(internal)?;
    let (counters, table) = (Arc::new(FlowCounters::default()), FlowTable::default());
    let carrying = Carrying {
        lanes: lanes.clone(),
        session: session.id.clone(),
        addresses: addresses.clone(),
        asker: names.asker(),
        table: table.clone(),
        counters: Arc::clone(&counters),
    };
    let mut tasks = Tasks::new(datapath.device);
    for (road, source) in datapath.sources {
        tasks.carry(carry_all(road, source, carrying.clone()));
    }
    tasks.carry(table.clone().find_owners());

    // A name that `--mapped-namespaces` does not hide.
    let asked_namespace = params.mapped_namespaces.first().unwrap_or(&namespace).clone();
    let rootd_socket = params.rootd_socket;
    let identity = Identity {
        name: name.to_owned(),
        context: cluster.context,
        server: cluster.server,
        namespace,
        mapped_namespaces: (!params.mapped_namespaces.is_empty()).then_some(params.mapped_namespaces),
        manager_namespace: params.manager_namespace,
        manager_version: answered.version,
        carrier: port_forward.describe(),
        rootd_version: host.welcome().release.clone(),
        missing: host.welcome().missing.clone(),
        rootd_socket: rootd_socket.clone(),
        since: Instant::now(),
        config,
        road_because: chosen.because,
        systemd_resolved: datapath.resolved,
        scope: status::Scope::of(&scope, tree.as_deref(), params.container.as_deref()),
    };
    let steered = first.plan.name_servers.iter().find(|ip| !first.unanswered.contains(ip)).copied();
    let mut connection = Connection::new(Parts {
        identity,
        host,
        routing,
        resolv_conf: resolv,
        container: container.filter(Container::has_own_network),
        decided,
        network,
        lanes,
        session,
        names,
        maps: datapath.maps,
        addresses: addresses.clone(),
        table,
        counters,
        tasks,
    });
    step("Probing the way to the cluster".into());
    let probe = Probe {
        tcp: first_manager(&connection.facts(), &addresses)?.map(|ip| SocketAddr::new(ip, MANAGER_PORT)),
        dns: steered,
        name: format!("{asked_namespace}.svc.{}", connection.facts().cluster_domain),
    };
    let probed = match connection.scope() {
        status::Scope::Workstation => probe.here().await,
        status::Scope::Tree { cgroup } => probe.inside(&rootd_socket, cgroup).await,
        // Nothing of ours may be sent into it.
        status::Scope::Cgroup { .. } | status::Scope::Container { .. } => Ok(()),
    };
    match probed.and_then(|()| connection.watch_tree()) {
        Ok(()) => Ok(connection),
        Err(what) => {
            connection.close().await;
            Err(not_carried(what))
        }
    }
}

/// An address of the manager inside of the cluster, as this laptop reaches it. One that the policy denies proves nothing.
fn first_manager(facts: &Facts, addresses: &Addresses) -> Result<Option<IpAddr>, Failure> {
    let allowed = |address: &&IpAddr| addresses.policy().denied_by(**address, Some(MANAGER_PORT)).is_none();
    let first = facts.manager_addresses.first().filter(allowed).map(|address| addresses.reachable(*address));
    first.transpose().map_err(|e| not_carried(e.to_string()))
}

fn not_carried(what: String) -> Failure {
    let next = "nothing was left behind; see the log that `tpx connect` wrote, and try again";
    Failure::new(Kind::Host, what, next)
}

/// The road that the configuration asks for, as far as the privileged daemon can offer it and the scope can use it.
fn choose(config: &Config, host: &RemoteHost, scope: &Scope) -> Result<road::Chosen, Failure> {
    let asked = &config.datapath;
    let chosen = road::choose(asked.value, &asked.origin.to_string(), host.welcome().unavailable.as_deref())?;
    road::check_scope(scope, &chosen)?;
    Ok(chosen)
}

/// The workstation is in one cluster at a time, whoever connected it.
fn check_free(scope: &Scope, host: &RemoteHost) -> Result<(), Failure> {
    let other = host.welcome().sessions.iter().find(|session| session.slot == Slot::FIRST.index());
    match other {
        Some(other) if *scope == Scope::Workstation => Err(Failure::new(
            Kind::AlreadyConnected,
            format!("this workstation is already connected, by process {} of user {}", other.pid, other.uid),
            "have that user run `tpx quit`, or run `tpx run -- CMD` to show another cluster to one command",
        )),
        _ => Ok(()),
    }
}

/// The namespaces whose addresses the policy needs. They need not exist yet: what is to come can be denied as well.
fn denied_namespaces(config: &Config) -> Result<Vec<String>, Failure> {
    let rules = config.denials();
    let names: BTreeSet<&str> = Policy::namespaces(&rules).collect();
    if names.len() > Facts::MAX_ASKED {
        let what = format!("policy.deny names {} namespaces, more than {}", names.len(), Facts::MAX_ASKED);
        return Err(Failure::new(Kind::Usage, what, "deny subnets instead"));
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// The namespaces that were asked for must exist: a typo would otherwise be found one failed name at a time.
fn check_namespaces(facts: &Facts, namespace: &str, mapped: &[String]) -> Result<(), Failure> {
    let known: BTreeSet<&str> = facts.namespaces.iter().map(String::as_str).collect();
    match std::iter::once(namespace).chain(mapped.iter().map(String::as_str)).find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(missing) => Err(Failure::new(
            Kind::Usage,
            format!("the cluster has no namespace {missing:?}"),
            "`kubectl get namespaces` lists them; choose with -n and --mapped-namespaces",
        )),
    }
}

/// The errors name the ways out themselves.
fn refused_rule(error: &subnets::SubnetError) -> Failure {
    let next = "change that rule, or the VPN's routes, and run `tpx connect` again";
    Failure::new(Kind::Usage, error.to_string(), next)
}

fn no_rootd(error: &ConnectError) -> Failure {
    Failure::new(Kind::Host, error.to_string(), error.next_step())
}

fn refused(status: &tonic::Status) -> Failure {
    let next = match (status.code(), status.message().rsplit_once("; ")) {
        // Versions that do not go together: which of the two is the older one, the manager has found out.
        (Code::FailedPrecondition, Some((what, next))) => return Failure::new(Kind::Manager, what, next),
        (Code::FailedPrecondition | Code::Unimplemented, _) => {
            "it is of another version: bring it to this one with `tpx manager install`"
        }
        _ => "see `kubectl -n tpx-system logs deploy/traffic-manager`, and try again",
    };
    Failure::new(Kind::Manager, format!("the traffic manager refused: {}", status.message()), next)
}

/// user@host, as far as the environment knows.
fn whoami() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| rustix::process::geteuid().as_raw().to_string());
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_managers_advice_stands_alone() {
        let mismatch = compatible("0.1.0", "0.2.0").unwrap_err();
        let status = tonic::Status::failed_precondition(format!("{mismatch}; {}", mismatch.next_step()));
        let failure = refused(&status);
        assert_eq!(
            (failure.what, failure.next),
            (mismatch.to_string(), "install tpx 0.2.0 on this machine".to_owned())
        );
        let failure = refused(&tonic::Status::unimplemented("no such method"));
        assert!(failure.what.contains("no such method") && failure.next.contains("another version"), "{failure}");
        assert!(refused(&tonic::Status::resource_exhausted("full")).next.contains("logs"));
    }
}
