//! Keeps subnets, plan and host in step: with the cluster, whose subnets change, and with the host's routes, which a VPN
//! changes while we are connected.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use tpx_api::Facts;
use tpx_core::{
    devices::DevicePattern,
    dns::NameServer,
    plan::{Plan, ResolverLink, Road, Scope},
    policy::{DenyRule, DenyWith, Policy},
    subnets::{Inputs, SubnetError, Subnets, decide, decide_again},
};
use tpx_datapath::{
    Host as _,
    linux::{Slot, routes::HostNetwork},
    remote::RemoteHost,
};

use super::{
    container,
    directory::{self, Directory},
    names::{StandIn, Wanted},
    resolv_conf,
};

const ROUTES_LOST: &str = "the host's routes cannot be followed any more";
const ROOTD_GONE: &str = "the privileged daemon has gone";
/// How much later than the device's end that of its owner may be noticed.
const MOMENT: Duration = Duration::from_millis(200);

/// What was decided last and is in force.
#[derive(Debug, Clone)]
pub(crate) struct Decided {
    /// What becomes of every subnet.
    pub subnets: Arc<Subnets>,
    /// What the host looks like.
    pub plan: Plan,
    /// What must not be reached.
    pub policy: Arc<Policy>,
    /// Name servers that nothing could be put in front of.
    pub unanswered: Vec<IpAddr>,
    /// Why a later decision could not be carried out.
    pub problem: Option<String>,
}

/// Everything that a decision depends on.
pub(crate) struct Routing {
    /// Cluster, host and rules.
    pub inputs: Inputs,
    /// How connections enter the tunnel.
    pub road: Road,
    /// Whose processes see the cluster.
    pub scope: Scope,
    /// The bridges that the containers of the scope are behind.
    pub bridges: Vec<DevicePattern>,
    /// Whose names the cluster answers.
    pub wanted: Wanted,
    /// The host's name servers.
    pub name_servers: Vec<NameServer>,
    /// What must not be reached, and what is said instead.
    pub denials: (Vec<DenyRule>, DenyWith),
    /// The cluster as last heard.
    pub facts: Arc<Facts>,
}

impl Routing {
    /// Takes over the host's name servers. Those that it had before stay: not every program reads the file again, and what it
    /// asks there is still the cluster's.
    pub(crate) fn see_name_servers(&mut self, now: Vec<NameServer>) {
        let before = std::mem::replace(&mut self.name_servers, now);
        let gone = before.into_iter().filter(|old| !self.name_servers.iter().any(|new| new.address == old.address));
        let gone: Vec<_> = gone.collect();
        self.name_servers.extend(gone);
        self.name_servers.truncate(Plan::MAX_NAME_SERVERS);
        self.inputs.name_servers = self.name_servers.iter().map(|server| server.address).collect();
    }

    /// Takes over where the container is that the scope is.
    pub(crate) fn see_container(&mut self, addresses: Vec<IpAddr>) {
        self.scope = Scope::Containers(addresses);
    }

    /// Takes over what the host looks like.
    pub(crate) fn see_host(&mut self, network: &HostNetwork) {
        if let Scope::Containers(addresses) = &self.scope {
            self.bridges = container::bridges(addresses, network);
        }
        self.inputs.host_routes.clone_from(&network.routes);
        self.inputs.gateways.clone_from(&network.gateways);
    }

    /// Takes over what the cluster looks like.
    pub(crate) fn see_cluster(&mut self, facts: Arc<Facts>) {
        self.inputs.service_subnets.clone_from(&facts.service_subnets);
        self.inputs.pod_subnets.clone_from(&facts.pod_subnets);
        self.facts = facts;
    }

    /// The first decision.
    ///
    /// # Errors
    /// What `tpx connect` reports: conflicts included, where they are not to be resolved.
    pub(crate) fn decide(&self) -> Result<Decided, SubnetError> {
        Ok(self.carried_out(decide(&self.inputs)?))
    }

    fn decide_again(&self) -> Result<Decided, SubnetError> {
        Ok(self.carried_out(decide_again(&self.inputs)?))
    }

    fn carried_out(&self, subnets: Subnets) -> Decided {
        let mut plan = subnets.plan(self.scope.clone(), self.road, &self.inputs.name_servers);
        plan.protected = self.inputs.api_server.iter().copied().take(Plan::MAX_PROTECTED).collect();
        let (rules, with) = &self.denials;
        let policy = Policy::new(rules.clone(), *with, &self.facts.addresses);
        (plan.deny, plan.deny_ports, plan.deny_with) = (policy.nets(), policy.ports(), *with);
        if self.scope.is_containers() {
            plan.container_devices.clone_from(&self.bridges);
        }
        if self.scope == Scope::Workstation {
            if self.road == Road::Express {
                plan.container_devices = self.wanted.config.served_devices();
            }
            // systemd-resolved serves everybody: it must not hear of a cluster that only some see.
            plan.resolver = Some(self.resolver());
        }
        Decided { subnets: Arc::new(subnets), plan, policy: Arc::new(policy), unanswered: Vec::new(), problem: None }
    }

    fn resolver(&self) -> ResolverLink {
        let domains = self.wanted.policy(&self.facts).link_domains();
        // What matters comes first; what is left out is still answered to everybody who asks port 53 himself.
        let bounded = |mut domains: Vec<String>| {
            domains.truncate(Plan::MAX_DOMAINS);
            domains
        };
        ResolverLink {
            servers: resolvers().to_vec(),
            routing_domains: bounded(domains.routing),
            search_domains: bounded(domains.search),
        }
    }
}

/// The addresses that systemd-resolved asks; questions to them arrive as flows.
pub(crate) fn resolvers() -> [IpAddr; 2] {
    [Slot::FIRST.resolver4().into(), Slot::FIRST.resolver6().into()]
}

/// What a decision is made anew for.
pub(crate) struct News {
    /// The cluster.
    pub facts: watch::Receiver<Arc<Facts>>,
    /// The host's routes.
    pub network: watch::Receiver<Arc<HostNetwork>>,
    /// What somebody removes of tpx's own.
    pub losses: watch::Receiver<u64>,
    /// The container that the scope is.
    pub container: Option<watch::Receiver<Vec<IpAddr>>>,
    /// The cgroup that the scope is.
    pub directory: Option<Directory>,
    /// The host's name servers.
    pub resolv_conf: resolv_conf::Following,
}

/// What has become of it.
enum Heard {
    /// There is something to decide.
    Change,
    /// The same has to be done once more.
    Again,
    /// What the scope is has gone.
    Gone(PathBuf),
    /// Nothing will be heard any more.
    End(&'static str),
}

impl News {
    /// The next. Cancel safe.
    async fn next(&mut self, routing: &mut Routing) -> Heard {
        tokio::select! {
            biased;
            changed = self.facts.changed() => changed.map_or(Heard::End("the session has ended"), |()| Heard::Change),
            changed = self.network.changed() => changed.map_or(Heard::End(ROUTES_LOST), |()| Heard::Change),
            () = container::moved(&mut self.container) => Heard::Change,
            change = directory::changed(&mut self.directory) => match change {
                directory::Change::Anew => Heard::Again,
                directory::Change::Gone(path) => Heard::Gone(path),
            },
            now = self.resolv_conf.changed() => {
                routing.see_name_servers(now.name_servers);
                Heard::Change
            }
            changed = self.losses.changed() => changed.map_or(Heard::End(ROUTES_LOST), |()| Heard::Again),
        }
    }
}

/// Decides anew whenever cluster or host change, and carries it out; has put back what somebody removes of tpx's own. Ends,
/// with the reason, when the privileged daemon has gone, or the device.
pub(crate) async fn follow(
    host: Arc<Mutex<RemoteHost>>,
    gone: impl Future<Output = ()>,
    mut routing: Routing,
    decided: watch::Sender<Decided>,
    mut news: News,
    stand_in: StandIn,
) -> String {
    let mut gone = std::pin::pin!(gone);
    let mut retry = Retry::default();
    loop {
        let heard = tokio::select! {
            biased;
            () = &mut gone => return ROOTD_GONE.into(),
            heard = news.next(&mut routing) => heard,
            () = retry.due() => Heard::Change,
        };
        match heard {
            Heard::Change => {}
            Heard::End(why) => return why.into(),
            Heard::Gone(path) => {
                let what = format!("the cgroup {} is gone", path.display());
                report(&decided, format!("{what}; whoever is in the next one of that name sees the cluster again"));
                continue;
            }
            Heard::Again => {
                let plan = decided.borrow().plan.clone();
                match host.lock().await.apply(&plan).await {
                    Ok(_) => drop(decided.send_if_modified(|now| now.problem.take().is_some())),
                    Err(e) => {
                        // The end of the privileged daemon takes the device with it.
                        let gone = tokio::time::timeout(MOMENT, gone).await;
                        return gone.map_or_else(|_| format!("the datapath was damaged: {e}"), |()| ROOTD_GONE.into());
                    }
                }
                continue;
            }
        }
        if let Some(container) = &mut news.container {
            routing.see_container(container.borrow_and_update().clone());
        }
        routing.see_cluster(Arc::clone(&news.facts.borrow_and_update()));
        routing.see_host(&Arc::clone(&news.network.borrow_and_update()));
        let before = decided.borrow().clone();
        let wanted = match routing.decide_again() {
            Ok(wanted) => Decided { unanswered: before.unanswered.clone(), ..wanted },
            Err(e) => {
                report(&decided, e.to_string());
                continue;
            }
        };
        if wanted.plan == before.plan && wanted.subnets == before.subnets && wanted.policy == before.policy {
            retry.reset();
            decided.send_if_modified(|now| now.problem.take().is_some());
            continue;
        }
        for note in wanted.subnets.notes() {
            tracing::info!("{note}");
        }
        // Virtual addresses work before their subnet is hidden; a subnet's own addresses only once it is not any more. What is
        // denied is so here at once.
        let steered: BTreeSet<_> = before.plan.steer.iter().collect();
        let early =
            wanted.plan.hidden != before.plan.hidden && wanted.plan.steer.iter().all(|net| steered.contains(net));
        decided.send_modify(|now| {
            now.policy = Arc::clone(&wanted.policy);
            if early {
                now.subnets = Arc::clone(&wanted.subnets);
            }
        });
        // The files are those that we already hold, and the copies are closed; but for those of new name servers.
        let applied = host.lock().await.apply(&wanted.plan).await;
        let served = applied.map_err(|e| e.to_string()).and_then(|handover| {
            stand_in
                .serve(handover.dns, &routing.name_servers)
                .map_err(|e| format!("names cannot be answered: {e}"))?;
            Ok(handover.unsteered_name_servers)
        });
        match served {
            Ok(unanswered) => {
                retry.reset();
                decided.send_replace(Decided { unanswered, ..wanted });
            }
            Err(e) => {
                decided.send_modify(|now| now.subnets = before.subnets);
                report(&decided, e);
                retry.later();
            }
        }
    }
}

/// When what could not be carried out is tried again.
#[derive(Default)]
struct Retry {
    pause: Option<Duration>,
    at: Option<Instant>,
}

impl Retry {
    /// Between the first and the second attempt, and at most between any two.
    const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

    fn later(&mut self) {
        let (first, most) = Self::PAUSES;
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(most));
        (self.pause, self.at) = (Some(pause), Some(Instant::now() + pause));
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    /// Ends when it is time; never, if nothing has to be tried again. Cancel safe.
    async fn due(&mut self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.at = None;
    }
}

fn report(decided: &watch::Sender<Decided>, problem: String) {
    tracing::warn!("the cluster or the host have changed, but {problem}");
    decided.send_modify(|now| now.problem = Some(problem));
}
