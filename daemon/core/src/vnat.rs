//! Virtual addresses for cluster addresses that the host has another use for: one to one, given out on demand.
//!
//! An address should get the same virtual one whenever the laptop joins the same cluster, because programs and people
//! keep addresses. Two things see to that. The search for a free address begins at a place that follows from the cluster
//! and the real address alone, so that nearly every address comes back without anything having been stored. Where two
//! want the same place the first to come gets it; [`Vnat::export`] and [`Vnat::import`] carry that over as data.
//! Imported addresses that nobody has asked for since are the ones that make room when a range is full.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

mod pool;
mod text;

use pool::Pool;
pub use text::translate_text;

/// A one-to-one relation between real and virtual addresses. Look-ups take constant time.
#[derive(Debug, Clone)]
pub struct Vnat {
    seed: u64,
    four: Pool,
    six: Pool,
    by_real: HashMap<IpAddr, Given>,
    by_virtual: HashMap<IpAddr, IpAddr>,
    /// Imported real addresses by family, some of which have been asked for since.
    imported: [VecDeque<IpAddr>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Given {
    address: IpAddr,
    /// Whether it was asked for since this object was made.
    used: bool,
}

/// A virtual address that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The virtual address.
    pub address: IpAddr,
    /// Whether this is the first time that it is given out by this object: the datapath does not know it yet.
    pub fresh: bool,
    /// The real address that had it before and has lost it. Never one that was asked for since the object was made.
    pub evicted: Option<IpAddr>,
}

/// A range is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    /// The range.
    pub range: IpNet,
    /// How many virtual addresses it gives.
    pub capacity: usize,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, capacity } = self;
        write!(f, "all {capacity} virtual addresses of {range} are in use: ")?;
        if *capacity >= Vnat::MAX_ADDRESSES {
            f.write_str("there are never more; move fewer subnets (--vnat, --allow-conflicting-subnets)")
        } else {
            f.write_str("set routing.virtualSubnet to a wider subnet")
        }
    }
}

impl std::error::Error for Exhausted {}

impl Vnat {
    /// Bound on the virtual addresses of one family, however wide its range; the kernel's maps have as much room.
    pub const MAX_ADDRESSES: usize = 65_536;

    /// No address is given out yet. `cluster` is what tells this cluster from others, the same at every connection.
    ///
    /// Virtual addresses come from the two ranges without their first and last address and without tpx's own block. A
    /// range that is too narrow for any is full from the beginning; [`crate::subnets::decide`] lets none such pass.
    #[must_use]
    pub fn new(cluster: &str, virtual4: Ipv4Net, virtual6: Ipv6Net) -> Self {
        Self {
            seed: pool::hash(0, cluster.as_bytes()),
            four: Pool::new(virtual4.into()),
            six: Pool::new(virtual6.into()),
            by_real: HashMap::new(),
            by_virtual: HashMap::new(),
            imported: Default::default(),
        }
    }

    /// The virtual address of `real`, given out now if it has none. IPv4-mapped addresses count as IPv4.
    ///
    /// # Errors
    /// The range is full.
    pub fn allocate(&mut self, real: IpAddr) -> Result<Allocation, Exhausted> {
        let real = real.to_canonical();
        if let Some(given) = self.by_real.get_mut(&real) {
            let fresh = !std::mem::replace(&mut given.used, true);
            return Ok(Allocation { address: given.address, fresh, evicted: None });
        }
        let pool = if real.is_ipv4() { &self.four } else { &self.six };
        let (address, evicted) = if pool.is_full() {
            let full = Exhausted { range: pool.range(), capacity: pool.capacity() };
            let (evicted, address) = self.evict(real.is_ipv4()).ok_or(full)?;
            (address, Some(evicted))
        } else {
            (pool.find(self.seed, real, |address| !self.by_virtual.contains_key(&address)), None)
        };
        self.give(real, address, true);
        Ok(Allocation { address, fresh: true, evicted })
    }

    /// The virtual address of `real`, if it has one.
    #[must_use]
    pub fn virtual_for(&self, real: IpAddr) -> Option<IpAddr> {
        self.by_real.get(&real.to_canonical()).map(|given| given.address)
    }

    /// The real address behind a virtual one, if it was given out.
    #[must_use]
    pub fn real_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.by_virtual.get(&address.to_canonical()).copied()
    }

    /// Whether `address` lies in one of the ranges, given out or not.
    #[must_use]
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.four.holds(address) || self.six.holds(address)
    }

    /// How many virtual addresses are given out, imported ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_real.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_real.is_empty()
    }

    /// Every real address and its virtual one, sorted.
    #[must_use]
    pub fn export(&self) -> Vec<(IpAddr, IpAddr)> {
        #[expect(clippy::disallowed_methods, reason = "sorted right after")]
        let mut pairs: Vec<_> = self.by_real.iter().map(|(real, given)| (*real, given.address)).collect();
        pairs.sort_unstable();
        pairs
    }

    /// Takes over what an earlier connection to the same cluster has given out. What does not fit (another range,
    /// an address that is taken) is left out.
    pub fn import(&mut self, pairs: impl IntoIterator<Item = (IpAddr, IpAddr)>) {
        for (real, address) in pairs {
            let (real, address) = (real.to_canonical(), address.to_canonical());
            let pool = if real.is_ipv4() { &self.four } else { &self.six };
            let free = !self.by_real.contains_key(&real) && !self.by_virtual.contains_key(&address);
            if free && pool.holds(address) && !pool.is_full() {
                self.give(real, address, false);
                self.imported[usize::from(real.is_ipv4())].push_back(real);
            }
        }
    }

    fn give(&mut self, real: IpAddr, address: IpAddr, used: bool) {
        self.by_real.insert(real, Given { address, used });
        self.by_virtual.insert(address, real);
        if real.is_ipv4() { self.four.take() } else { self.six.take() }
    }

    /// Takes an imported pair of the family back that nobody has asked for.
    fn evict(&mut self, four: bool) -> Option<(IpAddr, IpAddr)> {
        let queue = &mut self.imported[usize::from(four)];
        let real = loop {
            let real = queue.pop_front()?;
            if self.by_real.get(&real).is_some_and(|given| !given.used) {
                break real;
            }
        };
        let address = self.by_real.remove(&real)?.address;
        self.by_virtual.remove(&address);
        if four {
            self.four.put_back()
        } else {
            self.six.put_back()
        }
        Some((real, address))
    }
}

/// The address as a number.
fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(four) => u128::from(u32::from(four)),
        IpAddr::V6(six) => six.into(),
    }
}

/// The reverse of [`number`]; `like` says which family.
fn address(number: u128, like: IpNet) -> IpAddr {
    match like {
        IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests;
