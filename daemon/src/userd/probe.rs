//! The last step of `tpx connect`: an ordinary connection and an ordinary question, as any application would make them,
//! must reach the cluster before we say that it can be reached. For a process tree, a process in it asks.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{
    net::{TcpStream, UdpSocket},
    process::Command,
    time::{sleep, timeout},
};

use crate::cgroup;

/// Longest that a probe may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest that a probe by another process may take.
const IN_TREE: Duration = Duration::from_secs(20);
/// Longest that the kernel counts a process that has ended.
const LINGER: Duration = Duration::from_secs(1);

/// What is asked of the datapath.
#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// Where to connect: the manager's own address inside of the cluster
    #[arg(long)]
    pub tcp: Option<SocketAddr>,
    /// The configured name server to ask
    #[arg(long)]
    pub dns: Option<IpAddr>,
    /// A name that only the cluster knows, and which may be asked: whether it exists or not, only the cluster's own
    /// server can say
    #[arg(long)]
    pub name: String,
}

impl Probe {
    /// Asks from this process.
    ///
    /// # Errors
    /// What does not work, in words.
    pub(crate) async fn here(&self) -> Result<(), String> {
        if let Some(address) = self.tcp {
            tcp(address).await.map_err(|e| format!("the datapath does not carry: {address}: {e}"))?;
        }
        if let Some(server) = self.dns {
            let asked = dns(server, &self.name).await;
            asked.map_err(|e| format!("names of the cluster do not resolve through {server}: {e}"))?;
        }
        Ok(())
    }

    /// Asks from inside a process tree, which is empty again afterwards.
    ///
    /// # Errors
    /// As [`here`](Self::here), or the process could not be had.
    pub(crate) async fn inside(&self, rootd: &Path, tree: &Path) -> Result<(), String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(&own);
        command.arg("enter").arg("--socket").arg(rootd).arg("--cgroup").arg(tree).arg("--").arg(&own).arg("probe");
        command.args(["--name", &self.name]);
        command.args(self.tcp.iter().flat_map(|address| ["--tcp".to_owned(), address.to_string()]));
        command.args(self.dns.iter().flat_map(|server| ["--dns".to_owned(), server.to_string()]));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = timeout(IN_TREE, command.output()).await.map_err(|_| "the probe in the process tree hangs")?;
        let ended = ended.map_err(|e| format!("cannot run {}: {e}", own.display()))?;
        if !ended.status.success() {
            return Err(String::from_utf8_lossy(&ended.stderr).trim().to_owned());
        }
        let until = Instant::now() + LINGER;
        while !cgroup::is_empty(tree) && Instant::now() < until {
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

async fn tcp(address: SocketAddr) -> io::Result<()> {
    timeout(PATIENCE, TcpStream::connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)?.map(drop)
}

async fn dns(server: IpAddr, name: &str) -> io::Result<()> {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((server, 53)).await?;
    let query = query(name);
    let exchange = async {
        // Twice, because a datagram may be lost while the programs are being attached.
        for _ in 0..2 {
            socket.send(&query).await?;
            let mut answer = [0; 4096];
            match timeout(PATIENCE / 2, socket.recv(&mut answer)).await {
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
