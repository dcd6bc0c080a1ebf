//! UDP through the manager, with real sockets on loopback.

mod harness;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout},
};
use tpx_api::proto;
use tpx_core::dial::DialFailure;
use tpx_link::{
    Datagrams,
    datagrams::{Event, MAX_PAYLOAD},
    lane::Lane,
};
use tpx_manager::state::idle::Limits;

use self::harness::{Running, session};

/// A target that sends every datagram back, and counts who sent any.
async fn echo(address: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind(address).await.unwrap();
    let (address, count) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let peers = Arc::clone(&count);
    tokio::spawn(async move {
        let (mut buffer, mut seen) = (vec![0; 65_536], std::collections::HashSet::new());
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            seen.insert(from);
            peers.store(seen.len(), SeqCst);
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    (address, count)
}

async fn open(lane: &Lane, target: SocketAddr, session: &str) -> Datagrams {
    lane.datagrams(&target.into(), session).await.unwrap()
}

async fn next(datagrams: &mut Datagrams) -> Option<Event> {
    timeout(Duration::from_secs(10), datagrams.recv()).await.expect("nothing came")
}

async fn back_and_forth(datagrams: &mut Datagrams, payload: Bytes) {
    assert!(datagrams.try_send(payload.clone()));
    assert_eq!(next(datagrams).await, Some(Event::Payload(payload)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_every_length_come_back() {
    let manager = Running::start().await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let session = session(&mut client).await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (target, _) = echo(address).await;
        let mut datagrams = open(&lane, target, &session).await;
        for length in [0, 1, 1200, 9000, 60_000, MAX_PAYLOAD] {
            let payload: Bytes = (0..length).map(|at| (at * 13 + length) as u8).collect();
            back_and_forth(&mut datagrams, payload).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_resolved_in_the_cluster() {
    let manager = Running::start().await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let session = session(&mut client).await;
    let (target, _) = echo("127.0.0.1:0").await;
    let target = tpx_link::Target::new("localhost", target.port()).unwrap();
    let mut datagrams = lane.datagrams(&target, &session).await.unwrap();
    // `localhost` may be ::1 first, where nobody listens: UDP cannot tell before something was sent.
    let mut back = false;
    for _ in 0..2 {
        assert!(datagrams.try_send(Bytes::from_static(b"hello")));
        back |= match next(&mut datagrams).await.unwrap() {
            Event::Payload(payload) => payload == "hello",
            other => other == Event::Unreachable(DialFailure::Refused),
        };
    }
    assert!(back);
    let target = tpx_link::Target::new("no-such-name.invalid", 53).unwrap();
    let mut datagrams = lane.datagrams(&target, &session).await.unwrap();
    assert_eq!(next(&mut datagrams).await, Some(Event::Unreachable(DialFailure::HostUnreachable)));
    assert_eq!(next(&mut datagrams).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_refuses_each_datagram() {
    let manager = Running::start().await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let session = session(&mut client).await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let closed = UdpSocket::bind(address).await.unwrap();
        let target = closed.local_addr().unwrap();
        drop(closed);
        let mut datagrams = open(&lane, target, &session).await;
        for _ in 0..3 {
            assert!(datagrams.try_send(Bytes::from_static(b"anybody?")));
            assert_eq!(next(&mut datagrams).await, Some(Event::Unreachable(DialFailure::Refused)));
        }
        // The port opens, the same association goes on.
        let (_, peers) = echo(&target.to_string()).await;
        back_and_forth(&mut datagrams, Bytes::from_static(b"hello")).await;
        assert_eq!(peers.load(SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_associations_at_once() {
    let manager = Running::start().await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let session = session(&mut client).await;
    let (target, peers) = echo("127.0.0.1:0").await;
    let mut all = Vec::new();
    for _ in 0..200 {
        all.push(open(&lane, target, &session).await);
    }
    for round in 0..5 {
        for (number, datagrams) in all.iter_mut().enumerate() {
            assert!(datagrams.try_send(Bytes::from(format!("{round} {number}"))));
        }
        for (number, datagrams) in all.iter_mut().enumerate() {
            let expected = Event::Payload(Bytes::from(format!("{round} {number}")));
            assert_eq!(next(datagrams).await, Some(expected));
        }
    }
    assert_eq!(peers.load(SeqCst), 200, "each has a socket of its own");
    assert_eq!(lane.stats().streams, 200);
    drop(all);
    assert_eq!(lane.stats().streams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_an_association() {
    let silence = Duration::from_millis(500);
    let manager = Running::with_limits(Limits { silence, answered_dns: silence }).await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let session = session(&mut client).await;
    let (target, _) = echo("127.0.0.1:0").await;
    let mut datagrams = open(&lane, target, &session).await;
    for _ in 0..4 {
        back_and_forth(&mut datagrams, Bytes::from_static(b"still here")).await;
        sleep(silence / 2).await;
    }
    let start = Instant::now();
    assert_eq!(next(&mut datagrams).await, None);
    assert!(start.elapsed() < 2 * silence, "{:?}", start.elapsed());
    assert!(!datagrams.try_send(Bytes::from_static(b"late")));
    // A new one starts as the first did.
    let mut datagrams = open(&lane, target, &session).await;
    back_and_forth(&mut datagrams, Bytes::from_static(b"again")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_with_a_session_and_only_as_long() {
    let manager = Running::start().await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let (target, peers) = echo("127.0.0.1:0").await;
    for guess in ["", "guess"] {
        let mut datagrams = open(&lane, target, guess).await;
        datagrams.try_send(Bytes::from_static(b"let me in"));
        assert_eq!(next(&mut datagrams).await, Some(Event::Unreachable(DialFailure::Tunnel)));
        assert_eq!(next(&mut datagrams).await, None);
        let mut echoes = lane.echoes(target.ip(), guess).await.unwrap();
        let refused = tpx_link::echoes::EchoEvent::Unreachable { sequence: None, why: DialFailure::Tunnel };
        assert_eq!(echoes.recv().await, Some(refused));
    }
    assert_eq!(peers.load(SeqCst), 0);
    let session_id = session(&mut client).await;
    let mut datagrams = open(&lane, target, &session_id).await;
    back_and_forth(&mut datagrams, Bytes::from_static(b"hello")).await;
    client.depart(proto::DepartRequest { session_id }).await.unwrap();
    assert_eq!(next(&mut datagrams).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_that_nobody_reads_blocks_nobody() {
    let manager = Running::start().await;
    let (mut client, lane) = (manager.client().await, manager.lane().await);
    let session = session(&mut client).await;
    // Answers each datagram with forty megabytes.
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = flood.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 16];
        let (_, from) = flood.recv_from(&mut buffer).await.unwrap();
        for _ in 0..1000 {
            let _ = flood.send_to(&[7; 40_000], from).await;
            tokio::task::yield_now().await;
        }
    });
    let mut slow = open(&lane, target, &session).await;
    assert!(slow.try_send(Bytes::from_static(b"go")));
    let (target, _) = echo("127.0.0.1:0").await;
    let mut other = open(&lane, target, &session).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        back_and_forth(&mut other, Bytes::from_static(b"hello")).await;
    }
    assert_eq!(next(&mut slow).await, Some(Event::Payload(Bytes::from_static(&[7; 40_000]))));
}
