//! A name server for a handful of names; all others do not exist. Each question becomes a line in a log, so that a test can
//! say which names left the laptop and which did not.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const TTL: u32 = 30;
/// Names of the web server.
const WEB: [&str; 3] = ["example.test.", "www.example.test.", "www.internet.test."];
/// A name whose addresses do not fit into a plain UDP answer.
const MANY: &str = "many.internet.test.";
const MANY_COUNT: u8 = 60;
const TEXT: &str = "text.internet.test.";

/// What it knows, and where it writes what it was asked.
pub(crate) struct Zone {
    web: IpAddr,
    web6: IpAddr,
    log: File,
}

impl Zone {
    pub(crate) fn new(web: IpAddr, web6: IpAddr, log: &Path) -> Result<Zone> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        Ok(Zone { web, web6, log })
    }

    /// The answer to a request; nothing for what is not one.
    fn answer(&self, request: &[u8], transport: &str, peer: SocketAddr) -> Option<Message> {
        let request = Message::from_vec(request).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        if let Some(asked) = &request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload());
            response.set_edns(edns);
        }
        for query in &request.queries {
            let name = query.name().to_lowercase();
            let known = self.records(&name);
            let answers: Vec<_> =
                known.iter().flatten().filter(|data| data.record_type() == query.query_type()).collect();
            for data in &answers {
                response.add_answer(Record::from_rdata(query.name().clone(), TTL, (*data).clone()));
            }
            if answers.is_empty() {
                let text = Name::from_ascii("ns.internet.test.").ok()?;
                response.add_authority(Record::from_rdata(
                    Name::root(),
                    TTL,
                    RData::SOA(SOA::new(text.clone(), text, 1, 3600, 600, 86_400, TTL)),
                ));
            }
            if known.is_none() {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
            self.note(transport, peer, &name, query.query_type(), response.metadata.response_code);
            response.add_query(query.clone());
        }
        Some(response)
    }

    /// What is known about a name; `None` where it does not exist.
    fn records(&self, name: &Name) -> Option<Vec<RData>> {
        let web = || [self.web, self.web6].map(address).to_vec();
        let name = name.to_ascii();
        match name.as_str() {
            name if WEB.contains(&name) => Some(web()),
            MANY => Some((1..=MANY_COUNT).map(|i| RData::A(A::new(203, 0, 113, i))).collect()),
            TEXT => Some(vec![RData::TXT(TXT::new(vec!["the rest of the world".into()]))]),
            name if [self.web, self.web6].iter().any(|ip| Name::from(*ip).to_ascii() == name) => {
                Some(vec![RData::PTR(PTR(Name::from_ascii(WEB[2]).ok()?))])
            }
            // Names above known ones exist without records.
            name if [WEB.as_slice(), &[MANY, TEXT]]
                .concat()
                .iter()
                .any(|known| known.ends_with(&format!(".{name}"))) =>
            {
                Some(Vec::new())
            }
            _ => None,
        }
    }

    /// One line: milliseconds since 1970, transport, who asked, type, name, response code.
    fn note(&self, transport: &str, peer: SocketAddr, name: &Name, kind: RecordType, code: ResponseCode) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let line = format!("{now} {transport} {peer} {kind} {} {code:?}\n", name.to_ascii());
        (&self.log).write_all(line.as_bytes()).ok();
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// Answers datagrams.
pub(crate) async fn udp(address: SocketAddr, zone: &Zone) -> Result<()> {
    let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(answer) = zone.answer(buffer.get(..count).unwrap_or_default(), "udp", peer) else { continue };
        let limit = usize::from(answer.edns.as_ref().map_or(512, Edns::max_payload).max(512));
        let bytes = answer.to_vec().ok().filter(|bytes| bytes.len() <= limit);
        if let Some(bytes) = bytes.or_else(|| answer.truncate().to_vec().ok()) {
            socket.send_to(&bytes, peer).await.ok();
        }
    }
}

/// Answers connections, one at a time: it has few and well-behaved clients.
pub(crate) async fn tcp(address: SocketAddr, zone: &Zone) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        tokio::time::timeout(std::time::Duration::from_secs(5), talk(stream, peer, zone)).await.ok();
    }
}

async fn talk(mut stream: TcpStream, peer: SocketAddr, zone: &Zone) -> Result<()> {
    loop {
        let size = stream.read_u16().await?;
        let mut request = vec![0; size.into()];
        stream.read_exact(&mut request).await?;
        let Some(answer) = zone.answer(&request, "tcp", peer) else { return Ok(()) };
        let bytes = answer.to_vec()?;
        stream.write_u16(u16::try_from(bytes.len())?).await?;
        stream.write_all(&bytes).await?;
    }
}
