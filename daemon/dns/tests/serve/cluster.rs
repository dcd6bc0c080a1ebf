//! The cluster's name server: hickory's own, over real sockets, with the zones a cluster has.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hickory_proto::{
    op::Message,
    rr::{
        LowerName, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NULL, PTR, SOA, SRV, TXT},
    },
};
use hickory_server::{
    Server,
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneHandler, ZoneType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
};
use tpx_dns::{ClusterResolver, ResolveError};

pub(crate) const TTL: u32 = 17;
pub(crate) const NEGATIVE_TTL: u32 = 5;
pub(crate) const PRIVATE_TYPE: u16 = 65_400;

/// A cluster's name server that is running, and the road to it.
pub(crate) struct Cluster {
    address: SocketAddr,
    _server: Server<Catalog>,
    asked: Mutex<Vec<String>>,
    unavailable: AtomicBool,
    silent: AtomicBool,
    /// What is answered instead of what the server says.
    broken: Mutex<Option<Vec<u8>>>,
    /// As many questions at once as leave descriptors for the rest.
    sockets: Semaphore,
}

impl Cluster {
    pub(crate) async fn start() -> Arc<Self> {
        let mut catalog = Catalog::new();
        for (origin, records) in zones() {
            let mut zone: InMemoryZoneHandler =
                InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
            let soa = SOA::new(name("ns.dns.cluster.local."), name("host.cluster.local."), 1, 2, 3, 4, NEGATIVE_TTL);
            assert!(zone.upsert_mut(Record::from_rdata(origin.clone(), TTL, RData::SOA(soa)), 1));
            for record in records {
                assert!(zone.upsert_mut(record, 1));
            }
            catalog.upsert(LowerName::new(&origin), vec![Arc::new(zone) as Arc<dyn ZoneHandler>]);
        }
        let (udp, tcp) = super::internet::bound().await;
        let address = udp.local_addr().unwrap();
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 64);
        Arc::new(Self {
            address,
            _server: server,
            asked: Mutex::default(),
            unavailable: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            broken: Mutex::default(),
            sockets: Semaphore::new(128),
        })
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn set_unavailable(&self, unavailable: bool) {
        self.unavailable.store(unavailable, Ordering::Relaxed);
    }

    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    pub(crate) fn set_broken(&self, answer: Option<Vec<u8>>) {
        *self.broken.lock().unwrap() = answer;
    }
}

#[async_trait]
impl ClusterResolver for Cluster {
    async fn resolve(&self, query: &[u8]) -> Result<Vec<u8>, ResolveError> {
        let message = Message::from_vec(query).expect("the server asks well-formed questions");
        self.asked.lock().unwrap().push(message.queries[0].name.to_string());
        if self.unavailable.load(Ordering::Relaxed) {
            return Err(ResolveError::Unavailable("the tunnel is down".to_owned()));
        }
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if let Some(broken) = self.broken.lock().unwrap().clone() {
            return Ok(broken);
        }
        self.ask(query).await.map_err(|error| ResolveError::Unavailable(error.to_string()))
    }
}

impl Cluster {
    async fn ask(&self, query: &[u8]) -> std::io::Result<Vec<u8>> {
        let _permit = self.sockets.acquire().await.map_err(std::io::Error::other)?;
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(self.address).await?;
        let mut answer = vec![0; 65_535];
        let mut length = Err(std::io::ErrorKind::TimedOut.into());
        // Two thousand at once are more than that server's socket holds.
        for _ in 0..6 {
            socket.send(query).await?;
            if let Ok(received) = tokio::time::timeout(Duration::from_millis(600), socket.recv(&mut answer)).await {
                length = received;
                break;
            }
        }
        let length = length?;
        answer.truncate(length);
        if answer[2] & 0x02 == 0 {
            return Ok(answer);
        }
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], query].concat()).await?;
        let length = stream.read_u16().await?;
        answer.resize(length.into(), 0);
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

fn zones() -> Vec<(Name, Vec<Record>)> {
    let web = "web-app.emojivoto.svc.cluster.local.";
    let headless = "web.emojivoto.svc.cluster.local.";
    let pod = |index: u8| format!("web-{index}.web.emojivoto.svc.cluster.local.");
    let mut cluster = vec![
        a(web, [10, 96, 3, 7]),
        aaaa(web, "fd00:96::307"),
        record("web-app.emojivoto.svc.cluster.local.", RData::TXT(TXT::new(vec!["hello".to_owned()]))),
        record(
            web,
            RData::Unknown { code: RecordType::Unknown(PRIVATE_TYPE), rdata: NULL::with(b"\x01\x02".to_vec()) },
        ),
        record(
            "_http._tcp.web-app.emojivoto.svc.cluster.local.",
            RData::SRV(SRV::new(0, 100, 80, name("web-app.emojivoto.svc.cluster.local."))),
        ),
        a("voting.emojivoto.svc.cluster.local.", [10, 96, 3, 8]),
        a("dev-only.dev.svc.cluster.local.", [10, 96, 3, 9]),
        record("alias.emojivoto.svc.cluster.local.", RData::CNAME(CNAME(name("web-app.emojivoto.svc.cluster.local.")))),
        a("10-244-0-10.emojivoto.pod.cluster.local.", [10, 244, 0, 10]),
    ];
    for index in 0..2 {
        cluster.push(a(headless, [10, 244, 0, 10 + index]));
        cluster.push(a(&pod(index), [10, 244, 0, 10 + index]));
    }
    for index in 0..150 {
        cluster.push(a("many.emojivoto.svc.cluster.local.", [10, 244, 1, index]));
    }
    let v4 = vec![record("7.3.96.10.in-addr.arpa.", RData::PTR(PTR(name(web))))];
    let v6 = "7.0.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.";
    let v6 = vec![record(v6, RData::PTR(PTR(name(web))))];
    vec![(name("cluster.local."), cluster), (name("10.in-addr.arpa."), v4), (name("6.9.0.0.0.0.d.f.ip6.arpa."), v6)]
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), TTL, data)
}

fn a(owner: &str, address: [u8; 4]) -> Record {
    record(owner, RData::A(A(Ipv4Addr::from(address))))
}

fn aaaa(owner: &str, address: &str) -> Record {
    record(owner, RData::AAAA(AAAA(address.parse::<Ipv6Addr>().unwrap())))
}
