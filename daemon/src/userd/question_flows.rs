//! Questions that arrive as flows: systemd-resolved sends its own to tpx's device, and containers' are led there whichever
//! server they were meant for.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};
use tpx_datapath::{DatagramFlow, NetStream, linux::Slot};
use tpx_dns::{Asker, Transport};

use super::routing::resolvers;

/// Port of name servers (RFC 1035, 4.2).
const PORT: u16 = 53;
/// An association or a connection without a question ends.
const IDLE: Duration = Duration::from_secs(20);

/// Questions of one flow that are worked on at once. Programs ask for both families with one socket.
const AT_ONCE: usize = 16;

/// Whom a question was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// tpx itself.
    Resolved,
    /// A server outside of the cluster.
    MeantFor(SocketAddr),
}

/// Whether a flow asks the name server. One to an address that the tunnel `steers` asks a server in the cluster, and one
/// from a device's own address is the host's: a connection from before its subnet moved, or, in a scope as well, one whose
/// virtual address the kernel has exchanged.
pub(crate) fn whose(source: IpAddr, destination: SocketAddr, steers: impl Fn(IpAddr) -> bool) -> Option<Question> {
    if destination.port() != PORT {
        return None;
    }
    if resolvers().contains(&destination.ip()) {
        return Some(Question::Resolved);
    }
    let own = Slot::all().any(|slot| [IpAddr::from(slot.ipv4()), slot.ipv6().into()].contains(&source));
    (!own && !steers(destination.ip())).then_some(Question::MeantFor(destination))
}

/// Answers datagrams until none has come for a while.
pub(crate) async fn answer_datagrams(flow: DatagramFlow, asker: Asker) {
    let (mut incoming, back) = (flow.incoming, Arc::new(flow.back));
    let mut answers = JoinSet::new();
    while let Ok(Some(question)) = timeout(IDLE, incoming.recv()).await {
        while answers.len() >= AT_ONCE {
            answers.join_next().await;
        }
        let (asker, back) = (asker.clone(), Arc::clone(&back));
        answers.spawn(async move {
            if let Some(answer) = asker.ask(&question, Transport::Udp).await {
                back.send(&answer);
            }
        });
        while answers.try_join_next().is_some() {}
    }
    // The last answers may be on their way.
    while answers.join_next().await.is_some() {}
}

/// Answers messages with their length in front (RFC 1035, 4.2.2) until the other side has ended.
pub(crate) async fn answer_stream(stream: NetStream, asker: Asker) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        while let Some((question, rest)) = first_message(&bytes) {
            let answer = asker.ask(question, Transport::Tcp).await;
            bytes = rest.to_vec();
            if let Some(answer) = answer
                && let Ok(length) = u16::try_from(answer.len())
            {
                write(&stream, &[&length.to_be_bytes(), &answer[..]].concat()).await?;
            }
        }
        let ready = std::future::poll_fn(|cx| stream.poll_read_ready(cx));
        timeout(IDLE, ready).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let mut buffer = [0; 2048];
        match stream.try_read(&mut buffer) {
            Ok(0) => return stream.shutdown_write(),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

fn first_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

async fn write(stream: &NetStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        std::future::poll_fn(|cx| stream.poll_write_ready(cx)).await?;
        match stream.try_write_vectored(&[io::IoSlice::new(bytes)]) {
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_one_by_one() {
        assert_eq!(first_message(&[0, 2, 7, 8, 9]), Some((&[7, 8][..], &[9][..])));
        assert_eq!(first_message(&[0, 2, 7]), None);
        assert_eq!(first_message(&[0]), None);
    }

    #[test]
    fn questions_are_told_from_flows_into_the_cluster() {
        let (container, own) = ("172.17.0.2".parse().unwrap(), Slot::FIRST.ipv4().into());
        let steers = |ip| ip == "10.96.0.10".parse::<IpAddr>().unwrap();
        let whose = |source, to: &str| whose(source, to.parse().unwrap(), steers);
        for resolver in resolvers() {
            let resolver = SocketAddr::new(resolver, 53);
            assert_eq!([container, own].map(|ip| whose(ip, &resolver.to_string())), [Some(Question::Resolved); 2]);
            assert_eq!(whose(container, &SocketAddr::new(resolver.ip(), 80).to_string()), None);
        }
        let public = "192.0.2.53:53";
        assert_eq!(whose(container, public), Some(Question::MeantFor(public.parse().unwrap())));
        assert_eq!(whose(container, "192.0.2.53:80"), None);
        assert_eq!(whose(container, "10.96.0.10:53"), None);
        // Each scope has a slot, and with it a source, of its own.
        for slot in Slot::all() {
            for own in [IpAddr::from(slot.ipv4()), slot.ipv6().into()] {
                assert_eq!(whose(own, "10.244.0.10:53"), None, "{own}");
            }
        }
    }
}
