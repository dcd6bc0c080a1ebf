//! The flows that are carried now, and those that ended lately, for who wants to look.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;
use tpx_core::explain::Way;
use tpx_datapath::Caller;
use tpx_link::Traffic;

use super::owners::{Finder, Owner, Wanted, rest};
use crate::ipc::FlowRow;

/// Flows that ended and are remembered.
const ENDED: usize = 256;
/// How often an owner is looked for: files may be on their way from one process to another.
const TRIES: u8 = 2;

/// Shared by whoever carries flows.
#[derive(Clone, Default)]
pub(super) struct FlowTable(Arc<Shared>);

#[derive(Default)]
struct Shared {
    rows: Mutex<Rows>,
    finder: Mutex<Finder>,
    /// A flow without an owner has come.
    came: Notify,
}

#[derive(Default)]
struct Rows {
    next: u64,
    rows: BTreeMap<u64, Row>,
    ended: VecDeque<(Row, Instant)>,
}

struct Row {
    number: u64,
    protocol: &'static str,
    road: Way,
    source: SocketAddr,
    destination: SocketAddr,
    target: SocketAddr,
    since: Instant,
    traffic: Arc<Traffic>,
    owner: Owner,
    tries: u8,
}

/// A flow's row; ends when it is dropped.
pub(super) struct Listed {
    table: FlowTable,
    number: u64,
    traffic: Arc<Traffic>,
}

impl Listed {
    /// Where the flow counts.
    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }
}

impl FlowTable {
    /// Lists a flow from `source` that asked for `destination`, came by `road` and leads to `target`. `protocol` is `tcp`,
    /// `udp` or `icmp`; ports of `icmp` are 0. One whose `caller` is not known is looked for.
    pub(super) fn list(
        &self,
        protocol: &'static str,
        road: Way,
        source: SocketAddr,
        destination: SocketAddr,
        target: SocketAddr,
        caller: Option<Caller>,
    ) -> Listed {
        let traffic = Arc::new(Traffic::default());
        let (since, owner, tries) = (Instant::now(), caller.map(Owner::from).unwrap_or_default(), 0);
        let is_known = owner.process.is_some();
        let mut rows = self.rows();
        let number = rows.next;
        rows.next += 1;
        let counted = Arc::clone(&traffic);
        let row = Row { number, protocol, road, source, destination, target, since, traffic: counted, owner, tries };
        rows.rows.insert(number, row);
        drop(rows);
        if !is_known {
            self.0.came.notify_one();
        }
        Listed { table: self.clone(), number, traffic }
    }

    /// The rows with their processes, those that last first, each oldest first; with `ended`, also what ended lately. Reads
    /// /proc: not for a thread that must not wait.
    pub(super) fn look(&self, ended: bool) -> Vec<FlowRow> {
        self.find();
        let now = Instant::now();
        let rows = self.rows();
        let mut shown: Vec<FlowRow> = rows.rows.values().map(|row| row.shown(now, None)).collect();
        if ended {
            shown.extend(rows.ended.iter().map(|(row, end)| row.shown(now, Some(*end))));
        }
        shown
    }

    /// Finds the owners of flows while these last: a flow that comes alone gets its at once, many wait for each other.
    /// Never ends.
    pub(super) async fn find_owners(self) {
        loop {
            self.0.came.notified().await;
            let (table, began) = (self.clone(), Instant::now());
            let _ = tokio::task::spawn_blocking(move || table.find()).await;
            tokio::time::sleep(rest(began.elapsed())).await;
        }
    }

    /// One round for all flows that have no owner yet.
    fn find(&self) {
        let mut finder = self.0.finder.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: Vec<Wanted> = {
            let mut rows = self.rows();
            let open = rows.rows.values_mut().rev().filter(|row| row.owner.process.is_none() && row.tries < TRIES);
            open.map(Row::wanted).collect()
        };
        if wanted.is_empty() {
            return;
        }
        let found = finder.find(&wanted);
        let mut rows = self.rows();
        for (number, owner) in found {
            // It may have ended while its owner was looked for.
            let Rows { rows, ended, .. } = &mut *rows;
            let row = match rows.get_mut(&number) {
                None => ended.iter_mut().rev().map(|(row, _)| row).find(|row| row.number == number),
                open => open,
            };
            if let Some(row) = row {
                row.owner = owner;
            }
        }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn wanted(&mut self) -> Wanted {
        self.tries += 1;
        Wanted { number: self.number, protocol: self.protocol, own: self.source, peer: self.destination }
    }

    fn shown(&self, now: Instant, end: Option<Instant>) -> FlowRow {
        let datagrams = self.protocol != "tcp";
        FlowRow {
            number: self.number,
            protocol: self.protocol.into(),
            source: self.source,
            destination: self.destination,
            target: self.target,
            road: self.road,
            process: self.owner.process.clone(),
            uid: self.owner.uid,
            bridge: None,
            bytes_up: self.traffic.up(),
            bytes_down: self.traffic.down(),
            packets_up: datagrams.then(|| self.traffic.datagrams_up()),
            packets_down: datagrams.then(|| self.traffic.datagrams_down()),
            seconds: end.unwrap_or(now).duration_since(self.since).as_secs_f64(),
            ended_seconds_ago: end.map(|end| now.duration_since(end).as_secs_f64()),
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut rows = self.table.rows();
        if let Some(row) = rows.rows.remove(&self.number) {
            if rows.ended.len() == ENDED {
                rows.ended.pop_front();
            }
            rows.ended.push_back((row, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    #[test]
    fn flows_come_with_their_process_and_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let table = FlowTable::default();
        let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let listed = table.list("tcp", Way::Express, own, peer, "10.96.0.1:80".parse().unwrap(), None);
        let other = table.list("udp", Way::Floor, own, peer, peer, None);
        other.traffic().datagram_up(100);
        let rows = table.look(false);
        assert_eq!(rows[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
        assert_eq!(rows[0].uid, Some(rustix::process::geteuid().as_raw()));
        assert_eq!(rows[0].target, "10.96.0.1:80".parse().unwrap());
        assert_eq!((rows[0].packets_up, rows[0].bytes_up), (None, 0));
        assert_eq!(rows[1].process, None, "no UDP socket has this address");
        assert_eq!((rows[1].packets_up, rows[1].packets_down, rows[1].bytes_up), (Some(1), Some(0), 100));
        drop(listed);
        assert_eq!(table.look(false).len(), 1);
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let source = SocketAddr::new(own.ip(), socket.local_addr().unwrap().port());
        let unconnected = table.list("udp", Way::Floor, source, peer, peer, None);
        assert_eq!(table.look(false)[1].process.as_ref().map(|process| process.pid), Some(std::process::id()));
        drop(unconnected);
        drop(other);
        assert_eq!(table.look(false), []);
        // What ended keeps its process and its counts, in the order of the ends.
        let ended = table.look(true);
        assert_eq!(ended.iter().map(|row| row.number).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!(ended[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
        assert!(ended[2].bytes_up == 100 && ended[2].ended_seconds_ago.is_some());
    }

    #[test]
    fn only_the_last_that_ended_are_remembered() {
        let (table, at) = (FlowTable::default(), SocketAddr::from(([192, 0, 2, 1], 1)));
        for _ in 0..ENDED + 3 {
            drop(table.list("icmp", Way::Floor, at, at, at, None));
        }
        let ended = table.look(true);
        assert_eq!((ended.len(), ended[0].number), (ENDED, 3));
    }

    #[tokio::test]
    async fn a_lone_flow_has_its_process_before_anybody_looks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let table = FlowTable::default();
        let finding = tokio::spawn(table.clone().find_owners());
        let listed = table.list("tcp", Way::Express, own, peer, peer, None);
        let known = async {
            while table.rows().rows.values().any(|row| row.owner.process.is_none()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), known).await.unwrap();
        finding.abort();
        // The application is gone, the flow ends: the name stays.
        drop((stream, listed));
        assert_eq!(table.look(true)[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
    }

    /// CPU time of this thread, in nanoseconds (/proc/PID/schedstat, first field). The kernel brings it up to date when the
    /// thread sleeps.
    fn spent() -> u64 {
        std::thread::sleep(Duration::from_millis(1));
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_thousand_short_flows_a_second_cost_a_twentieth_of_a_core_at_most() {
        const SECONDS: u64 = 3;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let table = FlowTable::default();
        let end = Instant::now() + Duration::from_secs(SECONDS);
        let looker = table.clone();
        let finder = std::thread::spawn(move || {
            let (began, mut known) = (spent(), 0);
            while Instant::now() < end {
                let round = Instant::now();
                looker.find();
                std::thread::sleep(rest(round.elapsed()));
                let rows = looker.rows();
                known += rows.ended.iter().filter(|(row, _)| row.owner.process.is_some()).count();
            }
            (spent() - began, known)
        });
        let (mut flows, mut open) = (0, VecDeque::new());
        while Instant::now() < end {
            let stream = TcpStream::connect(at).unwrap();
            drop(listener.accept().unwrap());
            let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            open.push_back((table.list("tcp", Way::Express, own, peer, peer, None), stream));
            // Each lasts 20 ms or more.
            if open.len() > 20 {
                open.pop_front();
            }
            flows += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        let (finding, known) = finder.join().unwrap();
        let finding = finding as f64 / 1e9 / SECONDS as f64;
        // Those that lasted while a round was on.
        assert!(flows > 100 && known > 0, "of {flows} flows {known} have a process");

        // What it costs the flows themselves.
        const LISTED: u32 = 20_000;
        let began = spent();
        for _ in 0..LISTED {
            drop(table.list("tcp", Way::Express, at, at, at, None));
        }
        let listing = (spent() - began) as f64 / 1e9 / f64::from(LISTED) * 1000.0;
        // As if there had been a thousand a second: at most so much more is found in as many rounds.
        let finding = finding * (1000.0 * SECONDS as f64 / f64::from(flows)).max(1.0);
        println!(
            "{flows} flows, {known} with a process: finding {:.2} %, listing {:.2} % of a core",
            finding * 100.0,
            listing * 100.0
        );
        assert!(finding + listing < 0.05, "{finding} of a core for finding, {listing} for listing");
    }
}
