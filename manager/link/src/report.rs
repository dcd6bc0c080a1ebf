//! What became of a datagram or an echo request, as bytes of a [`REPORT`](crate::capsule::REPORT) capsule; pure.
//!
//! A code, and for a datagram that was too big the four bytes of the path's MTU; for an echo request its sequence number
//! follows. Codes that are not known, and bytes behind what is, are ignored.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tpx_core::dial::DialFailure;

/// News about datagrams of an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A datagram did not arrive.
    Unreachable(DialFailure),
    /// Datagrams of more than `mtu` bytes, IP header included, do not fit the path (RFC 1191, RFC 8201).
    TooBig {
        /// Bytes, IP header included.
        mtu: u32,
    },
}

const TOO_BIG: u8 = 16;

const FAILURES: [(u8, DialFailure); 6] = [
    (0, DialFailure::Tunnel),
    (1, DialFailure::Refused),
    (2, DialFailure::HostUnreachable),
    (3, DialFailure::NetworkUnreachable),
    (4, DialFailure::Prohibited),
    (5, DialFailure::TimedOut),
];

impl Report {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        match *self {
            Self::Unreachable(why) => bytes.put_u8(code(why)),
            Self::TooBig { mtu } => {
                bytes.put_u8(TOO_BIG);
                bytes.put_u32(mtu);
            }
        }
        bytes.freeze()
    }

    /// Reads it; `None` when it says something that this build does not know.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        match bytes.try_get_u8().ok()? {
            TOO_BIG => Some(Self::TooBig { mtu: bytes.try_get_u32().ok()? }),
            code => failure(code).map(Self::Unreachable),
        }
    }
}

/// The bytes that say why the echo request `sequence` did not arrive.
pub(crate) fn encode_echo(sequence: u16, why: DialFailure) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(code(why));
    bytes.put_u16(sequence);
    bytes.freeze()
}

/// Reads what [`encode_echo`] wrote.
pub(crate) fn decode_echo(mut bytes: Bytes) -> Option<(u16, DialFailure)> {
    let why = failure(bytes.try_get_u8().ok()?)?;
    Some((bytes.try_get_u16().ok()?, why))
}

fn code(why: DialFailure) -> u8 {
    FAILURES.iter().find(|(_, failure)| *failure == why).map_or(0, |(code, _)| *code)
}

fn failure(code: u8) -> Option<DialFailure> {
    FAILURES.iter().find(|(known, _)| *known == code).map(|(_, failure)| *failure)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_report_survives_the_way() {
        for (_, why) in FAILURES {
            assert_eq!(Report::decode(Report::Unreachable(why).encode()), Some(Report::Unreachable(why)));
            assert_eq!(decode_echo(encode_echo(0xabcd, why)), Some((0xabcd, why)));
        }
        let too_big = Report::TooBig { mtu: 1280 };
        assert_eq!(Report::decode(too_big.encode()), Some(too_big));
    }

    proptest! {
        #[test]
        fn foreign_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
            let _ = Report::decode(bytes.clone().into());
            let _ = decode_echo(bytes.into());
        }
    }
}
