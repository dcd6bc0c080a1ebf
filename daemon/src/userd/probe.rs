//! The last step of `tpx connect`: an ordinary connection and an ordinary question, as any application would make them,
//! must reach the cluster before we say that it can be reached.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::net::{TcpStream, UdpSocket};

/// Longest that a probe may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to the manager's own address inside the cluster, through the datapath.
pub(crate) async fn tcp(address: SocketAddr) -> io::Result<()> {
    tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)?.map(drop)
}

/// Asks the configured name server for a name that only the cluster knows, and which may be asked here: whether it exists
/// or not, only the cluster's own server can say.
pub(crate) async fn dns(server: IpAddr, namespace: &str, cluster_domain: &str) -> io::Result<()> {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((server, 53)).await?;
    let query = query(&format!("{namespace}.svc.{cluster_domain}"));
    let exchange = async {
        // Twice, because a datagram may be lost while the programs are being attached.
        for _ in 0..2 {
            socket.send(&query).await?;
            let mut answer = [0; 4096];
            match tokio::time::timeout(PATIENCE / 2, socket.recv(&mut answer)).await {
                Ok(received) => return check(&query, &answer[..received?]),
                Err(_) => continue,
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    };
    exchange.await
}

/// A question for A records, with recursion desired (RFC 1035, 4.1).
fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x74, 0x70, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len().min(63)).unwrap_or(63));
        message.extend(label.bytes().take(63));
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// An answer to this very question: NOERROR or NXDOMAIN.
fn check(query: &[u8], answer: &[u8]) -> io::Result<()> {
    let fits = answer.len() >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0;
    match answer.get(3).map(|flags| flags & 0x0f) {
        Some(0 | 3) if fits => Ok(()),
        Some(code) if fits => Err(io::Error::other(format!("the answer was an error, RCODE {code}"))),
        _ => Err(io::Error::other("the answer was no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_well_formed() {
        let message = query("a.bc");
        assert_eq!(&message[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn only_a_clean_answer_to_the_question_counts() {
        let query = query("a");
        let mut answer = query.clone();
        assert!(check(&query, &answer).is_err(), "the question itself");
        answer[2] |= 0x80;
        assert!(check(&query, &answer).is_ok());
        answer[3] = 2;
        assert!(check(&query, &answer).unwrap_err().to_string().contains("RCODE 2"));
        assert!(check(&query, &answer[..8]).is_err());
    }
}
