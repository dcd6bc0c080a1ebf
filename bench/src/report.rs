//! What was measured, and what follows from it: medians, ratios, goals. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use tpx_bench::stats::{median, ratios};

use crate::bare;
use crate::conditions::Conditions;
use crate::crowd::{self, Crowd};
use crate::flows::PerFlow;
use crate::full;
use crate::grid::Row;
use crate::names;
use crate::procs::{Memory, Process};
use crate::rounds::Subject;

/// A way from a client to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Road {
    /// From the laptop to the ClusterIP, by the datapath that tpx chooses: the express lane.
    Tpx,
    /// The same with `tpx connect --datapath tun`.
    Floor,
    /// From the laptop through `kubectl port-forward svc/…`.
    Kubectl,
    /// From the node to the ClusterIP.
    Direct,
}

impl Road {
    pub(crate) const ALL: [Road; 4] = [Road::Tpx, Road::Floor, Road::Kubectl, Road::Direct];
    /// Those that are tpx's.
    pub(crate) const OWN: [Road; 2] = [Road::Tpx, Road::Floor];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Road::Tpx => "tpx",
            Road::Floor => "tpx, floor",
            Road::Kubectl => "kubectl port-forward",
            Road::Direct => "direct",
        }
    }
}

/// What is measured on a road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Download,
    Upload,
    Ping,
    PingP99,
    BusyPing,
    BusyPingP99,
    Connects,
    ConnectsAtOnce,
    CpuDownload,
    CpuUpload,
    Ready,
    FirstByte,
}

impl Metric {
    pub(crate) const ALL: [Metric; 12] = [
        Metric::Download,
        Metric::Upload,
        Metric::Ping,
        Metric::PingP99,
        Metric::BusyPing,
        Metric::BusyPingP99,
        Metric::Connects,
        Metric::ConnectsAtOnce,
        Metric::CpuDownload,
        Metric::CpuUpload,
        Metric::Ready,
        Metric::FirstByte,
    ];

    /// What it is and its unit.
    pub(crate) fn title(self) -> (&'static str, &'static str) {
        match self {
            Metric::Download => ("one stream, download", "MiB/s"),
            Metric::Upload => ("one stream, upload", "MiB/s"),
            Metric::Ping => ("64-byte round trip, p50", "ms"),
            Metric::PingP99 => ("64-byte round trip, p99", "ms"),
            Metric::BusyPing => ("same beside a download, p50", "ms"),
            Metric::BusyPingP99 => ("same beside a download, p99", "ms"),
            Metric::Connects => ("connects, one at a time", "1/s"),
            Metric::ConnectsAtOnce => ("connects, 16 at a time", "1/s"),
            Metric::CpuDownload => ("CPU of the road, download", "s/GiB"),
            Metric::CpuUpload => ("CPU of the road, upload", "s/GiB"),
            Metric::Ready => ("from nothing until ready", "s"),
            Metric::FirstByte => ("from nothing until first byte", "s"),
        }
    }
}

/// What one road showed in one round.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Seen {
    pub(crate) values: BTreeMap<Metric, f64>,
    /// CPU seconds per GiB of each process, download.
    pub(crate) cpu_download: BTreeMap<String, f64>,
    /// CPU seconds per GiB of each process, upload.
    pub(crate) cpu_upload: BTreeMap<String, f64>,
}

/// One round: each road once.
pub(crate) type Round = BTreeMap<Road, Seen>;

/// Something that did not work.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    /// Counted from 1; 0 is before the first.
    pub(crate) round: usize,
    /// The road's title, or whoever it was.
    pub(crate) who: String,
    pub(crate) what: String,
    pub(crate) error: String,
}

/// A daemon of tpx: its memory when it has nothing to do and after it had.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Daemon {
    /// While connected by which road.
    pub(crate) road: Road,
    pub(crate) name: String,
    /// Some seconds after `tpx connect`, before any load, in the first round.
    pub(crate) idle: Option<Memory>,
    /// CPU it used in these seconds, as a part of one core.
    pub(crate) idle_cpu: Option<f64>,
    /// After the load of the last round.
    pub(crate) loaded: Option<Memory>,
}

impl Daemon {
    /// Its name, with the road where that is not what tpx chooses.
    pub(crate) fn title(&self) -> String {
        if self.road == Road::Tpx { self.name.clone() } else { format!("{} (floor)", self.name) }
    }
}

/// A goal, and whether it is met; not measured where that is unknown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) limit: String,
    pub(crate) value: Option<f64>,
    pub(crate) met: Option<bool>,
}

impl Goal {
    pub(crate) fn at_least(what: String, limit: String, value: Option<f64>, least: f64) -> Goal {
        Goal { what, limit, value, met: value.map(|value| value >= least) }
    }

    pub(crate) fn at_most(what: String, limit: String, value: Option<f64>, most: f64) -> Goal {
        Goal { what, limit, value, met: value.map(|value| value <= most) }
    }
}

/// One road's values as multiples of another's.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) over: Road,
    pub(crate) under: Road,
    /// Round by round, where both have a value.
    pub(crate) rounds: BTreeMap<Metric, Vec<f64>>,
}

/// Who is compared with whom.
const COMPARED: [(Road, Road); 4] =
    [(Road::Tpx, Road::Kubectl), (Road::Floor, Road::Kubectl), (Road::Tpx, Road::Floor), (Road::Tpx, Road::Direct)];

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    pub(crate) medians: BTreeMap<Road, BTreeMap<Metric, f64>>,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) failures: Vec<Failure>,
    /// The processes that each road was made of, in the last round.
    pub(crate) processes: BTreeMap<Road, Vec<Process>>,
    /// Everything that was measured.
    pub(crate) rounds: Vec<Round>,
    /// The same without a tunnel and a cluster.
    pub(crate) bare: Vec<Row<bare::Way, bare::Metric>>,
    /// Names; times in microseconds.
    pub(crate) names: Vec<Row<Road, names::Metric>>,
    /// Many rules and flows.
    pub(crate) full: Vec<Row<full::Table, full::Metric>>,
    /// What an open flow holds.
    pub(crate) per_flow: Option<PerFlow>,
    /// Connecting to a large cluster.
    pub(crate) crowd: Option<Crowd>,
}

/// What the rounds left, before anything is concluded.
#[derive(Default)]
pub(crate) struct Raw {
    pub(crate) rounds: Vec<Round>,
    pub(crate) bare: Vec<Row<bare::Way, bare::Metric>>,
    pub(crate) names: Vec<Row<Road, names::Metric>>,
    pub(crate) full: Vec<Row<full::Table, full::Metric>>,
    pub(crate) per_flow: Option<PerFlow>,
    pub(crate) crowd: Option<Crowd>,
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) processes: BTreeMap<Road, Vec<Process>>,
}

impl Report {
    pub(crate) fn new(conditions: Conditions, raw: Raw) -> Report {
        let Raw { rounds, bare, names, full, per_flow, crowd, daemons, failures, processes } = raw;
        let compared = COMPARED.map(|(over, under)| {
            let of = |metric| ratios(&column(&rounds, over, metric), &column(&rounds, under, metric));
            let all = Metric::ALL.into_iter().map(|metric| (metric, of(metric))).filter(|(_, all)| !all.is_empty());
            Ratio { over, under, rounds: all.collect() }
        });
        let medians = Road::ALL
            .into_iter()
            .map(|road| {
                let of = |metric| median(&column(&rounds, road, metric).into_iter().flatten().collect::<Vec<_>>());
                (road, Metric::ALL.into_iter().filter_map(|metric| Some((metric, of(metric)?))).collect())
            })
            .collect();
        let goals = conditions.measured.iter().flat_map(|subject| match subject {
            Subject::Roads => [goals(&compared, &daemons), names::goals(&names)].concat(),
            Subject::Datapaths => bare::goals(&bare),
            Subject::Tables => full::goals(&full),
            Subject::Flows => Vec::new(),
            Subject::Crowd => crowd::goals(crowd.as_ref()),
        });
        let goals = goals.collect();
        let ratios = compared.into();
        Report {
            conditions,
            medians,
            ratios,
            goals,
            daemons,
            failures,
            processes,
            rounds,
            bare,
            names,
            full,
            per_flow,
            crowd,
        }
    }
}

/// One metric of one road, round by round.
pub(crate) fn column(rounds: &[Round], road: Road, metric: Metric) -> Vec<Option<f64>> {
    rounds.iter().map(|round| round.get(&road)?.values.get(&metric).copied()).collect()
}

/// Memory that an idle daemon may hold, in MiB.
pub(crate) const MEMORY_GOAL: f64 = 30.0;

fn goals(ratios: &[Ratio], daemons: &[Daemon]) -> Vec<Goal> {
    let value = |road: Road, metric: Metric| {
        let to_kubectl = ratios.iter().find(|ratio| ratio.over == road && ratio.under == Road::Kubectl)?;
        median(to_kubectl.rounds.get(&metric)?)
    };
    let what = |road: Road, metric: Metric| format!("{}: {}", road.title(), metric.title().0);
    let least = |road: Road, metric: Metric, least: f64| {
        let limit = format!("at least {least} x kubectl port-forward");
        Goal::at_least(what(road, metric), limit, value(road, metric), least)
    };
    let most = |road: Road, metric: Metric, most: f64| {
        let limit = format!("at most {most} x kubectl port-forward");
        Goal::at_most(what(road, metric), limit, value(road, metric), most)
    };
    let mut goals = vec![
        least(Road::Tpx, Metric::Download, 0.9),
        least(Road::Tpx, Metric::Upload, 0.9),
        most(Road::Tpx, Metric::Ping, 1.15),
        most(Road::Tpx, Metric::FirstByte, 1.0),
        least(Road::Floor, Metric::Download, 0.8),
        least(Road::Floor, Metric::Upload, 0.8),
    ];
    for daemon in daemons {
        let value = daemon.idle.map(|memory| memory.rss as f64 / 1024.0);
        let what = format!("resident memory of {}, idle", daemon.title());
        let met = value.map(|value| value < MEMORY_GOAL);
        goals.push(Goal { what, limit: format!("under {MEMORY_GOAL} MiB"), value, met });
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(name: &str, rss: Option<u64>) -> Daemon {
        let idle = rss.map(|rss| Memory { rss, ..Memory::default() });
        Daemon { road: Road::Tpx, name: name.into(), idle, idle_cpu: None, loaded: None }
    }

    #[test]
    fn a_goal_is_met_missed_or_unknown() {
        let rounds = BTreeMap::from([
            (Metric::Download, vec![0.8, 0.9, 1.0]),
            (Metric::Upload, vec![0.89]),
            (Metric::Ping, vec![1.15]),
        ]);
        let ratios = [
            Ratio { over: Road::Tpx, under: Road::Direct, rounds: BTreeMap::from([(Metric::FirstByte, vec![1.0])]) },
            Ratio { over: Road::Tpx, under: Road::Kubectl, rounds: rounds.clone() },
            Ratio { over: Road::Floor, under: Road::Kubectl, rounds },
        ];
        let daemons = [daemon("a", Some(30 * 1024)), daemon("b", Some(30 * 1024 - 1)), daemon("c", None)];
        let met: Vec<_> = goals(&ratios, &daemons).into_iter().map(|goal| goal.met).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(met, [yes, no, yes, None, yes, yes, no, yes, None]);
    }

    #[test]
    fn a_round_in_which_a_road_failed_has_a_gap() {
        let seen = |value| Seen { values: BTreeMap::from([(Metric::Ping, value)]), ..Seen::default() };
        let rounds = [
            Round::from([(Road::Tpx, seen(1.0)), (Road::Kubectl, seen(2.0))]),
            Round::from([(Road::Tpx, seen(3.0))]),
            Round::from([(Road::Tpx, seen(4.0)), (Road::Kubectl, seen(1.0))]),
        ];
        assert_eq!(column(&rounds, Road::Kubectl, Metric::Ping), [Some(2.0), None, Some(1.0)]);
        assert_eq!(column(&rounds, Road::Tpx, Metric::Upload), [None, None, None]);
        let both = ratios(&column(&rounds, Road::Tpx, Metric::Ping), &column(&rounds, Road::Kubectl, Metric::Ping));
        assert_eq!(both, [0.5, 4.0]);
    }
}
