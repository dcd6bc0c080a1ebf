//! The first bytes of a DNS message: header and question, nothing more.
//!
//! Questions for the original servers are handed on byte for byte, so nothing behind the question may have to be
//! understood, and an extension this program never heard of must pass. What the cluster answers is parsed in full
//! elsewhere.

use super::Name;

/// A record or question type by its number (the IANA registry "Resource Record (RR) TYPEs").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u16);

impl RecordType {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// A delegation.
    pub const NS: Self = Self(2);
    /// The start of a zone.
    pub const SOA: Self = Self(6);
    /// A name for an address.
    pub const PTR: Self = Self(12);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// A service's host and port (RFC 2782).
    pub const SRV: Self = Self(33);
    /// Every type at once.
    pub const ANY: Self = Self(255);

    /// Whether the type describes the tree itself (delegation and DNSSEC) and not a host: what a validating resolver
    /// asks about top-level domains.
    pub fn is_infrastructure(self) -> bool {
        // NS, SOA, DS, RRSIG, NSEC, DNSKEY, NSEC3, NSEC3PARAM, CDS, CDNSKEY, CSYNC
        matches!(self.0, 2 | 6 | 43 | 46 | 47 | 48 | 50 | 51 | 59 | 60 | 62)
    }
}

/// The operation codes that make a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A standard query.
    Query,
    /// Anything else (NOTIFY, UPDATE, ...), by its number.
    Other(u8),
}

/// The fixed header's facts (RFC 1035, 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The identifier that question and answer share.
    pub id: u16,
    /// QR: an answer, not a question.
    pub is_response: bool,
    /// What is asked for.
    pub opcode: Opcode,
    /// TC: only a part of the answer; the whole of it can be had over TCP.
    pub is_truncated: bool,
    /// RCODE of an answer, without EDNS's upper bits.
    pub response_code: u8,
    /// QDCOUNT.
    pub questions: u16,
}

impl Header {
    /// Bytes of the fixed header.
    pub const LEN: usize = 12;

    /// Reads the header; `None` when the message is shorter than one.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let header = message.first_chunk::<{ Self::LEN }>()?;
        let opcode = match (header[2] >> 3) & 0x0f {
            0 => Opcode::Query,
            other => Opcode::Other(other),
        };
        Some(Self {
            id: u16::from_be_bytes([header[0], header[1]]),
            is_response: header[2] & 0x80 != 0,
            opcode,
            is_truncated: header[2] & 0x02 != 0,
            response_code: header[3] & 0x0f,
            questions: u16::from_be_bytes([header[4], header[5]]),
        })
    }
}

/// The one question of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// What is asked about.
    pub name: Name,
    /// What is asked for.
    pub record_type: RecordType,
    /// The class; 1 is the internet.
    pub class: u16,
}

/// Why a message's question cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Cut off, or a label's length makes no sense. Compression in a question counts: there is nothing to point at.
    #[error("the message is malformed")]
    Malformed,
    /// None, or more than one; nobody serves that (RFC 9619).
    #[error("the message holds {0} questions, not one")]
    Count(u16),
}

impl Question {
    /// A question in the internet class.
    pub fn new(name: Name, record_type: RecordType) -> Self {
        Self { name, record_type, class: 1 }
    }

    /// Bytes of the question in a message; one that [`Question::parse`] read stands right behind the header.
    pub fn wire_len(&self) -> usize {
        self.name.to_wire().len() + 4
    }

    /// Reads the question of a message.
    ///
    /// # Errors
    /// The message is cut off or malformed up to the question's end, or has not exactly one.
    pub fn parse(message: &[u8]) -> Result<Self, QuestionError> {
        let header = Header::parse(message).ok_or(QuestionError::Malformed)?;
        if header.questions != 1 {
            return Err(QuestionError::Count(header.questions));
        }
        let mut rest = &message[Header::LEN..];
        let mut labels = Vec::new();
        loop {
            let (&length, tail) = rest.split_first().ok_or(QuestionError::Malformed)?;
            if length == 0 {
                rest = tail;
                break;
            }
            // 0xc0 and its neighbours (pointers, extended labels) are larger than any length.
            let (label, tail) =
                tail.split_at_checked(usize::from(length)).filter(|_| length < 64).ok_or(QuestionError::Malformed)?;
            labels.push(label);
            rest = tail;
        }
        let name = Name::from_labels(labels).map_err(|_| QuestionError::Malformed)?;
        let fixed = rest.first_chunk::<4>().ok_or(QuestionError::Malformed)?;
        Ok(Self {
            name,
            record_type: RecordType(u16::from_be_bytes([fixed[0], fixed[1]])),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(questions: u16, body: &[u8]) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 0x01, 0x00];
        message.extend(questions.to_be_bytes());
        message.extend([0; 6]);
        message.extend(body);
        message
    }

    #[test]
    fn a_plain_question_is_read() {
        let message = query(1, b"\x03WeB\x02ns\x00\x00\x1c\x00\x01trailing extensions");
        let question = Question::parse(&message).unwrap();
        assert_eq!(question, Question::new("web.ns".parse().unwrap(), RecordType::AAAA));
        let header = Header::parse(&message).unwrap();
        assert_eq!((header.id, header.is_response, header.opcode), (0x1234, false, Opcode::Query));
    }

    #[test]
    fn what_is_not_one_question_is_named() {
        let cases: [(&[u8], QuestionError); 8] = [
            (b"", QuestionError::Malformed),
            (&[0; 11], QuestionError::Malformed),
            (&query(0, b""), QuestionError::Count(0)),
            (&query(2, b"\x01a\x00\x00\x01\x00\x01\x01b\x00\x00\x01\x00\x01"), QuestionError::Count(2)),
            (&query(1, b"\x03we"), QuestionError::Malformed),
            (&query(1, b"\x01a\x00\x00\x01\x00"), QuestionError::Malformed),
            (&query(1, b"\xc0\x0c\x00\x01\x00\x01"), QuestionError::Malformed),
            (&query(1, &[[63; 64]; 5].concat()), QuestionError::Malformed),
        ];
        for (message, expected) in cases {
            assert_eq!(Question::parse(message), Err(expected), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Header::parse(&bytes);
            let _ = Question::parse(&bytes);
        }

        #[test]
        fn names_survive_the_wire(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8)) {
            let name = Name::from_labels(&labels).unwrap();
            let mut body = name.to_wire();
            body.extend([0, 33, 0, 1]);
            prop_assert_eq!(Question::parse(&query(1, &body)), Ok(Question::new(name, RecordType::SRV)));
        }
    }
}
