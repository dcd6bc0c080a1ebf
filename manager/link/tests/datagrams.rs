//! UDP associations and echo requests inside one process: lane, carrier, server, a handler without sockets.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tpx_core::dial::DialFailure;
use tpx_link::{
    Datagrams, Echo, Settings, Target,
    carrier::Carrier,
    datagrams::{Event, MAX_PAYLOAD, Report},
    echoes::EchoEvent,
    lane::{Lane, LaneClosed},
    proxy_status::Refusal,
    server::{Connect, Handler, Udp, serve},
};

/// A cluster in which each port behaves in its own way.
struct Cluster {
    /// Port 2 answers only with one of these.
    gate: Semaphore,
    /// Associations that ended from the laptop's side.
    ended: AtomicUsize,
    /// What port 4 could not send.
    dropped: AtomicUsize,
}

#[async_trait]
impl Handler for Cluster {
    async fn handle(&self, request: Connect) {
        request.refuse(Refusal::BadRequest);
    }

    async fn handle_udp(&self, request: Connect<Udp>) {
        assert_eq!(request.session(), "s");
        match request.target().0.port() {
            1 => request.refuse(Refusal::Dial(DialFailure::NetworkUnreachable)),
            // Reports what it gets.
            3 => {
                let mut association = request.accept().unwrap();
                while let Some(payload) = association.recv().await {
                    let report = match payload.len() {
                        0 => Report::Unreachable(DialFailure::Refused),
                        mtu => Report::TooBig { mtu: mtu as u32 },
                    };
                    assert!(association.try_report(report));
                }
            }
            // Sends for ever, to a laptop that does not read.
            4 => {
                let mut association = request.accept().unwrap();
                association.recv().await.unwrap();
                for _ in 0..1000 {
                    if !association.try_send(&[7; 60_000]) {
                        self.dropped.fetch_add(1, SeqCst);
                    }
                    tokio::task::yield_now().await;
                }
                association.recv().await;
            }
            // Ends after one answer.
            5 => {
                let mut association = request.accept().unwrap();
                let payload = association.recv().await.unwrap();
                assert!(association.try_send(&payload));
                association.finish();
            }
            // Answers with what it gets, late at port 2.
            port => {
                if port == 2 {
                    self.gate.acquire().await.unwrap().forget();
                }
                let mut association = request.accept().unwrap();
                while let Some(payload) = association.recv().await {
                    assert!(association.try_send(&payload));
                }
                self.ended.fetch_add(1, SeqCst);
            }
        }
    }

    async fn handle_echo(&self, request: Connect<IpAddr>) {
        if request.target().is_loopback() {
            return request.refuse(Refusal::Dial(DialFailure::Prohibited));
        }
        let mut series = request.accept().unwrap();
        while let Some(echo) = series.recv().await {
            if echo.payload.is_empty() {
                assert!(series.try_report(echo.sequence, DialFailure::HostUnreachable));
            } else {
                assert!(series.try_send(&echo));
            }
        }
    }
}

struct Tunnel {
    lane: Lane,
    cluster: Arc<Cluster>,
    served: tokio::task::JoinHandle<LaneClosed>,
}

impl Tunnel {
    async fn open() -> Self {
        let (near, far) = duplex(1 << 20);
        Self::over(near, far).await
    }

    /// Every byte takes `delay` in each direction.
    async fn far_away(delay: Duration) -> Self {
        let ((near, near_end), (far, far_end)) = (duplex(1 << 20), duplex(1 << 20));
        let ((near_read, near_write), (far_read, far_write)) = (split(near_end), split(far_end));
        for (mut from, mut to) in [(near_read, far_write), (far_read, near_write)] {
            let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(length @ 1..) = from.read(&mut buffer).await {
                    if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Some((due, bytes)) = receiver.recv().await {
                    sleep_until(due).await;
                    if to.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
        Self::over(near, far).await
    }

    async fn over(near: DuplexStream, far: DuplexStream) -> Self {
        let cluster =
            Arc::new(Cluster { gate: Semaphore::new(0), ended: AtomicUsize::new(0), dropped: AtomicUsize::new(0) });
        let handler = Arc::clone(&cluster);
        let served = tokio::spawn(async move {
            let service = tower::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
            });
            serve(far, &Settings::default(), handler, service, CancellationToken::new()).await
        });
        let lane = Lane::open(Box::new(near) as Box<dyn Carrier>, &Settings::default()).await.unwrap();
        Self { lane, cluster, served }
    }

    async fn datagrams(&self, port: u16) -> Datagrams {
        self.lane.datagrams(&Target::new("10.0.0.1", port).unwrap(), "s").await.unwrap()
    }
}

async fn next(datagrams: &mut Datagrams) -> Option<Event> {
    timeout(Duration::from_secs(10), datagrams.recv()).await.unwrap()
}

fn payload(bytes: &[u8]) -> Option<Event> {
    Some(Event::Payload(Bytes::copy_from_slice(bytes)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_keep_their_bounds() {
    let tunnel = Tunnel::open().await;
    let mut datagrams = tunnel.datagrams(53).await;
    for length in [0, 1, 63, 1400, 16_384, 60_000, MAX_PAYLOAD] {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        assert!(datagrams.try_send(bytes.clone().into()));
        assert_eq!(next(&mut datagrams).await, payload(&bytes), "{length} bytes");
    }
    assert!(!datagrams.try_send(vec![0; MAX_PAYLOAD + 1].into()));
    assert_eq!(tunnel.lane.stats().streams, 1);
    drop(datagrams);
    assert_eq!(tunnel.lane.stats().streams, 0);
    wait_until(|| tunnel.cluster.ended.load(SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_before_the_answer_waits_there() {
    let tunnel = Tunnel::open().await;
    let mut datagrams = tunnel.datagrams(2).await;
    assert!(datagrams.try_send(Bytes::from_static(b"first")));
    assert!(datagrams.try_send(Bytes::from_static(b"second")));
    assert!(timeout(Duration::from_millis(100), datagrams.recv()).await.is_err());
    tunnel.cluster.gate.add_permits(1);
    assert_eq!(next(&mut datagrams).await, payload(b"first"));
    assert_eq!(next(&mut datagrams).await, payload(b"second"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_datagram_costs_one_round_trip() {
    const DELAY: Duration = Duration::from_millis(200);
    let tunnel = Tunnel::far_away(DELAY).await;
    // The lane itself is up.
    drop(tunnel.datagrams(1).await);
    let start = Instant::now();
    let mut datagrams = tunnel.datagrams(53).await;
    assert!(datagrams.try_send(Bytes::from_static(b"query")));
    assert_eq!(next(&mut datagrams).await, payload(b"query"));
    let took = start.elapsed();
    assert!(took >= 2 * DELAY && took < 3 * DELAY, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_heard_and_is_the_end() {
    let tunnel = Tunnel::open().await;
    let mut datagrams = tunnel.datagrams(1).await;
    assert_eq!(next(&mut datagrams).await, Some(Event::Unreachable(DialFailure::NetworkUnreachable)));
    assert_eq!(next(&mut datagrams).await, None);
    assert!(!datagrams.try_send(Bytes::from_static(b"late")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_come_back() {
    let tunnel = Tunnel::open().await;
    let mut datagrams = tunnel.datagrams(3).await;
    assert!(datagrams.try_send(Bytes::new()));
    assert_eq!(next(&mut datagrams).await, Some(Event::Unreachable(DialFailure::Refused)));
    assert!(datagrams.try_send(vec![0; 1280].into()));
    assert_eq!(next(&mut datagrams).await, Some(Event::TooBig { mtu: 1280 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_seen_behind_the_last_datagram() {
    let tunnel = Tunnel::open().await;
    for _ in 0..50 {
        let mut datagrams = tunnel.datagrams(5).await;
        assert!(datagrams.try_send(Bytes::from_static(b"only")));
        assert_eq!(next(&mut datagrams).await, payload(b"only"));
        assert_eq!(next(&mut datagrams).await, None);
        assert!(!datagrams.try_send(Bytes::from_static(b"late")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_laptop_loses_datagrams_and_blocks_nobody() {
    let tunnel = Tunnel::open().await;
    let mut slow = tunnel.datagrams(4).await;
    assert!(slow.try_send(Bytes::from_static(b"go")));
    // 60 MB go to a window of 2 MiB.
    wait_until(|| tunnel.cluster.dropped.load(SeqCst) > 500).await;
    let mut other = tunnel.datagrams(53).await;
    assert!(other.try_send(Bytes::from_static(b"hello")));
    assert_eq!(next(&mut other).await, payload(b"hello"));
    // What was sent is whole, and the association goes on.
    assert_eq!(next(&mut slow).await, payload(&[7; 60_000]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_requests_and_answers() {
    let tunnel = Tunnel::open().await;
    let mut echoes = tunnel.lane.echoes("fd00::1".parse().unwrap(), "s").await.unwrap();
    for (sequence, length) in [(0, 56), (1, 60_000), (u16::MAX, 1)] {
        let echo = Echo { sequence, payload: vec![9; length].into() };
        assert!(echoes.try_send(echo.clone()));
        assert_eq!(echoes.recv().await, Some(EchoEvent::Reply(echo)));
    }
    assert!(echoes.try_send(Echo { sequence: 7, payload: Bytes::new() }));
    let unreachable = EchoEvent::Unreachable { sequence: Some(7), why: DialFailure::HostUnreachable };
    assert_eq!(echoes.recv().await, Some(unreachable));

    let mut echoes = tunnel.lane.echoes("127.0.0.1".parse().unwrap(), "s").await.unwrap();
    let refused = EchoEvent::Unreachable { sequence: None, why: DialFailure::Prohibited };
    assert_eq!(echoes.recv().await, Some(refused));
    assert_eq!(echoes.recv().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lane_ends_associations() {
    let tunnel = Tunnel::open().await;
    let mut datagrams = tunnel.datagrams(53).await;
    assert!(datagrams.try_send(Bytes::from_static(b"hello")));
    assert_eq!(next(&mut datagrams).await, payload(b"hello"));
    tunnel.lane.close();
    assert_eq!(next(&mut datagrams).await, None);
    timeout(Duration::from_secs(5), tunnel.served).await.unwrap().unwrap();
    let target = Target::new("10.0.0.1", 53).unwrap();
    assert_eq!(tunnel.lane.datagrams(&target, "s").await.unwrap_err(), DialFailure::Tunnel);
    wait_until(|| tunnel.cluster.ended.load(SeqCst) == 1).await;
}

/// A proxy that only knows TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_extended_connect_is_told_apart() {
    let (near, far) = duplex(1 << 20);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        while connection.accept().await.is_some() {}
    });
    let settings = Settings { patience: Duration::from_millis(300), ..Settings::default() };
    let lane = Lane::open(Box::new(near), &settings).await.unwrap();
    let target = Target::new("10.0.0.1", 53).unwrap();
    assert_eq!(lane.datagrams(&target, "s").await.unwrap_err(), DialFailure::Tunnel);
    assert!(!lane.is_closed());
    let start = Instant::now();
    assert_eq!(lane.datagrams(&target, "s").await.unwrap_err(), DialFailure::Tunnel);
    assert!(start.elapsed() < Duration::from_millis(200), "it waited again");
}

async fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long");
        sleep(Duration::from_millis(5)).await;
    }
}
