//! Sockets that stay outside: the daemon's own roads to the original name servers.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use aya::maps::{HashMap, Map, MapData};
use socket2::SockRef;

use super::routes;

/// Exempts sockets from the datapath. Needs no privilege.
pub struct Bypass(Way);

enum Way {
    /// Express lane: its programs let sockets alone whose cookie is in this map (kernel 5.19).
    Cookies(Mutex<HashMap<MapData, u64, u8>>),
    /// Floor: a socket bound to a device never gets the local route that stands in for a name server.
    Devices,
}

impl Bypass {
    /// For the express lane: works on [`ExpressFiles::bypass`](super::ExpressFiles::bypass), which stays open.
    ///
    /// # Errors
    /// When it is no such map.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let map = Map::from_map_data(MapData::from_fd(file).map_err(io::Error::other)?).map_err(io::Error::other)?;
        Ok(Self(Way::Cookies(Mutex::new(map.try_into().map_err(|e: aya::maps::MapError| io::Error::other(e))?))))
    }

    /// For the floor alone, where no program looks at cookies (SO_BINDTODEVICE by anyone: kernel 5.7).
    #[must_use]
    pub fn by_device() -> Self {
        Self(Way::Devices)
    }

    /// Exempts a socket before its `connect()` to the name server `to`. Cookies are forgotten by the kernel, oldest first.
    ///
    /// # Errors
    /// What the kernel says, and that there is no route to `to`.
    pub fn exempt(&self, socket: impl AsFd, to: IpAddr) -> io::Result<()> {
        match &self.0 {
            Way::Cookies(cookies) => {
                let cookie = rustix::net::sockopt::socket_cookie(socket)?;
                let mut cookies = cookies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                cookies.insert(cookie, 1, 0).map_err(io::Error::other)
            }
            // Asked each time: routes change, and the answer takes microseconds. The question has neither protocol nor
            // port, so that the rules for name servers do not match it.
            Way::Devices => match routes::device_to(to)? {
                Some(device) => SockRef::from(&socket).bind_device(Some(device.as_bytes())),
                None => Ok(()),
            },
        }
    }
}
