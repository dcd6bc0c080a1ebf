//! The rest of the world: a name server that remembers every message and answers in bytes no library would write.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::{Message, OpCode},
    rr::{RData, Record, rdata::A},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// A UDP socket and a TCP listener on one port of the loopback.
pub(crate) async fn bound() -> (UdpSocket, TcpListener) {
    for _ in 0..50 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        match TcpListener::bind(udp.local_addr().unwrap()).await {
            Ok(tcp) => return (udp, tcp),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no port is free for both UDP and TCP");
}

#[derive(Default)]
struct Log {
    /// Whole messages in lower case, so that a name can be searched in them.
    messages: Mutex<Vec<Vec<u8>>>,
    sources: Mutex<Vec<SocketAddr>>,
    connections: AtomicUsize,
}

pub(crate) struct Internet {
    pub(crate) address: SocketAddr,
    log: Arc<Log>,
    _tasks: JoinSet<()>,
}

impl Internet {
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = bound().await;
        let address = udp.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, log.clone()));
        tasks.spawn(serve_tcp(tcp, log.clone()));
        Self { address, log, _tasks: tasks }
    }

    /// How many messages came.
    pub(crate) fn count(&self) -> usize {
        self.log.messages.lock().unwrap().len()
    }

    pub(crate) fn connections(&self) -> usize {
        self.log.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn sources(&self) -> Vec<SocketAddr> {
        self.log.sources.lock().unwrap().clone()
    }

    /// The last message, as it came but for the case of letters.
    pub(crate) fn last(&self) -> Vec<u8> {
        self.log.messages.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// Whether any message held this label.
    pub(crate) fn saw(&self, label: &str) -> bool {
        let needle = [&[label.len() as u8], label.to_ascii_lowercase().as_bytes()].concat();
        let messages = self.log.messages.lock().unwrap();
        messages.iter().any(|message| message.windows(needle.len()).any(|window| window == needle))
    }
}

impl Log {
    fn add(&self, message: &[u8], source: SocketAddr) {
        self.messages.lock().unwrap().push(message.to_ascii_lowercase());
        self.sources.lock().unwrap().push(source);
    }
}

async fn serve_udp(socket: UdpSocket, log: Arc<Log>) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { return };
        let query = &buffer[..length];
        log.add(query, client);
        if holds(query, "silent") {
            continue;
        }
        if holds(query, "spoofed") {
            let mut wrong = answer(query);
            wrong[1] ^= 1;
            socket.send_to(&wrong, client).await.unwrap();
            socket.send_to(b"x", client).await.unwrap();
        }
        let mut reply = answer(query);
        if holds(query, "large") {
            reply[2] |= 0x02;
        }
        socket.send_to(&reply, client).await.unwrap();
    }
}

async fn serve_tcp(listener: TcpListener, log: Arc<Log>) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok((stream, client)) = listener.accept().await else { return };
        log.connections.fetch_add(1, Ordering::Relaxed);
        let log = log.clone();
        tasks.spawn(async move {
            let _ = serve_stream(stream, client, &log).await;
        });
    }
}

async fn serve_stream(mut stream: TcpStream, client: SocketAddr, log: &Log) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await?;
        log.add(&query, client);
        // A zone transfer: several messages for one query.
        let times = if holds(&query, "transfer") { 3 } else { 1 };
        for index in 0..times {
            let mut reply = answer(&query);
            reply.push(index);
            stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat()).await?;
        }
        if holds(&query, "hangup") {
            return Ok(());
        }
    }
}

fn holds(message: &[u8], label: &str) -> bool {
    message.to_ascii_lowercase().windows(label.len()).any(|window| window == label.as_bytes())
}

/// The answer to a query: the query itself with a reserved header bit, an answer whose bytes no parser would take, and
/// trailing rubbish. NXDOMAIN where the name says `missing`. Where it says `proper`, an answer as others give it.
pub(crate) fn answer(query: &[u8]) -> Vec<u8> {
    if holds(query, "proper") {
        let asked = Message::from_vec(query).unwrap();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        let name = asked.queries[0].name.clone();
        answer.add_query(asked.queries[0].clone());
        answer.answers.push(Record::from_rdata(name, 300, RData::A(A::new(93, 184, 216, 34))));
        return answer.to_vec().unwrap();
    }
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0xc0 | if holds(query, "missing") { 3 } else { 0 };
    answer[7] = 1;
    answer.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\x5d\xb8\xd8\x22 trailing \xff");
    answer
}
