//! Sockets that stay outside: the daemon's own roads to the original name servers.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use aya::maps::{HashMap, Map, MapData};
use socket2::SockRef;

use super::routes;

/// Exempts sockets from the datapath. Needs no privilege.
pub struct Bypass {
    /// Express lane: its programs let sockets alone whose cookie is in this map (kernel 5.19).
    cookies: Option<Mutex<HashMap<MapData, u64, u8>>>,
    /// Floor: a socket bound to a device never gets the local route that stands in for a name server. Nor do the programs of
    /// any scope exchange the name servers of such a socket.
    by_device: bool,
}

impl Bypass {
    /// For the express lane: works on [`ExpressFiles::bypass`](super::ExpressFiles::bypass), which stays open.
    ///
    /// # Errors
    /// When it is no such map.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let map = Map::from_map_data(MapData::from_fd(file).map_err(io::Error::other)?).map_err(io::Error::other)?;
        let cookies = map.try_into().map_err(|e: aya::maps::MapError| io::Error::other(e))?;
        Ok(Self { cookies: Some(Mutex::new(cookies)), by_device: false })
    }

    /// For the floor alone, where no program looks at cookies (SO_BINDTODEVICE by anyone: kernel 5.7).
    #[must_use]
    pub fn by_device() -> Self {
        Self { cookies: None, by_device: true }
    }

    /// For a scope beside others: the daemon itself is in those around it, the workstation's above all, whose programs know
    /// nothing of this map's cookies.
    #[must_use]
    pub fn from_all_scopes(self) -> Self {
        Self { by_device: true, ..self }
    }

    /// Exempts a socket before its `connect()` to the name server `to`. Cookies are forgotten by the kernel, oldest first.
    ///
    /// # Errors
    /// What the kernel says, and that there is no route to `to`.
    pub fn exempt(&self, socket: impl AsFd, to: SocketAddr) -> io::Result<()> {
        if let Some(cookies) = &self.cookies {
            let cookie = rustix::net::sockopt::socket_cookie(&socket)?;
            let mut cookies = cookies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            cookies.insert(cookie, 1, 0).map_err(io::Error::other)?;
        }
        if !self.by_device {
            return Ok(());
        }
        // Asked each time: routes change, and the answer takes microseconds. The question has neither protocol nor port, so
        // that the rules for name servers do not match it.
        let device = match routes::device_to(to)? {
            // Programs exchange a server of this host's as well; the floor cannot, and nothing needs to be escaped there.
            None if self.cookies.is_some() => Some(routes::device_of(to.ip())?),
            device => device,
        };
        device.map_or(Ok(()), |device| SockRef::from(&socket).bind_device(Some(device.as_bytes())))
    }
}
