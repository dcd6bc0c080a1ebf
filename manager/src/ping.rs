//! Echo requests, by ICMP sockets that need no privilege: the sysctl `net.ipv4.ping_group_range` allows them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, time::sleep_until};
use tpx_core::dial::DialFailure;
use tpx_link::{Echo, datagrams::Report, echoes::Series, proxy_status::Refusal};

use crate::errqueue;

/// The series is over when nothing was sent and nothing came for this long.
const SILENCE: Duration = Duration::from_secs(120);
/// Longest message that can come.
const MAX_MESSAGE: usize = 65_535;
/// Answers that are taken from the socket before the other direction has its turn.
const BURST: usize = 64;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// Makes a socket that exchanges echo messages with `target` alone.
///
/// # Errors
/// Why not, as the laptop should hear it.
pub(crate) fn open(target: IpAddr) -> Result<UdpSocket, Refusal> {
    let address = SocketAddr::new(target, 0);
    let protocol = if target.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    match Socket::new(Domain::for_address(address), Type::DGRAM, Some(protocol)) {
        Ok(socket) => errqueue::connect(socket, address),
        Err(error) => {
            tracing::warn!(
                %error,
                "no ping: the pod may make no ICMP sockets; the sysctl net.ipv4.ping_group_range has to include its group"
            );
            Err(Refusal::Dial(DialFailure::Prohibited))
        }
    }
}

/// Carries echo messages until the laptop ends the series or it falls silent. Dropping the future resets the stream.
pub(crate) async fn carry(socket: UdpSocket, target: IpAddr, mut series: Series) {
    let mut last = Instant::now();
    loop {
        tokio::select! {
            echo = series.recv() => match echo {
                Some(echo) => {
                    last = Instant::now();
                    send(&socket, target, &echo, &mut series);
                }
                None => return,
            },
            // Fails only when the runtime shuts down.
            _ = socket.ready(Interest::READABLE | Interest::ERROR) => {
                drain(&socket, &mut series);
                receive(&socket, target, &mut series);
                last = Instant::now();
            }
            () = sleep_until((last + SILENCE).into()) => return series.finish(),
        }
    }
}

fn send(socket: &UdpSocket, target: IpAddr, echo: &Echo, series: &mut Series) {
    let message = request(target, echo);
    let socket2 = SockRef::from(socket);
    for _ in 0..2 {
        match socket2.send(&message) {
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An earlier request's error comes first; this one was not sent.
            Err(_) if drain(socket, series) => {}
            Err(error) => {
                if let Report::Unreachable(why) = errqueue::report(&error) {
                    series.try_report(echo.sequence, why);
                }
                return;
            }
        }
    }
}

/// Passes the socket's errors on; whether there were any.
fn drain(socket: &UdpSocket, series: &mut Series) -> bool {
    let mut any = false;
    for _ in 0..BURST {
        let Ok(trouble) = errqueue::next(socket) else { break };
        any = true;
        // A request that was too big is lost; the kernel cuts the next one into fragments that fit.
        if let Report::Unreachable(why) = trouble.report() {
            // The quoted head is the request's own.
            let [.., high, low] = trouble.quoted();
            series.try_report(u16::from_be_bytes([high, low]), why);
        }
    }
    any
}

fn receive(socket: &UdpSocket, target: IpAddr, series: &mut Series) {
    let mut buffer = BytesMut::new();
    for _ in 0..BURST {
        buffer.reserve(MAX_MESSAGE);
        match socket.try_recv_buf(&mut buffer) {
            Ok(_) => {
                if let Some(echo) = reply(target, buffer.split().freeze()) {
                    series.try_send(&echo);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {
                drain(socket, series);
            }
        }
    }
}

/// The message for the kernel, which fills in identifier and checksum (RFC 792, RFC 4443 section 4.1).
fn request(target: IpAddr, echo: &Echo) -> Vec<u8> {
    let kind = if target.is_ipv4() { 8 } else { 128 };
    let [high, low] = echo.sequence.to_be_bytes();
    let mut message = Vec::with_capacity(HEADER + echo.payload.len());
    message.extend_from_slice(&[kind, 0, 0, 0, 0, 0, high, low]);
    message.extend_from_slice(&echo.payload);
    message
}

/// What an answer says; `None`: it is none.
fn reply(target: IpAddr, mut message: Bytes) -> Option<Echo> {
    let kind = if target.is_ipv4() { 0 } else { 129 };
    if message.len() < HEADER || message[..2] != [kind, 0] {
        return None;
    }
    message.advance(HEADER - 2);
    Some(Echo { sequence: message.get_u16(), payload: message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_standards() {
        let echo = Echo { sequence: 0x0102, payload: Bytes::from_static(b"abc") };
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert_eq!(request(v4, &echo), b"\x08\0\0\0\0\0\x01\x02abc");
        assert_eq!(request(v6, &echo), b"\x80\0\0\0\0\0\x01\x02abc");
        assert_eq!(reply(v4, Bytes::from_static(b"\0\0cciiSSabc")).unwrap().payload, "abc");
        assert_eq!(reply(v6, Bytes::from_static(b"\x81\0ccii\x01\x02abc")), Some(echo));
        for message in [&b"\x08\0ccii\x01\x02abc"[..], b"\0\0ccii\x01", b""] {
            assert_eq!(reply(v4, Bytes::from_static(message)), None);
        }
    }
}
