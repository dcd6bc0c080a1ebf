//! The manager in this process, spoken to as a laptop does.

mod harness;

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tonic::Code;
use tpx_api::{Facts, VERSION, proto};
use tpx_core::dial::DialFailure;
use tpx_link::{Stream, Target, stream::StreamError};
use tpx_manager::state::sessions::LEASE;

use self::harness::{Running, arrive, session};

/// A target that echoes.
async fn echo() -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address.into()
}

async fn works(stream: &mut Stream) {
    stream.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_from_arrival_to_departure() {
    let manager = Running::start().await;
    let (mut client, lane, target) = (manager.client().await, manager.lane().await, echo().await);
    assert_eq!(client.version(proto::VersionRequest {}).await.unwrap().into_inner().version, VERSION);

    assert_eq!(lane.connect(&target, "").await.unwrap_err(), DialFailure::Tunnel);
    assert_eq!(lane.connect(&target, "guess").await.unwrap_err(), DialFailure::Tunnel);
    let id = session(&mut client).await;
    let mut stream = lane.connect(&target, &id).await.unwrap();
    works(&mut stream).await;

    let of = |session_id: &str| proto::RemainRequest { session_id: session_id.to_owned() };
    client.remain(of(&id)).await.unwrap();
    assert_eq!(client.remain(of("guess")).await.unwrap_err().code(), Code::NotFound);
    client.depart(proto::DepartRequest { session_id: id.clone() }).await.unwrap();
    assert_eq!(client.remain(of(&id)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stream.recv().await.unwrap_err(), StreamError::Reset);
    assert_eq!(lane.connect(&target, &id).await.unwrap_err(), DialFailure::Tunnel);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ends_takes_its_streams_along() {
    let manager = Running::start().await;
    let (mut client, lane, target) = (manager.client().await, manager.lane().await, echo().await);
    let (first, second) = (session(&mut client).await, session(&mut client).await);
    assert_ne!(first, second);
    let mut stream = lane.connect(&target, &first).await.unwrap();
    works(&mut stream).await;
    manager.sessions.expire(Instant::now() + LEASE - Duration::from_secs(5));
    works(&mut stream).await;
    manager.sessions.expire(Instant::now() + LEASE);
    assert_eq!(stream.recv().await.unwrap_err(), StreamError::Reset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_is_refused_with_words() {
    let manager = Running::start().await;
    let mut client = manager.client().await;
    let request = proto::ArriveRequest { version: "99.0.0".into(), ..arrive() };
    let status = client.arrive(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("99.0.0") && status.message().contains(VERSION), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_come_at_once_and_with_each_change() {
    let manager = Running::start().await;
    let mut client = manager.client().await;
    let session_id = session(&mut client).await;
    let mut facts = Facts { cluster_domain: "cluster.local".into(), ..Facts::default() };
    manager.facts.send_replace(Some(facts.clone()));
    let request = proto::WatchFactsRequest { session_id: session_id.clone(), addresses_of: vec![] };
    let mut watching = client.watch_facts(request).await.unwrap().into_inner();
    assert_eq!(Facts::try_from(watching.message().await.unwrap().unwrap()).unwrap(), facts);
    facts.namespaces.push("emojivoto".into());
    manager.facts.send_replace(Some(facts.clone()));
    assert_eq!(Facts::try_from(watching.message().await.unwrap().unwrap()).unwrap(), facts);
    client.depart(proto::DepartRequest { session_id }).await.unwrap();
    assert_eq!(watching.message().await.unwrap(), None);
    let request = proto::WatchFactsRequest { session_id: "guess".into(), addresses_of: vec![] };
    assert_eq!(client.watch_facts(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_come_for_the_namespaces_that_were_asked_for() {
    let manager = Running::start().await;
    let mut client = manager.client().await;
    let session_id = session(&mut client).await;
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let addresses = [("shop".to_owned(), vec![ip("10.96.0.7")]), ("other".to_owned(), vec![ip("10.96.0.8")])].into();
    let mut facts = Facts { cluster_domain: "cluster.local".into(), addresses, ..Facts::default() };
    manager.facts.send_replace(Some(facts.clone()));
    let asked = vec!["shop".to_owned(), "later".to_owned()];
    let request = proto::WatchFactsRequest { session_id: session_id.clone(), addresses_of: asked };
    let mut watching = client.watch_facts(request).await.unwrap().into_inner();
    let mut next = async || Facts::try_from(watching.message().await.unwrap().unwrap()).unwrap().addresses;
    let seen = next().await;
    assert_eq!(seen, [("later".to_owned(), vec![]), ("shop".to_owned(), vec![ip("10.96.0.7")])].into());
    // What nobody asked for is no news: the next message is about the second change.
    facts.addresses.insert("other".into(), vec![]);
    manager.facts.send_replace(Some(facts.clone()));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    facts.addresses.insert("later".into(), vec![ip("10.96.0.9")]);
    manager.facts.send_replace(Some(facts.clone()));
    assert_eq!(next().await["later"], [ip("10.96.0.9")]);
    let too_many = vec!["shop".to_owned(); Facts::MAX_ASKED + 1];
    let request = proto::WatchFactsRequest { session_id, addresses_of: too_many };
    assert_eq!(client.watch_facts(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_asked_inside() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let manager = Running::with_name_servers(vec![server.local_addr().unwrap()]).await;
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            buffer[2] |= 0x80;
            server.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let mut client = manager.client().await;
    let session_id = session(&mut client).await;
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x01\x00\x01".to_vec();
    let request = proto::ResolveRequest { session_id: session_id.clone(), query: query.clone() };
    let answer = client.resolve(request).await.unwrap().into_inner().answer;
    let mut expected = query.clone();
    expected[2] |= 0x80;
    assert_eq!(answer, expected);
    let request = proto::ResolveRequest { session_id, query: b"nonsense".to_vec() };
    assert_eq!(client.resolve(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request = proto::ResolveRequest { session_id: "guess".into(), query };
    assert_eq!(client.resolve(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_idle_laptops_at_once() {
    let manager = Running::start().await;
    let mut client = manager.client().await;
    let session_id = session(&mut client).await;
    manager.facts.send_replace(Some(Facts { cluster_domain: "cluster.local".into(), ..Facts::default() }));
    let mut watching =
        client.watch_facts(proto::WatchFactsRequest { session_id, addresses_of: vec![] }).await.unwrap().into_inner();
    watching.message().await.unwrap().unwrap();
    let lane = manager.lane().await;
    manager.stop.cancel();
    timeout(Duration::from_secs(3), manager.served).await.expect("no stream was open").unwrap();
    assert_eq!(watching.message().await.unwrap(), None);
    timeout(Duration::from_secs(3), lane.closed()).await.unwrap();
    assert!(TcpStream::connect(manager.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_laptop_does_no_harm() {
    let manager = Running::start().await;
    let mut socket = TcpStream::connect(manager.address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await.unwrap();
    let mut client = manager.client().await;
    session(&mut client).await;
}
