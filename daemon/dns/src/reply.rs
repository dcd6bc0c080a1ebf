//! Answers to the client: the cluster's records under the name that was asked.
//!
//! Pure: bytes and parsed messages in, bytes out.

use std::time::Duration;

use hickory_proto::{
    ProtoError,
    op::{Edns, LowerQuery, Message, MessageType, Metadata, ResponseCode, emit_message_parts},
    rr::{Name, RData, Record},
    serialize::binary::BinEncoder,
};
use hickory_server::server::Request;
use tpx_core::{
    dns::{Header, Question},
    vnat::Exhausted,
};

use crate::translate::Translation;

/// The largest datagram a client gets, however much it offers; more goes over TCP.
const MAX_UDP_REPLY: u16 = 4096;
/// The payload size we offer (RFC 6891, 6.2.3; the size that crosses every network unfragmented).
const OUR_PAYLOAD: u16 = 1232;
/// Bytes of an OPT record without options: root name, type, class, TTL, length.
const OPT_LEN: u16 = 11;

/// How the client is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In datagrams: answers that are too long are cut.
    Udp,
    /// Over a connection, without the two bytes of length.
    Tcp,
}

/// Why an answer cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error(transparent)]
    Unwritable(#[from] ProtoError),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// What the cluster said, ready to be given to whoever asks.
pub(crate) struct Found<'a> {
    pub(crate) message: &'a Message,
    /// The name that was asked in the cluster; its records are given under the name that the client asked.
    pub(crate) asked: &'a Name,
    /// How long the message has been kept.
    pub(crate) age: Duration,
}

/// An answer of no records.
pub(crate) fn refusal(request: &Request, code: ResponseCode) -> Vec<u8> {
    let mut metadata = metadata(request);
    metadata.response_code = code;
    match encode(request, metadata, [&[], &[], &[]], our_edns(request).as_ref(), u16::MAX) {
        Ok((bytes, _)) => bytes,
        Err(_) => refusal_of_bytes(request.as_slice(), code),
    }
}

/// An answer of no records to a message of which no more is understood than header and question, and perhaps not even
/// the question. The question is given back where it can be: resolver libraries wait on for answers without it.
pub(crate) fn refusal_of_bytes(message: &[u8], code: ResponseCode) -> Vec<u8> {
    let Some(header) = message.first_chunk::<{ Header::LEN }>() else { return Vec::new() };
    let mut reply = vec![0; Header::LEN];
    reply[..2].copy_from_slice(&header[..2]);
    // QR, the client's opcode and RD; RA.
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = 0x80 | code.low();
    if let Ok(question) = Question::parse(message) {
        reply[5] = 1;
        reply.extend_from_slice(&message[Header::LEN..][..question.wire_len()]);
    }
    reply
}

/// The cluster's answer for this client: its id, its question byte for byte, records under the name it asked, as many
/// as it can take, each address as the laptop reaches it.
pub(crate) fn answer(
    request: &Request,
    found: &Found<'_>,
    transport: Transport,
    translation: &mut Translation<'_>,
) -> Result<Vec<u8>, AnswerError> {
    let mut metadata = metadata(request);
    metadata.response_code = found.message.metadata.response_code;
    metadata.truncation = found.message.metadata.truncation;
    let asked_here = request.queries.queries().first().map(|query| query.original().name());
    let age = u32::try_from(found.age.as_secs()).unwrap_or(u32::MAX);
    let mut adapt = |record: &Record| {
        let mut record = record.clone();
        record.decrement_ttl(age);
        if let Some(name) = asked_here.filter(|_| record.name == *found.asked) {
            record.name = name.clone();
        }
        translation.record(&mut record.data)?;
        Ok::<_, Exhausted>(record)
    };
    let answers = found.message.answers.iter().map(&mut adapt).collect::<Result<Vec<_>, _>>()?;
    let authorities = found.message.authorities.iter().map(&mut adapt).collect::<Result<Vec<_>, _>>()?;
    let additionals = found.message.additionals.iter().map(&mut adapt).collect::<Result<Vec<_>, _>>()?;
    let limit = match transport {
        Transport::Tcp => u16::MAX,
        Transport::Udp => request.max_payload().min(MAX_UDP_REPLY),
    };
    let edns = our_edns(request);
    // Additional records are a courtesy and go first; answers that do not fit make it a truncated message (RFC 2181, 9).
    for additionals in [additionals.as_slice(), &[]] {
        let (bytes, _) = encode(request, metadata, [&answers, &authorities, additionals], edns.as_ref(), u16::MAX)?;
        if bytes.len() <= usize::from(limit) {
            return Ok(bytes);
        }
    }
    let (_, fitting) = encode(request, metadata, [&answers, &[], &[]], None, limit - OPT_LEN)?;
    metadata.truncation = true;
    let (bytes, _) = encode(request, metadata, [&answers[..fitting], &[], &[]], edns.as_ref(), limit)?;
    Ok(bytes)
}

/// The message in at most `limit` bytes, and how many of the answers are in it.
fn encode(
    request: &Request,
    metadata: Metadata,
    [answers, authorities, additionals]: [&[Record]; 3],
    edns: Option<&Edns>,
    limit: u16,
) -> Result<(Vec<u8>, usize), ProtoError> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    // Not by `MessageResponseBuilder`: it copies the question's bytes past the encoder, and no later name can then be
    // compressed against the question's, although nearly every record has that very name.
    let mut questions = request.queries.queries().iter().map(LowerQuery::original);
    let header = emit_message_parts(
        &metadata,
        &mut questions,
        &mut answers.iter(),
        &mut authorities.iter(),
        &mut additionals.iter(),
        edns,
        None,
        &mut encoder,
    )?;
    Ok((bytes, usize::from(header.counts.answers)))
}

fn metadata(request: &Request) -> Metadata {
    // Keeps id, opcode, RD and CD. Not authoritative: the names are the cluster's, and we only pass them on.
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.message_type = MessageType::Response;
    metadata.recursion_available = true;
    metadata.authoritative = false;
    metadata.authentic_data = false;
    metadata
}

/// An OPT record for a client that sent one (RFC 6891, 7), without options.
fn our_edns(request: &Request) -> Option<Edns> {
    request.edns.as_ref().map(|theirs| {
        let mut edns = Edns::new();
        edns.set_max_payload(OUR_PAYLOAD).set_version(0).set_dnssec_ok(theirs.flags().dnssec_ok);
        edns
    })
}

/// How long an answer may be kept: the shortest life among its records; for one without answers what its SOA says
/// (RFC 2308, 5), and nothing where there is none.
pub(crate) fn life(message: &Message) -> Duration {
    let records = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    let shortest = records.map(|record| record.ttl).min().unwrap_or(0);
    let negative = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum),
        _ => None,
    });
    let seconds = match message.metadata.response_code {
        _ if message.metadata.truncation => 0,
        ResponseCode::NoError if !message.answers.is_empty() => shortest,
        ResponseCode::NoError | ResponseCode::NXDomain => negative.map_or(0, |minimum| minimum.min(shortest)),
        _ => 0,
    };
    Duration::from_secs(seconds.into())
}
