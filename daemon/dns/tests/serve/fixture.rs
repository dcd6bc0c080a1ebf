//! The laptop between the two: a running server and a client that speaks raw messages.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    time::timeout,
};
use tpx_core::dns::PolicyConfig;
use tpx_dns::{BoundSockets, Bypass, Limits, NoTranslation, Server, ServerHandle, Translate};

use super::{
    cluster::Cluster,
    internet::{Internet, bound},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Counts exempted sockets, and checks that they are exempted before they are connected.
#[derive(Default)]
pub(crate) struct CountingBypass(AtomicUsize);

impl Bypass for CountingBypass {
    fn exempt(&self, socket: &socket2::Socket, _server: SocketAddr) -> io::Result<()> {
        assert!(socket.peer_addr().is_err(), "exempted too late");
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) internet: Internet,
    pub(crate) server: ServerHandle,
    pub(crate) address: SocketAddr,
    pub(crate) policy: watch::Sender<Arc<PolicyConfig>>,
    bypass: Arc<CountingBypass>,
}

pub(crate) fn policy() -> PolicyConfig {
    let mut policy = PolicyConfig::new("cluster.local".parse().unwrap());
    policy.namespaces = ["emojivoto", "dev", "default"].map(str::to_owned).into();
    policy.connected_namespace = Some("emojivoto".to_owned());
    policy.subnets = ["10.96.0.0/12", "10.244.0.0/16", "fd00:96::/112"].map(|net| net.parse().unwrap()).into();
    policy
}

impl World {
    pub(crate) async fn start() -> Self {
        // Without a cache every question is seen by the cluster, which tests count.
        Self::with(Limits { cache_entries: 0, ..Limits::default() }).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        Self::translated(limits, Arc::new(NoTranslation)).await
    }

    pub(crate) async fn translated(limits: Limits, translate: Arc<dyn Translate>) -> Self {
        let (cluster, internet) = (Cluster::start().await, Internet::start().await);
        let (udp, tcp) = bound().await;
        let address = udp.local_addr().unwrap();
        let bypass = Arc::new(CountingBypass::default());
        let (policy, watcher) = watch::channel(Arc::new(policy()));
        let sockets = vec![BoundSockets { name_server: internet.address, udp, tcp }];
        let server = Server::start(sockets, watcher, cluster.clone(), translate, bypass.clone(), limits).unwrap();
        Self { cluster, internet, server, address, policy, bypass }
    }

    pub(crate) fn exempted(&self) -> usize {
        self.bypass.0.load(Ordering::Relaxed)
    }

    /// Asks over UDP and over TCP; both must say the same.
    pub(crate) async fn ask(&self, name: &str, record_type: RecordType) -> Message {
        let query = query(name, record_type);
        let over_udp = checked(&query, &self.udp(&query).await.expect("an answer over UDP"));
        let over_tcp = checked(&query, &self.tcp(&query).await.expect("an answer over TCP"));
        assert_eq!(over_udp.metadata, over_tcp.metadata, "{name}");
        assert_eq!(sorted(&over_udp), sorted(&over_tcp), "{name}");
        over_udp
    }

    /// The one address or other value a name has.
    pub(crate) async fn value(&self, name: &str, record_type: RecordType) -> Vec<String> {
        values(&self.ask(name, record_type).await)
    }

    pub(crate) async fn code(&self, name: &str, record_type: RecordType) -> ResponseCode {
        self.ask(name, record_type).await.metadata.response_code
    }

    /// One datagram and its answer, if one comes.
    pub(crate) async fn udp(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.udp_within(message, PATIENCE).await
    }

    pub(crate) async fn udp_within(&self, message: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(message).await.unwrap();
        let mut answer = vec![0; 65_535];
        let length = timeout(patience, socket.recv(&mut answer)).await.ok()?.unwrap();
        answer.truncate(length);
        Some(answer)
    }

    /// One message over its own connection.
    pub(crate) async fn tcp(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).await?;
        send(&mut stream, message).await?;
        receive(&mut stream).await
    }
}

pub(crate) async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(&[&(message.len() as u16).to_be_bytes()[..], message].concat()).await
}

pub(crate) async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    timeout(PATIENCE, async {
        let length = stream.read_u16().await?;
        let mut message = vec![0; length.into()];
        stream.read_exact(&mut message).await?;
        Ok(message)
    })
    .await
    .map_err(|_| io::ErrorKind::TimedOut)?
}

pub(crate) fn query(name: &str, record_type: RecordType) -> Vec<u8> {
    build(name, record_type, None)
}

pub(crate) fn query_with_payload(name: &str, record_type: RecordType, payload: u16) -> Vec<u8> {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(0);
    build(name, record_type, Some(edns))
}

fn build(name: &str, record_type: RecordType, edns: Option<Edns>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, record_type));
    message.edns = edns;
    message.to_vec().unwrap()
}

/// Parses an answer and checks what every answer owes to its query: id, question to the letter, sane flags.
pub(crate) fn checked(query: &[u8], answer: &[u8]) -> Message {
    let (asked, answer) = (Message::from_vec(query).unwrap(), Message::from_vec(answer).unwrap());
    assert_eq!(answer.metadata.id, asked.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(answer.metadata.recursion_desired, asked.metadata.recursion_desired);
    assert!(answer.metadata.recursion_available);
    assert_eq!(answer.queries, asked.queries);
    assert!(answer.queries[0].name.eq_case(&asked.queries[0].name));
    assert_eq!(answer.edns.is_some(), asked.edns.is_some());
    answer
}

pub(crate) fn values(message: &Message) -> Vec<String> {
    let mut values: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    values.sort();
    values
}

fn sorted(message: &Message) -> Vec<String> {
    let mut records: Vec<String> = message.all_sections().map(ToString::to_string).collect();
    records.sort();
    records
}

pub(crate) fn is_soa(data: &RData) -> bool {
    matches!(data, RData::SOA(_))
}
