//! Where in a range the virtual address of a real one should be.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Vnat, address, number};
use crate::{cidr, subnets::ranges};

/// Places tried at random before the next free one is taken: nearly all searches end before, and no search is long.
const TRIES: u64 = 32;

/// The addresses of one range that can be given out, and how many are.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    range: IpNet,
    /// First number and length of each part, sorted.
    parts: Vec<(u128, u128)>,
    total: u128,
    capacity: usize,
    used: usize,
}

impl Pool {
    pub(super) fn new(range: IpNet) -> Self {
        let ends = [range.network().into(), range.broadcast().into()];
        let parts: Vec<(u128, u128)> = cidr::difference(&ranges::usable(range), &ends)
            .iter()
            .map(|net| (number(net.network()), number(net.broadcast()) - number(net.network()) + 1))
            .collect();
        let total = parts.iter().map(|(_, length)| length).sum();
        let capacity = usize::try_from(total).map_or(Vnat::MAX_ADDRESSES, |total| total.min(Vnat::MAX_ADDRESSES));
        Self { range, parts, total, capacity, used: 0 }
    }

    pub(super) fn range(&self) -> IpNet {
        self.range
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn is_full(&self) -> bool {
        self.used >= self.capacity
    }

    pub(super) fn take(&mut self) {
        self.used += 1;
    }

    pub(super) fn put_back(&mut self) {
        self.used -= 1;
    }

    /// Whether the address could be given out.
    pub(super) fn holds(&self, ip: IpAddr) -> bool {
        let at = number(ip);
        self.range.contains(&ip) && self.parts.iter().any(|(first, length)| (*first..first + length).contains(&at))
    }

    /// The free address for `real`. There must be one.
    pub(super) fn find(&self, seed: u64, real: IpAddr, is_free: impl Fn(IpAddr) -> bool) -> IpAddr {
        let start = hash(seed, &number(real).to_be_bytes());
        let place = |attempt: u64| u128::from(mix(start.wrapping_add(attempt))) % self.total;
        let random = (0..TRIES).map(place);
        let last = place(TRIES);
        // As many as are taken, and one.
        let next = (0..=self.used as u128).map(|step| (last + step) % self.total);
        let mut places = random.chain(next).map(|place| self.nth(place));
        places.find(|ip| is_free(*ip)).unwrap_or_else(|| self.nth(last))
    }

    fn nth(&self, mut place: u128) -> IpAddr {
        for (first, length) in &self.parts {
            if place < *length {
                return address(first + place, self.range);
            }
            place -= length;
        }
        self.range.network()
    }
}

/// FNV-1a, then mixed. Written out because stored addresses and other releases depend on it: it must never change.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, fold))
}

/// The finalizer of SplitMix64: a bijection under which near numbers lie far apart.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
