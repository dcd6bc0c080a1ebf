//! The user's rules for single names, and the server without sockets.

use std::time::{Duration, Instant};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use tpx_dns::{Limits, Transport};

use crate::{
    cluster::TTL,
    fixture::{World, checked, policy, query, query_with_payload, values},
    internet::answer,
};

#[tokio::test]
async fn mapped_names_have_the_records_of_others() {
    let world = World::start().await;
    let mut policy = policy();
    policy.mappings = [
        ("shop.example.com", "web-app.emojivoto"),
        ("votes", "voting"),
        ("mirror", "proper.example.org"),
        ("my.own.domain", "192.168.0.15"),
        ("six.own.domain", "fd00::15"),
        ("gone.example.com", "nobody.emojivoto"),
    ]
    .map(|(name, alias)| (name.parse().unwrap(), alias.parse().unwrap()))
    .into();
    world.policy.send(policy.into()).unwrap();
    let shop = world.ask("Shop.example.com", RecordType::A).await;
    assert_eq!(values(&shop), ["10.96.3.7"]);
    assert_eq!((shop.answers[0].name.to_string().as_str(), shop.answers[0].ttl), ("Shop.example.com.", TTL));
    assert_eq!(world.value("shop.example.com", RecordType::AAAA).await, ["fd00:96::307"]);
    assert_eq!(world.value("votes", RecordType::A).await, ["10.96.3.8"]);
    assert_eq!(world.code("gone.example.com", RecordType::A).await, ResponseCode::NXDomain);
    assert_eq!(world.value("my.own.domain", RecordType::A).await, ["192.168.0.15"]);
    assert_eq!(world.value("my.own.domain", RecordType::AAAA).await, Vec::<String>::new());
    assert_eq!(world.code("my.own.domain", RecordType::AAAA).await, ResponseCode::NoError);
    assert_eq!(world.value("six.own.domain", RecordType::AAAA).await, ["fd00::15"]);
    assert_eq!(world.internet.count(), 0);
    let mirror = world.ask("mirror", RecordType::A).await;
    assert_eq!(values(&mirror), ["93.184.216.34"]);
    assert_eq!((mirror.answers[0].name.to_string().as_str(), mirror.answers[0].ttl), ("mirror.", 300));
    assert!(world.internet.saw("proper") && !world.internet.saw("mirror"));
    assert_eq!(world.exempted(), world.internet.count());
}

#[tokio::test]
async fn excluded_names_go_to_the_original_server_and_suffixes_decide() {
    let world = World::start().await;
    let mut policy = policy();
    policy.excludes = ["web-app", "web-app.emojivoto"].map(|name| name.parse().unwrap()).into();
    policy.include_suffixes = ["private.example".parse().unwrap()].into();
    policy.exclude_suffixes = ["dev".parse().unwrap()].into();
    world.policy.send(policy.into()).unwrap();
    for name in ["web-app", "Web-App.emojivoto", "dev-only.dev"] {
        let message = query(name, RecordType::A);
        assert_eq!(world.udp(&message).await.unwrap(), answer(&message), "{name}");
    }
    assert!(world.cluster.asked().is_empty());
    let before = world.internet.count();
    assert_eq!(world.value("web-app.emojivoto.svc", RecordType::A).await, ["10.96.3.7"]);
    // Asked in the cluster as it is; that server knows no such zone.
    let _ = world.udp(&query("x.private.example", RecordType::A)).await.unwrap();
    assert!(world.cluster.asked().contains(&"x.private.example.".to_owned()), "{:?}", world.cluster.asked());
    assert_eq!(world.internet.count(), before);
}

#[tokio::test]
async fn a_look_up_ends_in_time() {
    let limits = Limits { lookup_timeout: Duration::from_millis(200), ..Limits::default() };
    let world = World::with(limits).await;
    world.cluster.set_silent(true);
    let start = Instant::now();
    assert_eq!(world.code("web-app.emojivoto", RecordType::A).await, ResponseCode::ServFail);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn the_same_answers_without_a_socket() {
    let world = World::with(Limits::default()).await;
    let asker = world.server.asker(None);
    for _ in 0..2 {
        for transport in [Transport::Udp, Transport::Tcp] {
            let message = query("web-app.emojivoto", RecordType::A);
            let reply = asker.ask(&message, transport).await.unwrap();
            assert_eq!(values(&checked(&message, &reply)), ["10.96.3.7"]);
        }
    }
    assert_eq!(world.cluster.asked().len(), 1);
    assert_eq!(world.server.counts().queries, 4);
    let many = query_with_payload("many.emojivoto", RecordType::A, 1232);
    let cut = asker.ask(&many, Transport::Udp).await.unwrap();
    assert!(cut.len() <= 1232 && checked(&many, &cut).metadata.truncation);
    let whole = asker.ask(&many, Transport::Tcp).await.unwrap();
    assert_eq!(checked(&many, &whole).answers.len(), 150);
    // Nobody else to ask.
    let code = async |name: &str| {
        let message = query(name, RecordType::A);
        checked(&message, &asker.ask(&message, Transport::Udp).await.unwrap()).metadata.response_code
    };
    assert_eq!(code("nobody").await, ResponseCode::NXDomain);
    assert_eq!(code("example.com").await, ResponseCode::Refused);
    assert_eq!(asker.ask(b"rubbish", Transport::Udp).await, None);
    assert_eq!(world.internet.count(), 0);
    // With a name server, to that one and byte for byte.
    let asker = world.server.asker(Some(world.internet.address));
    let message = query("example.com", RecordType::A);
    assert_eq!(asker.ask(&message, Transport::Udp).await.unwrap(), answer(&message));
    assert_eq!(asker.ask(&message, Transport::Tcp).await.unwrap(), [answer(&message), vec![0]].concat());
    let message = query("nobody", RecordType::A);
    assert_eq!(asker.ask(&message, Transport::Udp).await.unwrap(), answer(&message));
    assert_eq!(world.exempted(), 3);
}

#[tokio::test]
async fn a_new_policy_holds_at_once_for_what_was_answered_before() {
    let world = World::with(Limits::default()).await;
    for _ in 0..2 {
        assert_eq!(world.value("dev-only.dev", RecordType::A).await, ["10.96.3.9"]);
    }
    let mut policy = policy();
    policy.mapped_namespaces = Some(["emojivoto".to_owned()].into());
    world.policy.send(policy.into()).unwrap();
    let message = query("dev-only.dev", RecordType::A);
    assert_eq!(world.udp(&message).await.unwrap(), answer(&message));
    assert_eq!(world.cluster.asked().len(), 1);
}
