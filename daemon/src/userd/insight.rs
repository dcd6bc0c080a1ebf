//! Answers to those who look at a connection: why an address goes where it goes, what is in the maps, what an environment
//! means here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr as wire,
};
use tpx_core::{
    dns::{Decision, Name, PolicyConfig, Question, RecordType, decide},
    explain::{Explanation, View, explain},
    plan::{Plan, Road},
    subnets::{HostRoute, Subnets},
    vnat::translate_text,
};
use tpx_datapath::MapsDump;
use tpx_dns::{Asker, Transport};

use super::{addresses::Addresses, flow_table::FlowTable, process_scope, service_names::ServiceNames, status::Scope};
use crate::{
    cgroup,
    failure::{Failure, Kind},
    ipc::{
        Explained, FlowRow, FlowsView, MapsView, NameExplanation, Reply, Request, ScopeRow, Target, Variable, VnatRow,
    },
};

/// Longest that a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(5);

/// What a connection knows, as it is at one moment.
pub(super) struct Insight {
    /// The connection's name.
    pub name: String,
    /// Whose processes see the cluster.
    pub scope: Scope,
    /// The plan that was applied.
    pub plan: Plan,
    /// Its name servers that answer themselves.
    pub unsteered_name_servers: Vec<IpAddr>,
    /// What becomes of every subnet, and the virtual addresses.
    pub addresses: Addresses,
    /// The route that the host would take to an address, if there is one.
    pub without: Arc<dyn Fn(IpAddr) -> Option<HostRoute> + Send + Sync>,
    /// Who answers which name.
    pub policy: PolicyConfig,
    /// Without dots at the ends.
    pub cluster_domain: String,
    /// Names beside addresses.
    pub names: ServiceNames,
    /// Answers programs inside, where the scope is not the workstation: this process is not one of them.
    pub asker: Option<Asker>,
    /// What is carried.
    pub flows: FlowTable,
}

impl Insight {
    /// Answers a request that is about none of the connection's other parts. `maps` is what the kernel's maps say, if
    /// there are any.
    pub(super) async fn answer(&self, request: Request, maps: Result<Option<MapsDump>, String>) -> Reply {
        let reply = match request {
            Request::Explain { target } => self.explain(target).await.map(|found| Reply::Explained(Box::new(found))),
            Request::TranslateEnv { variables } => self.translate(variables).map(Reply::Env),
            Request::MapsDump => match maps {
                Ok(maps) => Ok(Reply::Maps(Box::new(self.maps(maps.unwrap_or_default()).await))),
                Err(e) => Err(Failure::new(Kind::Host, format!("cannot read the maps: {e}"), "try again")),
            },
            Request::Flows { ended } => Ok(Reply::Flows(Box::new(self.flows(ended).await))),
            other => Err(Failure::internal(format!("nobody answers {other:?}"))),
        };
        reply.unwrap_or_else(Reply::Failed)
    }

    /// `tpx explain`.
    ///
    /// # Errors
    /// When there is no such process.
    pub(super) async fn explain(&self, target: Target) -> Result<Explained, Failure> {
        let (mut name, mut process, mut asked) = (None, None, Vec::new());
        match target {
            Target::Address(ip, port) => asked.push((ip, port)),
            Target::Name(text, port) => {
                let found = self.resolve(text).await?;
                asked.extend(found.addresses.iter().map(|ip| (*ip, port)));
                name = Some(found);
            }
            Target::Process(pid, sees) => {
                let own = process_scope::Own { name: &self.name, scope: &self.scope, road: self.plan.road };
                let found = process_scope::look(pid, &own, sees).ok_or_else(|| {
                    Failure::new(Kind::Usage, format!("there is no process {pid}"), "`pgrep NAME` finds processes")
                })?;
                asked.extend(found.peers.iter().map(|peer| (peer.ip(), Some(peer.port()))));
                process = Some(found);
            }
        }
        let addresses = self.explanations(&asked);
        let names = self.names_of(addresses.iter().map(|explanation| explanation.address)).await;
        Ok(Explained { name, process, addresses, names })
    }

    fn explanations(&self, asked: &[(IpAddr, Option<u16>)]) -> Vec<Explanation> {
        let subnets: Arc<Subnets> = self.addresses.subnets();
        let (policy, vnat) = (self.addresses.policy(), self.addresses.vnat());
        let one = |(ip, port): &(IpAddr, Option<u16>)| {
            // Policy rules may prefer a less specific route: only the one that the host would take counts.
            let way: Vec<HostRoute> = (self.without)(*ip).into_iter().collect();
            let view = View {
                subnets: &subnets,
                plan: &self.plan,
                policy: &policy,
                unsteered_name_servers: &self.unsteered_name_servers,
                vnat: &vnat,
                routes: &way,
            };
            explain(&view, *ip, *port)
        };
        asked.iter().map(one).collect()
    }

    /// Who answers a name, in words, and what is asked there.
    fn policy_answer(&self, text: &str) -> Result<(String, Vec<String>), Failure> {
        let name: Name = text.parse().map_err(|e| {
            let next = "give an address, a DNS name or a process id";
            Failure::new(Kind::Usage, format!("{text:?} is no DNS name: {e}"), next)
        })?;
        let (answered_by, candidates) = match decide(&self.policy, &Question::new(name, RecordType::A)) {
            Decision::Cluster { candidates } => ("the cluster", candidates),
            Decision::ClusterThenElsewhere { candidates } => {
                ("the cluster, and this host's name servers where it has no such name", candidates)
            }
            Decision::Elsewhere => ("this host's name servers", Vec::new()),
            Decision::ElsewhereAs(other) => {
                ("this host's name servers, about the name that dns.mappings has", vec![other])
            }
            Decision::Address(_) => ("dns.mappings, with an address", Vec::new()),
            Decision::NxDomain => ("nobody: it lies in a namespace that --mapped-namespaces leaves out", Vec::new()),
        };
        Ok((answered_by.into(), candidates.iter().map(Name::to_string).collect()))
    }

    /// Resolves as programs do that see the cluster: by the system's own resolver, or where only others see it, by their name
    /// server.
    async fn resolve(&self, text: String) -> Result<NameExplanation, Failure> {
        let (answered_by, candidates) = self.policy_answer(&text)?;
        let asked = async {
            match &self.asker {
                Some(asker) => ask_both(asker, &text).await,
                None => Ok(tokio::net::lookup_host((&*text, 0)).await?.map(|address| address.ip()).collect()),
            }
        };
        let found = tokio::time::timeout(RESOLVE, asked).await;
        let (addresses, error) = match found {
            Ok(Ok(found)) => (found, None),
            Ok(Err(e)) => (BTreeSet::new(), Some(e.to_string())),
            Err(_) => (BTreeSet::new(), Some(format!("no answer within {} s", RESOLVE.as_secs()))),
        };
        Ok(NameExplanation { name: text, answered_by, candidates, addresses: addresses.into_iter().collect(), error })
    }

    /// Names of addresses; a virtual one has the name of what is behind it.
    async fn names_of(&self, addresses: impl Iterator<Item = IpAddr>) -> BTreeMap<IpAddr, String> {
        let subnets = self.addresses.subnets();
        let real: BTreeMap<IpAddr, IpAddr> = addresses
            .filter_map(|ip| Some((ip, self.addresses.behind(ip).ok()?)))
            .filter(|(ip, real)| ip != real || subnets.entry(*ip).is_some())
            .collect();
        let names = self.names.of(real.values().copied().collect(), &self.cluster_domain).await;
        real.into_iter().filter_map(|(ip, real)| Some((ip, names.get(&real)?.clone()))).collect()
    }

    /// `tpx env translate`: addresses of moved subnets become virtual ones.
    ///
    /// # Errors
    /// When no virtual address is left.
    pub(super) fn translate(&self, variables: Vec<Variable>) -> Result<Vec<Variable>, Failure> {
        let subnets = self.addresses.subnets();
        let exchange = |ip: IpAddr| match subnets.hides(ip) {
            true => self.addresses.reachable(ip).map(Some),
            false => Ok(None),
        };
        let translated = variables.into_iter().map(|Variable { name, value }| {
            let value = translate_text(&value, exchange).map_err(|e| {
                Failure::new(Kind::Usage, format!("cannot translate {name}: {e}"), "then `tpx quit` and connect again")
            })?;
            Ok(Variable { name, value })
        });
        translated.collect()
    }

    async fn look(&self, ended: bool) -> Vec<FlowRow> {
        let table = self.flows.clone();
        let mut rows = tokio::task::spawn_blocking(move || table.look(ended)).await.unwrap_or_default();
        for row in rows.iter_mut().filter(|row| row.process.is_none() && row.uid.is_none()) {
            row.bridge = self.bridge_of(row.source.ip());
        }
        rows
    }

    /// The bridge behind which a container has this address, by the host's routes.
    fn bridge_of(&self, source: IpAddr) -> Option<String> {
        let device = (self.without)(source)?.device;
        self.plan.container_devices.iter().any(|pattern| pattern.matches(&device)).then_some(device)
    }

    /// `tpx flows`.
    pub(super) async fn flows(&self, ended: bool) -> FlowsView {
        let flows = self.look(ended).await;
        let names = self.names_of(flows.iter().map(|row| row.destination.ip())).await;
        FlowsView { flows, names }
    }

    /// `tpx maps dump`, beside what the kernel's maps say.
    pub(super) async fn maps(&self, maps: MapsDump) -> MapsView {
        let flows = self.look(false).await;
        let in_kernel: BTreeSet<IpAddr> = maps.translations.iter().map(|row| row.virtual_ip).collect();
        let pairs = self.addresses.vnat().export();
        let vnat: Vec<VnatRow> = pairs
            .into_iter()
            .map(|(real, virtual_ip)| VnatRow { virtual_ip, real, in_kernel: in_kernel.contains(&virtual_ip) })
            .collect();
        let shown = (vnat.iter().map(|row| row.virtual_ip))
            .chain(flows.iter().map(|row| row.destination.ip()))
            .chain(maps.held.iter().map(|row| row.destination.ip()))
            .chain(maps.datagrams.iter().map(|row| row.destination.ip()));
        let names = self.names_of(shown.collect::<Vec<_>>().into_iter()).await;
        let road = match self.plan.road {
            Road::Express => "ebpf",
            Road::Tun => "tun",
        };
        let cgroup = self.scope.cgroup();
        let scope = ScopeRow {
            connection: self.name.clone(),
            scope: cgroup.map_or_else(|| self.scope.to_string(), |cgroup| cgroup.display().to_string()),
            road: road.into(),
            processes: cgroup.map(|cgroup| cgroup::processes(cgroup).len()),
        };
        MapsView { maps, vnat, flows, scopes: vec![scope], names }
    }
}

/// The addresses of both families that a name server has for a name.
async fn ask_both(asker: &Asker, name: &str) -> io::Result<BTreeSet<IpAddr>> {
    let (four, six) = tokio::join!(ask(asker, name, wire::RecordType::A), ask(asker, name, wire::RecordType::AAAA));
    match (four, six) {
        (Err(e), Err(_)) => Err(e),
        // As for programs: one family is enough.
        (four, six) => Ok([four, six].into_iter().flatten().flatten().collect()),
    }
}

async fn ask(asker: &Asker, name: &str, kind: wire::RecordType) -> io::Result<Vec<IpAddr>> {
    let name = wire::Name::from_utf8(name).map_err(io::Error::other)?;
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let answered = async |transport| {
        let answer = asker.ask(&bytes, transport).await.ok_or_else(|| io::Error::other("no answer"))?;
        Message::from_vec(&answer).map_err(io::Error::other)
    };
    let mut answer = answered(Transport::Udp).await?;
    if answer.metadata.truncation {
        answer = answered(Transport::Tcp).await?;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect()),
        code => Err(io::Error::other(format!("the answer is {code}"))),
    }
}

#[cfg(test)]
#[path = "insight_tests.rs"]
mod tests;
