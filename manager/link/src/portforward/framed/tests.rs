//! Both protocols, spoken by a cluster that cuts its bytes as it likes.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::portforward::{
    frame,
    spdy::Spdy,
    spdy_frame::{self, Kind},
    websocket::WebSocket,
};

/// What the cluster sends, one frame each.
#[derive(Debug, Clone)]
enum Sent {
    Data(Vec<u8>),
    Ping,
}

fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let data = proptest::collection::vec(any::<u8>(), 0..3000);
    let long = (5000_usize..40_000).prop_map(|length| (0..length).map(|at| (at * 7) as u8).collect());
    let frame = prop_oneof![
        3 => data.prop_map(Sent::Data),
        1 => long.prop_map(Sent::Data),
        1 => Just(Sent::Ping),
    ];
    proptest::collection::vec(frame, 0..12)
}

fn spdy_bytes(sent: &[Sent]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for frame in sent {
        match frame {
            Sent::Data(data) => Spdy::default().data(&mut out, &[data], data.len()),
            Sent::Ping => spdy_frame::pong(&mut out, &[0, 0, 0, 2]),
        }
    }
    out.to_vec()
}

/// A server's WebSocket frame, without a mask.
fn websocket_frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    match payload.len() {
        length @ 0..126 => out.push(length as u8),
        length @ 126..0x1_0000 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

fn websocket_bytes(sent: &[Sent]) -> Vec<u8> {
    let mut out = Vec::new();
    // Each channel starts with the port.
    for channel in [0, 1] {
        websocket_frame(&mut out, 0x82, &[channel, 0x91, 0x1f]);
    }
    for frame in sent {
        match frame {
            Sent::Data(data) => {
                // Every message in two frames.
                let (first, second) = data.split_at(data.len() / 3);
                websocket_frame(&mut out, 0x02, &[&[0], first].concat());
                websocket_frame(&mut out, 0x80, second);
            }
            Sent::Ping => websocket_frame(&mut out, 0x89, b"ping"),
        }
    }
    out
}

/// What a reader gets of `bytes`, which come through a connection that holds `held` at once, read `step` at a time.
async fn read_all(
    framing: impl Framing + Unpin,
    bytes: Vec<u8>,
    held: usize,
    step: usize,
) -> (Vec<u8>, io::Result<()>) {
    let (near, mut far) = duplex(held);
    let cluster = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(&mut far);
        let drain = async { drop(tokio::io::copy(&mut read, &mut tokio::io::sink()).await) };
        let send = async {
            // A reader that saw the end does not wait for the rest.
            let _ = write.write_all(&bytes).await;
            let _ = write.shutdown().await;
        };
        tokio::join!(send, drain);
    });
    let mut framed = Framed::new(near, framing, BytesMut::new());
    let (mut received, mut buffer) = (Vec::new(), vec![0; step]);
    let result = loop {
        match framed.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(length) => received.extend_from_slice(&buffer[..length]),
            Err(error) => break Err(error),
        }
    };
    drop(framed);
    cluster.await.unwrap();
    (received, result)
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_reader_gets_the_data(sent in sent(), held in 7_usize..70_000, step in 1_usize..20_000) {
        let expected: Vec<u8> = sent.iter().flat_map(|frame| match frame {
            Sent::Data(data) => data.clone(),
            Sent::Ping => Vec::new(),
        }).collect();
        let mut end = BytesMut::new();
        Spdy::default().finish(&mut end);
        let bytes = [spdy_bytes(&sent), end.to_vec()].concat();
        let (received, result) = block_on(read_all(Spdy::default(), bytes, held, step));
        prop_assert!(result.is_ok(), "{:?}", result);
        prop_assert!(received == expected);
        let (received, result) = block_on(read_all(WebSocket::new(), websocket_bytes(&sent), held, step));
        prop_assert!(result.is_ok(), "{:?}", result);
        prop_assert!(received == expected);
    }

    #[test]
    fn foreign_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), held in 1_usize..50) {
        let _ = block_on(read_all(Spdy::default(), bytes.clone(), held, 64));
        let _ = block_on(read_all(WebSocket::new(), bytes, held, 64));
    }

    /// However it is written, the cluster reads the same bytes, and after them the end.
    #[test]
    fn what_is_written_arrives(writes in proptest::collection::vec(proptest::collection::vec(0_usize..12_000, 1..24), 1..4), held in 100_usize..70_000) {
        let writes: Vec<Vec<Vec<u8>>> = writes.iter().map(|write| {
            write.iter().map(|length| (0..*length).map(|at| (at * 3 + length) as u8).collect()).collect()
        }).collect();
        let expected = writes.concat().concat();
        let (near, far) = duplex(held);
        let write = async |framed: &mut (dyn AsyncWrite + Unpin + Send)| {
            for slices in &writes {
                let mut rest: Vec<io::IoSlice<'_>> = slices.iter().map(|slice| io::IoSlice::new(slice)).collect();
                let mut rest = &mut rest[..];
                while rest.iter().any(|slice| !slice.is_empty()) {
                    let written = framed.write_vectored(rest).await.unwrap();
                    io::IoSlice::advance_slices(&mut rest, written);
                }
            }
            framed.shutdown().await.unwrap();
            assert_eq!(framed.write(b"late").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        };
        let mut framed = Framed::new(near, Spdy::default(), BytesMut::new());
        let (_, received) = block_on(async { tokio::join!(write(&mut framed), spdy_data(far)) });
        prop_assert!(received == expected);
        let (near, far) = duplex(held);
        let mut framed = Framed::new(near, WebSocket::new(), BytesMut::new());
        let (_, received) = block_on(async { tokio::join!(write(&mut framed), websocket_data(far)) });
        prop_assert!(received == expected);
    }
}

async fn all(mut far: DuplexStream) -> BytesMut {
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    BytesMut::from(&bytes[..])
}

async fn spdy_data(far: DuplexStream) -> Vec<u8> {
    let (mut bytes, mut data, mut fin) = (all(far).await, Vec::new(), false);
    while let Some(header) = spdy_frame::Header::parse(&mut bytes).unwrap() {
        assert!(!fin && header.kind == Kind::Data(spdy_frame::DATA_STREAM));
        assert!(header.length <= MAX_DATA);
        data.extend_from_slice(&bytes.split_to(header.length));
        fin = header.fin;
    }
    assert!(fin && bytes.is_empty());
    data
}

async fn websocket_data(far: DuplexStream) -> Vec<u8> {
    let (mut bytes, mut data, mut closed) = (all(far).await, Vec::new(), false);
    while !bytes.is_empty() {
        // A client's frame is a server's frame plus the mask bit and the key.
        assert_eq!(bytes[1] & 0x80, 0x80);
        bytes[1] &= 0x7f;
        let header = frame::Header::parse(&mut bytes).unwrap().unwrap();
        let key = bytes.split_to(4);
        let payload = bytes.split_to(header.length as usize);
        let plain: Vec<u8> = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        assert!(!closed);
        match header.opcode {
            frame::Opcode::Binary => {
                assert_eq!(plain[0], 0, "the channel");
                assert!(plain.len() <= 1 + MAX_DATA);
                data.extend_from_slice(&plain[1..]);
            }
            frame::Opcode::Close => closed = plain == frame::NORMAL_CLOSE,
            other => panic!("{other:?}"),
        }
    }
    assert!(closed);
    data
}

/// The error of a reader that gets `bytes`.
fn error(framing: impl Framing + Unpin, bytes: &[u8]) -> io::Error {
    block_on(read_all(framing, bytes.to_vec(), 1 << 10, 64)).1.unwrap_err()
}

#[test]
fn the_kubelets_words_are_the_error() {
    let words = b"an error occurred forwarding 8081 -> 8081: no such pod\n";
    let mut bytes = vec![0, 0, 0, 1, 1, 0, 0, words.len() as u8];
    bytes.extend_from_slice(words);
    let mut message = websocket_bytes(&[]);
    websocket_frame(&mut message, 0x82, &[&[1], &words[..]].concat());
    for error in [error(Spdy::default(), &bytes), error(WebSocket::new(), &message)] {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(error.to_string(), "an error occurred forwarding 8081 -> 8081: no such pod");
    }
}

#[test]
fn an_end_that_nobody_announced_is_an_error() {
    let data = [Sent::Data(vec![7; 100])];
    let bytes = spdy_bytes(&data);
    assert_eq!(error(Spdy::default(), &bytes).kind(), io::ErrorKind::UnexpectedEof);
    let bytes = websocket_bytes(&data);
    assert_eq!(error(WebSocket::new(), &bytes[..bytes.len() - 1]).kind(), io::ErrorKind::UnexpectedEof);
    // Reset.
    assert_eq!(
        error(Spdy::default(), b"\x80\x03\x00\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05").kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[test]
fn pings_are_answered() {
    block_on(async {
        for (ping, pong) in [
            (&b"\x80\x03\x00\x06\0\0\0\x04\0\0\0\x02"[..], Some(&b"\x80\x03\x00\x06\0\0\0\x04\0\0\0\x02"[..])),
            (&b"\x89\x04ping"[..], None),
        ] {
            let (near, mut far) = duplex(1 << 10);
            let mut framed: Box<dyn AsyncRead + Unpin + Send> = match pong {
                Some(_) => Box::new(Framed::new(near, Spdy::default(), BytesMut::new())),
                None => Box::new(Framed::new(near, WebSocket::new(), BytesMut::new())),
            };
            far.write_all(ping).await.unwrap();
            let mut buffer = [0; 64];
            let mut answer = [0; 64];
            let length = tokio::select! {
                _ = framed.read(&mut buffer) => panic!("a ping is no data"),
                length = far.read(&mut answer) => length.unwrap(),
            };
            match pong {
                Some(pong) => assert_eq!(&answer[..length], pong),
                None => {
                    assert_eq!(answer[..2], [0x8a, 0x84]);
                    let plain: Vec<u8> =
                        answer[6..length].iter().zip(answer[2..6].iter().cycle()).map(|(b, k)| b ^ k).collect();
                    assert_eq!(plain, b"ping");
                }
            }
        }
    });
}
