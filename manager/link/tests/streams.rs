//! Whole flows inside one process: application socket, relay, lane, carrier, server, relay, target socket.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tpx_core::dial::DialFailure;
use tpx_link::{
    Settings, Target,
    lane::{Lane, LaneClosed},
    proxy_status::Refusal,
    relay::{End, Transferred, relay},
    server::{Connect, Handler, serve},
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Dials what it is asked for and remembers how each relay ended.
#[derive(Default)]
struct Dialler {
    cancelled: AtomicUsize,
    ended: std::sync::Mutex<Vec<Transferred>>,
}

#[async_trait]
impl Handler for Dialler {
    async fn handle(&self, mut request: Connect) {
        let address = request.target().address();
        if address.is_some_and(|address| address.port() == 1) {
            // A dial that never answers.
            request.cancelled().await;
            self.cancelled.fetch_add(1, SeqCst);
            return;
        }
        match TcpStream::connect(address.expect("tests use addresses")).await {
            Ok(socket) => {
                let end = relay(socket, request.accept().unwrap()).await;
                self.ended.lock().unwrap().push(end);
            }
            Err(_) => request.refuse(Refusal::Dial(DialFailure::Refused)),
        }
    }
}

struct Tunnel {
    lane: Lane,
    dialler: Arc<Dialler>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<LaneClosed>,
}

impl Tunnel {
    async fn open() -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (near, (far, _)) = (near.unwrap(), far.unwrap());
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let (dialler, stop) = (Arc::new(Dialler::default()), CancellationToken::new());
        let (handler, token) = (Arc::clone(&dialler), stop.clone());
        let served = tokio::spawn(async move {
            let service = tower::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
            });
            serve(far, &Settings::default(), handler, service, token).await
        });
        let lane = Lane::open(Box::new(near), &Settings::default()).await.unwrap();
        Self { lane, dialler, stop, served }
    }

    /// An application's socket whose flow goes to `target`, and how its relay ends.
    async fn flow(&self, target: SocketAddr) -> (TcpStream, tokio::task::JoinHandle<Transferred>) {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (app, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let stream = self.lane.connect(&target.into(), "s").await.unwrap();
        let relayed = tokio::spawn(relay(accepted.unwrap().0, stream));
        (app.unwrap(), relayed)
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_fails_is_no_stream() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    drop(listener);
    assert_eq!(tunnel.lane.connect(&address.into(), "s").await.unwrap_err(), DialFailure::Refused);
    assert_eq!(tunnel.lane.stats().streams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_cancels_the_dial() {
    let tunnel = Tunnel::open().await;
    let target: Target = "127.0.0.1:1".parse().unwrap();
    assert!(timeout(Duration::from_millis(50), tunnel.lane.connect(&target, "s")).await.is_err());
    wait_until(|| tunnel.dialler.cancelled.load(SeqCst) == 1).await;
    assert_eq!(tunnel.lane.stats().streams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_ends_on_its_own() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (mut app, relayed) = tunnel.flow(address).await;
    let (mut target, _) = listener.accept().await.unwrap();

    // The application ends first and still reads the answer.
    app.write_all(b"question").await.unwrap();
    app.shutdown().await.unwrap();
    let mut text = String::new();
    target.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");
    sleep(Duration::from_millis(50)).await;
    target.write_all(b"answer").await.unwrap();
    drop(target);
    text.clear();
    app.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
    assert_eq!(relayed.await.unwrap(), Transferred { up: 8, down: 6, end: End::Finished });

    // The other way round.
    let (mut app, relayed) = tunnel.flow(address).await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"hello").await.unwrap();
    target.shutdown().await.unwrap();
    text.clear();
    app.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    app.write_all(b"late").await.unwrap();
    drop(app);
    text.clear();
    target.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "late");
    assert_eq!(relayed.await.unwrap(), Transferred { up: 4, down: 5, end: End::Finished });
    wait_until(|| tunnel.lane.stats().streams == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_both_ways_at_once_arrives_unchanged() {
    const LENGTH: usize = 64 << 20;
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (app, relayed) = tunnel.flow(address).await;
    let (target, _) = listener.accept().await.unwrap();
    let work = [(app, 1, 2), (target, 2, 1)].map(|(socket, sends, expects)| {
        tokio::spawn(async move {
            let (mut read, mut write) = socket.into_split();
            let sender = tokio::spawn(async move {
                write.write_all(&pattern(sends, LENGTH)).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut received = Vec::with_capacity(LENGTH);
            read.read_to_end(&mut received).await.unwrap();
            sender.await.unwrap();
            assert!(received == pattern(expects, LENGTH), "{} bytes differ", received.len());
        })
    });
    for side in work {
        timeout(Duration::from_secs(60), side).await.unwrap().unwrap();
    }
    let length = LENGTH as u64;
    assert_eq!(relayed.await.unwrap(), Transferred { up: length, down: length, end: End::Finished });
}

/// Bytes that a writer got rid of while the reader at the other end took `read` bytes and then stopped.
async fn swallowed(mut writer: TcpStream, mut reader: TcpStream, read: usize) -> u64 {
    // After a bulk transfer the kernel lets the reader's own buffer grow to `tcp_rmem`'s limit (32 MiB here), with or
    // without a tunnel; this test counts the rest.
    socket2::SockRef::from(&reader).set_recv_buffer_size(1 << 20).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let sender = tokio::spawn(async move {
        let chunk = vec![7; 64 << 10];
        loop {
            count.fetch_add(writer.write(&chunk).await.unwrap() as u64, SeqCst);
        }
    });
    let mut buffer = vec![0; 64 << 10];
    let mut left = read;
    while left > 0 {
        let want = left.min(buffer.len());
        left -= reader.read(&mut buffer[..want]).await.unwrap();
    }
    let mut before = 0;
    loop {
        sleep(Duration::from_millis(500)).await;
        let now = written.load(SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    sender.abort();
    before - read as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_stalls_the_writer() {
    const BOUND: u64 = 16 << 20;
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    for read in [0, 256 << 20] {
        let (app, _relayed) = tunnel.flow(address).await;
        let (target, _) = listener.accept().await.unwrap();
        let held = swallowed(app, target, read).await;
        println!("up, after {read} bytes: {held} bytes held");
        assert!(held < BOUND, "{held}");

        let (app, _relayed) = tunnel.flow(address).await;
        let (target, _) = listener.accept().await.unwrap();
        let held = swallowed(target, app, read).await;
        println!("down, after {read} bytes: {held} bytes held");
        assert!(held < BOUND, "{held}");
    }
}

/// Far more than a stopped debugger, a paused download and a few idle watchers.
const STALLED: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_do_not_stall_the_lane() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (mut held, sent) = (Vec::new(), Arc::new(AtomicU64::new(0)));
    for _ in 0..STALLED {
        let (app, relayed) = tunnel.flow(address).await;
        let (mut target, _) = listener.accept().await.unwrap();
        // So that the windows fill, rather than the kernel's buffers.
        socket2::SockRef::from(&app).set_recv_buffer_size(4 << 10).unwrap();
        socket2::SockRef::from(&target).set_send_buffer_size(4 << 10).unwrap();
        let sent = Arc::clone(&sent);
        let writer = tokio::spawn(async move {
            let chunk = vec![7; 64 << 10];
            while target.write_all(&chunk).await.is_ok() {
                sent.fetch_add(1, SeqCst);
            }
        });
        held.push((app, relayed, writer));
    }
    let mut before = u64::MAX;
    while before != sent.load(SeqCst) {
        before = sent.load(SeqCst);
        sleep(Duration::from_millis(250)).await;
    }
    let window = u64::from(Settings::default().stream_window);
    assert!(before * (64 << 10) > STALLED * window * 9 / 10, "the readers stalled too early: {before} chunks");
    let (mut app, _relayed) = tunnel.flow(address).await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(&pattern(3, 4 << 20)).await.unwrap();
    drop(target);
    let mut received = Vec::new();
    timeout(Duration::from_secs(10), app.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == pattern(3, 4 << 20));
    for (.., writer) in held {
        writer.abort();
    }
}

fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn read_error(socket: &mut TcpStream) -> std::io::ErrorKind {
    let mut buffer = [0; 16];
    let read = timeout(Duration::from_secs(5), socket.read(&mut buffer)).await.unwrap();
    read.expect_err("a reset, not the end of file").kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_stays_a_reset() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    for half_closed in [false, true] {
        let (mut app, relayed) = tunnel.flow(address).await;
        let (mut target, _) = listener.accept().await.unwrap();
        if half_closed {
            app.shutdown().await.unwrap();
            assert_eq!(target.read(&mut [0; 1]).await.unwrap(), 0);
        }
        reset(target);
        assert_eq!(read_error(&mut app).await, std::io::ErrorKind::ConnectionReset, "half closed: {half_closed}");
        assert!(matches!(relayed.await.unwrap().end, End::Stream(_)));

        let (mut app, relayed) = tunnel.flow(address).await;
        let (mut target, _) = listener.accept().await.unwrap();
        if half_closed {
            target.shutdown().await.unwrap();
            assert_eq!(app.read(&mut [0; 1]).await.unwrap(), 0);
        }
        reset(app);
        assert_eq!(read_error(&mut target).await, std::io::ErrorKind::ConnectionReset, "half closed: {half_closed}");
        assert!(matches!(relayed.await.unwrap().end, End::Socket(_)));
    }
    wait_until(|| tunnel.lane.stats().streams == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_seen_while_the_other_end_stalls() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (app, relayed) = tunnel.flow(address).await;
    let (_target, _) = listener.accept().await.unwrap();
    let chunk = vec![7; 1 << 20];
    let mut app = app;
    while timeout(Duration::from_millis(300), app.write_all(&chunk)).await.is_ok() {}
    reset(app);
    let end = timeout(Duration::from_secs(5), relayed).await.unwrap().unwrap().end;
    assert!(matches!(end, End::Socket(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    let mut streams = Vec::new();
    for _ in 0..1000 {
        streams.push(tunnel.lane.connect(&address.into(), "s").await.unwrap());
    }
    assert_eq!(tunnel.lane.stats().streams, 1000);
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.send(Bytes::from(pattern(number as u64, 5000))).await.unwrap();
    }
    for (number, mut stream) in streams.into_iter().enumerate() {
        stream.finish().unwrap();
        let mut received = Vec::new();
        while let Some(data) = stream.recv().await.unwrap() {
            received.extend_from_slice(&data);
        }
        assert!(received == pattern(number as u64, 5000));
    }
    assert_eq!(tunnel.lane.stats().streams, 0);
    wait_until(|| tunnel.dialler.ended.lock().unwrap().len() == 1000).await;
    assert!(tunnel.dialler.ended.lock().unwrap().iter().all(|ended| ended.end == End::Finished));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_come_back_at_once() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (mut app, _relayed) = tunnel.flow(address).await;
    let (mut target, _) = listener.accept().await.unwrap();
    app.set_nodelay(true).unwrap();
    target.set_nodelay(true).unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while target.read_exact(&mut buffer).await.is_ok() {
            target.write_all(&buffer).await.unwrap();
        }
    });
    let mut buffer = [0; 64];
    let start = Instant::now();
    for _ in 0..200 {
        app.write_all(&buffer).await.unwrap();
        app.read_exact(&mut buffer).await.unwrap();
    }
    let mean = start.elapsed() / 200;
    println!("round trip {mean:?}");
    // A delayed acknowledgement or Nagle's algorithm anywhere would make it 40 ms.
    assert!(mean < Duration::from_millis(20), "{mean:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_carrier_is_noticed() {
    let (near, _far) = tokio::io::duplex(1 << 20);
    let settings =
        Settings { heartbeat: Duration::from_millis(100), patience: Duration::from_millis(200), ..Settings::default() };
    let lane = Lane::open(Box::new(near), &settings).await.unwrap();
    let reason = timeout(Duration::from_secs(5), lane.closed()).await.unwrap();
    assert!(matches!(reason, LaneClosed::Silent(_)), "{reason:?}");
    assert!(lane.is_closed());
    let target: Target = "127.0.0.1:9".parse().unwrap();
    assert_eq!(lane.connect(&target, "s").await.unwrap_err(), DialFailure::Tunnel);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_carrier_resets_both_ends() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (mut app, relayed) = tunnel.flow(address).await;
    let (mut target, _) = listener.accept().await.unwrap();
    tunnel.lane.close();
    assert_eq!(read_error(&mut app).await, std::io::ErrorKind::ConnectionReset);
    assert_eq!(read_error(&mut target).await, std::io::ErrorKind::ConnectionReset);
    assert!(matches!(relayed.await.unwrap().end, End::Stream(_)));
    assert_eq!(tunnel.lane.closed().await, LaneClosed::Done);
    timeout(Duration::from_secs(5), tunnel.served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_lets_open_streams_end() {
    let tunnel = Tunnel::open().await;
    let (listener, address) = listen().await;
    let (mut app, _relayed) = tunnel.flow(address).await;
    let (target, _) = listener.accept().await.unwrap();
    tunnel.stop.cancel();
    sleep(Duration::from_millis(100)).await;
    app.write_all(b"still here").await.unwrap();
    app.shutdown().await.unwrap();
    let mut target = target;
    let mut text = String::new();
    target.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "still here");
    drop(target);
    timeout(Duration::from_secs(5), tunnel.served).await.unwrap().unwrap();
}

async fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long");
        sleep(Duration::from_millis(5)).await;
    }
}
