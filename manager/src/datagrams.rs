//! UDP associations: one connected socket each.
//!
//! Nothing here waits for room: a datagram that the socket or the stream cannot take now is lost, as on any network.

use std::{io, time::Instant};

use bytes::BytesMut;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, time::sleep_until};
use tpx_link::{Target, datagrams::Association, proxy_status::Refusal};

use crate::{
    dial, errqueue,
    state::idle::{Idle, Limits},
};

/// Unread bytes that the kernel may hold for one association, if `net.core.rmem_max` allows it: bursts of answers.
const RECV_BUFFER: usize = 1 << 20;
/// Longest payload that can come.
const MAX_PAYLOAD: usize = 65_535;
/// Datagrams that are taken from the socket before the other direction has its turn.
const BURST: usize = 64;

/// Makes a socket that exchanges datagrams with `target` alone.
///
/// # Errors
/// Why not, as the laptop should hear it.
pub(crate) async fn open(target: &Target) -> Result<UdpSocket, Refusal> {
    let mut last = Refusal::Name;
    for address in dial::addresses(target).await? {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP));
        let connected = socket.map_err(|error| dial::refusal(&error)).and_then(|socket| {
            // Without it bursts are lost earlier.
            let _ = socket.set_recv_buffer_size(RECV_BUFFER);
            errqueue::connect(socket, address)
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(refusal) => last = refusal,
        }
    }
    Err(last)
}

/// Carries datagrams until the laptop ends the association or it falls silent. Dropping the future resets the stream.
pub(crate) async fn carry(socket: UdpSocket, port: u16, mut association: Association, limits: Limits) {
    let mut idle = Idle::new(port, limits, Instant::now());
    loop {
        tokio::select! {
            payload = association.recv() => match payload {
                Some(payload) => {
                    idle.handle_sent(Instant::now());
                    send(&socket, &payload, &mut association);
                }
                None => return,
            },
            // Fails only when the runtime shuts down.
            _ = socket.ready(Interest::READABLE | Interest::ERROR) => {
                drain(&socket, &mut association);
                if receive(&socket, &mut association) {
                    idle.handle_received(Instant::now());
                }
            }
            () = sleep_until(idle.poll_over().into()) => return association.finish(),
        }
    }
}

fn send(socket: &UdpSocket, payload: &[u8], association: &mut Association) {
    // Not by way of the runtime's readiness, which a fresh socket does not have yet.
    let socket2 = SockRef::from(socket);
    for _ in 0..2 {
        match socket2.send(payload) {
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An earlier datagram's error comes first; this one was not sent.
            Err(_) if drain(socket, association) => {}
            Err(error) => {
                association.try_report(errqueue::report(&error));
                return;
            }
        }
    }
}

/// Passes the socket's errors on; whether there were any.
fn drain(socket: &UdpSocket, association: &mut Association) -> bool {
    let mut any = false;
    // Bounded by the socket's buffer; what comes meanwhile is for the next time.
    for _ in 0..BURST {
        let Ok(trouble) = errqueue::next(socket) else { break };
        any = true;
        let report = trouble.report();
        tracing::trace!(?report, "a datagram did not arrive");
        association.try_report(report);
    }
    any
}

/// Passes on what has come; whether anything has.
fn receive(socket: &UdpSocket, association: &mut Association) -> bool {
    // Only for as long as there is something: an association that waits holds no buffer.
    let mut buffer = BytesMut::new();
    let mut any = false;
    for _ in 0..BURST {
        buffer.clear();
        buffer.reserve(MAX_PAYLOAD);
        match socket.try_recv_buf(&mut buffer) {
            Ok(_) => {
                any = true;
                association.try_send(&buffer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // An error that the queue tells more of.
            Err(_) => {
                drain(socket, association);
            }
        }
    }
    any
}
