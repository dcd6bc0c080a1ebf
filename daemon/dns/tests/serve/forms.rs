//! Every form of a cluster name, over UDP and TCP, and what an answer must look like.

use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{RData, RecordType},
};
use tpx_dns::Limits;

use crate::{
    cluster::{NEGATIVE_TTL, PRIVATE_TYPE, TTL, name},
    fixture::{World, checked, is_soa, query, query_with_payload, values},
};

#[tokio::test]
async fn all_forms_reach_the_cluster_and_none_the_internet() {
    let world = World::start().await;
    let web = ["web-app", "web-app.emojivoto", "web-app.emojivoto.svc", "web-app.emojivoto.svc.cluster.local"];
    for form in web {
        assert_eq!(world.value(form, RecordType::A).await, ["10.96.3.7"], "{form}");
        assert_eq!(world.value(form, RecordType::AAAA).await, ["fd00:96::307"], "{form}");
    }
    let pods = ["10.244.0.10", "10.244.0.11"];
    for form in ["web", "web.emojivoto", "web.emojivoto.svc", "web.emojivoto.svc.cluster.local"] {
        assert_eq!(world.value(form, RecordType::A).await, pods, "{form}");
    }
    for suffix in ["", ".svc", ".svc.cluster.local"] {
        for (index, pod) in pods.iter().enumerate() {
            let form = format!("web-{index}.web.emojivoto{suffix}");
            assert_eq!(world.value(&form, RecordType::A).await, [*pod], "{form}");
        }
        let form = format!("_http._tcp.web-app.emojivoto{suffix}");
        let expected = ["0 100 80 web-app.emojivoto.svc.cluster.local."];
        assert_eq!(world.value(&form, RecordType::SRV).await, expected, "{form}");
    }
    for form in ["10-244-0-10.emojivoto.pod", "10-244-0-10.emojivoto.pod.cluster.local"] {
        assert_eq!(world.value(form, RecordType::A).await, ["10.244.0.10"], "{form}");
    }
    let target = ["web-app.emojivoto.svc.cluster.local."];
    assert_eq!(world.value("7.3.96.10.in-addr.arpa", RecordType::PTR).await, target);
    let v6 = "7.0.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(world.value(v6, RecordType::PTR).await, target);
    assert_eq!(world.internet.count(), 0);
    assert_eq!(world.exempted(), 0);
}

#[tokio::test]
async fn answers_carry_the_name_that_was_asked_and_real_lifetimes() {
    let world = World::start().await;
    for form in ["Web-App.EmojiVoto", "wEB-aPP", "WEB-app.emojivoto.svc.CLUSTER.local"] {
        let answer = world.ask(form, RecordType::A).await;
        assert_eq!(answer.answers.len(), 1);
        let mut asked = name(form);
        asked.set_fqdn(true);
        assert!(answer.answers[0].name.eq_case(&asked), "{}", answer.answers[0].name);
        assert_eq!(answer.answers[0].ttl, TTL);
        assert!(!answer.metadata.authoritative);
    }
}

#[tokio::test]
async fn aliases_are_followed_from_the_name_that_was_asked() {
    let world = World::start().await;
    let answer = world.ask("alias.emojivoto", RecordType::A).await;
    let chain: Vec<(String, String)> =
        answer.answers.iter().map(|record| (record.name.to_string(), record.data.to_string())).collect();
    let web = "web-app.emojivoto.svc.cluster.local.".to_owned();
    assert_eq!(chain, [("alias.emojivoto.".to_owned(), web.clone()), (web, "10.96.3.7".to_owned())]);
}

#[tokio::test]
async fn missing_names_and_missing_types_are_told_apart_and_never_leak() {
    let world = World::start().await;
    for form in ["nobody.emojivoto", "nobody.emojivoto.svc", "nobody.nowhere.svc.cluster.local", "x.cluster.local"] {
        let answer = world.ask(form, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{form}");
        assert!(answer.answers.is_empty());
        assert!(answer.authorities.iter().any(|record| is_soa(&record.data)), "{form}: no SOA");
    }
    let answer = world.ask("voting.emojivoto", RecordType::AAAA).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.answers.is_empty() && answer.authorities.iter().any(|record| is_soa(&record.data)));
    // A single label with another type in the cluster is the cluster's as well.
    assert_eq!(world.code("voting", RecordType::AAAA).await, ResponseCode::NoError);
    let unknown = world.ask("9.9.96.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(world.internet.count(), 0);
}

#[tokio::test]
async fn any_and_types_nobody_knows_pass_through() {
    let world = World::start().await;
    let answer = world.ask("web-app.emojivoto", RecordType::Unknown(PRIVATE_TYPE)).await;
    assert!(matches!(&answer.answers[0].data, RData::Unknown { rdata, .. } if rdata.anything == [1, 2]));
    // The cluster's server here answers ANY with one set of its choice (RFC 8482).
    let any = world.ask("web-app.emojivoto", RecordType::ANY).await;
    assert!(!any.answers.is_empty());
    assert_eq!(any.queries[0].query_type, RecordType::ANY);
}

#[tokio::test]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let world = World::start().await;
    let plain = query("many.emojivoto", RecordType::A);
    let bytes = world.udp(&plain).await.unwrap();
    assert!(bytes.len() <= 512, "{}", bytes.len());
    let cut = checked(&plain, &bytes);
    assert!(cut.metadata.truncation && cut.answers.len() > 20, "{}", cut.answers.len());
    let whole = checked(&plain, &world.tcp(&plain).await.unwrap());
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 150);

    let offered = query_with_payload("many.emojivoto", RecordType::A, 1232);
    let bytes = world.udp(&offered).await.unwrap();
    assert!((1100..=1232).contains(&bytes.len()), "{}", bytes.len());
    let cut = checked(&offered, &bytes);
    assert!(cut.metadata.truncation && cut.edns.is_some());
    let offered = query_with_payload("many.emojivoto", RecordType::A, 4096);
    let bytes = world.udp(&offered).await.unwrap();
    let whole = checked(&offered, &bytes);
    assert!(bytes.len() > 1232 && !whole.metadata.truncation, "{}", bytes.len());
    assert_eq!(whole.answers.len(), 150);
    // Less than 512 means 512 (RFC 6891, 6.2.3).
    let little = query_with_payload("many.emojivoto", RecordType::A, 512);
    assert!(world.udp(&little).await.unwrap().len() > 400);
}

#[tokio::test]
async fn unknown_versions_of_edns_are_refused() {
    let world = World::start().await;
    let mut message = Message::from_vec(&query("web-app.emojivoto", RecordType::A)).unwrap();
    let mut edns = Edns::new();
    edns.set_version(1).set_max_payload(1232);
    message.set_edns(edns);
    let query = message.to_vec().unwrap();
    let answer = checked(&query, &world.udp(&query).await.unwrap());
    // 16 has two names; without TSIG it is BADVERS.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert_eq!(answer.edns.unwrap().version(), 0);
}

#[tokio::test]
async fn mapped_namespaces_hide_the_rest() {
    let world = World::start().await;
    assert_eq!(world.value("dev-only.dev", RecordType::A).await, ["10.96.3.9"]);
    let mut policy = crate::fixture::policy();
    policy.mapped_namespaces = Some(["emojivoto".to_owned()].into());
    world.policy.send(policy.into()).unwrap();
    let before = world.cluster.asked().len();
    for form in ["dev-only.dev.svc", "dev-only.dev.svc.cluster.local"] {
        assert_eq!(world.code(form, RecordType::A).await, ResponseCode::NXDomain, "{form}");
    }
    assert_eq!(world.cluster.asked().len(), before, "hidden names were asked");
    assert_eq!(world.internet.count(), 0);
    assert_eq!(world.value("web-app.emojivoto", RecordType::A).await, ["10.96.3.7"]);
}

#[tokio::test]
async fn answers_are_kept_for_their_lifetime_and_grow_older() {
    let world = World::with(Limits::default()).await;
    let first = world.ask("web-app.emojivoto", RecordType::A).await;
    assert_eq!(first.answers[0].ttl, TTL);
    assert_eq!(world.cluster.asked().len(), 1, "the second transport is served from what is kept");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let later = query("web-app", RecordType::A);
    let later = checked(&later, &world.udp(&later).await.unwrap());
    assert_eq!(values(&later), ["10.96.3.7"]);
    assert!((TTL - 3..TTL).contains(&later.answers[0].ttl), "{}", later.answers[0].ttl);
    assert_eq!(later.answers[0].name, name("web-app."));
    assert_eq!(world.cluster.asked().len(), 1);
    // Another type is another question.
    world.ask("web-app.emojivoto", RecordType::AAAA).await;
    assert_eq!(world.cluster.asked().len(), 2);
    // That a name is missing is kept as well, for as long as the zone says.
    let missing = world.ask("nobody.emojivoto", RecordType::A).await;
    assert_eq!(missing.authorities[0].ttl.min(NEGATIVE_TTL), NEGATIVE_TTL);
    assert_eq!(world.cluster.asked().len(), 3);
}
