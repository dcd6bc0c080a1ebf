//! The flows that are carried now, for who wants to look.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::processes;
use crate::ipc::FlowRow;

/// Shared by whoever carries flows.
#[derive(Clone, Default)]
pub(super) struct FlowTable(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    next: u64,
    rows: BTreeMap<u64, Row>,
}

struct Row {
    protocol: &'static str,
    source: SocketAddr,
    destination: SocketAddr,
    target: SocketAddr,
    since: Instant,
}

/// A flow's row; goes when it is dropped.
pub(super) struct Listed {
    table: FlowTable,
    number: u64,
}

impl FlowTable {
    /// Lists a flow from `source` that asked for `destination` and leads to `target`. `protocol` is `tcp`, `udp` or
    /// `icmp`; ports of `icmp` are 0.
    pub(super) fn list(
        &self,
        protocol: &'static str,
        source: SocketAddr,
        destination: SocketAddr,
        target: SocketAddr,
    ) -> Listed {
        let mut rows = self.rows();
        let number = rows.next;
        rows.next += 1;
        rows.rows.insert(number, Row { protocol, source, destination, target, since: Instant::now() });
        Listed { table: self.clone(), number }
    }

    /// The rows with their processes, oldest first. Reads /proc: not for a thread that must not wait.
    pub(super) fn look(&self) -> Vec<FlowRow> {
        let mut rows: Vec<FlowRow> = self.rows().rows.values().map(Row::shown).collect();
        let sources: HashMap<(&str, SocketAddr), u64> = processes::sockets("self")
            .into_iter()
            .map(|(protocol, socket)| ((protocol, socket.own), socket.inode))
            .collect();
        let inodes: Vec<Option<u64>> = rows
            .iter()
            .map(|row| {
                let bound = |own| sources.get(&(row.protocol.as_str(), own)).copied();
                // A socket that sends to many has no address of its own.
                let any = |ip: IpAddr| bound(SocketAddr::new(ip, row.source.port()));
                bound(row.source)
                    .or_else(|| any(Ipv4Addr::UNSPECIFIED.into()))
                    .or_else(|| any(Ipv6Addr::UNSPECIFIED.into()))
            })
            .collect();
        let owners = processes::owners(&inodes.iter().copied().flatten().collect());
        for (row, inode) in rows.iter_mut().zip(inodes) {
            row.process = inode.and_then(|inode| owners.get(&inode)).cloned();
        }
        rows
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn shown(&self) -> FlowRow {
        FlowRow {
            protocol: self.protocol.into(),
            source: self.source,
            destination: self.destination,
            target: self.target,
            process: None,
            seconds: self.since.elapsed().as_secs(),
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.table.rows().rows.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn flows_come_with_their_process_and_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let table = FlowTable::default();
        let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let listed = table.list("tcp", own, peer, "10.96.0.1:80".parse().unwrap());
        let other = table.list("udp", own, peer, peer);
        let rows = table.look();
        assert_eq!(rows[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
        assert_eq!(rows[0].target, "10.96.0.1:80".parse().unwrap());
        assert_eq!(rows[1].process, None, "no UDP socket has this address");
        drop(listed);
        assert_eq!(table.look().len(), 1);
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let source = SocketAddr::new(own.ip(), socket.local_addr().unwrap().port());
        let unconnected = table.list("udp", source, peer, peer);
        assert_eq!(table.look()[1].process.as_ref().map(|process| process.pid), Some(std::process::id()));
        drop(unconnected);
        drop(other);
        assert_eq!(table.look(), []);
    }
}
