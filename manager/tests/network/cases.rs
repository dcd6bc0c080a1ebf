//! The cases, in the network that `main` has made.

use std::{future::Future, net::IpAddr, pin::Pin, time::Duration};

use tokio::time::timeout;
use tpx_api::proto;
use tpx_core::dial::DialFailure;
use tpx_link::{
    Datagrams, Echo, Echoes, Target,
    datagrams::Event,
    echoes::EchoEvent,
    lane::{Control, Lane},
};

use crate::harness::{Running, session};

pub(crate) type Case = fn() -> Pin<Box<dyn Future<Output = ()>>>;

pub(crate) const ALL: &[(&str, Case)] = &[
    ("echo_requests_are_answered", || Box::pin(echo_requests_are_answered())),
    ("a_series_ends_with_its_session", || Box::pin(a_series_ends_with_its_session())),
    ("each_request_hears_why_nobody_answers", || Box::pin(each_request_hears_why_nobody_answers())),
    ("a_target_without_a_route_is_refused", || Box::pin(a_target_without_a_route_is_refused())),
    ("datagrams_hear_why_they_did_not_arrive", || Box::pin(datagrams_hear_why_they_did_not_arrive())),
    ("a_narrow_path_is_told_and_then_used", || Box::pin(a_narrow_path_is_told_and_then_used())),
    ("a_policy_is_told_apart", || Box::pin(a_policy_is_told_apart())),
    ("without_the_sysctl_ping_is_prohibited", || Box::pin(without_the_sysctl_ping_is_prohibited())),
];

/// A manager, a lane to it and a session.
struct Laptop {
    _manager: Running,
    client: proto::manager_client::ManagerClient<Control>,
    lane: Lane,
    session: String,
}

impl Laptop {
    async fn new() -> Self {
        let manager = Running::start().await;
        let (mut client, lane) = (manager.client().await, manager.lane().await);
        let session = session(&mut client).await;
        Self { _manager: manager, client, lane, session }
    }

    async fn ping(&self, target: &str) -> Echoes {
        self.lane.echoes(target.parse().unwrap(), &self.session).await.unwrap()
    }

    async fn udp(&self, address: &str) -> Datagrams {
        let target = Target::from(std::net::SocketAddr::new(address.parse::<IpAddr>().unwrap(), 7));
        self.lane.datagrams(&target, &self.session).await.unwrap()
    }
}

fn echo(sequence: u16, length: usize) -> Echo {
    Echo { sequence, payload: (0..length).map(|at| at as u8).collect() }
}

async fn answer(echoes: &mut Echoes) -> Option<EchoEvent> {
    timeout(Duration::from_secs(10), echoes.recv()).await.expect("no answer")
}

async fn event(datagrams: &mut Datagrams) -> Option<Event> {
    timeout(Duration::from_secs(10), datagrams.recv()).await.expect("no answer")
}

async fn echo_requests_are_answered() {
    let laptop = Laptop::new().await;
    for target in ["127.0.0.1", "::1", "10.9.0.2", "fd09:0::2", "10.9.1.2", "fd09:1::2"] {
        let mut echoes = laptop.ping(target).await;
        let mut other = laptop.ping(target).await;
        for (sequence, length) in [(0, 0), (1, 56), (2, 1000), (u16::MAX, 56)] {
            assert!(echoes.try_send(echo(sequence, length)));
            assert_eq!(answer(&mut echoes).await, Some(EchoEvent::Reply(echo(sequence, length))), "{target}");
        }
        // Several at once, and none of them goes to another series.
        for sequence in 10..20 {
            assert!(echoes.try_send(echo(sequence, 8)));
        }
        assert!(other.try_send(echo(77, 8)));
        for sequence in 10..20 {
            assert_eq!(answer(&mut echoes).await, Some(EchoEvent::Reply(echo(sequence, 8))), "{target}");
        }
        assert_eq!(answer(&mut other).await, Some(EchoEvent::Reply(echo(77, 8))), "{target}");
    }
    // In fragments. Not on loopback, which does not cut: there the kernel sometimes gets the checksum of a message that
    // is longer than 16 KiB wrong (its pieces may start at odd offsets, `ping_getfrag` adds them as if they were even).
    for target in ["10.9.0.2", "fd09:0::2"] {
        let mut echoes = laptop.ping(target).await;
        assert!(echoes.try_send(echo(1, 60_000)));
        assert_eq!(answer(&mut echoes).await, Some(EchoEvent::Reply(echo(1, 60_000))), "{target}");
    }
}

async fn a_series_ends_with_its_session() {
    let mut laptop = Laptop::new().await;
    let mut echoes = laptop.ping("127.0.0.1").await;
    assert!(echoes.try_send(echo(1, 8)));
    assert_eq!(answer(&mut echoes).await, Some(EchoEvent::Reply(echo(1, 8))));
    laptop.client.depart(proto::DepartRequest { session_id: laptop.session.clone() }).await.unwrap();
    assert_eq!(answer(&mut echoes).await, None);
}

async fn each_request_hears_why_nobody_answers() {
    let laptop = Laptop::new().await;
    for (target, why) in [
        // Nobody on our own link, nobody on the far one.
        ("10.9.0.99", DialFailure::HostUnreachable),
        ("fd09:0::99", DialFailure::HostUnreachable),
        ("10.9.1.99", DialFailure::HostUnreachable),
        ("fd09:1::99", DialFailure::HostUnreachable),
    ] {
        let mut echoes = laptop.ping(target).await;
        for sequence in [3, 4] {
            assert!(echoes.try_send(echo(sequence, 56)));
            let expected = EchoEvent::Unreachable { sequence: Some(sequence), why };
            assert_eq!(answer(&mut echoes).await, Some(expected), "{target}");
        }
    }
}

async fn a_target_without_a_route_is_refused() {
    let laptop = Laptop::new().await;
    for (target, why) in [
        ("192.0.2.1", DialFailure::NetworkUnreachable),
        ("2001:db8::1", DialFailure::NetworkUnreachable),
        ("198.51.100.1", DialFailure::Prohibited),
    ] {
        let mut echoes = laptop.ping(target).await;
        let expected = EchoEvent::Unreachable { sequence: None, why };
        assert_eq!(answer(&mut echoes).await, Some(expected), "{target}");
        assert_eq!(answer(&mut echoes).await, None);
        let mut datagrams = laptop.udp(target).await;
        assert_eq!(event(&mut datagrams).await, Some(Event::Unreachable(why)), "{target}");
        assert_eq!(event(&mut datagrams).await, None);
    }
}

async fn a_policy_is_told_apart() {
    let laptop = Laptop::new().await;
    let mut echoes = laptop.ping("10.9.1.200").await;
    // As `told` does.
    let mut heard = None;
    for _ in 0..10 {
        assert!(echoes.try_send(echo(5, 56)));
        heard = timeout(Duration::from_millis(1500), echoes.recv()).await.ok().flatten();
        if heard.is_some() {
            break;
        }
    }
    assert_eq!(heard, Some(EchoEvent::Unreachable { sequence: Some(5), why: DialFailure::Prohibited }));
    let mut datagrams = laptop.udp("10.9.1.200").await;
    assert_eq!(told(&mut datagrams, 8).await, Some(Event::Unreachable(DialFailure::Prohibited)));
}

async fn datagrams_hear_why_they_did_not_arrive() {
    let laptop = Laptop::new().await;
    for (target, why) in [
        ("10.9.0.2", DialFailure::Refused),
        ("fd09:0::2", DialFailure::Refused),
        ("10.9.1.2", DialFailure::Refused),
        ("10.9.0.99", DialFailure::HostUnreachable),
        ("fd09:0::99", DialFailure::HostUnreachable),
        ("10.9.1.99", DialFailure::HostUnreachable),
        ("fd09:1::99", DialFailure::HostUnreachable),
    ] {
        let mut datagrams = laptop.udp(target).await;
        assert_eq!(told(&mut datagrams, 8).await, Some(Event::Unreachable(why)), "{target}");
    }
}

/// Sends until something comes back: a router reports one error each second, after a burst of six (`icmp_ratelimit`).
async fn told(datagrams: &mut Datagrams, length: usize) -> Option<Event> {
    for _ in 0..10 {
        assert!(datagrams.try_send(vec![0; length].into()));
        if let Ok(event) = timeout(Duration::from_millis(1500), datagrams.recv()).await {
            return event;
        }
    }
    panic!("no answer");
}

async fn a_narrow_path_is_told_and_then_used() {
    let laptop = Laptop::new().await;
    for target in ["10.9.1.2", "fd09:1::2"] {
        let mut datagrams = laptop.udp(target).await;
        assert_eq!(told(&mut datagrams, 1400).await, Some(Event::TooBig { mtu: 1280 }), "{target}");
        // The kernel knows now, and cuts what is longer: it arrives, and is refused there.
        assert_eq!(told(&mut datagrams, 1400).await, Some(Event::Unreachable(DialFailure::Refused)), "{target}");
    }
}

async fn without_the_sysctl_ping_is_prohibited() {
    // In a fresh namespace nobody may ping.
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let laptop = Laptop::new().await;
            answer(&mut laptop.ping("127.0.0.1").await).await
        })
    });
    let refused = thread.join().unwrap();
    assert_eq!(refused, Some(EchoEvent::Unreachable { sequence: None, why: DialFailure::Prohibited }));
}
