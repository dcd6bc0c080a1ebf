//! Queries over UDP: one task each, forwarded over a socket of their own.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::op::ResponseCode;
use socket2::SockRef;
use tokio::{net::UdpSocket, sync::Semaphore, task::JoinSet, time::timeout};
use tpx_core::dns::Header;

use crate::{
    reply::{self, Transport},
    server::{Shared, Verdict},
    upstream,
};

const MAX_DATAGRAM: usize = 65_535;
/// Room for bursts: a browser asks for a hundred names at once. The kernel gives less where its limit is lower.
const RECEIVE_BUFFER: usize = 1 << 20;
/// After an error on the socket itself, so that a lasting one does not spin.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) async fn serve(shared: Arc<Shared>, socket: UdpSocket, name_server: SocketAddr) {
    if let Err(error) = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!(%error, "the receive buffer stays small");
    }
    let socket = Arc::new(socket);
    let forwards = Arc::new(Semaphore::new(shared.limits.forward_sockets));
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = shared.in_flight.clone().acquire_owned().await else { return };
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a query failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let message = buffer[..length].to_vec();
        let (shared, socket, forwards) = (shared.clone(), socket.clone(), forwards.clone());
        tasks.spawn(async move {
            let reply = serve_one(&shared, &forwards, &message, client, name_server).await;
            drop(permit);
            if let Some(reply) = reply
                && let Err(error) = socket.send_to(&reply, client).await
            {
                tracing::debug!(%error, %client, "sending an answer failed");
            }
        });
    }
}

async fn serve_one(
    shared: &Shared,
    forwards: &Semaphore,
    message: &[u8],
    client: SocketAddr,
    name_server: SocketAddr,
) -> Option<Vec<u8>> {
    let unless_found = match shared.judge(message, client, Transport::Udp).await {
        Verdict::Reply(reply) => return Some(reply),
        Verdict::Silence => return None,
        Verdict::Forward { unless_found } => unless_found,
    };
    shared.counters.forwarded();
    let exchange = exchange(shared, forwards, message, name_server);
    match timeout(shared.limits.forward_timeout, exchange).await {
        Ok(Ok(answer)) => Some(match unless_found {
            Some(failure) if !is_success(&answer) => failure,
            _ => answer,
        }),
        Ok(Err(error)) => {
            tracing::debug!(%error, %name_server, "the name server cannot be asked");
            shared.counters.failed();
            Some(reply::refusal_of_bytes(message, ResponseCode::ServFail))
        }
        Err(_) => {
            shared.counters.failed();
            None
        }
    }
}

/// Sends `query` as it is and waits for its answer. Datagrams with another id are not it (RFC 5452, 9.1).
async fn exchange(shared: &Shared, forwards: &Semaphore, query: &[u8], name_server: SocketAddr) -> io::Result<Vec<u8>> {
    let _permit = forwards.acquire().await.map_err(io::Error::other)?;
    let socket = upstream::udp(name_server, &*shared.bypass)?;
    socket.send(query).await?;
    let id = Header::parse(query).map(|header| header.id);
    let mut answer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut answer).await?;
        let header = Header::parse(&answer[..length]);
        if header.is_some_and(|header| header.is_response && Some(header.id) == id) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// Whether an answer says that the name exists.
pub(crate) fn is_success(answer: &[u8]) -> bool {
    Header::parse(answer).is_some_and(|header| header.response_code == 0)
}
