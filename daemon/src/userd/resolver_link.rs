//! Questions that systemd-resolved sends to tpx's device: they arrive as flows and are answered here.

use std::{io, net::IpAddr, time::Duration};

use tokio::time::timeout;
use tpx_datapath::{DatagramFlow, NetStream};
use tpx_dns::{Asker, Transport};

use super::routing::resolvers;

/// Port of name servers (RFC 1035, 4.2).
const PORT: u16 = 53;
/// An association or a connection without a question ends.
const IDLE: Duration = Duration::from_secs(20);

/// Whether a flow to `ip` and `port` is for the name server.
pub(crate) fn is_for_us(ip: IpAddr, port: u16) -> bool {
    port == PORT && resolvers().contains(&ip)
}

/// Answers datagrams until none has come for a while.
pub(crate) async fn answer_datagrams(mut flow: DatagramFlow, asker: Asker) {
    while let Ok(Some(question)) = timeout(IDLE, flow.incoming.recv()).await {
        if let Some(answer) = asker.ask(&question, Transport::Udp).await {
            flow.back.send(&answer);
        }
    }
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
    fn only_its_own_address_and_port() {
        let [four, six] = resolvers();
        assert!(is_for_us(four, 53) && is_for_us(six, 53));
        assert!(!is_for_us(four, 80) && !is_for_us("10.96.0.10".parse().unwrap(), 53));
    }
}
