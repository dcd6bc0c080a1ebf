//! Finds whose flows are that came without a caller (UDP, and what the floor carries), while they last: the exact TCP socket
//! from the kernel, its process from /proc.
//!
//! Looking through all processes' files costs milliseconds, so it is done for many flows at once and never for long: see
//! [`rest`]. A program connects more than once, so those that did lately are looked at first.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tpx_datapath::Caller;

use super::{processes, sock_diag::SockDiag};
use crate::ipc::Process;

/// Shortest pause between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// A round that took long is followed by a pause this many times as long: a fortieth of one core at most.
const SHARE: u32 = 40;
/// Processes that are looked at first.
const LATELY: usize = 16;

/// How long to pause after a round that took `took`.
pub(super) fn rest(took: Duration) -> Duration {
    PAUSE.max(took * SHARE)
}

/// Whose a flow is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user.
    pub uid: Option<u32>,
    /// The process; `None` when this user may not look at it.
    pub process: Option<Process>,
}

impl From<Caller> for Owner {
    fn from(caller: Caller) -> Self {
        let process = Process { pid: caller.pid, name: caller.name };
        Self { uid: Some(caller.uid), process: Some(process) }
    }
}

/// A flow whose owner is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The flow's number, for who asks.
    pub number: u64,
    /// `tcp` or `udp`; sockets of others are not known.
    pub protocol: &'static str,
    /// Its source.
    pub own: SocketAddr,
    /// Its destination.
    pub peer: SocketAddr,
}

/// Looks, and remembers where it found something.
#[derive(Default)]
pub(super) struct Finder {
    diag: Option<SockDiag>,
    lately: VecDeque<u32>,
}

impl Finder {
    /// The owners of those flows whose sockets are there. Blocks for milliseconds.
    pub(super) fn find(&mut self, wanted: &[Wanted]) -> Vec<(u64, Owner)> {
        let sockets = self.sockets(wanted);
        let me = rustix::process::geteuid();
        let visible = |uid: u32| me.is_root() || me.as_raw() == uid;
        let inodes: HashSet<u64> =
            sockets.iter().filter(|(_, socket)| visible(socket.uid)).map(|(_, socket)| socket.inode).collect();
        let owners = processes::owners(&inodes, self.lately.iter().copied());
        let pids: HashSet<u32> = owners.values().map(|process| process.pid).collect();
        self.lately.retain(|pid| !pids.contains(pid));
        pids.into_iter().for_each(|pid| self.lately.push_front(pid));
        self.lately.truncate(LATELY);
        let owner =
            |socket: processes::Socket| Owner { uid: Some(socket.uid), process: owners.get(&socket.inode).cloned() };
        sockets.into_iter().map(|(number, socket)| (number, owner(socket))).collect()
    }

    fn sockets(&mut self, wanted: &[Wanted]) -> Vec<(u64, processes::Socket)> {
        if self.diag.is_none() {
            self.diag = SockDiag::open().ok();
        }
        // UDP sockets have no exact peer: one may send to many, and the express lane's have another one than they asked for.
        let exact = |wanted: &Wanted| wanted.protocol == "tcp" && self.diag.is_some();
        let by_table: Vec<Wanted> =
            wanted.iter().filter(|one| one.protocol != "icmp" && !exact(one)).copied().collect();
        let mut found = Vec::new();
        if let Some(diag) = &mut self.diag {
            let tcp = wanted.iter().filter(|one| one.protocol == "tcp");
            found.extend(tcp.filter_map(|one| Some((one.number, diag.connection(one.own, one.peer)?))));
        }
        if !by_table.is_empty() {
            let bound: HashMap<(&str, SocketAddr), processes::Socket> = processes::sockets("self")
                .into_iter()
                .map(|(protocol, socket)| ((protocol, socket.own), socket))
                .collect();
            found.extend(by_table.iter().filter_map(|one| {
                let at = |own| bound.get(&(one.protocol, own)).copied();
                // A socket that sends to many has no address of its own.
                let any = |ip: IpAddr| at(SocketAddr::new(ip, one.own.port()));
                let socket = at(one.own)
                    .or_else(|| any(Ipv4Addr::UNSPECIFIED.into()))
                    .or_else(|| any(Ipv6Addr::UNSPECIFIED.into()))?;
                Some((one.number, socket))
            }));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_cost_a_fortieth_at_most() {
        assert_eq!(rest(Duration::from_micros(50)), PAUSE);
        assert_eq!(rest(Duration::from_millis(20)), Duration::from_millis(800));
    }
}
