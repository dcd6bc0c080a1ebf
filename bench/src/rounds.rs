//! The rounds: each road once per round, in an order that turns, so that what changes on the machine meanwhile hits all alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use tpx_bench::said::{Bulk, Cold, Connects, Ping};

use crate::grid::Row;
use crate::lab::{Background, Lab, Part};
use crate::procs::{Finder, Process};
use crate::report::{Daemon, Failure, Metric, Raw, Road, Round, Seen};
use crate::roads::{self, Ends, Forwards};
use crate::{bare, crowd, flows, full, names};

/// A part of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    /// tpx next to kubectl port-forward and a direct connection, names next to dnsmasq
    Roads,
    /// The datapaths without a tunnel, next to plain loopback
    Datapaths,
    /// connect() with many rules and flows, next to an empty table
    Tables,
    /// Memory of an open flow
    Flows,
    /// tpx connect in a cluster of thousands of services
    Crowd,
}

impl Subject {
    pub(crate) fn all() -> BTreeSet<Subject> {
        Subject::value_variants().iter().copied().collect()
    }
}

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) rounds: usize,
    /// One transfer, and at most the round trips beside one, in seconds.
    pub(crate) transfer: f64,
    /// One burst of connects, datagrams or questions, in seconds.
    pub(crate) burst: f64,
    /// Round trips on an idle road.
    pub(crate) pings: usize,
    /// Round trips beside a download.
    pub(crate) busy_pings: usize,
    /// How long the daemons do nothing before their memory is read, in seconds.
    pub(crate) idle: f64,
}

/// What goes wrong, and whether it is time to stop.
pub(crate) struct Log {
    interrupted: Arc<AtomicBool>,
    round: usize,
    failures: Vec<Failure>,
}

impl Log {
    /// What fails here concerns one road; it is noted.
    pub(crate) fn try_on<T>(&mut self, who: &str, what: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        match work() {
            Ok(done) => Some(done),
            Err(error) => {
                self.note(who, what, format!("{error:#}"));
                None
            }
        }
    }

    fn note(&mut self, who: &str, what: &str, error: String) {
        eprintln!("{who}: {what}: {error}");
        self.failures.push(Failure { round: self.round, who: who.to_owned(), what: what.to_owned(), error });
    }

    /// # Errors
    /// When whoever started this wants it to end.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Measures what is wanted. What fails on one road is noted and the others go on; an error is only what concerns all of them.
pub(crate) fn run(lab: &Lab, amount: Amount, wanted: &BTreeSet<Subject>, interrupted: &Arc<AtomicBool>) -> Result<Raw> {
    let finder = Finder::new(&lab.cgroup);
    let mut run = Run {
        lab,
        amount,
        wanted,
        cluster: roads::cluster(&finder)?,
        direct: roads::cluster_ips(lab)?,
        finder,
        forwards: None,
        dnsmasq: None,
        raw: Raw { processes: BTreeMap::from([(Road::Direct, Vec::new())]), ..Raw::default() },
        log: Log { interrupted: Arc::clone(interrupted), round: 0, failures: Vec::new() },
        round: 0,
    };
    // Whoever was connected before: it starts from nothing, and ends so, however it ends.
    let _disconnect = Disconnect(lab);
    lab.run(Part::Laptop, &["tpx", "quit"]).ok();
    let installed = || lab.run(Part::Laptop, &["tpx", "manager", "install"]).map(drop);
    run.log.try_on(Road::Tpx.title(), "tpx manager install", installed);
    let address = run.direct.web.rsplit_once(':').map_or(String::new(), |(ip, _)| ip.to_owned());
    run.dnsmasq = run.log.try_on("dnsmasq", "start", || names::dnsmasq(lab, &address));
    if [Subject::Roads, Subject::Datapaths, Subject::Tables].iter().any(|subject| wanted.contains(subject)) {
        for round in 1..=amount.rounds {
            eprintln!("round {round} of {}", amount.rounds);
            (run.round, run.log.round) = (round, round);
            run.one_round()?;
        }
    }
    run.round = 0;
    run.log.round = 0;
    if wanted.contains(&Subject::Flows) {
        eprintln!("open flows");
        run.flows()?;
    }
    if wanted.contains(&Subject::Crowd) {
        eprintln!("a large cluster");
        run.raw.crowd = crowd::measure(lab, &run.finder, &mut run.log)?;
    }
    Ok(Raw { failures: run.log.failures, ..run.raw })
}

struct Disconnect<'a>(&'a Lab);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        self.0.run(Part::Laptop, &["tpx", "quit"]).ok();
    }
}

struct Run<'a> {
    lab: &'a Lab,
    amount: Amount,
    wanted: &'a BTreeSet<Subject>,
    finder: Finder,
    /// API server, kubelet, containerd.
    cluster: Vec<Process>,
    direct: Ends,
    forwards: Option<Forwards>,
    /// The other name server, while it runs.
    dnsmasq: Option<Background>,
    raw: Raw,
    log: Log,
    round: usize,
}

impl Run<'_> {
    fn one_round(&mut self) -> Result<()> {
        if self.wanted.contains(&Subject::Roads) {
            self.roads()?;
        }
        if self.wanted.contains(&Subject::Datapaths) {
            let bare = bare::round(self.lab, &self.amount, self.round, &mut self.log)?;
            self.raw.bare.push(bare);
        }
        if self.wanted.contains(&Subject::Tables) {
            self.raw.full.push(full::round(self.lab, &self.amount, self.round, &mut self.log)?);
        }
        Ok(())
    }

    /// Each road once.
    fn roads(&mut self) -> Result<()> {
        let mut seen = Round::new();
        let mut order = Road::ALL;
        order.rotate_left((self.round - 1) % Road::ALL.len());
        let mut names = Row::new();
        for road in order {
            self.log.go_on()?;
            let mut on = Seen::default();
            match road {
                Road::Direct => self.measure(road, &self.direct.clone(), &[], &mut on)?,
                Road::Kubectl => {
                    self.cold(road, &["cold", "kubectl"], &mut on);
                    if let Some((ends, processes)) = self.forwards() {
                        self.measure(road, &ends, &processes, &mut on)?;
                        self.raw.processes.insert(road, processes);
                    }
                }
                Road::Tpx | Road::Floor => {
                    if let Some(own) = self.connect(road, &mut on) {
                        self.idle(road, &own);
                        names.insert(road, names::measure(self.lab, &self.amount, self.round, road, &mut self.log));
                        let processes = [own.clone(), self.cluster.clone()].concat();
                        self.measure(road, &self.direct.clone(), &processes, &mut on)?;
                        self.raw.processes.insert(road, processes);
                        self.loaded(road, &own);
                    }
                    let quit = || self.lab.run(Part::Laptop, &["tpx", "quit"]).map(drop);
                    self.log.try_on(road.title(), "tpx quit", quit);
                }
            }
            seen.insert(road, on);
        }
        self.raw.rounds.push(seen);
        self.raw.names.push(names);
        Ok(())
    }

    /// What an open flow holds, of a daemon that has just begun.
    fn flows(&mut self) -> Result<()> {
        self.log.go_on()?;
        let (lab, title) = (self.lab, Road::Tpx.title());
        if let Some(own) = self.connect(Road::Tpx, &mut Seen::default()) {
            self.raw.per_flow = self.log.try_on(title, "open flows", || flows::measure(lab, &own));
        }
        self.log.try_on(title, "tpx quit", || lab.run(Part::Laptop, &["tpx", "quit"]));
        self.log.go_on()
    }

    /// From nothing to the first byte.
    fn cold(&mut self, road: Road, words: &[&str], seen: &mut Seen) -> Option<()> {
        let cold = || self.lab.load::<Cold>(Part::Laptop, words);
        let cold = self.log.try_on(road.title(), "from nothing to the first byte", cold)?;
        seen.values.extend([(Metric::Ready, cold.ready), (Metric::FirstByte, cold.first_byte)]);
        Some(())
    }

    /// Connects by one of tpx's roads; its processes.
    fn connect(&mut self, road: Road, seen: &mut Seen) -> Option<Vec<Process>> {
        let gone = || roads::no_daemons(&self.finder);
        self.log.try_on(road.title(), "tpx's processes", gone)?;
        let floor = ["cold", "tpx", "--datapath=tun"];
        self.cold(road, if road == Road::Floor { &floor } else { &floor[..2] }, seen)?;
        let own = || {
            let status: serde_json::Value =
                serde_json::from_str(&self.lab.run(Part::Laptop, &["tpx", "status", "--format=json"])?)?;
            let (taken, wanted) = (&status["datapath"]["road"], if road == Road::Floor { "tun" } else { "ebpf" });
            ensure!(taken == wanted, "it is connected by {taken} instead of {wanted}");
            roads::tpx(&self.finder)
        };
        self.log.try_on(road.title(), "tpx's processes", own)
    }

    /// Memory and CPU of the daemons that have nothing to do yet.
    fn idle(&mut self, road: Road, own: &[Process]) {
        if self.round != 1 {
            return;
        }
        let pause = Duration::from_secs_f64(self.amount.idle);
        let idle = || {
            std::thread::sleep(pause);
            Ok(())
        };
        let cpu = self.log.try_on(road.title(), "idle CPU", || roads::cpu(own, idle));
        for process in own {
            let idle = self.log.try_on(road.title(), "idle memory", || process.memory());
            let used = cpu.as_ref().and_then(|(_, used)| used.get(&process.name));
            let idle_cpu = used.map(|seconds| seconds / pause.as_secs_f64());
            self.raw.daemons.push(Daemon { road, name: process.name.clone(), idle, idle_cpu, loaded: None });
        }
    }

    /// Their memory after they had.
    fn loaded(&mut self, road: Road, own: &[Process]) {
        for process in own {
            let loaded = self.log.try_on(road.title(), "memory after the load", || process.memory());
            let is = |daemon: &&mut Daemon| daemon.road == road && daemon.name == process.name;
            if let Some(daemon) = self.raw.daemons.iter_mut().find(is) {
                daemon.loaded = loaded;
            }
        }
    }

    /// The running port-forwards, started again when one of them ended.
    fn forwards(&mut self) -> Option<(Ends, Vec<Process>)> {
        let (road, what) = (Road::Kubectl.title(), "kubectl port-forward");
        if self.forwards.as_mut().is_some_and(|forwards| !forwards.are_alive()) {
            self.log.note(road, what, "it ended by itself".into());
            self.forwards = None;
        }
        if self.forwards.is_none() {
            self.forwards = self.log.try_on(road, what, || Forwards::start(self.lab, &self.finder));
        }
        let forwards = self.forwards.as_ref()?;
        Some((forwards.ends.clone(), [forwards.processes.clone(), self.cluster.clone()].concat()))
    }

    fn measure(&mut self, road: Road, ends: &Ends, processes: &[Process], seen: &mut Seen) -> Result<()> {
        let part = roads::part(road);
        let Amount { transfer, burst, pings, busy_pings, .. } = self.amount;
        let (transfer, burst) = (format!("--seconds={transfer}"), format!("--seconds={burst}"));
        for (way, rate, cost) in
            [("down", Metric::Download, Metric::CpuDownload), ("up", Metric::Upload, Metric::CpuUpload)]
        {
            let done = self.log.try_on(road.title(), rate.title().0, || {
                roads::cpu(processes, || self.lab.load::<Bulk>(part, &[way, &ends.web, &transfer]))
            });
            if let Some((bulk, mut used)) = done {
                seen.values.insert(rate, bulk.rate());
                used.values_mut().for_each(|seconds| *seconds /= bulk.gib());
                if !used.is_empty() {
                    seen.values.insert(cost, used.values().sum());
                }
                *(if way == "down" { &mut seen.cpu_download } else { &mut seen.cpu_upload }) = used;
            }
            self.log.go_on()?;
        }
        let counted = format!("--count={pings}");
        if let Some(ping) = self.log.try_on(road.title(), Metric::Ping.title().0, || {
            self.lab.load::<Ping>(part, &["ping", &ends.echo, &counted])
        }) {
            seen.values.extend([(Metric::Ping, ping.p50), (Metric::PingP99, ping.p99)]);
        }
        let counted = format!("--count={busy_pings}");
        let words = ["ping", &ends.echo, &counted, &transfer, "--beside", &ends.web];
        if let Some(ping) =
            self.log.try_on(road.title(), Metric::BusyPing.title().0, || self.lab.load::<Ping>(part, &words))
        {
            seen.values.extend([(Metric::BusyPing, ping.p50), (Metric::BusyPingP99, ping.p99)]);
        }
        self.log.go_on()?;
        for (at_once, metric) in [("--at-once=1", Metric::Connects), ("--at-once=16", Metric::ConnectsAtOnce)] {
            let words = ["connects", &ends.echo, &burst, at_once];
            let done = self.log.try_on(road.title(), metric.title().0, || self.lab.load::<Connects>(part, &words));
            if let Some(done) = done {
                seen.values.insert(metric, done.rate());
                if done.failed > 0 {
                    let all = done.count + done.failed;
                    let error = done.error.unwrap_or_default();
                    self.log.note(road.title(), metric.title().0, format!("{} of {all} failed: {error}", done.failed));
                }
            }
        }
        Ok(())
    }
}
