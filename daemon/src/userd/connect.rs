//! The steps of `tpx connect`, each with its own way to fail.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Instant};

use tokio::sync::mpsc;
use tonic::Code;
use tpx_api::{Facts, MANAGER_PORT, VERSION, compatible, proto, proto::manager_client::ManagerClient};
use tpx_core::{
    dns::{ResolvConf, parse_resolv_conf},
    plan::{Road, Scope},
    subnets::{self, decide},
};
use tpx_datapath::{
    Host as _,
    linux::{
        Bypass, ExpressFiles, Handover, Maps,
        express::{ExpressLane, ExpressParts},
    },
    remote::{ConnectError, RemoteHost},
};
use tpx_link::{
    Settings,
    carrier::Connector,
    lane::{Lane, control},
};

use super::{
    cluster::ManagerRoad,
    connection::{Connection, Identity, Tasks},
    flows::{Carrying, FlowCounters, carry_all},
    kubernetes::Cluster,
    lanes::Lanes,
    names::{Serving, Wanted},
    probe,
    session::{Open, Session, Visitor},
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

    let config = config::merged((*params.settings).clone(), cluster.settings.clone(), None)?;

    // Privilege first: it needs no network, and without it nothing else matters.
    let mut host = RemoteHost::connect(&params.rootd_socket).await.map_err(|e| no_rootd(&e))?;
    if let Some(why) = &host.welcome().unavailable {
        return Err(Failure::new(
            Kind::Host,
            format!("the eBPF datapath is not available: {why}"),
            "see README.md, \"What the laptop needs\"",
        ));
    }

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
    compatible(VERSION, &answered.version).map_err(|e| {
        Failure::new(Kind::Manager, e.to_string(), "bring it to this version with `tpx manager install`")
    })?;
    let visitor = Visitor { user: whoami(), namespace: namespace.clone() };
    let open = Open::new(manager, None, &visitor).await.map_err(|e| refused(&e))?;
    check_namespaces(&open.facts, &namespace, &params.mapped_namespaces)?;

    step("Steering the cluster's subnets into the tunnel".into());
    let resolv = read_resolv_conf()?;
    let inputs = subnets::Inputs {
        service_subnets: open.facts.service_subnets.clone(),
        pod_subnets: open.facts.pod_subnets.clone(),
        api_server: cluster.addresses().await?,
        name_servers: resolv.name_servers.iter().map(|server| server.address).collect(),
        policy: config.routing(),
        ..subnets::Inputs::default()
    };
    let decided = decide(&inputs).map_err(|e| Failure::new(Kind::Usage, e.to_string(), "change the rule it names"))?;
    let wanted = decided.plan(Scope::Workstation, Road::Express, &inputs.name_servers);
    let handover = host.apply(&wanted).await.map_err(|e| {
        Failure::new(Kind::Host, format!("the privileged daemon could not apply the plan: {e}"), "see its log")
    })?;
    let internal = |e: std::io::Error| Failure::internal(format!("cannot use the datapath's files: {e}"));
    let Handover { device, express, dns, .. } = handover;
    let Some(files) = express else {
        return Err(Failure::internal("the privileged daemon handed no express lane over"));
    };
    let maps = Maps::of(&files).map_err(internal)?;
    let ExpressFiles { listeners, raws, syns, held, bypass, datagrams, targets, .. } = files;
    let bypass = Bypass::new(bypass).map_err(internal)?;
    let parts = ExpressParts { listeners, raws, syns, held, datagrams, targets };
    let express = ExpressLane::new(parts).map_err(internal)?;

    let lanes = Lanes::keep(lane, Arc::clone(&road) as Arc<dyn Connector>);
    let session = Session::keep(open, visitor, Arc::clone(&road) as Arc<dyn Connector>);
    let asked = Wanted { namespace: namespace.clone(), mapped_namespaces: params.mapped_namespaces.clone() };
    let names = Serving::start(dns, &resolv.name_servers, asked, &session, bypass).map_err(internal)?;
    let counters = Arc::new(FlowCounters::default());
    let carrying = Carrying { lanes: lanes.clone(), session: session.id.clone(), counters: Arc::clone(&counters) };
    let tasks = Tasks::new(tokio::spawn(carry_all(express, carrying)), device);

    // A name that `--mapped-namespaces` does not hide.
    let asked_namespace = params.mapped_namespaces.first().unwrap_or(&namespace).clone();
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
        rootd_socket: params.rootd_socket,
        since: Instant::now(),
        config,
    };
    let connection =
        Connection::new(identity, host, (inputs, wanted.clone()), lanes, session, names, maps, counters, tasks);
    step("Probing the way to the cluster".into());
    match probe(&connection.facts(), &asked_namespace, &wanted.name_servers).await {
        Ok(()) => Ok(connection),
        Err(failure) => {
            connection.close().await;
            Err(failure)
        }
    }
}

async fn probe(facts: &Facts, namespace: &str, name_servers: &[std::net::IpAddr]) -> Result<(), Failure> {
    let failed = |what: String| {
        Failure::new(Kind::Host, what, "nothing was left behind; see the log that `tpx connect` wrote, and try again")
    };
    for address in facts.manager_addresses.iter().take(1) {
        let address = SocketAddr::new(*address, MANAGER_PORT);
        probe::tcp(address).await.map_err(|e| failed(format!("the datapath does not carry: {address}: {e}")))?;
    }
    if let Some(server) = name_servers.first() {
        let asked = probe::dns(*server, namespace, &facts.cluster_domain).await;
        asked.map_err(|e| failed(format!("names of the cluster do not resolve through {server}: {e}")))?;
    }
    Ok(())
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

fn read_resolv_conf() -> Result<ResolvConf, Failure> {
    match std::fs::read_to_string("/etc/resolv.conf") {
        Ok(text) => Ok(parse_resolv_conf(&text)),
        // resolv.conf(5): without the file, the name server of this machine is used.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(parse_resolv_conf("")),
        Err(e) => Err(Failure::new(Kind::Host, format!("cannot read /etc/resolv.conf: {e}"), "make it readable")),
    }
}

fn no_rootd(error: &ConnectError) -> Failure {
    Failure::new(Kind::Host, error.to_string(), error.next_step())
}

fn refused(status: &tonic::Status) -> Failure {
    let next = match status.code() {
        Code::FailedPrecondition => "bring it to this version with `tpx manager install`",
        Code::Unimplemented => "it is of another version: bring it to this one with `tpx manager install`",
        _ => "see `kubectl -n tpx-system logs deploy/traffic-manager`, and try again",
    };
    Failure::new(Kind::Manager, format!("the traffic manager refused: {}", status.message()), next)
}

/// user@host, as far as the environment knows.
fn whoami() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| rustix::process::geteuid().as_raw().to_string());
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}
