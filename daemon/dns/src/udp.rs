//! Queries over UDP: those that were answered before at once, others in a task each, forwarded over a socket of their own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::op::ResponseCode;
use socket2::SockRef;
use tokio::{net::UdpSocket, task::JoinSet, time::timeout};
use tpx_core::dns::Header;

use crate::{
    reply::{self, Transport},
    server::{Shared, Verdict},
    upstream::Upstream,
};

const MAX_DATAGRAM: usize = 65_535;
/// Room for bursts: a browser asks for a hundred names at once. The kernel gives less where its limit is lower.
const RECEIVE_BUFFER: usize = 1 << 20;
/// After an error on the socket itself, so that a lasting one does not spin.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) async fn serve(shared: Arc<Shared>, socket: UdpSocket, upstream: Arc<Upstream>) {
    if let Err(error) = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!(%error, "the receive buffer stays small");
    }
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a query failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if let Some(reply) = shared.quick(&buffer[..length]) {
            if let Err(error) = send_now(&socket, &reply, client).await {
                tracing::debug!(%error, %client, "sending an answer failed");
            }
            continue;
        }
        // While this waits, further queries wait in the socket's buffer.
        let Ok(permit) = shared.in_flight.clone().acquire_owned().await else { return };
        let message = buffer[..length].to_vec();
        let (shared, socket, upstream) = (shared.clone(), socket.clone(), upstream.clone());
        tasks.spawn(async move {
            let reply = serve_one(&shared, &upstream, &message).await;
            drop(permit);
            if let Some(reply) = reply
                && let Err(error) = socket.send_to(&reply, client).await
            {
                tracing::debug!(%error, %client, "sending an answer failed");
            }
        });
    }
}

/// Mostly without a turn through the runtime.
async fn send_now(socket: &UdpSocket, reply: &[u8], client: SocketAddr) -> std::io::Result<usize> {
    match socket.try_send_to(reply, client) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => socket.send_to(reply, client).await,
        sent => sent,
    }
}

async fn serve_one(shared: &Shared, upstream: &Upstream, message: &[u8]) -> Option<Vec<u8>> {
    let unless_found = match shared.judge(message, Some(upstream), Transport::Udp).await {
        Verdict::Reply(reply) => return Some(reply),
        Verdict::Silence => return None,
        Verdict::Forward { unless_found, .. } => unless_found,
    };
    shared.counters.forwarded();
    match timeout(shared.limits.forward_timeout, upstream.exchange(&*shared.bypass, message)).await {
        Ok(Ok(answer)) => Some(match unless_found {
            Some(failure) if !is_success(&answer) => failure,
            _ => answer,
        }),
        Ok(Err(error)) => {
            tracing::debug!(%error, name_server = %upstream.address, "the name server cannot be asked");
            shared.counters.failed();
            Some(reply::refusal_of_bytes(message, ResponseCode::ServFail))
        }
        Err(_) => {
            shared.counters.failed();
            None
        }
    }
}

/// Whether an answer says that the name exists.
pub(crate) fn is_success(answer: &[u8]) -> bool {
    Header::parse(answer).is_some_and(|header| header.response_code == 0)
}
