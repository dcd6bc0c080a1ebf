//! UDP through the tunnel: connect-udp (RFC 9298), one stream for each association.

use bytes::Bytes;
use tpx_core::dial::DialFailure;

pub use crate::report::Report;
use crate::{
    capsule::{self, Capsule},
    exchange::{Exchange, Heard},
    target::Target,
};

/// The value of `:protocol` (RFC 9298 section 3).
pub(crate) const PROTOCOL: &str = "connect-udp";

/// Largest UDP payload that IPv4 carries.
pub const MAX_PAYLOAD: usize = 65_507;

/// The laptop's end of a UDP association. Dropping it ends the association.
///
/// One task can pump both ways: [`recv`](Self::recv) is cancel safe and [`try_send`](Self::try_send) never waits.
#[derive(Debug)]
pub struct Datagrams(Exchange);

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A datagram's payload.
    Payload(Bytes),
    /// A datagram did not arrive, or the association could not be made; then nothing follows.
    Unreachable(DialFailure),
    /// Datagrams of more than `mtu` bytes, IP header included, do not fit (RFC 1191, RFC 8201).
    TooBig {
        /// Bytes, IP header included.
        mtu: u32,
    },
}

impl Datagrams {
    pub(crate) fn new(exchange: Exchange) -> Self {
        Self(exchange)
    }

    /// Sends a datagram; false when it was dropped: the lane has no room, the association is over, or the payload is
    /// longer than [`MAX_PAYLOAD`]. What is sent before the far side has answered waits there for its socket.
    #[expect(clippy::needless_pass_by_value, reason = "callers have no further use for it")]
    pub fn try_send(&mut self, payload: Bytes) -> bool {
        payload.len() <= MAX_PAYLOAD && self.0.try_send(capsule::datagram(&[&payload]))
    }

    /// What comes back next; `None` when the far side has ended the association (idle for long, session over) or the
    /// lane was lost. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await? {
                Heard::Capsule(Capsule::Datagram(payload)) => return Some(Event::Payload(payload)),
                Heard::Capsule(Capsule::Report(bytes)) => match Report::decode(bytes) {
                    Some(Report::Unreachable(why)) => return Some(Event::Unreachable(why)),
                    Some(Report::TooBig { mtu }) => return Some(Event::TooBig { mtu }),
                    None => {}
                },
                Heard::Refused(why) => return Some(Event::Unreachable(why)),
            }
        }
    }
}

/// The cluster's end of a UDP association. Dropping it resets the stream.
#[derive(Debug)]
pub struct Association(Exchange);

impl Association {
    pub(crate) fn new(exchange: Exchange) -> Self {
        Self(exchange)
    }

    /// The next payload for the target; `None` when the laptop has ended the association, or is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Bytes> {
        loop {
            if let Heard::Capsule(Capsule::Datagram(payload)) = self.0.recv().await? {
                return Some(payload);
            }
        }
    }

    /// Sends a payload that came from the target; false when it was dropped because the laptop does not keep up.
    pub fn try_send(&mut self, payload: &[u8]) -> bool {
        payload.len() <= capsule::MAX_PAYLOAD && self.0.try_send(capsule::datagram(&[payload]))
    }

    /// Says what became of a datagram; false when there was no room to say it.
    pub fn try_report(&mut self, report: Report) -> bool {
        self.0.try_send(Capsule::Report(report.encode()).encode())
    }

    /// Ends the association behind all that was sent.
    pub fn finish(self) {
        self.0.finish();
    }
}

/// The path that asks for `target`, with RFC 9298's default template.
pub(crate) fn path(target: &Target) -> String {
    format!("{PREFIX}{}/{}/", target.host().replace(':', "%3A"), target.port())
}

/// The target that `path` asks for.
pub(crate) fn from_path(path: &str) -> Option<Target> {
    let (host, port) = path.strip_prefix(PREFIX)?.strip_suffix('/')?.split_once('/')?;
    // Nothing but an IPv6 address has characters that need escaping.
    let host = host.replace("%3A", ":").replace("%3a", ":");
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Target::new(&host, port.parse().ok()?).ok()
}

const PREFIX: &str = "/.well-known/masque/udp/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_back() {
        for (target, expected) in [
            ("10.96.0.10:53", "/.well-known/masque/udp/10.96.0.10/53/"),
            ("[2001:db8::42]:443", "/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/"),
            ("kube-dns.kube-system:53", "/.well-known/masque/udp/kube-dns.kube-system/53/"),
        ] {
            let target: Target = target.parse().unwrap();
            assert_eq!(path(&target), expected);
            assert_eq!(from_path(expected), Some(target));
        }
        assert!(from_path("/.well-known/masque/udp/2001%3adb8%3a%3a42/443/").is_some());
    }

    #[test]
    fn other_paths_ask_for_nothing() {
        for path in [
            "",
            "/",
            "/.well-known/masque/udp/",
            "/.well-known/masque/udp/10.0.0.1/53",
            "/.well-known/masque/udp/10.0.0.1/0/",
            "/.well-known/masque/udp/10.0.0.1/+53/",
            "/.well-known/masque/udp/10.0.0.1/53/x/",
            "/.well-known/masque/udp//53/",
            "/.well-known/masque/udp/a%20b/53/",
            "/.well-known/masque/ip/10.0.0.1/53/",
        ] {
            assert_eq!(from_path(path), None, "{path}");
        }
    }
}
