//! Finds whose flows are that came without a caller (UDP, and what the floor carries), while they last: the exact TCP socket
//! from the kernel, its process from /proc.
//!
//! Looking through all processes' files costs milliseconds, so it is done for many flows at once and never for long: see
//! [`rest`]. A program connects more than once, so those that did lately are looked at first.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
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
                let any = || {
                    let places = wildcards(one.own.ip()).iter().map(|ip| SocketAddr::new(*ip, one.own.port()));
                    places.filter_map(at).next().filter(|_| is_own(one.own.ip()))
                };
                Some((one.number, at(one.own).or_else(any)?))
            }));
        }
        found
    }
}

/// Where a socket that sends to many, and so has no address of its own, may be bound, whose datagrams have the source `ip`. One
/// of IPv6 may send IPv4 as well, unless it is for IPv6 alone, which the tables do not tell.
fn wildcards(ip: IpAddr) -> &'static [IpAddr] {
    const BOTH: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    match ip {
        IpAddr::V4(_) => &BOTH,
        IpAddr::V6(_) => &BOTH[1..],
    }
}

/// Whether this host has the address: it lets a socket have it. A container's is another network namespace's, whatever ports
/// sockets of this one have.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_cost_a_fortieth_at_most() {
        assert_eq!(rest(Duration::from_micros(50)), PAUSE);
        assert_eq!(rest(Duration::from_millis(20)), Duration::from_millis(800));
    }

    #[test]
    fn a_datagram_is_of_a_wildcard_socket_only_if_that_can_have_sent_it() {
        let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
        let (four, six) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap());
        let found = |ip: &str, port: u16| {
            let own = SocketAddr::new(ip.parse().unwrap(), port);
            let wanted = Wanted { number: 0, protocol: "udp", own, peer: "192.0.2.7:7".parse().unwrap() };
            !Finder::default().find(&[wanted]).is_empty()
        };
        assert!(found("127.0.0.1", port(&four)) && found("::1", port(&six)));
        // IPv4 out of a socket of IPv6, but not the other way round.
        assert!(found("127.0.0.1", port(&six)) && !found("::1", port(&four)));
        // A container that happens to use the port.
        for socket in [&four, &six] {
            assert!(!found("198.51.100.2", port(socket)) && !found("2001:db8::2", port(socket)));
        }
    }
}
