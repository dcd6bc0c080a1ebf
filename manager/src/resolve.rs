//! Relays DNS messages to the cluster's own name server.
//!
//! UDP first, TCP when the answer was cut off (RFC 7766). The message goes out under an id of its own, so that answers
//! of different questions cannot be mixed up, and comes back under the one it had. The next server is asked when one
//! does not answer.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one attempt waits.
const ATTEMPT: Duration = Duration::from_millis(2500);
/// Rounds over all servers.
const ROUNDS: usize = 2;
/// A DNS header (RFC 1035 section 4.1.1).
const HEADER: usize = 12;

/// What `resolv.conf(5)` says, as far as the manager needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers, in order.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain, from the search list that Kubernetes gives every pod: `NS.svc.DOMAIN svc.DOMAIN DOMAIN`.
    pub cluster_domain: Option<String>,
}

impl ResolvConf {
    /// Reads the file's text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (mut servers, mut search) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                // The last one counts.
                Some("search") => search = words.map(|word| word.trim_end_matches('.').to_owned()).collect(),
                _ => {}
            }
        }
        let cluster_domain = search.iter().find_map(|domain: &String| domain.strip_prefix("svc.").map(str::to_owned));
        Self { servers, cluster_domain }
    }
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The message is no DNS question.
    #[error("that is no DNS question")]
    Malformed,
    /// No server answered.
    #[error("the cluster's name server does not answer: {0}")]
    Unanswered(String),
}

/// Asks name servers.
#[derive(Debug)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    ids: RandomState,
}

impl Resolver {
    /// Asks these, in order.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, ids: RandomState::new() }
    }

    /// The answer to `query`, as it came.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(&self, query: &[u8]) -> Result<Vec<u8>, ResolveError> {
        let question = question(query).ok_or(ResolveError::Malformed)?;
        let mut words = "it is not configured".to_owned();
        for _ in 0..ROUNDS {
            for server in &self.servers {
                match self.ask(*server, query, question).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => words = format!("{server}: {error}"),
                }
            }
        }
        Err(ResolveError::Unanswered(words))
    }

    async fn ask(&self, server: SocketAddr, query: &[u8], question: &[u8]) -> io::Result<Vec<u8>> {
        let id = (self.ids.hash_one(std::time::Instant::now()) as u16).to_be_bytes();
        let mut sent = query.to_vec();
        sent[..2].copy_from_slice(&id);
        let answers = |answer: &[u8]| {
            answer.len() >= HEADER
                && answer[..2] == id
                && answer[2] & 0x80 != 0
                // Some errors come back without the question.
                && (answer[4..6] == [0, 0] || answer.get(HEADER..HEADER + question.len()).is_some_and(|q| q.eq_ignore_ascii_case(question)))
        };
        let attempt = timeout(ATTEMPT, async {
            let mut answer = over_udp(server, &sent, answers).await?;
            let truncated = answer[2] & 0x02 != 0;
            if truncated {
                answer = over_tcp(server, &sent).await?;
                if !answers(&answer) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"));
                }
            }
            Ok(answer)
        });
        let mut answer = attempt.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        answer[..2].copy_from_slice(&query[..2]);
        Ok(answer)
    }
}

/// The question section of a message with one question; `None` when it is none.
fn question(query: &[u8]) -> Option<&[u8]> {
    let header = query.first_chunk::<HEADER>()?;
    let is_query = header[2] & 0x80 == 0;
    if !is_query || header[4..6] != [0, 1] || query.len() > usize::from(u16::MAX) {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *query.get(at)? {
            0 => break,
            label @ 1..=63 => at += 1 + usize::from(label),
            // A question has nothing before it that a pointer could point to.
            _ => return None,
        }
    }
    query.get(HEADER..at + 5)
}

async fn over_udp(server: SocketAddr, query: &[u8], answers: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is a late or forged one: go on listening.
        if answers(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let message = [&length.to_be_bytes(), query].concat();
    socket.write_all(&message).await?;
    let mut answer = vec![0; usize::from(socket.read_u16().await?)];
    socket.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;

    /// A question for `a.b`, type A.
    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x01\x00\x01";

    #[test]
    fn the_clusters_domain() {
        let conf = ResolvConf::parse(
            "search tpx-system.svc.example.org svc.example.org. example.org corp\nnameserver 10.96.0.10\nnameserver x\noptions ndots:5\n",
        );
        assert_eq!(conf.servers, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(conf.cluster_domain.as_deref(), Some("example.org"));
        assert_eq!(ResolvConf::parse("search corp\n").cluster_domain, None);
    }

    #[test]
    fn what_is_a_question() {
        assert_eq!(question(QUERY), Some(&QUERY[12..]));
        assert_eq!(question(&QUERY[..QUERY.len() - 1]), None);
        let mut answer = QUERY.to_vec();
        answer[2] |= 0x80;
        assert_eq!(question(&answer), None);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = question(&bytes);
        }
    }

    fn answer_to(query: &[u8], truncated: bool) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        if truncated {
            answer[2] |= 0x02;
        } else {
            answer.extend_from_slice(b"whole");
        }
        answer
    }

    #[tokio::test]
    async fn a_cut_off_answer_is_asked_for_again_over_tcp() {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(server).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            // A forged answer with another id comes first.
            let mut forged = answer_to(&buffer[..length], false);
            forged[0] ^= 0xff;
            udp.send_to(&forged, from).await.unwrap();
            udp.send_to(&answer_to(&buffer[..length], true), from).await.unwrap();
            let (mut socket, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(socket.read_u16().await.unwrap())];
            socket.read_exact(&mut query).await.unwrap();
            let answer = answer_to(&query, false);
            socket.write_u16(answer.len() as u16).await.unwrap();
            socket.write_all(&answer).await.unwrap();
        });
        let answer = Resolver::new(vec![server]).resolve(QUERY).await.unwrap();
        assert_eq!(answer, answer_to(QUERY, false));
    }

    #[tokio::test]
    async fn the_next_server_is_asked() {
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = udp.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            udp.send_to(&answer_to(&buffer[..length], false), from).await.unwrap();
        });
        let answer = Resolver::new(vec![closed, server]).resolve(QUERY).await.unwrap();
        assert_eq!(answer, answer_to(QUERY, false));
        assert_eq!(Resolver::new(vec![closed]).resolve(b"x").await, Err(ResolveError::Malformed));
        let unanswered = Resolver::new(vec![closed]).resolve(QUERY).await;
        assert!(matches!(unanswered, Err(ResolveError::Unanswered(_))));
    }
}
