//! Putting fragments together (RFC 791 3.2, RFC 8200 4.5). Overlaps end a packet, as RFC 5722 wants for IPv6.
//!
//! Bounded in memory and time; when it is full, the oldest packet makes room.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{View, finish_ipv4};

/// How long parts wait for the others (RFC 8200 says a minute; nothing here is that slow).
const PATIENCE: Duration = Duration::from_secs(15);
/// Most packets that are incomplete.
const PACKETS: usize = 64;
/// Most bytes that wait.
const BYTES: usize = 4 << 20;
/// Most bytes of a packet after its IP header.
const MOST: usize = 65_535;

/// What the fragments of one packet have in common.
type Key = (IpAddr, IpAddr, u8, u32);

/// Packets that are incomplete.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    parts: BTreeMap<Key, Parts>,
    bytes: usize,
}

#[derive(Debug)]
struct Parts {
    since: Duration,
    /// The first fragment's IP header, without IPv6 extension headers.
    head: Option<Vec<u8>>,
    bodies: BTreeMap<usize, Vec<u8>>,
    held: usize,
    end: Option<usize>,
    /// Something overlapped: the rest is swallowed.
    spoilt: bool,
}

impl Reassembly {
    /// Takes a fragment; returns the whole packet when it was the last that was missing.
    pub(crate) fn handle_fragment(&mut self, now: Duration, view: &View<'_>) -> Option<Vec<u8>> {
        let fragment = view.fragment?;
        self.expire(now);
        // RFC 8200 names packets by addresses and identification alone; RFC 791 by the protocol too.
        let protocol = if view.source.is_ipv4() { view.protocol } else { 0 };
        let key = (view.source, view.destination, protocol, fragment.identification);
        if !self.parts.contains_key(&key) {
            self.make_room(view.body().len());
        }
        let parts = self.parts.entry(key).or_insert_with(|| Parts {
            since: now,
            head: None,
            bodies: BTreeMap::new(),
            held: 0,
            end: None,
            spoilt: false,
        });
        let before = parts.held;
        parts.add(view, fragment.offset, fragment.more);
        self.bytes = self.bytes + parts.held - before;
        if !parts.is_complete() {
            return None;
        }
        let parts = self.parts.remove(&key)?;
        self.bytes -= parts.held;
        parts.join()
    }

    fn expire(&mut self, now: Duration) {
        self.parts.retain(|_, parts| {
            let keep = now.saturating_sub(parts.since) < PATIENCE;
            self.bytes -= if keep { 0 } else { parts.held };
            keep
        });
    }

    fn make_room(&mut self, more: usize) {
        while self.parts.len() >= PACKETS || self.bytes + more > BYTES {
            let Some(oldest) = self.parts.iter().min_by_key(|(_, p)| p.since).map(|(key, _)| *key) else {
                return;
            };
            if let Some(gone) = self.parts.remove(&oldest) {
                self.bytes -= gone.held;
            }
        }
    }
}

impl Parts {
    fn add(&mut self, view: &View<'_>, offset: usize, more: bool) {
        let body = view.body();
        let end = offset + body.len();
        // Only the last part may have an odd length, and none may be empty.
        let fits = !body.is_empty() && end <= MOST && (!more || body.len().is_multiple_of(8));
        let known_end = self.end.is_some_and(|known| if more { end > known } else { end != known });
        let last = self.bodies.last_key_value().map_or(0, |(at, b)| at + b.len());
        if self.spoilt || !fits || known_end || (!more && last > end) {
            return self.spoil();
        }
        if self.bodies.get(&offset).is_some_and(|known| known.as_slice() == body) {
            return; // a duplicate
        }
        let before = self.bodies.range(..=offset).next_back().map_or(0, |(at, b)| at + b.len());
        let after = self.bodies.range(offset..).next().map_or(usize::MAX, |(at, _)| *at);
        if before > offset || after < end {
            return self.spoil();
        }
        if offset == 0 {
            let mut head = view.packet[..if view.source.is_ipv4() { view.at } else { 40 }].to_vec();
            if view.source.is_ipv6() {
                head[6] = view.protocol;
            }
            self.head = Some(head);
        }
        if !more {
            self.end = Some(end);
        }
        self.held += body.len();
        self.bodies.insert(offset, body.to_vec());
    }

    fn spoil(&mut self) {
        self.spoilt = true;
        self.bodies.clear();
        self.held = 0;
    }

    fn is_complete(&self) -> bool {
        !self.spoilt && self.head.is_some() && self.end == Some(self.held)
    }

    fn join(self) -> Option<Vec<u8>> {
        let mut packet = self.head?;
        let at = packet.len();
        packet.extend(self.bodies.into_values().flatten());
        // An IPv4 packet with options can have come out longer than a packet can be.
        let total = u16::try_from(packet.len() - if packet[0] >> 4 == 4 { 0 } else { 40 }).ok()?;
        if packet[0] >> 4 == 4 {
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[6..8].fill(0);
            finish_ipv4(&mut packet[..at]);
        } else {
            packet[4..6].copy_from_slice(&total.to_be_bytes());
        }
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{check::assert_sound, datagram, fragments},
        *,
    };

    fn whole(v4: bool, payload: &[u8]) -> Vec<u8> {
        let (a, b) = if v4 { ("198.18.7.1:9", "10.96.0.10:53") } else { ("[fd00::1]:9", "[fd96::a]:53") };
        datagram(a.parse().unwrap(), b.parse().unwrap(), payload).unwrap()
    }

    fn feed(all: &mut Reassembly, now: Duration, packet: &[u8]) -> Option<Vec<u8>> {
        all.handle_fragment(now, &View::parse(packet).unwrap())
    }

    proptest! {
        #[test]
        fn fragments_come_together_in_any_order(
            v4: bool,
            payload in prop::collection::vec(any::<u8>(), 2000..20_000),
            mtu in 576usize..1600,
            order in any::<prop::sample::Index>(),
            seed: u64,
            twice: bool,
        ) {
            let packet = whole(v4, &payload);
            let mut parts = fragments(packet.clone(), mtu, 5);
            prop_assert!(parts.iter().all(|p| p.len() <= mtu));
            let count = parts.len();
            parts.rotate_left(order.index(count));
            // A shuffle that proptest can shrink.
            let mut state = seed;
            for i in (1..count).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                parts.swap(i, (state >> 33) as usize % (i + 1));
            }
            let mut all = Reassembly::default();
            let mut got = None;
            for (i, part) in parts.iter().enumerate() {
                let done = feed(&mut all, Duration::ZERO, part);
                if twice && i + 1 < count {
                    prop_assert!(feed(&mut all, Duration::ZERO, part).is_none());
                }
                prop_assert_eq!(done.is_some(), i + 1 == count);
                got = got.or(done);
            }
            let got = got.unwrap();
            assert_sound(&got);
            let at = if v4 { 20 } else { 40 };
            prop_assert_eq!(&got[at..], &packet[at..]);
            prop_assert_eq!((all.bytes, all.parts.len()), (0, 0));
        }
    }

    #[test]
    fn the_largest_datagram_goes_through() {
        for v4 in [true, false] {
            let packet = whole(v4, &[9; super::super::UDP_MAX]);
            let mut all = Reassembly::default();
            let done: Vec<_> =
                fragments(packet, 1500, 1).iter().filter_map(|p| feed(&mut all, Duration::ZERO, p)).collect();
            assert_eq!(done.len(), 1);
            assert_sound(&done[0]);
        }
    }

    #[test]
    fn an_overlap_spoils_the_packet() {
        for v4 in [true, false] {
            let parts = fragments(whole(v4, &[1; 3000]), 1280, 5);
            let mut other = fragments(whole(v4, &[2; 3000]), 1000, 5);
            let mut all = Reassembly::default();
            assert!(feed(&mut all, Duration::ZERO, &parts[0]).is_none());
            assert!(feed(&mut all, Duration::ZERO, &other.remove(1)).is_none());
            assert!(parts[1..].iter().all(|p| feed(&mut all, Duration::ZERO, p).is_none()));
            assert_eq!(all.bytes, 0);
        }
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let mut all = Reassembly::default();
        for id in 0..10_000u32 {
            let part = fragments(whole(false, &[1; 60_000]), 50_000, id).remove(0);
            assert!(feed(&mut all, Duration::from_millis(id.into()), &part).is_none());
            assert!(all.bytes <= BYTES && all.parts.len() <= PACKETS);
        }
        let last = fragments(whole(false, &[1; 3000]), 1280, 1_000_000);
        feed(&mut all, Duration::from_secs(60), &last[0]);
        assert_eq!(all.parts.len(), 1);
    }
}
