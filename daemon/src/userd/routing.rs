//! Keeps subnets, plan and host in step: with the cluster, whose subnets change, and with the host's routes, which a VPN
//! changes while we are connected.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::{Mutex, watch};
use tpx_api::Facts;
use tpx_core::{
    devices::DevicePattern,
    plan::{Plan, ResolverLink, Road, Scope},
    policy::{DenyRule, DenyWith, Policy},
    subnets::{Inputs, SubnetError, Subnets, decide, decide_again},
};
use tpx_datapath::{
    Host as _,
    linux::{Slot, routes::HostNetwork},
    remote::RemoteHost,
};

use super::{container, names::Wanted};

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
    /// What must not be reached, and what is said instead.
    pub denials: (Vec<DenyRule>, DenyWith),
    /// The cluster as last heard.
    pub facts: Arc<Facts>,
}

impl Routing {
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
        Decided { subnets: Arc::new(subnets), plan, policy: Arc::new(policy), problem: None }
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

/// Decides anew whenever cluster or host change, and carries it out; has put back what somebody removes of tpx's own. Ends,
/// with the reason, when the privileged daemon has gone, or the device.
pub(crate) async fn follow(
    host: Arc<Mutex<RemoteHost>>,
    gone: impl Future<Output = ()>,
    mut routing: Routing,
    decided: watch::Sender<Decided>,
    mut facts: watch::Receiver<Arc<Facts>>,
    mut network: watch::Receiver<Arc<HostNetwork>>,
    mut losses: watch::Receiver<u64>,
    mut container: Option<watch::Receiver<Vec<IpAddr>>>,
) -> String {
    let mut gone = std::pin::pin!(gone);
    loop {
        tokio::select! {
            biased;
            () = &mut gone => return ROOTD_GONE.into(),
            changed = facts.changed() => if changed.is_err() {
                return "the session has ended".into();
            },
            changed = network.changed() => if changed.is_err() {
                return "the host's routes cannot be followed any more".into();
            },
            () = container::moved(&mut container) => {}
            changed = losses.changed() => {
                if changed.is_err() {
                    return "the host's routes cannot be followed any more".into();
                }
                let plan = decided.borrow().plan.clone();
                let Err(e) = host.lock().await.apply(&plan).await else { continue };
                // The end of the privileged daemon takes the device with it.
                let gone = tokio::time::timeout(MOMENT, gone).await;
                return gone.map_or_else(|_| format!("the datapath was damaged: {e}"), |()| ROOTD_GONE.into());
            }
        }
        if let Some(container) = &mut container {
            routing.see_container(container.borrow_and_update().clone());
        }
        routing.see_cluster(Arc::clone(&facts.borrow_and_update()));
        routing.see_host(&Arc::clone(&network.borrow_and_update()));
        let before = decided.borrow().clone();
        let wanted = match routing.decide_again() {
            Ok(wanted) => wanted,
            Err(e) => {
                report(&decided, e.to_string());
                continue;
            }
        };
        if wanted.plan == before.plan && wanted.subnets == before.subnets && wanted.policy == before.policy {
            decided.send_if_modified(|now| now.problem.take().is_some());
            continue;
        }
        for note in wanted.subnets.notes() {
            tracing::info!("{note}");
        }
        // Virtual addresses work before their subnet is hidden; a subnet's own addresses only once it is not any more.
        let steered: BTreeSet<_> = before.plan.steer.iter().collect();
        if wanted.plan.hidden != before.plan.hidden && wanted.plan.steer.iter().all(|net| steered.contains(net)) {
            decided.send_modify(|now| now.subnets = Arc::clone(&wanted.subnets));
        }
        // The files are those that we already hold; the copies are closed.
        match host.lock().await.apply(&wanted.plan).await {
            Ok(_) => drop(decided.send_replace(wanted)),
            Err(e) => {
                decided.send_modify(|now| now.subnets = before.subnets);
                report(&decided, e.to_string());
            }
        }
    }
}

fn report(decided: &watch::Sender<Decided>, problem: String) {
    tracing::warn!("the cluster or the host have changed, but {problem}");
    decided.send_modify(|now| now.problem = Some(problem));
}
