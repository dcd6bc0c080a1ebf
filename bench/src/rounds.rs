//! The rounds: each road once per round, in an order that turns, so that what changes on the machine meanwhile hits all alike.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tpx_bench::said::{Bulk, Cold, Connects, Ping};

use crate::lab::{Lab, Part};
use crate::procs::{Finder, Process};
use crate::report::{Daemon, Failure, Metric, Raw, Road, Round, Seen};
use crate::roads::{self, Ends, Forwards};

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) rounds: usize,
    /// One transfer, and at most the round trips beside one, in seconds.
    pub(crate) transfer: f64,
    /// One burst of connects, in seconds.
    pub(crate) burst: f64,
    /// Round trips on an idle road.
    pub(crate) pings: usize,
    /// Round trips beside a download.
    pub(crate) busy_pings: usize,
}

/// How long the daemons do nothing before their memory is read.
const IDLE: Duration = Duration::from_secs(10);

/// Measures all roads. What fails on one is noted and the others go on; an error is only what concerns all of them.
pub(crate) fn run(lab: &Lab, amount: Amount, interrupted: &Arc<AtomicBool>) -> Result<Raw> {
    let finder = Finder::new(&lab.cgroup);
    let mut run = Run {
        lab,
        amount,
        interrupted,
        cluster: roads::cluster(&finder)?,
        direct: roads::cluster_ips(lab)?,
        finder,
        forwards: None,
        raw: Raw {
            rounds: Vec::new(),
            daemons: Vec::new(),
            failures: Vec::new(),
            processes: BTreeMap::from([(Road::Direct, Vec::new())]),
        },
        round: 0,
    };
    // Whoever was connected before: it starts from nothing, and ends so, however it ends.
    let _disconnect = Disconnect(lab);
    lab.run(Part::Laptop, &["tpx", "quit"]).ok();
    run.try_on(Road::Tpx, "tpx manager install", |run| {
        run.lab.run(Part::Laptop, &["tpx", "manager", "install"]).map(drop)
    });
    for round in 1..=amount.rounds {
        eprintln!("round {round} of {}", amount.rounds);
        run.round = round;
        run.one_round()?;
    }
    Ok(run.raw)
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
    interrupted: &'a Arc<AtomicBool>,
    finder: Finder,
    /// API server, kubelet, containerd.
    cluster: Vec<Process>,
    direct: Ends,
    forwards: Option<Forwards>,
    raw: Raw,
    round: usize,
}

impl Run<'_> {
    fn one_round(&mut self) -> Result<()> {
        let mut seen = Round::new();
        let mut order = Road::ALL;
        order.rotate_left((self.round - 1) % Road::ALL.len());
        let mut connected = false;
        for road in order {
            self.go_on()?;
            let name = match road {
                Road::Tpx => "tpx",
                Road::Kubectl => "kubectl",
                Road::Direct => continue,
            };
            let cold = self.try_on(road, "from nothing to the first byte", |run| {
                if road == Road::Tpx {
                    roads::no_daemons(&run.finder)?;
                }
                run.lab.load::<Cold>(Part::Laptop, &["cold", name])
            });
            if let Some(cold) = cold {
                let values = [(Metric::Ready, cold.ready), (Metric::FirstByte, cold.first_byte)];
                seen.entry(road).or_default().values.extend(values);
                connected |= road == Road::Tpx;
            }
        }
        let own =
            if connected { self.try_on(Road::Tpx, "tpx's processes", |run| roads::tpx(&run.finder)) } else { None };
        if let (1, Some(own)) = (self.round, &own) {
            let idle = || {
                std::thread::sleep(IDLE);
                Ok(())
            };
            let cpu = self.try_on(Road::Tpx, "idle CPU", |_| roads::cpu(own, idle));
            for process in own {
                let idle = self.try_on(Road::Tpx, "idle memory", |_| process.memory());
                let used = cpu.as_ref().and_then(|(_, used)| used.get(&process.name));
                let idle_cpu = used.map(|seconds| seconds / IDLE.as_secs_f64());
                self.raw.daemons.push(Daemon { name: process.name.clone(), idle, idle_cpu, loaded: None });
            }
        }
        for road in order {
            self.go_on()?;
            let opened = match road {
                Road::Direct => Some((self.direct.clone(), Vec::new())),
                Road::Tpx => own.clone().map(|own| (self.direct.clone(), [own, self.cluster.clone()].concat())),
                Road::Kubectl => self.try_on(road, "kubectl port-forward", Run::forwards),
            };
            if let Some((ends, processes)) = opened {
                self.measure(road, &ends, &processes, seen.entry(road).or_default())?;
                self.raw.processes.insert(road, processes);
            }
        }
        for process in own.iter().flatten() {
            let loaded = self.try_on(Road::Tpx, "memory after the load", |_| process.memory());
            if let Some(daemon) = self.raw.daemons.iter_mut().find(|daemon| daemon.name == process.name) {
                daemon.loaded = loaded;
            }
        }
        if connected {
            self.try_on(Road::Tpx, "tpx quit", |run| run.lab.run(Part::Laptop, &["tpx", "quit"]).map(drop));
        }
        self.raw.rounds.push(seen);
        Ok(())
    }

    /// The running port-forwards, started again when one of them ended.
    fn forwards(&mut self) -> Result<(Ends, Vec<Process>)> {
        if self.forwards.as_mut().is_some_and(|forwards| !forwards.are_alive()) {
            self.note(Road::Kubectl, "kubectl port-forward", "it ended by itself".into());
            self.forwards = None;
        }
        if self.forwards.is_none() {
            self.forwards = Some(Forwards::start(self.lab, &self.finder)?);
        }
        let forwards = self.forwards.as_ref().context("no port-forward")?;
        Ok((forwards.ends.clone(), [forwards.processes.clone(), self.cluster.clone()].concat()))
    }

    fn measure(&mut self, road: Road, ends: &Ends, processes: &[Process], seen: &mut Seen) -> Result<()> {
        let part = roads::part(road);
        let Amount { transfer, burst, pings, busy_pings, .. } = self.amount;
        let (transfer, burst) = (format!("--seconds={transfer}"), format!("--seconds={burst}"));
        for (way, rate, cost) in
            [("down", Metric::Download, Metric::CpuDownload), ("up", Metric::Upload, Metric::CpuUpload)]
        {
            let done = self.try_on(road, rate.title().0, |run| {
                roads::cpu(processes, || run.lab.load::<Bulk>(part, &[way, &ends.web, &transfer]))
            });
            if let Some((bulk, mut used)) = done {
                seen.values.insert(rate, bulk.rate());
                used.values_mut().for_each(|seconds| *seconds /= bulk.gib());
                if !used.is_empty() {
                    seen.values.insert(cost, used.values().sum());
                }
                *(if way == "down" { &mut seen.cpu_download } else { &mut seen.cpu_upload }) = used;
            }
            self.go_on()?;
        }
        let counted = format!("--count={pings}");
        if let Some(ping) =
            self.try_on(road, Metric::Ping.title().0, |run| run.lab.load::<Ping>(part, &["ping", &ends.echo, &counted]))
        {
            seen.values.extend([(Metric::Ping, ping.p50), (Metric::PingP99, ping.p99)]);
        }
        let counted = format!("--count={busy_pings}");
        let words = ["ping", &ends.echo, &counted, &transfer, "--beside", &ends.web];
        if let Some(ping) = self.try_on(road, Metric::BusyPing.title().0, |run| run.lab.load::<Ping>(part, &words)) {
            seen.values.extend([(Metric::BusyPing, ping.p50), (Metric::BusyPingP99, ping.p99)]);
        }
        self.go_on()?;
        for (at_once, metric) in [("--at-once=1", Metric::Connects), ("--at-once=16", Metric::ConnectsAtOnce)] {
            let words = ["connects", &ends.echo, &burst, at_once];
            let done = self.try_on(road, metric.title().0, |run| run.lab.load::<Connects>(part, &words));
            if let Some(done) = done {
                seen.values.insert(metric, done.rate());
                if done.failed > 0 {
                    let all = done.count + done.failed;
                    let error = done.error.unwrap_or_default();
                    self.note(road, metric.title().0, format!("{} of {all} failed: {error}", done.failed));
                }
            }
        }
        Ok(())
    }

    /// What fails here concerns one road; it is noted.
    fn try_on<T>(&mut self, road: Road, what: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Option<T> {
        match work(self) {
            Ok(done) => Some(done),
            Err(error) => {
                self.note(road, what, format!("{error:#}"));
                None
            }
        }
    }

    fn note(&mut self, road: Road, what: &str, error: String) {
        eprintln!("{}: {what}: {error}", road.title());
        self.raw.failures.push(Failure { round: self.round, road, what: what.to_owned(), error });
    }

    fn go_on(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}
