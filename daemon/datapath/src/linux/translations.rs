//! Virtual addresses in the kernel's maps, so that `connect()` finds the addresses behind them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::maps::{HashMap, Map, MapData, MapError};

use super::ExpressFiles;

/// Why an address cannot be translated by the kernel. The user daemon can still do it: a virtual address that the kernel
/// does not know arrives as the destination of a [`Knock`](crate::Knock).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranslationError {
    /// No room for another one.
    #[error("the kernel's map of virtual addresses is full ({} entries)", tpx_ebpf_abi::maps::VIRTUAL_MAX)]
    Full,
    /// A socket of one family cannot be connected to an address of the other.
    #[error("{virtual_ip} and {real} are of different families")]
    Families {
        /// The virtual address.
        virtual_ip: IpAddr,
        /// The one behind it.
        real: IpAddr,
    },
    /// The kernel said no.
    #[error("the kernel's map of virtual addresses: {0}")]
    System(io::Error),
}

/// The kernel's side of VNAT. Needs no privilege (kernel 5.19).
pub struct Translations {
    four: Mutex<Pair<[u8; 4]>>,
    six: Mutex<Pair<[u8; 16]>>,
}

/// Both directions.
struct Pair<K: aya::Pod> {
    behind: HashMap<MapData, K, K>,
    before: HashMap<MapData, K, K>,
}

impl Translations {
    /// Works on copies of the map files.
    ///
    /// # Errors
    /// When a file is no such map, or no file can be opened any more.
    pub fn of(files: &ExpressFiles) -> io::Result<Self> {
        Ok(Self {
            four: Mutex::new(Pair { behind: open(&files.virtual4)?, before: open(&files.real4)? }),
            six: Mutex::new(Pair { behind: open(&files.virtual6)?, before: open(&files.real6)? }),
        })
    }

    /// From now on `connect()` to `virtual_ip` goes to `real`, and `getpeername()` says `virtual_ip`. Has to be called
    /// before anybody learns of the virtual address. Replaces what either address stood for.
    ///
    /// # Errors
    /// [`TranslationError`]; then the virtual address is not known to the kernel.
    pub fn insert(&self, virtual_ip: IpAddr, real: IpAddr) -> Result<(), TranslationError> {
        match (virtual_ip, real) {
            (IpAddr::V4(v), IpAddr::V4(r)) => lock(&self.four).insert(v.octets(), r.octets()),
            (IpAddr::V6(v), IpAddr::V6(r)) => lock(&self.six).insert(v.octets(), r.octets()),
            _ => Err(TranslationError::Families { virtual_ip, real }),
        }
    }

    /// Forgets a virtual address; one that is not known is forgotten already. Open connections go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, virtual_ip: IpAddr) -> io::Result<()> {
        match virtual_ip {
            IpAddr::V4(v) => lock(&self.four).remove(v.octets()),
            IpAddr::V6(v) => lock(&self.six).remove(v.octets()),
        }
    }

    /// All that the kernel knows, virtual address first, in the order of the virtual addresses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn all(&self) -> io::Result<Vec<(IpAddr, IpAddr)>> {
        let mut all = Vec::new();
        for entry in lock(&self.four).behind.iter() {
            all.extend(present(entry)?.map(|(v, r)| (Ipv4Addr::from(v).into(), Ipv4Addr::from(r).into())));
        }
        for entry in lock(&self.six).behind.iter() {
            all.extend(present(entry)?.map(|(v, r)| (Ipv6Addr::from(v).into(), Ipv6Addr::from(r).into())));
        }
        all.sort();
        Ok(all)
    }
}

impl<K: aya::Pod + PartialEq> Pair<K> {
    fn insert(&mut self, virtual_ip: K, real: K) -> Result<(), TranslationError> {
        let old = present(self.behind.get(&virtual_ip, 0)).map_err(TranslationError::System)?;
        if let Some(old) = old.filter(|old| *old != real) {
            forget(&mut self.before, &old).map_err(TranslationError::System)?;
        }
        // The way back first: who is connected may ask for its peer at once.
        let put = |map: &mut HashMap<MapData, K, K>, key, value| map.insert(key, value, 0).map_err(refused);
        put(&mut self.before, real, virtual_ip)?;
        put(&mut self.behind, virtual_ip, real).inspect_err(|_| {
            // Nobody looks for it any more; what stays is overwritten by the next one.
            let _ = forget(&mut self.before, &real);
        })
    }

    fn remove(&mut self, virtual_ip: K) -> io::Result<()> {
        let Some(real) = present(self.behind.get(&virtual_ip, 0))? else {
            return Ok(());
        };
        forget(&mut self.behind, &virtual_ip)?;
        // Another virtual address may have taken its place.
        if present(self.before.get(&real, 0))?.is_some_and(|v| v == virtual_ip) {
            forget(&mut self.before, &real)?;
        }
        Ok(())
    }
}

fn refused(e: MapError) -> TranslationError {
    match e {
        // E2BIG (bpf(2)): more elements than the map was made for.
        MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::E2BIG) => TranslationError::Full,
        e => TranslationError::System(io::Error::other(e)),
    }
}

fn forget<K: aya::Pod>(map: &mut HashMap<MapData, K, K>, key: &K) -> io::Result<()> {
    present(map.remove(key)).map(drop)
}

/// `None` for what is not there, or was removed meanwhile.
pub(super) fn present<T>(entry: Result<T, MapError>) -> io::Result<Option<T>> {
    match entry {
        Ok(it) => Ok(Some(it)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(io::Error::other(e)),
    }
}

fn open<K: aya::Pod>(file: &OwnedFd) -> io::Result<HashMap<MapData, K, K>> {
    let data = MapData::from_fd(file.try_clone()?).map_err(io::Error::other)?;
    Map::from_map_data(data).map_err(io::Error::other)?.try_into().map_err(|e: MapError| io::Error::other(e))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
