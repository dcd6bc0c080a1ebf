use std::sync::Mutex;

use async_trait::async_trait;
use hickory_proto::{
    op::{Message, MessageType},
    rr::{
        Name as WireName, RData, Record,
        rdata::{A, PTR},
    },
};
use tokio::sync::watch;
use tpx_core::{
    plan,
    subnets::{Inputs, RoutingPolicy, decide},
    vnat::Vnat,
};
use tpx_dns::{ClusterResolver, Limits, NoBypass, ResolveError, Server};

use super::*;
use crate::{ipc::ProcessExplanation, userd::routing::Decided};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A cluster whose name server knows one service; remembers what it was asked.
#[derive(Default)]
struct OneService(Mutex<Vec<WireName>>);

#[async_trait]
impl ClusterResolver for OneService {
    async fn resolve(&self, query: &[u8]) -> Result<Vec<u8>, ResolveError> {
        let mut message = Message::from_vec(query).unwrap();
        let name = message.queries[0].name().clone();
        self.0.lock().unwrap().push(name.clone());
        if name == WireName::from(ip("10.96.0.10")) {
            let service = WireName::from_ascii("web-app.emojivoto.svc.cluster.local.").unwrap();
            message.add_answer(Record::from_rdata(name, 5, RData::PTR(PTR(service))));
        } else if message.queries[0].query_type() == wire::RecordType::A {
            message.add_answer(Record::from_rdata(name, 5, RData::A(A::new(10, 96, 0, 10))));
        }
        message.metadata.message_type = MessageType::Response;
        Ok(message.to_vec().unwrap())
    }
}

/// Services behind virtual addresses because of a VPN, pods direct.
fn insight(road: Road) -> (Insight, Arc<OneService>) {
    let vpn =
        HostRoute { destination: "10.0.0.0/9".parse().unwrap(), device: "vpn0".into(), gateway: None, table: 254 };
    let inputs = Inputs {
        service_subnets: vec!["10.96.0.0/16".parse().unwrap()],
        pod_subnets: vec!["10.244.0.0/16".parse().unwrap()],
        host_routes: vec![vpn.clone()],
        ..Inputs::default()
    };
    let subnets = Arc::new(decide(&inputs).unwrap());
    let plan = subnets.plan(plan::Scope::Workstation, road, &[]);
    let (_, decided) = watch::channel(Decided {
        subnets,
        plan: plan.clone(),
        policy: Arc::default(),
        unanswered: Vec::new(),
        problem: None,
    });
    let vnat = Vnat::new("a cluster", RoutingPolicy::VIRTUAL4, RoutingPolicy::VIRTUAL6);
    let cluster = Arc::new(OneService::default());
    let insight = Insight {
        name: "default".into(),
        scope: Scope::Workstation,
        plan,
        unsteered_name_servers: Vec::new(),
        addresses: Addresses::new(vnat, None, decided),
        without: Arc::new(move |ip| vpn.destination.contains(&ip).then(|| vpn.clone())),
        policy: PolicyConfig::new("cluster.local".parse().unwrap()),
        cluster_domain: "cluster.local".into(),
        names: ServiceNames::new(Arc::clone(&cluster) as Arc<dyn ClusterResolver>),
        asker: None,
        flows: FlowTable::default(),
    };
    (insight, cluster)
}

async fn explained(insight: &Insight, target: Target) -> Explained {
    match insight.answer(Request::Explain { target }, Ok(None)).await {
        Reply::Explained(explained) => *explained,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_address_is_explained_with_its_name() {
    let (insight, cluster) = insight(Road::Express);
    let virtual_ip = insight.addresses.reachable(ip("10.96.0.10")).unwrap();
    let real = explained(&insight, Target::Address(ip("10.96.0.10"), Some(80))).await;
    let text = real.addresses[0].to_string();
    for word in ["10.96.0.0/16", "services", "vpn0", &virtual_ip.to_string()] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert_eq!(real.names.get(&ip("10.96.0.10")).map(String::as_str), Some("web-app.emojivoto"));
    // A virtual address is called like what is behind it.
    let behind = explained(&insight, Target::Address(virtual_ip, None)).await;
    assert_eq!(behind.names.get(&virtual_ip).map(String::as_str), Some("web-app.emojivoto"));
    assert!(behind.addresses[0].to_string().contains("10.96.0.10"));
    // The cluster learns nothing of addresses that are none of its own.
    let asked = cluster.0.lock().unwrap().len();
    let other = explained(&insight, Target::Address(ip("192.0.2.7"), None)).await;
    assert!(other.names.is_empty());
    assert_eq!(cluster.0.lock().unwrap().len(), asked);
}

#[tokio::test]
async fn a_process_is_explained_with_its_connections() {
    let (insight, _) = insight(Road::Tun);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let explained = explained(&insight, Target::Process(std::process::id(), Some("default".into()))).await;
    let peer = stream.peer_addr().unwrap();
    let process: ProcessExplanation = explained.process.unwrap();
    assert!(process.peers.contains(&peer) && process.scope.contains("floor"), "{process:?}");
    assert!(explained.addresses.iter().any(|e| (e.address, e.port) == (peer.ip(), Some(peer.port()))));
    match insight.answer(Request::Explain { target: Target::Process(u32::MAX, None) }, Ok(None)).await {
        Reply::Failed(failure) => assert_eq!(failure.what, format!("there is no process {}", u32::MAX)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_name_says_who_answers() {
    let (mut insight, _) = insight(Road::Express);
    insight.policy.namespaces.insert("emojivoto".into());
    let name = |text: &str| Target::Name(text.into(), None);
    // RFC 6761, 6.3: localhost needs no name server.
    let local = explained(&insight, name("localhost")).await;
    assert!(local.name.unwrap().addresses.iter().all(IpAddr::is_loopback));
    assert!(local.addresses.iter().all(|explanation| explanation.address.is_loopback()));
    let service = insight.policy_answer("web-app.emojivoto").unwrap();
    assert_eq!(service, ("the cluster".into(), vec!["web-app.emojivoto.svc.cluster.local".into()]));
    assert_eq!(insight.policy_answer("example.com").unwrap(), ("this host's name servers".into(), vec![]));
    assert!(insight.policy_answer("a..b").is_err());
}

/// Not what the system's resolver says, which serves those outside: it does not know the name at all.
#[tokio::test]
async fn a_name_is_asked_where_those_inside_ask() {
    let (mut insight, cluster) = insight(Road::Express);
    insight.policy.namespaces.insert("emojivoto".into());
    let (_, policy) = watch::channel(Arc::new(insight.policy.clone()));
    let translate = Arc::new(insight.addresses.clone());
    let server = Server::start(vec![], policy, cluster, translate, Arc::new(NoBypass), Limits::default()).unwrap();
    insight.asker = Some(server.asker(None));
    let found = explained(&insight, Target::Name("web-app.emojivoto".into(), Some(80))).await;
    let virtual_ip = insight.addresses.reachable(ip("10.96.0.10")).unwrap();
    let name = found.name.unwrap();
    assert_eq!((name.addresses, name.error), (vec![virtual_ip], None));
    assert_eq!((found.addresses[0].address, found.addresses[0].port), (virtual_ip, Some(80)));
    // Nothing is left to the system's resolver, not even this.
    let outside = explained(&insight, Target::Name("localhost".into(), None)).await.name.unwrap();
    assert_eq!((outside.addresses, outside.error.is_some()), (vec![], true));
}

#[tokio::test]
async fn environments_get_the_addresses_that_names_have() {
    let (insight, _) = insight(Road::Express);
    let variable = |name: &str, value: &str| Variable { name: name.into(), value: value.into() };
    let variables = vec![
        variable("URL", "tcp://10.96.0.10:80"),
        variable("POD", "10.244.0.7"),
        variable("NET", "10.96.0.0/16"),
        variable("NAME", "web-app"),
    ];
    let translated = match insight.answer(Request::TranslateEnv { variables: variables.clone() }, Ok(None)).await {
        Reply::Env(translated) => translated,
        other => panic!("{other:?}"),
    };
    let virtual_ip = insight.addresses.reachable(ip("10.96.0.10")).unwrap();
    assert_ne!(virtual_ip, ip("10.96.0.10"));
    assert_eq!(translated[0], variable("URL", &format!("tcp://{virtual_ip}:80")));
    assert_eq!(translated[1..], variables[1..]);
}

#[tokio::test]
async fn maps_come_with_flows_virtual_addresses_and_names() {
    let (insight, _) = insight(Road::Tun);
    let virtual_ip = insight.addresses.reachable(ip("10.96.0.10")).unwrap();
    let at = |ip: IpAddr| std::net::SocketAddr::new(ip, 80);
    let _listed = insight.flows.list(
        "tcp",
        tpx_core::explain::Way::Floor,
        at(ip("192.0.2.1")),
        at(virtual_ip),
        at(ip("10.96.0.10")),
        None,
    );
    let view = match insight.answer(Request::MapsDump, Ok(None)).await {
        Reply::Maps(view) => *view,
        other => panic!("{other:?}"),
    };
    assert_eq!(view.vnat, [VnatRow { virtual_ip, real: ip("10.96.0.10"), in_kernel: false }]);
    assert_eq!(view.flows[0].destination, at(virtual_ip));
    assert_eq!(
        view.scopes,
        [ScopeRow { connection: "default".into(), scope: "workstation".into(), road: "tun".into(), processes: None }]
    );
    assert_eq!(view.names, [(virtual_ip, "web-app.emojivoto".to_owned())].into());
}
