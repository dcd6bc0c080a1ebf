//! Ping through the tunnel: an extended `CONNECT` of tpx's own whose datagrams are echo requests and their answers.
//!
//! The path is `/echo/ADDRESS/`; a datagram is the sequence number (two bytes, big endian) and what follows ICMP's header.
//! The identifier is the far socket's business.

use std::net::IpAddr;

use bytes::{Buf, Bytes};
use tpx_core::dial::DialFailure;

use crate::{
    capsule::{self, Capsule},
    exchange::{Exchange, Heard},
    report,
};

/// The value of `:protocol`.
pub(crate) const PROTOCOL: &str = "tpx-echo";

/// Largest payload of an echo request.
pub const MAX_PAYLOAD: usize = 65_507;

/// An echo request, or its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// ICMP's sequence number.
    pub sequence: u16,
    /// What follows the header.
    pub payload: Bytes,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EchoEvent {
    /// The target's answer.
    Reply(Echo),
    /// Nobody will answer this request.
    Unreachable {
        /// Which; `None`: no request at all, and nothing follows.
        sequence: Option<u16>,
        /// Why not.
        why: DialFailure,
    },
}

/// The laptop's end of a series of echo requests to one target. Dropping it ends the series.
///
/// One task can pump both ways: [`recv`](Self::recv) is cancel safe and [`try_send`](Self::try_send) never waits.
#[derive(Debug)]
pub struct Echoes(Exchange);

impl Echoes {
    pub(crate) fn new(exchange: Exchange) -> Self {
        Self(exchange)
    }

    /// Sends a request; false when it was dropped: the lane has no room, the series is over, or the payload is longer
    /// than [`MAX_PAYLOAD`].
    #[expect(clippy::needless_pass_by_value, reason = "callers have no further use for it")]
    pub fn try_send(&mut self, echo: Echo) -> bool {
        try_send(&mut self.0, &echo)
    }

    /// What comes back next; `None` when the far side has ended the series or the lane was lost. Cancel safe.
    pub async fn recv(&mut self) -> Option<EchoEvent> {
        loop {
            match self.0.recv().await? {
                Heard::Capsule(Capsule::Datagram(bytes)) => {
                    if let Some(echo) = decode(bytes) {
                        return Some(EchoEvent::Reply(echo));
                    }
                }
                Heard::Capsule(Capsule::Report(bytes)) => {
                    if let Some((sequence, why)) = report::decode_echo(bytes) {
                        return Some(EchoEvent::Unreachable { sequence: Some(sequence), why });
                    }
                }
                Heard::Refused(why) => return Some(EchoEvent::Unreachable { sequence: None, why }),
            }
        }
    }
}

/// The cluster's end of a series of echo requests. Dropping it resets the stream.
#[derive(Debug)]
pub struct Series(Exchange);

impl Series {
    pub(crate) fn new(exchange: Exchange) -> Self {
        Self(exchange)
    }

    /// The next request; `None` when the laptop has ended the series, or is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Echo> {
        loop {
            if let Heard::Capsule(Capsule::Datagram(bytes)) = self.0.recv().await?
                && let Some(echo) = decode(bytes)
            {
                return Some(echo);
            }
        }
    }

    /// Sends the target's answer; false when it was dropped because the laptop does not keep up.
    pub fn try_send(&mut self, echo: &Echo) -> bool {
        try_send(&mut self.0, echo)
    }

    /// Says that nobody will answer; false when there was no room to say it.
    pub fn try_report(&mut self, sequence: u16, why: DialFailure) -> bool {
        self.0.try_send(Capsule::Report(report::encode_echo(sequence, why)).encode())
    }

    /// Ends the series behind all that was sent.
    pub fn finish(self) {
        self.0.finish();
    }
}

fn try_send(exchange: &mut Exchange, echo: &Echo) -> bool {
    let fits = echo.payload.len() <= MAX_PAYLOAD;
    fits && exchange.try_send(capsule::datagram(&[&echo.sequence.to_be_bytes(), &echo.payload]))
}

fn decode(mut bytes: Bytes) -> Option<Echo> {
    Some(Echo { sequence: bytes.try_get_u16().ok()?, payload: bytes })
}

/// The path that asks for `target`.
pub(crate) fn path(target: IpAddr) -> String {
    format!("{PREFIX}{}/", target.to_canonical().to_string().replace(':', "%3A"))
}

/// The target that `path` asks for.
pub(crate) fn from_path(path: &str) -> Option<IpAddr> {
    let address = path.strip_prefix(PREFIX)?.strip_suffix('/')?;
    let address: IpAddr = address.replace("%3A", ":").replace("%3a", ":").parse().ok()?;
    Some(address.to_canonical())
}

const PREFIX: &str = "/echo/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_back() {
        for target in ["10.0.0.1", "fd00::1"] {
            let target: IpAddr = target.parse().unwrap();
            assert_eq!(from_path(&path(target)), Some(target));
        }
        for path in ["", "/echo/", "/echo/host/", "/echo/10.0.0.1", "/10.0.0.1/"] {
            assert_eq!(from_path(path), None, "{path}");
        }
    }

    #[test]
    fn a_datagram_without_sequence_is_nothing() {
        assert_eq!(decode(Bytes::from_static(b"\x01")), None);
        let echo = Echo { sequence: 1, payload: Bytes::new() };
        assert_eq!(decode(Bytes::from_static(b"\x00\x01")), Some(echo));
    }
}
