//! Sockets that stay outside: the daemon's own roads to the original name servers.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use aya::maps::{HashMap, Map, MapData};

/// Exempts sockets from every program of the datapath, by their cookie. Needs no privilege (kernel 5.19).
pub struct Bypass {
    cookies: Mutex<HashMap<MapData, u64, u8>>,
}

impl Bypass {
    /// Works on the map behind `file`, which stays open.
    ///
    /// # Errors
    /// When it is no such map.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let map = Map::from_map_data(MapData::from_fd(file).map_err(io::Error::other)?).map_err(io::Error::other)?;
        Ok(Self { cookies: Mutex::new(map.try_into().map_err(|e: aya::maps::MapError| io::Error::other(e))?) })
    }

    /// Exempts a socket; before its `connect()`. The kernel forgets the oldest ones by itself.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn exempt(&self, socket: impl AsFd) -> io::Result<()> {
        let cookie = rustix::net::sockopt::socket_cookie(socket)?;
        let mut cookies = self.cookies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        cookies.insert(cookie, 1, 0).map_err(io::Error::other)
    }
}
