//! Rough seas: a cluster that fails, messages that are none, many at once.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::RecordType,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::{Barrier, watch},
    task::JoinSet,
    time::timeout,
};
use tpx_dns::{BoundSockets, Limits, NoBypass, NoTranslation, Server, StartError};

use crate::{
    cluster::name,
    fixture::{PATIENCE, World, checked, policy, query, receive, send},
    internet::{answer, bound},
};

#[tokio::test]
async fn a_cluster_that_fails_is_a_failure_not_a_missing_name() {
    let limits = Limits { lookup_timeout: Duration::from_millis(300), cache_entries: 0, ..Limits::default() };
    let world = World::with(limits).await;
    let form = "web-app.emojivoto";
    world.cluster.set_unavailable(true);
    assert_eq!(world.code(form, RecordType::A).await, ResponseCode::ServFail);
    world.cluster.set_unavailable(false);

    world.cluster.set_silent(true);
    let start = Instant::now();
    let message = query(form, RecordType::A);
    let failure = checked(&message, &world.udp(&message).await.unwrap());
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
    assert!((Duration::from_millis(250)..Duration::from_secs(3)).contains(&start.elapsed()));
    world.cluster.set_silent(false);

    let another = query("other.emojivoto.svc.cluster.local", RecordType::A);
    for broken in
        [vec![], vec![0xff; 40], query("web-app.emojivoto.svc.cluster.local", RecordType::A), answer(&another)]
    {
        world.cluster.set_broken(Some(broken));
        assert_eq!(world.code(form, RecordType::A).await, ResponseCode::ServFail);
    }
    world.cluster.set_broken(None);
    assert_eq!(world.value(form, RecordType::A).await, ["10.96.3.7"]);
    assert_eq!(world.internet.count(), 0);
    assert_eq!(world.server.counts().failed, 11);
}

#[tokio::test]
async fn messages_that_are_no_query_get_an_error_or_nothing() {
    let world = World::start().await;
    let good = query("web-app.emojivoto", RecordType::A);
    let mut two = Message::query();
    two.add_query(Query::query(name("web-app.emojivoto."), RecordType::A));
    two.add_query(Query::query(name("example.com."), RecordType::A));
    let mut none = good.clone();
    none[5] = 0;
    let mut extra = good.clone();
    extra[11] = 1;
    for malformed in [two.to_vec().unwrap(), none, extra, good[..good.len() - 1].to_vec(), good[..12].to_vec()] {
        let reply = world.udp(&malformed).await.expect("an error is an answer");
        assert_eq!(reply[..2], malformed[..2]);
        assert_eq!((reply[2] & 0x80, reply[3] & 0x0f), (0x80, 1), "FORMERR for {malformed:?}");
        assert_eq!(world.tcp(&malformed).await.unwrap(), reply);
    }
    let mut notify = good.clone();
    notify[2] = 0x20;
    assert_eq!(world.udp(&notify).await.unwrap()[3] & 0x0f, 4, "NOTIMP");
    let mut response = good.clone();
    response[2] |= 0x80;
    for silence in [response, b"x".to_vec(), vec![]] {
        assert_eq!(world.udp_within(&silence, Duration::from_millis(200)).await, None);
    }
    assert_eq!(world.internet.count(), 0);
    assert_eq!(world.value("web-app.emojivoto", RecordType::A).await, ["10.96.3.7"]);
}

#[tokio::test]
async fn rubbish_does_no_harm() {
    let world = World::start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(world.address).await.unwrap();
    let good = query("web-app.emojivoto.svc.cluster.local", RecordType::A);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..3000 {
        let mut message = good.clone();
        for _ in 0..1 + random() % 6 {
            let at = random() as usize % message.len();
            message[at] = random() as u8;
        }
        message.truncate(random() as usize % (message.len() + 1));
        let _ = socket.send(&message).await;
        if round % 50 == 0 {
            let mut stream = TcpStream::connect(world.address).await.unwrap();
            let _ = stream.write_all(&message).await;
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(world.value("web-app.emojivoto", RecordType::A).await, ["10.96.3.7"]);
    let message = query("example.com", RecordType::A);
    assert_eq!(world.udp(&message).await.unwrap(), answer(&message));
}

/// A hundred clients with twenty questions each, all sent before any answer is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_at_once() {
    let world = Arc::new(World::start().await);
    let start = Arc::new(Barrier::new(100));
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let (world, start) = (world.clone(), start.clone());
        clients.spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(world.address).await.unwrap();
            let mut waiting: BTreeMap<[u8; 2], Vec<u8>> = (0..20u8)
                .map(|index| {
                    let name = if index % 2 == 0 { "web-app.emojivoto" } else { "example.com" };
                    let mut message = query(name, RecordType::A);
                    message[..2].copy_from_slice(&[7, index]);
                    ([7, index], message)
                })
                .collect();
            start.wait().await;
            // As a resolver library: a datagram may be lost in a burst, then ask again.
            for _ in 0..5 {
                for message in waiting.values() {
                    socket.send(message).await.unwrap();
                }
                let mut reply = vec![0; 65_535];
                while !waiting.is_empty() {
                    let Ok(received) = timeout(Duration::from_secs(5), socket.recv(&mut reply)).await else { break };
                    let reply = &reply[..received.unwrap()];
                    // A question that was asked again may be answered twice.
                    let Some(message) = waiting.remove(&reply[..2]) else { continue };
                    if reply[1].is_multiple_of(2) {
                        assert_eq!(checked(&message, reply).answers.len(), 1);
                    } else {
                        assert_eq!(reply, answer(&message));
                    }
                }
            }
            waiting.len()
        });
    }
    let unanswered = timeout(Duration::from_secs(60), clients.join_all()).await.unwrap();
    assert_eq!(unanswered.iter().sum::<usize>(), 0);
    assert!(!world.internet.saw("emojivoto"));
}

#[tokio::test]
async fn idle_and_stuck_connections_end() {
    let world = World::with(Limits { tcp_idle: Duration::from_millis(200), ..Limits::default() }).await;
    let mut idle = TcpStream::connect(world.address).await.unwrap();
    let mut half = TcpStream::connect(world.address).await.unwrap();
    half.write_all(&[0, 50, 1]).await.unwrap();
    for stream in [&mut idle, &mut half] {
        let end = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it stays open");
        assert!(matches!(end, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn dropping_the_handle_ends_everything() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let message = query("web-app.emojivoto", RecordType::A);
    send(&mut stream, &message).await.unwrap();
    receive(&mut stream).await.unwrap();
    let address = world.address;
    drop(world.server);
    let end = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it stays open");
    assert!(matches!(end, Ok(0) | Err(_)));
    // The port is free again.
    UdpSocket::bind(address).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_server_never_forwards_to_itself() {
    let world = World::start().await;
    let (udp, tcp) = bound().await;
    let sockets = vec![BoundSockets { name_server: udp.local_addr().unwrap(), udp, tcp }];
    let (_policy, watcher) = watch::channel(Arc::new(policy()));
    let (translate, bypass) = (Arc::new(NoTranslation), Arc::new(NoBypass));
    let started = Server::start(sockets, watcher, world.cluster.clone(), translate, bypass, Limits::default());
    assert!(matches!(started, Err(StartError::Loop(_))));
}
