//! Answers in the bytes they were given in, for the same question in the same bytes.
//!
//! Most questions are asked again and again, letter for letter. Such a one is answered here without taking it apart: only
//! the identifier and the lifetimes are written anew. An answer is used as long as everything that it came from still
//! holds: the policy, each address it was translated with, and its shortest lifetime.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tpx_core::dns::{Cache, Header, PolicyConfig};

use crate::translate::Translate;

/// Longer questions are not kept; a plain one is at most 271 bytes.
const MAX_QUERY: usize = 512;
/// Answers with more addresses are not kept: each is checked at every use.
const MAX_ADDRESSES: usize = 32;
/// The type of EDNS's pseudo-record, which has no lifetime.
const OPT: u16 = 41;

/// What an answer came from.
pub(crate) struct Origin {
    pub(crate) policy: Arc<PolicyConfig>,
    /// How old the cluster's answer was; lifetimes are already shorter by its whole seconds.
    pub(crate) age: Duration,
    /// Real addresses and what they were given as.
    pub(crate) given: Vec<(IpAddr, IpAddr)>,
    /// The virtual address whose reverse name was asked, and what was behind it.
    pub(crate) reverse: Option<(IpAddr, IpAddr)>,
}

struct Kept {
    reply: Vec<u8>,
    /// Where lifetimes stand, and what they were.
    lifetimes: Vec<(usize, u32)>,
    origin: Origin,
}

/// The answers kept. Keys are questions without their identifier.
pub(crate) struct Quick(Mutex<Cache<Vec<u8>, Arc<Kept>>>);

impl Quick {
    pub(crate) fn new(entries: usize) -> Self {
        Self(Mutex::new(Cache::new(entries)))
    }

    /// The answer to a question that was asked before, if it still holds.
    pub(crate) fn reply(
        &self,
        query: &[u8],
        policy: &Arc<PolicyConfig>,
        translate: &dyn Translate,
        now: Duration,
    ) -> Option<Vec<u8>> {
        if query.len() > MAX_QUERY {
            return None;
        }
        let (id, key) = query.split_at_checked(2)?;
        let (kept, age) = self.cache().get(key, now)?;
        let Origin { policy: then, age: before, given, reverse } = &kept.origin;
        let holds = Arc::ptr_eq(then, policy)
            && given.iter().all(|(real, given)| translate.virtual_for(*real).is_ok_and(|now| now == *given))
            && reverse.is_none_or(|(address, real)| translate.real_for(address) == Some(real));
        if !holds {
            return None;
        }
        let mut reply = kept.reply.clone();
        reply[..2].copy_from_slice(id);
        let age = age + Duration::from_nanos(before.subsec_nanos().into());
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for (at, lifetime) in &kept.lifetimes {
            reply[*at..at + 4].copy_from_slice(&lifetime.saturating_sub(age).to_be_bytes());
        }
        Some(reply)
    }

    /// Keeps an answer for `life` from `now`.
    pub(crate) fn keep(&self, query: &[u8], reply: &[u8], origin: Origin, life: Duration, now: Duration) {
        let Some(key) = query.get(2..).filter(|_| query.len() <= MAX_QUERY) else { return };
        if origin.given.len() > MAX_ADDRESSES {
            return;
        }
        let Some(lifetimes) = lifetimes(reply) else { return };
        self.cache().insert(key.to_vec(), Arc::new(Kept { reply: reply.to_vec(), lifetimes, origin }), life, now);
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache<Vec<u8>, Arc<Kept>>> {
        // A panic inside cannot leave an entry half written that a reader would misread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the lifetimes of a message's records stand, and what they are. `None` for what cannot be read to its end.
fn lifetimes(message: &[u8]) -> Option<Vec<(usize, u32)>> {
    let number = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let mut at = Header::LEN;
    for _ in 0..number(4)? {
        at = after_name(message, at)? + 4;
    }
    let records = usize::from(number(6)?) + usize::from(number(8)?) + usize::from(number(10)?);
    let mut lifetimes = Vec::with_capacity(records);
    for _ in 0..records {
        at = after_name(message, at)?;
        if number(at)? != OPT {
            lifetimes.push((at + 4, u32::from_be_bytes(*message.get(at + 4..)?.first_chunk()?)));
        }
        at += 10 + usize::from(number(at + 8)?);
    }
    (at == message.len()).then_some(lifetimes)
}

/// Where a name ends: behind its root label, or behind a pointer (RFC 1035, 4.1.4).
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192..=255 => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Edns, Message, OpCode, Query},
        rr::{Name, RData, Record, RecordType, rdata::A},
    };
    use proptest::prelude::*;

    use super::*;

    fn message(ttls: &[u32], edns: bool) -> Vec<u8> {
        let name = Name::from_ascii("web-app.emojivoto.").unwrap();
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        let record = |ttl| Record::from_rdata(name.clone(), ttl, RData::A(A::new(10, 96, 0, 1)));
        let mut records: Vec<Record> = ttls.iter().copied().map(record).collect();
        message.additionals = records.split_off(records.len() / 2);
        message.answers = records;
        message.edns = edns.then(Edns::new);
        message.to_vec().unwrap()
    }

    proptest! {
        #[test]
        fn every_lifetime_is_found(ttls in proptest::collection::vec(any::<u32>(), 0..6), edns: bool) {
            let bytes = message(&ttls, edns);
            let found = lifetimes(&bytes).unwrap();
            prop_assert_eq!(found.iter().map(|(_, ttl)| *ttl).collect::<Vec<_>>(), ttls);
            prop_assert_eq!(lifetimes(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), good: bool) {
            if good {
                bytes = [message(&[1, 2], true), bytes].concat();
            }
            let _ = lifetimes(&bytes);
        }
    }
}
