//! Cluster addresses behind virtual ones, in every record that carries addresses, and back.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{
            A, AAAA, HTTPS, NS, SVCB,
            svcb::{IpHint, SvcParamKey, SvcParamValue},
        },
    },
};
use tpx_core::{
    dns::reverse_name,
    vnat::{Exhausted, Vnat},
};
use tpx_dns::{Limits, Translate};

use crate::{
    cluster::{TTL, name},
    fixture::{World, checked, query, values},
};

/// Hides some subnets, which can change.
struct Behind {
    vnat: Mutex<Vnat>,
    hidden: Mutex<Vec<&'static str>>,
}

impl Behind {
    fn new(range: &str, hidden: &[&'static str]) -> Arc<Self> {
        let vnat = Vnat::new("test", range.parse().unwrap(), "fd74:7078:6e65:7401::/64".parse().unwrap());
        Arc::new(Self { vnat: Mutex::new(vnat), hidden: Mutex::new(hidden.to_vec()) })
    }

    fn hide(&self, hidden: &[&'static str]) {
        *self.hidden.lock().unwrap() = hidden.to_vec();
    }

    fn given(&self, real: &str) -> String {
        self.vnat.lock().unwrap().virtual_for(real.parse().unwrap()).expect("it was given out").to_string()
    }
}

impl Translate for Behind {
    fn virtual_for(&self, real: IpAddr) -> Result<IpAddr, Exhausted> {
        let hidden = self.hidden.lock().unwrap().iter().any(|prefix| real.to_string().starts_with(prefix));
        if hidden { Ok(self.vnat.lock().unwrap().allocate(real)?.address) } else { Ok(real) }
    }

    fn real_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.vnat.lock().unwrap().real_for(address)
    }
}

async fn world(behind: &Arc<Behind>) -> World {
    World::translated(Limits::default(), behind.clone()).await
}

#[tokio::test]
async fn addresses_in_every_section_and_record() {
    let behind = Behind::new("246.246.0.0/16", &["10.96.", "fd00:96:"]);
    let world = world(&behind).await;
    let asked = name("web-app.emojivoto.svc.cluster.local.");
    let mut message = Message::response(1, OpCode::Query);
    message.add_query(Query::query(asked.clone(), RecordType::HTTPS));
    let hints = || {
        SVCB::new(
            1,
            name("."),
            vec![
                (SvcParamKey::Port, SvcParamValue::Port(8443)),
                (
                    SvcParamKey::Ipv4Hint,
                    SvcParamValue::Ipv4Hint(IpHint(vec![A::new(10, 96, 3, 7), A::new(10, 244, 0, 10)])),
                ),
                (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![AAAA("fd00:96::307".parse().unwrap())]))),
            ],
        )
    };
    let record = |owner: &str, data| Record::from_rdata(name(owner), TTL, data);
    let own = "web-app.emojivoto.svc.cluster.local.";
    message.answers = vec![
        record(own, RData::HTTPS(HTTPS(hints()))),
        record(own, RData::SVCB(hints())),
        record(own, RData::A(A::new(10, 96, 3, 7))),
        record(own, RData::AAAA(AAAA("fd00:96::307".parse().unwrap()))),
    ];
    message.authorities = vec![
        record("cluster.local.", RData::NS(NS(name("ns.cluster.local.")))),
        record("ns.cluster.local.", RData::A(A::new(10, 96, 0, 10))),
    ];
    message.additionals = vec![
        record("ns.cluster.local.", RData::A(A::new(10, 96, 0, 10))),
        record("pod.cluster.local.", RData::A(A::new(10, 244, 0, 10))),
    ];
    world.cluster.set_broken(Some(message.to_vec().unwrap()));
    let answer = world.ask("web-app.emojivoto", RecordType::HTTPS).await;
    let (four, six, ns) = (behind.given("10.96.3.7"), behind.given("fd00:96::307"), behind.given("10.96.0.10"));
    assert!(four.starts_with("246.246.") && six.starts_with("fd74:7078:6e65:7401:"));
    let hints = format!("1 . port=8443 ipv4hint={four},10.244.0.10 ipv6hint={six}");
    let said = |records: &[Record]| {
        let one = |r: &Record| r.data.to_string().replace("\"", "").replace(", ", ",").trim_end_matches(',').to_owned();
        records.iter().map(one).collect::<Vec<_>>()
    };
    let answers = said(&answer.answers);
    assert_eq!(answers[2..], [four.clone(), six.clone()]);
    for line in &answers[..2] {
        assert!(line.contains(&four) && line.contains(&six) && line.contains("10.244.0.10"), "{line} is not {hints}");
        assert!(!line.contains("10.96.") && !line.contains("fd00:96"), "{line}");
    }
    assert_eq!(said(&answer.authorities), ["ns.cluster.local.".to_owned(), ns.clone()]);
    assert_eq!(said(&answer.additionals), [ns, "10.244.0.10".to_owned()]);
    assert!(answer.all_sections().all(|record| record.ttl == TTL));
}

#[tokio::test]
async fn names_lead_to_virtual_addresses_and_these_to_names() {
    let behind = Behind::new("246.246.0.0/16", &["10.96.", "fd00:96:"]);
    let world = world(&behind).await;
    let mut policy = crate::fixture::policy();
    policy.virtual_subnets = vec!["246.246.0.0/16".parse().unwrap(), "fd74:7078:6e65:7401::/64".parse().unwrap()];
    world.policy.send(policy.into()).unwrap();
    for (real, record_type) in [("10.96.3.7", RecordType::A), ("fd00:96::307", RecordType::AAAA)] {
        let shown = world.value("web-app.emojivoto", record_type).await;
        assert_eq!(shown, [behind.given(real)]);
        let reverse = reverse_name(shown[0].parse().unwrap()).to_string();
        let answer = world.ask(&reverse, RecordType::PTR).await;
        assert_eq!(values(&answer), ["web-app.emojivoto.svc.cluster.local."]);
        assert_eq!(answer.answers[0].name.to_string(), format!("{reverse}."));
        // Once more, from what is kept.
        assert_eq!(world.value(&reverse, RecordType::PTR).await, ["web-app.emojivoto.svc.cluster.local."]);
    }
    let asked = world.cluster.asked().len();
    let nobody = reverse_name("246.246.200.1".parse().unwrap()).to_string();
    assert_eq!(world.code(&nobody, RecordType::PTR).await, ResponseCode::NXDomain);
    assert_eq!((world.cluster.asked().len(), world.internet.count()), (asked, 0));
    // Pods stay what they are, and their reverse names too.
    assert_eq!(world.value("web-0.web.emojivoto", RecordType::A).await, ["10.244.0.10"]);
}

#[tokio::test]
async fn what_is_kept_stays_right_when_a_subnet_moves() {
    let behind = Behind::new("246.246.0.0/16", &[]);
    let world = world(&behind).await;
    let message = query("web-app.emojivoto", RecordType::A);
    let ask = async || values(&checked(&message, &world.udp(&message).await.unwrap()));
    for _ in 0..2 {
        assert_eq!(ask().await, ["10.96.3.7"]);
    }
    behind.hide(&["10.96."]);
    let shown = ask().await;
    assert_eq!(shown, [behind.given("10.96.3.7")]);
    assert_eq!(ask().await, shown);
    behind.hide(&[]);
    assert_eq!(ask().await, ["10.96.3.7"]);
    behind.hide(&["10.96."]);
    assert_eq!(ask().await, shown);
    assert_eq!(world.cluster.asked().len(), 1, "all but the first came from what is kept");
}

#[tokio::test]
async fn lifetimes_count_down_in_what_was_answered_before() {
    let behind = Behind::new("246.246.0.0/16", &["10.96."]);
    let world = world(&behind).await;
    let message = query("web-app.emojivoto", RecordType::A);
    let ttl = async || checked(&message, &world.udp(&message).await.unwrap()).answers[0].ttl;
    assert_eq!((ttl().await, ttl().await), (TTL, TTL));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let later = ttl().await;
    assert!((TTL - 3..TTL).contains(&later), "{later}");
    // Another identifier is another query.
    let mut other = message.clone();
    other[0] ^= 0xff;
    assert_eq!(values(&checked(&other, &world.udp(&other).await.unwrap())), [behind.given("10.96.3.7")]);
    assert_eq!(world.cluster.asked().len(), 1);
}

#[tokio::test]
async fn without_room_the_answer_is_a_failure() {
    let behind = Behind::new("100.10.20.0/30", &["10.96.", "10.244."]);
    let world = world(&behind).await;
    assert_eq!(world.value("web-app.emojivoto", RecordType::A).await.len(), 1);
    assert_eq!(world.value("voting.emojivoto", RecordType::A).await.len(), 1);
    assert_eq!(world.code("web.emojivoto", RecordType::A).await, ResponseCode::ServFail);
    assert_eq!(world.server.counts().failed, 2);
    // What has an address keeps it, and what needs none is answered.
    assert_eq!(world.value("web-app.emojivoto", RecordType::A).await, [behind.given("10.96.3.7")]);
    assert_eq!(world.value("web-app.emojivoto", RecordType::AAAA).await, ["fd00:96::307"]);
    // When there is room again, the answer that was kept is good.
    behind.hide(&["10.96."]);
    assert_eq!(world.value("web.emojivoto", RecordType::A).await, ["10.244.0.10", "10.244.0.11"]);
}
