//! What is not the cluster's reaches the original server and comes back byte for byte.

use std::{collections::BTreeSet, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tpx_dns::Limits;

use crate::{
    fixture::{World, checked, query, query_with_payload, receive, send},
    internet::answer,
};

#[tokio::test]
async fn both_ways_byte_for_byte() {
    let world = World::start().await;
    let mut strange = query_with_payload("Example.COM", RecordType::Unknown(4242), 1400);
    // An unknown EDNS option that is cut short: no library parses it, and it is not ours to judge.
    strange.extend_from_slice(b"\x00\x00\x29 and more");
    let update = {
        let mut update = query("corp.example", RecordType::SOA);
        update[2] = 0x28;
        update
    };
    for message in [query("eXample.com", RecordType::A), strange, update, query(".", RecordType::NS)] {
        let over_udp = world.udp(&message).await.unwrap();
        assert_eq!(world.internet.last(), message.to_ascii_lowercase());
        assert_eq!(over_udp, answer(&message));
        let over_tcp = world.tcp(&message).await.unwrap();
        assert_eq!(world.internet.last(), message.to_ascii_lowercase());
        assert_eq!(over_tcp, [answer(&message), vec![0]].concat());
    }
    assert!(world.cluster.asked().is_empty());
    assert_eq!(world.exempted(), 8);
    assert_eq!(world.server.counts().forwarded, 8);
}

#[tokio::test]
async fn a_single_label_goes_on_when_the_cluster_does_not_have_it() {
    let world = World::start().await;
    let message = query("printer", RecordType::A);
    assert_eq!(world.udp(&message).await.unwrap(), answer(&message));
    assert_eq!(world.cluster.asked(), ["printer.emojivoto.svc.cluster.local."]);
    assert!(world.internet.saw("printer") && !world.internet.saw("emojivoto"));
}

#[tokio::test]
async fn a_single_label_is_not_called_missing_while_the_cluster_is_away() {
    let world = World::start().await;
    world.cluster.set_unavailable(true);
    let found = query("printer", RecordType::A);
    assert_eq!(world.udp(&found).await.unwrap(), answer(&found));
    let missing = query("missing", RecordType::A);
    let over_udp = checked(&missing, &world.udp(&missing).await.unwrap());
    assert_eq!(over_udp.metadata.response_code, ResponseCode::ServFail);
    let over_tcp = checked(&missing, &world.tcp(&missing).await.unwrap());
    assert_eq!(over_tcp.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn cut_answers_are_handed_on_and_whole_over_tcp() {
    let world = World::start().await;
    let message = query("large.example", RecordType::TXT);
    assert!(world.udp(&message).await.unwrap()[2] & 0x02 != 0);
    assert!(world.tcp(&message).await.unwrap()[2] & 0x02 == 0);
}

#[tokio::test]
async fn answers_with_another_id_are_not_taken() {
    let world = World::start().await;
    let message = query("spoofed.example", RecordType::A);
    assert_eq!(world.udp(&message).await.unwrap(), answer(&message));
}

#[tokio::test]
async fn every_datagram_leaves_from_a_port_of_its_own() {
    let world = World::start().await;
    for _ in 0..32 {
        world.udp(&query("example.com", RecordType::A)).await.unwrap();
    }
    let ports: BTreeSet<u16> = world.internet.sources().iter().map(|source| source.port()).collect();
    assert!(ports.len() > 24, "{ports:?}");
}

#[tokio::test]
async fn a_silent_server_stays_silent_and_a_dead_one_fails_at_once() {
    let world = World::with(Limits { forward_timeout: Duration::from_millis(300), ..Limits::default() }).await;
    let message = query("silent.example", RecordType::A);
    assert_eq!(world.udp_within(&message, Duration::from_millis(900)).await, None);
    assert_eq!(world.server.counts().failed, 1);

    let mut world = World::start().await;
    let address = world.internet.address;
    world.internet = crate::internet::Internet::start().await;
    assert_ne!(address, world.internet.address);
    // Its sockets close when its tasks end.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let message = query("example.com", RecordType::A);
    let over_udp = checked(&message, &world.udp_within(&message, Duration::from_secs(2)).await.expect("no SERVFAIL"));
    assert_eq!(over_udp.metadata.response_code, ResponseCode::ServFail);
    let over_tcp = checked(&message, &world.tcp(&message).await.unwrap());
    assert_eq!(over_tcp.metadata.response_code, ResponseCode::ServFail);
    let cluster = query("web-app.emojivoto", RecordType::A);
    assert_eq!(checked(&cluster, &world.udp(&cluster).await.unwrap()).answers.len(), 1);
}

#[tokio::test]
async fn one_connection_carries_both_kinds_and_many_at_once() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let mut waiting = std::collections::BTreeMap::new();
    for index in 0u16..200 {
        let name = if index % 2 == 0 { "web-app.emojivoto" } else { "example.com" };
        let mut message = query(name, RecordType::A);
        message[..2].copy_from_slice(&index.to_be_bytes());
        send(&mut stream, &message).await.unwrap();
        waiting.insert(index, message);
    }
    while !waiting.is_empty() {
        let reply = receive(&mut stream).await.unwrap();
        let message = waiting.remove(&u16::from_be_bytes([reply[0], reply[1]])).expect("an answer comes once");
        if message.windows(9).any(|window| window == b"emojivoto") {
            assert_eq!(checked(&message, &reply).answers.len(), 1);
        } else {
            assert_eq!(reply, [answer(&message), vec![0]].concat());
        }
    }
    assert_eq!(world.internet.connections(), 1);
}

#[tokio::test]
async fn zone_transfers_pass_in_several_messages() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let message = query("transfer.example", RecordType::AXFR);
    send(&mut stream, &message).await.unwrap();
    for index in 0..3 {
        assert_eq!(receive(&mut stream).await.unwrap(), [answer(&message), vec![index]].concat());
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_is_called_again() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    // It answers the first and leaves the second unread.
    let (mut hangup, mut next) = (query("hangup.example", RecordType::A), query("example.com", RecordType::A));
    hangup[..2].copy_from_slice(&[0, 1]);
    next[..2].copy_from_slice(&[0, 2]);
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes()[..], message].concat();
    stream.write_all(&[framed(&hangup), framed(&next)].concat()).await.unwrap();
    let mut replies = [receive(&mut stream).await.unwrap(), receive(&mut stream).await.unwrap()];
    let mut expected = [&hangup, &next].map(|message| [answer(message), vec![0]].concat());
    replies.sort();
    expected.sort();
    assert_eq!(replies, expected);
    assert_eq!(world.internet.connections(), 2);
}

#[tokio::test]
async fn a_client_that_has_said_all_still_gets_its_answers() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    send(&mut stream, &query("example.com", RecordType::A)).await.unwrap();
    let cluster = query("web-app.emojivoto", RecordType::A);
    send(&mut stream, &cluster).await.unwrap();
    stream.shutdown().await.unwrap();
    for _ in 0..2 {
        Message::from_vec(&receive(&mut stream).await.unwrap()[..]).ok();
    }
    assert!(receive(&mut stream).await.is_err(), "the connection ends after the last answer");
}
